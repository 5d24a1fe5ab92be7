from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.core.combine import chain
from laconic.core.errors import BadConfig, CorruptStream, NotFitted
from laconic.core.packet import Codec, decode
from laconic.entropy.coders import Pack
from laconic.quantize.base import Quantizer
from laconic.quantize.codebooks import (
    FORMATS,
    AdditivePowers,
    KMeans,
    Levels,
    LloydMax,
    Log,
    Minifloat,
    NormalFloat,
    Power,
    Uniform,
)

BOOKS: list[Levels] = [
    Uniform(2), Uniform(3), Uniform(16), Uniform(16, 0.0), Uniform(16, 8.0), Uniform(255), Uniform(7, 1.5),
    LloydMax(5), LloydMax(16, "laplace"), LloydMax(8, "sphere", 128), NormalFloat(),
    Minifloat("e2m1"), Minifloat("e3m2"), Minifloat("e4m3"), Minifloat("e5m2"), Minifloat("float16"),
    Power(15, 0.5), Log(16), Log(16, 2), Log(16, 1, True), AdditivePowers(2, 2), AdditivePowers(1, 3, False),
    KMeans(4, np.array([-2, -0.5, 0.1, 3], np.float16)),
]  # fmt: skip


@pytest.mark.parametrize("book", BOOKS, ids=str)
@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-70000, 70000, width=32), min_size=1, max_size=40), st.sampled_from([1e-4, 1e-2, 1.0]))
def test_nearest_is_the_nearest(book: Levels, values: list[float], scale: float) -> None:
    x = torch.tensor(values, dtype=torch.float32) * scale
    index = book.nearest(x)
    points = torch.from_numpy(book.points()).double()
    points = points[points.isfinite()]
    best = torch.cdist(x.double()[:, None], points[:, None]).amin(dim=1)
    got = (book.lookup(index).double() - x.double()).abs()
    torch.testing.assert_close(got, best, rtol=1e-6, atol=1e-9)
    assert index.dtype == torch.int64 and int(index.max()) < book.alphabet == len(book.points())


@pytest.mark.parametrize("book", BOOKS, ids=str)
def test_levels_come_back_and_indices_beyond_are_refused(book: Levels) -> None:
    levels = torch.from_numpy(book.ladder().levels)
    assert torch.equal(book.lookup(book.nearest(levels)), levels)
    assert book.span() == (float(levels[0]), float(levels[-1]))
    for bad in (-1, book.alphabet, 1 << 40):
        with pytest.raises(CorruptStream):
            book.lookup(torch.tensor([0, bad]))
    assert book.lookup(torch.zeros(0, 3, dtype=torch.int64)).shape == (0, 3)


@pytest.mark.parametrize("name", ["e4m3", "e5m2", "float16", "bfloat16"])
def test_minifloats_round_as_the_formats_do(name: str) -> None:
    dtype = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}.get(name) or getattr(torch, name)
    book = Minifloat(name)
    levels = torch.from_numpy(book.ladder().levels)
    ties = ((levels[1:].double() + levels[:-1].double()) / 2).float()
    g = torch.Generator().manual_seed(0)
    x = torch.cat([levels, ties, torch.randn(20000, generator=g) * torch.randn(20000, generator=g).mul(5).exp()])
    x = x.clamp(levels[0], levels[-1])
    assert torch.equal(book.lookup(book.nearest(x)), x.to(dtype).float())
    bits = torch.arange(book.alphabet).to(torch.int32)
    pattern = bits.to(torch.uint8).view(dtype) if book.alphabet == 256 else bits.to(torch.int16).view(dtype)
    finite = pattern.float().isfinite()
    assert torch.equal(book.lookup(bits[finite].long()), pattern.float()[finite]), "an index is the bit pattern"
    for odd in bits[~finite].tolist():
        with pytest.raises(CorruptStream):
            book.lookup(torch.tensor([odd]))


def test_small_float_tables() -> None:
    e2m1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert Minifloat("e2m1").points().tolist() == e2m1 + [-v for v in e2m1]
    e3m2 = Minifloat("e3m2").points()
    assert len(e3m2) == 64 and e3m2[:9].tolist() == [0, 1 / 16, 1 / 8, 3 / 16, 1 / 4, 5 / 16, 3 / 8, 7 / 16, 1 / 2]
    assert e3m2[31] == 28
    assert {k: float(np.nanmax(Minifloat(k).points())) for k in ("e4m3", "e5m2")} == {"e4m3": 448, "e5m2": 57344}
    ties = torch.tensor([2.5, 5.0, -2.5, -5.0, 0.25, 0.75])
    assert Minifloat("e2m1").lookup(Minifloat("e2m1").nearest(ties)).tolist() == [2, 4, -2, -4, 0, 1], (
        "to even mantissa"
    )


