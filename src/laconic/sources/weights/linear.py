"""Linear and embedding layers that hold few-bit codes and compute on them.

A layer's memory is its buffers, all of integer dtype (floats as their bits), so that `model.to(torch.bfloat16)` casts
what stands around the layer and leaves the codes, steps and tables alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import is_not
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...core.errors import BadConfig, BadInput
from ...kernels.gemv import ACTIVATIONS, add_sparse, prepare
from ...kernels.packed import Packed, dequantize, pack, rows_of
from .linear_base import LinearBase, as_bits, checked_bias, floats_of, tile_height

__all__ = ["DenseLinear", "Outliers", "PackedEmbedding", "PackedLinear"]

_SIDES = ("codes", "step", "offset", "table", "fine")


class Outliers(NamedTuple):
    """Entries added to a packed matrix: rows and columns int (n,), values float32 (n,). 12 bytes each."""

    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray


def _tight(
    levels: np.ndarray, step: np.ndarray, group: int, table: np.ndarray | None
) -> tuple[np.ndarray, int, int, Outliers | None]:
    """(codes, bits, zero, what does not fit 8 bits) of integer levels."""
    if table is not None:
        return levels, max(1, (len(table) - 1).bit_length()), 0, None
    low, high = int(levels.min()), int(levels.max())
    outliers = None
    if high - low > 255:
        low, high = max(low, -128), min(high, 127)
        rows, columns = np.nonzero((levels < low) | (levels > high))
        values = levels[rows, columns].astype(np.float32) * step[rows, columns // group]
        outliers = Outliers(rows.astype(np.int32), columns.astype(np.int32), values)
        levels = levels.copy()
        levels[rows, columns] = 0
    low, high = min(low, 0), max(high, 0)
    return (levels - low).astype(np.uint8), max(1, (high - low).bit_length()), -low, outliers


class _PackedModule(nn.Module):
    """Buffers of a packed matrix, of outliers and of a column scale."""

    codes: Tensor
    step: Tensor
    offset: Tensor | None
    table: Tensor
    fine: Tensor | None
    outlier_places: Tensor | None
    outlier_values: Tensor | None
    column_scale: Tensor | None

    def __init__(
        self, matrix: Packed, *, column_scale: np.ndarray | None = None, outliers: Outliers | None = None
    ) -> None:
        super().__init__()
        empty: Any = None
        self._layout = matrix._replace(codes=empty, step=empty, offset=empty, table=empty, fine=empty)
        for name in _SIDES:
            side = getattr(matrix, name)
            self.register_buffer(name, None if side is None else as_bits(side))
        shape = (matrix.n_out, matrix.n_in)
        places = values = scale = None
        if outliers is not None and len(outliers.values):
            r, c = outliers.rows, outliers.columns
            if not r.shape == c.shape == outliers.values.shape or r.min() < 0 or c.min() < 0 \
                    or r.max() >= shape[0] or c.max() >= shape[1]:  # fmt: skip
                raise BadInput(f"{len(outliers.values)} outliers that do not lie in a matrix of {shape}")
            order = np.lexsort((c, r))
            places = as_bits(np.stack([r[order], c[order]]).astype(np.int32))
            values = as_bits(outliers.values[order].astype(np.float32))
        if column_scale is not None:
            if column_scale.shape != shape[1:] or column_scale.dtype != np.float32:
                raise BadInput(f"column scale {column_scale.dtype}{column_scale.shape}; float32{shape[1:]} is right")
            scale = as_bits(column_scale)
        self.register_buffer("outlier_places", places)
        self.register_buffer("outlier_values", values)
        self.register_buffer("column_scale", scale)

    @staticmethod
    def _packed(
        levels: np.ndarray, step: np.ndarray, offset: np.ndarray | None, table: np.ndarray | None,
        group_size: int | None, exact: bool, outliers: Outliers | None,
    ) -> tuple[Packed, Outliers | None]:  # fmt: skip
        """The tightest layout of integer levels, and all that is added to it."""
        if levels.ndim != 2 or not levels.size or levels.dtype.kind not in "iu" or step.ndim != 2 or not step.size:
            raise BadInput(
                f"levels {levels.dtype}{levels.shape}, steps {step.shape}; integers and steps (out, …) are right"
            )
        group = group_size or max(1, levels.shape[1] // step.shape[1])
        if step.shape != (levels.shape[0], -(-levels.shape[1] // group)):
            raise BadInput(f"steps {step.shape} for levels {levels.shape} in groups of {group}")
        codes, bits, zero, beyond = _tight(levels, step, group, table)
        if beyond is not None:
            added = [beyond] if outliers is None else [outliers, beyond]
            outliers = Outliers(*(np.concatenate(part) for part in zip(*added, strict=True)))
        return pack(codes, bits, step, offset, table=table, zero=zero, group=group, exact=exact), outliers

    @property
    def matrix(self) -> Packed:
        """The packed matrix as the kernels take it: views of the buffers."""
        return self._layout._replace(
            codes=self.codes.numpy(),
            step=floats_of(self.step),
            offset=floats_of(self.offset),
            table=floats_of(self.table),
            fine=None if self.fine is None else self.fine.numpy(),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self._layout.n_out, self._layout.n_in

    @property
    def nbytes(self) -> int:
        """Bytes of everything that the layer holds."""
        return sum(b.nbytes for b in self.buffers())

    def describe(self) -> str:
        """Layout, and bits a weight in memory."""
        p, step = self._layout, "float16" if self.step.dtype == torch.int16 else "float32"
        kind = f"{p.bits}-bit " + ("levels" if p.affine else "table" if p.quantum else "float table")
        parts = [kind, f"{step} step per {p.group}"]
        parts += [] if self.offset is None else ["offset"]
        parts += [] if self.column_scale is None else ["column scale"]
        parts += [] if self.outlier_values is None else [f"{self.outlier_values.numel()} outliers"]
        return f"{', '.join(parts)}: {8 * self.nbytes / (p.n_out * p.n_in):.3f} bits a weight"

    def _finish(self, rows: np.ndarray, start: int) -> Tensor:
        """Outliers and column scale of dequantized rows start, start + 1, …"""
        if self.outlier_places is not None:
            r, c = self.outlier_places.numpy()
            some = slice(*np.searchsorted(r, [start, start + len(rows)]))
            rows[r[some] - start, c[some]] += floats_of(self.outlier_values)[some]  # type: ignore[index]
        scale = floats_of(self.column_scale)
        return torch.from_numpy(rows if scale is None else rows * scale)

    def tiles(self) -> Iterator[Tensor]:
        """W from its first rows to its last, as float32 (n, in) of bounded size."""
        n_out, height, matrix = self.shape[0], tile_height(self.shape[1]), self.matrix
        for start in range(0, n_out, height):
            yield self._finish(dequantize(matrix, start, min(n_out, start + height)), start)

    def dequantize(self) -> Tensor:
        """(out, in) float32: level · step + offset + outlier, times the column scale, each rounded once, in this order."""
        return self._finish(dequantize(self.matrix), 0)


class _Ready(NamedTuple):
    """What a product needs. buffers: those of the layer that the rest are views of."""

    buffers: tuple[Tensor | None, ...]
    activations: str
    product: Callable[[np.ndarray, int], np.ndarray]
    column_scale: np.ndarray | None
    places: np.ndarray | None
    values: np.ndarray | None


class PackedLinear(_PackedModule, LinearBase):
    """y = x Wᵀ + bias on packed codes, for few rows of x and for many; see `LinearBase`.

    A row of y depends on that row of x alone, not on the others or on threads.

    activations: what x is rounded to, with one scale for each group or up to 128 columns of one. "int16" is as good as
    none; "int8" is fastest and adds an error 44 dB below a Gaussian x, more than bfloat16 does; "float32" rounds nothing and
    is what levels that are no multiples of one number take anyway.
    """

    def __init__(
        self,
        matrix: Packed,
        *,
        bias: Tensor | None = None,
        column_scale: np.ndarray | None = None,
        outliers: Outliers | None = None,
        activations: str = "int16",
    ) -> None:
        super().__init__(matrix, column_scale=column_scale, outliers=outliers)
        if activations not in ACTIVATIONS:
            raise BadConfig(f"activations {activations!r}; {' or '.join(ACTIVATIONS)} is right")
        self.activations = activations
        self.register_buffer("bias", checked_bias(bias, matrix.n_out))

    @classmethod
    def from_levels(
        cls,
        levels: np.ndarray,
        step: np.ndarray,
        *,
        offset: np.ndarray | None = None,
        table: np.ndarray | None = None,
        group_size: int | None = None,
        column_scale: np.ndarray | None = None,
        outliers: Outliers | None = None,
        bias: Tensor | None = None,
        exact: bool = True,
        activations: str = "int16",
    ) -> PackedLinear:
        """The tightest layout, 1 to 8 bits, of W = (level · step + offset + outlier) · column_scale.

        levels: integers (out, in), multiples of the step; with `table`, places in it (float32, up to 256). step, offset:
        float32 (out, n_groups). group_size: columns of a group, in / n_groups where not given; the last group may be short.
        column_scale: float32 (in,). exact: keep steps in float32 where float16 would change them. Levels that need more than
        8 bits become outliers.
        """
        matrix, outliers = cls._packed(levels, step, offset, table, group_size, exact, outliers)
        return cls(matrix, bias=bias, column_scale=column_scale, outliers=outliers, activations=activations)

    @staticmethod
    def from_dense(weight: Tensor, bias: Tensor | None = None) -> DenseLinear:
        """A weight that stays as it is, in bfloat16."""
        return DenseLinear(weight, bias)

    def product(self, x: Tensor) -> Tensor:
        ready = self._ready()
        flat = x.detach().numpy()
        if ready.column_scale is not None:
            flat = flat * ready.column_scale
        y = ready.product(flat, torch.get_num_threads())
        if ready.places is not None:
            add_sparse(ready.places, ready.values, flat, y)
        return torch.from_numpy(y)

    def _ready(self) -> _Ready:
        """The kernel and its operands, made once and again where a buffer was exchanged: a token has no time for it."""
        held, now = self.__dict__.get("_kernel"), tuple(self._buffers.values())
        if held is None or held.activations != self.activations or any(map(is_not, held.buffers, now)):
            places = self.outlier_places
            held = _Ready(
                now, self.activations, prepare(self.matrix, self.activations), floats_of(self.column_scale),
                None if places is None else places.numpy(), floats_of(self.outlier_values),
            )  # fmt: skip
            self.__dict__["_kernel"] = held
        return held

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles make their own."""
        return {k: v for k, v in self.__dict__.items() if k != "_kernel"}


