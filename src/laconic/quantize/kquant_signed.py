"""Super-blocks without minima: the scale of llama.cpp's Q3_K and Q6_K.

x̂ = (d · s) · q     q from −2^(b−1) to 2^(b−1) − 1; s a signed integer of a block; d a half float of a super-block
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..core.errors import BadConfig, CorruptStream
from ..core.stage import Leaf, Side
from .base import Codebook, Grid, Scale
from .kquant import _half
from .scales import AbsMax, Along, LeastSquares, Sample, expect, from_half, gather, magnitude, to_half

if TYPE_CHECKING:
    from torch import Tensor

_FACTORS = (1.0, 0.94, 0.97, 1.03, 1.06, 1.12)  # of d about the one that the greatest step gives


@dataclass(frozen=True)
class SignedBlock(Scale):
    """Blocks of `size` values along the last axis with a signed step of `bits` bits; `blocks` of them share a half float.

    Q3_K: 16 blocks of 16, 6 bits; Q6_K: 16 blocks of 16, 8 bits. A negative step turns the lopsided grid −4 … 3 round.
    Side: bits / size + 16 / (size · blocks) bits a value, and one exponent for the array.

    The encoder: least squares for every block with either sign; d from the greatest step of a super-block, times a few
    factors; for each the best integer of three about the wish; the d of least error.

    Source: I. Kawrakow, k-quants, 2023 (ggml-org/llama.cpp, pull request 1684): the format. Differs: the search.
    """

    size: int = 16
    blocks: int = 16
    bits: int = 6

    side: ClassVar[Mapping[str, Leaf]] = {
        "scale": Leaf("uint8", "scales"),
        "d": Leaf("float16", "scales"),
        "exponent": Leaf("int16", "scales"),
    }

    def __post_init__(self) -> None:
        if not (1 <= self.size <= 1 << 20 and 1 <= self.blocks <= 1 << 10 and 2 <= self.bits <= 8):
            raise BadConfig(
                f"{self.blocks} blocks of {self.size} values, {self.bits} bits a scale; "
                "up to 1024 blocks, 2^20 values and 2 to 8 bits are right"
            )

    def measure(self, x: Tensor, codebook: Codebook, weights: Tensor | None = None) -> Side:
        from ..kernels.bits import pack

        shape = tuple(x.shape)
        block, super_block = Along(self.size).lattice(shape), Along(self.size * self.blocks).lattice(shape)
        d, s = self._search(x, codebook, weights) if x.numel() else (np.zeros(0), np.zeros((0, self.blocks)))
        half, exponent = to_half(d, keep=True)
        sent = s.reshape(*block[:-1], super_block[-1] * self.blocks)[..., : block[-1]] + (1 << (self.bits - 1))
        return {
            "scale": pack(np.ascontiguousarray(sent).astype(np.uint8), self.bits),
            "d": half.reshape(super_block),
            "exponent": np.array([exponent], np.int16),
        }

    def expand(self, side: Side, shape: tuple[int, ...]) -> Grid:
        import torch

        from ..kernels.bits import unpack

        block, super_block = Along(self.size).lattice(shape), Along(self.size * self.blocks).lattice(shape)
        half = torch.from_numpy(from_half(expect(side, "d", super_block), int(expect(side, "exponent", (1,))[0])))
        if side["scale"].ndim != 1:
            raise CorruptStream(f"scale has shape {side['scale'].shape}; packed codes have one axis")
        codes = unpack(side["scale"], self.bits, int(np.prod(block))).astype(np.float32) - (1 << (self.bits - 1))
        steps = Along(self.blocks).spread(half, block) * torch.from_numpy(codes.astype(np.float32).reshape(block))
        return Grid(Along(self.size).spread(steps, shape))

    def _search(self, x: Tensor, codebook: Codebook, weights: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
        """d (n_super,) and integers (n_super, blocks)."""
        import torch

        rows, w = gather(Along(self.size), x, weights)
        in_row = -(-x.shape[-1] // self.size)
        rows = rows.reshape(-1, in_row, self.size)
        if missing := -in_row % self.blocks:
            w = torch.ones_like(rows) if w is None else w.reshape(rows.shape)
            rows, w = (torch.nn.functional.pad(t, (0, 0, 0, missing)) for t in (rows, w))
        size = magnitude(rows.reshape(-1, self.size * self.blocks))
        rows = (rows.reshape(len(size), -1) / size[:, None]).reshape(-1, self.size)
        w = None if w is None else w.reshape(rows.shape).contiguous()
        here = torch.ones(len(rows), dtype=torch.bool) if w is None else (w > 0).any(dim=1)

        def sample(sign: float, which: Tensor) -> Sample:
            return Sample(sign * rows[which], None if w is None else w[which], codebook, lambda a, b: (a, b))

        wish, least = torch.zeros(len(rows)), torch.full((len(rows),), float("inf"), dtype=torch.float64)
        for sign in (1.0, -1.0):
            step, _ = LeastSquares(AbsMax(), 4, 11)(sample(sign, here))
            error = torch.zeros(len(rows), dtype=torch.float64)
            error[here] = sample(sign, here).error(step, None)
            found = torch.zeros(len(rows))
            found[here] = sign * step
            wish, least = torch.where(error < least, found, wish), torch.minimum(error, least)
        everything = Sample(rows, w, codebook, lambda a, b: (a, b))
        return self._integers(everything, wish.double().numpy().reshape(len(size), -1), size.double().numpy())

    def _integers(self, rows: Sample, wish: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        import torch

        most = (1 << (self.bits - 1)) - 1
        top = np.abs(wish).max(axis=1) / most
        best_d, best_s, best = np.zeros(len(wish)), np.zeros(wish.shape), np.full(len(wish), np.inf)
        for factor in _FACTORS:
            d = _half(top * factor)
            about = np.rint(np.divide(wish, d[:, None], out=np.zeros_like(wish), where=d[:, None] > 0))
            s, least = np.zeros(wish.shape), np.full(wish.shape, np.inf)
            for up in (0, -1, 1):
                code = np.clip(about + up, -most - 1, most)
                step = torch.from_numpy((d[:, None] * code).reshape(-1).astype(np.float32))
                error = rows.error(step, None).numpy().reshape(wish.shape)
                s, least = np.where(error < least, code, s), np.minimum(error, least)
            better = least.sum(axis=1) < best
            best_d, best_s = np.where(better, d, best_d), np.where(better[:, None], s, best_s)
            best = np.minimum(best, least.sum(axis=1))
        return best_d * size, best_s
