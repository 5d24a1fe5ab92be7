"""Pyramid vector quantization: directions as integer points of equal ℓ1 norm, and their exact enumeration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..core.errors import BadConfig, BadInput, CorruptStream, claim
from ..core.stage import Kind, Leaf, Part, Side, Stage, Symbols
from .base import Codebook
from .vector import checked_index, grouped

if TYPE_CHECKING:
    from torch import Tensor


def _check(part: Part, length: int, pulses: int) -> None:
    if not 2 <= length <= 256 or not 1 <= pulses <= 127:
        raise BadConfig(
            f"{type(part).__name__} of {length} values and {pulses} pulses; 2 … 256 and 1 … 127 are possible"
        )


@dataclass(frozen=True)
class Pyramid(Codebook):
    """Shape of every `length` neighbours: an integer point y with Σ|y| = pulses, scaled to unit root mean square.

    The gain is the scale's: a group scale of the same length, of root mean squares. A symbol is y + pulses, one a value;
    `PyramidCode` behind it makes one number of a group, in ⌈log2 N(length, pulses)⌉ bits.

    N(0,1) with exact gains, length 16, 12 pulses (2 bits a value): error .083.

    Shapes: x (..., n), length divides n -> index (..., n).
    Source: Fischer 1986; for language models van der Ouderaa et al. 2024 (2410.16926): greedy pulses, no table.
    """

    length: int = 16
    pulses: int = 12

    sequential: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(self, self.length, self.pulses)

    @property
    def alphabet(self) -> int:
        return 2 * self.pulses + 1

    @property
    def columns(self) -> int:
        return self.length

    def span(self) -> tuple[float, float]:
        return -math.sqrt(self.length), math.sqrt(self.length)

    def nearest(self, x: Tensor) -> Tensor:
        import torch

        from ..kernels.pyramid import pulses

        y = pulses(grouped(x, self.length), self.pulses)
        return torch.from_numpy(y.astype(np.int64).reshape(x.shape)) + self.pulses

    def lookup(self, index: Tensor) -> Tensor:
        import torch

        i = checked_index(index, self.alphabet, self.length)
        claim(i.size * 8, "points of a pyramid")
        y = i.reshape(-1, self.length) - self.pulses
        if (np.abs(y).sum(1) != self.pulses).any():
            raise CorruptStream(f"groups whose absolute values do not add up to {self.pulses}")
        norm = np.sqrt(np.square(y).sum(1, keepdims=True) / self.length)
        return torch.from_numpy((y / norm).astype(np.float32).reshape(i.shape))


@dataclass(frozen=True)
class PyramidCode(Stage):
    """Points of a pyramid as their numbers: ⌈log2 N(length, pulses)⌉ bits a group, exactly.

    Groups of up to 63 bits are counted in a kernel, larger ones in Python integers (slow).
    Symbols: those of `Pyramid(length, pulses)`. Side: the shape. Layout: numbers after each other, highest bit first; zero
    bits fill the last byte.
    """

    length: int = 16
    pulses: int = 12

    takes: ClassVar[Kind] = Kind.SYMBOLS
    gives: ClassVar[Kind] = Kind.BYTES
    side: ClassVar[Mapping[str, Leaf]] = {"shape": Leaf("uint64", "header")}
    lossless: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(self, self.length, self.pulses)

    @property
    def group_bits(self) -> int:
        """Bits of the number of one group."""
        from ..kernels.pyramid import counts

        return (counts(self.length, self.pulses)[-1][-1] - 1).bit_length()

    def encode(self, x: Symbols) -> tuple[bytes, Side]:
        from ..kernels.pyramid import rank

        shape = x.index.shape
        if x.alphabet != 2 * self.pulses + 1 or not shape or shape[-1] % self.length:
            raise BadInput(
                f"symbols of shape {shape} and alphabet {x.alphabet}; groups of {self.length} and an alphabet of "
                f"{2 * self.pulses + 1} are right"
            )
        number = rank(x.index.reshape(-1, self.length).astype(np.int32) - self.pulses, self.pulses)
        n_bytes = -(-self.group_bits // 8)
        if number.dtype == np.uint64:
            words = number.astype(">u8").view(np.uint8).reshape(-1, 8)[:, 8 - n_bytes :]
        else:
            words = np.frombuffer(b"".join(int(i).to_bytes(n_bytes, "big") for i in number), np.uint8)
        bits = np.unpackbits(words.reshape(-1, n_bytes), axis=1)[:, 8 * n_bytes - self.group_bits :]
        return np.packbits(bits).tobytes(), {"shape": np.array(shape, np.uint64)}

    def decode(self, y: bytes, side: Side) -> Symbols:
        from ..kernels.pyramid import unrank

        if side["shape"].ndim != 1 or not 0 < len(side["shape"]) <= 16:
            raise CorruptStream(f"a shape of {side['shape'].shape}")
        shape = tuple(int(n) for n in side["shape"])
        n = math.prod(shape)
        n_groups, n_bits = n // self.length, self.group_bits
        if shape[-1] % self.length or len(y) != -(-n_groups * n_bits // 8):
            raise CorruptStream(
                f"{len(y):,} bytes for symbols of shape {shape} in groups of {self.length}, {n_bits} bits each"
            )
        n_bytes = -(-n_bits // 8)
        claim(8 * n_groups * n_bytes + n, "points of a pyramid")
        stream = np.unpackbits(np.frombuffer(y, np.uint8))
        if stream[n_groups * n_bits :].any():
            raise CorruptStream("bits behind the last group")
        bits = np.zeros((n_groups, 8 * n_bytes), np.uint8)
        bits[:, 8 * n_bytes - n_bits :] = stream[: n_groups * n_bits].reshape(n_groups, n_bits)
        words = np.packbits(bits, axis=1)
        if n_bits < 64:
            wide = np.zeros((n_groups, 8), np.uint8)
            wide[:, 8 - n_bytes :] = words
            number = wide.view(">u8").reshape(-1).astype(np.uint64)
        else:
            number = np.array([int.from_bytes(w.tobytes(), "big") for w in words], dtype=object)
        index = unrank(number, self.length, self.pulses) + self.pulses
        return Symbols(index.astype(np.uint8).reshape(shape), 2 * self.pulses + 1)
