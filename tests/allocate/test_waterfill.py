"""Reverse water-filling against its optimality conditions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.allocate import reverse_water_filling, totals, water_filling
from laconic.allocate.waterfill import _level
from laconic.core.errors import BadConfig, BadInput


@settings(max_examples=200, deadline=None)
@given(
    variances=st.lists(st.one_of(st.just(0.0), st.floats(1e-30, 1e30)), min_size=1, max_size=12),
    bits=st.floats(0, 500),
)
def test_water_level(variances, bits):
    variances = np.array(variances)
    share, distortions = reverse_water_filling(variances, bits)
    if not variances.any():
        assert not share.any() and not distortions.any()
        return
    assert (share >= 0).all() and share.sum() == pytest.approx(bits, rel=1e-12, abs=1e-12)
    np.testing.assert_allclose(distortions, variances * 4.0**-share, rtol=1e-12)
    level = distortions[share > 0].max() if (share > 0).any() else variances.max()
    np.testing.assert_allclose(distortions, np.minimum(variances, level), rtol=1e-9)  # θ or σ², whichever is less


def test_bad_arguments():
    for variances in ([], [[1.0]], [-1.0], [np.inf], [np.nan]):
        with pytest.raises(BadInput):
            reverse_water_filling(variances, 1)
    for bits in (-1, np.inf, np.nan):
        with pytest.raises(BadConfig):
            reverse_water_filling([1.0], bits)


def test_snapped_allocation_follows_the_closed_form():
    """On an exponential table with a fine grid of options the snapped choice is the closed form, within one step."""
    rng = np.random.default_rng(0)
    variances = rng.lognormal(0, 1.5, 40)
    grid = np.arange(0, 8.01, 0.05)
    rates = np.tile(grid, (40, 1))
    distortions = variances[:, None] * 4.0**-rates
    share, ideal = reverse_water_filling(variances, 100.0)
    choice = water_filling(rates, distortions, 100.0)
    assert np.abs(grid[choice] - share).max() <= 0.05 + 1e-9
    assert totals(rates, distortions, choice)[1] <= ideal.sum() * 1.002


def test_parts_of_different_sizes_end_at_one_slope():
    rng = np.random.default_rng(1)
    size = rng.choice([1.0, 3.0, 40.0], (60, 1))
    rates = size * np.arange(0, 8.01, 0.05)
    distortions = size * rng.lognormal(0, 1.5, (60, 1)) * 4.0 ** (-rates / size)
    budget = 2.5 * float(size.sum())
    choice = water_filling(rates, distortions, budget)
    bits = np.repeat(rates[np.arange(60), choice] / size[:, 0], size[:, 0].astype(int))
    share, _ = reverse_water_filling(np.repeat(distortions[:, 0] / size[:, 0], size[:, 0].astype(int)), budget)
    assert np.abs(bits - share).max() <= 0.1 + 1e-9  # snapped down a step of .05, or filled up


def test_level_on_a_plateau():
    """Three parts end before the fourth begins; in between no part is open, and rounding must not open one."""
    slope, low, high = np.array([0.1, 0.7, 0.3, 0.2]), np.zeros(4), np.array([1.0, 2.0, 3.0, 1.0])
    peak = np.array([1000.0, 1000.0, 1000.0, 0.0])
    for budget in (6.0, 6.0 + 1e-15, 6.0 - 1e-15, 6.0 + 4e-15):
        np.testing.assert_allclose(_level(peak, slope, low, high, budget), [1, 2, 3, 0], atol=1e-12)
    np.testing.assert_allclose(_level(peak, slope, low, high, 6.5), [1, 2, 3, 0.5])
    assert _level(peak, slope, low, high, 99.0).tolist() == high.tolist()


def test_parts_without_a_curve_start_at_their_cheapest_option():
    rates = [[1, 2, 3], [1, 2, 3], [2, 2, np.inf]]
    distortions = [[8.0, 2.0, 0.5], [0.0, 0.0, 0.0], [3.0, 1.0, 1.0]]  # falling, flat at zero, two at one rate
    assert water_filling(rates, distortions, 100).tolist() == [2, 0, 1]
    assert water_filling(rates, distortions, 5).tolist() == [1, 0, 1]
