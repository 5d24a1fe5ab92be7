"""The k-quants from 2 to 6 bits, and the mixes that raise what matters most: the formats of a study of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...core.combine import chain
from ...core.errors import BadConfig
from ...core.stage import Stage
from ...entropy.coders import Pack
from ...quantize.base import Quantizer
from ...quantize.codebooks import Uniform
from ...quantize.kquant import SuperBlock
from ...quantize.kquant_signed import SignedBlock
from ...quantize.rounding import Feedback
from ...sources.weights.recipe import WeightRecipe

if TYPE_CHECKING:
    from ...sources.weights.trial import Trial

_SCALES = {
    2.0: SuperBlock(16, 16, 4),
    3.0: SignedBlock(16, 16, 6),
    4.0: SuperBlock(32, 8, 6),
    5.0: SuperBlock(32, 8, 6),
    6.0: SignedBlock(16, 16, 8),
}
_RATES = tuple(_SCALES)
_RAISED = {2.0: 3.0, 3.0: 4.0, 4.0: 6.0, 5.0: 6.0, 6.0: 6.0}
_ROLES = ("v_proj", "down_proj")


def k_quants_study(bits: int = 4) -> WeightRecipe:
    """Every k-quant of llama.cpp as one family, and a budget that picks a size S or M of it.

        bits   type   blocks    per block         bits a weight, all counted
        2      Q2_K   16 × 16   4 + 4 bits        2.625
        3      Q3_K   16 × 16   6 bits, signed    3.4375
        4      Q4_K    8 × 32   6 + 6 bits        4.5
        5      Q5_K    8 × 32   6 + 6 bits        5.5
        6      Q6_K   16 × 16   8 bits, signed    6.5625

    S: one type for all. M: value and down projections of the first and the last eighth of the blocks, and of every third
    between, in a higher one (2 to 3, 3 to 4, 4 and 5 to 6). The budget takes the largest of these that fits. Fit with
    `Stats(importance)`, or with `Stats(hessian)`: see `k_quant`.

    Source: Davidsson & Nugues 2026, K-Quantization and its Impact on Output Performance (2605.19645); I. Kawrakow, k-quants,
    2023 (ggml-org/llama.cpp, pull request 1684) and its mixes by role. Differs: see `SuperBlock` and `SignedBlock`; error
    feedback under a Hessian is not llama.cpp's; L is left out; embeddings are as the room has them.
    Claim: loss falls with every type from 2 to 6 bits, with diminishing returns: the layers' error falls to less than
    1 / 2.4 with each here. That larger models stand 2 bits better needs larger models than the one measured.
    """
    if float(bits) not in _RATES:
        raise BadConfig(f"{bits} bits; the k-quants have 2, 3, 4, 5 and 6")
    return WeightRecipe(_at, _RATES, nominal=float(bits), policy=_mix)


def _at(rate: float) -> Stage:
    zero = float(1 << (int(rate) - 1)) if rate in (3.0, 6.0) else 0.0
    return chain(Quantizer(Uniform(1 << int(rate), zero), _SCALES[rate], Feedback(order="descending")), Pack())


def _mix(trial: Trial, budget: float) -> list[float]:
    """The largest S or M within the budget."""
    blocks, raised = trial.blocks, set()
    for b, members in enumerate(blocks):
        eighth = len(blocks) // 8
        if b < eighth or b >= len(blocks) - eighth or (b - eighth) % 3 == 2:
            raised |= {i for i in members if trial.names[i].split(".")[-1] in _ROLES}
    table = np.asarray(trial.bits)
    rows, fitting = np.arange(len(table)), []
    for rate in _RATES:
        for step in (rate, _RAISED[rate]):
            choice = [step if i in raised else rate for i in rows]
            total = float(table[rows, [_RATES.index(r) for r in choice]].sum())
            fitting.append((total, choice))
    fitting = [found for found in fitting if found[0] <= budget]
    if not fitting:
        least = float(table[:, 0].sum())
        raise BadConfig(f"a budget of {budget:.0f} bits; the smallest k-quant, Q2_K throughout, takes {least:.0f}")
    return max(fitting, key=lambda found: found[0])[1]
