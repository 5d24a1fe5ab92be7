"""Reverse water-filling: the closed form behind bit allocation."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ..core.errors import BadConfig, BadInput
from .table import fill, read_table

_FALL = 1e-6  # bits of log2 D over all options: less is rounding


def reverse_water_filling(variances: ArrayLike, bits: float) -> tuple[np.ndarray, np.ndarray]:
    """Split `bits` over independent Gaussian components so that the summed squared error is least.

    A component with more variance than the water level θ gets ½·log2(σ²/θ) bits and keeps the error θ; the others get
    nothing and keep their variance.

    Shapes: variances (n,), not negative; returns bits (n,) and distortions (n,), float64.
    Units: `bits` is the total over the n components, not per component.
    Source: Kolmogorov 1956; Cover & Thomas, Elements of Information Theory, theorem 10.3.3.

    >>> bits, distortions = reverse_water_filling([16.0, 4.0, 0.25], bits=3.0)
    >>> bits.tolist(), distortions.tolist()
    ([2.0, 1.0, 0.0], [1.0, 1.0, 0.25])
    """
    variances = np.asarray(variances, np.float64)
    if variances.ndim != 1 or not variances.size or not (np.isfinite(variances) & (variances >= 0)).all():
        raise BadInput(f"variances {variances.shape} must be one row of finite numbers that are not negative")
    if not 0 <= bits < np.inf:
        raise BadConfig(f"{bits!r} bits: use a finite number that is not negative")
    share = np.zeros_like(variances)
    active = variances > 0
    n = int(active.sum())
    if n:
        share[active] = _level(np.log2(variances[active]), np.full(n, 2.0), np.zeros(n), np.full(n, np.inf), bits)
    return share, variances * np.exp2(-2.0 * share)


def water_filling(rates: ArrayLike, distortions: ArrayLike, budget: float) -> np.ndarray:
    """Fit log2 D = a − s·R to each part, water-fill the fitted curves, snap to options, spend the remainder greedily.

    The continuous optimum puts all parts at one slope, s·D = θ; with s = 2/n_elements that is equal loss per element,
    the rule of BAQ. Snapping goes down to the best option within the part's share, so the budget always holds. A part
    whose points do not fall (or that has fewer than two with positive distortion) has no curve: it starts at its
    cheapest option.

    Source: Zhang et al. 2025, "BAQ", arXiv:2506.05664 (equal-loss structure); Cover & Thomas, theorem 10.3.3.
    Differs: the slope is fitted to the table instead of assumed; the result is one of the table's options.

    >>> water_filling([[1, 2, 3], [1, 2, 3]], [[16, 4, 1], [1.6, 0.4, 0.1]], budget=5).tolist()
    [2, 1]
    """
    rates, distortions, budget = read_table(rates, distortions, budget)
    low = rates.min(axis=1)
    high = np.where(np.isfinite(rates), rates, -np.inf).max(axis=1)

    known = np.isfinite(rates) & (distortions > 0)
    n = np.maximum(known.sum(axis=1), 1)
    log_d = np.log2(distortions, out=np.zeros_like(distortions), where=known)
    rate = np.where(known, rates, 0.0)
    mean_d, mean_rate = log_d.sum(axis=1) / n, rate.sum(axis=1) / n
    from_mean = np.where(known, rate - mean_rate[:, None], 0.0)
    spread = np.square(from_mean).sum(axis=1)
    slope = -np.divide((from_mean * log_d).sum(axis=1), spread, out=np.zeros_like(spread), where=spread > 0)

    share = low.copy()
    curved = slope * (high - low) > _FALL
    if curved.any():
        s = slope[curved]
        peak = mean_d[curved] + s * mean_rate[curved] + np.log2(s)  # log2 of the marginal gain at rate 0, up to ln 2
        left = budget - low[~curved].sum()
        share[curved] = _level(peak, s, low[curved], high[curved], left)
    choice = np.where(rates <= share[:, None], distortions, np.inf).argmin(axis=1)
    if np.take_along_axis(rates, choice[:, None], 1).sum() > budget:  # by a rounding of the level
        choice = rates.argmin(axis=1)
    return fill(rates, distortions, choice, budget)


def _level(peak: np.ndarray, slope: np.ndarray, low: np.ndarray, high: np.ndarray, budget: float) -> np.ndarray:
    """Rates clip((peak − level)/slope, low, high) at the level where they sum to the budget (or are all at `high`).

    The sum is piecewise linear in the level, so the level is found exactly: sort where parts start and stop, and
    interpolate in the piece that holds the budget.
    """
    starts, stops = peak - slope * low, peak - slope * high
    events = np.concatenate([starts, stops])
    change = np.concatenate([1 / slope, -1 / slope])
    order = np.argsort(-events, kind="stable")
    events, per_level = events[order], np.cumsum(change[order])
    finite = np.isfinite(events)
    events, per_level = events[finite], per_level[finite]
    sums = low.sum() + np.concatenate([[0.0], np.cumsum(per_level[:-1] * -np.diff(events))])
    if np.isfinite(high).all() and budget >= sums[-1]:
        return high.copy()
    piece = max(int(np.searchsorted(sums, budget, side="right")) - 1, 0)
    level = events[piece] - (budget - sums[piece]) / per_level[piece]
    return np.clip((peak - level) / slope, low, high)
