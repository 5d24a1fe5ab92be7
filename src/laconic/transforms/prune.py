"""Vectors of which only the largest values are kept, with a map of where they lie."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..core.errors import BadConfig, BadInput, CorruptStream, claim
from ..core.stage import Leaf, Side
from .base import Transform

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class KeepLargest(Transform):
    """The round(share · d) values of largest magnitude of every vector, in their order; the others count as 0.

    Shapes: x (..., d) -> (..., k). Of equal magnitudes the first. Side: a bitmap, one bit a value, and d.
    Source: Joo et al. 2025, Mustafar (2505.22913), section 3 (per-token magnitude) and 4 (bitmaps).
    """

    share: float = 0.3

    side: ClassVar[Mapping[str, Leaf]] = {"bitmap": Leaf("uint8", "indices"), "width": Leaf("int64", "header")}

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise BadConfig(f"{self.share} of the values kept; above 0 to 1 is right")

    def encode(self, x: Tensor) -> tuple[Tensor, Side]:
        import torch

        if not x.ndim or not x.numel():
            raise BadInput(f"an array of shape {tuple(x.shape)} has no vectors to prune")
        d = x.shape[-1]
        k = min(d, max(1, round(self.share * d)))
        kept = torch.zeros(x.shape, dtype=torch.bool)
        kept.scatter_(-1, x.abs().argsort(dim=-1, descending=True, stable=True)[..., :k], True)
        side = {"bitmap": np.packbits(kept.numpy().reshape(-1)), "width": np.array([d], np.int64)}
        return x[kept].reshape(*x.shape[:-1], k), side

    def decode(self, y: Tensor, side: Side) -> Tensor:
        import torch

        d = int(side["width"][0]) if side["width"].shape == (1,) else 0
        k = y.shape[-1] if y.ndim else 0
        if not 0 < k <= d:
            raise CorruptStream(f"{k} values kept of vectors of {d}")
        shape = (*y.shape[:-1], d)
        n = math.prod(shape)
        claim(5 * n, "pruned vectors")
        packed = side["bitmap"]
        if packed.ndim != 1 or len(packed) != -(-n // 8):
            raise CorruptStream(f"a bitmap of {packed.shape} bytes for {n} values")
        flags = np.unpackbits(packed).astype(bool)
        kept = torch.from_numpy(flags[:n].reshape(shape))
        if flags[n:].any() or not bool((kept.sum(-1) == k).all()):
            raise CorruptStream(f"a bitmap that does not keep {k} values in every vector")
        x = torch.zeros(shape)
        x[kept] = y.reshape(-1)
        return x
