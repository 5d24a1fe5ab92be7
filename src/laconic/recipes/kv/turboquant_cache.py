"""TurboQuant for caches: keys and values rotated, coordinate by coordinate, with no data and no calibration."""

from ...core.combine import chain
from ...core.stage import Stage
from ...quantize.coordinates import LawCodes
from ...sources.kv.recipe import CacheRecipe
from ...transforms.rotation import RandomRotation


def turboquant_cache(bits: int = 3, seed: int = 0, window: int = 32, sinks: int = 0) -> CacheRecipe:
    """Every vector as its size and the Lloyd–Max codes of its rotated direction.

        x ─ Q ─ / rms ─▶ each coordinate has the Beta law of a random point of the sphere ─▶ its Lloyd–Max code

    Rate: bits + 16 / d a value, and the window. Keys are coded as the model hands them over, after RoPE: a query meets them
    rotated once by Q.

    Source: Zandieh, Daliri, Hadian & Mirrokni 2025, TurboQuant (2504.19874), Algorithm 1 (the mse variant, the better one under
    a softmax). Differs: the root mean square in float16; whole bits only, no split of channels into two rates.
    """

    def at(rate: float) -> Stage:
        return chain(RandomRotation(seed), LawCodes(rate))

    return CacheRecipe(at, at, bits, group=8, window=window, sinks=sinks)
