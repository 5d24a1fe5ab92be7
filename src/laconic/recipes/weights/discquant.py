"""DiscQuant: every weight up or down on a given grid, decided for the whole model at once by its divergence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...core.errors import BadConfig
from ...core.packet import codec
from ...sources.weights.recipe import Statistics, Tune, WeightRecipe

if TYPE_CHECKING:
    from ...sources.weights.tune import Tuning

_RATES = tuple(map(float, range(2, 9)))


def discquant(
    bits: int = 3, group: int = 64, steps: int = 100, samples: int = 2, strength: float = 1e4, anchor: float = 0.5
) -> WeightRecipe:
    """GPTQ's grids and codes, then every weight of the model moved to the one of two neighbours that keeps its KL low.

        grid in groups ─ GPTQ ─▶ codes ─▶ x in [0, 1] between two levels ─ KL + linear term ─▶ x at an end ─▶ codes

    Needs a calibration text, and memory for seven times the weights in float32 (500 MB at most; a larger model stays as GPTQ
    coded it, and the report says so). steps: of Adam, each on `samples` windows. strength: of the KL against the linear term.
    anchor: 0 starts at the original weights, as the paper does; above 0, at GPTQ's codes, which hold the stronger the more.
    The size is that of GPTQ. What samples set aside do not confirm is not kept.

    Source: Chee et al. 2025, DiscQuant (2501.06417), algorithm 1. Differs: starts at codes by default; strength is 50 times the
    paper's 200, its gradients being of far larger batches.
    Claim: KL below GPTQ's, GPTQ's below nearest. Seen here (english-llama-7m, attention at 2 bits, KL on held-out text):
    nearest .150, GPTQ .0697, from GPTQ's codes .0663 after 60 steps of 256 tokens. From the original weights, as in the
    paper, .114 after 40 steps and .085 after 150: below nearest and falling, not yet below GPTQ; the paper uses
    fifty times the tokens. Most weights (94 to 99 %) are at an end before the last rounding.
    """

    def tune(tuning: Tuning) -> None:
        from ...sources.weights.tune_codes import round_by_divergence

        round_by_divergence(tuning, steps, samples, strength=strength, anchor=anchor)

    if float(bits) not in _RATES:
        raise BadConfig(f"{bits} bits; 2 to 8 are right")
    return WeightRecipe(
        lambda rate: codec("gptq", bits=int(rate), group=group).stage,
        _RATES,
        Statistics(),
        float(bits),
        tune=Tune(tune),
    )
