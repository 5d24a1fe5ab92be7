"""TurboQuant: vectors on a sphere, rotated, coordinate by coordinate; and its variant without bias."""

from ...core.combine import chain, residual
from ...core.errors import BadConfig
from ...core.stage import Stage
from ...entropy.coders import Pack
from ...quantize.base import Quantizer
from ...quantize.codebooks import LloydMax
from ...quantize.sketch import SignSketch
from ...transforms.rotation import RandomRotation
from ...transforms.scaling import UnitNorm


def turboquant(bits: int = 3, seed: int = 0) -> Stage:
    """Vectors at `bits` a coordinate and 16 for the norm, with no training: rotate, then Lloyd–Max for the known law.

        x ─ / ‖x‖ ─ Q ─▶ each coordinate has the Beta law of a random point of the sphere ─▶ its Lloyd–Max code

    Shapes: (..., d), d from 2 to 4096.
    Source: Zandieh, Daliri, Hadian & Mirrokni 2025, TurboQuant (2504.19874), Algorithm 1 (TurboQuant-mse).
    Differs: nothing but the norm's precision, float16 relative to the largest.
    Claim: distortion .36, .117, .03, .009 per unit norm at 1 to 4 bits (theorem 1; .03 is a rounding of .034).
    """
    if not 1 <= bits <= 8:
        raise BadConfig(f"bits={bits}; 1 to 8 are right")
    return chain(UnitNorm(), RandomRotation(seed), Quantizer(LloydMax(1 << bits, "sphere")), Pack())


def turboquant_prod(bits: int = 3, seed: int = 0) -> Stage:
    """TurboQuant whose inner products have no bias: one bit less for the value, one for a sketch of what is left.

        x ─ turboquant(bits − 1) ─▶ x̂,   r = x − x̂ ─ sign(S r), ‖r‖ ─▶   ⟨y, x⟩ ≈ ⟨y, x̂⟩ + √(π/2d) ‖r‖ ⟨S y, sign(S r)⟩

    The slope of estimated on true inner products is 1; the squared error of the reconstruction is larger than that of
    `turboquant` at the same bits, and for softmax attention that one is the better choice.

    Source: Zandieh et al. 2025 (2504.19874), Algorithm 2 (TurboQuant-prod). Differs: S is orthogonal, not Gaussian (less
    variance, see `SignSketch`); two float16 norms a vector.
    Claim: no bias, where the mse variant shrinks inner products by 2/π at one bit.
    """
    if not 1 <= bits <= 9:
        raise BadConfig(f"bits={bits}; 1 to 9 are right")
    sketch = chain(SignSketch(seed + 1), Pack())
    return residual(turboquant(bits - 1, seed), sketch) if bits > 1 else sketch
