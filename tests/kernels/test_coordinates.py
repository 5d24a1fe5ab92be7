"""Codes of coordinates: the layout as it is written down, back exactly, and the ranks that become codes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.core.errors import BadConfig, BadInput, CorruptStream
from laconic.kernels.coordinates import (
    BLOCK,
    Thresholds,
    block_bytes,
    pack,
    pack_heads,
    pack_heads_plain,
    pack_plain,
    quantize_coordinates,
    quantize_coordinates_plain,
    unpack,
    unpack_heads,
    unpack_heads_plain,
    unpack_plain,
)


def _codes(bits, n, seed=0):
    rng = np.random.default_rng(seed)
    shape = (*bits.shape[:-1], n, bits.shape[-1])
    top = (1 << bits.astype(np.int64))[..., None, :]
    return (rng.integers(0, 256, shape) % top).astype(np.uint8)


def test_layout_is_the_documented_one():
    t = np.arange(BLOCK)
    eight, four, two, one = (t * 7 % 256, t % 16, t // 3 % 4, t // 5 % 2)
    codes = pack(np.stack([eight, four, two, one], 1).astype(np.uint8), np.array([8, 4, 2, 1], np.uint8))
    assert codes.tolist() == [
        *eight.tolist(),
        *(four[:32] | four[32:] << 4).tolist(),
        *(two[:16] | two[16:32] << 2 | two[32:48] << 4 | two[48:] << 6).tolist(),
        *(sum(one[8 * i + k] << k for k in range(8)) for i in range(8)),
    ]
    assert len(codes) == block_bytes(np.array([8, 4, 2, 1]))
    seven = (t * 5 % 128).astype(np.uint8)[:, None]
    low, middle, high = seven & 15, seven >> 4 & 3, seven >> 6
    parts = [pack(part, np.array([w], np.uint8)) for part, w in ((low, 4), (middle, 2), (high, 1))]
    assert np.array_equal(pack(seven, np.array([7], np.uint8)), np.concatenate(parts))


@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 200])
@pytest.mark.parametrize("bits", [[b] * 16 for b in range(1, 9)] + [[0, 3, 8, 1, 0, 7, 5], list(range(9)) * 4, [0, 0]])
def test_there_and_back(bits, n):
    bits = np.array(bits, np.uint8)
    index = _codes(bits, n)
    codes = pack(index, bits)
    assert codes.nbytes == -(-n // BLOCK) * 8 * int(bits.sum())
    assert np.array_equal(codes, pack_plain(index, bits))
    assert np.array_equal(unpack(codes, bits, n), index)
    assert np.array_equal(unpack_plain(codes, bits, n), index)


def test_heads_of_different_sums():
    bits = np.array([[4] * 17, [0, 8] * 8 + [3], [1] * 17], np.uint8)
    index = _codes(bits, 100)
    codes = pack_heads(index, bits)
    assert np.array_equal(codes, pack_heads_plain(index, bits))
    assert np.array_equal(codes, np.concatenate([pack(i, b) for i, b in zip(index, bits, strict=True)]))
    assert np.array_equal(unpack_heads(codes, bits, 100), index)
    assert np.array_equal(unpack_heads_plain(codes, bits, 100), index)


@given(st.lists(st.integers(0, 8), min_size=1, max_size=40), st.integers(0, 140), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_any_bits(bits, n, seed):
    bits = np.array(bits, np.uint8)
    index = _codes(bits, n, seed)
    codes = pack(index, bits)
    assert np.array_equal(codes, pack_plain(index, bits))
    assert np.array_equal(unpack(codes, bits, n), index)


def test_what_cannot_be_laid_out_is_refused():
    bits = np.array([2, 8, 0], np.uint8)
    index = _codes(bits, 70)
    for t, j, code in ((69, 0, 4), (3, 2, 1)):
        wrong = index.copy()
        wrong[t, j] = code
        with pytest.raises(BadInput, match=f"code {code} of token {t}, head 0, coordinate {j}"):
            pack(wrong, bits)
    with pytest.raises(BadConfig):
        pack(index, np.array([2, 9, 0], np.uint8))
    with pytest.raises(BadConfig):
        pack(index, bits[:2])
    with pytest.raises(BadInput):
        pack(index.astype(np.int64), bits)
    codes = pack(index, bits)
    for damaged in (codes[:-1], np.append(codes, codes[:1])):
        with pytest.raises(CorruptStream):
            unpack(damaged, bits, 70)
    with pytest.raises(CorruptStream):
        unpack(codes, bits, 129)


@pytest.mark.parametrize("sizes", [[15] * 20, [1, 3, 7, 15, 31, 0], [255, 0, 31, 32, 63, 1, 254], [0, 0]])
def test_ranks(sizes):
    rng = np.random.default_rng(1)
    thresholds = [np.sort(rng.standard_normal(n)).astype(np.float32) for n in sizes]
    y = rng.standard_normal((300, len(sizes))).astype(np.float32)
    for j, t in enumerate(thresholds):
        y[: len(t), j] = t[:300]  # ties: a threshold is not below itself
    y[-1], y[-2], y[-3] = np.nan, np.inf, -np.inf
    found = quantize_coordinates(y, Thresholds.of(thresholds))
    assert found.dtype == np.uint8
    assert np.array_equal(found, quantize_coordinates_plain(y, thresholds))
    assert found[-1].tolist() == found[-3].tolist() == [0] * len(sizes)
    assert found[-2].tolist() == sizes


def test_ranks_of_equal_thresholds_and_infinite_ones():
    thresholds = [np.array([0, 0, 1], np.float32), np.array([-np.inf, 0, np.inf], np.float32)]
    y = np.array([[0, 0], [0.5, 0.5], [2, np.inf]], np.float32)
    assert quantize_coordinates(y, Thresholds.of(thresholds)).tolist() == [[0, 1], [2, 2], [3, 2]]


def test_thresholds_that_are_none_are_refused():
    for bad in (
        np.array([1, 0], np.float32),
        np.array([np.nan], np.float32),
        np.zeros(256, np.float32),
        np.zeros((2, 2)),
    ):
        with pytest.raises(BadConfig):
            Thresholds.of([bad])
    with pytest.raises(BadInput):
        quantize_coordinates(np.zeros((4, 3), np.float32), Thresholds.of([np.zeros(1, np.float32)]))


@pytest.mark.parametrize("seed", range(8))
def test_thresholds_between_levels_are_those_of_each_coordinate(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = 1 << rng.integers(0, 9, rng.integers(1, 40)).astype(np.int64)
    levels = [np.sort(rng.standard_normal(n)).astype(np.float32) for n in sizes]
    each = Thresholds.of([(x[1:] + x[:-1]) / 2 for x in levels])
    for found, right in zip(Thresholds.between(np.concatenate(levels), sizes), each, strict=True):
        assert found.dtype == right.dtype and np.array_equal(found, right)
