"""Sums of codewords: search against the definition, decoding in a fixed order, learning."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.core.errors import BadInput
from laconic.kernels.additive import books, learn, refit, search, search_plain, sums, sums_plain


def _error(x, table, index):
    return ((x.astype(np.float64) - sums(table, index)) ** 2).sum(1)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 4), st.integers(1, 40), st.integers(1, 9), st.integers(1, 60), st.integers(0, 3), st.integers(0, 99)
)
def test_search_equals_its_definition(depth, n_points, dim, beam, sweeps, seed):
    """In float32 two sums may change places where they are equally far; the distances then agree."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((12, dim)).astype(np.float32)
    table = (rng.standard_normal((depth, n_points, dim)) * 0.7 ** np.arange(depth)[:, None, None]).astype(np.float32)
    got = search(x, books(table), beam=beam, sweeps=sweeps)
    expected = search_plain(x, table, beam=beam, sweeps=sweeps)
    assert got.shape == expected.shape and got.min() >= 0 and got.max() < n_points
    close = np.isclose(_error(x, table, got), _error(x, table, expected), rtol=1e-4, atol=1e-4)
    assert close.mean() > 0.9
    assert (got == expected).all(1).mean() > 0.7


def test_a_wide_beam_finds_the_best_sum():
    rng = np.random.default_rng(0)
    x, table = rng.standard_normal((50, 4)).astype(np.float32), rng.standard_normal((3, 6, 4)).astype(np.float32)
    every = np.stack(np.meshgrid(*[np.arange(6)] * 3, indexing="ij"), -1).reshape(-1, 3)
    best = ((x[:, None] - sums(table, every)) ** 2).sum(2).min(1)
    np.testing.assert_allclose(_error(x, table, search(x, books(table), beam=216, sweeps=0)), best, rtol=1e-4)


def test_wider_beams_and_more_sweeps_help_and_batches_do_not_matter():
    rng = np.random.default_rng(1)
    x, table = rng.standard_normal((600, 16)).astype(np.float32), rng.standard_normal((4, 32, 16)).astype(np.float32)
    code = books(table)
    errors = [_error(x, table, search(x, code, beam=b, sweeps=0)).mean() for b in (1, 4, 32)]
    assert errors[0] > errors[1] > errors[2]
    greedy = [_error(x, table, search(x, code, beam=1, sweeps=s)) for s in (0, 1, 3)]
    assert (greedy[1] <= greedy[0] + 1e-4).all() and greedy[2].mean() < greedy[1].mean() < greedy[0].mean()
    whole = search(x, code, beam=8, sweeps=2)
    assert np.array_equal(whole[250:260], search(x[250:260], code, beam=8, sweeps=2))


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 20), st.integers(1, 4), st.integers(1, 9), st.integers(1, 12), st.integers(1, 12), st.integers(0, 99)
)
def test_sums_equal_the_plain_ones_bit_for_bit(n, depth, n_points, dim, slices, seed):
    slices = min(slices, dim)
    rng = np.random.default_rng(seed)
    table = rng.standard_normal((depth, n_points, dim)).astype(np.float32)
    index = rng.integers(0, n_points, (n, slices * depth))
    assert np.array_equal(sums(table, index, slices), sums_plain(table, index, slices))


def test_sums_never_read_beyond_the_books():
    table = np.zeros((2, 4, 3), np.float32)
    for index in ([[0, 4]], [[-1, 0]], [[0, 1, 2]]):
        with pytest.raises(BadInput):
            sums(table, np.array(index))


def test_refit_never_raises_the_error_and_learning_lowers_it():
    rng = np.random.default_rng(2)
    x = (rng.standard_normal((1500, 12)) @ rng.standard_normal((12, 12))).astype(np.float32)
    table = learn(x, 3, 32, rounds=0, seed=0)
    index = search(x, books(table), beam=4, sweeps=1)
    errors = [_error(x, refit(x, table, index, sweeps), index).sum() for sweeps in (0, 1, 2, 8)]
    assert all(b <= a * (1 + 1e-6) for a, b in zip(errors, errors[1:], strict=False))
    assert errors[3] < 0.99 * errors[0]
    learned = learn(x, 3, 32, rounds=12, seed=0)
    assert _error(x, learned, search(x, books(learned), beam=4, sweeps=1)).sum() < errors[3]
    assert np.array_equal(learned, learn(x, 3, 32, rounds=12, seed=0))


def test_zeros_and_equal_vectors_are_learned():
    for x in (np.zeros((40, 3), np.float32), np.full((40, 3), 2.0, np.float32)):
        table = learn(x, 2, 4, rounds=3, seed=0)
        assert np.isfinite(table).all()
        assert _error(x, table, search(x, books(table), beam=2, sweeps=1)).max() < 1.5
