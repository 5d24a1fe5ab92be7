"""A matrix of low rank, found for the array at hand and sent with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..core.errors import BadConfig, BadInput, CorruptStream, claim
from ..core.stage import Kind, Leaf, Side, Stage, Stats
from .scales import from_half, to_half

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LowRankCode(Stage):
    """ARRAY -> BYTES: every matrix of the last two axes as its r largest singular values and vectors, U √Σ and √Σ Vᵀ.

    bits: that the factors may take a value; r = ⌊bits · m n / (16 (m + n))⌋, at least 1: rank costs 16 r (m + n) bits, which is
    much for short matrices. Shapes: x (..., m, n). Payload: both factors in float16, one exponent each.
    Side: shape and rank, exponents.
    Source: Eckart & Young 1936; Kang et al. 2024, GEAR (2403.05527), section 3 (the error of a quantized cache has low rank).
    """

    bits: float = 0.5

    takes: ClassVar[Kind] = Kind.ARRAY
    gives: ClassVar[Kind] = Kind.BYTES
    side: ClassVar[Mapping[str, Leaf]] = {"shape": Leaf("int64", "header"), "exponents": Leaf("int16", "scales")}

    def __post_init__(self) -> None:
        if not 0 < self.bits <= 16:
            raise BadConfig(f"{self.bits} bits for factors; above 0 to 16 is right, and .5 usual")

    def push(self, stats: Stats) -> Stats:
        """None: nothing behind bytes asks how errors hurt."""
        return Stats()

    def rank(self, m: int, n: int) -> int:
        """Of an (m, n) matrix."""
        return min(max(1, int(self.bits * m * n / (16 * (m + n)))), m, n)

    def encode(self, x: Tensor) -> tuple[bytes, Side]:
        if x.ndim < 2 or not x.numel():
            raise BadInput(f"an array of shape {tuple(x.shape)}; (…, m, n) with values is right")
        r = self.rank(*x.shape[-2:])
        u, s, vt = np.linalg.svd(x.numpy().astype(np.float64), full_matrices=False)
        root = np.sqrt(s[..., :r])
        sign = np.sign(u[..., :1, :r]) + (u[..., :1, :r] == 0)  # of two equal answers always the same
        left, e = to_half((u[..., :r] * sign * root[..., None, :]).astype(np.float32))
        right, f = to_half((vt[..., :r, :] * sign.swapaxes(-1, -2) * root[..., None]).astype(np.float32))
        side = {"shape": np.array([r, *x.shape], np.int64), "exponents": np.array([e, f], np.int16)}
        return left.tobytes() + right.tobytes(), side

    def decode(self, y: bytes, side: Side) -> Tensor:
        import torch

        from ..kernels.product import product

        shape = side["shape"]
        if shape.ndim != 1 or not 3 <= len(shape) <= 17 or (shape < 1).any() or side["exponents"].shape != (2,):
            raise CorruptStream(f"a low rank and shape {shape.ravel()[:8]}")
        r, *outer, m, n = (int(v) for v in shape)
        count = math.prod(outer)
        claim(4 * count * (m * n + r * (m + n)), "matrices of low rank")
        if len(y) != 2 * count * r * (m + n):
            raise CorruptStream(
                f"{len(y):,} bytes of factors; {2 * count * r * (m + n):,} are right for rank {r} of {m} × {n}"
            )
        values = np.frombuffer(y, np.float16)
        cut = count * m * r
        left = from_half(values[:cut], int(side["exponents"][0])).reshape(count, m, r)
        right = from_half(values[cut:], int(side["exponents"][1])).reshape(count, r, n)
        out = np.stack([product(a, b) for a, b in zip(left, right, strict=True)])
        if not np.isfinite(out).all():
            raise CorruptStream("factors whose product is not finite")
        return torch.from_numpy(out.reshape(*outer, m, n))
