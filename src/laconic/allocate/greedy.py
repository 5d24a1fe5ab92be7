"""Allocation one level at a time."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import ArrayLike

from .table import fits, read_table


def greedy(rates: ArrayLike, distortions: ArrayLike, budget: float) -> np.ndarray:
    """Marginal analysis: raise by one level the part whose next level saves most distortion per unit of rate.

    The levels of a part are its undominated options in order of rate. Optimal when every part is convex and all steps
    cost the same; it sees one step ahead, so a level that saves little hides a good one behind it. O(N log n_parts).

    Source: Fox 1966, "Discrete optimization via marginal analysis", Management Science 13(3).
    Differs: a part whose next level does not fit is closed and the others go on, so the remainder is used.

    >>> greedy([[1, 2, 3], [1, 2, 3]], [[16, 4, 1], [1.6, 0.4, 0.1]], budget=5).tolist()
    [2, 1]
    """
    rates, distortions, budget = read_table(rates, distortions, budget)
    levels = [_frontier(r, d) for r, d in zip(rates, distortions, strict=True)]
    at = [0] * len(levels)
    spent = sum(float(rates[part, options[0]]) for part, options in enumerate(levels))

    def step(part: int) -> tuple[float, int, float]:
        now, then = levels[part][at[part] : at[part] + 2]
        more = float(rates[part, then] - rates[part, now])
        return -float(distortions[part, now] - distortions[part, then]) / more, part, more

    heap = [step(part) for part, options in enumerate(levels) if len(options) > 1]
    heapify(heap)
    while heap:
        _, part, more = heappop(heap)
        if fits(spent + more, budget):
            spent += more
            at[part] += 1
            if at[part] + 1 < len(levels[part]):
                heappush(heap, step(part))
    return np.array([options[level] for options, level in zip(levels, at, strict=True)], np.int64)


def _frontier(rate: np.ndarray, distortion: np.ndarray) -> list[int]:
    """Undominated options of one part: rate rises strictly, distortion falls strictly."""
    frontier: list[int] = []
    for option in np.lexsort((distortion, rate)).tolist():
        if np.isfinite(rate[option]) and (not frontier or distortion[option] < distortion[frontier[-1]]):
            frontier.append(option)
    return frontier
