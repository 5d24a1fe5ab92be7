"""Trellis codebooks: sequences of values at an exact rate, a few tenths of a dB from the rate–distortion bound.

Mean squared error of `Trellis` on 2^20 values of N(0, 1) in blocks of 1024, and how far that is above 4^−bits. A symbol
takes bits · dim bits and nothing else is sent. Encoding speed at 2 bits, one core of a 2024 server.

    states    1 bit           2 bits          3 bits           4 bits           values/s
    2^8       .2815  .52 dB   .0727  .66 dB   .01846  .73 dB   .00465  .76 dB   26 M
    2^10      .2718  .36      .0695  .46      .01758  .51      .00441  .53      8.7 M
    2^12      .2668  .28      .0679  .36      .01711  .39      .00429  .41      5.3 M
    2^14      .2631  .22      .0668  .29      .01683  .32      .00422  .33      1.7 M
    2^16      .2610  .19      .0662  .25      .01664  .27      .00418  .29      .49 M
    2^18      .2593  .16      .0656  .21      .01649  .23      .00414  .25      .085 M
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import log, prod, sqrt
from statistics import NormalDist
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

import numpy as np

from ..core.errors import BadConfig, BadInput, CodecError, CorruptStream, NotFitted, claim, unknown
from ..core.stage import learned
from .base import Codebook

if TYPE_CHECKING:
    from torch import Tensor

    from ..kernels.trellis import Code

_STEP = 2.0**-12  # computed levels are multiples of it: coarser by far than what two libraries' logarithms differ by
_MOST_STEPS = 1 << 32  # states · length: the search keeps 1/16 of a byte for each, half as much again for some rates
_FRACTION_BITS = 6  # of a learned table
_FIT_VALUES = 1 << 18
_FIT_ROUNDS = 12
_FIT_GAIN = 1e-3  # stop when a round gains less
# How far to stretch a law's quantiles, by bits. Few bits shrink the reproduction (a Gaussian's should have variance 1 − D),
# many bits need points beyond the last quantile.
_SPREAD = {
    "gaussian": ((1, 0.885), (1.5, 0.96), (2, 1.02), (3, 1.045), (4, 1.07), (6, 1.12), (8, 1.15)),
    "laplace": ((1, 0.93), (1.5, 1.04), (2, 1.12), (3, 1.25), (4, 1.3), (6, 1.4), (8, 1.45)),
}


def _gaussian(p: float) -> float:
    return NormalDist().inv_cdf(p)


def _laplace(p: float) -> float:
    return log(2 * p) / sqrt(2) if p < 0.5 else -log(2 * (1 - p)) / sqrt(2)


_LAWS = {"gaussian": _gaussian, "laplace": _laplace}  # quantiles, variance 1


@lru_cache(maxsize=32)
def _levels(law: str, bits: float, free: int, depth: int) -> np.ndarray:
    """Level of cell j (of 2^free) and fraction f (of 2^depth): float32 (2^free, 2^depth)."""
    n = 1 << (free + depth)
    spread = np.interp(bits, *zip(*_SPREAD[law], strict=True))
    quantiles = [_LAWS[law]((i + 0.5) / n) for i in range(n // 2)]
    upper = np.rint(-spread / _STEP * np.array(quantiles)) * _STEP
    levels = np.concatenate([-upper, upper[::-1]])
    return levels.reshape(1 << free, 1 << depth).astype(np.float32)


@dataclass(frozen=True)
class TrellisCodebook(Codebook):
    """Tail-biting trellis-coded quantization: base of the trellises, which differ in where their levels come from.

    Sequences run along the last axis, cut into equal blocks of about `length` values; with `rows` > 1 through tiles of
    that many neighbouring rows and length / rows columns, so that an error-feedback sweep can go by few columns.

    bits: 1 to 8 bits a value, a fraction P bits of which make whole numbers for a P of up to 16, a symbol (P values) taking
    at most 16 bits: steps of 1/8 to 2 bits, of 1/4 to 4 bits, of 1/2 to 8 bits.
    states: 2^8 to 2^20. Twice as many take twice the time to encode; decoding costs the same.
    Shapes: x (..., rows · k, n) -> index (..., rows · k, n / P); P divides n, and a tile has enough values to fill a state.
    Source: see `laconic.kernels.trellis`.
    """

    bits: float = 2.0
    states: int = 4096
    length: int = 1024
    rows: int = 1

    sequential: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise BadConfig(f"{self.bits} bits a value; 1 to 8 can be had")
        least = 2 * self._code().least()
        if self.rows < 1 or self.length < least or self.length % (self.rows * self.dim):
            raise BadConfig(
                f"length {self.length} with {self.rows} rows; a multiple of {self.dim} · rows of at least {least} is right"
            )
        if self.length * self.states > _MOST_STEPS:
            raise BadConfig(
                f"length {self.length} with {self.states} states; at most {_MOST_STEPS // self.states} is right"
            )

    def _code(self) -> Code:
        from ..kernels.trellis import code

        return code(float(self.bits), self.states)

    @property
    def dim(self) -> int:  # type: ignore[override]
        return self._code().period

    @property
    def alphabet(self) -> int:
        return 1 << self._code().symbol_bits

    @property
    def columns(self) -> int:
        """Columns that are coded together; an error-feedback sweep goes by so many."""
        return self.length // self.rows

    def points(self) -> np.ndarray:
        """float32 (2^u, C): levels by free bits and class of state."""
        raise NotImplementedError

    def nearest(self, x: Tensor) -> Tensor:
        import torch

        from ..kernels.trellis import encode

        tiles = _tiles(tuple(x.shape), self.dim, self.rows, self.columns, BadInput)
        points = self.points()
        unit = np.float32(np.sqrt(np.mean(np.square(points), dtype=np.float64)) or 1)  # the search expects variance 1
        values = x.numpy().reshape(*tiles.shape, self.dim)[:, tiles.order].reshape(-1)
        found = encode(values / unit, tiles.bounds, self._code(), points / unit, torch.get_num_threads())
        index = np.empty(tiles.shape, np.int64)
        index[:, tiles.order] = found.reshape(tiles.shape)
        return torch.from_numpy(index.reshape(*x.shape[:-1], x.shape[-1] // self.dim))

    def lookup(self, index: Tensor) -> Tensor:
        return self._read(index, self.points())

    def _read(self, index: Tensor, points: np.ndarray) -> Tensor:
        """What `points` hold where the path of `index` passes."""
        import torch

        from ..kernels.trellis import decode

        shape = (*index.shape[:-1], index.shape[-1] * self.dim) if index.ndim else ()
        tiles = _tiles(shape, self.dim, self.rows, self.columns, CorruptStream)
        claim(4 * prod(shape), "values of a trellis")
        symbols = index.numpy().reshape(tiles.shape)[:, tiles.order].reshape(-1)
        values = decode(symbols, tiles.bounds, self._code(), points)
        out = np.empty((*tiles.shape, self.dim), np.float32)
        out[:, tiles.order] = values.reshape(out.shape)
        return torch.from_numpy(out.reshape(shape))

    def span(self) -> tuple[float, float]:
        points = self.points()
        return float(points.min()), float(points.max())


@dataclass(frozen=True)
class Trellis(TrellisCodebook):
    """A trellis whose levels are computed: quantiles of a law, stretched to suit the rate.

    law: of the normalised values (variance 1): gaussian, laplace.
    """

    law: str = "gaussian"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.law not in _LAWS:
            raise unknown("law", self.law, list(_LAWS))

    def points(self) -> np.ndarray:
        trellis = self._code()
        return _levels(self.law, float(self.bits), trellis.free, trellis.depth)[:, trellis.fraction]


@dataclass(frozen=True)
class LearnedTrellis(TrellisCodebook):
    """A trellis whose levels are learned: the centroids of what is coded with them.

    Fit: Lloyd's iterations on the trellis, from the quantiles of the (weighted) values. The table has 64 fractions in each
    of 2^u cells: 128 · 2^u bytes, 2^u = 1 below 2 bits, 2 below 3, 4 below 4.
    """

    table: np.ndarray | None = learned("float16")

    def points(self) -> np.ndarray:
        if self.table is None:
            raise NotFitted("the levels of LearnedTrellis are not learned yet; call fit")
        trellis, right = self._code(), (1 << self._code().free, 1 << _FRACTION_BITS)
        if self.table.shape != right or not np.isfinite(self.table).all():
            raise CorruptStream(f"a table of shape {self.table.shape}; {right} finite levels are right")
        return self.table.astype(np.float32)[:, trellis.fraction >> (trellis.depth - _FRACTION_BITS)]

    def span(self) -> tuple[float, float]:
        """±1 until fitted, so that scales normalise the data to that."""
        return (-1.0, 1.0) if self.table is None else super().span()

    def fit(self, x: Tensor, weights: Tensor | None = None) -> Self:
        trellis = self._code()
        cells = (
            np.arange(1 << trellis.free)[:, None] << _FRACTION_BITS | trellis.fraction >> trellis.depth - _FRACTION_BITS
        )
        groups = x.reshape(-1, self.rows, x.shape[-1])
        some = np.linspace(0, len(groups) - 1, min(len(groups), 1 + _FIT_VALUES // groups[0].numel())).astype(np.int64)
        sample, v = groups[some], groups[some].double().numpy().reshape(-1)
        w = np.ones_like(v)
        if weights is not None:
            w = (
                (weights.expand if weights.ndim == 1 else weights.reshape)(groups.shape)[some]
                .double()
                .numpy()
                .reshape(-1)
            )
        fitted = best = self.replace(
            table=_quantiles(v, w, 1 << trellis.free + _FRACTION_BITS).reshape(1 << trellis.free, -1)
        )
        least = np.inf
        for _ in range(_FIT_ROUNDS):
            cell = fitted._read(fitted.nearest(sample), cells.astype(np.float32)).numpy().reshape(-1).astype(np.int64)
            levels = np.array(fitted.table, np.float64).reshape(-1)
            distortion = float(w @ (v - levels[cell]) ** 2)
            if not distortion < (1 - _FIT_GAIN) * least:
                break
            best, least = fitted, distortion
            mass, first = (np.bincount(cell, k, len(levels)) for k in (w, w * v))
            np.divide(first, mass, out=levels, where=mass > 0)
            fitted = fitted.replace(table=levels.reshape(1 << trellis.free, -1))
        return best


def _quantiles(v: np.ndarray, w: np.ndarray, n: int) -> np.ndarray:
    """Weighted quantiles (i + 1/2) / n of v; zeros where nothing has weight."""
    if not w.sum() > 0:
        return np.zeros(n)
    order = np.argsort(v, kind="stable")
    mass = np.cumsum(w[order])
    return v[order][np.searchsorted(mass, (np.arange(n) + 0.5) / n * mass[-1])]


class _Tiles(NamedTuple):
    """Where the sequences of an array lie.

    shape: (groups of rows, symbols of a group). order: the symbols of a group in the order of its sequences. bounds: of all
    sequences, in values.
    """

    shape: tuple[int, int]
    order: np.ndarray | slice
    bounds: np.ndarray


def _tiles(shape: tuple[int, ...], dim: int, rows: int, columns: int, error: type[CodecError]) -> _Tiles:
    """Raises `error` for a shape that cannot be cut."""
    n_rows, n = prod(shape[:-1]), shape[-1] if shape else 0
    if n % dim or n_rows % rows or not shape:
        raise error(f"shape {shape}; a last axis in multiples of {dim} and rows in multiples of {rows} are right")
    symbols, n_blocks = n // dim, max(1, -(-n // columns))
    cuts = np.arange(n_blocks + 1) * symbols // n_blocks
    order: np.ndarray | slice = slice(None)
    if rows > 1:
        place = np.arange(rows * symbols).reshape(rows, symbols)
        order = np.concatenate([place[:, a:b].reshape(-1) for a, b in zip(cuts[:-1], cuts[1:], strict=True)])
    groups = n_rows // rows if n else 0
    first = np.arange(groups)[:, None] * (rows * n)
    bounds = np.append(first + rows * dim * cuts[:-1], groups * rows * n)
    return _Tiles((groups, rows * symbols), order, bounds)
