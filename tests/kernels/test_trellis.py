"""The search and the decoder against NumPy, against all paths, and on any symbols."""

from __future__ import annotations

from itertools import product
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.core.errors import BadConfig, BadInput, CorruptStream
from laconic.kernels import trellis
from laconic.kernels.trellis import GENERATORS, Code, code, decode, decode_plain, encode, encode_plain

RATES = (1.0, 1.25, 1.5, 2.0, 2.25, 2.75, 3.0, 3.5, 4.0, 16.0 / 7)


def gaussian(c: Code) -> np.ndarray:
    n = 1 << (c.free + c.depth)
    quantile = np.array([NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)], np.float32)
    return quantile.reshape(1 << c.free, -1)[:, c.fraction]


def normal(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


def bounds(c: Code, *symbols: int) -> np.ndarray:
    return np.cumsum([0, *symbols]) * c.period


@pytest.mark.parametrize("bits", RATES)
def test_kernel_is_the_plain_search_bit_for_bit(bits: float) -> None:
    c = code(bits, 256)
    b = bounds(c, 40, 9, 61)
    x, points = normal(b[-1]), gaussian(c)
    index = encode(x, b, c, points)
    np.testing.assert_array_equal(index, encode_plain(x, b, c, points))
    np.testing.assert_array_equal(decode(index, b, c, points), decode_plain(index, b, c, points))


@pytest.mark.parametrize("states", [1 << 10, 1 << 12])
@pytest.mark.parametrize("kind", ["normal", "zeros", "heavy", "constant", "small"])
def test_kernel_is_the_plain_search_on_odd_data(states: int, kind: str) -> None:
    c = code(2.5, states)
    x = normal(96, 5)
    x = {"normal": x, "zeros": 0 * x, "heavy": x**7, "constant": 0 * x + 3, "small": x * 1e-20}[kind].astype(np.float32)
    b, points = np.array([0, 96]), gaussian(c)
    index = encode(x, b, c, points)
    np.testing.assert_array_equal(index, encode_plain(x, b, c, points))


@pytest.mark.parametrize(("bits", "n"), [(1.0, 18), (1.5, 12), (2.0, 18), (3.25, 12)])
def test_path_is_the_best_of_all_with_its_seam(bits: float, n: int) -> None:
    c = code(bits, 256)
    points, b = gaussian(c), np.array([0, n])
    books = [
        np.tile(row, (len(points), 1)) for row in points
    ]  # book j has the points of free bits j whatever these are
    at = np.cumsum(c.shifts + c.free) - c.shifts - c.free
    shifts = np.tile(c.shifts, n // c.period)
    fixed = np.searchsorted(np.cumsum(shifts[::-1]), 8) + 1  # steps that hold the last 8 bits
    for seed in range(6):
        x = normal(n, seed)
        index = encode(x, b, c, points)
        error = float(((x - decode(index, b, c, points)) ** 2).sum())
        coded = ((index.astype(np.int64)[:, None] >> at) & ((1 << c.shifts) - 1)).reshape(-1)
        best = np.inf
        for start in product(*(range(1 << k) for k in shifts[:-fixed])):
            path = (np.append(start, coded[-fixed:]).astype(np.int64).reshape(-1, c.period) << at).sum(axis=1)
            values = np.stack([decode_plain(path, b, c, book) for book in books])
            best = min(best, float(((x - values) ** 2).min(axis=0).sum()))
        assert best * (1 - 1e-5) <= error <= best * 1.01  # metrics are cut to 1/128 of the mean squared error


@pytest.mark.parametrize("states", [1 << memory for memory in GENERATORS])
def test_class_of_a_state_is_the_parity_of_its_taps(states: int) -> None:
    c = code(1.0, states)
    rng = np.random.default_rng(0)
    s = np.arange(states) if states <= 1 << 12 else rng.integers(0, states, 4096)
    f = np.zeros_like(s)
    for taps in GENERATORS[c.memory]:
        f = 2 * f + np.array([(v & taps).bit_count() & 1 for v in s.tolist()])
    np.testing.assert_array_equal(c.fraction[c.base[s >> 5] ^ (s & 31)], f)
    np.testing.assert_array_equal(c.sets[c.set_of], c.base)
    assert len(c.sets) <= 64 and len(c.fraction) <= 512, "a step of the search should stay cheap"


@pytest.mark.parametrize("memory", list(GENERATORS))
def test_paths_that_part_or_meet_differ_by_half_a_cell(memory: int) -> None:
    first, second = GENERATORS[memory][:2]
    for k in (0, memory - 1):  # newest bit, oldest bit
        assert first >> k & 1 and not any(taps >> k & 1 for taps in GENERATORS[memory][1:])
    for k in (1, memory - 2):
        assert second >> k & 1 and not any(taps >> k & 1 for taps in GENERATORS[memory][2:])


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(RATES), st.lists(st.integers(0, 40), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_any_symbols_decode_alike(bits: float, extra: list[int], random: object) -> None:
    c = code(bits, 512)
    b = bounds(c, *(c.least() // c.period + e for e in extra))
    index = np.random.default_rng(random.getrandbits(32)).integers(0, 1 << c.symbol_bits, b[-1] // c.period)  # type: ignore[attr-defined]
    points = gaussian(c)
    got = decode(index.astype(np.uint16), b, c, points)
    np.testing.assert_array_equal(got, decode_plain(index, b, c, points))
    np.testing.assert_array_equal(got, decode(index, b, c, points))


def test_a_value_depends_on_the_last_bits_only() -> None:
    c = code(2.0, 256)
    b, points = np.array([0, 64]), gaussian(c)
    index = np.random.default_rng(1).integers(0, 4, 64)
    before = decode(index, b, c, points)
    index[20] ^= 1
    (changed,) = np.nonzero(before != decode(index, b, c, points))
    assert set(changed) <= set(range(20, 28)) and 20 in changed


def test_blocks_are_independent_of_each_other_and_of_threads() -> None:
    c = code(1.75, 1 << 10)
    b = bounds(c, 20, 30, 17, 64, 25)
    x, points = normal(b[-1]), gaussian(c)
    index = encode(x, b, c, points)
    np.testing.assert_array_equal(index, encode(x, b, c, points, threads=3))
    for low, high in zip(b[:-1], b[1:], strict=True):
        alone = encode(x[low:high], np.array([0, high - low]), c, points)
        np.testing.assert_array_equal(index[low // c.period : high // c.period], alone)


def test_no_blocks_give_nothing() -> None:
    c = code(2.0, 256)
    none = np.empty(0, np.float32)
    assert encode(none, np.array([0]), c, gaussian(c)).shape == (0,)
    assert decode(np.empty(0, np.uint16), np.array([0]), c, gaussian(c)).shape == (0,)


@pytest.mark.parametrize(
    ("bits", "states"), [(2.0, 100), (2.0, 128), (2.0, 0), (0.5, 256), (2.01, 256), (4.125, 256), (17.0, 256)]
)
def test_impossible_codes_are_refused(bits: float, states: int) -> None:
    with pytest.raises(BadConfig):
        code(bits, states)


def test_what_does_not_fit_is_refused() -> None:
    c = code(2.25, 256)
    points = gaussian(c)
    with pytest.raises(BadInput, match="at least 8"):
        encode(normal(4), np.array([0, 4]), c, points)
    with pytest.raises(BadInput):
        encode(normal(30), np.array([0, 30]), c, points)
    with pytest.raises(BadInput):
        encode(normal(32), np.array([0, 28]), c, points)
    with pytest.raises(BadConfig):
        encode(normal(32), np.array([0, 32]), c, points[:1])
    index = encode(normal(32), np.array([0, 32]), c, points)
    with pytest.raises(CorruptStream):
        decode(index[:-1], np.array([0, 32]), c, points)
    with pytest.raises(CorruptStream):
        decode(index[:1], np.array([0, 4]), c, points)
    with pytest.raises(CorruptStream):
        decode(index | np.uint16(512), np.array([0, 32]), c, points)
    with pytest.raises(CorruptStream):
        decode(index.astype(np.int64) - 512, np.array([0, 32]), c, points)


def test_tables_are_the_format() -> None:
    """Packets keep bits and states only: the trellis they mean must never change."""
    import zlib

    seen = {}
    for memory, bits in ((8, 1.0), (10, 2.25), (12, 2.0), (16, 4.0)):
        c = code(bits, 1 << memory)
        text = f"{c.free} {c.shifts.tolist()} {c.fraction[c.base[:, None] ^ np.arange(32)].tolist()}"
        seen[memory, bits] = zlib.crc32(text.encode())
    assert seen == FORMAT


FORMAT = {(8, 1.0): 1855283203, (10, 2.25): 2051507754, (12, 2.0): 1644473334, (16, 4.0): 1471585918}


def test_module_knows_its_lanes() -> None:
    assert trellis._LANES == 32  # Code.base counts states by 32
