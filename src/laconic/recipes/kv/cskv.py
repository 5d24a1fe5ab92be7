"""CSKV: low-rank latents of a layer's keys and values, a window beside them as it is."""

from ...core.combine import chain
from ...core.errors import BadConfig
from ...core.stage import Stage
from ...entropy.coders import Pack
from ...quantize.base import Quantizer
from ...quantize.codebooks import Uniform
from ...quantize.scales import Along, GroupScale, MinMax
from ...sources.kv.recipe import CacheRecipe, half
from ...transforms.joint import JointLatents


def cskv(bits: float = 4.0, latent_bits: int = 16, keys: float = 1.0, window: int = 32) -> CacheRecipe:
    """Fewer channels: all heads of a layer share a few latents, keys before RoPE; attention reads them behind an exact window.

        k ─ RoPE taken away ─ heads side by side ─ − mean ─ B_k ─▶ latents in fp16, or `latent_bits` by channel
        v ─────────────────── heads side by side ─ − mean ─ B_v ─▶ latents in fp16, or `latent_bits` by token

    bits: of a value that is coded, without scales; the rank is bits / latent_bits of the channels. keys: rank of keys over
    the mean rank, in (0, 2). Rate: bits, with quantized latents 32 / 64 · bits / latent_bits for their scales,
    and the window. Fitted once, to calibration or the first prompt.

    Source: Wang et al. 2024, CSKV (2409.10593), section 2 (bi-branch cache, layer-wise loss, quantized latents). Differs: the
    paper starts from ASVD of the projections and descends ‖K − K̂‖² + ‖V − V̂‖²; that loss has its minimum in closed form,
    the Karhunen–Loève basis of keys and of values, and it is taken, with their means; keys and values get the same rank, where
    the authors give keys less (here KL .0054 with three quarters of the mean rank, .0038 with all of it).
    Claim: the layer-wise loss beats ASVD of the projections, and quantized latents a lower rank. Decoding english-llama-7m
    (tokens 768 to 1,024 of three texts, 32 at a time), KL .0038 at 4.63 true bits and .027 at 2.74 in 16-bit latents, where ASVD
    has .063 and .118; .0012 at 2.98 in 4-bit latents. Keys by channel and values by token, before RoPE, have .0105 at 3.21.
    """
    if latent_bits not in (2, 3, 4, 8, 16):
        raise BadConfig(f"latents of {latent_bits} bits; 2, 3, 4, 8 or 16 are right")
    if not 0 < keys < 2:
        raise BadConfig(f"{keys} of the mean rank for keys; above 0 and below 2 is right")

    def at(part: float, axis: int) -> Stage:
        codes = half() if latent_bits == 16 else _codes(latent_bits, axis)
        return chain(JointLatents(min(1.0, part)), codes)

    return CacheRecipe(
        keys=lambda rate: at(rate / latent_bits * keys, -2),
        values=lambda rate: at(rate / latent_bits * (2 - keys), -1),
        nominal=bits,
        window=window,
        rope="before",
        learns="once",
    )


def _codes(bits: int, axis: int) -> Stage:
    return chain(Quantizer(Uniform(1 << bits, 0.0), GroupScale(Along(64, axis), MinMax())), Pack())
