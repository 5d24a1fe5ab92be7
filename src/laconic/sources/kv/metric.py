"""How errors of keys hurt: the second moment of the queries that meet them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from .rope import Rope


def query_metric(queries: Tensor, n_heads: int, rope: Rope | None) -> Tensor:
    """(n_heads, d, d) second moment of the queries that meet each head's keys.

    Where keys are coded before RoPE a query meets them under every difference of positions; over long distances the turn of
    a pair is uniform, and what is left of the moment is a mean power for each pair.
    """
    b, hq, n, d = queries.shape
    flat = queries.reshape(b, n_heads, hq // n_heads, n, d).transpose(0, 1).reshape(n_heads, -1, d)
    if rope is None:
        return flat.transpose(1, 2) @ flat / flat.shape[1]
    power = flat.square().mean(1)
    n_pairs = rope.n_rotated // 2
    turned = power[:, : rope.n_rotated]
    pairs = (
        turned.reshape(n_heads, n_pairs, 2).mean(2) if rope.interleaved else turned.reshape(n_heads, 2, n_pairs).mean(1)
    )
    spread = pairs.repeat_interleave(2, 1) if rope.interleaved else pairs.repeat(1, 2)
    return torch.diag_embed(torch.cat([spread, power[:, rope.n_rotated :]], 1))
