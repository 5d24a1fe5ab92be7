"""GPTQ: a uniform grid in groups, columns rounded in order with their errors fed to those that are still free."""

from ...core.combine import chain
from ...core.errors import BadConfig
from ...core.stage import Stage
from ...entropy.coders import Pack
from ...quantize.base import Quantizer
from ...quantize.codebooks import Uniform
from ...quantize.rounding import Feedback
from ...quantize.scales import Along, GroupScale, MinMax, Search
from ...quantize.zeros import IntegerZero


def gptq(bits: int = 4, group: int = 64, damping: float = 0.01) -> Stage:
    """Weights in 1 to 8 bits with a half-float step and a `bits`-bit zero point for every `group` of a row.

        w ─ range searched, group by group ─▶ GPTQ sweep, columns by activation ─▶ `bits`-bit codes

    Fit with `Stats(hessian)`, the second moment of the layer's inputs; without one the codes are rounded to nearest.
    group: 0 is a whole row. A weight takes bits + (16 + bits) / group. damping: of the Hessian, as a part of its mean.

    Source: Frantar et al. 2022, GPTQ (2210.17323), Alg. 1, with its later static groups and activation order. Differs: the
    range of a group is searched behind the stored step, errors weighted by the Hessian's diagonal, to the power 3 (its
    reference code: 2.4, unweighted): feedback moves values outward, so ends count for more than squares say.
    Claim: a third of the layers' error of rounding to nearest at the same bits, or less (paper: 3 and 4 bits stay near
    the original where nearest collapses).
    """
    if not 1 <= bits <= 8:
        raise BadConfig(f"{bits} bits; 1 to 8 are right")
    scale = GroupScale(Along(group), Search(MinMax(True), 0.6, 1.1, 11, 3.0), IntegerZero(bits))
    return chain(Quantizer(Uniform(1 << bits, 0.0), scale, Feedback(damping, "descending")), Pack())
