"""The pyramid: its size, a bijection with the integers below it, and a search that stays on it."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.core.errors import BadConfig, BadInput, CorruptStream
from laconic.kernels.pyramid import counts, pulses, pulses_plain, rank, rank_plain, unrank, unrank_plain


def test_counts():
    """Fischer 1986: N(2, K) = 4K, N(3, K) = 4K² + 2, and N(L, K) = Σ 2^i C(L, i) C(K−1, i−1)."""
    assert counts(2, 9)[-1][1:] == tuple(4 * k for k in range(1, 10))
    assert counts(3, 9)[-1][1:] == tuple(4 * k * k + 2 for k in range(1, 10))
    direct = sum(2**i * math.comb(40, i) * math.comb(29, i - 1) for i in range(1, 31))
    assert counts(40, 30)[-1][-1] == direct > 1 << 63


@pytest.mark.parametrize(("length", "n_pulses"), [(1, 3), (2, 5), (3, 4), (4, 6), (6, 3)])
def test_numbers_and_points_are_one_to_one(length, n_pulses):
    n = counts(length, n_pulses)[-1][-1]
    y = unrank(np.arange(n, dtype=np.uint64), length, n_pulses)
    assert (np.abs(y).sum(1) == n_pulses).all() and len(np.unique(y, axis=0)) == n
    assert np.array_equal(rank(y, n_pulses), np.arange(n))
    assert list(rank_plain(y, n_pulses)) == list(range(n))
    assert np.array_equal(unrank_plain(np.arange(n), length, n_pulses), y)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 40), st.integers(1, 60), st.integers(0, 999))
def test_large_pyramids_round_trip(length, n_pulses, seed):
    x = np.random.default_rng(seed).laplace(size=(20, length)).astype(np.float32)
    y = pulses(x, n_pulses)
    assert np.array_equal(y, pulses_plain(x, n_pulses))
    assert (np.abs(y).sum(1) == n_pulses).all() and (np.sign(y) * x >= 0).all()
    number = rank(y, n_pulses)
    assert list(number) == list(rank_plain(y, n_pulses))
    assert np.array_equal(unrank(number, length, n_pulses), y)
    assert np.array_equal(unrank_plain(number, length, n_pulses), y)


def test_pulses_are_near_the_best_direction():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 4)).astype(np.float32)
    every = unrank(np.arange(counts(4, 5)[-1][-1], dtype=np.uint64), 4, 5).astype(float)
    every /= np.sqrt((every**2).sum(1, keepdims=True))
    best = (x @ every.T).max(1)
    y = pulses(x, 5)
    reached = (x * y).sum(1) / np.sqrt((y**2).sum(1))
    assert (reached >= best * 0.97).all() and np.isclose(reached, best).mean() > 0.85


def test_zeros_one_hot_and_extremes():
    x = np.zeros((4, 5), np.float32)
    x[1, 2] = -1
    x[2] = 3e38
    x[3] = 1e-42
    y = pulses(x, 7)
    assert (np.abs(y).sum(1) == 7).all() and y[1, 2] == -7
    assert np.array_equal(y, pulses_plain(x, 7))


def test_lies_and_wrong_settings():
    n = counts(5, 4)[-1][-1]
    with pytest.raises(CorruptStream, match="pyramid"):
        unrank(np.array([n], np.uint64), 5, 4)
    with pytest.raises(CorruptStream):
        unrank(np.array([1 << 63], np.uint64), 5, 4)
    with pytest.raises(BadInput):
        rank(np.array([[1, 2, 2, 0, 0]], np.int32), 4)
    with pytest.raises(BadConfig):
        counts(1000, 4)
