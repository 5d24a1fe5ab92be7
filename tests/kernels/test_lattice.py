"""E8: the closed form against the definition, Voronoi codes in integers, the ball of 2^16 points."""

from itertools import product as combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.core.errors import BadInput, CorruptStream
from laconic.kernels.lattice import (
    ball_decode,
    ball_decode_plain,
    ball_encode,
    ball_encode_plain,
    ball_points,
    nearest,
    nearest_plain,
    voronoi_decode,
    voronoi_decode_plain,
    voronoi_encode,
)

X = np.random.default_rng(0).standard_normal((4000, 8))


def _in_lattice(doubled):
    return (doubled % 2 == doubled[:, :1] % 2).all() and (doubled.sum(1) % 4 == 0).all()


def _roots():
    """The 240 shortest vectors, doubled."""
    whole = [p for p in combinations((-2, 0, 2), repeat=8) if sum(map(abs, p)) == 4]
    half = [p for p in combinations((-1, 1), repeat=8) if sum(p) % 4 == 0]
    return np.array(whole + half)


@pytest.mark.parametrize("size", [0.3, 1.0, 5.0, 1e6])
def test_nearest_equals_plain_and_no_neighbour_is_nearer(size):
    x = size * X
    got = nearest(x)
    assert np.array_equal(got, nearest_plain(x)) and _in_lattice(got)
    roots = _roots()
    assert len(roots) == 240
    e = x - got / 2
    others = ((e[:500, None] - roots / 2) ** 2).sum(2).min(1)
    assert ((e[:500] ** 2).sum(1) <= others * (1 + 1e-9)).all(), "Voronoi-relevant vectors of E8 are its roots"


def test_second_moment():
    """.07168, Conway & Sloane, Sphere Packings, table 2.3."""
    x = 64 * np.random.default_rng(1).random((1 << 16, 8))
    assert np.square(x - nearest(x) / 2).mean() == pytest.approx(0.07168, rel=0.01)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 256), st.integers(0, 999))
def test_voronoi_codes_are_complete(levels, seed):
    """Every index stands for a lattice point that has this index."""
    index = np.random.default_rng(seed).integers(0, levels, (64, 8))
    points = voronoi_decode(index, levels)
    assert np.array_equal(points, voronoi_decode_plain(index, levels)) and _in_lattice(points)
    again, n_outside = voronoi_encode(points / 2, levels)
    assert n_outside == 0 and np.array_equal(again, index)


def test_all_points_of_the_smallest_code_differ():
    index = np.array(list(combinations((0, 1), repeat=8)))
    points = voronoi_decode(index, 2)
    assert len(np.unique(points, axis=0)) == 256
    assert set(((points / 2) ** 2).sum(1)) == {0, 2, 4}


def test_what_lies_outside_is_drawn_in_along_its_ray():
    x = 40 * X[:200]
    index, n_outside = voronoi_encode(x, 8)
    points = voronoi_decode(index, 8) / 2
    assert n_outside > 190
    cosine = (x * points).sum(1) / np.sqrt((x**2).sum(1) * (points**2).sum(1))
    assert cosine.min() > 0.8 and (points**2).sum(1).min() > 8
    inside = voronoi_encode(X, 64)
    assert inside[1] == 0 and np.array_equal(voronoi_decode(inside[0], 64), nearest(X))


def test_ball_is_the_definition_of_e8p():
    table = ball_points()
    assert len(np.unique(table, axis=0)) == 256 and (table % 2 == 1).all()
    lengths = (table.astype(int) ** 2).sum(1) / 4
    assert (lengths <= 10).sum() == 227 and (lengths == 12).sum() == 29
    code = np.arange(1 << 16)
    points = ball_decode(code)
    assert np.array_equal(points, ball_decode_plain(code)) and len(np.unique(points, axis=0)) == 1 << 16
    unshifted = points - np.where(code & 1, -1, 1)[:, None]
    assert (unshifted % 4 == 2).all() and (unshifted.sum(1) % 8 == 0).all()
    assert np.array_equal(ball_encode(points / 4), code)


def test_ball_search_is_exhaustive():
    x = np.concatenate([X[:150], 3 * X[150:200]])
    distance = [((x - ball_decode(c) / 4) ** 2).sum(1) for c in (ball_encode(x), ball_encode_plain(x))]
    np.testing.assert_allclose(*distance, rtol=1e-4)


def test_damage_and_wrong_inputs():
    for index in (np.full((1, 8), 4), np.full((1, 8), -1), np.zeros((2, 4), int), np.zeros(8, int)):
        with pytest.raises(CorruptStream):
            voronoi_decode(index, 4)
    for code in (np.array([1 << 16]), np.array([-1])):
        with pytest.raises(CorruptStream):
            ball_decode(code)
    for x in (np.zeros((2, 7)), np.full((1, 8), np.nan), np.full((1, 8), 1e30)):
        with pytest.raises(BadInput):
            nearest(x)
    with pytest.raises(BadInput, match="levels"):
        voronoi_encode(X, 1)
