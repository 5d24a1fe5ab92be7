"""Norms, means and per-channel factors: transforms that treat every value alone once their side information is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from ..core.errors import BadConfig, BadInput, CodecError, CorruptStream
from ..core.stage import Leaf, Side, Stats, learned
from .base import Transform, fitted, from_rows, of_width, to_rows

if TYPE_CHECKING:
    from torch import Tensor

_TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class UnitNorm(Transform):
    """y = x / ‖x‖ along the last axis; the norms are sent.

    dtype: "float16" (relative to the largest norm, which is sent in float32) or "float32".
    length: "norm" makes ‖y‖ = 1, "rms" makes the mean square of y 1, as codebooks for N(0, 1) expect.
    Side: 16 or 32 bits a row. y is divided by the norm *as sent*, so the stage itself loses nothing but rounding.
    Push: Hessians, importance and masks hold up to a factor per row, ‖x‖²: all that rounding row by row can see.
    """

    dtype: str = "float16"
    length: str = "norm"

    def __post_init__(self) -> None:
        if self.dtype not in ("float16", "float32"):
            raise BadConfig(f"norms in {self.dtype!r}; float16 or float32 are possible")
        if self.length not in ("norm", "rms"):
            raise BadConfig(f"length {self.length!r}; norm or rms are possible")

    @property
    def side(self) -> Mapping[str, Leaf]:  # type: ignore[override]
        return {"norms": Leaf(self.dtype, "norms"), "largest": Leaf("float32", "norms")}

    def push(self, stats: Stats) -> Stats:
        return stats

    def encode(self, x: Tensor) -> tuple[Tensor, Side]:
        rows = to_rows(x)
        norms = np.sqrt((rows.astype(np.float64) ** 2).sum(1))
        if self.length == "rms":
            norms /= np.sqrt(rows.shape[1])
        if norms.max() > np.finfo(np.float32).max:
            raise BadInput(f"a norm of {norms.max():.3g} is beyond float32; scale the array first")
        largest = np.array([max(norms.max(), _TINY)]).astype(np.float32)
        side = {"norms": (norms / largest).astype(self.dtype).reshape(x.shape[:-1]), "largest": largest}
        factor = self._factors(side)
        return from_rows(np.divide(rows, factor, out=np.zeros_like(rows), where=factor > 0), x), side

    def decode(self, y: Tensor, side: Side) -> Tensor:
        rows = to_rows(y, CorruptStream)
        if side["norms"].shape != tuple(y.shape[:-1]) or side["largest"].shape != (1,):
            raise CorruptStream(f"norms of shape {side['norms'].shape} for an array of {tuple(y.shape)}")
        if not (np.isfinite(side["norms"]).all() and 0 <= side["largest"][0] < np.inf):
            raise CorruptStream("norms that are negative or not finite")
        factor = self._factors(side)
        if not np.isfinite(factor).all() or (factor < 0).any():
            raise CorruptStream("norms that are negative or not finite")
        return from_rows(rows * factor, y)

    def _factors(self, side: Side) -> np.ndarray:
        return (side["norms"].reshape(-1, 1).astype(np.float32) * side["largest"]).astype(np.float32)


@dataclass(frozen=True)
class Center(Transform):
    """y = x − mean, one mean per channel of the last axis, learned. Side: none; 16 bits a channel in the model.

    The mean as it is stored is taken away and put back, so its rounding costs nothing. Errors pass unchanged.
    """

    mean: np.ndarray | None = learned("float16", role="zeros")

    affine: ClassVar[bool] = True

    def fit(self, x: Tensor, stats: Stats | None = None) -> Self:
        mean = to_rows(x).mean(0, dtype=np.float64)
        return self.replace(mean=np.clip(mean, -65504.0, 65504.0))

    def push(self, stats: Stats) -> Stats:
        return stats

    def encode(self, x: Tensor) -> tuple[Tensor, Side]:
        return from_rows(to_rows(x) - self._mean(x, BadInput), x), {}

    def decode(self, y: Tensor, side: Side) -> Tensor:
        return from_rows(to_rows(y, CorruptStream) + self._mean(y, CorruptStream), y)

    def _mean(self, x: Tensor, error: type[CodecError]) -> np.ndarray:
        rows = to_rows(x, error)
        return of_width(fitted(self, "mean"), rows.shape[1], "mean", error).astype(np.float32)


@dataclass(frozen=True)
class RemoveMean(Transform):
    """y = x − mean of each row of the last axis; the means are sent. Errors pass unchanged.

    Side: 16 bits a row (float16 of mean / largest, and the largest in float32).
    """

    side: ClassVar[Mapping[str, Leaf]] = {"means": Leaf("float16", "zeros"), "largest": Leaf("float32", "zeros")}

    def push(self, stats: Stats) -> Stats:
        return stats

    def encode(self, x: Tensor) -> tuple[Tensor, Side]:
        rows = to_rows(x)
        means = rows.mean(1, dtype=np.float64)
        largest = np.array([max(np.abs(means).max(), _TINY)]).astype(np.float32)
        side = {"means": (means / largest).astype(np.float16).reshape(x.shape[:-1]), "largest": largest}
        return from_rows(rows - self._means(side), x), side

    def decode(self, y: Tensor, side: Side) -> Tensor:
        rows = to_rows(y, CorruptStream)
        if side["means"].shape != tuple(y.shape[:-1]) or side["largest"].shape != (1,):
            raise CorruptStream(f"means of shape {side['means'].shape} for an array of {tuple(y.shape)}")
        means = self._means(side)
        if not np.isfinite(means).all():
            raise CorruptStream("means that are not finite")
        return from_rows(rows + means, y)

    def _means(self, side: Side) -> np.ndarray:
        return side["means"].reshape(-1, 1).astype(np.float32) * side["largest"]


@dataclass(frozen=True)
class Diagonal(Transform):
    """y = x / d with one divisor per channel of the last axis.

    Push: errors in y count d times in x, so H becomes d_i H_ij d_j and importance d² w; masks stay.
    """

    def divisors(self) -> np.ndarray:
        """(n,) float32, positive."""
        raise NotImplementedError

    def push(self, stats: Stats) -> Stats:
        import torch

        d = torch.from_numpy(self.divisors())
        hessian, importance, drift = stats.hessian, stats.importance, stats.drift
        return dataclasses.replace(
            stats,
            hessian=None if hessian is None else hessian * torch.outer(d, d),
            importance=None if importance is None else importance * d.square(),
            drift=None if drift is None else drift * torch.outer(d, d),
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Side]:
        rows = to_rows(x)
        return from_rows(rows / of_width(self.divisors(), rows.shape[1], "divisors", BadInput), x), {}

    def decode(self, y: Tensor, side: Side) -> Tensor:
        rows = to_rows(y, CorruptStream)
        d = of_width(self.divisors(), rows.shape[1], "divisors", CorruptStream)
        if (d <= 0).any():
            raise CorruptStream("divisors that are not positive")
        return from_rows(rows * d, y)


@dataclass(frozen=True)
class Scaling(Diagonal):
    """Every channel of the last axis brought to the same size: y = x / s, s learned.

    size: "rms", "absmax" or "mean" (of |x|) of the channel becomes 1. Cost: 32 bits a channel in the model.
    """

    size: str = "rms"
    scale: np.ndarray | None = learned("float32", role="scales")

    def __post_init__(self) -> None:
        if self.size not in _SIZES:
            raise BadConfig(f"size {self.size!r}; {', '.join(_SIZES)} are possible")

    def fit(self, x: Tensor, stats: Stats | None = None) -> Self:
        size = _SIZES[self.size](np.abs(to_rows(x).astype(np.float64)))
        return self.replace(scale=np.where(size > _TINY, size, 1.0))

    def divisors(self) -> np.ndarray:
        return fitted(self, "scale")


_SIZES = {
    "rms": lambda a: np.sqrt((a * a).mean(0)),
    "absmax": lambda a: a.max(0),
    "mean": lambda a: a.mean(0),
}


@dataclass(frozen=True)
class Smoothing(Diagonal):
    """Channels whose inputs are large are coded finer: y = x · s with s = a^alpha / w^beta.

    a_j: root mean square of what meets channel j, from the Hessian's diagonal (or importance of the last axis); w_j:
    largest |x| of the channel. s is normalised to √(max s · min s) = 1 and kept as 1 / s, 16 bits a channel.
    alpha > 0, beta = 0 is AWQ's scaling; beta = 1 − alpha is SmoothQuant's migration.
    Sources: Lin et al. 2023 (2306.00978), eq. 4–5; Xiao et al. 2022 (2211.10438), eq. 4. Differs: a is the root mean
    square, where AWQ takes mean |x| and SmoothQuant max |x|: it is what the Hessian holds.
    """

    alpha: float = 0.5
    beta: float = 0.0
    inverse: np.ndarray | None = learned("float16", role="scales")

    def __post_init__(self) -> None:
        if not (0 <= self.alpha <= 1 and 0 <= self.beta <= 1):
            raise BadConfig(f"smoothing exponents {self.alpha}, {self.beta}; both lie in [0, 1]")

    def fit(self, x: Tensor, stats: Stats | None = None) -> Self:
        rows = to_rows(x).astype(np.float64)
        log_s = self.alpha * _log(_input_size(self, stats, rows.shape[1])) - self.beta * _log(np.abs(rows).max(0))
        log_s -= (log_s.max() + log_s.min()) / 2
        return self.replace(inverse=np.exp2(np.clip(-log_s, -14.0, 15.0)))

    def divisors(self) -> np.ndarray:
        return fitted(self, "inverse").astype(np.float32)


def _log(a: np.ndarray) -> np.ndarray:
    """log2, a channel without any signal counted as 2^-20 of the largest."""
    return np.log2(np.maximum(a, max(a.max() * 2.0**-20, 1e-300)))


def _input_size(stage: Transform, stats: Stats | None, n: int) -> np.ndarray:
    """Root mean square of the inputs that meet each channel: (n,) float64."""
    if stats is not None and stats.hessian is not None:
        square = stats.hessian.detach().cpu().numpy().astype(np.float64).diagonal()
    elif stats is not None and stats.importance is not None and tuple(stats.importance.shape) == (n,):
        square = stats.importance.detach().cpu().numpy().astype(np.float64)
    else:
        raise BadConfig(
            f"{type(stage).__name__} looks at the inputs; fit it with a Hessian or importance of the last axis"
        )
    if square.shape != (n,) or not np.isfinite(square).all() or (square < 0).any():
        raise BadConfig(
            f"a diagonal of shape {square.shape} for rows of {n}; finite and non-negative values are needed"
        )
    return np.sqrt(square)
