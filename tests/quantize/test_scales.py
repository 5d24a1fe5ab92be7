from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.core.errors import BadConfig, BadInput, CorruptStream
from laconic.core.stage import Stats
from laconic.kernels import scalar
from laconic.quantize.base import Codebook, Quantizer
from laconic.quantize.codebooks import LloydMax, Minifloat, Uniform
from laconic.quantize.scales import (
    AbsMax,
    AbsMean,
    Along,
    Bilevel,
    Each,
    Float,
    Groups,
    GroupScale,
    LeastSquares,
    MinMax,
    Percentile,
    PowerOfTwo,
    Rms,
    Search,
    Statistic,
    Store,
    TwoLevel,
    Whole,
    gather,
)

E2M1 = Minifloat("e2m1")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def laplace(*shape: int, seed: int = 0) -> torch.Tensor:
    u = torch.rand(2, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.log(u[0] / u[1]).float()


def error(book: Codebook, scale: GroupScale, x: torch.Tensor, weights: torch.Tensor | None = None) -> float:
    """Squared error relative to x."""
    q = Quantizer(book, scale).fit(x, None if weights is None else Stats(importance=weights))
    e = (q.decode(*q.encode(x)) - x).square()
    return float((e if weights is None else e * weights).sum() / x.square().sum())


# --- groups -----------------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 7), st.integers(-4, 3))
def test_groups_cover_every_value_once(shape: list[int], size: int, axis: int) -> None:
    x = torch.arange(math.prod(shape)).float().reshape(shape) + 1
    for groups in (Whole(), Each(axis), Along(size, axis)):
        try:
            lattice = groups.lattice(tuple(shape))
        except BadInput:
            assert not -len(shape) <= axis < len(shape)
            continue
        rows, present = gather(groups, x, None)
        assert len(rows) == math.prod(lattice)
        kept = rows if present is None else rows[present > 0]
        assert sorted(kept.reshape(-1).tolist()) == sorted(x.reshape(-1).tolist())
        name = torch.arange(len(rows)).float()
        spread = groups.spread(groups.scatter(name, tuple(shape)), tuple(shape)).expand(x.shape)
        assert torch.equal(groups.collect(groups.scatter(name, tuple(shape))), name)
        for g in range(len(rows)):  # what lies under scale g is what was gathered into row g
            mine = rows[g] if present is None else rows[g][present[g] > 0]
            assert sorted(x[spread == g].tolist()) == sorted(mine.tolist())


def test_a_group_that_does_not_divide_leaves_a_shorter_one() -> None:
    x = torch.tensor([[1.0, 2, 3, 4, 5, 6, 7, 80]])
    scale = GroupScale(Along(3), AbsMax(), Float("float32"))
    side = scale.measure(x, Uniform(3))
    assert side["scale"].tolist() == [[3, 6, 80]]
    assert scale.expand(side, (1, 8)).step.tolist() == [[3, 3, 3, 6, 6, 6, 80, 80]]


# --- statistics -------------------------------------------------------------------------------------------------------


def test_statistics_are_what_their_names_say() -> None:
    x = torch.tensor([[-4.0, 1, 2, 3], [0.5, 1, 1.5, 2]])

    def found(statistic: Statistic, book: Codebook = E2M1) -> list[list[float]]:
        side = GroupScale(Along(), statistic, Float("float32")).measure(x, book)
        return [v.reshape(-1).tolist() for v in side.values()]

    assert found(AbsMax()) == [[pytest.approx(4 / 6), pytest.approx(2 / 6)]]
    assert found(AbsMax(), Uniform(16, 8.0)) == [[0.5, pytest.approx(2 / 7)]], "each side has its own end"
    assert found(MinMax(), Uniform(8, 0.0)) == [[1, pytest.approx(1.5 / 7)], [-4, 0.5]]
    assert found(MinMax(True), Uniform(8, 0.0)) == [[1, pytest.approx(2 / 7)], [-4, 0]]
    assert found(Rms()) == [[pytest.approx(math.sqrt(7.5)), pytest.approx(math.sqrt(1.875))]]
    assert found(AbsMean()) == [[2.5, 1.25]]


def test_percentile_clips() -> None:
    x = normal(1, 10000)
    x[0, :10] = 50
    clipped = GroupScale(Along(), Percentile(0.995), Float("float32"))
    assert float(clipped.measure(x, Uniform(3))["scale"].item()) < 4
    assert error(Uniform(15), clipped, x[:, 10:]) < error(
        Uniform(15), GroupScale(Along(), AbsMax(), Float("float32")), x[:, 10:]
    )


def test_searches_never_lose_to_their_start() -> None:
    x = laplace(64, 128)
    weights = torch.rand(64, 128, generator=torch.Generator().manual_seed(5))
    stores: list[Store] = [Float(), Float("bfloat16"), TwoLevel(), PowerOfTwo()]
    for store in stores:
        for w in (None, weights):
            plain = error(E2M1, GroupScale(Along(16), AbsMax(), store), x, w)
            searched = error(E2M1, GroupScale(Along(16), Search(AbsMax(), n=15), store), x, w)
            solved = error(E2M1, GroupScale(Along(16), LeastSquares(AbsMax(), 4, 6), store), x, w)
            assert searched < 0.98 * plain and solved <= plain
    start = error(Uniform(8, 0.0), GroupScale(Along(16), MinMax()), x)
    better = error(Uniform(8, 0.0), GroupScale(Along(16), Search(MinMax(), n=15)), x)
    best = error(Uniform(8, 0.0), GroupScale(Along(16), LeastSquares(MinMax(), 4, 9)), x)
    assert best < better < start


@dataclass(frozen=True)
class _Opaque(Uniform):
    """A book that does not show its ladder, as vector codebooks do not."""

    def ladder(self):  # type: ignore[no-untyped-def]
        return None

    def nearest(self, x: torch.Tensor) -> torch.Tensor:
        return Uniform(self.levels, self.zero).nearest(x)

    def span(self) -> tuple[float, float]:
        return Uniform(self.levels, self.zero).span()


@pytest.mark.parametrize("weighted", [False, True])
def test_books_without_a_ladder_are_searched_as_well(weighted: bool) -> None:
    x = laplace(32, 64)
    w = torch.rand(32, 64, generator=torch.Generator().manual_seed(5)) if weighted else None
    for find in (Search(MinMax(), n=9), LeastSquares(MinMax(), 4, 5), Search(AbsMax(), n=9), LeastSquares(AbsMax(), 4)):
        scale = GroupScale(Along(16), find, Float("float32"))
        assert error(_Opaque(8, 3.0), scale, x, w) == pytest.approx(error(Uniform(8, 3.0), scale, x, w), rel=0.01)


def test_search_reaches_lloyds_ternary_optimum() -> None:
    """Weights of N(0, 1) in long groups: the best three equal levels lose .190 (Max 1960, table I)."""
    found = error(Uniform(3), GroupScale(Along(), LeastSquares(AbsMean(), 30), Float("float32")), normal(8, 20000))
    assert abs(found / LloydMax(3).distortion() - 1) < 0.02


def test_values_of_weight_zero_do_not_count() -> None:
    x = normal(4, 64)
    weights = torch.ones(4, 64)
    weights[:, ::9] = 0
    wild = torch.where(weights > 0, x, 1e4)
    for find in (AbsMax(), MinMax(), Rms(), AbsMean(), Percentile(0.9), Search(MinMax()), LeastSquares(AbsMax())):
        scale = GroupScale(Along(16), find, Float("float32"))
        a, b = scale.measure(x, Uniform(8, 0.0), weights), scale.measure(wild, Uniform(8, 0.0), weights)
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-3, atol=1e-5)
    nothing = GroupScale(Along(16), AbsMax()).measure(x, E2M1, torch.zeros(64))
    plain = GroupScale(Along(16), AbsMax()).measure(x, E2M1)
    assert all(np.array_equal(nothing[k], plain[k]) for k in plain), "no weight at all is no information"
    with pytest.raises(BadInput, match="weights of shape"):
        GroupScale().measure(x, E2M1, torch.ones(5))


