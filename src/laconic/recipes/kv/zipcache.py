"""ZipCache: salient tokens, found by normalized attention, get more bits; channels are scaled once for all tokens."""

from ...core.combine import chain, partition
from ...core.errors import BadConfig
from ...core.stage import Stage
from ...entropy.coders import Pack
from ...quantize.base import Quantizer
from ...quantize.codebooks import Uniform
from ...quantize.scales import Along, GroupScale, MinMax
from ...quantize.tokens import Salient
from ...sources.kv.recipe import CacheRecipe
from ...transforms.channels import ChannelSeparable, JoinHeads


def zipcache(
    bits: float = 3.0, high: int = 4, low: int = 2, group: int = 64, salience: str = "normalized", window: int = 32
) -> CacheRecipe:
    """Tokens that are looked at in `high` bits, the others in `low`; one scale and zero a token behind √max of each channel.

        x ─ heads side by side ─ / √(max |x_j|) ─┬─ salient tokens: `high` bits, one scale and zero a token
                                                 └─ the others: `low` bits, the same

    bits: mean of both, so that (bits − low) / (high − low) of the tokens are salient. salience: the attention that tokens get
    from a few probe queries, "normalized" by how many of them see the token, or "accumulated". Tokens that leave the window
    together are judged together, once. Rate: bits + 32 / (n_heads · d) + 16 / tokens at once + 1 / (n_heads · d).

    Source: He et al. 2024, ZipCache (2405.14256), Algorithms 1 to 3. Differs: keys are coded as values are, where the paper has
    them by channel; probes of a prompt lie evenly, not at random; a token is judged once and not again every hundred tokens.
    """
    if not 1 <= low < high <= 8:
        raise BadConfig(f"{low} and {high} bits; the lower first, from 1 to 8, are right")

    def codes(n_bits: int) -> Stage:
        return chain(Quantizer(Uniform(1 << n_bits, 0.0), GroupScale(Along(0, -1), MinMax())), Pack())

    def at(rate: float) -> Stage:
        share = (rate - low) / (high - low)
        if not 0 <= share <= 1:
            raise BadConfig(f"{rate} bits in the mean of {low} and {high}; a rate between them is right")
        front = JoinHeads(), ChannelSeparable()
        if share in (0, 1):
            return chain(*front, codes(high if share else low))
        return chain(*front, partition(Salient(share), codes(high), codes(low)))

    return CacheRecipe(at, at, bits, group=group, window=window, learns="group", salient=salience)
