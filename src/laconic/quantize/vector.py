"""Vector codebooks that are learned: one book for short groups, sums and products of books for long vectors, split signs.

Tables are float16 and hold values divided by `gain`, a power of two that brings the largest value of the training data to
128 … 256, so that no source is too small or too large for them; a mean, where there is one, is float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ..core.errors import BadConfig, BadInput, CorruptStream, NotFitted, claim
from ..core.stage import encoder_only, learned
from .base import Codebook

if TYPE_CHECKING:
    from torch import Tensor

_VECTORS_PER_POINT = 4  # training vectors that a codeword needs; with fewer vectors there are fewer codewords
_SEARCH_CODEWORDS = 4096  # of one slice of an additive code: its table of inner products is this squared, 64 MB


def _power_of_two(x: np.ndarray) -> np.float32:
    """The gain: a power of two such that max |x| / gain lies in [128, 256); 1 for zeros."""
    peak = float(np.abs(x).max(initial=0.0))
    exponent = int(np.frexp(peak)[1])
    return np.float32(2.0 ** min(max(exponent - 8, -140), 119)) if peak > 0 else np.float32(1)


def grouped(x: Tensor, dim: int) -> np.ndarray:
    """x: (..., n) -> (rows, dim) float32, `dim` values after each other."""
    if x.ndim == 0 or x.shape[-1] % dim:
        fitting = [d for d in (2, 4, 8, 16, 32) if x.ndim and x.shape[-1] % d == 0]
        raise BadConfig(
            f"vectors of {dim} values do not divide shape {tuple(x.shape)}; fitting are 1{fitting and f', {fitting}'}"
        )
    return np.ascontiguousarray(x.detach().cpu().numpy().reshape(-1, dim), np.float32)


def _like(weights: Tensor | None, x: Tensor, dim: int) -> np.ndarray | None:
    """Importance of every value, in the shape of the rows."""
    if weights is None:
        return None
    if bool((weights < 0).any()) or not bool((weights > 0).any()):
        raise BadInput("importance must not be negative, and not zero everywhere")
    return grouped(weights.broadcast_to(x.shape), dim)


def checked_index(index: Tensor, alphabet: int, multiple: int) -> np.ndarray:
    """index: (..., m) as a NumPy array, every value below `alphabet` and m a multiple. Raises CorruptStream."""
    out: np.ndarray = index.numpy()
    if not out.ndim or out.shape[-1] % multiple:
        raise CorruptStream(f"indices of shape {out.shape}; the last axis must be a multiple of {multiple}")
    if out.size and not 0 <= int(out.min()) <= int(out.max()) < alphabet:
        raise CorruptStream(f"indices {out.min()} … {out.max()} in a codebook of {alphabet} points")
    return out


def _n_points(n_vectors: int, index_bits: int) -> int:
    """The largest power of two that is not above 2^index_bits nor above a quarter of the training vectors."""
    if not n_vectors:
        raise BadInput("a codebook cannot be learned from no vectors")
    return 1 << min(index_bits, max(n_vectors // _VECTORS_PER_POINT, 1).bit_length() - 1)


@dataclass(frozen=True)
class _Learned(Codebook):
    """What all learned vector codebooks hold and check."""

    table: np.ndarray | None = learned("float16")
    gain: np.ndarray | None = learned("float32", "scales")

    def __post_init__(self) -> None:
        if self.gain is not None:
            g = float(self.gain[0]) if self.gain.shape == (1,) else 0.0
            if not 0 < g <= 2.0**119:
                raise CorruptStream(f"a gain of {self.gain.ravel()[:1]}; a power of two up to 2^119 is expected")
        if self.table is not None and not (self.table.size and np.isfinite(self.table).all()):
            raise CorruptStream(f"a codebook of shape {self.table.shape} with values that are not finite, or none")

    def span(self) -> tuple[float, float]:
        """−1 and 1: what the values are scaled to before the codebook is learned, whatever it learns."""
        return -1.0, 1.0

    def _table(self) -> np.ndarray:
        if self.table is None:
            raise NotFitted(f"{type(self).__name__} has no codebook yet; call fit first")
        return self.table.astype(np.float32)

    def _gain(self) -> np.float32:
        return np.float32(1) if self.gain is None else np.float32(self.gain[0])

    def _out(self, values: np.ndarray, shape: tuple[int, ...]) -> Tensor:
        """Reconstruction from values divided by the gain; what would pass the largest float32 stays there."""
        import torch

        top = torch.finfo(torch.float32).max
        return (torch.from_numpy(values) * torch.from_numpy(np.asarray(self._gain()))).clamp_(-top, top).reshape(shape)


@dataclass(frozen=True)
class VQ(_Learned):
    """One table of 2^index_bits points for every `dim` values along the last axis.

    Rate: index_bits / dim per value. Learned by weighted k-means. With fewer than 4 · 2^index_bits training vectors the
    table is the largest power of two that they allow.

    Shapes: x (..., n) -> index (..., n / dim). Learned: table (n_points, dim).
    Source: R. Gray, "Vector quantization", IEEE ASSP Magazine 1(2), 1984.
    """

    index_bits: int = 8
    dim: int = 4
    start: str = "plusplus"
    iterations: int = 25
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.index_bits <= 16 or not 1 <= self.dim <= 64:
            raise BadConfig(f"index_bits {self.index_bits}, dim {self.dim}; 1 … 16 and 1 … 64 are possible")
        super().__post_init__()
        if self.table is not None:
            _check_table(self.table, self.index_bits, self.dim)

    @property
    def alphabet(self) -> int:
        return 1 << self.index_bits if self.table is None else len(self.table)

    def fit(self, x: Tensor, weights: Tensor | None = None) -> Self:
        table, gain = _fit_points(self, grouped(x, self.dim), _like(weights, x, self.dim))
        return self.replace(table=table, gain=gain)

    @cached_property
    def _points(self) -> Any:
        from ..kernels.distance import points

        return points(self._table())

    def nearest(self, x: Tensor) -> Tensor:
        import torch

        from ..kernels.distance import nearest

        index, _ = nearest(grouped(x, self.dim) / self._gain(), self._points)
        return torch.from_numpy(index.reshape(*x.shape[:-1], x.shape[-1] // self.dim))

    def lookup(self, index: Tensor) -> Tensor:
        i = checked_index(index, self.alphabet, 1)
        claim(i.size * self.dim * 4, "points of a codebook")
        return self._out(self._table()[i], (*i.shape[:-1], i.shape[-1] * self.dim))


@dataclass(frozen=True)
class SignVQ(VQ):
    """Absolute values from a table, signs one bit each.

    Rate: 1 + index_bits / dim per value. The table covers one orthant, so it is 2^dim times as dense as one for all.

    Index: point · 2^dim + signs, bit k set where value k is negative. Shapes as VQ.
    Source: S. Li et al., "SSVQ: unleashing the potential of vector quantization with sign-splitting", 2025 (2503.08668),
    W = C[A] ⊙ sign. Differs: no training of latent signs here.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.index_bits + self.dim > 16:
            raise BadConfig(f"{self.index_bits} + {self.dim} bits an index; point and signs together have at most 16")

    @property
    def alphabet(self) -> int:
        return (1 << self.index_bits if self.table is None else len(self.table)) << self.dim

    def fit(self, x: Tensor, weights: Tensor | None = None) -> Self:
        table, gain = _fit_points(self, np.abs(grouped(x, self.dim)), _like(weights, x, self.dim))
        return self.replace(table=np.abs(table), gain=gain)

    def nearest(self, x: Tensor) -> Tensor:
        import torch

        negative = grouped(x, self.dim) < 0
        signs = (negative << np.arange(self.dim)).sum(1)
        return (super().nearest(x.abs()) << self.dim) | torch.from_numpy(signs.reshape(*x.shape[:-1], -1))

    def lookup(self, index: Tensor) -> Tensor:
        import torch

        i = checked_index(index, self.alphabet, 1)
        size = super().lookup(index >> self.dim).reshape(*i.shape, self.dim)
        negative = (i[..., None] >> np.arange(self.dim)) & 1
        return torch.where(torch.from_numpy(negative != 0), -size, size).reshape(*i.shape[:-1], i.shape[-1] * self.dim)