def test_normal_float_is_the_table_of_the_paper() -> None:
    p = NormalFloat().points()
    assert len(p) == 16 and p[0] == -1 and p[7] == 0 and p[15] == 1 and (np.diff(p) > 0).all()
    # Its law: the positive half are the quantiles of N(0, 1) from 1/2 to .9677083, in 8 equal steps, over the greatest.
    normal = torch.distributions.Normal(0.0, 1.0)
    quantiles = normal.icdf(torch.linspace(0.5, 0.9677083, 9))
    np.testing.assert_allclose(p[7:], (quantiles / quantiles[-1]).numpy(), atol=2e-6)


@pytest.mark.parametrize(
    ("law", "dim", "known"),
    [
        ("gaussian", 0, [0.36338, 0.11748, 0.034548, 0.0095010]),  # Max 1960, table I; 16 levels .009497 there
        ("laplace", 0, [0.5, 0.17619, 0.054476, 0.015373]),  # Adams & Giesler 1978
        ("sphere", 128, [0.3609, 0.1160, 0.0340, 0.00931]),  # 2504.19874, Theorem 1's numeric values
    ],
)
def test_lloyd_max_distortions(law: str, dim: int, known: list[float]) -> None:
    got = [LloydMax(1 << b, law, dim).distortion() * max(dim, 1) for b in (1, 2, 3, 4)]
    np.testing.assert_allclose(got, known, rtol=1.2e-3)


def test_the_sphere_takes_its_dimension_from_the_data() -> None:
    book = LloydMax(8, "sphere")
    for ask in (book.points, book.distortion):
        with pytest.raises(NotFitted):
            ask()
    assert book.fit(torch.zeros(3, 48)) == LloydMax(8, "sphere", 48)


def test_lloyd_max_where_the_answer_is_known() -> None:
    for n in (2, 3, 4, 15, 256, 1024):  # a coordinate on the sphere in three dimensions is uniform (Archimedes)
        book = LloydMax(n, "sphere", 3)
        np.testing.assert_allclose(book.points(), (np.arange(n) - (n - 1) / 2) * 2 / n, atol=1e-6)
        np.testing.assert_allclose(book.distortion(), 1 / 3 / n**2, rtol=1e-9)
    np.testing.assert_allclose(LloydMax(2).points(), [-np.sqrt(2 / np.pi), np.sqrt(2 / np.pi)], rtol=1e-6)
    n = 512  # Panter & Dite: D → ‖f‖_{1/3} / (12 n²) = √3 π / (2 n²)
    assert abs(LloydMax(n).distortion() * n**2 / (np.sqrt(3) * np.pi / 2) - 1) < 0.01


@pytest.mark.parametrize(
    ("levels", "law", "dim"), [(5, "gaussian", 0), (8, "laplace", 0), (7, "sphere", 8), (4, "sphere", 2)]
)
def test_lloyd_max_levels_are_centroids(levels: int, law: str, dim: int) -> None:
    g = torch.Generator().manual_seed(3)
    n = 1 << 20
    if law == "sphere":
        v = torch.randn(n, dim, generator=g)
        x = (v / v.norm(dim=1, keepdim=True))[:, 0]
    else:
        x = torch.randn(n, generator=g)
        if law == "laplace":
            u = torch.rand(2, n, generator=g, dtype=torch.float64)
            x = (torch.log(u[0] / u[1]) / 2**0.5).float()
    book = LloydMax(levels, law, dim)
    index = book.nearest(x)
    centroid = torch.zeros(levels).index_add(0, index, x) / torch.bincount(index, minlength=levels)
    np.testing.assert_allclose(centroid, book.points(), atol=0.012 * float(x.std()) * (3 if law == "laplace" else 1))
    assert abs(float((x - book.lookup(index)).square().mean()) / book.distortion() - 1) < 0.02


def test_uniform_forms_and_ties() -> None:
    assert Uniform(3).points().tolist() == [-1, 0, 1]
    assert Uniform(4).points().tolist() == [-1.5, -0.5, 0.5, 1.5]
    assert Uniform(4, 0.0).points().tolist() == [0, 1, 2, 3]
    assert Uniform(16, 8.0).span() == (-8, 7)
    x = torch.tensor([-1.5, -0.5, 0.5, 1.5])
    book = Uniform(5)
    assert book.lookup(book.nearest(x)).tolist() == [-1, 0, 0, 1], "halfway goes to the level nearer zero"


