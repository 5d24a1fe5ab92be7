"""Rotations that a seed describes: nothing is sent but the seed in the configuration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..core.errors import BadConfig, BadInput, CodecError, CorruptStream
from .base import Orthogonal

MAX_DENSE = 4096  # a dense rotation needs 12 n² bytes while it is made; the decoder must bound n


@dataclass(frozen=True)
class RandomRotation(Orthogonal):
    """y = Q x with Q drawn uniformly from the orthogonal matrices; regenerated from the seed by the decoder.

    Shapes: x (..., n), n ≤ 4096. Cost: 2 n multiply-adds a value, and 4/3 n³ once; `Hadamard` costs log n.
    Source: Zandieh et al. 2025 (2504.19874), Algorithm 1, line 2; the distribution of a rotated unit vector's
    coordinates is Beta, near N(0, 1/n).
    """

    seed: int = 0

    def analyse(self, rows: np.ndarray) -> np.ndarray:
        return self._rotate(rows, False, BadInput)

    def synthesize(self, rows: np.ndarray) -> np.ndarray:
        return self._rotate(rows, True, CorruptStream)

    def _rotate(self, rows: np.ndarray, back: bool, error: type[CodecError]) -> np.ndarray:
        from ..kernels.product import product
        from ..kernels.random import random_orthogonal

        n = rows.shape[1]
        if n > MAX_DENSE:
            raise error(f"a dense rotation of {n} coordinates; at most {MAX_DENSE} are allowed, use hadamard")
        return product(rows, random_orthogonal(self.seed, n), transposed=not back)


@dataclass(frozen=True)
class Hadamard(Orthogonal):
    """y = H (s ⊙ x) / √b, with seeded signs s, along the last axis in blocks of b.

    block: the order b of the transform. None: the largest divisor of n for which a Hadamard matrix is known (n itself
    for 2^k, 12·2^k, 20·2^k, 28·2^k, … by Paley ⊗ Sylvester: all multiples of 4 up to 152 are).
    seed: of the signs; None for none, and then blocks see the plain matrix.
    Source: Ailon & Chazelle 2006; Tseng et al. 2024 (2402.04396), section 3.1 (random signs); Paley 1933.
    """

    seed: int | None = 0
    block: int | None = None

    def __post_init__(self) -> None:
        if self.block is not None and self.block < 1:
            raise BadConfig(f"Hadamard block {self.block}; a positive order is needed, or None for the largest known")

    def analyse(self, rows: np.ndarray) -> np.ndarray:
        return self._turn(rows, False, BadInput)

    def synthesize(self, rows: np.ndarray) -> np.ndarray:
        return self._turn(rows, True, CorruptStream)

    def _turn(self, rows: np.ndarray, back: bool, error: type[CodecError]) -> np.ndarray:
        from ..kernels.hadamard import hadamard, largest_order
        from ..kernels.random import signs

        n = rows.shape[1]
        if self.block is not None and n % self.block:
            raise error(f"Hadamard block {self.block} does not divide rows of {n}; use {largest_order(n)}")
        s = None if self.seed is None else signs(self.seed, n)
        return hadamard(rows, signs=s, block=self.block, inverse=back)