def test_a_hessian_weighs_errors_by_its_diagonal() -> None:
    x, diagonal = normal(16, 64), torch.rand(64, generator=torch.Generator().manual_seed(3)) ** 4
    scale = GroupScale(Along(16), Search(AbsMax()))
    hessian = torch.diag(diagonal)
    a = Quantizer(E2M1, scale).fit(x, Stats(hessian=hessian)).encode(x)
    b = Quantizer(E2M1, scale).fit(x, Stats(importance=diagonal)).encode(x)
    assert np.array_equal(a[0].index, b[0].index) and np.array_equal(a[1]["scale"], b[1]["scale"])
    both = Quantizer(E2M1, scale).fit(x, Stats(hessian=hessian, importance=torch.ones(64))).encode(x)
    plain = Quantizer(E2M1, scale).encode(x)
    assert np.array_equal(both[1]["scale"], plain[1]["scale"]), "importance comes first"
    dead = Quantizer(E2M1, scale).fit(x, Stats(hessian=hessian * 0)).encode(x)
    assert np.array_equal(dead[1]["scale"], plain[1]["scale"])


def test_nvfp4_and_mxfp4_on_laplace_values() -> None:
    x = laplace(256, 1024)
    nv, mx = (lambda f: GroupScale(Along(16), f, TwoLevel())), (lambda f: GroupScale(Along(32), f, PowerOfTwo()))
    assert abs(error(E2M1, nv(AbsMax()), x) - 0.0086) < 2e-4
    assert abs(error(E2M1, nv(Search(AbsMax(), 0.6, 1.1, 8)), x) - 0.0073) < 2e-4
    assert error(E2M1, mx(Search()), x) < 0.9 * error(E2M1, mx(AbsMax()), x)


