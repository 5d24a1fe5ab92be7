"""Latents of all heads of a layer together: a basis that one layer's keys (or values) share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from ..core.errors import BadConfig, BadInput, CorruptStream
from ..core.stage import Side, Stats, learned
from .base import Transform, fitted, refuse
from .heads import HeadBasis

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class JointLatents(Transform):
    """y = (x − mean) B over the heads of a token laid side by side: `share` of their n_heads · d coordinates, the best ones.

    A head alone is short, and what heads have in common is sent once. B is the Karhunen–Loève basis of the joined vectors,
    which is where the layer-wise loss ‖x − x̂‖² has its minimum over all pairs of a down- and an up-projection.
    share: above 0 to 1; the rank is its part of n_heads · d, rounded, at least 1.

    Shapes: x (..., n_heads, n_tokens, d) -> (..., 1, n_tokens, rank). Cost: 16 (rank + 1) n_heads · d bits in the model.
    Source: Eckart & Young 1936.
    """

    share: float = 0.25
    basis: HeadBasis = HeadBasis()
    heads: np.ndarray | None = learned("uint16", "header")

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise BadConfig(f"a share of {self.share} of the coordinates; above 0 to 1 is right")

    def fit(self, x: Tensor, stats: Stats | None = None) -> Self:
        joined = _joined(x)
        rank = max(1, round(self.share * joined.shape[-1]))
        basis = replace(self.basis, rank=rank).fit(joined)
        return self.replace(basis=basis, heads=np.array([x.shape[-3]]))

    def push(self, stats: Stats) -> Stats:
        refuse(self, stats, "hessian", "importance", "mask", "drift")
        return stats

    def encode(self, x: Tensor) -> tuple[Tensor, Side]:
        return self.basis.encode(_joined(x))

    def decode(self, y: Tensor, side: Side) -> Tensor:
        heads = fitted(self, "heads")
        x = self.basis.decode(y, {})
        if heads.shape != (1,) or not heads[0] or x.shape[-1] % heads[0]:
            raise CorruptStream(
                f"heads {heads} that share {x.shape[-1]} coordinates; a number that divides them is right"
            )
        n = int(heads[0])
        return x.squeeze(-3).unflatten(-1, (n, x.shape[-1] // n)).movedim(-2, -3).contiguous()


def _joined(x: Tensor) -> Tensor:
    """(..., n_heads, n_tokens, d) -> (..., 1, n_tokens, n_heads · d)."""
    if x.ndim < 3 or not x.numel():
        raise BadInput(f"an array of shape {tuple(x.shape)}; (…, heads, tokens, dim) with values is right")
    return x.movedim(-3, -2).flatten(-2).unsqueeze(-3)
