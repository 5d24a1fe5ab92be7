"""Vectors coded coordinate by coordinate, each at a rate of its own, in blocks of 64 vectors that a kernel reads as they lie."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

import numpy as np

from ..allocate import greedy
from ..core.errors import BadConfig, BadInput, CorruptStream, NotFitted, claim, unknown
from ..core.stage import Kind, Leaf, Side, Stage, Stats, learned
from .codebooks import LloydMax

if TYPE_CHECKING:
    from torch import Tensor

    from ..kernels.coordinates import Thresholds

BLOCK = 64  # vectors
MOST = 8  # bits of a coordinate
_TRAINING = 1 << 14  # values that train the levels of one coordinate
_ROUNDS = 40


class Tables(NamedTuple):
    """What reads codes. widths: uint8 (n_heads, r). levels: float32, the 2^width of one coordinate behind those of the one
    before, head by head; a single 0 for no bits.
    """

    widths: np.ndarray
    levels: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """(n_heads, r) int64, how many levels each has."""
        return 1 << self.widths.astype(np.int64)

    def of_head(self, h: int) -> list[np.ndarray]:
        """Levels by coordinate."""
        sizes = self.sizes
        start = int(sizes[:h].sum())
        return np.split(self.levels[start : start + int(sizes[h].sum())], np.cumsum(sizes[h])[:-1])

    def lookup(self, index: np.ndarray) -> np.ndarray:
        """(n_heads, n, r) uint8 -> the levels, float32."""
        sizes = self.sizes
        starts = (np.cumsum(sizes) - sizes.reshape(-1)).reshape(sizes.shape)
        return self.levels[starts[:, None] + index]

    def thresholds(self) -> list[Thresholds]:
        """Of every head, halfway between neighbouring levels, for `quantize_coordinates`."""
        from ..kernels.coordinates import Thresholds

        sizes = self.sizes
        ends = np.cumsum(sizes.sum(1))
        return [Thresholds.between(x, n) for x, n in zip(np.split(self.levels, ends[:-1]), sizes, strict=True)]

    @property
    def block_bytes(self) -> np.ndarray:
        """(n_heads,) int64 bytes of a block of 64 vectors."""
        return BLOCK // 8 * self.widths.astype(np.int64).sum(1)


@dataclass(frozen=True)
class BlockCodes(Stage):
    """ARRAY -> BYTES: what codes of coordinates share; a subclass says how many levels each coordinate has, and which.

    Codes lie as bit planes of 64 vectors (see `kernels.coordinates`), batch by batch, head by head, block by block.
    Shapes: x (..., n_heads, n_tokens, r). Side: the axes before the last; with `scale` "token" 16 bits a vector, its root mean
    square, by which it was divided.
    """

    takes: ClassVar[Kind] = Kind.ARRAY
    gives: ClassVar[Kind] = Kind.BYTES
    blocked: ClassVar[bool] = True  # codes can be read as they lie, see `sources.kv.past`
    scale = "none"  # a field of the subclasses

    @property
    def side(self) -> Mapping[str, Leaf]:  # type: ignore[override]
        outer = {"outer": Leaf("int64", "header")}
        if self.scale == "none":
            return outer
        return {**outer, "norms": Leaf("float16", "norms"), "unit": Leaf("float32", "norms")}

    def tables(self, n_heads: int, r: int, error: type[Exception] = BadInput) -> Tables:
        """Rates and levels for vectors of r coordinates."""
        raise NotImplementedError

    def coordinates(self, n_heads: int, n_bytes: int, n_blocks: int) -> int:
        """How many a vector has whose codes take so many bytes."""
        raise NotImplementedError

    def push(self, stats: Stats) -> Stats:
        """None: nothing behind bytes asks how errors hurt."""
        return Stats()

    def quantize(self, x: np.ndarray, thresholds: list[Thresholds]) -> tuple[np.ndarray, np.ndarray | None]:
        """(n_heads, n, r) float32 -> codes, uint8 of that shape, and the norms (n_heads, n) float16 or None."""
        from ..kernels.coordinates import quantize_coordinates

        rows, norms = self.normalized(x)
        index = np.stack([quantize_coordinates(rows[h], thresholds[h]) for h in range(len(rows))])
        return index, norms

    def encode(self, x: Tensor) -> tuple[bytes, Side]:
        from ..kernels.coordinates import pack_heads

        rows = _array(x, BadInput)
        tables = self.tables(rows.shape[-3], rows.shape[-1])
        unit = _unit(rows) if self.scale == "token" else np.float32(1)
        rows = rows / unit
        thresholds = tables.thresholds()
        found = [self.quantize(b, thresholds) for b in rows.reshape(-1, *rows.shape[-3:])]
        data = b"".join(pack_heads(index, tables.widths).tobytes() for index, _ in found)
        side: Side = {"outer": np.array(x.shape[:-1], np.int64)}
        if self.scale == "token":
            side["unit"] = np.array([unit], np.float32)
            side["norms"] = np.stack([n for _, n in found if n is not None]).reshape(x.shape[:-1])
        return data, side

    def decode(self, y: bytes, side: Side) -> Tensor:
        import torch

        from ..kernels.coordinates import unpack_heads

        outer = tuple(int(n) for n in side["outer"].ravel())
        if side["outer"].ndim != 1 or len(outer) < 2 or min(outer) < 0:
            raise CorruptStream(f"axes {outer}; (…, heads, tokens) is right")
        *lead, n_heads, n = outer
        r = self.coordinates(n_heads, len(y), math.prod(lead) * -(-n // BLOCK))
        claim(4 * math.prod(outer) * max(r, 1), "coordinates")
        tables = self.tables(n_heads, r, CorruptStream)
        size = int(tables.block_bytes.sum()) * -(-n // BLOCK)
        if size * math.prod(lead) != len(y):
            raise CorruptStream(f"{len(y):,} bytes of codes; {size * math.prod(lead):,} are right for {outer}")
        norms = self._norms(side, outer)
        data, out = np.frombuffer(y, np.uint8), np.empty((math.prod(lead), n_heads, n, r), np.float32)
        for b in range(len(out)):
            out[b] = tables.lookup(unpack_heads(data[b * size : (b + 1) * size], tables.widths, n))
        x = out.reshape(*outer, r)
        return torch.from_numpy(x if norms is None else x * norms[..., None])

    def _norms(self, side: Side, outer: tuple[int, ...]) -> np.ndarray | None:
        if self.scale != "token":
            return None
        if side["norms"].shape != outer or not np.isfinite(side["norms"]).all() or (side["norms"] < 0).any():
            raise CorruptStream(f"norms {side['norms'].shape} for {outer}, or negative or not finite")
        if side["unit"].shape != (1,) or not 0 < side["unit"][0] <= 2.0**110:
            raise CorruptStream(f"norms in units of {side['unit']}; one power of two is right")
        return side["norms"].astype(np.float32) * side["unit"][0]

    def normalized(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        if self.scale == "none":
            return rows, None
        norms = np.sqrt((rows.astype(np.float64) ** 2).mean(-1))
        if rows.size and norms.max() > 65504:
            raise BadInput(f"a vector of root mean square {norms.max():.3g}; 65504 is the most")
        norms = norms.astype(np.float16)
        factor = norms.astype(np.float32)[..., None]
        return np.divide(rows, factor, out=np.zeros_like(rows), where=factor > 0), norms


@dataclass(frozen=True)
class CoordinateCodes(BlockCodes):
    """Coordinate j of head h has 2^b_hj levels of its own, b from 0 to 8, learned with the rates.

    Coordinates are expected to be uncorrelated (`HeadBasis` in front). The rates share `bits`, the mean bits a coordinate over
    all heads, by their return: a bit goes where it takes away most squared error, weighted by the diagonal of `Stats.hessian`
    where there is one (Segall 1976; Fox 1966 for the marginal analysis). Levels are Lloyd–Max of the coordinate's own values.

    scale: "none", or "token", see `BlockCodes`.
    Cost in the model: 8 + 16 · 2^b bits a coordinate. A coordinate without bits is 0.
    """

    bits: float = 3.0
    scale: str = "none"  # type: ignore[misc]
    widths: np.ndarray | None = learned("uint8")
    points: np.ndarray | None = learned("float16")

    def __post_init__(self) -> None:
        _check_scale(self.scale)
        if not 0 < self.bits <= MOST:
            raise BadConfig(f"{self.bits} bits a coordinate; above 0 and at most {MOST} are right")

    def fit(self, x: Tensor, stats: Stats | None = None) -> Self:
        rows = np.moveaxis(_array(x, BadInput), -3, 0)
        n_heads, r = len(rows), rows.shape[-1]
        rows = self.normalized(np.ascontiguousarray(rows.reshape(n_heads, -1, r)))[0]
        error = _errors(rows, stats)
        bits = np.arange(MOST + 1, dtype=np.float64)
        choice = greedy(np.broadcast_to(bits, error.shape), error, math.floor(self.bits * n_heads * r + 1e-9))
        widths = choice.reshape(n_heads, r).astype(np.uint8)
        some = rows[:, :: max(1, rows.shape[1] // _TRAINING)]
        points = [_trained(some[h, :, j], 1 << int(b)) for (h, j), b in np.ndenumerate(widths) if b]
        flat = np.concatenate(points) if points else np.empty(0)
        return self.replace(widths=widths, points=np.clip(flat, -65504.0, 65504.0))

    def tables(self, n_heads: int, r: int, error: type[Exception] = BadInput) -> Tables:
        if self.widths is None or self.points is None:
            raise NotFitted("CoordinateCodes has learned no rates yet; call .fit(x) first")
        if self.widths.shape != (n_heads, r) or self.widths.max(initial=0) > MOST:
            raise error(f"rates of shape {self.widths.shape} for {n_heads} heads of {r} coordinates, {MOST} at most")
        sizes = np.where(self.widths > 0, 1 << self.widths.astype(np.int64), 0).reshape(-1)
        if self.points.shape != (int(sizes.sum()),) or not np.isfinite(self.points).all():
            raise error(f"levels of shape {self.points.shape} for rates that have {sizes.sum()}; finite ones are right")
        levels = np.zeros(int((1 << self.widths.astype(np.int64)).sum()), np.float32)
        coded = np.repeat(self.widths.reshape(-1) > 0, 1 << self.widths.reshape(-1).astype(np.int64))
        levels[coded] = self.points
        coordinate = np.repeat(np.arange(sizes.size), sizes)
        if ((np.diff(self.points.astype(np.float32)) < 0) & (np.diff(coordinate) == 0)).any():
            raise error("levels that do not ascend")
        return Tables(self.widths, levels)

    def coordinates(self, n_heads: int, n_bytes: int, n_blocks: int) -> int:
        if self.widths is None or self.widths.ndim != 2:
            raise CorruptStream("no rates for the coordinates")
        return int(self.widths.shape[1])


@dataclass(frozen=True)
class LawCodes(BlockCodes):
    """All coordinates at `bits` whole bits, with the Lloyd–Max levels of a law that is known: nothing is learned.

    law: "sphere", of a coordinate of a random direction, or "gaussian". scale: "token" or "none", see `BlockCodes`.
    """

    bits: int = 3
    law: str = "sphere"
    scale: str = "token"  # type: ignore[misc]

    def __post_init__(self) -> None:
        _check_scale(self.scale)
        if self.law not in ("gaussian", "sphere"):
            raise unknown("law", self.law, ["gaussian", "sphere"])
        if not 1 <= self.bits <= MOST or self.bits != int(self.bits):
            raise BadConfig(
                f"{self.bits} bits a coordinate under one law for all; a whole number from 1 to {MOST} is right"
            )

    def tables(self, n_heads: int, r: int, error: type[Exception] = BadInput) -> Tables:
        if r < 2:
            raise error(f"vectors of {r} coordinates; 2 or more are right")
        book = LloydMax(1 << int(self.bits), self.law, r if self.law == "sphere" else 0)
        points = book.points() * np.float32(math.sqrt(r) if self.law == "sphere" else 1)
        return Tables(np.full((n_heads, r), int(self.bits), np.uint8), np.tile(points, n_heads * r))

    def coordinates(self, n_heads: int, n_bytes: int, n_blocks: int) -> int:
        unit = BLOCK // 8 * int(self.bits) * n_heads * n_blocks
        return n_bytes // unit if unit else 2


@dataclass(frozen=True)
class RangeCodes(BlockCodes):
    """All coordinates at `bits` whole bits, each with even steps over the range that the training vectors have there.

        level i = low + (i + ½) (high − low) / 2^bits

    Cost in the model: 64 bits a coordinate. What lies beyond the range is the first or the last level. Codes as in `BlockCodes`.
    """

    bits: int = 8
    low: np.ndarray | None = learned("float32", "scales")
    high: np.ndarray | None = learned("float32", "scales")

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= MOST or self.bits != int(self.bits):
            raise BadConfig(f"{self.bits} bits a coordinate; a whole number from 1 to {MOST} is right")

    def fit(self, x: Tensor, stats: Stats | None = None) -> Self:
        rows = _array(x, BadInput)
        if not rows.size:
            raise BadInput("ranges cannot be learned from no vectors")
        rows = np.moveaxis(rows, -3, 0).reshape(rows.shape[-3], -1, rows.shape[-1])
        return self.replace(low=rows.min(1), high=rows.max(1))

    def tables(self, n_heads: int, r: int, error: type[Exception] = BadInput) -> Tables:
        if self.low is None or self.high is None:
            raise NotFitted("RangeCodes has learned no ranges yet; call .fit(x) first")
        low, high = self.low, self.high
        finite = bool(np.isfinite(low).all() and np.isfinite(high).all())
        if low.shape != (n_heads, r) or high.shape != low.shape or not finite or (low > high).any():
            raise error(f"ranges of shapes {low.shape} and {high.shape} for {n_heads} heads of {r}, or not in order")
        low, high = low.astype(np.float64), high.astype(np.float64)
        n = 1 << int(self.bits)
        levels = low[..., None] + (np.arange(n) + 0.5) * ((high - low) / n)[..., None]
        return Tables(np.full((n_heads, r), int(self.bits), np.uint8), levels.astype(np.float32).reshape(-1))

    def coordinates(self, n_heads: int, n_bytes: int, n_blocks: int) -> int:
        if self.low is None or self.low.ndim != 2:
            raise CorruptStream("no ranges for the coordinates")
        return int(self.low.shape[1])


def _unit(rows: np.ndarray) -> np.float32:
    """A power of two near the largest value, in which float16 can tell the sizes of vectors."""
    most = float(np.abs(rows).max(initial=0.0))
    return np.float32(2.0 ** min(max(math.frexp(most)[1], -120), 110)) if most else np.float32(1)


def _check_scale(scale: str) -> None:
    if scale not in ("none", "token"):
        raise unknown("scale", scale, ["none", "token"])


def _array(x: Tensor, error: type[Exception]) -> np.ndarray:
    if x.ndim < 3:
        raise error(f"an array of shape {tuple(x.shape)}; (…, heads, tokens, coordinates) is right")
    return np.ascontiguousarray(x.detach().cpu().numpy(), np.float32)


def _errors(rows: np.ndarray, stats: Stats | None) -> np.ndarray:
    """(n_heads · r, 9) squared error of every coordinate at 0 to 8 bits, as if it were Gaussian, in the metric of the Hessian."""
    n_heads, _, r = rows.shape
    power = (rows.astype(np.float64) ** 2).mean(1)
    if stats is not None and stats.hessian is not None:
        power = power * np.diagonal(stats.hessian.numpy(), axis1=-2, axis2=-1)
    least = [1.0, *(LloydMax(1 << b).distortion() for b in range(1, MOST + 1))]
    return np.maximum(power.reshape(-1, 1), 1e-30) * np.array(least)


def _trained(values: np.ndarray, n: int) -> np.ndarray:
    """n ascending levels for values of one coordinate, by Lloyd's iterations from those of a Gaussian."""
    from ..kernels.scalar import lloyd

    v = np.sort(values).astype(np.float64)
    if not len(v) or v[0] == v[-1]:
        return np.full(n, v.mean() if len(v) else 0.0)
    deviation = v.std()
    levels = v.mean() + deviation * LloydMax(n).points().astype(np.float64)
    lloyd(v, np.append(0.0, np.cumsum(v)), levels, _ROUNDS, 1e-4 * deviation)
    return levels
