"""Allocators that find the optimum of a table."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ..core.errors import BadConfig, CodecError
from .lagrangian import relax
from .table import ROUNDING, fill, fits, read_table, totals

MAX_CELLS = 1 << 28  # of the dynamic programme; a cell is one or two bytes


def dynamic_programme(
    rates: ArrayLike, distortions: ArrayLike, budget: float, *, unit: float | None = None
) -> np.ndarray:
    """Least total distortion by dynamic programming over a grid of budgets.

    best_i[b] = min_j best_{i-1}[b − r_ij] + d_ij. Time n_parts · n_options · n_cells, memory n_parts · n_cells, where
    n_cells is what the budget leaves above the cheapest options, in units.

    unit: the grid's step. None: the greatest common divisor of the rates, which must be whole numbers; the result is
        the optimum. Otherwise what an option costs above the cheapest is rounded up to whole units, so the budget holds
        and the result is the optimum of the rounded table (of the table itself where units divide the rates).
    Raises: BadConfig: rates are not whole numbers and no unit is given, or the grid would be too large.
    Source: Bellman 1957; as used by L-GreCo, Markov et al. 2024, arXiv:2210.17357, algorithm 1.

    >>> dynamic_programme([[1, 2, 4], [1, 2, 4]], [[9.0, 8.0, 0.0], [9.0, 5.0, 4.0]], budget=5).tolist()
    [2, 0]
    """
    rates, distortions, budget = read_table(rates, distortions, budget)
    low = rates.min(axis=1)
    there = np.isfinite(rates)
    extra = np.where(there, rates - low[:, None], 0.0)
    if unit is None:
        if (extra != np.rint(extra)).any() or extra.max() > 2.0**53:
            raise BadConfig("rates differ by fractions; give the grid's step, for example unit=0.25")
        unit = float(max(np.gcd.reduce(extra.astype(np.int64).ravel()), 1))
    if not 0 < unit < np.inf:
        raise BadConfig(f"unit {unit!r} must be a positive number")
    cost = np.ceil(extra / unit * (1 - ROUNDING / 4))
    left = min((budget - low.sum()) / unit * (1 + ROUNDING / 4), cost.max(axis=1).sum())
    n_cells = int(max(left, 0.0)) + 1
    if n_cells * len(rates) > MAX_CELLS:
        least = unit * n_cells * len(rates) / MAX_CELLS
        raise BadConfig(f"{len(rates)} parts × {n_cells:,} cells are too many; use unit {least:.6g} or more")

    best = np.zeros(n_cells)  # least distortion of the parts so far within b units
    picks = np.zeros((len(rates), n_cells), np.min_scalar_type(rates.shape[1] - 1))
    for part in range(len(rates)):
        new = np.full(n_cells, np.inf)
        for option in np.flatnonzero(there[part] & (cost[part] < n_cells)):
            c = int(cost[part, option])
            candidate = best[: n_cells - c] + distortions[part, option]
            better = candidate < new[c:]
            np.copyto(new[c:], candidate, where=better)
            np.copyto(picks[part, c:], option, where=better, casting="unsafe")
        best = new
    choice, cell = np.empty(len(rates), np.int64), n_cells - 1
    for part in reversed(range(len(rates))):
        choice[part] = picks[part, cell]
        cell -= int(cost[part, choice[part]])
    return choice


def integer_programme(rates: ArrayLike, distortions: ArrayLike, budget: float) -> np.ndarray:
    """Least total distortion by branch and bound (HiGHS): the multiple-choice knapsack, rates of any kind.

    The Lagrangian solution and its bound come first. When they meet, that is the answer; otherwise an option whose
    reduced cost exceeds the gap between them cannot be in an optimum and is left out, and the programme is written in
    units of that gap, so the solver's absolute tolerance of 1e-6 means a millionth of the gap at any scale of the data.

    Raises: CodecError: the solver gave up.
    Source: Dantzig 1957 and Sinha & Zoltners 1979 (multiple-choice knapsack); as used for bit widths by Hubara et al.
    2021, "Accurate Post Training Quantization with Small Calibration Sets" (AdaQuant), arXiv:2006.10518.

    >>> integer_programme([[1, 2, 4], [1, 2, 4]], [[9.0, 8.0, 0.0], [9.0, 5.0, 4.0]], budget=5).tolist()
    [2, 0]
    """
    rates, distortions, budget = read_table(rates, distortions, budget)
    relaxed = relax(rates, distortions, budget)
    start = fill(rates, distortions, relaxed.choice, budget)
    spent, least = totals(rates, distortions, start)
    gap = least - relaxed.bound
    if gap <= ROUNDING * np.abs(distortions[np.isfinite(distortions)]).sum():
        return start

    from scipy.optimize import LinearConstraint, milp
    from scipy.sparse import csr_array

    lam = relaxed.lam
    there = np.isfinite(rates)
    priced = np.where(there, distortions, np.inf) + lam * np.where(there, rates, 0.0)
    reduced = (priced - priced.min(axis=1, keepdims=True)) / gap
    part, option = np.nonzero(reduced <= 1 + 1e-9)
    n = len(part)
    # D − bound = Σ reduced·x + λ·(unspent rate): all coefficients of the objective lie in [0, 1] units of the gap.
    to_gap = lam / gap
    row = np.append((rates[part, option] - rates[part, start[part]]) * to_gap, 1.0)
    room = (budget - spent) * to_gap
    one_each = csr_array((np.ones(n), (part, np.arange(n))), shape=(len(rates), n + 1))
    constraints = [LinearConstraint(one_each, 1, 1), LinearConstraint(row[None, :], room, room)]
    while True:
        for presolve in (True, False):  # HiGHS' presolve gives up on some programmes that it solves without
            result = milp(
                np.append(reduced[part, option], 1.0),
                integrality=np.append(np.ones(n), 0),
                bounds=(0, np.append(np.ones(n), np.inf)),
                constraints=constraints,
                options={"mip_rel_gap": 0.0, "presolve": presolve},
            )
            if result.status == 0:
                break
        if result.status != 0:
            raise CodecError(f"the integer programme ended without an optimum: {result.message}")
        x = np.zeros(rates.shape)
        x[part, option] = result.x[:n]
        choice = x.argmax(axis=1)
        total, distortion = totals(rates, distortions, choice)
        if fits(total, budget):
            return choice if distortion < least else start
        # The solver keeps the budget to its tolerance only: forbid this very choice and solve again.
        chosen = np.append(choice[part] == option, False)
        constraints.append(LinearConstraint(chosen[None, :].astype(float), -np.inf, len(rates) - 1))
