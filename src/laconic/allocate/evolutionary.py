"""Allocation for objectives that are not sums over parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from ..core.errors import BadConfig, BadInput
from .lagrangian import lagrangian
from .table import fits, read_table, totals

Objective = Callable[[np.ndarray], float]


def evolutionary(
    rates: ArrayLike,
    distortions: ArrayLike,
    budget: float,
    *,
    objective: Objective | None = None,
    screens: Sequence[tuple[Objective, int]] = (),
    start: ArrayLike | None = None,
    generations: int = 50,
    offspring: int = 16,
    seed: int = 0,
) -> np.ndarray:
    """(1+λ) evolution by level switches: never worse than where it starts, always within the budget.

    An offspring is the parent with one to three parts raised by a level, then random parts lowered until the budget
    holds again. The levels of a part are all its options in order of rate, dominated or not: the point of measuring the
    whole is that more bits, or less loss in a part, need not help. The best of parent and offspring is the next parent.

    objective: choice (n_parts,) -> loss, lower is better, the same for the same choice (each is measured once). None:
        the sum over the table.
    screens: (cheaper objective, how many it lets through), in order; offspring pass them to reach the objective.
    start: a choice within the budget; None: the `lagrangian` one.
    Source: Sieberling et al. 2025, "EvoPress", arXiv:2410.14649, algorithm 1 with level-switch mutation.
    Differs: parts of different sizes mix (raise, then lower until it fits) instead of swapping within equal sizes; the
    parent's loss is kept instead of measured again.

    >>> def coupled(choice):  # no table of parts can say this
    ...     return float(abs(choice[0] - choice[1]) - choice.sum())
    >>> evolutionary([[0, 1, 2]] * 2, [[0, 0, 0]] * 2, budget=2, objective=coupled).tolist()
    [1, 1]
    """
    rates, distortions, budget = read_table(rates, distortions, budget)
    if generations < 0 or offspring < 1 or any(keep < 1 for _, keep in screens):
        keeps = [keep for _, keep in screens]
        raise BadConfig(f"generations {generations} ≥ 0, offspring {offspring} ≥ 1, screens {keeps} ≥ 1 must hold")
    measure = objective or (lambda choice: totals(rates, distortions, choice)[1])
    order = np.argsort(rates, axis=1, kind="stable")
    n_levels = np.isfinite(rates).sum(axis=1)
    ladder = np.take_along_axis(rates, order, axis=1)  # rate of each level

    first = lagrangian(rates, distortions, budget) if start is None else np.asarray(start)
    numbers = first.dtype.kind in "iu" and first.shape == n_levels.shape
    if not numbers or (first < 0).any() or (first >= rates.shape[1]).any():
        raise BadInput(f"start must be {len(n_levels)} option numbers below {rates.shape[1]}")
    if not fits(totals(rates, distortions, first)[0], budget):
        raise BadConfig(f"start costs {totals(rates, distortions, first)[0]!r}, the budget is {budget!r}")

    rng = np.random.default_rng(seed)
    losses: dict[bytes, float] = {}

    def ask(function: Objective, level: np.ndarray) -> float:
        if np.isnan(answer := float(function(_options(order, level)))):
            raise BadInput("the objective gave NaN")
        return answer

    def loss(level: np.ndarray) -> float:
        if (key := level.tobytes()) not in losses:
            losses[key] = ask(measure, level)
        return losses[key]

    parent = np.argmax(order == first[:, None], axis=1)
    for _ in range(generations):
        mutants = [_mutate(parent, ladder, n_levels, budget, rng) for _ in range(offspring)]
        survivors = list({mutant.tobytes(): mutant for mutant in mutants}.values())
        for screen, keep in screens:
            survivors = sorted(survivors, key=partial(ask, screen))[:keep]
        parent = min([parent, *survivors], key=loss)  # on a tie the parent, which comes first
    return _options(order, parent)


def _options(order: np.ndarray, level: np.ndarray) -> np.ndarray:
    return np.take_along_axis(order, level[:, None], axis=1)[:, 0]


def _mutate(
    parent: np.ndarray, ladder: np.ndarray, n_levels: np.ndarray, budget: float, rng: np.random.Generator
) -> np.ndarray:
    """Raise one to three parts (fewer more often), then lower parts until the budget holds.

    It ends: with every part at its lowest level the budget holds, as `read_table` has checked.
    """
    level, rows = parent.copy(), np.arange(len(parent))
    for _ in range(rng.integers(1, 4, size=2).min()):
        can_rise = np.flatnonzero(level + 1 < n_levels)
        if not can_rise.size:
            break
        level[rng.choice(can_rise)] += 1
    while not fits(ladder[rows, level].sum(), budget):
        level[rng.choice(np.flatnonzero(level > 0))] -= 1
    return level
