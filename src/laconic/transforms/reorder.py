"""Permutations of the last axis: seeded, or learned so that channels of one kind lie together."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from ..core.errors import BadConfig, BadInput, CodecError, CorruptStream
from ..core.stage import Side, Stats, learned
from .base import Transform, fitted, from_rows, to_rows

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class _Order(Transform):
    """y[..., i] = x[..., order[i]]. Every statistic goes along."""

    def order(self, n: int, error: type[CodecError]) -> np.ndarray:
        """The permutation for rows of n: int64, (n,)."""
        raise NotImplementedError

    def push(self, stats: Stats) -> Stats:
        import torch

        def moved(t: Tensor | None) -> Tensor | None:
            return None if t is None else t[..., torch.from_numpy(self.order(t.shape[-1], BadConfig))]

        def both(t: Tensor | None) -> Tensor | None:
            return None if t is None else moved(moved(t).T).T.contiguous()  # type: ignore[union-attr]

        return dataclasses.replace(
            stats,
            hessian=both(stats.hessian),
            drift=both(stats.drift),
            importance=moved(stats.importance),
            mask=moved(stats.mask),
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Side]:
        rows = to_rows(x)
        return from_rows(np.ascontiguousarray(rows[:, self.order(rows.shape[1], BadInput)]), x), {}

    def decode(self, y: Tensor, side: Side) -> Tensor:
        rows = to_rows(y, CorruptStream)
        x = np.empty_like(rows)
        x[:, self.order(rows.shape[1], CorruptStream)] = rows
        return from_rows(x, y)


@dataclass(frozen=True)
class Permutation(_Order):
    """A random order that the seed describes; spreads what is clustered."""

    seed: int = 0

    def order(self, n: int, error: type[CodecError]) -> np.ndarray:
        from ..kernels.random import permutation

        return permutation(self.seed, n)


@dataclass(frozen=True)
class Reorder(_Order):
    """Channels sorted by size, greatest first, so that groups of neighbours are alike; n ≤ 65536.

    by: "rms" or "absmax" of the channel's values, or "hessian" for its diagonal (GPTQ's act-order).
    Cost: 16 bits a channel in the model. Source: Yuan et al. 2023 (2304.01089), section 3.2 (RPTQ).
    """

    by: str = "rms"
    positions: np.ndarray | None = learned("uint16", role="indices")

    def __post_init__(self) -> None:
        if self.by not in ("rms", "absmax", "hessian"):
            raise BadConfig(f"order by {self.by!r}; rms, absmax or hessian are possible")

    def fit(self, x: Tensor, stats: Stats | None = None) -> Self:
        rows = to_rows(x)
        if rows.shape[1] > 1 << 16:
            raise BadInput(f"{rows.shape[1]} channels to reorder; at most 65536 are allowed")
        if self.by == "hessian":
            if stats is None or stats.hessian is None or stats.hessian.shape[0] != rows.shape[1]:
                raise BadConfig(f"order by Hessian: fit with one of shape {(rows.shape[1],) * 2}")
            size = stats.hessian.detach().cpu().numpy().diagonal()
        else:
            size = np.abs(rows).max(0) if self.by == "absmax" else (rows.astype(np.float64) ** 2).mean(0)
        return self.replace(positions=np.argsort(-size, kind="stable"))

    def order(self, n: int, error: type[CodecError]) -> np.ndarray:
        stored = fitted(self, "positions").astype(np.int64)
        if stored.shape != (n,) or not np.array_equal(np.sort(stored), np.arange(n)):
            raise error(f"positions of shape {stored.shape} are no order of {n} channels")
        return stored
