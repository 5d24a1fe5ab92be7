"""D²Quant: a factor for every column beside the scales of groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...core.combine import chain
from ...core.errors import BadConfig
from ...core.stage import Stage
from ...entropy.coders import Pack
from ...quantize.base import Quantizer
from ...quantize.codebooks import Uniform
from ...quantize.dual import DualScale
from ...quantize.rounding import Feedback
from ...quantize.scales import Along, GroupScale, MinMax, Search
from ...quantize.zeros import IntegerZero
from ...sources.weights.recipe import Statistics, Tune, WeightRecipe

if TYPE_CHECKING:
    from ...sources.weights.tune import Tuning


def d2quant(bits: int = 2, group: int = 64, rounds: int = 15, damping: float = 0.01) -> WeightRecipe:
    """GPTQ's grid in groups of a row, with a factor for every column on top; means behind attention are put right.

        w ─ s_j in turns with Q(w / s) ─▶ w / s ─ range searched ─▶ GPTQ sweep under s H s ─▶ `bits`-bit codes
        b of the norm behind attention ─▶ b − E[y − y₀], with y of the coded model and y₀ of the original

    Fit with `Stats(hessian)`. A weight takes bits + (16 + bits) / group, and 16 / n_rows for the factors, which are sent here;
    a runtime that folds them into the up projection's rows has them for nothing. rounds: of the alternation; 0: no factors
    but 1. Norms are corrected where they have biases and there is a calibration text.

    Source: Yan et al. 2026, D²Quant (2602.02546), dual-scale quantizer and deviation-aware correction. Differs: see
    `DualScale` and `shift_norms`; factors for all matrices, none absorbed: a down projection's 16 / 256 bits a weight are all
    that would be saved, and below they buy nothing.
    Claim: less error without more bits where columns differ in size: heavy-tailed columns .37 of the error of GPTQ at
    2 bits, .24 at 3 (synthetic). Not reproduced on the down projections of english-llama-7m, whose columns are alike:
    1.00 of the error at 2 bits and .98 at 3, before the factors' 16 / 256 bits are paid. The correction, as a vector added
    behind this model's RMSNorms, which have no bias to hold it: KL .2159 to .2129 nats on GPTQ at 2 bits (± .0027, 20 windows
    of unseen text), .0395 to .0391 at 3 (± .0002); its .005 bits a weight, spent on codes, would give .9 % as well. Only .4 to
    8 % of the deviations' power is in their means.
    """

    def at(rate: float) -> Stage:
        b = int(rate)
        book = Uniform(1 << b, 0.0)
        scale = GroupScale(Along(group), Search(MinMax(True), 0.6, 1.1, 11, 3.0), IntegerZero(b))
        return chain(DualScale(book, scale, rounds), Quantizer(book, scale, Feedback(damping, "descending")), Pack())

    def tune(tuning: Tuning) -> None:
        from ...sources.weights.tune_shift import shift_norms

        shift_norms(tuning)

    if not 1 <= bits <= 8:
        raise BadConfig(f"{bits} bits; 1 to 8 are right")
    rates = tuple(map(float, range(1, 9)))
    return WeightRecipe(at, rates, Statistics(), float(bits), tune=Tune(tune))
