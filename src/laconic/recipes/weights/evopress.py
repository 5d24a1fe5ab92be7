"""EvoPress: which matrix gets how many bits is bred, judged by the model's own divergence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...allocate import evolutionary
from ...core.errors import BadConfig
from ...core.packet import codec
from ...sources.weights.recipe import Statistics, WeightRecipe

if TYPE_CHECKING:
    from ...sources.weights.trial import Trial

_RUNGS = (2.0, 3.0, 4.0, 5.0, 6.0)


def evopress(bits: int = 3, group: int = 64, generations: int = 40, offspring: int = 16, seed: int = 0) -> WeightRecipe:
    """GPTQ grids of 2 to 6 bits, dealt out by evolution on the KL of the whole model.

        every matrix at every rate, once ─▶ start: the Fisher estimate's best
        parent ─ a matrix up a rung, others down ─▶ offspring ─▶ 1 sample: 4 stay ─▶ a quarter: 2 stay ─▶ all: the best

    What the matrices lose by themselves need not add up; here nothing but the whole model is asked. Needs a calibration
    text. bits: the rate where no budget is named. A generation costs offspring + 1 + 2 short passes over the samples.

    Source: Sieberling et al. 2025, EvoPress (2410.14649), algorithm 1: level switches, selection in stages on growing
    subsets, KL as fitness, candidates coded once. Differs: matrices of different sizes trade with each other; it starts at
    the best choice by the Fisher estimate, not at one rate for all, which here is worth more than the search; candidates
    are coded with the original model's moments, then once more by the walk.
    Claim: lower KL than one rate for all, and than allocation by estimates that add up over layers. Seen here at the bits of
    3-bit GPTQ (english-llama-7m, 1,500 tokens): one rate .090 nats, Fisher estimate .0500, evolution from there .0487 after
    12 generations, from one rate .058.
    """

    def policy(trial: Trial, budget: float) -> list[float]:
        n = len(trial.samples)
        screens = ((lambda choice: trial.loss(choice, 1), 4), (lambda choice: trial.loss(choice, max(n // 4, 1)), 2))
        found = evolutionary(
            trial.bits, np.where(np.isfinite(trial.nats), trial.nats, np.inf), budget, objective=trial.loss,
            screens=screens, generations=generations, offspring=offspring, seed=seed,
        )  # fmt: skip
        return trial.rates_of(trial.filled(found, budget))

    if float(bits) not in _RUNGS:
        raise BadConfig(f"{bits} bits; 2 to 6 are right")
    return WeightRecipe(
        lambda rate: codec("gptq", bits=int(rate), group=group).stage, _RUNGS, Statistics(), float(bits), policy
    )