# --- stores -----------------------------------------------------------------------------------------------------------

STORES: list[tuple[Store, float]] = [
    (Float(), 2**-11), (Float("bfloat16"), 2**-8), (Float("float32"), 0), (TwoLevel(), 2**-4), (Bilevel(8, 8), 0.01),
]  # fmt: skip


@pytest.mark.parametrize(("store", "relative"), STORES, ids=str)
@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 3000.0, 1e30])
def test_stores_keep_steps_of_any_magnitude(store: Store, relative: float, size: float) -> None:
    step = (torch.rand(5, 7, generator=torch.Generator().manual_seed(1)) + 0.5) * size
    offset = -3 * step if store.offsets else None
    side = store.put(step, offset)
    leaves = store.leaves(store.offsets)
    assert {k: v.dtype for k, v in side.items()} == {k: np.dtype(leaf.dtype) for k, leaf in leaves.items()}
    got, moved = store.get(side, (5, 7), store.offsets)
    assert float((got / step - 1).abs().max()) <= relative + 1e-7
    if offset is not None and moved is not None:
        assert float((moved / offset - 1).abs().max()) <= 2 * relative + 1e-6


def test_power_of_two_rounds_up() -> None:
    step = torch.tensor([1.0, 1.01, 0.5, 3e-39, 0.0, 1.7e38])
    got, _ = PowerOfTwo().get(PowerOfTwo().put(step, None), (6,), False)
    assert got.tolist() == [1, 2, 0.5, 2**-127, 2**-127, 2**127]


def test_two_level_steps_are_e4m3() -> None:
    step = torch.rand(1000, generator=torch.Generator().manual_seed(1)) * 3
    side = TwoLevel().put(step, None)
    common = side["global"].item()
    assert math.log2(common).is_integer() and 224 < float(step.max()) / common <= 448
    want = (step / common).to(torch.float8_e4m3fn)
    assert torch.equal(torch.from_numpy(side["scale"]), want.view(torch.uint8))


def test_bilevel_costs_what_it_says() -> None:
    x = normal(64, 256)
    side = GroupScale(Along(16), MinMax(True), Bilevel(3, 16)).measure(x, Uniform(8, 0.0))
    bits = 8 * sum(v.nbytes for k, v in side.items() if not k.endswith("exponent")) / x.numel()
    assert bits == 2 * (3 + 32 / 16) / 16  # codes of 3 bits, two half floats for every 16 of them; twice
    loss = error(Uniform(8, 0.0), GroupScale(Along(16), MinMax(True), Bilevel(3, 16)), x)
    assert loss < 1.1 * error(Uniform(8, 0.0), GroupScale(Along(16), MinMax(True)), x)


@pytest.mark.parametrize("store", [s for s, _ in STORES] + [PowerOfTwo()], ids=str)
@pytest.mark.parametrize("value", [0.0, -2.5, 1e30, 1e-30, 3e-39])
def test_constant_groups(store: Store, value: float) -> None:
    x = torch.full((4, 40), value)
    x[2] = 0
    finds: list[Statistic] = [AbsMax(), LeastSquares(AbsMax())]
    finds += [MinMax(True), LeastSquares(MinMax(True))] if store.offsets else []
    for find in finds:
        q = Quantizer(Uniform(16, 8.0), GroupScale(Along(16), find, store))
        y = q.decode(*q.encode(x))
        assert y.isfinite().all()
        assert float((y - x).abs().max()) <= 0.3 * abs(value) + 1e-38


