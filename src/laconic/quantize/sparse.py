"""Sparse levels: the largest values alone, each as a sign and one of few magnitudes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..core.errors import BadConfig, BadInput, CorruptStream, claim
from ..core.stage import Kind, Leaf, Side, Stage, Stats
from ..core.wire import MAX_DIMS, Reader, write_varint

if TYPE_CHECKING:
    from torch import Tensor


@cache
def exponential_bounds(n_levels: int) -> tuple[float, ...]:
    """Where the cells of the Lloyd–Max quantizer of a density e^(−x) begin, but for the first, which begins at 0: n_levels − 1.

    Memoryless, so the quantizer of one cell less lies behind every cell: a cell of width w has its centroid at
    1 − w/(e^w − 1), and w is the distance of its upper bound, half of which the centroid behind has to be. Source: Sullivan
    1996, Efficient scalar quantization of exponential and Laplacian random variables, theorem 2.

    >>> [round(b, 3) for b in exponential_bounds(2)]
    [1.594]
    """
    widths: list[float] = []
    offset = 1.0  # centroid of the last, open cell above its own beginning
    for _ in range(n_levels - 1):
        low, high = 1e-9, 60.0
        for _ in range(80):  # w − centroid(w) = offset, and the left side grows with w
            w = (low + high) / 2
            low, high = (w, high) if w - 1 + w / math.expm1(w) < offset else (low, w)
        widths.insert(0, w)
        offset = 1 - w / math.expm1(w)
    return tuple(float(b) for b in np.cumsum(widths))


@dataclass(frozen=True)
class SparseLevels(Stage):
    """ARRAY -> BYTES: the ⌈fraction · n⌉ largest values as signs and magnitudes of `levels` kinds; the others are zero.

    Magnitudes are cut where the Lloyd–Max quantizer of an exponential tail cuts that begins at the smallest one that is kept,
    and stand for the mean of their cell, so no value grows and ‖x − x̂‖² = ‖x‖² − ‖x̂‖² (a contraction, as error feedback wants).
    One level with many values: about H(fraction) + fraction bits a value, 5.7 + 1 a kept one at 1/20.

    Shapes: x any of at most 2^31 − 1 values. Payload: gaps, signs, levels (`kernels.sparse`).
    Side: head (varints: number kept, shape), the magnitudes.
    Source: Aji & Heafield 2017 (1704.05021); Sattler et al. 2019, Sparse Ternary Compression (1903.02891), Alg. 1, which is
    levels = 1. Differs: codes adapt to where gaps are short; more levels.
    """

    fraction: float = 0.01
    levels: int = 2

    takes: ClassVar[Kind] = Kind.ARRAY
    gives: ClassVar[Kind] = Kind.BYTES
    side: ClassVar[Mapping[str, Leaf]] = {"head": Leaf("uint8", "header"), "magnitudes": Leaf("float32", "scales")}
    payload_role: ClassVar[str | None] = "indices"

    def __post_init__(self) -> None:
        from ..kernels.sparse import MAX_LEVELS

        if not 0 < self.fraction <= 1:
            raise BadConfig(f"fraction {self.fraction}; more than 0 and at most 1 is needed")
        if not 1 <= self.levels <= MAX_LEVELS:
            raise BadConfig(f"{self.levels} levels; 1 to {MAX_LEVELS} are right")

    def push(self, stats: Stats) -> Stats:
        """None: nothing behind bytes asks how errors hurt."""
        return Stats()

    def encode(self, x: Tensor) -> tuple[bytes, Side]:
        from ..kernels import sparse

        if not x.ndim or not x.numel():
            raise BadInput(f"nothing to select from in an array of shape {tuple(x.shape)}")
        values = np.ascontiguousarray(x.detach().cpu().numpy(), np.float32).reshape(-1)
        place = sparse.largest(values, min(values.size, math.ceil(self.fraction * values.size)))
        kept = values[place]
        size = np.abs(kept).astype(np.float64)
        least = size.min()
        cells = least + (size.mean() - least) * np.array(exponential_bounds(self.levels))
        level = np.searchsorted(cells, size, side="right").astype(np.uint8)
        count = np.bincount(level, minlength=self.levels)
        total = np.bincount(level, size, self.levels)
        head = bytearray()
        for number in (kept.size, *x.shape):
            write_varint(head, number)
        data = sparse.write_sparse(place, np.signbit(kept), level, self.levels, values.size)
        magnitudes = (total / np.maximum(count, 1)).astype(np.float32)
        return data.tobytes(), {"head": np.frombuffer(bytes(head), np.uint8), "magnitudes": magnitudes}

    def decode(self, y: bytes, side: Side) -> Tensor:
        import torch

        from ..kernels import sparse

        reader, numbers = Reader(side["head"].tobytes()), []
        while reader.at < len(reader.data) and len(numbers) <= MAX_DIMS:
            numbers.append(reader.varint())
        reader.finish()
        k, shape = (numbers[0] if numbers else 0), tuple(numbers[1:])
        magnitudes, n = side["magnitudes"], math.prod(shape)
        if not shape or not 0 < k <= n or magnitudes.shape != (self.levels,):
            raise CorruptStream(f"{k} sparse values in an array of shape {shape}, {magnitudes.size} magnitudes")
        if not (np.isfinite(magnitudes) & (magnitudes >= 0)).all():
            raise CorruptStream(f"magnitudes {magnitudes}; finite numbers that are not negative are right")
        claim(4 * n, "sparse values")
        place, negative, level = sparse.read_sparse(np.frombuffer(y, np.uint8), k, self.levels, n)
        x = np.zeros(n, np.float32)
        x[place] = np.where(negative, -magnitudes[level], magnitudes[level])
        return torch.from_numpy(x.reshape(shape))
