"""A linear layer that holds the symbols of a trellis and decodes them as it multiplies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.errors import BadConfig
from ...kernels.gemv_trellis import PackedTrellis, dequantize_trellis, gemv_trellis, pack_trellis
from ...kernels.trellis import code
from ...quantize.trellis import TrellisCodebook
from .linear_base import LinearBase, as_bits, checked_bias, floats_of, tile_height

__all__ = ["TrellisLinear"]

_FEW = 64  # rows of x that are multiplied without unpacking; for more, decoding once is cheaper


class TrellisLinear(LinearBase):
    """y = x Wᵀ + bias on trellis symbols, in float32; see `LinearBase`. Memory: `bits` a weight, the steps and a table."""

    words: Tensor
    table: Tensor
    step: Tensor

    def __init__(self, matrix: PackedTrellis, *, bias: Tensor | None = None) -> None:
        super().__init__()
        empty: Any = None
        self._layout = matrix._replace(words=empty, table=empty, step=empty)
        for name in ("words", "table", "step"):
            self.register_buffer(name, as_bits(getattr(matrix, name)))
        self.register_buffer("bias", checked_bias(bias, matrix.n_out))

    @classmethod
    def from_symbols(
        cls, index: np.ndarray, book: TrellisCodebook, step: np.ndarray, *, bias: Tensor | None = None
    ) -> TrellisLinear:
        """W = level · step of the symbols that `book.nearest` gave for W / step.

        index: (out, in). step: (out, n_groups) float32. Raises BadConfig for a book of fractions of bits, of more than one
        row to a path or of more than 2^17 states, and for rows that are not cut into equal blocks of whole 16 values.
        """
        n_in = index.shape[1]
        n_blocks = max(1, -(-n_in // book.columns))
        if book.rows != 1 or n_in % n_blocks:
            raise BadConfig(f"rows of {n_in} in {n_blocks} paths of {book.rows} rows; equal paths of one row are right")
        trellis = code(float(book.bits), book.states)
        return cls(pack_trellis(index, trellis, book.points(), step, n_in // n_blocks), bias=bias)

    @property
    def matrix(self) -> PackedTrellis:
        """The packed matrix as the kernel takes it: views of the buffers."""
        return self._layout._replace(
            words=floats_of(self.words), table=floats_of(self.table), step=floats_of(self.step)
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self._layout.n_out, self._layout.n_in

    def describe(self) -> str:
        """Layout, and bits a weight in memory."""
        p = self._layout
        bits = 8 * self.nbytes / (p.n_out * p.n_in)
        return f"{1 + p.free}-bit trellis of 2^{p.memory} states: {bits:.3f} bits a weight"

    def product(self, x: Tensor) -> Tensor:
        x = x.detach()
        if len(x) <= _FEW:
            return torch.from_numpy(gemv_trellis(self.matrix, x.numpy(), threads=torch.get_num_threads()))
        return torch.cat([x @ w.T for w in self.tiles()], 1)

    def tiles(self) -> Iterator[Tensor]:
        n_out, height, matrix = self.shape[0], tile_height(self.shape[1]), self.matrix
        for start in range(0, n_out, height):
            yield torch.from_numpy(dequantize_trellis(matrix, start, min(n_out, start + height)))

    def dequantize(self) -> Tensor:
        """(out, in) float32: level · step, rounded once."""
        return torch.from_numpy(dequantize_trellis(self.matrix))