@pytest.mark.parametrize(
    ("store", "affine", "name", "lie"),
    [
        (Float(), False, "scale", np.full((2, 3), np.nan, np.float16)),
        (Float(), False, "scale", np.ones((3, 2), np.float16)),
        (Float(), True, "zero", np.full((2, 3), np.inf, np.float16)),
        (Float(), False, "exponent", np.array([30000], np.int16)),
        (Float(), False, "exponent", np.zeros(3, np.int16)),
        (Float("float32"), False, "scale", np.full((2, 3), np.nan, np.float32)),
        (Float("bfloat16"), False, "scale", np.full((2, 3), 0x7F80, np.uint16)),
        (PowerOfTwo(), False, "scale", np.full((2, 3), 255, np.uint8)),
        (TwoLevel(), False, "scale", np.full((2, 3), 0x7F, np.uint8)),
        (TwoLevel(), False, "scale", np.full((2, 3), 0x85, np.uint8)),
        (TwoLevel(), False, "global", np.array([np.nan], np.float32)),
        (TwoLevel(), False, "global", np.array([-1], np.float32)),
        (Bilevel(), True, "scale", np.zeros(99, np.uint8)),
        (Bilevel(), True, "zero", np.zeros((1, 3), np.uint8)),
        (Bilevel(), True, "scale_scale", np.zeros(7, np.float16)),
    ],
)
def test_stores_believe_nothing(store: Store, affine: bool, name: str, lie: np.ndarray) -> None:
    step = torch.rand(2, 3) + 1
    side = store.put(step, step if affine else None)
    store.get(side, (2, 3), affine)
    with pytest.raises(CorruptStream):
        store.get(side | {name: lie}, (2, 3), affine)


def test_what_cannot_work_is_refused() -> None:
    for build in (
        lambda: GroupScale(Along(16), MinMax(), PowerOfTwo()),
        lambda: GroupScale(Along(16), Search(MinMax()), TwoLevel()),
        lambda: Bilevel(3, 16, TwoLevel()),
        lambda: Bilevel(0, 16),
        lambda: Along(-1),
        lambda: Float("float8"),
        lambda: Search(AbsMax(), 2.0, 1.0),
        lambda: Percentile(0.2),
        lambda: LeastSquares(AbsMax(), 0),
    ):
        with pytest.raises(BadConfig) as e:
            build()
        assert len(str(e.value)) > 20
    with pytest.raises(BadInput, match="axis 2"):
        GroupScale(Each(2)).measure(normal(3, 4), E2M1)


@pytest.mark.parametrize("groups", [Whole(), Each(0), Along(4), Along(3, 0)], ids=str)
def test_empty_arrays(groups: Groups) -> None:
    for store in (Float(), TwoLevel(), PowerOfTwo(), Bilevel()):
        q = Quantizer(E2M1, GroupScale(groups, AbsMax(), store))
        assert q.decode(*q.encode(torch.zeros(0, 8))).shape == (0, 8)


# --- kernels ----------------------------------------------------------------------------------------------------------

LADDERS = [
    b.ladder() for b in (Uniform(2), Uniform(15), Uniform(16, 0.0), Uniform(300), LloydMax(7), LloydMax(64), E2M1)
]


@pytest.mark.parametrize("ladder", LADDERS, ids=lambda a: str(len(a.levels)))
def test_rank_kernel(ladder) -> None:  # type: ignore[no-untyped-def]
    t = ladder.thresholds
    middle = (ladder.levels[1:] + ladder.levels[:-1]) / 2
    near = [np.nextafter(m, np.float32(s)) for m in (t, middle) for s in (-np.inf, np.inf)]
    odd = np.array([0, 1e-9, -1e-9, 1e-40, 3e38, -3e38, np.inf, -np.inf], np.float32)
    x = np.concatenate([t, middle, *near, odd, normal(1000).numpy() * 9]).astype(np.float32)
    assert np.array_equal(scalar.rank(x, t), scalar.rank_plain(x, t))
    assert scalar.rank(np.array([np.nan], np.float32), t).tolist() == [0]


@pytest.mark.parametrize("ladder", LADDERS, ids=lambda a: str(len(a.levels)))
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_group_kernels(ladder, affine: bool, weighted: bool) -> None:  # type: ignore[no-untyped-def]
    x = normal(50, 23).numpy()
    step, offset = normal(50, seed=1).abs().numpy(), normal(50, seed=2).numpy() if affine else None
    step[3] = 0
    w = np.abs(normal(50, 23, seed=3).numpy()) if weighted else None
    args = (x, w, step, offset, ladder.thresholds, ladder.levels)
    for power in (2.0, 2.4):
        np.testing.assert_allclose(
            scalar.group_errors(*args, power), scalar.group_errors_plain(*args, power), rtol=1e-10
        )
    np.testing.assert_allclose(scalar.group_moments(*args), scalar.group_moments_plain(*args), rtol=1e-10, atol=1e-12)
    for a, b in zip(scalar.group_fit(*args, 3), scalar.group_fit_plain(*args, 3), strict=True):
        if a is not None and b is not None:
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    fitted = scalar.group_fit(*args, 5)
    exact = scalar.group_errors(x, w, fitted[0], fitted[1], ladder.thresholds, ladder.levels)
    assert (exact <= fitted[2] * (1 + 1e-5) + 1e-6).all(), "what the fit promises is an upper bound"
