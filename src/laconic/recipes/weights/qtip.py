"""QTIP: rotated weights on a trellis, with block error feedback."""

from ...core.combine import chain
from ...core.stage import Stage
from ...entropy.coders import Pack
from ...quantize.base import Quantizer
from ...quantize.rounding import Feedback
from ...quantize.scales import Along, Float, GroupScale, Rms
from ...quantize.trellis import Trellis
from ...transforms.rotation import Hadamard


def qtip(bits: float = 2.0, states: int = 4096, damping: float = 0.01, seed: int = 0) -> Stage:
    """Trellis-coded weights at exactly `bits` (1 to 4 in steps of ¼ or finer), near the Gaussian bound, without a codebook.

        w ─ H with random signs ─▶ / rms of the row ─▶ 16 × 16 tiles on a tail-biting trellis ─▶ `bits` each

    The rotation makes the weights nearly Gaussian, which is what the trellis' computed levels are for. With
    `Stats(hessian)` the sweep goes by blocks of 16 columns: W_b is coded, its error spread over the columns still free.
    Rows come in multiples of 16.

    Source: Tseng et al. 2024, QTIP (2406.11235): section 3.1 (bitshift trellis, tail-biting in Alg. 4), Alg. 5 (block
    LDLQ). Differs: a convolutional trellis whose levels are Gaussian quantiles (see `Trellis`) in place of hashed ones; the
    inputs' side alone is rotated; a scale per row instead of one per matrix.
    Claim: 2-bit mean squared error .071 or less on Gaussian weights (table 1: .071 with 2^12 states, .069 with 2^16).
    """
    scale = GroupScale(Along(), Rms(), Float())
    trellis = Trellis(bits, states, length=256, rows=16)
    return chain(Hadamard(seed), Quantizer(trellis, scale, Feedback(damping)), Pack())
