"""Sparse gradients with error memory."""

from ...core.combine import chain
from ...entropy.coders import Rans
from ...entropy.planes import BytePlanes, Rows
from ...sources.gradients.recipe import GradientRecipe
from ...transforms.cast import Half
from ...transforms.select import TopK


def ef_topk(fraction: float = 0.01) -> GradientRecipe:
    """A sequence of gradients, of each only the largest `fraction` of values; what was left out is added to the next.

        y_t = TopK(g_t + e_t),   e_{t+1} = g_t + e_t − y_t

    Axis 0 is time. Values are float16, positions Golomb–Rice coded gaps; the decoder needs no memory.

    Source: Stich, Cordonnier & Jaggi 2018, Sparsified SGD with Memory (1809.07599), Alg. 1. Differs: positions are coded
    near their entropy instead of as 32-bit integers.
    Claim: sums of decoded gradients follow sums of gradients: the memory stays bounded.
    """
    return GradientRecipe(lambda f: chain(TopK(f), Half(), BytePlanes(), Rows(Rans())), fraction)
