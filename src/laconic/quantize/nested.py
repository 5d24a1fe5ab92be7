"""Nested codes: a coarser code is a finer one without its low bits, so that data can age without being coded again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..core.errors import BadConfig, BadInput, CorruptStream, claim
from ..core.stage import Kind, Leaf, Side, Stage, Stats
from .scales import Along, expect, from_half, to_half

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class NestedCodes(Stage):
    """ARRAY -> BYTES: equal cells over the range of a group, coded as bit planes of each segment, the highest plane first.

        q = ⌊(x − low) / range · 2^b⌋,   x̂ = low + ½ ((q + ½) / 2^b + q / (2^b − 1)) · range

    The b' high bits of q are the code of x at b' bits: dropping the last planes of a segment is what quantizing it anew would
    give, with no second rounding. Levels lie halfway between the middles of the cells and places that would reach the ends of
    the range: the extremes of keys weigh most in a softmax. By age are kept steps[0] of the newest segment, steps[1] of the one
    before, …, the last step of all older ones.

    steps: bits by age, falling, up to 8. segment: tokens that age together. by: "channel", a range for each channel of a segment,
    or "token", for each `group` values of a token.
    Shapes: x (..., n_tokens, d), n_tokens a multiple of `segment`. Side: low and range, 32 bits a group; the shape.
    Source: SAQ, Ye et al. 2024 (2410.18441), section 5 (the staircase), with nested codes in place of coding anew.
    """

    steps: tuple[int, ...] = (8, 4, 2)
    segment: int = 32
    by: str = "channel"
    group: int = 32

    takes: ClassVar[Kind] = Kind.ARRAY
    gives: ClassVar[Kind] = Kind.BYTES
    side: ClassVar[Mapping[str, Leaf]] = {
        "low": Leaf("float16", "zeros"),
        "range": Leaf("float16", "scales"),
        "exponents": Leaf("int16", "scales"),
        "outer": Leaf("int64", "header"),
    }

    def __post_init__(self) -> None:
        if not self.steps or not all(1 <= b <= 8 for b in self.steps) or list(self.steps) != sorted(self.steps)[::-1]:
            raise BadConfig(f"steps {self.steps}; bits that fall with age, each from 1 to 8, are right")
        if self.segment < 1 or self.group < 1 or self.by not in ("channel", "token"):
            raise BadConfig(f"segment {self.segment}, by {self.by!r}, group {self.group}; 1 or more, channel or token")

    def push(self, stats: Stats) -> Stats:
        """None: nothing behind bytes asks how errors hurt."""
        return Stats()

    def encode(self, x: Tensor) -> tuple[bytes, Side]:
        if x.ndim < 2 or not x.numel() or x.shape[-2] % self.segment:
            raise BadInput(
                f"an array of shape {tuple(x.shape)}; (…, tokens, dim), {self.segment} tokens or a multiple, is right"
            )
        groups = self._groups()
        rows = groups.gather(x)
        shape = tuple(x.shape)
        low, width = groups.scatter(rows.amin(1), shape), groups.scatter(rows.amax(1) - rows.amin(1), shape)
        (low16, e), (width16, f) = to_half(low.numpy()), to_half(width.numpy())
        side = {
            "low": low16,
            "range": width16,
            "exponents": np.array([e, f], np.int16),
            "outer": np.array(shape, np.int64),
        }
        origin, span = self._ranges(side, shape)
        cells = float(1 << self.steps[0])
        index = ((x - origin) / span.masked_fill(span == 0, float("inf")) * cells).floor().clamp(0, cells - 1)
        parts = self._segments(index.numpy().astype(np.uint8))
        widths = self.widths(len(parts))
        return b"".join(packed(p >> (self.steps[0] - b), b) for p, b in zip(parts, widths, strict=True)), side

    def decode(self, y: bytes, side: Side) -> Tensor:
        import torch

        shape = self._shape(side["outer"])
        origin, span = self._ranges(side, shape)
        if math.prod(shape) > 8 * len(y):
            raise CorruptStream(f"{len(y):,} bytes for {math.prod(shape):,} values of a bit or more")
        n = shape[-2] // self.segment
        size, widths, at, parts = math.prod(shape) // n, self.widths(n), 0, []
        if len(y) != sum(-(-size // 8) * b for b in widths):
            raise CorruptStream(
                f"{len(y):,} bytes of bit planes for segments of {size:,} values at {widths[:8]} … bits"
            )
        for b in widths:
            end = at + -(-size // 8) * b
            parts.append(_places(b)[unpacked(y[at:end], b, size)])
            at = end
        cells = np.stack(parts).reshape(n, *shape[:-2], self.segment, shape[-1])
        flat = np.ascontiguousarray(np.moveaxis(cells, 0, -3)).reshape(shape)
        return torch.from_numpy(flat) * span + origin

    def widths(self, n_segments: int) -> list[int]:
        """Bits of every segment, the oldest first."""
        return [self.steps[min(age, len(self.steps) - 1)] for age in range(n_segments)][::-1]

    def _groups(self) -> Along:
        return Along(self.segment, -2) if self.by == "channel" else Along(self.group, -1)

    def _segments(self, index: np.ndarray) -> np.ndarray:
        """(..., n_tokens, d) -> (n_segments, values)."""
        shape = index.shape
        split = index.reshape(*shape[:-2], -1, self.segment, shape[-1])
        return np.ascontiguousarray(np.moveaxis(split, -3, 0)).reshape(shape[-2] // self.segment, -1)

    def _shape(self, outer: np.ndarray) -> tuple[int, ...]:
        if outer.ndim != 1 or not 2 <= len(outer) <= 16 or (outer < 1).any() or outer[-2] % self.segment:
            raise CorruptStream(
                f"nested codes of shape {outer.ravel()[:8]}; whole segments of {self.segment} tokens are right"
            )
        shape = tuple(int(v) for v in outer)
        claim(16 * math.prod(shape), "nested codes")
        return shape

    def _ranges(self, side: Side, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        import torch

        groups = self._groups()
        lattice, exponents = groups.lattice(shape), expect(side, "exponents", (2,))
        both = (from_half(expect(side, k, lattice), int(e)) for k, e in zip(("low", "range"), exponents, strict=True))
        low, span = (groups.spread(torch.from_numpy(a), shape) for a in both)
        if bool((span < 0).any()) or not bool(torch.isfinite(low.abs() + span).all()):
            raise CorruptStream("ranges that are negative or not finite")
        return low, span


def packed(index: np.ndarray, bits: int) -> bytes:
    """uint8 (n,) below 2^bits -> bit planes, the highest first, each ⌈n / 8⌉ bytes."""
    return b"".join(np.packbits(index >> b & 1).tobytes() for b in range(bits - 1, -1, -1))


def unpacked(data: bytes, bits: int, n: int) -> np.ndarray:
    """The inverse of `packed`: uint8 (n,)."""
    planes = np.unpackbits(np.frombuffer(data, np.uint8).reshape(bits, -1), axis=1, count=n)
    return (planes << np.arange(bits - 1, -1, -1, dtype=np.uint8)[:, None]).sum(0, dtype=np.uint8)


def _places(bits: int) -> np.ndarray:
    """Where the level of each cell lies in a range from 0 to 1: float32 (2^bits,)."""
    q, n = np.arange(1 << bits), 1 << bits
    return (((q + 0.5) / n + q / (n - 1)) / 2).astype(np.float32)


def coarser(payload: bytes, bits: int, fewer: int) -> bytes:
    """A segment's planes without the lowest: what was coded at `bits` bits as it would be at `fewer`."""
    return payload[: len(payload) // bits * fewer]
