"""The paired bootstrap: right answers, stated coverage, seeds."""

import numpy as np
import pytest

from laconic.core.errors import BadConfig, BadInput
from laconic.measure import paired_bootstrap


def test_pairing_removes_the_spread_of_the_items():
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 10, 200)
    result = paired_bootstrap(hard + 0.1 + rng.normal(0, 0.1, 200), hard)
    assert result.low < 0.1 < result.high and result.high - result.low < 0.05
    assert result.low < result.difference < result.high


def test_interval_of_a_large_normal_sample():
    d = np.random.default_rng(1).normal(0.3, 2, 4000)
    result = paired_bootstrap(d, np.zeros(4000), n_resamples=1999)
    half = 1.96 * d.std() / np.sqrt(4000)
    assert result.difference == pytest.approx(d.mean())
    assert (result.low, result.high) == pytest.approx((d.mean() - half, d.mean() + half), abs=0.15 * half)
    wide = paired_bootstrap(d, np.zeros(4000), level=0.99, n_resamples=1999)
    assert wide.low < result.low < result.high < wide.high


def test_coverage():
    """95 % intervals of skewed samples of 40 items hold the true mean in 90 to 98 % of 150 trials."""
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(150):
        result = paired_bootstrap(rng.exponential(1.0, 40), np.zeros(40), n_resamples=999)
        held += result.low <= 1.0 <= result.high
    assert 135 <= held <= 147


def test_weights_are_tokens_of_a_sequence():
    a, b, tokens = np.array([2.0, 3.0, 5.0]), np.array([1.0, 3.0, 1.0]), np.array([100, 300, 100])
    assert paired_bootstrap(a, b, weights=tokens).difference == pytest.approx(1.0)  # (100 + 400)/500
    assert paired_bootstrap(a, b).difference == pytest.approx(5 / 3)
    equal = paired_bootstrap(a, b, weights=np.full(3, 7))
    assert equal == pytest.approx(paired_bootstrap(a, b))


def test_seeds():
    a = np.random.default_rng(3).normal(size=30)
    assert paired_bootstrap(a, 0 * a) == paired_bootstrap(a, 0 * a)
    assert paired_bootstrap(a, 0 * a, seed=1) != paired_bootstrap(a, 0 * a)


def test_constant_differences_have_a_point_interval():
    assert paired_bootstrap([1.5, 2.5], [1.0, 2.0], weights=[1, 3]) == (0.5, 0.5, 0.5)


def test_bad_arguments():
    two = [1.0, 2.0]
    for a, b, w in (([1.0], [1.0], None), (two, [1.0], None), ([two], [two], None), (two, two, [1.0])):
        with pytest.raises(BadInput, match="items"):
            paired_bootstrap(a, b, weights=w)
    for a, w in (([1.0, np.nan], None), ([1.0, 2], [1, 0]), ([1.0, 2], [1, np.inf])):
        with pytest.raises(BadInput, match="finite"):
            paired_bootstrap(a, [0.0, 0.0], weights=w)
    for wrong in ({"level": 1.0}, {"level": 0}, {"n_resamples": 0}):
        with pytest.raises(BadConfig):
            paired_bootstrap([1.0, 2], [0.0, 0], **wrong)
