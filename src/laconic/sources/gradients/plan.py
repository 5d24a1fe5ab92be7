"""Levels by parameter: least bytes whose summed error is that of one level everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ...allocate import dynamic_programme
from ...core.stage import Stage
from .collective import Mean, Work
from .exchange import LEAST, decode, encode, matrix
from .recipe import GradientRecipe

CELLS = 10_000  # in which the dynamic programme counts error


def choose(totals: Sequence[Tensor], recipe: GradientRecipe) -> Work[list[float]]:
    """The level of each parameter, by all ranks' error tables.

        min Σ_l bytes(l, c_l)   so that   Σ_l error(l, c_l) ≤ a Σ_l error(l, uniform)

    error: ‖G − C(G)‖ of the gradients summed over a window, over ‖G‖ where the plan is `relative`. The tables are averaged over
    the ranks, which then solve the same programme; on the wire: 8 bytes a parameter and level.

    Source: Markov et al. 2024, L-GreCo (2210.17357), Alg. 1, with its 10,000 cells of error. Differs: relative errors, where
    the paper's are those of gradients as they are; every rank has a say, not the first one alone.
    """
    assert recipe.plan is not None
    levels = [*recipe.plan.levels, recipe.level]  # the last is the uniform one, and always possible
    measure = _measure_factors if recipe.travels == "factors" else _measure_codes
    units = [max(float(t.norm()), LEAST) if recipe.plan.relative else 1.0 for t in totals]
    measured = [
        [(n, e / unit) for n, e in measure(t, levels, recipe.at)] for t, unit in zip(totals, units, strict=True)
    ]
    table = torch.tensor(measured, dtype=torch.float32)  # (n, levels, 2)
    mean = yield Mean(table.reshape(-1))
    sizes, errors = mean.reshape(table.shape).double().numpy().transpose(2, 0, 1)
    budget = recipe.plan.error * float(errors[:, -1].sum())
    if not budget > 0:
        return [recipe.level] * len(totals)
    choice = dynamic_programme(errors, sizes, max(budget, float(errors.min(1).sum())), unit=budget / CELLS)
    chosen = sizes[np.arange(len(sizes)), choice].sum()
    return [levels[c] for c in choice] if chosen <= sizes[:, -1].sum() else [recipe.level] * len(totals)


def _measure_codes(total: Tensor, levels: Sequence[float], at: Callable[[float], Stage]) -> list[tuple[float, float]]:
    """(bytes, error) at each level, from packets."""
    out = []
    for level in levels:
        codec = at(level)
        packet = encode(codec, total)
        out.append((float(len(packet)), float((total - decode(codec, packet)).norm())))
    return out


def _measure_factors(total: Tensor, levels: Sequence[float], at: Callable[[float], Stage]) -> list[tuple[float, float]]:
    """(bytes, error) of the best matrices of each rank."""
    m, n = matrix(total.shape)
    energy = torch.linalg.svdvals(total.reshape(m, n)).double().square()
    tails = [math.sqrt(float(energy[int(r) :].sum())) for r in levels]
    return [(4.0 * min(int(r), m, n) * (m + n), tail) for r, tail in zip(levels, tails, strict=True)]
