"""laconic's own composition for gradients: few values, few magnitudes, adaptive codes, error memory."""

from ...quantize.sparse import SparseLevels
from ...sources.gradients.recipe import GradientRecipe


def ef_levels(fraction: float = 0.02, levels: int = 2, plain: str = "float16") -> GradientRecipe:
    """Of every gradient the largest `fraction` of values, as signs and `levels` magnitudes; what is lost is added to the next.

        y_t = SparseLevels(g_t + e_t),   e_{t+1} = g_t + e_t − y_t

    Axis 0 is time. About 9 bits a kept value at 1/50: 2 for sign and magnitude, 7 for the place. Gradients of one axis and short
    ones travel as `plain`.

    Source: Stich, Cordonnier & Jaggi 2018 (1809.07599), Alg. 1; Sattler et al. 2019, Sparse Ternary Compression (1903.02891).
    Differs: magnitudes of several levels, Lloyd–Max for the tail; codes of places adapt.
    """
    return GradientRecipe(lambda f: SparseLevels(f, levels), fraction, travels="whole", plain=plain)
