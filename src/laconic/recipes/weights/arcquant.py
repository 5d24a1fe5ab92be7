"""ARCQuant: NVFP4 on both sides of the product, the inputs' residual in channels added to it."""

from ...core.combine import chain
from ...core.stage import Stage
from ...entropy.coders import Pack
from ...quantize.base import Quantizer
from ...quantize.codebooks import Minifloat
from ...quantize.rounding import Feedback
from ...quantize.scales import AbsMax, Along, GroupScale, Search, TwoLevel


def arcquant(damping: float = 0.01) -> Stage:
    """Weights in plain NVFP4 with error feedback, 4.5 bits: what stays on disk of a system that is about the inputs.

        [Q(x), Q(x − Q(x))_K] · [Q(W), Q(W)_K]ᵀ:   the added columns of W are copies, so nothing more is stored

    The product with augmented inputs is `sources.weights.activations.augmented_nvfp4`. No rotation: groups of 16 keep
    outliers to themselves. Fit with `Stats(hessian)`.

    Source: Meng et al. 2026, ARCQuant (2601.07475). Differs: weights are rounded with error feedback, in their own channel
    order.
    Claim: four-bit inputs with residual channels come near inputs of eight bits, and beat a rotation in NVFP4. With 16
    outlier channels of 256 (synthetic) 16 residual channels take more than 95 % of the inputs' error away, at 4.78 bits.
    The trained layers here have no outlier channels: 64 residual channels lower the error of W4A4 by 8 to 29 %, a rotation
    raises it by 2 to 23 %.
    """
    scale = GroupScale(Along(16), Search(AbsMax(), 0.6, 1.1, 8), TwoLevel())
    return chain(Quantizer(Minifloat("e2m1"), scale, Feedback(damping, "descending")), Pack())
