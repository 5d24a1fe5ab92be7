"""What the transforms share: rows of the last axis as NumPy, and statistics that follow linear maps.

A linear transform of the last axis is its analysis y = x B and its synthesis x̂ = ŷ A. An error e in y is an error e A in
x, so a Hessian H of x becomes A H Aᵀ of y; that is all `push` has to know.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..core.errors import BadConfig, BadInput, CodecError, CorruptStream, NotFitted
from ..core.stage import Kind, Side, Stage, Stats

if TYPE_CHECKING:
    from torch import Tensor


def to_rows(x: Tensor, error: type[CodecError] = BadInput) -> np.ndarray:
    """x: (..., n) -> (n_rows, n) float32, contiguous. Raises `error` for an array without a last axis or without values."""
    if not x.ndim or not x.numel():
        raise error(f"an array of shape {tuple(x.shape)} has no rows to transform")
    return np.ascontiguousarray(x.detach().cpu().numpy().reshape(-1, x.shape[-1]), np.float32)


def from_rows(rows: np.ndarray, like: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    """Rows in `shape`, by default that of `like` but for the length of the last axis; on the device of `like`."""
    import torch

    return torch.from_numpy(rows.reshape(shape or (*like.shape[:-1], rows.shape[-1]))).to(like.device)


def refuse(stage: Stage, stats: Stats, *cannot: str) -> None:
    """Raise BadConfig where one of the statistics named is present."""
    if there := [name for name in stats.present() if name in cannot]:
        raise BadConfig(
            f"{type(stage).__name__} mixes values, so {' and '.join(there)} cannot follow it; "
            "give a Hessian of the last axis, or put the stage behind those that need them"
        )


def fitted(stage: Stage, name: str) -> np.ndarray:
    """A learned array of the stage. Raises NotFitted while there is none."""
    array = getattr(stage, name)
    if array is None:
        raise NotFitted(f"{type(stage).__name__} has learned no {name} yet; call .fit(x) first")
    return array


def of_width(array: np.ndarray, n: int, what: str, error: type[CodecError]) -> np.ndarray:
    """`array` if its last axis has length n and it is finite, as for a packet that says what is true."""
    if array.ndim == 0 or array.shape[-1] != n or not np.isfinite(array).all():
        raise error(f"{what} of shape {array.shape} (finite: {bool(np.isfinite(array).all())}) meets rows of {n}")
    return array


def symmetric(h: np.ndarray) -> Tensor:
    """The Hessian as a tensor, its rounding errors made symmetric."""
    import torch

    return torch.from_numpy(np.ascontiguousarray((h + h.T) * np.float32(0.5), np.float32))


@dataclass(frozen=True)
class Transform(Stage):
    """ARRAY -> ARRAY."""

    takes: ClassVar[Kind] = Kind.ARRAY
    gives: ClassVar[Kind] = Kind.ARRAY


@dataclass(frozen=True)
class Linear(Transform):
    """A linear map of the rows of the last axis; subclasses say how to analyse and synthesize (n_rows, n) float32."""

    def analyse(self, rows: np.ndarray) -> np.ndarray:
        """y = x B."""
        raise NotImplementedError

    def synthesize(self, rows: np.ndarray) -> np.ndarray:
        """x = y A. Raises CorruptStream where the rows do not fit."""
        raise NotImplementedError

    def encode(self, x: Tensor) -> tuple[Tensor, Side]:
        return from_rows(self.analyse(to_rows(x)), x), {}

    def decode(self, y: Tensor, side: Side) -> Tensor:
        return from_rows(self.synthesize(to_rows(y, CorruptStream)), y)

    def push(self, stats: Stats) -> Stats:
        import torch

        refuse(self, stats, "importance", "mask")
        h, d = (None if t is None else self.turn(to_rows(t)) for t in (stats.hessian, stats.drift))
        return dataclasses.replace(
            stats,
            hessian=None if h is None else symmetric(h),
            drift=None if d is None else torch.from_numpy(np.ascontiguousarray(d)),
        )

    def turn(self, h: np.ndarray) -> np.ndarray:
        """A H Aᵀ."""
        from ..kernels.product import product

        a = self.synthesize(np.eye(self.analyse(h[:1]).shape[1], dtype=np.float32))
        return product(product(a, h), a, transposed=True)


@dataclass(frozen=True)
class Orthogonal(Linear):
    """A = Bᵀ: norms and inner products are kept, and A H Aᵀ = Bᵀ H B needs the fast analysis only."""

    orthogonal = property(lambda self: not self.side)  # type: ignore[assignment]
    affine = property(lambda self: not self.side)

    def turn(self, h: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(self.analyse(np.ascontiguousarray(self.analyse(h).T)).T)
