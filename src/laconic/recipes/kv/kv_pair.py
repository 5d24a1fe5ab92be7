"""KIVI: keys by channel, values by token, the last tokens in half precision."""

from ...core.combine import chain
from ...core.errors import BadConfig
from ...core.stage import Stage
from ...entropy.coders import Pack
from ...quantize.base import Quantizer
from ...quantize.codebooks import Uniform
from ...quantize.scales import Along, GroupScale, MinMax
from ...sources.kv.recipe import CacheRecipe, levels


def kv_pair(bits: int = 2, group: int = 32, window: int = 32) -> CacheRecipe:
    """A layer's keys and values, asymmetric `bits`-bit codes: keys by channel, values by token, a recent window in fp16.

        (2, heads, tokens, dim) ─ halves ─┬─ keys ─── tail ─┬─ past: `group` tokens of a channel share scale and zero
                                          │                 └─ the last `window` tokens, and what is left of a group: fp16
                                          └─ values ─ tail ─┬─ past: `group` channels of a token share scale and zero
                                                            └─ the last `window` tokens: fp16

    Keys have a few channels of large magnitude at all tokens, so a scale must not be shared between channels; values have
    none, and one attention weight multiplies the whole value of a token. Rate: bits + 32 / group, and the window.

    Source: Liu et al. 2024, KIVI (2402.02750), section 3, Alg. 1. Differs: the window of keys is `window` to
    window + group − 1 tokens, where KIVI lets it grow from 0 to its residual length and then flushes it whole; in a cache
    that of values is as long, as both are coded together.
    Claim: on keys with outlier channels 2 bits by channel have less than half the error of 2 bits by token.
    """
    if not 1 <= bits <= 8:
        raise BadConfig(f"{bits} bits; 1 to 8 are right")
    if group < 1:
        raise BadConfig(f"group {group}; 1 or more is right")

    def at(rate: float, axis: int) -> Stage:
        return chain(Quantizer(Uniform(levels(rate), 0.0), GroupScale(Along(group, axis), MinMax())), Pack())

    return CacheRecipe(
        lambda rate: at(rate, -2), lambda rate: at(rate, -1), bits, group=group, value_group=1, window=window
    )
