"""Scalar quantization by ranges: the plain baseline of 4, 6 or 8 bits."""

from ...core.combine import chain
from ...core.stage import Stage
from ...quantize.coordinates import RangeCodes
from ...transforms.heads import OneHead


def scalar(bits: int = 8) -> Stage:
    """Each coordinate on 2^bits even steps between its least and its greatest training value: no transform, no norms.

    Shapes: (..., d). The model takes 8 d bytes; codes lie as bit planes of 64 vectors, and are scanned as they lie.
    Source: Bennett 1948, "Spectra of quantized signals" (even steps, error step² / 12); the scalar quantizers of 4, 6
    and 8 bits in Douze et al. 2024, "The Faiss library" (2401.08281), section 4. Differs: every whole number of bits from 1 to 8.
    Claim: squared error of (range / 2^bits)² / 12 a coordinate where steps are small (Bennett).
    """
    return chain(OneHead(), RangeCodes(bits=bits))
