"""The quantizer stage and the three parts it is made of: codebook, scale, rounding.

x ─ scale.measure ─▶ side ─ scale.expand ─▶ (step, offset)        what the decoder will see
x, step, offset ─ rounding(…, codebook) ─▶ index                  index of the level for (x − offset) / step
x̂ = codebook.lookup(index) · step + offset
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np

from ..core.errors import CorruptStream
from ..core.stage import Kind, Leaf, Levels, Part, Side, Stage, Stats, Symbols, encoder_only

if TYPE_CHECKING:
    from torch import Tensor


class Grid(NamedTuple):
    """What a scale means at every element: level q stands for q · step + offset. Both broadcast against x."""

    step: Tensor
    offset: Tensor | None = None

    def normalize(self, x: Tensor) -> Tensor:
        """(x − offset) / step; 0 where the step is 0."""
        step = self.step.masked_fill(self.step == 0, float("inf"))
        return (x if self.offset is None else x - self.offset) / step

    def denormalize(self, levels: Tensor) -> Tensor:
        """levels · step + offset."""
        y = levels * self.step
        return y if self.offset is None else y + self.offset


class Ladder(NamedTuple):
    """A scalar codebook in order of its levels: x belongs to the level whose number is how many thresholds lie below x.

    levels: (n,) float32, ascending. thresholds: (n − 1,) float32. index: (n,) int64, the index that stands for each level.
    """

    levels: np.ndarray
    thresholds: np.ndarray
    index: np.ndarray


@dataclass(frozen=True)
class Codebook(Part):
    """Reproduction points. Scalar codebooks work value by value; vector and trellis codebooks along the last axis.

    alphabet: number of indices. dim: values per index along the last axis (x: (..., n) -> index: (..., n / dim)).
    sequential: neighbours along the last axis are coded jointly, so a column cannot be quantized by itself.
    """

    dim: ClassVar[int] = 1
    sequential: ClassVar[bool] = False

    @property
    def alphabet(self) -> int:
        """Number of different indices."""
        raise NotImplementedError

    @property
    def columns(self) -> int:
        """Values along the last axis that are quantized together: `dim`, or as many columns as a sequence goes through."""
        return self.dim

    def fit(self, x: Tensor, weights: Tensor | None = None) -> Self:
        """Learn the points from normalised values `x`, squared errors weighted by `weights`; the default is fixed."""
        return self

    def nearest(self, x: Tensor) -> Tensor:
        """x: (..., n) float32, normalised -> index: (..., n / dim) int64 of the best point."""
        raise NotImplementedError

    def lookup(self, index: Tensor) -> Tensor:
        """index: (..., m) int64 -> (..., m · dim) float32. Raises CorruptStream for an index beyond the alphabet."""
        raise NotImplementedError

    def ladder(self) -> Ladder | None:
        """The levels in order, where a value's index depends on that value alone; None for vectors and sequences."""
        return None

    def span(self) -> tuple[float, float]:
        """Least and greatest reproduction value, for scales that fit the extremes of the data to those of the book."""
        raise NotImplementedError


@dataclass(frozen=True)
class Scale(Part):
    """How many numbers describe the size of the data, and how they are stored."""

    side: ClassVar[Mapping[str, Leaf]] = {}

    def measure(self, x: Tensor, codebook: Codebook, weights: Tensor | None = None) -> Side:
        """The side information for x, in the dtypes in which it is sent."""
        raise NotImplementedError

    def expand(self, side: Side, shape: tuple[int, ...]) -> Grid:
        """The grid that a decoder sees. Raises CorruptStream where the arrays do not fit `shape`."""
        raise NotImplementedError

    def run(self, shape: tuple[int, ...]) -> int:
        """Length of the runs along the last axis that share a step, counted from its beginning; the last may be short."""
        return 1


@dataclass(frozen=True)
class Unit(Scale):
    """No scale: the values are normalised already (a chain's earlier stage saw to it)."""

    def measure(self, x: Tensor, codebook: Codebook, weights: Tensor | None = None) -> Side:
        return {}

    def expand(self, side: Side, shape: tuple[int, ...]) -> Grid:
        import torch

        return Grid(torch.ones(()))

    def run(self, shape: tuple[int, ...]) -> int:
        return shape[-1]


@dataclass(frozen=True)
class Rounding(Part):
    """Chooses indices, given the grid and the codebook: `(x, grid, codebook, stats) -> index`."""

    def __call__(self, x: Tensor, grid: Grid, codebook: Codebook, stats: Stats | None) -> Tensor:
        """x: (..., n) -> index: (..., n / codebook.dim) int64."""
        raise NotImplementedError