class PackedEmbedding(_PackedModule):
    """Rows of a packed table. ids: any shape of integers -> (*ids.shape, in) of `dtype`; only those rows are unpacked."""

    def __init__(
        self,
        matrix: Packed,
        *,
        column_scale: np.ndarray | None = None,
        outliers: Outliers | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(matrix, column_scale=column_scale, outliers=outliers)
        self.dtype = dtype

    @classmethod
    def from_levels(
        cls,
        levels: np.ndarray,
        step: np.ndarray,
        *,
        offset: np.ndarray | None = None,
        table: np.ndarray | None = None,
        group_size: int | None = None,
        column_scale: np.ndarray | None = None,
        outliers: Outliers | None = None,
        exact: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> PackedEmbedding:
        """As `PackedLinear.from_levels`; levels: (n_tokens, dim)."""
        matrix, outliers = cls._packed(levels, step, offset, table, group_size, exact, outliers)
        return cls(matrix, column_scale=column_scale, outliers=outliers, dtype=dtype)

    def forward(self, ids: Tensor) -> Tensor:
        different, place = np.unique(ids.numpy(), return_inverse=True)
        rows = rows_of(self.matrix, different.astype(np.int64))
        if self.outlier_places is not None:
            r, c = self.outlier_places.numpy()
            some = np.isin(r, different)
            rows[np.searchsorted(different, r[some]), c[some]] += floats_of(self.outlier_values)[some]  # type: ignore[index]
        scale = floats_of(self.column_scale)
        values = torch.from_numpy(rows if scale is None else rows * scale).to(self.dtype)
        return values[torch.from_numpy(place.reshape(-1))].reshape(*ids.shape, self.shape[1])

    def as_linear(self, *, activations: str = "int16") -> PackedLinear:
        """The head that is tied to this table: the same buffers, not copies."""
        head = PackedLinear(self.matrix, activations=activations)
        for name, buffer in self._buffers.items():
            head._buffers[name] = buffer
        return head


class DenseLinear(nn.Module):
    """A linear layer kept in bfloat16, with the face of a packed one."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        if weight.ndim != 2:
            raise BadInput(f"a weight of shape {tuple(weight.shape)}; (out, in) is right")
        self.register_buffer("weight", weight.detach().to(torch.bfloat16))
        self.register_buffer("bias", checked_bias(bias, len(weight)))

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return tuple(self.weight.shape)  # type: ignore[return-value]

    @property
    def nbytes(self) -> int:
        """Bytes of everything that the layer holds."""
        return sum(b.nbytes for b in self.buffers())

    def describe(self) -> str:
        """Layout, and bits a weight in memory."""
        return f"bfloat16: {8 * self.nbytes / self.weight.numel():.3f} bits a weight"

    def dequantize(self) -> Tensor:
        """(out, in) float32."""
        return self.weight.float()

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype:
            y = nn.functional.linear(x, self.weight)
        else:  # a tile at a time, so that x keeps its precision and memory stays bounded
            tiles = self.weight.split(tile_height(self.shape[1]))
            y = torch.cat([x.float() @ w.float().T for w in tiles], -1)
        return y.to(x.dtype) if self.bias is None else (y.float() + self.bias.float()).to(x.dtype)
