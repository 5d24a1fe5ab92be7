"""Centres in the order of the vectors; learned points that are good, repaired and reproducible."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.core.errors import BadConfig, BadInput
from laconic.kernels.distance import nearest, points
from laconic.kernels.kmeans import centers, centers_plain, kmeans, step


def _error(x, table):
    return float(((x - table[nearest(x, points(table))[0]]) ** 2).sum())


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 200), st.integers(1, 9), st.integers(1, 30), st.sampled_from([None, 1, 0]), st.integers(0, 99))
def test_centers_equal_the_plain_sums(n, dim, n_points, weight_dim, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, dim)).astype(np.float32)
    weights = None if weight_dim is None else rng.integers(0, 3, (n, weight_dim or dim)).astype(np.float32)
    index = rng.integers(0, n_points, n)
    for got, expected in zip(
        centers(x, weights, index, n_points), centers_plain(x, weights, index, n_points), strict=True
    ):
        assert np.array_equal(got, expected)


@pytest.mark.parametrize("start", ["sampled", "plusplus"])
def test_separate_clusters_are_found(start):
    rng = np.random.default_rng(0)
    true = 20 * rng.standard_normal((8, 3))
    x = (true[rng.integers(0, 8, 800)] + rng.standard_normal((800, 3))).astype(np.float32)
    found = min((kmeans(x, 8, seed=s, start=start) for s in range(6)), key=lambda t: _error(x, t))
    assert (((true[:, None] - found) ** 2).sum(2).min(1) < 0.2).all()


def test_iterations_lower_the_error_and_seeds_reproduce():
    x = np.random.default_rng(1).standard_normal((3000, 4)).astype(np.float32)
    errors = [_error(x, kmeans(x, 32, iterations=i, seed=3)) for i in (0, 1, 3, 10)]
    assert errors == sorted(errors, reverse=True)
    assert np.array_equal(kmeans(x, 32, seed=3), kmeans(x, 32, seed=3))
    assert not np.array_equal(kmeans(x, 32, seed=3), kmeans(x, 32, seed=4))


def test_gaussian_scalars_reach_lloyd_max():
    x = np.random.default_rng(2).standard_normal((200_000, 1)).astype(np.float32)
    assert _error(x, kmeans(x, 4, iterations=200)) / len(x) == pytest.approx(0.1175, rel=0.01)


def test_empty_cells_take_the_worst_vectors():
    x = np.zeros((100, 2), np.float32)
    x[0] = [100, 0]
    x[1] = [0, 50]
    table = kmeans(x, 3, seed=0)
    assert _error(x, table) == 0


def test_fewer_vectors_than_points_and_equal_vectors():
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert _error(x, kmeans(x, 8)) == 0
    assert np.array_equal(kmeans(np.ones((50, 2), np.float32), 4), np.ones((4, 2)))


def test_weights_draw_the_points():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2000, 2)).astype(np.float32)
    heavy = np.where(x[:, :1] > 0, 50.0, 1.0).astype(np.float32)
    per_value = np.tile(np.array([[100.0, 0.01]], np.float32), (2000, 1))
    assert (kmeans(x, 16, weights=heavy)[:, 0] > 0).sum() > (kmeans(x, 16)[:, 0] > 0).sum() + 2
    along = kmeans(x, 16, weights=per_value)
    gaps = [np.diff(np.sort(along[:, k])).max() for k in range(2)]
    assert gaps[0] < 1.2 and np.ptp(along[:, 1]) < np.ptp(along[:, 0])


def test_what_cannot_be_learned_is_refused():
    x = np.zeros((4, 2), np.float32)
    with pytest.raises(BadConfig, match="plusplus"):
        kmeans(x, 2, start="random")
    with pytest.raises(BadInput, match="at least one"):
        kmeans(x[:0], 2)
    with pytest.raises(BadInput, match="cells"):
        centers(x, None, np.array([0, 1, 2, 3]), 3)


def test_steps_are_those_of_kmeans_and_prices_move_vectors():
    x = np.random.default_rng(5).standard_normal((500, 6)).astype(np.float32)
    table, none = kmeans(x, 16, iterations=0, seed=3), np.zeros(16, np.float32)
    for _ in range(5):
        table, mass, _index = step(x, table, none)
    assert np.array_equal(table, kmeans(x, 16, iterations=5, seed=3))
    dear = np.where(np.arange(16) == int(mass.argmax()), np.float32(0.5), np.float32(0))
    assert step(x, table, dear)[1].max() < mass.max() and step(x, table, dear)[1].sum() == 500
