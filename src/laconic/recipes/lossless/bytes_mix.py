"""Bytes by context mixing."""

from ...core.stage import Stage
from ...entropy.bytemix import ByteMix


def bytes_mix(table_bits: int = 24) -> Stage:
    """Any bytes without loss: every bit predicted by a mix of many contexts, then arithmetic coded.

        p = squash(Σ w_i · stretch(p_i)),   w_i += η · (bit − p) · stretch(p_i)

    Source: Mahoney 2005, "Adaptive Weighing of Context Models for Lossless Data Compression", section 2.2 (logistic
    mixing as in PAQ7 and later). Differs: integers throughout, so that every machine decodes the same; see
    `kernels.bytemix`.
    Claim: smaller than bzip2 and xz on text.
    """
    return ByteMix(table_bits)
