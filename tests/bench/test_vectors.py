"""What the bench of vectors counts by."""

from __future__ import annotations

import numpy as np
import pytest

from laconic.bench.vectors import gaussian_bits


def test_the_bound_is_that_of_the_covariance() -> None:
    """White: ½ log₂ of the variance over the error. Half of the coordinates constant: half of the bits a coordinate."""
    x = np.random.default_rng(0).standard_normal((20_000, 8))
    assert gaussian_bits(x, 0.25) == pytest.approx(1.0, abs=0.01)
    assert gaussian_bits(x * (np.arange(8) < 4), 0.25) == pytest.approx(0.5, abs=0.01)
