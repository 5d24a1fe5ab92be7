"""Sparsity: a few values are kept and the rest is taken as zero; where they lie is side information."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from ..core.errors import BadConfig, BadInput, CorruptStream, claim
from ..core.stage import Leaf, Side, Stats, encoder_only
from .base import Transform

if TYPE_CHECKING:
    from torch import Tensor


def pack_gaps(positions: np.ndarray) -> dict[str, np.ndarray]:
    """Ascending positions as Golomb–Rice codes of their gaps: {"unary", "rest": uint8 arrays, "bits": uint8 (1,)}.

    A gap g is g >> b in unary and b low bits; b is the best one. For gaps of random positions the rate is within 4 % of
    the entropy. Source: R. Rice, JPL Publication 79-22, 1979.
    """
    gaps = np.diff(positions, prepend=-1) - 1
    n = len(gaps)
    cost = [int((gaps >> b).sum()) + n * (1 + b) for b in range(48)]
    b = int(np.argmin(cost))
    ends = np.cumsum((gaps >> b) + 1) - 1
    unary = np.zeros(int(ends[-1]) + 1 if n else 0, np.uint8)
    unary[ends] = 1
    rest = (gaps[:, None] >> np.arange(b)) & 1
    return {
        "unary": np.packbits(unary),
        "rest": np.packbits(rest.astype(np.uint8).reshape(-1)),
        "bits": np.array([b], np.uint8),
    }


def unpack_gaps(side: Mapping[str, np.ndarray], n: int, below: int) -> np.ndarray:
    """The n ascending positions, all below `below`: int64. Raises CorruptStream for anything `pack_gaps` cannot give."""
    unary, rest, bits = side["unary"], side["rest"], side["bits"]
    if bits.shape != (1,) or bits[0] >= 48 or unary.ndim != 1 or rest.ndim != 1:
        raise CorruptStream("sparse positions of the wrong form")
    b = int(bits[0])
    if len(rest) != -(-n * b // 8) or n > 8 * len(unary):
        raise CorruptStream(f"{len(rest)} and {len(unary)} bytes of sparse positions for {n} values")
    claim(8 * len(unary) + 8 * n * max(b, 1), "sparse positions")
    ends = np.flatnonzero(np.unpackbits(unary))
    if len(ends) != n or len(unary) != (-(-(int(ends[-1]) + 1) // 8) if n else 0):
        raise CorruptStream(f"{len(ends)} sparse positions for {n} values")
    low = np.unpackbits(rest)[: n * b].reshape(n, b).astype(np.int64) << np.arange(b)
    gaps = ((np.diff(ends, prepend=-1) - 1) << b) + low.sum(1)
    if n and (int(gaps.max()) >= below or float(gaps.sum(dtype=np.float64)) >= below):
        raise CorruptStream("sparse positions beyond the end")
    positions = np.cumsum(gaps + 1) - 1
    if n and positions[-1] >= below:
        raise CorruptStream(f"a sparse position {positions[-1]} in an array of {below} values")
    return positions


@dataclass(frozen=True, kw_only=True)
class _Select(Transform):
    """Values that are kept, as a vector; their positions and the shape as side information.

    With importance w (of x or of its last axis) at `fit`, values count as √w |x|. Push: refused, since which values are
    kept depends on the data.
    """

    importance: Any = encoder_only()

    side: ClassVar[Mapping[str, Leaf]] = {
        "shape": Leaf("uint64", "header"),
        "unary": Leaf("uint8", "indices"),
        "rest": Leaf("uint8", "indices"),
        "bits": Leaf("uint8", "indices"),
    }

    def keep(self, size: np.ndarray) -> np.ndarray:
        """Ascending positions to keep, at least one, given the sizes: float64, (n,)."""
        raise NotImplementedError

    def fit(self, x: Tensor, stats: Stats | None = None) -> Self:
        weights = None if stats is None else stats.importance
        return self if weights is None else self.replace(importance=weights)

    def encode(self, x: Tensor) -> tuple[Tensor, Side]:
        import torch

        if not x.ndim or not x.numel():
            raise BadInput(f"nothing to select from in an array of shape {tuple(x.shape)}")
        values = np.ascontiguousarray(x.detach().cpu().numpy(), np.float32)
        size = np.abs(values.astype(np.float64))
        if self.importance is not None:
            weights = self.importance.detach().cpu().numpy().astype(np.float64)
            if weights.shape not in (values.shape, values.shape[-1:]):
                raise BadInput(f"importance of shape {weights.shape} for an array of {values.shape}; fit again")
            size = size * np.sqrt(weights)
        positions = self.keep(size.reshape(-1))
        y = torch.from_numpy(values.reshape(-1)[positions]).to(x.device)
        return y, {"shape": np.array(x.shape, np.uint64), **pack_gaps(positions)}

    def decode(self, y: Tensor, side: Side) -> Tensor:
        import torch

        if y.ndim != 1 or side["shape"].ndim != 1 or not 0 < len(side["shape"]) <= 16:
            raise CorruptStream(f"{tuple(y.shape)} sparse values for a shape of {side['shape'].shape}")
        shape = tuple(int(s) for s in side["shape"])
        n = math.prod(shape)
        if not 0 < len(y) <= n:
            raise CorruptStream(f"{len(y)} sparse values in an array of shape {shape}")
        claim(4 * n, "sparse values")
        x = np.zeros(n, np.float32)
        x[unpack_gaps(side, len(y), n)] = y.detach().cpu().numpy()
        return torch.from_numpy(x.reshape(shape)).to(y.device)


@dataclass(frozen=True)
class TopK(_Select):
    """The ⌈fraction · n⌉ largest values are kept; of equal ones the first.

    Shapes: x any -> y (n_kept,). Side: about H(fraction) / fraction bits a kept value.
    Source: Aji & Heafield 2017 (1704.05021); Stich et al. 2018 (1809.07599), definition 2.1.
    """

    fraction: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise BadConfig(f"fraction {self.fraction}; more than 0 and at most 1 is needed")

    def keep(self, size: np.ndarray) -> np.ndarray:
        k = min(len(size), max(1, int(np.ceil(self.fraction * len(size)))))
        least = np.partition(size, len(size) - k)[len(size) - k]
        above = np.flatnonzero(size > least)
        equal = np.flatnonzero(size == least)[: k - len(above)]
        return np.sort(np.concatenate([above, equal]))


@dataclass(frozen=True)
class Threshold(_Select):
    """Values larger than `level` root mean squares are kept (the largest one in any case).

    Shapes: x any -> y (n_kept,). Source: Strom 2015; the 3-sigma rule for outliers at level 3.
    """

    level: float = 3.0

    def __post_init__(self) -> None:
        if not self.level >= 0:
            raise BadConfig(f"level {self.level}; zero or more root mean squares are needed")

    def keep(self, size: np.ndarray) -> np.ndarray:
        kept = np.flatnonzero(size > self.level * np.sqrt((size * size).mean()))
        return kept if len(kept) else np.array([int(size.argmax())])