@dataclass(frozen=True)
class Nearest(Rounding):
    """Every value (vector, sequence) by itself to the best point."""

    def __call__(self, x: Tensor, grid: Grid, codebook: Codebook, stats: Stats | None) -> Tensor:
        return codebook.nearest(grid.normalize(x))


@dataclass(frozen=True)
class Quantizer(Stage):
    """ARRAY -> SYMBOLS: scale, then codebook, with the given rounding.

    Shapes: x (..., n) float32 -> index (..., n / codebook.dim), unsigned, below codebook.alphabet.
    Side: that of `scale`.
    """

    codebook: Codebook
    scale: Scale = Unit()
    rounding: Rounding = Nearest()
    stats: Any = encoder_only()

    takes: ClassVar[Kind] = Kind.ARRAY
    gives: ClassVar[Kind] = Kind.SYMBOLS

    side = property(lambda self: self.scale.side)  # type: ignore[assignment]

    def fit(self, x: Tensor, stats: Stats | None = None) -> Self:
        """Learns the codebook on normalised values and keeps the statistics for the rounding."""
        weights = error_weights(stats)
        grid = self.scale.expand(self.scale.measure(x, self.codebook, weights), tuple(x.shape))
        return self.replace(codebook=self.codebook.fit(grid.normalize(x), weights), stats=stats)

    def push(self, stats: Stats) -> Stats:
        """None: symbols are not changed any more, so nothing behind the quantizer asks how errors hurt."""
        return Stats()

    def encode(self, x: Tensor) -> tuple[Symbols, Side]:
        weights = error_weights(self.stats)
        side = self.scale.measure(x, self.codebook, weights)
        grid = self.scale.expand(side, tuple(x.shape))
        index = self.rounding(x, grid, self.codebook, self.stats).numpy()
        return Symbols(index.astype(index_dtype(self.codebook.alphabet)), self.codebook.alphabet), side

    def decode(self, y: Symbols, side: Side) -> Tensor:
        import torch

        if y.alphabet != self.codebook.alphabet:
            raise CorruptStream(f"symbols of alphabet {y.alphabet} for a codebook of {self.codebook.alphabet} points")
        if not y.index.ndim:
            raise CorruptStream("symbols without an axis")
        levels = self.codebook.lookup(torch.from_numpy(y.index.astype(np.int64)))
        return self.scale.expand(side, tuple(levels.shape)).denormalize(levels)

    def levels(self, y: Symbols, side: Side) -> Levels | None:
        """Of scalar books with up to 256 levels."""
        import torch

        index, n = y.index, self.codebook.alphabet
        if self.codebook.ladder() is None or index.ndim != 2 or not index.size or y.alphabet != n or n > 256:
            return None
        used = np.flatnonzero(np.bincount(index.reshape(-1)))
        points = self.codebook.lookup(torch.from_numpy(used)).numpy()
        first = float(points[0]) - float(used[0])
        whole = first.is_integer() and bool((points == first + used).all())
        shape = tuple(index.shape)
        grid, run = self.scale.expand(side, shape), self.scale.run(shape)
        step, offset = (
            None if t is None else t.expand(shape)[:, ::run].contiguous().numpy() for t in (grid.step, grid.offset)
        )
        assert step is not None
        if whole:
            return Levels(index.astype(np.int16) + np.int16(first), step, run, offset, sent=side)
        table = np.zeros(n, np.float32)
        table[used] = points
        return Levels(index, step, run, offset, table=table, sent=side)


def error_weights(stats: Stats | None) -> Tensor | None:
    """How much each squared error counts for scales and codebooks: the importance, else the diagonal of the Hessian.

    The diagonal is what remains of the Hessian where errors do not know of each other. Columns that met no input keep a
    millionth of the mean, so that they still count as extremes. An importance of whole rows, (…, n_rows, 1), does not tell the
    values of a row apart and is left out.
    """
    if stats is None:
        return None
    importance = stats.importance
    if importance is not None and not (importance.ndim > 1 and importance.shape[-1] == 1):
        return importance
    if stats.hessian is None:
        return None
    diagonal = stats.hessian.diagonal(dim1=-2, dim2=-1).clamp(min=0)
    diagonal = diagonal if diagonal.ndim == 1 else diagonal.unsqueeze(-2)  # of heads: (n_heads, 1, d)
    mean = float(diagonal.mean())
    return diagonal.clamp(min=1e-6 * mean) if mean > 0 else None


def index_dtype(alphabet: int) -> type[np.unsignedinteger]:
    """The smallest unsigned dtype that holds every index below `alphabet`."""
    return np.uint8 if alphabet <= 1 << 8 else np.uint16 if alphabet <= 1 << 16 else np.uint32
