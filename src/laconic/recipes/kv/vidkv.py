"""VidKV: one or two bits by the range of a key's channel, three levels for values by channel."""

from ...core.combine import chain, partition
from ...core.errors import BadConfig
from ...core.stage import Stage
from ...entropy.coders import Pack
from ...quantize.base import Quantizer
from ...quantize.centred import CentredSign
from ...quantize.codebooks import Uniform
from ...quantize.scales import AbsMean, Along, GroupScale, MinMax
from ...quantize.tokens import Salient, WideChannels
from ...sources.kv.recipe import CacheRecipe
from ...transforms.dct import DCT


def vidkv(
    keys: float = 1.5, salient: float = 0.0, frequency: bool = False, group: int = 64, window: int = 32
) -> CacheRecipe:
    """Below two bits: key channels of wide range in 2 bits and the others in 1, values in log2 3, all along the tokens.

        k ─┬─ the keys − 1 of the channels with the widest range: 2 bits, `group` tokens share scale and zero
           └─ the others: one bit around their mean (frequency: of the cosine transform across channels)
        v ─┬─ salient tokens, a share `salient`: 2 bits by channel
           └─ the others: −1, 0 or 1 times mean |v| of `group` tokens of the channel

    keys: bits of a key, 1 to 2, the rate asked for. Rate: keys + 32 / group, log2 3 (packed within .5 %) + 16 / group.

    Source: Tao et al. 2025, VidKV (2503.16257), sections 3.2 and 3.3. Differs: signs are taken around the mean of a group, not
    around 0; a cosine transform in place of a Fourier transform, whose real and imaginary parts are twice as many numbers;
    salient tokens by attention in place of their likeness to a question; ternary values really take 1.59 bits.
    Claim: on english-llama-7m, text in place of video, KL .154 at 1.92 true bits for 1.5-bit keys, where 1 and 2 bits for all
    have .345 and .137, thus .22 between; values by token .193. A fifth of the tokens salient: .079 at 2.04. Below 2 bits by
    name, not in truth, and KIVI's codes have .024 at 2.50.
    """
    if salient and not 0 < salient < 1:
        raise BadConfig(f"{salient} of the tokens salient; 0 to below 1 is right")

    def codes(n_levels: int) -> Stage:
        statistic = {2: CentredSign(), 3: AbsMean(), 4: MinMax()}[n_levels]
        return chain(Quantizer(Uniform(n_levels), GroupScale(Along(group, -2), statistic)), Pack())

    def of_keys(rate: float) -> Stage:
        if not 1 <= rate <= 2:
            raise BadConfig(f"{rate} bits for keys; 1 to 2 are right")
        one = chain(DCT(), codes(2)) if frequency else codes(2)
        if rate in (1, 2):
            return one if rate == 1 else codes(4)
        return partition(WideChannels(rate - 1), codes(4), one)

    values = partition(Salient(salient), codes(4), codes(3)) if salient else codes(3)
    learns, score = ("group", "normalized") if salient else ("never", None)
    return CacheRecipe(of_keys, lambda rate: values, keys, group=group, window=window, learns=learns, salient=score)
