"""Allocation with one Lagrange multiplier for all parts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .table import fill, read_table, totals


class Relaxation(NamedTuple):
    """Optimum when a part may mix two options: `choice` is its integral part, `bound` no choice can beat."""

    choice: np.ndarray  # (n_parts,) int64, on the convex hulls, within the budget
    bound: float
    lam: float  # distortion per unit of rate at which the walk stopped; 0 when every hull was walked to its end


def lagrangian(rates: ArrayLike, distortions: ArrayLike, budget: float) -> np.ndarray:
    """Minimise D + λR on the parts' convex hulls, then spend the remainder greedily on any option.

    Exact whenever the budget meets a vertex of the summed hull; otherwise above `lower_bound` by less than one hull
    segment of one part.

    Source: Shoham & Gersho 1988, "Efficient bit allocation for an arbitrary set of quantizers", IEEE Trans. ASSP 36(9).
    Differs: λ is not searched for. All hull segments are sorted by slope and taken in that order, which visits the same
    solutions; the remainder, which the paper leaves unspent, is filled.

    >>> lagrangian([[1, 2, 3], [1, 2, 3]], [[16, 4, 1], [1.6, 0.4, 0.1]], budget=5).tolist()
    [2, 1]
    """
    rates, distortions, budget = read_table(rates, distortions, budget)
    return fill(rates, distortions, relax(rates, distortions, budget).choice, budget)


def lower_bound(rates: ArrayLike, distortions: ArrayLike, budget: float) -> float:
    """Total distortion that no choice within the budget can go below: the Lagrangian dual, a linear relaxation.

    Source: Everett 1963, "Generalized Lagrange multiplier method", Operations Research 11(3), theorem 1.

    >>> lower_bound([[0, 2]], [[4.0, 0.0]], budget=1)
    2.0
    """
    return relax(*read_table(rates, distortions, budget)).bound


def hull(rate: np.ndarray, distortion: np.ndarray) -> list[int]:
    """Options on the lower convex hull of one part, from the cheapest to the least distortion."""
    vertices = [int(np.lexsort((distortion, rate))[0])]
    while True:
        more, gain = rate - rate[vertices[-1]], distortion[vertices[-1]] - distortion
        useful = (more > 0) & (gain > 0)
        if not useful.any():
            return vertices
        slope = np.divide(gain, more, out=np.full_like(gain, -np.inf), where=useful)
        vertices.append(int(np.argmax(slope)))


def relax(rates: np.ndarray, distortions: np.ndarray, budget: float) -> Relaxation:
    """Walk down the hulls of all parts at once, steepest segment first, until one does not fit."""
    segments = []  # (slope, part, option, more rate, less distortion)
    choice = np.empty(len(rates), np.int64)
    for part, (rate, distortion) in enumerate(zip(rates, distortions, strict=True)):
        vertices, slope = hull(rate, distortion), np.inf
        choice[part] = vertices[0]
        for a, b in zip(vertices, vertices[1:], strict=False):
            more, gain = rate[b] - rate[a], distortion[a] - distortion[b]
            slope = min(slope, gain / more)  # rounding must not put a part's segments out of order
            segments.append((slope, part, b, more, gain))
    segments.sort(key=lambda segment: -segment[0])  # stable, so a part's own order stays
    rate, distortion = totals(rates, distortions, choice)
    for slope, part, option, more, gain in segments:
        if rate + more > budget:
            return Relaxation(choice, float(distortion - gain * max(budget - rate, 0.0) / more), float(slope))
        rate, distortion = rate + more, distortion - gain
        choice[part] = option
    return Relaxation(choice, float(distortion), 0.0)
