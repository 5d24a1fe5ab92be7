"""Vectors in their principal axes, coded by an entropy-coded trellis: the fewest bits at a given error."""

from ...core.combine import chain
from ...core.stage import Stage
from ...quantize.fixed_step import FixedStep
from ...transforms.klt import KLT
from ...transforms.scaling import Center


def klt_trellis(bits: float = 2.0, states: int = 256) -> Stage:
    """Embeddings at any rate, of which every axis takes what its variance earns: centre, KLT, entropy-coded trellis.

        x ─ −μ ─ Bᵀ ─▶ uncorrelated coordinates ─▶ trellis of one step for all, a pmf for each ─ rANS ─▶ bytes

    One step for all coordinates is reverse water-filling: where the variance is below the step nothing is sent. The codes
    have no fixed length, so many vectors are coded together and read together; a search decodes them block by block, at the
    speed of the entropy coder. For searches at memory speed take `klt-levels` at about half a bit more.

    Shapes: (..., n, d). The model takes 2 d² + 4 d bytes.
    Source: Huang & Schultheiss 1963 (transform coding); Cover & Thomas, section 10.3.3 (reverse water-filling); Fischer &
    Wang 1992 (entropy-coded TCQ). Differs: the step is learned from the training vectors, so `bits` holds on average.
    Claim: .1 to .5 dB from the Gaussian rate–distortion bound (Marcellin 1994; here with 256 states, .2 dB at 2 bits).
    """
    return chain(Center(), KLT(), FixedStep(bits=bits, axes=(-1,), states=states))
