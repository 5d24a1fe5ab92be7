"""SAES-SVD: low rank that also makes good what the layers before it have lost."""

from ...core.combine import chain
from ...core.stage import Stage
from ...entropy.coders import Pack
from ...quantize.base import Quantizer
from ...quantize.codebooks import Minifloat
from ...quantize.factors import Factors
from ...quantize.scales import AbsMax, GroupScale, PowerOfTwo, Whole
from ...sources.weights.recipe import Statistics, WeightRecipe

_RATES = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0)


def saes_svd(bits: float = 10.0, beta: float | None = None) -> WeightRecipe:
    """Best low rank for the original model's outputs, from the inputs that the compressed layers before it give.

        G(β) = W (H + β Δ) H^(−1/2),   H = E[x xᵀ],   Δ = E[(x_f − x) xᵀ]        x_f: inputs in the original model

    The factors come from the leading singular vectors of G (`Factors`), in half precision; the rank follows from `bits`
    (16: nothing saved). β weighs the accumulated error against the layer's own: 0 is the whitened singular value
    decomposition, that is `lord`; 1 aims at the original outputs. None: for each matrix the β in [0, ½] at which the rank holds
    the largest part of ‖G‖². Fit with `Stats(hessian, drift)`.

    Source: Hu et al. 2026, SAES-SVD (2602.03051): CEALC (closed form under H and Δ), ACES (choice of β). Differs: β is searched
    on 21 values instead of by a bound and an iteration; the left factor is fitted again to the right one as stored.
    Claim: less error at equal rank than whitened low rank, more so with depth. On a small trained model at 10 bits, calibrated on
    8192 tokens, the last block's output error against the original falls by 18 % with the chosen β and by 25 % with ½; KL .281
    (β = 0), .252 (¼), .242 (½), .302 (1), .262 (chosen). On 2048 tokens: .371, .353, .359, .478, and .374 chosen, which is
    no gain: the choice looks at energy, not at what calibration can tell, so `beta` = ¼ is the safer setting on little text.
    """

    def half() -> Stage:
        return chain(Quantizer(Minifloat("float16"), GroupScale(Whole(), AbsMax(), PowerOfTwo())), Pack())

    def at(rate: float) -> Stage:
        return Factors(half(), half(), float(rate), 16.0, beta)

    return WeightRecipe(at=at, rates=_RATES, statistics=Statistics(drift=True), nominal=float(bits))
