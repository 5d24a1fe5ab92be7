"""Trellis codebooks: distortion at an exact rate, tiles, learned levels, and what they refuse."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch

from laconic.core import registry
from laconic.core.errors import BadConfig, BadInput, CodecError, CorruptStream, NotFitted
from laconic.core.stage import Stats
from laconic.kernels.bits import pack
from laconic.quantize.base import Quantizer
from laconic.quantize.trellis import LearnedTrellis, Trellis

QUARTERS = [q / 4 for q in range(4, 17)]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def laplace(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).laplace(scale=0.5**0.5, size=shape).astype(np.float32))


def mse(codebook: Trellis, x: torch.Tensor) -> float:
    return float((x - codebook.lookup(codebook.nearest(x))).square().mean())


# Shannon: .25, .0625, .0156, .0039. Asked for: ≤ .275, .0685, .0178, .0046 (the best trellis at each rate).
@pytest.mark.parametrize(("bits", "limit"), [(1.0, 0.2685), (2.0, 0.0685), (3.0, 0.0174), (4.0, 0.00440)])
def test_gaussian_distortion(bits: float, limit: float) -> None:
    x = normal(128, 1024)
    codebook = Trellis(bits, states=1 << 12)
    index = codebook.nearest(x)
    packed = pack(index.numpy().astype(np.uint16), int(bits * codebook.dim))
    assert 8 * packed.size == bits * x.numel()
    error = float((x - codebook.lookup(index)).square().mean()) / float(x.square().mean())
    assert 4.0**-bits < error <= limit


def test_more_states_are_better() -> None:
    x = normal(16, 1024)
    errors = [mse(Trellis(2.0, states), x) for states in (1 << 8, 1 << 10, 1 << 12, 1 << 14, 1 << 16)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.0671 * float(x.square().mean())


@pytest.mark.parametrize("bits", QUARTERS)
def test_quarters_of_a_bit(bits: float) -> None:
    x = normal(32, 1024)
    codebook = Trellis(bits, states=1 << 10)
    assert codebook.alphabet == 2 ** (bits * codebook.dim)
    loss = 10 * np.log10(mse(codebook, x) / float(x.square().mean()) * 4.0**bits)
    assert 0 < loss < 0.7


@pytest.mark.parametrize(
    ("bits", "alphabet", "dim"), [(1.125, 512, 8), (4 / 3, 16, 3), (2.2, 1 << 11, 5), (6.5, 1 << 13, 2), (8.0, 256, 1)]
)
def test_other_rates(bits: float, alphabet: int, dim: int) -> None:
    x = normal(8, 120)
    codebook = Trellis(bits, states=256, length=120)
    assert (codebook.alphabet, codebook.dim) == (alphabet, dim)
    assert 1 < mse(codebook, x) * 4.0**bits < 1.6


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
def test_law_fits_its_source_best(law: str) -> None:
    sources = {"gaussian": normal(32, 1024), "laplace": laplace(32, 1024)}
    errors = {name: mse(Trellis(3.0, 1 << 10, law=name), sources[law]) for name in sources}
    assert min(errors, key=errors.__getitem__) == law


def test_computed_levels_are_the_format() -> None:
    """Packets keep the law and the rate: the levels they mean must be the same on every machine."""
    seen = {(law, bits): zlib.crc32(Trellis(bits, 256, law=law).points().tobytes()) for law, bits in LEVELS}
    assert seen == LEVELS
    points = Trellis(3.0).points()
    np.testing.assert_array_equal(points * 4096, np.rint(points * 4096))
    np.testing.assert_array_equal(np.sort(points.ravel()), -np.sort(points.ravel())[::-1])


LEVELS = {
    ("gaussian", 1.0): 78671406,
    ("gaussian", 2.5): 1039546778,
    ("gaussian", 4.0): 1392526079,
    ("laplace", 2.0): 4208820269,
}


@pytest.mark.parametrize("codebook", [Trellis(2.0, 256, length=256, rows=16), Trellis(2.5, 256, length=128, rows=4)])
def test_tiles_can_be_coded_one_after_the_other(codebook: Trellis) -> None:
    """As an error-feedback sweep does: `columns` columns at a time, the decoder all at once."""
    x = normal(2, 32, 4 * codebook.columns)
    whole = codebook.nearest(x)
    assert whole.shape == (2, 32, 4 * codebook.columns // codebook.dim)
    parts = [codebook.nearest(part.contiguous()) for part in x.split(codebook.columns, dim=-1)]
    assert torch.equal(whole, torch.cat(parts, dim=-1))
    columns = [codebook.lookup(part) for part in parts]
    assert torch.equal(codebook.lookup(whole), torch.cat(columns, dim=-1))
    rows = codebook.nearest(x[1, codebook.rows : 2 * codebook.rows])
    assert torch.equal(whole[1, codebook.rows : 2 * codebook.rows], rows)


@pytest.mark.parametrize("shape", [(700,), (3, 100), (2, 3, 1030), (5, 18)])
def test_any_length_that_fills_a_state(shape: tuple[int, ...]) -> None:
    codebook = Trellis(1.5, 256, length=128)
    x = normal(*shape)
    index = codebook.nearest(x)
    assert index.shape == (*shape[:-1], shape[-1] // 2) and index.dtype == torch.int64
    assert codebook.lookup(index).shape == shape


def test_nothing_becomes_nothing() -> None:
    codebook = Trellis(2.0, 256)
    for shape in ((0, 64), (3, 0)):
        assert codebook.lookup(codebook.nearest(torch.empty(shape))).shape == shape


def test_input_is_left_alone_and_threads_do_not_matter() -> None:
    x = normal(6, 256)
    before, threads = x.clone(), torch.get_num_threads()
    codebook = Trellis(2.25, 256, length=64)
    index = codebook.nearest(x)
    try:
        torch.set_num_threads(1)
        assert torch.equal(index, codebook.nearest(x))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(x, before)
    assert torch.equal(codebook.nearest(x.T.contiguous().T), index)


def test_learned_levels_beat_the_wrong_law() -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy((rng.standard_normal((64, 1024)) + 3 * rng.choice([-1, 1], (64, 1024))).astype(np.float32))
    start = LearnedTrellis(2.0, 1 << 10)
    learned = start.fit(x[:48])
    computed = float((x[48:] - 3.2 * _computed(start, x[48:] / 3.2)).square().mean())
    assert mse(learned, x[48:]) < 0.5 * computed
    assert start.table is None and learned.table is not None
    assert learned.table.dtype == np.float16 and learned.table.nbytes == 256


def _computed(codebook: LearnedTrellis, x: torch.Tensor) -> torch.Tensor:
    plain = Trellis(codebook.bits, codebook.states)
    return plain.lookup(plain.nearest(x))


def test_learned_levels_heed_weights() -> None:
    x = torch.cat([normal(32, 512), 3 + 0.1 * normal(32, 512, seed=1)])
    weights = torch.ones_like(x)
    weights[:32] = 1e-4
    near_three = x[32:]
    heeded = mse(LearnedTrellis(2.0, 256).fit(x, weights), near_three)
    assert heeded < 0.3 * mse(LearnedTrellis(2.0, 256).fit(x), near_three)


def test_learned_levels_of_constants() -> None:
    codebook = LearnedTrellis(1.0, 256).fit(torch.zeros(4, 256))
    assert torch.isfinite(codebook.lookup(codebook.nearest(torch.zeros(4, 256)))).all()


def test_quantizer_and_configuration() -> None:
    stage = Quantizer(LearnedTrellis(2.25, 256, length=256)).fit(normal(8, 1024), Stats())
    assert registry.build(registry.config(stage)).codebook == LearnedTrellis(2.25, 256, length=256)
    x = normal(8, 1024, seed=3)
    symbols, side = stage.encode(x)
    assert symbols.alphabet == 512 and symbols.index.dtype == np.uint16 and symbols.index.shape == (8, 256)
    rebuilt = registry.build(registry.config(stage)).with_arrays(
        {name: array for name, (_, array) in stage.arrays().items() if array is not None}
    )
    assert torch.equal(rebuilt.decode(symbols, side), stage.decode(symbols, side))
    assert float((x - stage.decode(symbols, side)).square().mean()) < 0.06


@pytest.mark.parametrize(
    "settings",
    [
        {"bits": 0.5},
        {"bits": 9.0},
        {"bits": 2.01},
        {"bits": float("nan")},
        {"states": 1000},
        {"states": 1 << 21},
        {"length": 10},
        {"length": 1 << 21},
        {"length": 1022, "bits": 2.25},
        {"rows": 3},
        {"rows": 0},
        {"law": "gausian"},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(BadConfig):
        Trellis(**settings)  # type: ignore[arg-type]


def test_impossible_inputs_are_refused() -> None:
    codebook = Trellis(2.5, 256, length=64, rows=4)
    for shape in ((6, 64), (4, 63), (64,), ()):
        with pytest.raises(BadInput):
            codebook.nearest(torch.zeros(shape))
    with pytest.raises(BadInput, match="at least"):
        Trellis(1.0, 4096).nearest(torch.zeros(3, 11))
    with pytest.raises(NotFitted):
        LearnedTrellis(2.0).nearest(torch.zeros(2, 1024))


def test_damage_is_named() -> None:
    codebook = Trellis(2.5, 256, length=64, rows=4)
    index = codebook.nearest(normal(8, 64))
    for damaged in (index[:6], index + 32, index - 32, index[0, 0]):
        with pytest.raises(CorruptStream):
            codebook.lookup(damaged.contiguous())
    learned = LearnedTrellis(2.0, 256).fit(normal(4, 1024))
    assert learned.table is not None
    for table in (learned.table[:1], learned.table.reshape(-1), np.full_like(learned.table, np.nan)):
        with pytest.raises(CorruptStream):
            learned.replace(table=table).lookup(torch.zeros(4, 1024, dtype=torch.int64))
    rng = np.random.default_rng(0)
    for _ in range(50):
        shape = tuple(rng.integers(0, 40, rng.integers(0, 4)))
        noise = torch.from_numpy(rng.integers(-1, 34, shape))
        try:
            assert torch.isfinite(codebook.lookup(noise)).all()
        except CodecError as error:
            assert isinstance(error, CorruptStream)
