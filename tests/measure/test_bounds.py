"""Bounds against closed forms, each other, and quantizers that must stay above them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.core.errors import BadConfig, BadInput
from laconic.measure import bounds


def test_gaussian():
    assert bounds.gaussian_distortion(0, 3.0) == 3.0
    assert bounds.gaussian_distortion(1.5, 2.0) == 0.25
    one, two = bounds.gaussian_distortion(1), bounds.gaussian_distortion(2)
    assert bounds.gap_db(one, two) == pytest.approx(6.0206, abs=1e-4)


def test_blahut_arimoto_against_closed_forms():
    for p, d in ((0.5, 0.2), (0.3, 0.1), (0.1, 0.02)):  # Bernoulli: R = h(p) − h(d)
        point = bounds.blahut_arimoto([p, 1 - p], [[0, 1], [1, 0]], math.log((1 - d) / d), tolerance=1e-9)
        h = [-(x * math.log2(x) + (1 - x) * math.log2(1 - x)) for x in (p, d)]
        assert point.distortion == pytest.approx(d, abs=1e-6) and point.rate == pytest.approx(h[0] - h[1], abs=1e-6)
        assert point.gap <= 1e-9
    k, d = 8, 0.25  # uniform over k letters: R = log2 k − h(D) − D·log2(k − 1)
    point = bounds.blahut_arimoto(np.full(k, 1 / k), 1 - np.eye(k), math.log((k - 1) * (1 - d) / d))
    rate = 3 + d * math.log2(d) + (1 - d) * math.log2(1 - d) - d * math.log2(k - 1)
    assert point[:2] == pytest.approx((rate, d), abs=1e-6)


def test_blahut_arimoto_gaussian_on_a_grid():
    x = np.arange(-6, 6.01, 0.1)
    pmf = np.exp(-x * x / 2)
    pmf /= pmf.sum()
    point = bounds.blahut_arimoto(pmf, (x[:, None] - x) ** 2, slope=1 / (2 * 0.25), tolerance=1e-3)
    assert point.distortion == pytest.approx(0.25, rel=0.01) and point.rate == pytest.approx(1, abs=0.01)


def test_blahut_arimoto_says_how_far_it_got():
    pmf = np.random.default_rng(0).dirichlet(np.ones(40))
    distortion = np.abs(np.subtract.outer(np.arange(40.0), np.arange(40.0)))
    rough = bounds.blahut_arimoto(pmf, distortion, 0.3, max_iterations=3)
    fine = bounds.blahut_arimoto(pmf, distortion, 0.3, tolerance=1e-7)
    assert rough.gap > 1e-4 >= 1e-7 >= fine.gap
    # Along the slope, R + slope·D/ln 2 is what is minimised: the rough point is above by no more than it says.
    excess = rough.rate - fine.rate + 0.3 * (rough.distortion - fine.distortion) / math.log(2)
    assert 0 <= excess <= rough.gap + 1e-7


def test_blahut_arimoto_with_an_impossible_letter_and_a_useless_reproduction():
    point = bounds.blahut_arimoto([0.5, 0.5, 0.0], [[0, 1, 1e6], [1, 0, 1e6], [7, 7, 0]], math.log(9))
    assert point[:2] == pytest.approx((0.531004, 0.1), abs=1e-5)
    shifted = bounds.blahut_arimoto([0.5, 0.5], [[1000, 1001], [1001, 1000]], math.log(9))
    assert shifted[:2] == pytest.approx((0.531004, 1000.1), abs=1e-5)


def test_laplace():
    rates = (0.0, 0.005, 0.01, 0.5, 1.0, 2.0, 3.0, 5.0)
    truth = [bounds.laplace_distortion(bits) for bits in rates]
    assert truth[0] == 1.0 and (np.diff(truth) < 0).all()
    for bits, d in zip(rates, truth, strict=True):
        assert bounds.laplace_shannon_bound(bits) < d <= bounds.gaussian_distortion(bits)
        assert bounds.laplace_distortion(bits, 4.0) == pytest.approx(4 * d)
    for bits, d in zip(rates[-3:], truth[-3:], strict=True):
        assert d == pytest.approx(bounds.laplace_shannon_bound(bits), rel=0.003)


def test_laplace_against_a_plain_grid():
    """The folded grid against the general algorithm on an unfolded one."""
    edges = np.arange(-120, 121) / 10 - 0.05
    cdf = np.where(edges < 0, np.exp(math.sqrt(2) * edges) / 2, 1 - np.exp(-math.sqrt(2) * edges) / 2)
    x, pmf = (edges[1:] + edges[:-1]) / 2, np.diff(cdf)
    for slope, close in ((0.4, 9e-4), (2.3, 1e-2)):  # the plain grid's cells are a tenth wide
        point = bounds.blahut_arimoto(pmf / pmf.sum(), (x[:, None] - x) ** 2, slope, tolerance=2e-4)
        assert bounds.laplace_distortion(point.rate) == pytest.approx(point.distortion, rel=close)


def test_quantizers_stay_above():
    """Uniform scalar quantization with ideal entropy coding: ¼ bit (1.53 dB) above at high rate, never below."""
    rng = np.random.default_rng(0)
    for sample, bound in (
        (rng.normal(size=10**6), bounds.gaussian_distortion),
        (rng.laplace(scale=1 / math.sqrt(2), size=10**6), bounds.laplace_distortion),
    ):
        for step, least, most in ((0.1, 1.50, 1.56), (1.0, 0.5, 2.0)):
            index = np.rint(sample / step).astype(int)
            p = np.bincount(index - index.min()) / len(index)
            entropy = -(p[p > 0] * np.log2(p[p > 0])).sum()
            gap = bounds.gap_db(np.mean((sample - step * index) ** 2), bound(entropy))
            assert least < gap < most


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.floats(0, 6), st.integers(0, 1000))
def test_vector_gaussian(n, bits, seed):
    a = np.random.default_rng(seed).normal(size=(n, n))
    covariance = a @ a.T
    d = bounds.vector_gaussian_distortion(covariance, bits)
    product = 2.0 ** (-2 * bits) * np.linalg.det(covariance) ** (1 / n)
    assert product * (1 - 1e-6) <= d <= bounds.gaussian_distortion(bits, np.trace(covariance) / n) * (1 + 1e-9)
    if n == 1:
        assert d == pytest.approx(bounds.gaussian_distortion(bits, covariance[0, 0]))


def test_ar1():
    rho = 0.9
    assert bounds.ar1_distortion(0, rho, 2.0) == pytest.approx(2.0)
    assert bounds.ar1_distortion(1, 0.0) == pytest.approx(0.25)
    assert bounds.ar1_distortion(1, -rho) == pytest.approx(bounds.ar1_distortion(1, rho))
    for bits in (2, 3, 4):
        assert bounds.ar1_distortion(bits, rho) == pytest.approx((1 - rho**2) * 4.0**-bits, rel=1e-9)
    assert bounds.ar1_distortion(2, 0.9999) == pytest.approx((1 - 0.9999**2) / 16, rel=1e-9)
    low_rate = bounds.ar1_distortion(0.5, rho)
    assert (1 - rho**2) / 2 < low_rate < 0.5  # the level is above part of the spectrum
    blocks = [
        bounds.vector_gaussian_distortion(rho ** np.abs(np.subtract.outer(np.arange(n), np.arange(n))), 0.5)
        for n in (8, 32, 128, 512)
    ]
    assert (np.diff(blocks) < 0).all() and low_rate < blocks[-1] < low_rate * 1.01


def test_bad_arguments():
    for bits, variance in ((-1, 1), (math.nan, 1), (math.inf, 1), (1, 0), (1, math.nan)):
        for f in (bounds.gaussian_distortion, bounds.laplace_shannon_bound, bounds.laplace_distortion):
            with pytest.raises(BadConfig):
                f(bits, variance)
    with pytest.raises(BadConfig):
        bounds.ar1_distortion(1, 1.0)
    for covariance in ([[1.0, 2.0]], [[1, 0.5], [0, 1]], [[1, 2], [2, 1]], [[np.nan]], np.empty((0, 0))):
        with pytest.raises(BadInput):
            bounds.vector_gaussian_distortion(covariance, 1)
    for pmf, distortion in (([0.5, 0.6], np.eye(2)), ([-0.5, 1.5], np.eye(2)), ([1.0], np.eye(2)), ([1.0], [[np.inf]])):
        with pytest.raises(BadInput):
            bounds.blahut_arimoto(pmf, distortion, 1.0)
    for wrong in ({"slope": 0}, {"slope": 1, "tolerance": 0}, {"slope": 1, "max_iterations": 0}):
        with pytest.raises(BadConfig):
            bounds.blahut_arimoto([1.0], [[0.0]], **wrong)
    with pytest.raises(BadInput):
        bounds.gap_db(0, 1)
