"""Groups as a direction and a length: pyramid points for the one, a companded number for the other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from ..core.errors import BadConfig, BadInput, CorruptStream, NotFitted, claim
from ..core.stage import Kind, Leaf, Part, Side, Stage, Symbols
from .base import Codebook
from .pyramid import PyramidCode
from .vector import checked_index, grouped

if TYPE_CHECKING:
    from torch import Tensor


def _check(part: Part, length: int, pulses: int, gain_bits: int) -> None:
    if not 2 <= length <= 256 or not 1 <= pulses <= 127 or not 1 <= gain_bits <= 8:
        raise BadConfig(
            f"{type(part).__name__} of {length} values, {pulses} pulses and {gain_bits} bits of gain; 2 … 256, 1 … 127 "
            "and 1 … 8 are possible"
        )


@dataclass(frozen=True)
class ShapeGain(Codebook):
    """A group g of `length` values as gain · y / ‖y‖, with y an integer point of Σ|y| = pulses.

    For a row of n Gaussian values with unit mean square, ‖g‖² / n follows Beta(L/2, (n − L)/2), L the length. The gain levels
    are the square roots of that law's quantiles (k + ½) / 2^gain_bits: uniform on the distribution function. Of them the one
    nearest to ⟨g, y⟩ / ‖y‖ is taken, which is the best gain for the direction that was found. The gain is part of the code, so
    a sweep with error feedback measures it where it stands, group by group.

    Symbols: y_i + pulses, one a value; the first of a group also holds (2 · pulses + 1) · gain. `ShapeGainCode` behind it
    makes ⌈log2 N(length, pulses)⌉ + gain_bits bits of a group.
    Shapes: x (..., n), length divides n -> index (..., n). row_length: n; 0: `fit` takes the length of the data's last axis.
    Source: van der Ouderaa et al. 2024 (2410.16926): pyramid shapes, gains companded by the Beta distribution function.
    """

    length: int = 16
    pulses: int = 12
    gain_bits: int = 4
    row_length: int = 0

    sequential: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(self, self.length, self.pulses, self.gain_bits)
        if self.row_length and not self.length <= self.row_length <= 1 << 31:
            raise BadConfig(f"rows of {self.row_length} values; {self.length} to 2^31 are possible, or 0 until fit")

    @property
    def alphabet(self) -> int:
        return (2 * self.pulses + 1) << self.gain_bits

    @property
    def columns(self) -> int:
        return self.length

    def span(self) -> tuple[float, float]:
        return -math.sqrt(self.length), math.sqrt(self.length)

    def fit(self, x: Tensor, weights: Tensor | None = None) -> Self:
        """Learns how long rows are."""
        if not x.ndim or x.shape[-1] % self.length or not x.shape[-1]:
            raise BadInput(f"shape {tuple(x.shape)} for groups of {self.length}; a multiple is right")
        return self.replace(row_length=x.shape[-1])

    @cached_property
    def gains(self) -> np.ndarray:
        """(2^gain_bits,) float64, ascending: lengths of groups, for rows of unit mean square."""
        from scipy.special import betaincinv

        if not self.row_length:
            raise NotFitted("ShapeGain does not know how long rows are; call fit first")
        n = self.row_length
        p = (np.arange(1 << self.gain_bits) + 0.5) / (1 << self.gain_bits)
        return np.sqrt(n * betaincinv(self.length / 2, max(n - self.length, 1) / 2, p))

    def nearest(self, x: Tensor) -> Tensor:
        import torch

        from ..kernels.pyramid import pulses

        groups = grouped(x, self.length)
        y = pulses(groups, self.pulses).astype(np.int64)
        norm = np.sqrt(np.square(y).sum(1))
        along = (groups.astype(np.float64) * y).sum(1) / norm
        gain = np.searchsorted((self.gains[1:] + self.gains[:-1]) / 2, along)
        y += self.pulses
        y[:, 0] += gain * (2 * self.pulses + 1)
        return torch.from_numpy(y.reshape(x.shape))

    def lookup(self, index: Tensor) -> Tensor:
        import torch

        i = checked_index(index, self.alphabet, self.length)
        claim(i.size * 8, "points of a pyramid")
        y, gain = split(i.reshape(-1, self.length), self.pulses)
        if (np.abs(y).sum(1) != self.pulses).any():
            raise CorruptStream(f"groups whose absolute values do not add up to {self.pulses}")
        size = self.gains[gain] / np.sqrt(np.square(y).sum(1))
        return torch.from_numpy((y * size[:, None]).astype(np.float32).reshape(i.shape))


def split(groups: np.ndarray, n_pulses: int) -> tuple[np.ndarray, np.ndarray]:
    """Symbols of groups (n, length) -> points (n, length) and gains (n,), int64."""
    y = groups.astype(np.int64)
    gain, y[:, 0] = np.divmod(y[:, 0], 2 * n_pulses + 1)
    return y - n_pulses, gain


@dataclass(frozen=True)
class ShapeGainCode(Stage):
    """Groups of `ShapeGain` in ⌈log2 N(length, pulses)⌉ + gain_bits bits, exactly: numbers of points, then gains.

    Symbols: those of `ShapeGain(length, pulses, gain_bits)`. Side: the shape. Each of the two parts ends on a whole byte.
    """

    length: int = 16
    pulses: int = 12
    gain_bits: int = 4

    takes: ClassVar[Kind] = Kind.SYMBOLS
    gives: ClassVar[Kind] = Kind.BYTES
    side: ClassVar[Mapping[str, Leaf]] = {"shape": Leaf("uint64", "header")}
    lossless: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(self, self.length, self.pulses, self.gain_bits)

    def encode(self, x: Symbols) -> tuple[bytes, Side]:
        from ..kernels.bits import pack

        shape, alphabet = x.index.shape, (2 * self.pulses + 1) << self.gain_bits
        if x.alphabet != alphabet or not shape or shape[-1] % self.length:
            raise BadInput(
                f"symbols of shape {shape} and alphabet {x.alphabet}; groups of {self.length} and an alphabet of "
                f"{alphabet} are right"
            )
        y, gain = split(x.index.reshape(-1, self.length), self.pulses)
        points = (y + self.pulses).astype(np.uint8).reshape(shape)
        numbers, side = self._code.encode(Symbols(points, 2 * self.pulses + 1))
        return numbers + pack(gain.astype(np.uint8), self.gain_bits).tobytes(), side

    def decode(self, y: bytes, side: Side) -> Symbols:
        from ..kernels.bits import unpack

        shape = side["shape"]
        n_groups = math.prod(int(d) for d in shape.reshape(-1)[:16]) // self.length
        n_bytes = -(-n_groups * self.gain_bits // 8)
        if n_bytes > len(y):
            raise CorruptStream(f"{len(y):,} bytes; {n_groups:,} gains alone take {n_bytes:,}")
        points = self._code.decode(y[: len(y) - n_bytes], side)
        gain = unpack(np.frombuffer(y, np.uint8)[len(y) - n_bytes :], self.gain_bits, n_groups)
        index = points.index.astype(np.uint16).reshape(-1, self.length)
        index[:, 0] += gain.astype(np.uint16) * np.uint16(2 * self.pulses + 1)
        return Symbols(index.reshape(points.index.shape), (2 * self.pulses + 1) << self.gain_bits)

    @property
    def _code(self) -> PyramidCode:
        return PyramidCode(self.length, self.pulses)
