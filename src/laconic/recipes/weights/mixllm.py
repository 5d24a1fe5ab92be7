"""MixLLM: 8 bits for the output features that matter most to the model, 4 for the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
from ...sources.weights.rows import global_shares

if TYPE_CHECKING:
    from ...sources.weights.trial import Trial

# A rate stands for the lower precision and a share in as many parts as its prime: no two pairs have one rate.
_PRIMES = (1021, 1019, 1013, 1009, 997, 991, 983)


def mixllm(bits: int = 4, high: int = 8, share: float = 0.1, group: int = 64, damping: float = 0.01) -> WeightRecipe:
    """Rows in two precisions: `high` bits for the share whose rounding to `bits` would cost most, GPTQ in groups for all.

        w ─ s_i = f_i · δ_i H δ_iᵀ ─┬─ the `share` of highest score ─▶ GPTQ, `high` bits
                                     └─ the others ─▶ GPTQ, `bits` bits

    Fit with `Stats(hessian, importance)`, importance (n_out, 1) the mean squared gradient f at the outputs. Under a budget, which
    needs a calibration text, one threshold for the scores a weight holds for the whole model (`global_shares`), such that the
    rows above it take what the lower precision leaves. The precisions are the recipe's own where the budget lies between them,
    else the most bits that it pays for and twice as many. Without a budget every matrix has the same share.

    Source: Zheng et al. 2024, MixLLM (2412.14590), global mixed precision between output features. Differs: see
    `SensitiveRows`; weights only, activations are not quantized.
    Claim: rows chosen over the whole model beat as many in every matrix, and those beat random ones. All 56 matrices of
    english-llama-7m, 10 % of the weights in 8 bits, the rest in 3: KL .0297 < .0385 < .0451 nats a token at 3.81 bits (none:
    .0525 at 3.30); 4 and 2 bits: .156 < .201 < .226 at 2.49 (none: .250 at 2.28). Through `laconic.weights.compress`, 8 and 3
    bits, embeddings and all: .0485 < .0679 at 3.84 bits with everything counted, on unseen text.
    """
    if not 1 <= bits < high <= 8:
        raise BadConfig(f"{bits} and {high} bits; 1 ≤ bits < high ≤ 8 is right")

    def grid(b: int) -> tuple[Uniform, GroupScale]:
        return Uniform(1 << b, 0.0), GroupScale(Along(group), Search(MinMax(True), 0.6, 1.1, 11, 3.0), IntegerZero(b))

    def mixed(low: int, part: float) -> Stage:
        codecs = (chain(Quantizer(*grid(b), Feedback(damping, "descending")), Pack()) for b in (top[low], low))
        return partition(SensitiveRows(part, *grid(low)), *codecs)

    def cost(b: int) -> float:
        return b + (16 + b) / group if group else float(b)

    def rate(low: int, part: float) -> float:
        return (1 - part) * cost(low) + part * cost(top[low])

    top = {b: high if b == bits else min(8, 2 * b) for b in range(1, 8)}
    known = {
        rate(b, k / prime): (b, k / prime) for b, prime in zip(top, _PRIMES, strict=True) for k in range(prime + 1)
    }
    nominal = rate(bits, share)
    known[nominal] = bits, share
    rates = sorted(known)

    def at(wanted: float) -> Stage:
        return mixed(*known[min(rates, key=lambda r: abs(r - wanted))])

    def policy(trial: Trial, budget: float) -> list[float]:
        sizes = [m.n_elements for m in trial.matrices]
        least = min(range(len(sizes)), key=sizes.__getitem__)
        beside = trial.packet_bits(least, nominal) - nominal * sizes[least]  # of a packet, for rows' map and framing
        mean = (budget - beside * len(sizes)) / sum(sizes)
        low = bits if cost(bits) <= mean <= cost(high) else max((b for b in top if cost(b) <= mean), default=1)
        part = (mean - cost(low)) / (cost(top[low]) - cost(low))
        if not 0 <= part <= 1:
            raise BadConfig(f"{mean:.3f} bits a weight; {cost(1):.3f} to {cost(8):.3f} are right")
        rule = SensitiveRows(share, *grid(low))  # what rows lose at the lower precision
        scores = [rule.scores(trial.candidate(i, -1), trial.statistics(i)).numpy() for i in range(len(sizes))]
        parts = global_shares(scores, [m.shape[1] for m in trial.matrices], part)
        prime = _PRIMES[low - 1]
        return [rate(low, round(p * prime) / prime) for p in parts]

    at(nominal)
    return WeightRecipe(at, tuple(rates), Statistics(fisher=True), nominal, policy)
