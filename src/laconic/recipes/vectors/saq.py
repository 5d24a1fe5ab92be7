"""SAQ: principal axes, segments with bits of their own, and codes that are adjusted to point where the vector points."""

from ...core.combine import chain
from ...core.stage import Stage
from ...quantize.segments import SegmentCodes
from ...transforms.klt import KLT
from ...transforms.rotation import RandomRotation
from ...transforms.scaling import Center


def saq(bits: float = 4.0, unit: int = 16, unbiased: bool = True, seed: int = 0) -> Stage:
    """Embeddings at `bits` a coordinate, factors counted: PCA, a dynamic programme that cuts it, adjusted codes.

        x ─ −μ ─ PCA ─▶ segments of 16 or more coordinates, b_s bits each, Σ n_s b_s + 16 ≤ bits · d
          each: random rotation ─ grid ─ coordinate descent on the cosine ─▶ codes, and f = ‖o‖² / ⟨o, c⟩

    ⟨q, ô⟩ estimates ⟨q, o⟩ without bias. `unbiased=False` gives the least squared error instead.

    Shapes: (..., d). The model takes 2 d² + 2 d bytes and 4 a segment.
    Source: Li et al. 2025, SAQ. Differs: see `SegmentCodes`; segments are multiples of 16 coordinates, not of 64.
    Claim: adjustment brings 1 − cos² at 2 bits from .151 to .116 for Gaussian vectors of 128 coordinates.
    """
    return chain(Center(), KLT(), SegmentCodes(bits=bits, unit=unit, unbiased=unbiased, seed=seed))


def rabitq(bits: float = 4.25, seed: int = 0) -> Stage:
    """One random rotation of the whole centred vector and adjusted codes of one width: a RaBitQ-like baseline, 1 to 8 bits.

    bits: with 16 / d for the factor, so 1 + 16 / d is the least. Source: Gao et al. 2024, extended RaBitQ. Differs: codes by
    coordinate descent instead of an enumeration of scales; the factor is one float16.
    """
    return chain(Center(), RandomRotation(seed), SegmentCodes(bits=bits, adaptive=False, seed=seed + 1))
