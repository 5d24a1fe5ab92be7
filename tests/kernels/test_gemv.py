"""Packed matrices: layout and back exactly; products against the dense matrix; integer sums to the last bit."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.core.errors import BadConfig, BadInput
from laconic.kernels.activations import quantize_activations, quantize_activations_plain
from laconic.kernels.gemv import ACTIVATIONS, add_sparse, gemv, gemv_plain
from laconic.kernels.packed import Packed, dequantize, dequantize_plain, pack, rows_of, widths

WHOLE = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32) / 8
FLOATS = np.linspace(-1, 1, 16, dtype=np.float32) ** 3


def _made(
    bits, group, n_out=37, n_in=256, *, table=None, offset=False, exact=True, seed=0
) -> tuple[Packed, np.ndarray]:
    """A packed matrix and what it stands for."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 1 << bits, (n_out, n_in), dtype=np.uint8)
    n_groups = -(-n_in // group)
    step = rng.uniform(0.5, 1.5, (n_out, n_groups)).astype(np.float32)
    minimum = rng.standard_normal((n_out, n_groups)).astype(np.float32) if offset else None
    zero = 0 if table is not None else (1 << bits) // 2
    levels = codes.astype(np.float32) - zero if table is None else table[codes]
    dense = levels * np.repeat(step, group, 1)[:, :n_in]
    if minimum is not None:
        dense = dense + np.repeat(minimum, group, 1)[:, :n_in]
    return pack(codes, bits, step, minimum, table=table, zero=zero, group=group, exact=exact), dense


def _x(n, m=1, seed=1):
    return np.random.default_rng(seed).standard_normal((m, n)).astype(np.float32)


CASES = {
    "4 bits": dict(bits=4, group=64),
    "4 bits, groups of 16": dict(bits=4, group=16, n_in=144),
    "4 bits, groups of 16, an odd number": dict(bits=4, group=16, n_in=80, offset=True),
    "4 bits with offsets": dict(bits=4, group=32, offset=True),
    "4 bits, whole table": dict(bits=4, group=128, table=WHOLE),
    "4 bits, float table": dict(bits=4, group=64, table=FLOATS),
    "2 bits": dict(bits=2, group=64, offset=True),
    "2 bits, whole table": dict(bits=2, group=64, table=np.array([-3, -1, 1, 4], np.float32)),
    "3 bits, short last group": dict(bits=3, group=100, n_in=230),
    "1 bit, few columns": dict(bits=1, group=8, n_in=24, n_out=3),
    "6 bits, one step a row": dict(bits=6, group=384, n_in=384),
    "7 bits, groups of 160": dict(bits=7, group=160, n_in=320),
    "8 bits, one step a row": dict(bits=8, group=256),
}


@pytest.mark.parametrize("case", CASES)
def test_layout_keeps_every_entry(case):
    p, dense = _made(**CASES[case])
    assert np.array_equal(dequantize(p), dense)
    assert np.array_equal(dequantize_plain(p), dense)
    some = np.array([2, 0, 2])
    assert np.array_equal(rows_of(p, some), dense[some])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_product_is_that_of_the_dense_matrix(case, activations):
    p, dense = _made(**CASES[case])
    x = _x(p.n_in)
    got, expected = gemv(p, x, activations=activations), gemv_plain(p, x, activations=activations)
    tolerance = 1e-6 * np.abs(dense).sum(1).max()
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)
    exact = x.astype(np.float64) @ dense.astype(np.float64).T
    rounding = {"int8": 0.03, "int16": 1e-4, "float32": 1e-6}[activations]
    assert np.linalg.norm(got - exact) <= rounding * np.linalg.norm(exact)


@pytest.mark.parametrize("bits, table", [(b, None) for b in (1, 2, 3, 4, 6, 8)] + [(4, np.rint(WHOLE * 8))])
def test_integer_sums_to_the_last_bit(bits, table):
    """With steps of 1 and activations that are integers of scale 1 nothing is rounded."""
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 1 << bits, (33, 192), dtype=np.uint8)
    p = pack(codes, bits, np.ones((33, 3), np.float32), table=table, zero=0 if table is not None else 1 << bits >> 1)
    x = rng.integers(-126, 127, (1, 192)).astype(np.float32)
    x[:, ::64] = 127
    assert np.array_equal(gemv(p, x, activations="int8"), x @ dequantize(p).T)
    wide = np.zeros((1, 192), np.float32)
    wide[:, 5::64], wide[:, 70] = 127 * 256, -12345
    assert np.array_equal(gemv(p, wide, activations="int16"), wide.astype(np.float64) @ dequantize(p).T)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    "case", ["4 bits", "4 bits, groups of 16", "3 bits, short last group", "8 bits, one step a row"]
)
def test_activations_same_bits_as_plain(case, parts):
    p, _ = _made(**CASES[case])
    x = _x(p.n_in, 5) * np.array([[1], [1e-30], [1e30], [0], [1e-43]], np.float32)
    for got, expected in zip(quantize_activations(x, p, parts), quantize_activations_plain(x, p, parts), strict=True):
        assert got.dtype == expected.dtype and np.array_equal(got, expected)


@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_results_do_not_depend_on_company_or_threads(activations):
    p, _ = _made(4, 64, n_out=700, n_in=1024)
    x = _x(p.n_in, 6)
    alone = np.concatenate([gemv(p, x[i : i + 1], activations=activations) for i in range(6)])
    for threads in (1, 2, 5):
        assert np.array_equal(gemv(p, x, activations=activations, threads=threads), alone)


