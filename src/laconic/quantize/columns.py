"""Vectors that run down the columns of a matrix, so that a whole vector meets one input."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from ..core.errors import BadConfig, BadInput, CorruptStream, NotFitted, claim
from ..core.stage import learned
from .base import Codebook
from .vector import _power_of_two, checked_index

if TYPE_CHECKING:
    from torch import Tensor

_GAINS = {1: 0.0, 2: 0.34, 3: 0.56, 4: 0.75, 6: 1.0, 8: 1.2}  # dB that vectors of so many Gaussian values save over one
_MOST_BITS = 12  # of an index into one table: k-means takes time in proportion to the points
_TABLE_SHARE = 1 / 16  # of the indices' rate that the tables may take on top
_VECTORS_PER_POINT = 4


class _Layout(NamedTuple):
    length: int
    index_bits: int


@dataclass(frozen=True)
class ColumnVQ(Codebook):
    """Points for vectors of v values in one column; with `stages` > 1 each stage codes what the ones before left over.

        x (m, n) ─▶ (m / v, n) indices, each ⌊log2 K⌋ · stages bits

    A vector meets one input alone, so under a Hessian its error is weighed by one number, H_jj: the nearest point is the best
    one, and an error-feedback sweep goes column by column. v in 1 … 8, K up to 4096: the pair with the least expected error
    of Gaussian values whose indices take at most `bits` a value and whose tables take at most a sixteenth of that on top.
    Small matrices get short vectors and few points.

    Learned: table (stages, K, v) in units of `gain`, by k-means under the weights, stage after stage; in total
    16 · stages · K · v bits. Index: i_1 K^(stages − 1) + … + i_stages.
    Raises BadInput for an array that is no matrix, BadConfig for rows that cannot be cut within the rate.
    Source: Liu et al. 2024, VPTQ (2409.17066): channel-independent second-order optimization, residual quantization.
    """

    bits: float = 2.0
    stages: int = 1
    iterations: int = 25
    seed: int = 0
    table: np.ndarray | None = learned("float16")
    gain: np.ndarray | None = learned("float32", "scales")

    def __post_init__(self) -> None:
        if not 0.25 <= self.bits <= 8 or not 1 <= self.stages <= 2 or not 1 <= self.iterations <= 1000:
            raise BadConfig(
                f"bits {self.bits}, stages {self.stages}, iterations {self.iterations}; .25 … 8, 1 … 2 and 1 … 1000 are possible"
            )
        if self.gain is not None and not (self.gain.shape == (1,) and 0 < self.gain[0] <= 2.0**119):
            raise CorruptStream(f"a gain of {self.gain.ravel()[:1]}; one power of two up to 2^119 is expected")
        if self.table is not None:
            shape = self.table.shape
            points = shape[1] if len(shape) == 3 else 0
            if points.bit_count() != 1 or points > 1 << _MOST_BITS or shape[0] != self.stages or shape[2] not in _GAINS:
                raise CorruptStream(
                    f"tables of shape {shape}; ({self.stages}, 2^b, v) with v of {[*_GAINS]} is expected"
                )
            if not np.isfinite(self.table).all():
                raise CorruptStream("tables with values that are not finite")

    @property
    def alphabet(self) -> int:
        return 1 if self.table is None else self.table.shape[1] ** self.stages

    def span(self) -> tuple[float, float]:
        return -1.0, 1.0

    def layout(self, m: int, n: int) -> _Layout:
        """Length of vectors and bits of an index for an (m, n) matrix."""
        best, least = None, 0.0
        for length in (v for v in _GAINS if m % v == 0):
            for index_bits in range(1, _MOST_BITS + 1):
                if index_bits * self.stages > 16:
                    break
                rate, tables = index_bits * self.stages / length, 16 * length * self.stages * 2**index_bits / (m * n)
                if rate > self.bits + 1e-9 or tables > _TABLE_SHARE * self.bits:
                    break
                if m * n // length < _VECTORS_PER_POINT << index_bits:
                    break
                saved = 6.02 * rate + _GAINS[length]
                if saved > least:
                    best, least = _Layout(length, index_bits), saved
        if best is None:
            raise BadConfig(
                f"{self.bits:g} bits in {self.stages} stages leave no table for a matrix of {m} × {n}; give more bits"
            )
        return best

    def fit(self, x: Tensor, weights: Tensor | None = None) -> Self:
        from ..kernels.kmeans import kmeans

        m, n = _matrix(x)
        length, index_bits = self.layout(m, n)
        rows = _down(x, length)
        gain = _power_of_two(rows)
        rows = rows / gain
        w = None
        if weights is not None:
            if bool((weights < 0).any()) or not bool((weights > 0).any()):
                raise BadInput("importance must not be negative, and not zero everywhere")
            w = _down(weights.to(x.dtype).broadcast_to(x.shape), length)
            w = np.ascontiguousarray(w[:, :1]) if (w == w[:, :1]).all() else w
        tables = []
        for stage in range(self.stages):
            seed = self.seed + stage
            table = kmeans(rows, 1 << index_bits, weights=w, iterations=self.iterations, seed=seed, start="plusplus")
            table = table.astype(np.float16).astype(np.float32)
            tables.append(table)
            rows = rows - table[_nearest(rows, table)]
        return self.replace(table=np.stack(tables), gain=np.array([gain]))

    @cached_property
    def _tables(self) -> np.ndarray:
        if self.table is None:
            raise NotFitted("ColumnVQ has no table yet; call fit first")
        return self.table.astype(np.float32)

    @cached_property
    def _points(self) -> list[Any]:
        from ..kernels.distance import points

        return [points(table) for table in self._tables]

    def nearest(self, x: Tensor) -> Tensor:
        """x: (m, n) -> (m / v, n)."""
        import torch

        from ..kernels.distance import nearest

        m, n = _matrix(x)
        length = self._tables.shape[2]
        if m % length:
            raise BadInput(f"{m} rows for vectors of {length} in a column; fit on this matrix")
        rows = _down(x, length) / self._gain()
        index = np.zeros(len(rows), np.int64)
        for table, points in zip(self._tables, self._points, strict=True):
            found, _ = nearest(np.ascontiguousarray(rows), points)
            index = index * len(table) + found
            rows = rows - table[found]
        return torch.from_numpy(np.ascontiguousarray(index.reshape(n, m // length).T))

    def lookup(self, index: Tensor) -> Tensor:
        """index: (m / v, n) -> (m, n)."""
        import torch

        if index.ndim != 2:
            raise CorruptStream(f"indices of shape {tuple(index.shape)}; those of a matrix are expected")
        i = np.ascontiguousarray(checked_index(index, self.alphabet, 1).T)
        length, n_points = self._tables.shape[2], self._tables.shape[1]
        claim(4 * i.size * length, "points of a codebook")
        out = np.zeros((*i.shape, length), np.float32)
        for stage in reversed(range(self.stages)):
            out += self._tables[stage][i % n_points]
            i = i // n_points
        top = torch.finfo(torch.float32).max
        values = (torch.from_numpy(out) * float(self._gain())).clamp_(-top, top)
        return values.reshape(len(i), -1).T.contiguous()

    def _gain(self) -> np.float32:
        return np.float32(1 if self.gain is None else self.gain[0])


def _matrix(x: Tensor) -> tuple[int, int]:
    if x.ndim != 2:
        raise BadInput(f"shape {tuple(x.shape)}; vectors down a column need a matrix")
    return int(x.shape[0]), int(x.shape[1])


def _down(x: Tensor, length: int) -> np.ndarray:
    """x: (m, n) -> (n · m / length, length): the vectors of the first column, then those of the second."""
    return np.ascontiguousarray(x.detach().cpu().numpy().T.reshape(-1, length), np.float32)


def _nearest(rows: np.ndarray, table: np.ndarray) -> np.ndarray:
    from ..kernels.distance import nearest, points

    return nearest(rows, points(table))[0]
