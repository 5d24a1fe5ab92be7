"""`laconic.kernels.coordinates` where tensors live: the same codes in as many bytes, made by tensor operations on any device.

Planes are those of the kernels for a CPU; within a plane tokens lie one behind the other, the first in the lowest bits, so that a
word holds 8 tokens whatever the width:

    width 8: token t is byte t                  4: byte i has tokens 2 i, 2 i + 1 from its lowest bits up
    width 1: token t is bit t % 8 of byte t // 8    2: byte i has tokens 4 i … 4 i + 3

    layout = Layout.of(bits, device)            places of the planes, once a layer
    codes = layout.pack(index)                  uint8 (n_heads, n_tokens, r) -> (n_blocks, block_bytes)
    index = layout.unpack(codes)                -> (n_heads, 64 · n_blocks, r)
    index = ranks(y, thresholds)                how many thresholds lie below, uint8

A block has all heads one behind the other, and its planes by width, the widest first: those of a width begin at a multiple of
it, as words must.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from laconic.core.errors import BadInput
from laconic.kernels.coordinates import BLOCK

if TYPE_CHECKING:
    import torch

__all__ = ["Layout", "padded_thresholds", "ranks"]


class Plane(NamedTuple):
    """All planes of one width. which: int64 (k,), of n_heads · r coordinates; low: int64 (k,), the first bit that they hold.

    start: their first byte in a block; each takes 8 · width.
    """

    width: int
    which: torch.Tensor
    low: torch.Tensor
    start: int


class Layout(NamedTuple):
    """Where the planes of codes lie in a block. shape: (n_heads, r)."""

    shape: tuple[int, int]
    block_bytes: int
    planes: tuple[Plane, ...]

    @classmethod
    def of(cls, bits: np.ndarray, device: torch.device | str) -> Layout:
        """bits: uint8 (n_heads, r)."""
        import torch

        flat = bits.reshape(-1).astype(np.int64)
        planes, start = [], 0
        for width in (8, 4, 2, 1):
            which = np.flatnonzero(flat & width)
            low = flat[which] & (16 - 2 * width)  # the wider planes hold the lower bits
            if len(which):
                planes.append(Plane(width, *(torch.from_numpy(a).to(device) for a in (which, low)), start))
            start += 8 * width * len(which)
        return cls(bits.shape, start, tuple(planes))

    def places(self, width: int) -> np.ndarray:
        """Where the plane of a width lies in a block, int32 (n_heads, r); 0 where there is none."""
        out = np.zeros(self.shape, np.int32)
        for plane in self.planes:
            if plane.width == width:
                out.reshape(-1)[plane.which.cpu().numpy()] = plane.start + 8 * width * np.arange(len(plane.which))
        return out

    def pack(self, index: torch.Tensor) -> torch.Tensor:
        """Codes below 2^bits as bytes; the last block filled up with code 0.

        Raises BadInput: a shape or dtype that is not (n_heads, n_tokens, r) uint8.
        """
        import torch

        n_heads, r = self.shape
        if index.dtype != torch.uint8 or index.ndim != 3 or (index.shape[0], index.shape[2]) != self.shape:
            raise BadInput(f"codes are {index.dtype}{tuple(index.shape)}; uint8 ({n_heads}, n_tokens, {r}) is right")
        n_blocks = -(-index.shape[1] // BLOCK)
        index = torch.nn.functional.pad(index, (0, 0, 0, n_blocks * BLOCK - index.shape[1]))
        columns = index.transpose(1, 2).reshape(n_heads * r, n_blocks, BLOCK).int()
        out = torch.empty(n_blocks, self.block_bytes, dtype=torch.uint8, device=index.device)
        for width, which, low, start in self.planes:
            part = (columns[which] >> low[:, None, None]) & ((1 << width) - 1)
            found = part.reshape(len(which), n_blocks, -1, 8 // width) << torch.arange(0, 8, width, device=index.device)
            found = found.sum(-1).to(torch.uint8).transpose(0, 1).reshape(n_blocks, -1)
            out[:, start : start + found.shape[1]] = found
        return out

    def unpack(self, codes: torch.Tensor) -> torch.Tensor:
        """uint8 (n_blocks, block_bytes) -> (n_heads, 64 · n_blocks, r)."""
        import torch

        n_heads, r = self.shape
        columns = torch.zeros(n_heads * r, len(codes), BLOCK, dtype=torch.int32, device=codes.device)
        for width, which, low, start in self.planes:
            size = 8 * width * len(which)
            plane = codes[:, start : start + size].reshape(len(codes), len(which), -1).transpose(0, 1).int()
            part = (plane[..., None] >> torch.arange(0, 8, width, device=codes.device)).reshape(*plane.shape[:2], BLOCK)
            columns[which] |= (part & ((1 << width) - 1)) << low[:, None, None]
        return columns.to(torch.uint8).reshape(n_heads, r, -1).transpose(1, 2).contiguous()


def padded_thresholds(thresholds: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Ascending thresholds of [head][coordinate], +∞ behind: float32 (n_heads · r, the most)."""
    flat = [t for head in thresholds for t in head]
    out = np.full((len(flat), max(1, max(map(len, flat), default=0))), np.inf, np.float32)
    for row, t in zip(out, flat, strict=True):
        row[: len(t)] = t
    return out


def ranks(y: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """Thresholds below every value, uint8, a NaN above none. y: float32 (n_heads, n, r); thresholds: (n_heads · r, most)."""
    import torch

    n_heads, n, r = y.shape
    values = y.transpose(1, 2).reshape(n_heads * r, n)
    values = torch.where(values.isnan(), -torch.inf, values).contiguous()
    found = torch.searchsorted(thresholds, values)
    return found.to(torch.uint8).reshape(n_heads, r, n).transpose(1, 2).contiguous()
