"""Hadamard transforms: real Hadamard matrices, the plain twin's bits, norms kept, inverses exact to rounding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.core.errors import BadConfig, BadInput
from laconic.kernels.hadamard import (
    aligned_empty,
    core,
    factors,
    hadamard,
    hadamard_plain,
    largest_order,
    matrix,
    orders,
)

POWERS = [1, 2, 4, 8, 16, 32, 128, 256, 512, 1024, 4096, 8192, 1 << 17]
WIDE = [48 * 4, 16 * 44, 768, 14336, 11008, 172 * 16, 12 * 8192]
NARROW = [12, 20, 24, 28, 36, 48, 80, 96, 100, 288, 300]


def _rows(n, n_rows, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n_rows, n)).astype(np.float32), rng.choice([-1, 1], n)


@pytest.mark.parametrize("order", [q for q in orders(400) if q & (q - 1) and factors(q) == (q,)])
def test_cores_are_hadamard_matrices(order):
    h = core(order).astype(np.int64)
    assert np.array_equal(np.abs(h), np.ones_like(h))
    assert np.array_equal(h @ h.T, order * np.eye(order, dtype=np.int64))


def test_orders_that_models_use():
    assert [factors(n) for n in (48, 192, 256, 288, 704, 768, 4096)] == [(12,), (12,), (), (12, 12), (44,), (12,), ()]
    widths = (11008, 13824, 14336, 28672, 5120, 8960, 18944, 4864, 27648, 29568, 300, 96, 80, 960, 1536, 3072, 20480)
    assert all(factors(n) is not None for n in widths)
    assert set(range(4, 261, 4)) - set(orders(260)) == {156, 188, 236, 260}
    assert largest_order(188) == 4 and largest_order(33) == 1


@pytest.mark.parametrize("n", POWERS + WIDE + NARROW)
@pytest.mark.parametrize("inverse", [False, True])
def test_same_bits_as_plain(n, inverse):
    x, signs = _rows(n, max(1, min(37, 200_000 // n)))
    assert np.array_equal(hadamard(x, signs=signs, inverse=inverse), hadamard_plain(x, signs=signs, inverse=inverse))


@pytest.mark.parametrize("n", [1, 4, 16, 48, 64, 100, 192, 256, 288, 512, 704])
def test_is_the_matrix_product(n):
    x, signs = _rows(n, 21)
    expected = (x * signs).astype(np.float64) @ matrix(n).T / np.sqrt(n)
    np.testing.assert_allclose(hadamard(x, signs=signs), expected, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([6, 8, 12, 40, 92, 96, 128, 176, 240]), st.integers(1, 40), st.integers(0, 99))
def test_inverts_and_keeps_norms(n, n_rows, seed):
    x, signs = _rows(n, n_rows, seed)
    y = hadamard(x, signs=signs)
    np.testing.assert_allclose(np.linalg.norm(y, axis=1), np.linalg.norm(x, axis=1), rtol=1e-5)
    np.testing.assert_allclose(hadamard(y, signs=signs, inverse=True), x, atol=1e-5)


@pytest.mark.parametrize("n, block", [(96, 8), (96, 12), (96, 48), (188, 4), (384, 128), (40, 20), (6, 2)])
def test_blocks_are_transformed_alone(n, block):
    x, signs = _rows(n, 35)
    got = hadamard(x, signs=signs, block=block)
    alone = hadamard(np.ascontiguousarray((x * signs).astype(np.float32).reshape(-1, block)))
    np.testing.assert_allclose(got, alone.reshape(x.shape), atol=1e-5)
    assert np.array_equal(got, hadamard_plain(x, signs=signs, block=block))
    back = hadamard(got, signs=signs, block=block, inverse=True)
    assert np.array_equal(back, hadamard_plain(got, signs=signs, block=block, inverse=True))
    np.testing.assert_allclose(back, x, atol=1e-5)


@pytest.mark.parametrize("n", [8, 48, 128, 768, 4096, 8192])
def test_in_place_and_past_the_caches(n):
    """Large aligned results are written with streaming stores, unaligned ones without: the bits are the same."""
    n_rows = -(-(17 << 20) // (4 * n))
    x, signs = _rows(n, n_rows)
    aligned = hadamard(x, signs=signs, out=aligned_empty(x.shape))
    raw = np.empty(x.size + 1, np.float32)[1:].reshape(x.shape)
    assert np.array_equal(aligned, hadamard(x, signs=signs, out=raw))
    assert np.array_equal(aligned[:3], hadamard(x[:3].copy(), signs=signs))
    assert np.array_equal(aligned[-3:], hadamard(x[-3:].copy(), signs=signs))
    hadamard(x, signs=signs, out=x)
    assert np.array_equal(aligned, x)


def test_input_may_be_read_only():
    x, _ = _rows(64, 5)
    expected = hadamard(x)
    x.flags.writeable = False
    assert np.array_equal(hadamard(x), expected)


def test_refusals():
    x, _ = _rows(188, 4)
    with pytest.raises(BadConfig, match="blocks of 4"):
        hadamard(x, block=188)
    with pytest.raises(BadConfig, match="does not divide"):
        hadamard(x, block=16)
    with pytest.raises(BadInput):
        hadamard(x.astype(np.float64))
    with pytest.raises(BadInput):
        hadamard(x, signs=np.zeros(188))
    with pytest.raises(BadInput):
        hadamard(x[:2], out=x[1:3])
    assert hadamard(np.empty((0, 12), np.float32)).shape == (0, 12)
