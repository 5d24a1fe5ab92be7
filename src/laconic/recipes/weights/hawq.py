"""HAWQ: bits by the trace of the loss's Hessian, an integer programme over measured rounding errors."""

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
from ...quantize.scales import AbsMax, Along, GroupScale, Search
from ...sources.weights.recipe import Statistics, WeightRecipe

if TYPE_CHECKING:
    from ...sources.weights.trial import Trial

_RATES = tuple(map(float, range(2, 9)))


def hawq(bits: int = 4, group: int = 64, probes: int = 8, seed: int = 0) -> WeightRecipe:
    """Symmetric uniform grids, rounded to nearest; a matrix' bits follow from tr(∇²L) / n · ‖ΔW‖².

        vᵀ ∇²L v for random signs v ─▶ mean curvature of each matrix ─┐
        ‖Q_b(W) − W‖² at every rate ─────────────────────────────────┴▶ integer programme under the budget

    Needs a calibration text. probes: random vectors for each of two samples. bits: the rate where no budget is named.

    Source: Yao et al. 2021, HAWQ-V3 (2011.10680), eq. 5 (perturbation Ω under an integer programme); Dong et al. 2020,
    HAWQ-V2 (1911.03852), Hutchinson's trace. Differs: weights only, so the dyadic rescaling of integer activations and the
    latency constraint have no place; steps for groups of a row, searched, not for whole rows; no fine-tuning behind it; one
    random vector serves all matrices at once.
    Claim: less loss than one rate for all at the same size. Seen here on GPTQ grids at the bits of 3 (english-llama-7m):
    embeddings and attention, KL .032 nats against .064; all matrices, .074 against .090. What it finds is the embedding:
    among the blocks' attention alone its traces are too noisy, .0077 against .0066. The Fisher estimate by inputs and
    outputs, which costs one pass back, reaches .029 and .050.
    """

    def at(rate: float) -> Stage:
        if rate not in _RATES:
            raise BadConfig(f"{rate:g} bits; 2 to 8 are right")
        scale = GroupScale(Along(group), Search(AbsMax(), 0.6, 1.1, 11))
        return chain(Quantizer(Uniform((1 << int(rate)) - 1), scale), Pack())

    def policy(trial: Trial, budget: float) -> list[float]:
        from ...sources.weights.scores import hessian_traces

        traces = np.array(hessian_traces(trial, probes, seed=seed))
        curvature = traces / [m.n_elements for m in trial.matrices]
        curvature = np.maximum(curvature, 1e-3 * curvature.mean())  # noise may leave a matrix without any
        choice = integer_programme(trial.bits, curvature[:, None] * trial.squares, budget)
        return trial.rates_of(trial.filled(choice, budget))

    at(float(bits))
    return WeightRecipe(at, _RATES, Statistics(hessian=False), float(bits), policy)
