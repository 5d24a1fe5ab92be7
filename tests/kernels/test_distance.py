"""Nearest points: bit for bit the definition, whatever the batch; ties and padding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from laconic.core.errors import BadInput
from laconic.kernels.distance import first_below, least, nearest, nearest_plain, points, weighted


def _data(n, n_points, dim, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, dim)).astype(np.float32), rng.standard_normal((n_points, dim)).astype(np.float32)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 90), st.integers(1, 40), st.integers(0, 99))
def test_equals_definition_bit_for_bit(n, n_points, dim, seed):
    x, table = _data(n, n_points, dim, seed)
    index, score = nearest(x, points(table))
    expected, expected_score = nearest_plain(x, table)
    assert np.array_equal(index, expected)
    assert np.array_equal(score, expected_score)
    distance = ((x[:, None].astype(np.float64) - table) ** 2).sum(2)
    np.testing.assert_allclose(distance[np.arange(n), index], distance.min(1), atol=1e-5)


def test_ties_go_to_the_lower_index_and_batches_do_not_matter():
    x, table = _data(100, 70, 5)
    table[50:60] = table[3]
    table[20] = table[3]
    near = table[3] + 0.01 * x
    index, _ = nearest(near, points(table))
    assert 3 in index and not set(index) & {20, *range(50, 60)}
    for rows in (slice(0, 1), slice(7, 18), slice(99, 100)):
        assert np.array_equal(nearest(np.ascontiguousarray(near[rows]), points(table))[0], index[rows])


def test_weighted_search_is_a_plain_one_of_twice_the_dimension():
    x, table = _data(200, 30, 6)
    w = np.random.default_rng(1).random((200, 6)).astype(np.float32)
    wide, both, bias = weighted(x, w, table)
    index, _ = nearest(wide, points(both, bias))
    cost = (w[:, None] * (x[:, None] - table) ** 2).sum(2)
    np.testing.assert_allclose(cost[np.arange(200), index], cost.min(1), rtol=1e-4, atol=1e-5)


def test_vectors_that_are_not_finite_stay_inside_the_book():
    x = np.full((3, 4), np.nan, np.float32)
    x[1] = np.inf
    index, _ = nearest(x, points(_data(1, 9, 4)[1]))
    assert ((index >= 0) & (index < 9)).all()


@njit
def _least(bias, values, n):
    return least(bias, 0, values, 0, n)


@njit
def _first_below(values, at, n, limit):
    return first_below(values, at, n, limit)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 4), st.integers(0, 999))
def test_least_and_first_below(n_vectors, seed):
    n = 16 * n_vectors
    rng = np.random.default_rng(seed)
    bias, values = rng.integers(-3, 4, (2, n + 16)).astype(np.float32)
    score, j = _least(bias, values, n)
    expected = (bias - values)[:n]
    assert (score, j) == ((expected.min(), int(expected.argmin())) if n else (np.inf, 0))
    for at in range(0, n + 1, 5):
        below = np.flatnonzero(values[at:n] < -2)
        assert _first_below(values, at, n, np.float32(-2)) == (at + below[0] if len(below) else max(at, n))


def test_wrong_shapes_are_refused():
    x, table = _data(4, 5, 6)
    with pytest.raises(BadInput, match="float32"):
        nearest(x.astype(np.float64), points(table))
    with pytest.raises(BadInput, match="6"):
        nearest(x[:, :4], points(table))
    with pytest.raises(BadInput, match="at least one point"):
        points(table[:0])
