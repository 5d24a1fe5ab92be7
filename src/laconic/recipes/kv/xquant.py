"""XQuant: the inputs of layers are cached, and keys and values computed from them when they are read."""

from ...core.combine import chain
from ...core.errors import BadConfig
from ...core.stage import Stage
from ...entropy.coders import Pack
from ...quantize.base import Quantizer
from ...quantize.codebooks import Uniform
from ...quantize.scales import Along, GroupScale, MinMax
from ...sources.kv.inputs import input_store, stream_store
from ...sources.kv.recipe import CacheRecipe


def xquant(bits: int = 4, group: int = 128, window: int = 16) -> CacheRecipe:
    """Instead of keys and values the input X of the attention module, quantized; at reading K = RoPE(X̂ W_k), V = X̂ W_v.

        X ─ as wide as the keys alone (every query its own key-value head) ─▶ X̂, groups of `group` channels of a token
        X ─ narrower keys and values (grouped queries) ─┬─ X U_k ─▶ groups of 64 tokens of a channel
                                                        └─ X U_v ─▶ groups of `group` channels of a token

    U_k and U_v span what the projections see. bits: of a coded value of X. Rate: (bits + 32 / group) · width of X over that of
    keys and values together, half a bit for each bit where heads are not grouped; the window holds X beside keys and values.
    The model does more work at each read, two projections of the history. As a packet, which has no model at hand, keys and
    values themselves go through the same codecs.

    Source: Tomar et al. 2025, XQuant (2508.10395), sections 3.1 and 3.3. Differs: latents of all layers in the same bits.
    Claim: where every query has its own key-value head, 4 bits of X take the bytes of 2 bits of keys and values and lose less
    than a third of what those lose. Not reproduced here under grouped queries: decoding english-llama-7m (two key-value heads of
    four, so X is no narrower; tokens 768 to 1,024 of three texts, 32 at a time) KL .0185 and .0028 with 2 and 3 bits, and
    .0105 and .0017 with KIVI's codes before RoPE in the same bits and .84 true bits less, since the window holds X as well.
    """
    _check(bits, group)
    return CacheRecipe(
        keys=lambda rate: _codes(rate, 64, -2),
        values=lambda rate: _codes(rate, group, -1),
        nominal=bits,
        window=window,
        rope="before",
        store=input_store,
        inputs="attention",
    )


def xquant_cl(bits: int = 3, base_bits: int = 4, group: int = 128, window: int = 16) -> CacheRecipe:
    """XQuant across layers: of the residual stream only what a layer changed, against the decoded stream of the layer before.

        x_i − x̂_{i−1} ─▶ `bits`, groups of `group` channels of a token ─▶ x̂_i = x̂_{i−1} + …, X̂_i = norm(x̂_i)

    The first three layers take `base_bits`. Closed loop: a layer's error is that of its own codes, whatever came before.

    Source: Tomar et al. 2025, XQuant (2508.10395), section 3.2. Differs: the stream and not X is coded in all layers.
    Claim: 3 bits of the change beat 3 bits of X in fewer bytes. Decoding english-llama-7m (tokens 768 to 1,024 of three texts,
    32 at a time) KL .0025 at 3.76 true bits and .0007 at 4.37, with XQuant .0028 at 5.00, with KIVI's codes before RoPE .0105
    at 3.21 and .0017 at 4.16.
    """
    _check(bits, group)
    _check(base_bits, group)
    return CacheRecipe(
        keys=lambda rate: _codes(rate, group, -1),
        values=lambda rate: _codes(base_bits, group, -1),
        nominal=bits,
        group=16,
        window=window,
        rope="before",
        store=stream_store,
        inputs="residual",
    )


def _check(bits: float, group: int) -> None:
    if bits != int(bits) or not 1 <= bits <= 8:
        raise BadConfig(f"{bits} bits; whole numbers from 1 to 8 are right")
    if group < 1:
        raise BadConfig(f"group {group}; 1 or more channels are right")


def _codes(bits: float, group: int, axis: int) -> Stage:
    _check(bits, group)
    return chain(Quantizer(Uniform(1 << int(bits), 0.0), GroupScale(Along(group, axis), MinMax())), Pack())