def test_power_fits_its_exponent() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(20000, generator=g) * torch.randn(20000, generator=g)
    x = x / x.abs().max()
    with pytest.raises(NotFitted):
        Power(15).points()
    fitted = Power(15).fit(x)
    assert fitted.exponent is not None and 0.25 < fitted.exponent < 0.9

    def error(book: Levels) -> float:
        return float((x - book.lookup(book.nearest(x))).square().mean())

    assert error(fitted) < 0.6 * error(Power(15, 1.0))
    assert error(fitted) <= min(error(Power(15, a)) for a in (0.3, 0.5, 0.7, 1.0))
    assert Power(15, 0.5).fit(x).exponent == 0.5, "a given exponent stays"


def test_additive_powers_are_the_sums() -> None:
    want = sorted({a + b for a in (0, 1, 1 / 4, 1 / 16) for b in (0, 1 / 2, 1 / 8, 1 / 32)})
    book = AdditivePowers(2, 2, signed=False)
    np.testing.assert_allclose(book.points() * 1.5, want, rtol=1e-6)
    assert AdditivePowers(2, 2).alphabet == 31 == 2 * book.alphabet - 1
    assert AdditivePowers(1, 2).points().tolist() == [-1, -0.5, -0.25, 0, 0.25, 0.5, 1]


def test_logarithmic_levels() -> None:
    assert Log(4).points().tolist() == [1 / 8, 1 / 4, 1 / 2, 1]
    np.testing.assert_allclose(Log(4, 2).points(), [2**-1.5, 2**-1, 2**-0.5, 1], rtol=1e-7)
    assert Log(4, 1, True).points().tolist() == [-1, -0.5, 0.5, 1]


def _best_partition(v: list[float], w: list[float], k: int) -> float:
    """Least weighted squared error of k cells of sorted values, by trying all."""
    order = np.argsort(v)
    x, m = np.array(v)[order], np.array(w)[order]
    best = np.inf
    for cuts in itertools.combinations(range(1, len(x)), min(k, len(x)) - 1):
        cells = np.split(np.arange(len(x)), cuts)
        best = min(best, sum(float((m[c] * (x[c] - np.average(x[c], weights=m[c])) ** 2).sum()) for c in cells))
    return best


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(1, 9)), min_size=1, max_size=9), st.integers(2, 4))
def test_k_means_is_optimal_on_small_arrays(pairs: list[tuple[int, int]], k: int) -> None:
    v, w = [float(a) for a, _ in pairs], [float(b) for _, b in pairs]
    x, weights = torch.tensor(v), torch.tensor(w)
    book = KMeans(k).fit(x, weights)
    got = float((weights * (x - book.lookup(book.nearest(x))).square()).sum())
    assert got <= _best_partition(v, w, k) + 0.06 * sum(w), "the table is half precision"


def test_k_means_reaches_lloyd_max_and_obeys_weights() -> None:
    x = torch.randn(1 << 16, generator=torch.Generator().manual_seed(2))
    for k in (4, 16, 64):
        book = KMeans(k).fit(x)
        assert float((x - book.lookup(book.nearest(x))).square().mean()) < 1.01 * LloydMax(k).distortion()
    heavy = KMeans(2).fit(torch.tensor([0.0, 1.0, 10.0]), torch.tensor([1.0, 1.0, 0.0]))
    assert heavy.points().tolist() == [0, 1], "a value of weight 0 does not count"


def test_k_means_travels_and_lies_are_found() -> None:
    x = torch.randn(50, 20, generator=torch.Generator().manual_seed(2))
    codec = Codec(chain(Quantizer(KMeans(8)), Pack()))
    with pytest.raises(NotFitted):
        codec.encode(x)
    codec = codec.fit(x)
    assert float((decode(codec.encode(x)) - x).square().mean()) < 0.05
    for table in (np.zeros(7, np.float16), np.full(8, np.nan, np.float16), np.zeros((8, 1), np.float16)):
        with pytest.raises(CorruptStream):
            KMeans(8, table).lookup(torch.tensor([0]))


@pytest.mark.parametrize(
    "build",
    [
        lambda: Uniform(1), lambda: Uniform(1 << 17), lambda: Uniform(4, 0.3), lambda: Uniform(4, 9.0),
        lambda: LloydMax(1), lambda: LloydMax(4096), lambda: LloydMax(4, "cauchy"), lambda: LloydMax(4, "sphere", 1),
        lambda: LloydMax(4, "gaussian", 3), lambda: Minifloat("e9m9"), lambda: Power(15, 0.0), lambda: Log(15, 1, True),
        lambda: Log(256, 1), lambda: AdditivePowers(3, 8), lambda: AdditivePowers(0, 1), lambda: KMeans(1000),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(build) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadConfig) as e:
        build()
    assert len(str(e.value)) > 15


def test_formats_are_complete() -> None:
    for name, f in FORMATS.items():
        assert Minifloat(name).alphabet == 1 << (1 + f.exponent + f.mantissa) == len(Minifloat(name).points())
