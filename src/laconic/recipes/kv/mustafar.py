"""Mustafar: unstructured sparsity, the largest values of every token's key and value with a bitmap."""

from ...core.combine import chain
from ...core.errors import BadConfig
from ...core.stage import Stage
from ...entropy.coders import Pack
from ...quantize.base import Quantizer
from ...quantize.codebooks import Uniform
from ...quantize.scales import Along, GroupScale, MinMax
from ...sources.kv.recipe import CacheRecipe, half
from ...transforms.prune import KeepLargest


def mustafar(bits: float = 5.8, kept_bits: int = 16, window: int = 32) -> CacheRecipe:
    """Each head's key and value of a token keep their largest values; the map of where they lie takes a bit a value.

        x ─ largest (bits − 1) / kept_bits of each vector ─┬─ bitmap
                                                           └─ the values in fp16, or `kept_bits` bits by token

    One attention weight multiplies the whole value of a token, so that its largest numbers are those which matter. 5.8 bits
    keep 30 %. Rate: bits, with quantized values 32 / d beside, and the window.

    Source: Joo et al. 2025, Mustafar (2505.22913), sections 3 and 4. Differs: no offsets and no padding of tiles, which its
    kernel needs; kept values may be quantized, which the paper names as a companion.
    Claim: on english-llama-7m with 30 and 50 % of the values kept KL .085 and .013, where as many channels kept whole have .31
    and .15. At equal bytes quantization is ahead by far: KIVI's codes have .0008 at 5.00 true bits.
    """
    if kept_bits not in (2, 3, 4, 6, 8, 16):
        raise BadConfig(f"values of {kept_bits} bits; 2, 3, 4, 6, 8 or 16 are right")

    def at(rate: float) -> Stage:
        share = (rate - 1) / kept_bits
        if not 0 < share <= 1:
            raise BadConfig(f"{rate} bits a value, 1 of them for the bitmap; above 1 to {1 + kept_bits} are right")
        if kept_bits == 16:
            return chain(KeepLargest(share), half())
        scale = GroupScale(Along(0, -1), MinMax())
        return chain(KeepLargest(share), Quantizer(Uniform(1 << kept_bits, 0.0), scale), Pack())

    return CacheRecipe(at, at, bits, group=8, window=window)
