"""Vectors cut into segments that have bits of their own, each segment rotated, rounded on a grid, and its codes adjusted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from ..core.errors import BadConfig, BadInput, CorruptStream, NotFitted, claim
from ..core.stage import Kind, Leaf, Side, Stage, Stats, learned

if TYPE_CHECKING:
    from torch import Tensor

_MOST = 8  # bits of a coordinate
_FACTOR_BITS = 16  # of a segment of a vector


def cut(variance: np.ndarray, budget_bits: float, unit: int, adaptive: bool = True) -> list[tuple[int, int]]:
    """Segments (coordinates, bits a coordinate) in order, of the least Σ variance / 4^bits for the budget in bits a vector.

    variance: (d,), of the coordinates. unit: coordinates that a segment has a multiple of; the last one may have fewer. Every
    segment with bits takes 16 more for its factor. adaptive: False for one segment. A dynamic programme over (end, bits spent).
    """
    d = len(variance)
    edges = [*range(0, d, unit), d]
    power = np.asarray(variance, np.float64)
    total = np.append(0.0, np.cumsum(power if power.sum() > 0 else np.ones(d)))  # of nothing, all have the same share
    budget = math.floor(budget_bits + 1e-9)
    if not adaptive:
        bits = min((budget - _FACTOR_BITS) // d, _MOST)
        return [(d, max(bits, 0))]
    n = len(edges) - 1
    best = np.full((n + 1, budget + 1), np.inf)
    best[0] = 0.0
    came: dict[tuple[int, int], tuple[int, int]] = {}
    for j in range(1, n + 1):
        for i in range(j):
            size, share = edges[j] - edges[i], total[edges[j]] - total[edges[i]]
            for bits in range(_MOST + 1):
                price = size * bits + (_FACTOR_BITS if bits else 0)
                if price > budget:
                    break
                found = best[i, : budget + 1 - price] + share / 4.0**bits
                better = np.flatnonzero(found < best[j, price:]) + price
                best[j, better] = found[better - price]
                came.update({(j, int(b)): (i, bits) for b in better})
    out, j, left = [], n, int(best[n].argmin())
    while j:
        i, bits = came[j, left]
        out.append((edges[j] - edges[i], bits))
        left -= (edges[j] - edges[i]) * bits + (_FACTOR_BITS if bits else 0)
        j = i
    return out[::-1]


@dataclass(frozen=True)
class SegmentCodes(Stage):
    """ARRAY -> BYTES: segments of coordinates at 0 to 8 bits each, adjusted codes and one factor a segment.

        segment o ─ random rotation ─▶ code c on a grid, adjusted ─▶ ô = f c,   f = ‖o‖² / ⟨o, c⟩ or ⟨o, c⟩ / ‖c‖²

    bits: the mean a coordinate with the factors counted. unit: see `cut`. unbiased: the first f, for which ⟨q, ô⟩ has no bias
    over the rotations; else the second, which has the least squared error. adaptive: False for one segment. rounds: of
    adjustment, 0 for plain rounding.

    Coordinates should come in order of variance (`KLT` in front). Shapes: x (…, d). Side: the axes before the last; a float16
    factor a segment of a vector, in units of a power of two. Learned: `table`, 2 values a segment.
    Source: Li et al. 2025, SAQ: dimension segmentation and code adjustment. Differs: one factor of 16 bits a segment in place of
    two of 32; the programme weighs a segment by 4^−bits, the law of squared error, not 2^−bits.
    """

    bits: float = 4.0
    unit: int = 16
    unbiased: bool = True
    adaptive: bool = True
    rounds: int = 6
    seed: int = 0
    table: np.ndarray | None = learned("uint16")  # (n_segments, 2): coordinates, bits

    takes: ClassVar[Kind] = Kind.ARRAY
    gives: ClassVar[Kind] = Kind.BYTES
    side: ClassVar[Mapping[str, Leaf]] = {
        "rows": Leaf("int64", "header"), "factors": Leaf("float16", "norms"), "step": Leaf("float32", "norms")
    }  # fmt: skip

    def __post_init__(self) -> None:
        if not 0 < self.bits <= _MOST + 1 or not 1 <= self.unit <= 4096 or not 0 <= self.rounds <= 100:
            raise BadConfig(
                f"bits {self.bits}, unit {self.unit}, rounds {self.rounds}; up to 9, 1 … 4096, 0 … 100 are right"
            )
        t = self.table
        if t is not None and (
            t.ndim != 2 or t.shape[1] != 2 or not len(t) or t[:, 0].min() < 1 or t[:, 1].max() > _MOST
        ):
            raise CorruptStream(f"segments of shape {t.shape}; (n, 2), coordinates and up to {_MOST} bits, are right")
        if t is not None and t[:, 0].sum(dtype=np.int64) > 4096:
            raise CorruptStream(f"segments of {t[:, 0].sum(dtype=np.int64)} coordinates; 4096 are the most")

    def fit(self, x: Tensor, stats: Stats | None = None) -> Self:
        rows = self._rows(x)
        if not len(rows):
            raise BadInput("segments cannot be learned from no vectors")
        d = rows.shape[1]
        found = cut(np.square(rows, dtype=np.float64).mean(0), self.bits * d, self.unit, self.adaptive)
        if not any(bits for _, bits in found):
            raise BadConfig(
                f"{self.bits} bits a coordinate of {d} leave none beside a factor; {1 + 16 / d:.2f} are enough"
            )
        return self.replace(table=np.array(found, np.uint16))

    def push(self, stats: Stats) -> Stats:
        """None: nothing behind bytes asks how errors hurt."""
        return Stats()

    def encode(self, x: Tensor) -> tuple[bytes, Side]:
        from ..kernels.adjust import adjust
        from ..kernels.bits import pack
        from ..kernels.product import product
        from ..kernels.random import random_orthogonal

        rows, coded = self._rows(x), self._coded(BadInput)
        if rows.shape[1] != self._width():
            raise BadInput(f"vectors of {rows.shape[1]}; the segments have {self._width()}")
        factors, parts = np.zeros((len(rows), len(coded)), np.float64), []
        for s, (at, size, bits) in enumerate(coded):
            turn = random_orthogonal(self.seed + s, size)
            o = product(np.ascontiguousarray(rows[:, at : at + size]), turn, transposed=True)
            code = adjust(o, bits, self.rounds)
            c = code - ((1 << bits) - 1) / 2
            dot = (o * c).sum(1)
            up, down = (np.square(o, dtype=np.float64).sum(1), dot) if self.unbiased else (dot, (c * c).sum(1))
            np.divide(up, down, out=factors[:, s], where=down > 0)
            parts.append(pack(code.reshape(-1), bits).tobytes())
        top = float(np.abs(factors).max(initial=0.0))
        step = np.float32(2.0 ** min(max(math.frexp(top)[1], -120), 120)) if top else np.float32(1)
        side = {"rows": np.array(x.shape[:-1], np.int64), "factors": (factors / step).astype(np.float16)}
        return b"".join(parts), {**side, "step": np.array([step], np.float32)}

    def decode(self, y: bytes, side: Side) -> Tensor:
        import torch

        from ..kernels.bits import packed_bytes, unpack
        from ..kernels.product import product
        from ..kernels.random import random_orthogonal

        outer, factors, step = tuple(int(n) for n in side["rows"].ravel()), side["factors"], side["step"]
        coded, d = self._coded(CorruptStream), self._width()
        if min(outer, default=0) < 0 or step.shape != (1,) or not 0 < step[0] <= 2.0**120:
            raise CorruptStream(f"axes {outer}, factors in units of {step[:2]}; sizes and a power of two are right")
        n = math.prod(outer)
        claim(8 * n * d, "segments")
        lengths = [packed_bytes(n * size, bits) for _, size, bits in coded]
        if factors.shape != (n, len(coded)) or not np.isfinite(factors).all() or sum(lengths) != len(y):
            raise CorruptStream(
                f"{len(y):,} bytes and factors {factors.shape}; {sum(lengths):,} and {(n, len(coded))} are right"
            )
        out, data, place = np.zeros((n, d), np.float32), np.frombuffer(y, np.uint8), 0
        for s, ((at, size, bits), length) in enumerate(zip(coded, lengths, strict=True)):
            code = unpack(data[place : place + length], bits, n * size).reshape(n, size)
            c = (code.astype(np.float32) - np.float32(((1 << bits) - 1) / 2)) * (
                factors[:, s : s + 1].astype(np.float32) * step
            )
            out[:, at : at + size] = product(np.ascontiguousarray(c), random_orthogonal(self.seed + s, size))
            place += length
        return torch.from_numpy(out.reshape(*outer, d))

    def _width(self) -> int:
        assert self.table is not None
        return int(self.table[:, 0].sum(dtype=np.int64))

    def _coded(self, error: type[Exception]) -> list[tuple[int, int, int]]:
        """(first coordinate, coordinates, bits) of the segments that have bits."""
        if self.table is None:
            raise NotFitted("SegmentCodes has no segments yet; call .fit(x) first")
        ends = np.cumsum(self.table[:, 0], dtype=np.int64)
        return [(int(e - n), int(n), int(b)) for e, (n, b) in zip(ends, self.table, strict=True) if b]

    @staticmethod
    def _rows(x: Tensor) -> np.ndarray:
        if not x.ndim or not x.shape[-1]:
            raise BadInput(f"an array of shape {tuple(x.shape)}; (…, d) with d above 0 is right")
        return np.ascontiguousarray(x.detach().cpu().numpy().reshape(-1, x.shape[-1]), np.float32)
