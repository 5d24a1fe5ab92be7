"""Sums over independent items, and intervals for whatever is computed from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ...core.errors import BadInput

Sums = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval; low and high are None where one item alone was seen."""

    value: float
    low: float | None = None
    high: float | None = None

    def map(self, f: Callable[[float], float]) -> Estimate:
        """The figure under an increasing function, the ends of its interval with it."""
        return Estimate(f(self.value), *(None if end is None else f(end) for end in (self.low, self.high)))


@dataclass(frozen=True)
class Resampled:
    """Sums of named columns over all items, over bootstrap draws of them, and with each item left out in turn.

    Every figure of an evaluation is a function of such sums (nats a token: Σ nats / Σ tokens), and columns of two models
    are drawn together, so differences are paired and one set of draws serves every figure.

    Shapes: total {name: ()}, draws {name: (n_resamples,)}, left_out {name: (n_items,)}, float64.
    """

    total: Sums
    draws: Sums
    left_out: Sums

    @staticmethod
    def of(n_resamples: int = 2000, seed: int = 0, **columns: ArrayLike) -> Resampled:
        """Draw from columns of shape (n_items,); an item is what was drawn independently: a window, a pair, a template."""
        table = np.stack([np.asarray(c, np.float64) for c in columns.values()], 1)
        if not len(table) or not np.isfinite(table).all():
            raise BadInput(f"{len(table)} items; give one or more, all finite")
        n, rng, total = len(table), np.random.default_rng(seed), table.sum(0)
        drawn = [np.bincount(rng.integers(n, size=n), minlength=n) @ table for _ in range(n_resamples)]
        parts = (total, np.array(drawn), total - table)
        return Resampled(*({name: p[..., i] for i, name in enumerate(columns)} for p in parts))

    def estimate(self, figure: Callable[[Sums], np.ndarray]) -> Estimate:
        """The figure of all items, with a bias-corrected and accelerated bootstrap interval.

        Source: Efron 1987, "Better bootstrap confidence intervals", JASA 82(397), section 3. `measure.paired_bootstrap`
        is the same for one weighted mean; this one takes any function of sums, and draws once for all of them.
        """
        from scipy.special import ndtr, ndtri

        value, draws = float(figure(self.total)), np.asarray(figure(self.draws))
        if len(next(iter(self.left_out.values()))) < 2:
            return Estimate(value)
        if (draws == draws[0]).all():  # nothing varies: the interval is the point
            return Estimate(value, value, value)
        below = (np.mean(draws < value) + np.mean(draws <= value)) / 2
        margin = 0.5 / len(draws)  # the figure may lie at the edge of all draws
        bias = ndtri(np.clip(below, margin, 1 - margin))
        left_out = np.asarray(figure(self.left_out))
        spread = left_out.mean() - left_out
        squares = float((spread**2).sum())
        acceleration = float((spread**3).sum()) / (6 * squares**1.5) if squares > 0 else 0.0
        z = bias + ndtri(np.array([0.025, 0.975]))
        low, high = np.quantile(draws, ndtr(bias + z / (1 - acceleration * z)))
        return Estimate(value, float(low), float(high))


def share(part: str, whole: str) -> Callable[[Sums], np.ndarray]:
    """The figure Σ part / Σ whole; 0 where the whole is empty."""
    return lambda s: divide(s[part], s[whole])


def divide(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """a / b, and 0 where b is 0."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.divide(a, b, out=np.zeros_like(b), where=b != 0)
