"""Vectors in their principal axes, every axis with levels of its own number: fixed-length codes that a scan reads."""

from ...core.combine import chain
from ...core.stage import Stage
from ...quantize.coordinates import CoordinateCodes
from ...transforms.heads import OneHead
from ...transforms.klt import KLT
from ...transforms.scaling import Center


def klt_levels(bits: float = 4.0) -> Stage:
    """Embeddings at `bits` a coordinate on average, 0 to 8 for each: centre, KLT, Lloyd–Max levels of each coordinate.

        x ─ −μ ─ Bᵀ ─▶ coordinate j ─▶ 2^b_j levels of its own,   Σ b_j = bits · d, a bit where it takes most error away

    Codes have a fixed length and lie as bit planes of 64 vectors; nothing but codes is kept of a vector.

    Shapes: (..., d). The model takes 2 d² + 3 d bytes and 2 · 2^b_j for each coordinate.
    Source: Huang & Schultheiss 1963 (transform coding with unequal bits); Segall 1976 (allocation by return); Lloyd 1957, Max
    1960. Differs: levels are trained on each coordinate's own values.
    Claim: for Gaussian sources 1.5 bits or more a coordinate, the gain over equal bits without a transform is the ratio of
    the arithmetic to the geometric mean of the variances (Huang & Schultheiss, equation 27).
    """
    return chain(Center(), KLT(), OneHead(), CoordinateCodes(bits=bits))
