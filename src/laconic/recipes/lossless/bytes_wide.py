"""Bytes by the widest context mixing."""

from ...core.stage import Stage
from ...entropy.contextmix import ContextMix


def bytes_wide(table_bits: int = 26) -> Stage:
    """Any bytes without loss, as small as is possible here: 24 to 26 contexts by kind of data, mixed in two layers.

        p_s = squash(Σ w_si · x_i),   p = squash(Σ v_s · stretch(p_s));   weights w_s selected by context s

    Source: Mahoney 2005, "Adaptive Weighing of Context Models for Lossless Data Compression", sections 2.2 and 3; mixers
    of mixers as in the later PAQ8 family. Differs: integers throughout, so that every machine decodes the same; contexts,
    states and constants are our own; the kind of data is found beforehand and sent. See `kernels.contextmix`.
    Within a packet the memory is bounded by what a packet may use; `laconic compress -9` takes more and codes smaller.

    Claim: `alice29.txt` (152,089 bytes) smaller than zpaq -m5, which takes 37,600.
    """
    return ContextMix(table_bits)
