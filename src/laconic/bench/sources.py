"""Inputs of the benchmarks, seeded."""

from __future__ import annotations

import numpy as np

N = 1 << 20


def gaussian(n: int = N, seed: int = 0) -> np.ndarray:
    """(n,) float32, independent N(0, 1)."""
    return np.random.default_rng(seed).standard_normal(n, dtype=np.float32)


def ar1_vectors(n: int = 8192, d: int = 128, rho: float = 0.9, seed: int = 0) -> np.ndarray:
    """(n, d) float32: independent rows, each a stretch of a unit-variance AR(1) process."""
    rng = np.random.default_rng(seed)
    x = np.empty((n, d), dtype=np.float64)
    x[:, 0] = rng.standard_normal(n)
    for j in range(1, d):
        x[:, j] = rho * x[:, j - 1] + np.sqrt(1 - rho**2) * rng.standard_normal(n)
    return x.astype(np.float32)


def ar1_covariance(d: int = 128, rho: float = 0.9) -> np.ndarray:
    """(d, d) covariance of such a row."""
    i = np.arange(d)
    return rho ** np.abs(i[:, None] - i[None])
