"""Super-block scales: the K-quants of llama.cpp as a Scale.

x̂ = (d · s) · q − (dmin · m)     q unsigned; s, m integers of a block; d, dmin half floats of a super-block
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..core.errors import BadConfig, CorruptStream
from ..core.stage import Leaf, Side
from .base import Codebook, Grid, Ladder, Scale
from .scales import (
    AbsMax,
    Along,
    LeastSquares,
    MinMax,
    Sample,
    Statistic,
    expect,
    from_half,
    gather,
    magnitude,
    to_half,
)  # fmt: skip

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SuperBlock(Scale):
    """Blocks of `size` values along the last axis; `blocks` of them share two half floats, d for steps, dmin for offsets.

    bits: of a block's step and of its offset. Q4_K: 8 blocks of 32, 6 bits; Q2_K: 16 blocks of 16, 4 bits.
    rounds: of the joint search.

    Side: 2 · bits / size + 32 / (size · blocks) bits a value. Half floats have one exponent for the array, 0 unless the
    magnitudes are out of their range.

    The encoder: least squares for every block by itself; d and dmin from the greatest of a super-block; for every block the
    best pair of integers about its wish; then, while the error falls, d and dmin by least squares for fixed codes and
    integers, and the best pairs again. Started from several d, because the integers are coarse.

    Source: I. Kawrakow, k-quants, 2023 (ggml-org/llama.cpp, pull request 1684): the format, and the decoder's order of
    operations. Differs: errors are unweighted unless weights are given; all numbers of a super-block are searched jointly;
    rows need not be whole super-blocks.
    """

    size: int = 32
    blocks: int = 8
    bits: int = 6
    rounds: int = 4

    side: ClassVar[Mapping[str, Leaf]] = {
        "scale": Leaf("uint8", "scales"),
        "zero": Leaf("uint8", "zeros"),
        "d": Leaf("float16", "scales"),
        "dmin": Leaf("float16", "zeros"),
        "exponent": Leaf("int16", "scales"),
    }

    def __post_init__(self) -> None:
        if not (1 <= self.size <= 1 << 20 and 1 <= self.blocks <= 1 << 10 and 1 <= self.bits <= 8):
            raise BadConfig(
                f"{self.blocks} blocks of {self.size} values, {self.bits} bits a scale; "
                "up to 1024 blocks, 2^20 values and 8 bits are right"
            )
        if not 0 <= self.rounds <= 100:
            raise BadConfig(f"{self.rounds} rounds of the joint search; 0 to 100 are right")

    def measure(self, x: Tensor, codebook: Codebook, weights: Tensor | None = None) -> Side:
        from ..kernels.bits import pack

        ladder = codebook.ladder()
        if ladder is None or ladder.levels[0] < 0:
            raise BadConfig(f"{type(codebook).__name__} under super-block scales; an unsigned scalar book is right")
        block, super_block = Along(self.size).lattice(tuple(x.shape)), self._super(tuple(x.shape))
        if x.numel():
            found = _Search(self, x, codebook, weights).run()
        else:
            found = _Found(*np.zeros((4, 0)))
        halves, exponent = to_half(np.stack([found.d, found.dmin]), keep=True)
        side: Side = {"exponent": np.array([exponent], np.int16)}
        for name, unit, half, integers in (("scale", "d", halves[0], found.s), ("zero", "dmin", halves[1], found.m)):
            sent = integers.reshape(*block[:-1], super_block[-1] * self.blocks)[..., : block[-1]]
            side[name] = pack(np.ascontiguousarray(sent).astype(np.uint8), self.bits)
            side[unit] = half.reshape(super_block)
        return side

    def expand(self, side: Side, shape: tuple[int, ...]) -> Grid:
        import torch

        from ..kernels.bits import unpack

        block, super_block = Along(self.size).lattice(shape), self._super(shape)
        exponent = int(expect(side, "exponent", (1,))[0])
        grid = []
        for name, unit in (("scale", "d"), ("zero", "dmin")):
            half = torch.from_numpy(from_half(expect(side, unit, super_block), exponent))
            if side[name].ndim != 1:
                raise CorruptStream(f"{name} has shape {side[name].shape}; packed codes have one axis")
            codes = unpack(side[name], self.bits, int(np.prod(block))).astype(np.float32).reshape(block)
            grid.append(
                Along(self.size).spread(Along(self.blocks).spread(half, block) * torch.from_numpy(codes), shape)
            )
        return Grid(grid[0], -grid[1])

    def run(self, shape: tuple[int, ...]) -> int:
        return self.size

    def _super(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return Along(self.size * self.blocks).lattice(shape)


@dataclass
class _Found:
    """d, dmin: (n_super,); s, m: (n_super, blocks); error: (n_super,); moments: (6, n_super, blocks)."""

    d: np.ndarray
    dmin: np.ndarray
    s: np.ndarray
    m: np.ndarray
    error: np.ndarray = field(default_factory=lambda: np.zeros(0))
    moments: np.ndarray = field(default_factory=lambda: np.zeros(0))


class _Search:
    """The joint search for one array, all super-blocks at once. Blocks behind the end of a row have weight 0.

    Inside, a super-block is divided by a power of two near its greatest magnitude; `_Found` has the magnitudes back.
    """

    def __init__(self, scale: SuperBlock, x: Tensor, codebook: Codebook, weights: Tensor | None) -> None:
        import torch

        self.scale, self.most = scale, (1 << scale.bits) - 1
        ladder = codebook.ladder()
        assert ladder is not None
        self.ladder: Ladder = ladder
        rows, w = gather(Along(scale.size), x, weights)
        in_row = -(-x.shape[-1] // scale.size)
        missing = -in_row % scale.blocks
        rows = rows.reshape(-1, in_row, scale.size)
        if missing:
            w = torch.ones_like(rows) if w is None else w.reshape(rows.shape)
            rows, w = (torch.nn.functional.pad(t, (0, 0, 0, missing)) for t in (rows, w))
        magnitudes = magnitude(rows.reshape(-1, scale.size * scale.blocks))
        self.magnitudes = magnitudes.double().numpy()
        self.shape = (len(magnitudes), scale.blocks)
        x = (rows.reshape(len(magnitudes), -1) / magnitudes[:, None]).reshape(-1, scale.size)
        self.x, self.w = x.numpy(), None if w is None else w.reshape(-1, scale.size).contiguous().numpy()
        self.step, self.minus = self._wishes(codebook)

    def _wishes(self, codebook: Codebook) -> tuple[np.ndarray, np.ndarray]:
        """Step and −offset ≥ 0 of every block if they could be sent exactly; 0 for blocks that do not exist."""
        import torch

        def find(statistic: Statistic, which: Tensor) -> tuple[Tensor, Tensor]:
            w = None if self.w is None else torch.from_numpy(self.w)[which]
            sample = Sample(torch.from_numpy(self.x)[which], w, codebook, lambda step, offset: (step, offset))
            step, offset = statistic(sample)
            return step.double(), torch.zeros(len(step)).double() if offset is None else -offset.double()

        here = torch.ones(len(self.x), dtype=torch.bool) if self.w is None else torch.from_numpy(self.w.any(axis=1))
        step, minus = torch.zeros(2, len(self.x), dtype=torch.float64)
        step[here], minus[here] = find(LeastSquares(MinMax(), 4, 11), here)
        if bool((minus < 0).any()):  # an offset above 0 cannot be sent
            step[minus < 0], minus[minus < 0] = find(LeastSquares(AbsMax(), 4, 11), minus < 0)
        return step.clamp(min=0).numpy().reshape(self.shape), minus.numpy().reshape(self.shape)

    def run(self) -> _Found:
        wish = self._moments(self.step, self.minus)
        start_d, start_dmin = self.step.max(axis=1) / self.most, self.minus.max(axis=1) / self.most
        best = self._pick(start_d, start_dmin, wish)
        for factor in (1.06, 0.94, 0.88) if self.scale.rounds else ():
            self._keep(best, self._pick(start_d * factor, start_dmin, wish))
            self._keep(best, self._pick(start_d, start_dmin * factor, wish))
        for _ in range(self.scale.rounds):
            if not self._keep(best, self._pick(*self._refit(best), best.moments)):
                break
        return _Found(best.d * self.magnitudes, best.dmin * self.magnitudes, best.s, best.m)

    def _moments(self, step: np.ndarray, minus: np.ndarray) -> np.ndarray:
        """Weighted sums of every block with the codes nearest under that grid: (6, n_super, blocks)."""
        from ..kernels.scalar import group_moments

        thresholds, levels = self.ladder.thresholds, self.ladder.levels
        sums = group_moments(self.x, self.w, step.reshape(-1), -minus.reshape(-1), thresholds, levels)
        return sums.reshape(6, *self.shape)

    def _pick(self, d: np.ndarray, dmin: np.ndarray, moments: np.ndarray) -> _Found:
        """The best pair of integers of every block, of 25 about its wish, with the codes of `moments`; then codes anew."""
        d, dmin = _half(d), _half(dmin)
        wish_s, wish_m = (
            np.rint(np.divide(wish, unit[:, None], out=np.zeros(self.shape), where=unit[:, None] > 0))
            for wish, unit in ((self.step, d), (self.minus, dmin))
        )
        best_s, best_m, best = wish_s, wish_m, np.full(self.shape, np.inf)
        for up_s in (0, -1, 1, -2, 2):
            for up_m in (0, -1, 1, -2, 2):
                s, m = np.clip(wish_s + up_s, 0, self.most), np.clip(wish_m + up_m, 0, self.most)
                error = _error(moments, d[:, None] * s, dmin[:, None] * m)
                better = error < best
                best_s, best_m, best = (np.where(better, a, b) for a, b in ((s, best_s), (m, best_m), (error, best)))
        moments = self._moments(d[:, None] * best_s, dmin[:, None] * best_m)
        error = _error(moments, d[:, None] * best_s, dmin[:, None] * best_m).sum(axis=1)
        return _Found(d, dmin, best_s, best_m, error, moments)

    def _refit(self, found: _Found) -> tuple[np.ndarray, np.ndarray]:
        """d and dmin of least weighted squared error for the integers and codes of `found`."""
        s, m = found.s, found.m
        n, x1, q1, _, xq, qq = found.moments
        a, b, c = (s * s * qq).sum(axis=1), -(s * m * q1).sum(axis=1), (m * m * n).sum(axis=1)
        u, v = (s * xq).sum(axis=1), -(m * x1).sum(axis=1)
        det = a * c - b * b
        good = det > 1e-9 * a * c
        safe = np.where(good, det, 1.0)
        d = np.where(good, (u * c - v * b) / safe, found.d)
        dmin = np.where(good, (v * a - u * b) / safe, found.dmin)
        good = (d >= 0) & (dmin >= 0)
        return np.where(good, d, found.d), np.where(good, dmin, found.dmin)

    def _keep(self, best: _Found, other: _Found) -> bool:
        """Take over the super-blocks that `other` does better; whether there are any."""
        better = other.error < best.error
        for name in ("d", "dmin", "s", "m", "error"):
            getattr(best, name)[better] = getattr(other, name)[better]
        best.moments[:, better] = other.moments[:, better]
        return bool(better.any())


def _half(v: np.ndarray) -> np.ndarray:
    """v ≥ 0 rounded to the mantissa of half floats."""
    mantissa, exponent = np.frexp(v)
    return np.ldexp(np.rint(np.ldexp(mantissa, 11)), exponent - 11)


def _error(moments: np.ndarray, step: np.ndarray, minus: np.ndarray) -> np.ndarray:
    """Σ w (step · q − minus − x)² of every block."""
    n, x1, q1, xx, xq, qq = moments
    return xx + step * step * qq + minus * minus * n - 2 * (step * xq - minus * x1 + step * minus * q1)
