"""MixLLM: 8 bits for the output features that matter most to the model, 4 for the others."""

import math

from ...core.combine import chain, partition
from ...core.errors import BadConfig
from ...core.stage import Stage
from ...entropy.coders import Pack
from ...quantize.base import Quantizer
from ...quantize.codebooks import Uniform
from ...quantize.rounding import Feedback
from ...quantize.rows import SensitiveRows
from ...quantize.scales import Along, GroupScale, MinMax, Search
from ...quantize.zeros import IntegerZero
from ...sources.weights.recipe import Statistics, WeightRecipe


def mixllm(bits: int = 4, high: int = 8, share: float = 0.1, group: int = 64, damping: float = 0.01) -> WeightRecipe:
    """Rows in two precisions: `high` bits for the share whose rounding to `bits` would cost most, GPTQ in groups for all.

        w ─ s_i = f_i · δ_i H δ_iᵀ ─┬─ the `share` of highest score ─▶ GPTQ, `high` bits
                                     └─ the others ─▶ GPTQ, `bits` bits

    Fit with `Stats(hessian, importance)`, importance (n_out, 1) the mean squared gradient f at the outputs. At another rate
    than the nominal one the lower precision is what the rate pays for, the higher twice that, and the share what is left over.
    Which rate each matrix has decides how many of its rows are taken: `sources.weights.rows.global_shares` says how many lie
    above one threshold for the whole model.

    Source: Zheng et al. 2024, MixLLM (2412.14590), global mixed precision between output features. Differs: see
    `SensitiveRows`; weights only, activations are not quantized.
    Claim: rows chosen over the whole model beat as many in every matrix, and those beat random ones. All 56 matrices of
    english-llama-7m, 10 % of the weights in 8 bits, the rest in 3: KL .0297 < .0385 < .0451 nats a token at 3.81 bits (none:
    .0525 at 3.30); 4 and 2 bits: .156 < .201 < .226 at 2.49 (none: .250 at 2.28).
    """
    if not 1 <= bits < high <= 8:
        raise BadConfig(f"{bits} and {high} bits; 1 ≤ bits < high ≤ 8 is right")

    def grid(b: int) -> tuple[Uniform, GroupScale]:
        return Uniform(1 << b, 0.0), GroupScale(Along(group), Search(MinMax(True), 0.6, 1.1, 11, 3.0), IntegerZero(b))

    def mixed(low: int, top: int, part: float) -> Stage:
        codecs = (chain(Quantizer(*grid(b), Feedback(damping, "descending")), Pack()) for b in (top, low))
        return partition(SensitiveRows(part, *grid(low)), *codecs)

    def cost(b: int) -> float:
        return b + (16 + b) / group if group else float(b)

    nominal = (1 - share) * cost(bits) + share * cost(high)

    def at(rate: float) -> Stage:
        if rate == nominal:
            return mixed(bits, high, share)
        low = min(max(next((b for b in range(7, 0, -1) if cost(b) <= rate), 1), 1), 7)
        top = min(8, 2 * low)
        part = (rate - cost(low)) / (cost(top) - cost(low))
        return mixed(low, top, math.floor(min(max(part, 0.0), 1.0) * 1024) / 1024)

    at(nominal)
    rates = sorted({nominal, *(q / 4 for q in range(math.ceil(4 * cost(2)), math.floor(4 * cost(8))))})
    return WeightRecipe(at, tuple(rates), Statistics(fisher=True), nominal)
