"""SpQR: sensitive weights in half precision, the rest in few bits with quantized scales."""

from ...core.combine import chain, partition
from ...core.errors import BadConfig
from ...core.stage import Stage
from ...entropy.coders import Pack
from ...quantize.base import Quantizer
from ...quantize.codebooks import Minifloat, Uniform
from ...quantize.rounding import Feedback
from ...quantize.rules import MostSensitive
from ...quantize.scales import AbsMax, Along, Bilevel, GroupScale, LeastSquares, MinMax, PowerOfTwo, Whole


def spqr(bits: int = 3, outliers: float = 0.01, group: int = 16) -> Stage:
    """A few weights whose rounding would hurt most stay in half precision; the others are rounded with error feedback.

        w ─ sensitivity ─┬─ most sensitive ──▶ half floats, positions as gaps
                         └─ the rest ─ bilevel scales ─▶ GPTQ sweep ─▶ `bits`-bit codes

    s_ij = (w_ij − Q(w_ij))² / (2 [H⁻¹]_jj). Scales and zero points have 3 bits each, themselves scaled in groups of 16.
    Fit with `Stats(hessian)`. outliers: their share; each takes 16 bits and log2(e / share) for its position.

    Source: Dettmers et al. 2023, SpQR (2306.03078), sections 3 and 4. Differs: outliers are found before the sweep, not inside
    it, and keep their own value (as good, measured); groups get least-squares scales; super-groups are neighbours in a row;
    positions are Golomb–Rice gaps instead of 16-bit indices.
    Claim: where a few input channels are large, 1 % outliers by sensitivity leave less than a third of the error that 1 % by
    magnitude leave (synthetic layer, 3 bits, groups of 16).
    """
    if not 1 <= bits <= 8:
        raise BadConfig(f"{bits} bits; 1 to 8 are right")
    book, scale = Uniform(1 << bits, 0.0), GroupScale(Along(group), LeastSquares(MinMax(True), 4, 6), Bilevel(3, 16))
    rounding = Feedback(order="descending")
    half = Quantizer(Minifloat("float16"), GroupScale(Whole(), AbsMax(), PowerOfTwo()))
    return partition(
        MostSensitive(outliers, book, scale),
        chain(Quantizer(book, scale, rounding), Pack()),
        chain(half, Pack()),
    )
