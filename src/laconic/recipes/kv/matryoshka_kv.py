"""MatryoshkaKV: orthogonal bases of heads, trained so that any number of first coordinates will do."""

from ...core.combine import chain
from ...core.stage import Stage
from ...quantize.ranks import HeadRanks
from ...sources.kv.matryoshka import Matryoshka
from ...sources.kv.recipe import CacheRecipe
from ...transforms.heads import HeadBasis


def matryoshka_kv(bits: float = 6.0, steps: int = 200, window: int = 32) -> CacheRecipe:
    """Of every head the first coordinates in a basis that was trained through the model, in fp16, more of them where it matters.

        k, v of a head ─ − mean ─ U (PCA, then trained: U (I + A)(I − A)⁻¹, A skew) ─▶ the first r_h coordinates
        a step: ranks drawn for every layer and head, loss KL(model ‖ model with what is left)
        then ranks: the head whose cut costs the model least is cut first, to bits / 16 of all coordinates

    Rate: bits and nothing a token; the window. Fitted with `laconic.kv.fit`; a cache that learns from its first prompt has the
    principal components, untrained, and ranks by variance.

    Source: Lin et al. 2024, MatryoshkaKV (2410.14731), sections 3.2 to 3.4. Differs: keys before RoPE; loss on predictions
    alone; losses of cuts are measured one head at a time and taken to add up, where the paper measures anew after each.
    """

    def at(rate: float) -> Stage:
        return chain(HeadBasis(), HeadRanks(min(1.0, rate / 16)))

    return CacheRecipe(at, at, bits, window=window, rope="before", learns="once", tune=Matryoshka(steps))
