"""Distortions against their definitions, over dtypes, libraries and block edges."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic import measure
from laconic.core.errors import BadInput
from laconic.measure.arrays import BLOCK, blocks

PAIRS = (
    measure.mse,
    measure.snr_db,
    measure.relative_error,
    measure.cosine,
    measure.kl_divergence,
    measure.same_top1,
    measure.psnr,
)


def test_blocks_bound_the_memory():
    x = np.zeros((3, 700, 301), np.float32)
    sizes = [a.size for a, _ in blocks(x, x, 301)]
    assert sum(sizes) == x.size and max(sizes) <= BLOCK < x.size
    assert [a.shape for a, _ in blocks(np.zeros((2, BLOCK + 1)), np.zeros((2, BLOCK + 1)), BLOCK + 1)] == [
        (1, BLOCK + 1)
    ] * 2


def test_against_plain_numpy():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 700, 301))  # more than two blocks
    y = x + 0.1 * rng.normal(size=x.shape)
    error = np.mean((x - y) ** 2)
    assert measure.mse(x, y) == pytest.approx(error, rel=1e-12)
    assert measure.snr_db(x, y) == pytest.approx(10 * np.log10(np.mean(x**2) / error), rel=1e-12)
    assert measure.relative_error(x, y) == pytest.approx(np.linalg.norm(x - y) / np.linalg.norm(x), rel=1e-12)
    cosine = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
    np.testing.assert_allclose(measure.cosine(x, y), cosine, rtol=1e-12)
    log_p, log_q = (z - np.log(np.exp(z).sum(-1, keepdims=True)) for z in (x, y))
    np.testing.assert_allclose(measure.kl_divergence(x, y), (np.exp(log_p) * (log_p - log_q)).sum(-1), atol=1e-12)
    np.testing.assert_array_equal(measure.same_top1(x, y), x.argmax(-1) == y.argmax(-1))
    q = rng.normal(size=(2, 5, 301))
    t, e = np.einsum("abd,xyd->abxy", q, x), np.einsum("abd,xyd->abxy", q, y)
    found = measure.inner_product(x, y, q)
    assert found == pytest.approx(((t * e).sum() / (t * t).sum(), (e - t).mean(), ((e - t) ** 2).mean()), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int8, torch.bool])
def test_torch_is_read_exactly(dtype):
    x = (torch.randn(33, 17, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    y = x.flip(0).T.contiguous().T  # not contiguous
    for f in (measure.mse, measure.snr_db, measure.relative_error, measure.cosine, measure.kl_divergence):
        np.testing.assert_array_equal(f(x, y), f(x.double().numpy(), y.double().numpy()))
    gradient = x.double().requires_grad_()
    assert measure.mse(gradient, y) == measure.mse(x, y)


def test_accumulation_is_double():
    """In float32 neither the offset nor the sum would survive."""
    x = np.full(10**6, 4096.0, np.float32)
    y = x + np.float32(2**-11)
    assert measure.mse(x, y) == 2.0**-22
    assert measure.mse(np.array([0, 255], np.uint8), np.array([255, 0], np.uint8)) == 255**2  # no wrap


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.sampled_from([2.0, 2.0**30]))
@settings(max_examples=50, deadline=None)
def test_scale_free_measures(values, scale):
    x = np.array(values)
    y = np.round(x)
    if np.square(x).sum() > 1e-200 and np.square(x - y).sum() > 1e-200:
        assert measure.snr_db(scale * x, scale * y) == pytest.approx(measure.snr_db(x, y), abs=1e-6)
        assert measure.relative_error(x, y) == pytest.approx(10 ** (-measure.snr_db(x, y) / 20))
    assert measure.cosine(x, x * scale) == pytest.approx(1.0)
    assert not x.any() or measure.cosine(x, -x) == pytest.approx(-1.0)


def test_limits():
    zero, one = np.zeros(4), np.ones(4)
    cases = ((one, one), (zero, one), (zero, zero), (one, -one))
    assert [measure.snr_db(*case) for case in cases[:3]] == [math.inf, -math.inf, math.inf]
    assert [measure.relative_error(*case) for case in cases] == [0, math.inf, 0, 2]
    assert [float(measure.cosine(*case)) for case in cases] == [1, 0, 1, -1]
    assert measure.mse(3.0, 1.0) == 4.0
    assert math.isnan(measure.mse([np.nan], [0.0]))
    assert measure.psnr(np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2, 3))) == math.inf
    assert math.isnan(measure.inner_product(one, one, zero).slope)


@pytest.mark.parametrize("f", PAIRS)
def test_bad_input_is_refused(f):
    for x, y in (
        (np.ones((2, 3)), np.ones(3)),  # would broadcast
        (np.ones((0, 3)), np.ones((0, 3))),
        (np.ones(3, complex), np.ones(3, complex)),
        (torch.ones(3, dtype=torch.complex64), torch.ones(3)),
        (np.array(["a"]), np.array(["b"])),
    ):
        with pytest.raises(BadInput):
            f(x, y)
    if f in (measure.cosine, measure.kl_divergence, measure.same_top1):
        with pytest.raises(BadInput):
            f(1.0, 1.0)
    with pytest.raises(BadInput, match="last axis"):
        measure.inner_product(np.ones((2, 3)), np.ones((2, 3)), np.ones((2, 4)))


def test_one_bit_codebook_shrinks_inner_products():
    """Signs at the least-squares level have slope 2/π (TurboQuant, section 3.2); at the unbiased level, 1."""
    rng = np.random.default_rng(0)
    x, q = rng.normal(size=(2000, 128)), rng.normal(size=(500, 128))
    level = math.sqrt(2 / math.pi)
    assert measure.inner_product(x, level * np.sign(x), q).slope == pytest.approx(2 / math.pi, abs=0.01)
    unbiased = measure.inner_product(x, np.sign(x) / level, q)
    assert unbiased.slope == pytest.approx(1, abs=0.01) and abs(unbiased.bias) < 0.05
    assert unbiased.mse > measure.inner_product(x, level * np.sign(x), q).mse


def test_psnr_rounds_clamps_and_refuses_other_ranges():
    image = np.array([[0, 128, 255]], np.uint8)
    assert measure.psnr(image, np.array([[-3.0, 128.4, 300.0]])) == math.inf
    assert measure.psnr(image, image.astype(float) + [[1, 0, 0]]) == pytest.approx(10 * math.log10(255**2 * 3))
    assert measure.psnr(torch.tensor(image), torch.tensor(image)) == math.inf
    for wrong in (image / 255, image.astype(float) - 1, image.astype(float) + 1):
        with pytest.raises(BadInput, match="whole numbers"):
            measure.psnr(wrong, wrong)


def test_kl_with_masked_and_huge_logits():
    inf = np.inf
    kl = measure.kl_divergence([[0.0, -inf, 0], [0, 0, 0], [1e5, 0, 0]], [[0.0, -inf, 0], [0, -inf, 0], [0, 0, 1e5]])
    assert kl.tolist() == [0.0, inf, 1e5]
    rng = np.random.default_rng(0)
    z = rng.normal(size=(1000, 50))
    assert (measure.kl_divergence(z, z + 3) < 1e-14).all() and (measure.kl_divergence(z, z + 3) >= 0).all()


def test_rates():
    assert measure.bits_per_element(b"1234", 16) == 2.0
    assert measure.bits_per_element((bytes(n) for n in (3, 5)), 32) == 2.0
    assert measure.bits_per_element(np.zeros(4, np.int16).data, 8) == 8.0  # a view's length is in items
    with pytest.raises(BadInput):
        measure.bits_per_element(b"", 0)
    with pytest.raises(TypeError):
        measure.bits_per_element(17, 4)  # a computed number is not a rate
    assert measure.bits_per_byte(1000 * math.log(256), 1000) == pytest.approx(8)
    with pytest.raises(BadInput):
        measure.bits_per_byte(1.0, 0)


def test_neither_torch_nor_scipy_is_imported():
    code = (
        "import sys, laconic.measure, laconic.allocate as a, numpy as np;"
        "laconic.measure.mse([1.], [2.]); a.lagrangian([[1, 2]], [[2, 1]], 2);"
        "assert not {'torch', 'scipy'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