@pytest.mark.parametrize("activations", ACTIVATIONS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_hidden(activations, bad):
    p, _ = _made(4, 64)
    x = _x(p.n_in, 2)
    x[0, 70] = bad
    y = gemv(p, x, activations=activations)
    assert not np.isfinite(y[0]).any() and np.isfinite(y[1]).all()


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 8), st.integers(1, 70), st.integers(1, 90), st.integers(1, 40), st.integers(0, 99))
def test_any_shape_comes_back(bits, group, n_in, n_out, seed):
    p, dense = _made(bits, group, n_out, n_in, seed=seed)
    assert np.array_equal(dequantize(p), dense)
    start = seed % n_out
    assert np.array_equal(dequantize(p, start), dense[start:])


def test_steps_are_float16_only_where_that_is_right():
    p, dense = _made(4, 64)
    half, _ = _made(4, 64, exact=False)
    assert p.step.dtype == np.float32 and half.step.dtype == np.uint16
    np.testing.assert_allclose(dequantize(half), dense, rtol=2**-11)
    rounded = pack(np.zeros((3, 64), np.uint8), 4, np.full((3, 1), 0.375, np.float32))
    assert rounded.step.dtype == np.uint16
    small = pack(np.zeros((3, 64), np.uint8), 4, np.full((3, 1), 1e-7, np.float32), exact=False)
    assert small.step.dtype == np.float32  # float16 would lose it
    x = _x(256)
    np.testing.assert_allclose(gemv(half, x), gemv_plain(half, x), atol=1e-3)


def test_bytes_are_counted():
    p, _ = _made(4, 64, n_out=64, n_in=512, exact=False)
    assert p.nbytes == 64 * 512 // 2 + 2 * 64 * 8 + 4 * 16
    assert widths(7) == (4, 2, 1)


@pytest.mark.parametrize(("bits", "table"), [*((b, False) for b in range(1, 9)), *((b, True) for b in range(1, 5))])
def test_no_sum_of_products_overflows(bits, table):
    """The largest codes meet the largest parts of x, of one sign: where sums are gathered in 16 bits, these are the most."""
    levels = np.where(np.arange(1 << bits) % 2, 127, -127).astype(np.float32) if table else None
    codes = np.full((16, 128), (1 << bits) - 1, np.uint8)
    p = pack(codes, bits, np.ones((16, 2), np.float32), table=levels)
    x = np.full((3, 128), 126 * 256 + 128, np.float32)  # parts 127 and -128
    x[:, ::64] = 127 * 256
    x *= np.array([[1], [-1], [1]], np.float32)
    expected = x.astype(np.float64) @ dequantize(p).T
    for rows in (1, 3):
        np.testing.assert_allclose(gemv(p, x[:rows]), expected[:rows], rtol=1e-6)
    x = np.full((1, 128), 127, np.float32)
    np.testing.assert_allclose(gemv(p, x, activations="int8"), x.astype(np.float64) @ dequantize(p).T, rtol=1e-6)


def test_sparse_part():
    x, y = _x(9, 2), np.zeros((2, 5), np.float32)
    places, values = np.array([[0, 3, 3], [8, 1, 2]], np.int32), np.array([2, 3, -1], np.float32)
    dense = np.zeros((5, 9), np.float32)
    dense[tuple(places)] = values
    add_sparse(places, values, x, y)
    np.testing.assert_allclose(y, x @ dense.T, rtol=1e-6)


def test_refusals():
    codes, step = np.zeros((4, 64), np.uint8), np.ones((4, 2), np.float32)
    with pytest.raises(BadInput, match="1 to 8 bits"):
        pack(codes, 9, step)
    with pytest.raises(BadInput, match="0 to 15"):
        pack(codes + 16, 4, step)
    with pytest.raises(BadConfig, match="group size"):
        pack(codes, 4, np.ones((4, 3), np.float32))
    with pytest.raises(BadInput, match="finite"):
        pack(codes, 4, step * np.nan)
    with pytest.raises(BadInput, match="table"):
        pack(codes + 3, 4, step, table=np.zeros(3, np.float32))
    p = pack(codes, 4, step)
    with pytest.raises(BadInput, match="contiguous"):
        gemv(p, np.zeros((1, 63), np.float32))
    with pytest.raises(BadConfig, match="int8"):
        gemv(p, np.zeros((1, 64), np.float32), activations="int4")
    with pytest.raises(BadInput, match="rows"):
        rows_of(p, np.array([4]))


PORTABLE = """
import numpy as np
from laconic.kernels.gemv import gemv
from laconic.kernels.packed import pack
rng = np.random.default_rng(0)
codes = rng.integers(0, 16, (20, 64), dtype=np.uint8)
x = rng.integers(-32000, 32000, (1, 64)).astype(np.float32)
x[:, ::32] = 127 * 256
table, step = rng.integers(-127, 128, 16).astype(np.float32), 2.0 ** rng.integers(-16, 5, (20, 2)).astype(np.float32)
p = pack(codes, 4, step, table=table)
assert p.step.dtype == np.uint16
expected = x.astype(np.float64) @ (table[codes] * step.repeat(32, 1)).T.astype(np.float64)
for activations in ("int16", "float32"):
    assert np.allclose(gemv(p, x, activations=activations), expected, rtol=1e-5, atol=1)
"""


@pytest.mark.parametrize("features", ["", "+avx2,+fma"])
def test_machines_without_the_instructions(features):
    """The same kernels compiled for less than this machine has: other ways to multiply, to look up and to read float16."""
    env = {**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": features}
    subprocess.run([sys.executable, "-c", PORTABLE], env=env, check=True)
