"""GEAR: a quantized cache, its error of low rank, and its outliers."""

from ...core.combine import chain, partition, residual
from ...core.stage import Stage
from ...entropy.coders import Pack
from ...quantize.base import Quantizer
from ...quantize.codebooks import Uniform
from ...quantize.lowrank import LowRankCode
from ...quantize.outliers import Extremes
from ...quantize.scales import Along, GroupScale, MinMax
from ...sources.kv.recipe import CacheRecipe, half, levels
from ...transforms.channels import JoinHeads


def gear(bits: int = 2, rank: float = 0.5, outliers: float = 0.02, group: int = 64, window: int = 32) -> CacheRecipe:
    """X ≈ D̂ + L + S: extremes of each vector in sixteen bits, the rest quantized as KIVI does, what it lost as a product.

        x ─ heads side by side ─┬─ extremes of a channel (keys) or token (values): fp16, and where they are
                                ├─ the rest: `bits` bits, `group` values of a channel or a token share scale and zero
                                └─ what that loses ─▶ √Σ-weighted singular vectors in fp16

    rank: bits a value that the low rank may take, as it costs 16 r (tokens + n) / (tokens · n). 0 leaves it out.
    Rate: bits + 32 / group + rank + about 22 · outliers, and the window.

    Source: Kang et al. 2024, GEAR (2403.05527), section 3, Algorithm 1. Differs: one rank for all heads of a layer side by side,
    where a head alone is too short for a rank to pay; a full singular value decomposition in place of power iterations.
    Not reproduced on english-llama-7m: KL .0244 at 2.50 true bits as KIVI, .0212 at 2.93 with outliers, .0263 at 2.97 with a low
    rank, .0214 at 3.39 with both, where the third bit alone has .0039 at 3.50: the error of 2 bits has no low rank there.
    """

    def at(rate: float, axis: int) -> Stage:
        dense = chain(Quantizer(Uniform(levels(rate), 0.0), GroupScale(Along(group, axis), MinMax())), Pack())
        coded = partition(Extremes(outliers, axis), dense, half()) if outliers else dense
        return chain(JoinHeads(), residual(coded, LowRankCode(rank)) if rank else coded)

    return CacheRecipe(lambda rate: at(rate, -2), lambda rate: at(rate, -1), bits, group=group, window=window)
