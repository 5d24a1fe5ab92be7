"""The table of rate-distortion points that every allocator reads, and what they all do with it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ..core.errors import BadConfig, BadInput

ROUNDING = 1e-12  # of the budget: below one byte for every budget under a terabyte


def read_table(rates: ArrayLike, distortions: ArrayLike, budget: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Check a table; give float64 copies in which a missing option is inf in both.

    Raises
    ------
    BadInput: the tables are not two equal (n_parts, n_options) arrays, hold NaN, or leave a part without an option.
    BadConfig: no choice fits the budget; the message has the least budget that would do.
    """
    rates, distortions = np.array(rates, np.float64), np.array(distortions, np.float64)
    if rates.ndim != 2 or rates.shape != distortions.shape or rates.size == 0:
        raise BadInput(f"rates {rates.shape} and distortions {distortions.shape}: both must be (n_parts, n_options)")
    if np.isnan(rates).any() or np.isnan(distortions).any():
        raise BadInput("the table holds NaN; mark an option that is not there with inf")
    missing = ~(np.isfinite(rates) & np.isfinite(distortions))
    rates[missing] = distortions[missing] = np.inf
    if missing.all(axis=1).any():
        raise BadInput(f"part {int(np.argmax(missing.all(axis=1)))} has no option with finite rate and distortion")
    least = float(rates.min(axis=1).sum())
    if not fits(least, budget):  # a NaN budget ends here too
        raise BadConfig(f"budget {budget!r} is out of reach; the cheapest options alone cost {least!r}")
    return rates, distortions, float(budget)


def fits(rate: float, budget: float) -> bool:
    """Whether a sum of rates keeps the budget, up to the rounding of the sum."""
    return rate <= budget + ROUNDING * abs(budget)


def totals(rates: ArrayLike, distortions: ArrayLike, choice: ArrayLike) -> tuple[float, float]:
    """Rate and distortion of a choice, summed over the parts.

    >>> totals([[1, 2], [1, 2]], [[4.0, 1.0], [2.0, 0.5]], [1, 0])
    (3.0, 3.0)
    """
    choice = np.asarray(choice)
    rows = np.arange(len(choice))
    return float(np.asarray(rates)[rows, choice].sum()), float(np.asarray(distortions)[rows, choice].sum())


def fill(rates: np.ndarray, distortions: np.ndarray, choice: np.ndarray, budget: float) -> np.ndarray:
    """Spend what is left of the budget: again and again the upgrade that saves most distortion per unit of rate.

    Every option of a part is a candidate, on the convex hull or not; each step takes O(n_parts · n_options).
    """
    choice, rows = choice.copy(), np.arange(len(choice))
    while True:
        more = rates - rates[rows, choice][:, None]
        gain = distortions[rows, choice][:, None] - distortions
        left = budget + ROUNDING * abs(budget) - rates[rows, choice].sum()
        useful = (more <= left) & (gain > 0)
        if not useful.any():
            return choice
        with np.errstate(divide="ignore", over="ignore"):
            slope = np.divide(gain, np.maximum(more, 0.0), out=np.full_like(gain, -np.inf), where=useful)
        part, option = np.unravel_index(np.argmax(slope), slope.shape)
        choice[part] = option
