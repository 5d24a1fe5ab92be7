"""Codebooks for the latents of learned encoders: a few fixed levels a dimension, nothing to collapse.

Each dimension keeps its own symbol. The product of the levels, which the papers number as one codebook, is never formed: it
grows beyond any integer, and an entropy coder wants the dimensions apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import BadConfig, BadInput, CorruptStream
from .base import Codebook
from .vector import checked_index

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FSQ(Codebook):
    """Finite scalar quantization: dimension k of the last axis has levels[k mod len(levels)] levels in [−1, 1].

    With h = ⌊L/2⌋ the levels are (i − h) / h, i < L: odd L reach from −1 to 1, even L from −1 to 1 − 1/h. The network's last
    layer is `bound`, which maps any real number into that range; codecs then round what comes out of it.

    Alphabet: that of the dimension with most levels. Shapes: x (..., n), len(levels) divides n -> index (..., n).
    Source: Mentzer et al. 2023 (2309.15505), section 3.1 and appendix A.1 (the half step of even L). Differs: indices are
    integers from the rounding itself, no product index.
    """

    levels: tuple[int, ...] = (8, 5, 5, 5)

    def __post_init__(self) -> None:
        if not 1 <= len(self.levels) <= 1 << 12 or not all(2 <= n <= 1 << 12 for n in self.levels):
            raise BadConfig(f"levels {str(self.levels)[:60]}; one or more numbers from 2 to 4096 are right")

    @property
    def alphabet(self) -> int:
        return max(self.levels)

    @property
    def columns(self) -> int:
        return len(self.levels)

    def span(self) -> tuple[float, float]:
        return -1.0, min((n - 1 - n // 2) / (n // 2) for n in self.levels)

    def bound(self, z: Tensor) -> Tensor:
        """Real latents into the range of the levels; differentiable, for training. z: (..., n)."""
        import torch

        n = self._per_column(z)
        half, shift = (n - 1) * (1 + 1e-3) / 2, torch.where(n % 2 == 0, 0.5, 0.0)
        return (torch.tanh(z + torch.atanh(shift / half)) * half - shift) / torch.div(n, 2, rounding_mode="floor")

    def nearest(self, x: Tensor) -> Tensor:
        import torch

        n = self._per_column(x)
        half = torch.div(n, 2, rounding_mode="floor")
        return torch.minimum(torch.round(x.double() * half) + half, n - 1).clamp(min=0).to(torch.int64)

    def lookup(self, index: Tensor) -> Tensor:
        import torch

        i = checked_index(index, self.alphabet, len(self.levels))
        n = np.tile(np.array(self.levels), i.shape[-1] // len(self.levels))
        if (i >= n).any():
            raise CorruptStream(f"an index beyond its dimension's levels {str(self.levels)[:60]}")
        return torch.from_numpy(((i - n // 2) / (n // 2)).astype(np.float32))

    def _per_column(self, x: Tensor) -> Tensor:
        """How many levels each column has: float64, (n,)."""
        import torch

        if not x.ndim or x.shape[-1] % len(self.levels):
            raise BadInput(
                f"latents of shape {tuple(x.shape)} for {len(self.levels)} kinds of levels; a multiple is right"
            )
        return torch.tensor(self.levels, dtype=torch.float64).repeat(x.shape[-1] // len(self.levels))


@dataclass(frozen=True)
class LFQ(Codebook):
    """Lookup-free quantization: the sign of every value, at `magnitude`.

    Index 1 where x > 0, 0 elsewhere. With magnitude √(2/π) it is the one-bit Lloyd–Max book of unit Gaussian values.
    Shapes: x (..., n) -> index (..., n), alphabet 2.
    Source: Yu et al. 2023, MAGVIT-v2 (2310.05737): levels ±1. Differs: one bit a dimension, no token number.
    """

    magnitude: float = 1.0

    def __post_init__(self) -> None:
        if not 1e-30 <= self.magnitude <= 1e30:
            raise BadConfig(f"magnitude {self.magnitude}; a positive number is right, 1e-30 to 1e30")

    @property
    def alphabet(self) -> int:
        return 2

    def span(self) -> tuple[float, float]:
        return -self.magnitude, self.magnitude

    def nearest(self, x: Tensor) -> Tensor:
        import torch

        return (x > 0).to(torch.int64)

    def lookup(self, index: Tensor) -> Tensor:
        import torch

        i = checked_index(index, 2, 1)
        return torch.from_numpy((2 * i - 1).astype(np.float32) * np.float32(self.magnitude))
