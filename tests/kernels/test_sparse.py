"""Sparse codes: the fast loops are their definitions, and readers believe nothing."""

import numpy as np
import pytest

from laconic.core.errors import BadInput, CorruptStream
from laconic.kernels.sparse import largest, largest_plain, read_sparse, write_sparse, write_sparse_plain


@pytest.mark.parametrize(
    ("n", "k", "levels"), [(1, 1, 1), (10, 3, 2), (1000, 20, 3), (1000, 1000, 1), (50000, 7, 8), (300, 0, 2)]
)
def test_loops_are_their_definitions(n: int, k: int, levels: int) -> None:
    rng = np.random.default_rng(n + k)
    x = rng.standard_normal(n).astype(np.float32)
    x[::3] = np.round(x[::3])  # ties
    place = largest(x, k)
    np.testing.assert_array_equal(place, largest_plain(x, k))
    level = rng.integers(0, levels, k).astype(np.uint8)
    data = write_sparse(place, x[place] < 0, level, levels, n)
    np.testing.assert_array_equal(data, write_sparse_plain(place, x[place] < 0, level, levels, n))
    back = read_sparse(data, k, levels, n)
    for got, want in zip(back, (place, x[place] < 0, level), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("x", [np.zeros(9), np.full(9, -2.5), np.array([np.inf, 1, -np.inf, 3e-39, 0, -0.0])])
def test_equal_and_extreme_magnitudes(x: np.ndarray) -> None:
    x = x.astype(np.float32)
    for k in range(len(x) + 1):
        np.testing.assert_array_equal(largest(x, k), largest_plain(x, k))


def test_a_long_gap_takes_its_escape() -> None:
    n = 1 << 30
    place = np.array([0, 1, 2, 3, 1 << 29, (1 << 29) + 1, n - 1], np.int32)
    zeros = np.zeros(7, np.uint8)
    data = write_sparse(place, zeros.astype(bool), zeros, 1, n)
    np.testing.assert_array_equal(data, write_sparse_plain(place, zeros.astype(bool), zeros, 1, n))
    np.testing.assert_array_equal(read_sparse(data, 7, 1, n)[0], place)


def test_rate_is_near_the_entropy_and_below_it_where_places_cluster() -> None:
    n, k = 1 << 18, 1 << 12
    rng = np.random.default_rng(0)
    f = k / n
    entropy = n * (-f * np.log2(f) - (1 - f) * np.log2(1 - f)) + k
    spread = np.sort(rng.choice(n, k, replace=False)).astype(np.int32)
    rows = np.sort(rng.choice(n // 8, k, replace=False)).astype(np.int32)  # in an eighth of the vector
    bits = [8 * write_sparse(p, np.zeros(k, bool), np.zeros(k, np.uint8), 1, n).size for p in (spread, rows)]
    assert bits[0] < 1.05 * entropy and bits[1] < 0.8 * entropy


def test_damage_ends_in_a_named_error_or_in_other_values() -> None:
    rng = np.random.default_rng(1)
    place = np.sort(rng.choice(900, 50, replace=False)).astype(np.int32)
    data = write_sparse(place, rng.random(50) < 0.5, rng.integers(0, 3, 50).astype(np.uint8), 3, 900)
    for bad in (data[:-1], np.append(data, np.uint8(0)), data[:0]):
        with pytest.raises(CorruptStream):
            read_sparse(bad, 50, 3, 900)
    for k, n in ((51, 900), (49, 900), (50, 300), (50, 49), (-1, 900)):
        with pytest.raises(CorruptStream):
            read_sparse(data, k, 3, n)
    for bit in range(8 * data.size):
        hurt = data.copy()
        hurt[bit >> 3] ^= 1 << (bit & 7)
        try:
            got = read_sparse(hurt, 50, 3, 900)
        except CorruptStream:
            continue
        assert (np.diff(got[0]) > 0).all() and got[0][-1] < 900 and got[2].max() < 3


def test_what_it_does_not_take() -> None:
    with pytest.raises(BadInput):
        largest(np.zeros(3), 1)
    with pytest.raises(BadInput):
        largest(np.zeros(3, np.float32), 4)
    with pytest.raises(BadInput):
        write_sparse(np.zeros(1, np.int32), np.zeros(2, bool), np.zeros(1, np.uint8), 1, 9)
