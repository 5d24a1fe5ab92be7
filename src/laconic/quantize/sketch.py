"""One-bit sketches that give inner products without bias."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..core.errors import BadInput, CodecError, CorruptStream
from ..core.stage import Kind, Leaf, Side, Stage, Symbols
from ..transforms.rotation import MAX_DENSE

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SignSketch(Stage):
    """QJL: sign(S r) of every row r and its norm; S is a random orthogonal (d, d), made from the seed by both ends.

        r̂ = ‖r‖ / (d·m) · Sᵀ sign(S r),   m = E|u₁| of a random unit vector u, near √(2/(πd))

    Over S, ⟨y, r̂⟩ has no bias for any y: every row of S contributes E[s sign⟨s, r⟩] = m r/‖r‖.
    Shapes: (..., d) -> symbols (..., d) of alphabet 2, d ≤ 4096. Side: a float16 norm a row, relative to the largest.
    Source: Zandieh, Daliri & Han 2024, QJL (2406.03482), definition 1 and lemma 2. Differs: S is orthogonal instead of
    Gaussian, with the constant that this takes; for a fixed S the part of r̂ that is linear in r is then exact.
    """

    seed: int = 0

    takes: ClassVar[Kind] = Kind.ARRAY
    gives: ClassVar[Kind] = Kind.SYMBOLS
    side: ClassVar[Mapping[str, Leaf]] = {"norms": Leaf("float16", "norms"), "largest": Leaf("float32", "norms")}

    def encode(self, x: Tensor) -> tuple[Symbols, Side]:
        from ..kernels.product import product

        rows = np.ascontiguousarray(x.numpy().reshape(-1, x.shape[-1]))
        norms = np.sqrt(np.square(rows, dtype=np.float64).sum(1))
        if not np.isfinite(norms.astype(np.float32)).all():
            raise BadInput(f"a norm of {norms.max():.3g} is beyond float32; scale the array first")
        largest = np.array([max(norms.max(), np.finfo(np.float32).tiny)], np.float32)
        signs = product(rows, self._directions(rows.shape[1], BadInput), transposed=True) >= 0
        side = {"norms": (norms / largest).astype(np.float16).reshape(x.shape[:-1]), "largest": largest}
        return Symbols(signs.astype(np.uint8).reshape(x.shape), 2), side

    def decode(self, y: Symbols, side: Side) -> Tensor:
        import torch

        from ..kernels.product import product

        shape, norms, largest = y.index.shape, side["norms"], side["largest"]
        if y.alphabet != 2 or not shape or norms.shape != shape[:-1] or largest.shape != (1,):
            raise CorruptStream(f"norms of shape {norms.shape} for signs of shape {shape} and alphabet {y.alphabet}")
        d = shape[-1]
        signs = y.index.reshape(-1, d).astype(np.float32) * 2 - 1
        if not (np.isfinite(norms).all() and np.isfinite(largest[0])):
            raise CorruptStream("norms that are not finite")
        sizes = norms.astype(np.float64).reshape(-1, 1) * float(largest[0])
        if np.abs(sizes).max(initial=0) > 1e37:
            raise CorruptStream("norms whose vectors are beyond float32")
        factor = (sizes / (d * _mean_magnitude(d))).astype(np.float32)
        return torch.from_numpy((product(signs, self._directions(d, CorruptStream)) * factor).reshape(shape))

    def _directions(self, d: int, error: type[CodecError]) -> np.ndarray:
        from ..kernels.random import random_orthogonal

        if not 0 < d <= MAX_DENSE:
            raise error(f"a dense sketch of {d} coordinates; 1 to {MAX_DENSE} are allowed")
        return random_orthogonal(self.seed, d)


def _mean_magnitude(d: int) -> float:
    """E|u₁| of a random unit vector of d coordinates: Γ(d/2) / (√π Γ((d+1)/2))."""
    return math.exp(math.lgamma(d / 2) - math.lgamma((d + 1) / 2)) / math.sqrt(math.pi)
