"""What linear layers on packed weights share: shapes and dtypes of x, a gradient for it, tiles of bounded size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...core.errors import BadInput

__all__ = ["LinearBase", "as_bits", "checked_bias", "floats_of", "tile_height"]

_TILE_BYTES = 8 << 20


def as_bits(a: np.ndarray) -> Tensor:
    """A buffer that no cast of the module touches: floats and unsigned words as signed integers of the same width."""
    kinds: dict[Any, Any] = {np.dtype(np.float32): np.int32, np.dtype(np.uint16): np.int16}
    return torch.from_numpy(np.ascontiguousarray(a).view(kinds.get(a.dtype, a.dtype)))


def floats_of(buffer: Tensor | None) -> np.ndarray | None:
    """The float32 (int32 buffers) or the bits of float16 (int16 buffers) that `as_bits` was given; a view."""
    return None if buffer is None else buffer.numpy().view(np.uint16 if buffer.dtype == torch.int16 else np.float32)


def checked_bias(bias: Tensor | None, n: int) -> Tensor | None:
    """A copy of a bias of n entries, or None."""
    if bias is not None and bias.shape != (n,):
        raise BadInput(f"a bias of shape {tuple(bias.shape)} for {n} rows")
    return None if bias is None else bias.detach().clone()


def tile_height(n_in: int) -> int:
    """Rows of a dequantized tile of bounded size, in multiples of 16."""
    return max(16, _TILE_BYTES // (4 * n_in) // 16 * 16)


class _Product(torch.autograd.Function):
    """x Wᵀ with a gradient for x, so that what stands around a packed layer can be trained."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: LinearBase) -> Tensor:
        ctx.layer = layer
        return layer.product(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        out, at = torch.zeros(len(grads[0]), ctx.layer.shape[1]), 0
        for w in ctx.layer.tiles():
            out += grads[0][:, at : at + len(w)] @ w
            at += len(w)
        return out, None


class LinearBase(nn.Module):
    """y = x Wᵀ + bias. x: (..., in) of any float dtype on the CPU; y has its dtype.

    W is never unpacked as a whole. Threads: those of torch.
    """

    bias: Tensor | None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        raise NotImplementedError

    def product(self, x: Tensor) -> Tensor:
        """x Wᵀ, whatever x's gradient: (m, in) float32 -> (m, out) float32."""
        raise NotImplementedError

    def tiles(self) -> Iterator[Tensor]:
        """W from its first rows to its last, as float32 (n, in) of bounded size."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes of everything that the layer holds."""
        return sum(b.nbytes for b in self.buffers())

    def describe(self) -> str:
        """Layout, and bits a weight in memory."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"out={self.shape[0]}, in={self.shape[1]}, {self.describe()}"

    def forward(self, x: Tensor) -> Tensor:
        n_out, n_in = self.shape
        if not x.is_cpu or not x.is_floating_point() or x.shape[-1:] != (n_in,):
            raise BadInput(f"x is {x.dtype}{tuple(x.shape)} on {x.device}; floats (..., {n_in}) on the CPU are right")
        flat = (x if x.ndim == 2 else x.reshape(-1, n_in)).float().contiguous()
        y = _Product.apply(flat, self) if torch.is_grad_enabled() and x.requires_grad else self.product(flat)
        bias = self._buffers["bias"]  # not by name: Module looks in two other places first
        if bias is not None:
            y = y + bias.float()
        y = y.to(x.dtype)
        return y if x.ndim == 2 else y.reshape(*x.shape[:-1], n_out)
