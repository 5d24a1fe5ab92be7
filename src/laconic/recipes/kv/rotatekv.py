"""RotateKV: keys rotated over several heads before RoPE, channels in the order of their size, attention sinks spared."""

from ...core.combine import chain
from ...core.stage import Stage
from ...entropy.coders import Pack
from ...quantize.base import Quantizer
from ...quantize.codebooks import Uniform
from ...quantize.scales import Along, GroupScale, MinMax
from ...sources.kv.exact import sparing
from ...sources.kv.recipe import CacheRecipe, levels
from ...transforms.channels import JoinHeads
from ...transforms.reorder import Reorder
from ...transforms.rotation import Hadamard


def rotatekv(bits: int = 2, heads: int = 4, group: int = 64, massive: float = 300.0, window: int = 32) -> CacheRecipe:
    """Outliers spread by Hadamard transforms, then `bits`-bit codes by token whose groups hold channels of like size.

        k ─ RoPE taken away ─ `heads` heads side by side ─ H ─ channels by size ─▶ groups of a token share scale and zero
        v ─ heads side by side, H on each ─▶ the same

    A rotation over several heads spreads what a single head has too much of; the order is learned once. massive: tokens
    whose input has a value this many times the median one are attention sinks and stay in sixteen bits.
    Rate: bits + 32 / group, the sinks and the window.

    Source: Su et al. 2025, RotateKV (2501.16383), sections 4.1 to 4.3. Differs: sinks are the tokens with massive activations by
    a threshold, at any time, where the paper takes the tokens of the 20 largest of a prompt; levels are 2^bits.
    Claim: on english-llama-7m at 2 bits by token in groups of 64, KL .057 as it is, .036 rotated by head, .027 as here. KIVI's
    codes by channel have .024 at the same true rate: that the paper is ahead of them is not reproduced here, where a head group
    is 128 channels, and no token has massive activations.
    """

    def codes(rate: float) -> tuple[Stage, Stage]:
        return Quantizer(Uniform(levels(rate), 0.0), GroupScale(Along(group, -1), MinMax())), Pack()

    def keys(rate: float) -> Stage:
        return chain(JoinHeads(heads), Hadamard(None), Reorder(), *codes(rate))

    def values(rate: float) -> Stage:
        return chain(Hadamard(None), JoinHeads(heads), *codes(rate))

    return CacheRecipe(
        keys, values, bits, group=8, window=window, rope="before", learns="once", store=sparing(massive), inputs="peaks"
    )
