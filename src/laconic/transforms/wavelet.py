"""Wavelets by lifting, any length, in the pyramid's usual layout: low-pass first, the same shape as the input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..core.errors import BadConfig, BadInput, CodecError, CorruptStream
from ..core.stage import Side, Stats
from .base import Linear, Transform

if TYPE_CHECKING:
    from torch import Tensor


def _split(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x[..., 0::2].copy(), x[..., 1::2].copy()


def _join(even: np.ndarray, odd: np.ndarray) -> np.ndarray:
    x = np.empty((*even.shape[:-1], even.shape[-1] + odd.shape[-1]), even.dtype)
    x[..., 0::2], x[..., 1::2] = even, odd
    return x


def _around_odd(even: np.ndarray, n_odd: int) -> np.ndarray:
    """Sum of the two even neighbours of every odd sample, mirrored at the end."""
    right = even[..., 1:] if even.shape[-1] > n_odd else np.concatenate([even[..., 1:], even[..., -1:]], -1)
    return even[..., :n_odd] + right


def _around_even(odd: np.ndarray, n_even: int) -> np.ndarray:
    """Sum of the two odd neighbours of every even sample, mirrored at both ends."""
    left = np.concatenate([odd[..., :1], odd], -1)
    right = odd if odd.shape[-1] == n_even else np.concatenate([odd, odd[..., -1:]], -1)
    return left[..., :n_even] + right


def _levels(shape: tuple[int, ...], axes: tuple[int, ...], levels: int) -> list[tuple[int, ...]]:
    """Sizes along `axes` of the part that each level splits, largest first."""
    sizes = [tuple(shape[a] for a in axes)]
    for _ in range(levels - 1):
        sizes.append(tuple((s + 1) // 2 for s in sizes[-1]))
    return sizes


@dataclass(frozen=True)
class _Lifting(Transform):
    """Levels of one lifting step and its inverse, over one axis or several."""

    levels: int = 4
    axes: tuple[int, ...] = (-2, -1)

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= 32:
            raise BadConfig(f"{self.levels} wavelet levels; 1 to 32 are possible")
        if not self.axes or len(set(self.axes)) != len(self.axes) or any(not -8 <= a < 0 for a in self.axes):
            raise BadConfig(f"wavelet axes {self.axes}; different negative numbers are needed, such as (-2, -1)")

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(low, high) of the last axis, of lengths ⌈n/2⌉ and ⌊n/2⌋."""
        raise NotImplementedError

    def backward(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """The inverse of `forward`."""
        raise NotImplementedError

    def analyse(self, x: np.ndarray) -> np.ndarray:
        """The pyramid of x."""
        y = x.copy()
        for sizes in _levels(x.shape, self.axes, self.levels):
            part = y[self._corner(y.ndim, sizes)]
            for axis, size in zip(self.axes, sizes, strict=True):
                if size > 1:
                    lane = np.moveaxis(part, axis, -1)
                    lane[...] = np.concatenate(self.forward(lane), -1)
        return y

    def synthesize(self, y: np.ndarray) -> np.ndarray:
        """x of its pyramid."""
        x = y.copy()
        for sizes in reversed(_levels(y.shape, self.axes, self.levels)):
            part = x[self._corner(x.ndim, sizes)]
            for axis, size in reversed(list(zip(self.axes, sizes, strict=True))):
                if size > 1:
                    lane = np.moveaxis(part, axis, -1)
                    half = (size + 1) // 2
                    lane[...] = self.backward(lane[..., :half].copy(), lane[..., half:].copy())
        return x

    def encode(self, x: Tensor) -> tuple[Tensor, Side]:
        return self._apply(x, self.analyse, BadInput), {}

    def decode(self, y: Tensor, side: Side) -> Tensor:
        return self._apply(y, self.synthesize, CorruptStream)

    def _apply(self, x: Tensor, function, error: type[CodecError]) -> Tensor:
        import torch

        if x.ndim < -min(self.axes) or not x.numel():
            raise error(f"an array of shape {tuple(x.shape)} has no axes {self.axes}")
        return torch.from_numpy(function(self.prepare(x.detach().cpu().numpy(), error))).to(x.device)

    def prepare(self, x: np.ndarray, error: type[CodecError]) -> np.ndarray:
        """x in the dtype of the arithmetic."""
        raise NotImplementedError

    def _corner(self, n_dims: int, sizes: tuple[int, ...]) -> tuple[slice, ...]:
        where = [slice(None)] * n_dims
        for axis, size in zip(self.axes, sizes, strict=True):
            where[axis] = slice(size)
        return tuple(where)


@dataclass(frozen=True)
class Wavelet97(_Lifting, Linear):
    """The biorthogonal 9/7 wavelet, scaled so that it is nearly orthonormal; float32.

    levels: how often the low-pass part is split. axes: counted from the end; (-1,) for rows, (-2, -1) for pictures.
    Push: over the last axis alone a Hessian H becomes A H Aᵀ, A the synthesis; otherwise refused.
    Sources: Cohen, Daubechies & Feauveau 1992; lifting steps: Daubechies & Sweldens 1998, section 7.2.
    """

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        even, odd = _split(x)
        odd += _ALPHA * _around_odd(even, odd.shape[-1])
        even += _BETA * _around_even(odd, even.shape[-1])
        odd += _GAMMA * _around_odd(even, odd.shape[-1])
        even += _DELTA * _around_even(odd, even.shape[-1])
        return even * _ZETA, odd * _ZETA_INVERSE

    def backward(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        even, odd = low * _ZETA_INVERSE, high * _ZETA
        even -= _DELTA * _around_even(odd, even.shape[-1])
        odd -= _GAMMA * _around_odd(even, odd.shape[-1])
        even -= _BETA * _around_even(odd, even.shape[-1])
        odd -= _ALPHA * _around_odd(even, odd.shape[-1])
        return _join(even, odd)

    def prepare(self, x: np.ndarray, error: type[CodecError]) -> np.ndarray:
        return np.asarray(x, np.float32)

    def push(self, stats: Stats) -> Stats:
        if self.axes == (-1,):
            return Linear.push(self, stats)
        return Transform.push(self, stats)


_ALPHA, _BETA = np.float32(-1.586134342059924), np.float32(-0.052980118572961)
_GAMMA, _DELTA = np.float32(0.882911075530934), np.float32(0.443506852043971)
_ZETA, _ZETA_INVERSE = np.float32(1.149604398860241), np.float32(1 / 1.149604398860241)


@dataclass(frozen=True)
class Wavelet53(_Lifting):
    """The reversible 5/3 wavelet on integers: exact, int32.

    x: uint8, int8, int16, int32 or uint16 within ±2^24, so that no level can overflow; y and the decoder's x: int32.
    Push: refused: the rounding inside makes it no linear map.
    Source: Le Gall & Tabatabai 1988; lifting with rounding: Calderbank et al. 1998, as in JPEG 2000 (ITU-T T.800, F.3).
    """

    lossless: ClassVar[bool] = True
    accepts: ClassVar[tuple[str, ...]] = ("uint8", "int8", "uint16", "int16", "int32")
    casts: ClassVar[bool] = False

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        even, odd = _split(x)
        odd -= _around_odd(even, odd.shape[-1]) >> 1
        even += (_around_even(odd, even.shape[-1]) + 2) >> 2
        return even, odd

    def backward(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        even = low - ((_around_even(high, low.shape[-1]) + 2) >> 2)
        odd = high + (_around_odd(even, high.shape[-1]) >> 1)
        return _join(even, odd)

    def prepare(self, x: np.ndarray, error: type[CodecError]) -> np.ndarray:
        if x.dtype.kind not in "iu" or np.abs(x.astype(np.int64)).max() > (1 << 24 if error is BadInput else 1 << 30):
            raise error(f"{x.dtype} values up to {np.abs(x).max()}; integers within ±2^24 are needed")
        return x.astype(np.int32)
