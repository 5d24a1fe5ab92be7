"""A learned rotation in which a vector falls into slices that can be coded apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from ..core.errors import BadConfig
from ..core.stage import Stats
from .base import to_rows
from .klt import KLT

if TYPE_CHECKING:
    from torch import Tensor

_TRAINING = 64  # vectors a codeword that the rotation is learned from


@dataclass(frozen=True)
class SliceRotation(KLT):
    """y = x R with R orthogonal, such that one point a slice of y comes near to x: what `AdditiveVQ` of depth 1 codes.

        R, C  =  argmin ‖x R − C(x R)‖²,   in turns:   C by one step of k-means in every slice;   R = U Vᵀ,  xᵀ C(x R) = U S Vᵀ

    bits, index_bits: those of the `AdditiveVQ` behind it, which say what its slices are. rounds: of both steps, 0 for the start:
    the principal axes, dealt out so that every slice has about the same product of variances. Put `Center` in front.

    Cost and exactness as `KLT`. Source: Ge, He, Ke & Sun 2013, "Optimized product quantization", IEEE TPAMI 36(4), algorithm 2
    (the turns) and section 4.3 (the start).
    """

    bits: float = 1.0
    index_bits: int = 8
    rounds: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.bits <= 16 or not 1 <= self.index_bits <= 12 or not 0 <= self.rounds <= 1000:
            raise BadConfig(
                f"bits {self.bits}, index_bits {self.index_bits}, rounds {self.rounds}; more than 0 up to 16, 1 … 12 and "
                "0 … 1000 are possible"
            )

    def fit(self, x: Tensor, stats: Stats | None = None) -> Self:
        from ..kernels.product import product
        from ..quantize.vector import AdditiveVQ

        rows = to_rows(x)
        book = AdditiveVQ(bits=self.bits, index_bits=self.index_bits, depth=1)
        spans, n_points = book.planned(rows.shape[1], len(rows))
        rows = np.ascontiguousarray(rows[:: max(1, len(rows) // (_TRAINING * n_points))])
        rows = rows / np.float32(max(float(np.abs(rows).max()), 1e-30))  # squares stay within range
        turned = np.ascontiguousarray(rows.T.astype(np.float64))
        values, axes = np.linalg.eigh(product(turned, np.ascontiguousarray(turned.T)))
        basis = axes[:, ::-1][:, _dealt(values[::-1], [s.stop - s.start for s in spans])]
        tables: list[np.ndarray] = []
        for _ in range(self.rounds):
            y = product(rows, np.ascontiguousarray(basis, np.float32))
            coded, tables = _coded(y, spans, n_points, tables, self.seed)
            u, _, v = np.linalg.svd(product(turned, coded.astype(np.float64)))
            basis = u @ v
        return self.replace(basis=basis)


def _dealt(values: np.ndarray, sizes: list[int]) -> np.ndarray:
    """Places of axes, slice behind slice. values: variances, greatest first. Each goes where the product is least so far."""
    logs = np.log(np.maximum(values, 1e-12 * max(float(values[0]), 1e-30)))
    logs -= logs.min()
    held: list[list[int]] = [[] for _ in sizes]
    for j in range(len(logs)):
        free = [s for s, mine in enumerate(held) if len(mine) < sizes[s]]
        held[min(free, key=lambda s: (float(logs[held[s]].sum()), s))].append(j)
    return np.concatenate(held).astype(np.int64)


def _coded(
    y: np.ndarray, spans: list[slice], n_points: int, tables: list[np.ndarray], seed: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Every slice as its nearest point, and the points, one step of k-means further."""
    from ..kernels.distance import nearest, points
    from ..kernels.kmeans import centers, kmeans

    out, moved = np.empty_like(y), []
    for s, span in enumerate(spans):
        part = np.ascontiguousarray(y[:, span])
        table = tables[s] if tables else kmeans(part, n_points, iterations=1, seed=seed + s)
        index = nearest(part, points(table))[0]
        means, mass = centers(part, None, index, n_points)
        table = np.where(mass[:, None] > 0, means, table).astype(np.float32)
        out[:, span] = table[index]
        moved.append(table)
    return out, moved
