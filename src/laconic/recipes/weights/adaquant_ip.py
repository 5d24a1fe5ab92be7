"""AdaQuant with integer programming: layers rounded for their outputs, bits by the loss that each layer costs alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...allocate import integer_programme
from ...core.combine import chain
from ...core.errors import BadConfig
from ...core.stage import Stage
from ...entropy.coders import Pack
from ...quantize.base import Quantizer
from ...quantize.codebooks import Uniform
from ...quantize.reconstruct import Reconstruct
from ...quantize.scales import Along, GroupScale, MinMax, Search
from ...quantize.zeros import IntegerZero
from ...sources.weights.recipe import Statistics, WeightRecipe

if TYPE_CHECKING:
    from ...sources.weights.trial import Trial

_RATES = (2.0, 3.0, 4.0, 6.0, 8.0)


def adaquant_ip(bits: int = 4, group: int = 64, steps: int = 100, samples: int = 4) -> WeightRecipe:
    """Each matrix coded alone at every rate, the model's loss measured, and the sum of losses minimised under the budget.

        w ─ Adam on Q(W + V)'s outputs ─▶ `bits`-bit codes in groups
        KL of the model with one matrix coded, for all matrices and rates ─▶ integer programme

    Needs a calibration text; the loss is measured on `samples` windows of it, a pass for each matrix and rate. bits: the rate
    where no budget is named.

    Source: Hubara et al. 2021, "Accurate post training quantization with small calibration sets" (2006.10518): AdaQuant,
    eq. 2, integer programme, eq. 4. Differs: KL from the original instead of the loss on labels; minimises loss under a
    size, not size under a loss; scales are searched, not learned; weights only, so no bias tuning or batch norm.
    Claim: layers lose less than .7 of what nearest loses at the same bits (paper: better than rounding by a step up or
    down); the integer programme less than one rate for all. Seen here: .45 to .54 of nearest at 2 to 4 bits, where error
    feedback reaches .25 to .34; and on grids by GPTQ at the bits of 3 (english-llama-7m) one rate .090 nats, programme
    .048, while the sum that it minimises says .041: losses nearly add up.
    """

    def at(rate: float) -> Stage:
        if rate not in _RATES:
            raise BadConfig(f"{rate:g} bits; {', '.join(f'{r:g}' for r in _RATES)} are right")
        scale = GroupScale(Along(group), Search(MinMax(True), 0.6, 1.1, 11, 3.0), IntegerZero(int(rate)))
        return chain(Quantizer(Uniform(1 << int(rate), 0.0), scale, Reconstruct(steps)), Pack())

    def policy(trial: Trial, budget: float) -> list[float]:
        shape = trial.bits.shape
        losses = np.full(shape, np.inf)
        for i, k in np.argwhere(np.isfinite(trial.bits)):
            losses[i, k] = trial.alone(int(i), int(k), samples)
        choice = integer_programme(trial.bits, losses, budget)
        return trial.rates_of(trial.filled(choice, budget))

    at(float(bits))
    return WeightRecipe(at, _RATES, Statistics(), float(bits), policy)
