from __future__ import annotations

import numpy as np
import pytest

from laconic.kernels.scalar import lloyd, lloyd_plain


@pytest.mark.parametrize("seed", range(6))
def test_lloyd_is_its_plain_twin_and_does_not_raise_the_error(seed: int) -> None:
    rng = np.random.default_rng(seed)
    v = np.sort(np.round(rng.standard_normal(rng.integers(1, 500)), int(rng.integers(1, 6))))
    start = np.sort(rng.standard_normal(1 << seed % 6 + 1))
    total = np.append(0.0, np.cumsum(v))
    found, plain = start.copy(), start.copy()
    lloyd(v, total, found, 40, 1e-6)
    lloyd_plain(v, total, plain, 40, 1e-6)
    assert np.array_equal(found, plain) and (np.diff(found) >= 0).all()

    def error(levels: np.ndarray) -> float:
        return float(np.square(v[:, None] - levels).min(1).sum())

    assert error(found) <= error(start) + 1e-9