def _fit_points(book: VQ, rows: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    from ..kernels.kmeans import kmeans

    gain = _power_of_two(rows)
    n_points = _n_points(len(rows), book.index_bits)
    table = kmeans(rows / gain, n_points, weights=weights, iterations=book.iterations, seed=book.seed, start=book.start)
    return table, np.array([gain])


def _check_table(table: np.ndarray, index_bits: int, dim: int) -> None:
    n = len(table)
    if table.shape != (n, dim) or n & (n - 1) or n > 1 << index_bits:
        raise CorruptStream(f"a codebook of shape {table.shape}; (2^b, {dim}) with b up to {index_bits} is expected")


@dataclass(frozen=True)
class AdditiveVQ(_Learned):
    """A vector is cut into slices, and every slice is a sum of codewords, one from each of its books.

        depth 1                 product quantization
        one slice               residual / additive quantization
        between                 product of additive codes

    Rate: `bits` a value, as ⌊bits · n / index_bits⌋ indices a vector. They are spread over as few slices as hold at most
    `depth` of them each; the books are learned together (least squares given the indices, indices by beam search and
    conditional modes given the books, noise that dies away), not one on the residual of the other.

    beam: sums kept in the search, 1 being greedy. rounds: of learning. Importance is taken along the last axis.

    Shapes: x (..., n) -> index (..., slices · depth). Learned: mean (n,) float32, table (depth, n_points, n); slice s has
    the columns s·n // slices … (s + 1)·n // slices, so a whole code costs 2 · depth · n_points · n bytes.
    Sources: H. Jégou et al., "Product quantization for nearest neighbor search", IEEE TPAMI 33(1), 2011; Y. Chen et al.,
    "Approximate nearest neighbor search by residual vector quantization", Sensors 10, 2010; A. Babenko, V. Lempitsky,
    "Additive quantization for extreme vector compression", CVPR 2014; J. Martinez et al., "LSQ++", ECCV 2018.
    """

    mean: np.ndarray | None = learned("float32")
    bits: float = 1.0
    index_bits: int = 8
    depth: int = 8
    beam: int = 16
    rounds: int = 25
    seed: int = 0
    metric: Any = encoder_only()  # √importance of every coordinate

    def __post_init__(self) -> None:
        if not 0 < self.bits <= 16 or not 1 <= self.index_bits <= 12 or not 1 <= self.depth <= 64:
            raise BadConfig(
                f"bits {self.bits}, index_bits {self.index_bits}, depth {self.depth}; more than 0 up to 16, 1 … 12 and "
                "1 … 64 are possible"
            )
        if not 1 <= self.beam <= 256 or not 0 <= self.rounds <= 1000:
            raise BadConfig(f"beam {self.beam}, rounds {self.rounds}; 1 … 256 and 0 … 1000 are possible")
        super().__post_init__()
        if self.table is not None and self.mean is not None:
            self._check()

    def _check(self) -> None:
        shape = self._table().shape
        points = shape[1] if len(shape) == 3 else 0
        if points < 1 or points & (points - 1) or points > 1 << self.index_bits:
            raise CorruptStream(f"books of shape {shape}; (depth, 2^b, n) with b up to {self.index_bits} is expected")
        if self._layout(shape[2], points)[1] != shape[0]:
            raise CorruptStream(f"{shape[0]} books of {points} codewords for {self.bits} bits and {shape[2]} values")
        if self.mean is None or self.mean.shape != shape[2:] or not (np.abs(self.mean) <= 1 << 12).all():
            raise CorruptStream(f"a mean that does not fit books of shape {shape}, or is out of range")

    def _layout(self, n: int, n_points: int) -> tuple[int, int]:
        """(slices, depth) for vectors of n values and books of n_points codewords."""
        index_bits = n_points.bit_length() - 1
        wanted = max(1, int(self.bits * n / index_bits + 1e-9)) if index_bits else 1
        deepest = min(self.depth, max(1, _SEARCH_CODEWORDS // n_points))
        slices = min(-(-wanted // deepest), n)
        return slices, min(wanted // slices, deepest)

    @property
    def alphabet(self) -> int:
        return 1 << self.index_bits if self.table is None else int(self.table.shape[1])

    @property
    def dim(self) -> int:  # type: ignore[override]
        """The whole last axis is coded jointly."""
        return int(self._table().shape[2])

    @property
    def columns(self) -> int:
        """None can be had apart: raises BadConfig."""
        raise BadConfig(
            "an additive code takes whole rows, so no error can be fed from column to column; round to nearest"
        )

    def product(self) -> list[tuple[slice, np.ndarray]] | None:
        """Where depth is 1, a vector is one point of each slice: (columns, points (n_points, width) float32). Else None."""
        table = self._table()
        if len(table) > 1 or self.mean is None:
            return None
        return [(span, (table[0, :, span] + self.mean[span]) * self._gain()) for span in self._slices()]

    def _slices(self) -> list[slice]:
        _, n_points, n = self._table().shape
        return self._spans(n, n_points)

    def _spans(self, n: int, n_points: int) -> list[slice]:
        count, _ = self._layout(n, n_points)
        return [slice(s * n // count, (s + 1) * n // count) for s in range(count)]

    def planned(self, n: int, n_vectors: int) -> tuple[list[slice], int]:
        """(columns of each slice, codewords of a book) that `fit` will come to from so many vectors of n values."""
        n_points = _n_points(n_vectors, self.index_bits)
        return self._spans(n, n_points), n_points

    def fit(self, x: Tensor, weights: Tensor | None = None) -> Self:
        from ..kernels.additive import learn
        from ..kernels.kmeans import centers

        n = x.shape[-1] if x.ndim else 0
        if not n:
            raise BadInput(f"a code for vectors cannot be learned from shape {tuple(x.shape)}")
        rows, gain = grouped(x, n), _power_of_two(x.numpy())
        rows = rows / gain
        mean = centers(rows, None, np.zeros(len(rows), np.int64), 1)[0].astype(np.float32)
        metric = self._metric(weights, n)
        scaled = (rows - mean) * metric
        n_points = _n_points(len(rows), self.index_bits)
        slices, depth = self._layout(n, n_points)
        table = np.empty((depth, n_points, n), np.float32)
        for s in range(slices):
            span = slice(s * n // slices, (s + 1) * n // slices)
            share = np.ascontiguousarray(scaled[:, span])
            table[..., span] = learn(share, depth, n_points, rounds=self.rounds, seed=self.seed + s * depth)
        return self.replace(table=table / metric, gain=np.array([gain]), mean=mean[0], metric=metric)

    @staticmethod
    def _metric(weights: Tensor | None, n: int) -> np.ndarray:
        if weights is None:
            return np.ones(n, np.float32)
        if tuple(weights.shape) != (n,):
            raise BadConfig(
                f"importance of shape {tuple(weights.shape)}; an additive code can weigh its {n} coordinates"
            )
        if bool((weights < 0).any()) or not bool((weights > 0).any()):
            raise BadInput("importance must not be negative, and not zero everywhere")
        w = weights.numpy().astype(np.float64)
        return np.sqrt(np.maximum(w / w.max(), 1e-6)).astype(np.float32)

    @cached_property
    def _books(self) -> list[Any]:
        from ..kernels.additive import books

        table = self._table() * (1 if self.metric is None else self.metric)
        return [books(np.ascontiguousarray(table[..., span])) for span in self._slices()]

    def nearest(self, x: Tensor) -> Tensor:
        import torch

        from ..kernels.additive import search

        if x.ndim == 0 or x.shape[-1] != self.dim:
            raise BadInput(f"vectors of shape {tuple(x.shape)} for a code of {self.dim} values")
        rows = (grouped(x, self.dim) / self._gain() - self.mean) * (1 if self.metric is None else self.metric)
        found = [
            search(np.ascontiguousarray(rows[:, span]), code, beam=self.beam, sweeps=4)
            for span, code in zip(self._slices(), self._books, strict=True)
        ]
        index = np.concatenate(found, 1)
        return torch.from_numpy(index.reshape(*x.shape[:-1], index.shape[1]))

    def lookup(self, index: Tensor) -> Tensor:
        from ..kernels.additive import sums

        table, slices = self._table(), len(self._slices())
        i = checked_index(index, self.alphabet, slices * len(table))
        if i.shape[-1] != slices * len(table):
            raise CorruptStream(f"{i.shape[-1]} indices a vector; this code has {slices * len(table)}")
        out = sums(table, i.reshape(-1, i.shape[-1]).astype(np.int64, copy=False), slices)
        return self._out(out + self.mean, (*i.shape[:-1], self.dim))
