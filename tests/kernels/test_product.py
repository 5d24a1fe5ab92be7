"""Fixed-order products: bit for bit the definition, whatever the batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.core.errors import BadInput
from laconic.kernels.product import product, product_plain


def _matrices(n_rows, depth, n_columns, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n_rows, depth)).astype(dtype), rng.standard_normal((depth, n_columns)).astype(dtype)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 30), st.integers(1, 600), st.integers(1, 90), st.sampled_from([np.float32, np.float64]))
def test_equals_definition_bit_for_bit(n_rows, depth, n_columns, dtype):
    x, m = _matrices(n_rows, depth, n_columns, dtype)
    expected = product_plain(x, m)
    assert np.array_equal(product(x, m), expected)
    assert np.array_equal(product(x, np.ascontiguousarray(m.T), transposed=True), expected)


def test_blocks_of_rows_and_columns_are_crossed():
    x, m = _matrices(260, 300, 2100, np.float32)
    got = product(x, m)
    assert np.array_equal(got[250:], product_plain(x[250:], m))
    np.testing.assert_allclose(got, x.astype(np.float64) @ m, atol=2e-4)


def test_a_row_does_not_depend_on_the_others():
    x, m = _matrices(37, 128, 128, np.float32)
    whole = product(x, m)
    for first, last in ((0, 1), (1, 3), (3, 20), (20, 37)):
        assert np.array_equal(product(x[first:last], m), whole[first:last])


@pytest.mark.parametrize("n_rows", [3, 119, 120, 400])
@pytest.mark.parametrize("transposed", [False, True])
def test_threads_change_nothing(n_rows, transposed):
    x, m = _matrices(n_rows, 70, 70, np.float32)
    assert np.array_equal(product(x, m, transposed=transposed, threads=3), product_plain(x, m, transposed=transposed))


def test_definition_is_close_to_the_exact_product():
    x, m = _matrices(5, 200, 7, np.float64)
    exact = x.astype(np.longdouble) @ m.astype(np.longdouble)
    assert np.abs(product_plain(x, m) - exact).max() < 1e-12


@pytest.mark.parametrize("n_rows, depth, n_columns", [(0, 3, 4), (3, 0, 4), (3, 4, 0)])
def test_empty(n_rows, depth, n_columns):
    got = product(np.ones((n_rows, depth), np.float32), np.ones((depth, n_columns), np.float32))
    assert got.shape == (n_rows, n_columns) and not got.any()


def test_refuses_what_does_not_fit():
    x, m = _matrices(4, 5, 6, np.float32)
    for a, b in ((x, m.astype(np.float64)), (x[:, :4], m), (x.T, m), (x.astype(np.int32), m)):
        with pytest.raises(BadInput):
            product(a, b)
    with pytest.raises(BadInput):
        product(x, m, out=np.empty((4, 5), np.float32))
    square = np.ones((4, 4), np.float32)
    with pytest.raises(BadInput):
        product(square, m[:4, :4].copy(), out=square)
