"""The form in which decoded packets are run: layers on few-bit codes, or dense weights where the codec is not made of codes.

packet ─ levels ─▶ level, step, offset, column scale, turns ─▶ PackedLinear, PackedEmbedding
       └ decode ─▶ float32 matrix ─▶ the model's own layer, a dense weight of its dtype
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...core.packet import Codec, levels
from ...core.stage import Levels, Stage
from .linear import Outliers, PackedEmbedding, PackedLinear

__all__ = ["CodedEmbedding", "CodedLinear", "CodedStack", "Footprint", "Form", "footprint", "levels_of"]

MOST_LEVELS = 1 << 16
MOST_OUTLIERS = 0.003  # of the values: they are multiplied one by one
LEAST_RUN = 8  # columns of a step below which steps take more room than bfloat16 weights would


def levels_of(packet: bytes, codecs: Mapping[str, Codec]) -> Levels | None:
    """The packet as integers and steps; None where it must be run dense. Raises CorruptStream."""
    found = levels(packet, codecs=codecs)
    if found is None or found.group < min(LEAST_RUN, found.level.shape[1]):
        return None
    return found


class _Coded(nn.Module):
    """What lies around a packed matrix: turns of the last axis, and the face of the layer that it stands for.

    matrix: PackedLinear or PackedEmbedding. columns: the layer keeps its weight as (n_in, n_out).
    """

    matrix: Any

    def __init__(self, matrix: nn.Module, turns: tuple[Stage, ...], dtype: torch.dtype, columns: bool = False) -> None:
        super().__init__()
        self.matrix, self.turns, self.dtype, self.columns = matrix, turns, dtype, columns

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.matrix.shape  # type: ignore[no-any-return]

    @property
    def weight(self) -> Tensor:
        """The dense weight in the layer's dtype and layout, made anew each time: for code that looks at it."""
        w = self.dequantize().to(self.dtype)
        return w.T if self.columns else w

    @property
    def nbytes(self) -> int:
        """Bytes of everything that the layer holds."""
        return int(self.matrix.nbytes)

    def describe(self) -> str:
        """Layout, and bits a weight in memory."""
        turned = f"turned by {', '.join(type(t).__name__.lower() for t in self.turns)}, " if self.turns else ""
        return turned + str(self.matrix.describe())

    def dequantize(self) -> Tensor:
        """(out, in) float32, as the packet decodes."""
        return _turned_back(self.matrix.dequantize(), self.turns)

    def extra_repr(self) -> str:
        return f"out={self.shape[0]}, in={self.shape[1]}, {self.describe()}"


def _turned_back(rows: Tensor, turns: tuple[Stage, ...]) -> Tensor:
    for turn in reversed(turns):
        rows = turn.decode(rows, {})
    return rows


class CodedLinear(_Coded):
    """y = x Wᵀ + bias on codes; where W was coded turned, x is turned instead."""

    @classmethod
    def of(cls, found: Levels, bias: Tensor | None, dtype: torch.dtype, columns: bool = False) -> CodedLinear:
        """Of the levels of a packet. dtype: of the layer that it stands for."""
        return cls(PackedLinear.from_levels(**_arguments(found), bias=bias), found.turns, dtype, columns)

    @property
    def bias(self) -> Tensor | None:
        """The layer's bias."""
        return self.matrix.bias  # type: ignore[no-any-return]

    @property
    def in_features(self) -> int:
        """Values of x."""
        return self.shape[1]

    @property
    def out_features(self) -> int:
        """Values of y."""
        return self.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        if self.turns and x.numel():
            turned = x.float()
            for turn in self.turns:
                turned, _ = turn.encode(turned)
            return self.matrix(turned).to(x.dtype)  # type: ignore[no-any-return]
        return self.matrix(x)  # type: ignore[no-any-return]


class CodedEmbedding(_Coded):
    """Rows of a coded table in the layer's dtype."""

    @classmethod
    def of(cls, found: Levels, dtype: torch.dtype) -> CodedEmbedding:
        """Of the levels of a packet. dtype: of what a look-up gives."""
        inner = torch.float32 if found.turns else dtype
        return cls(PackedEmbedding.from_levels(**_arguments(found), dtype=inner), found.turns, dtype)

    @property
    def num_embeddings(self) -> int:
        """Rows of the table."""
        return self.shape[0]

    @property
    def embedding_dim(self) -> int:
        """Values of a row."""
        return self.shape[1]

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.matrix(ids)
        return _turned_back(rows, self.turns).to(self.dtype) if self.turns and rows.numel() else rows

    def as_linear(self, bias: Tensor | None) -> CodedLinear:
        """The head that is tied to this table: the same codes, not copies."""
        head = self.matrix.as_linear()
        if bias is not None:
            head._buffers["bias"] = bias.detach().clone()
        return CodedLinear(head, self.turns, self.dtype)


class CodedStack(nn.Module):
    """The matrices of a stack of experts, each in its own form; `stack[e]` unpacks one of them.

    It stands where a parameter (n_experts, …) stood, for code that takes one expert at a time.
    """

    def __init__(self, experts: list[CodedLinear], columns: bool) -> None:
        super().__init__()
        self.experts, self.columns = nn.ModuleList(experts), columns

    def __len__(self) -> int:
        return len(self.experts)

    def __getitem__(self, expert: int | Tensor) -> Tensor:
        return self.experts[int(expert)].weight  # type: ignore[return-value]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the parameter."""
        n_out, n_in = self.experts[0].shape  # type: ignore[misc]
        return (len(self), n_in, n_out) if self.columns else (len(self), n_out, n_in)  # type: ignore[has-type]


def _arguments(found: Levels) -> dict[str, Any]:
    level, outliers = (found.level, None) if found.table is not None else _narrowed(found)
    return {
        "levels": level, "step": found.step, "offset": found.offset, "table": found.table, "group_size": found.group,
        "column_scale": found.column_scale, "outliers": outliers,
    }  # fmt: skip


def _narrowed(found: Levels) -> tuple[np.ndarray, Outliers | None]:
    """Levels in the width that takes the least memory, and the few that are beyond it, as outliers.

    Entropy-coded levels have long tails: a bit less for all is worth 12 bytes for each of a few in a thousand.
    """
    low = int(found.level.min())
    count = np.bincount((found.level - low).reshape(-1))
    if len(count) > MOST_LEVELS:
        return found.level, None
    below = np.concatenate([[0], np.cumsum(count)])
    best, window = float(found.level.size) * max(1, (len(count) - 1).bit_length()), (0, len(count))
    for bits in range(1, (len(count) - 1).bit_length()):
        width = 1 << bits
        first = np.arange(max(0, -low - width + 1), min(max(-low, 0), len(count) - width) + 1)  # zero is in the window
        if not len(first):
            continue
        outside = found.level.size - (below[first + width] - below[first])
        at, n = int(first[outside.argmin()]), int(outside.min())
        if n <= MOST_OUTLIERS * found.level.size and bits * found.level.size + 96 * n < best:
            best, window = bits * found.level.size + 96 * n, (at, at + width)
    rows, columns = np.nonzero((found.level < low + window[0]) | (found.level >= low + window[1]))
    if not len(rows):
        return found.level, None
    values = found.level[rows, columns].astype(np.float32) * found.step[rows, columns // found.group]
    level = found.level.copy()
    level[rows, columns] = 0
    return level, Outliers(rows.astype(np.int32), columns.astype(np.int32), values)


class Form(NamedTuple):
    """How one matrix is run. form: "packed" or "dense"; says: its layout. nbytes: what it takes in memory."""

    name: str
    form: str
    says: str
    nbytes: int


class Footprint(NamedTuple):
    """What a model takes in memory. nbytes: all parameters and buffers, shared ones once. forms: the coded matrices."""

    nbytes: int
    forms: tuple[Form, ...]

    @property
    def dense(self) -> tuple[Form, ...]:
        """The coded matrices that are run as dense weights."""
        return tuple(f for f in self.forms if f.form == "dense")

    def describe(self) -> str:
        """One line, and one for each matrix that is not run on its codes."""
        n_packed = len(self.forms) - len(self.dense)
        head = f"{self.nbytes:,} bytes in memory; {n_packed} matrices on their codes, {len(self.dense)} dense"
        return "\n".join([head, *(f"{f.name}: runtime form: dense ({f.says})" for f in self.dense)])


def footprint(model: nn.Module) -> Footprint:
    """Memory of a model that `load` or transformers made of a compressed folder."""
    shared = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
              for t in (*model.parameters(), *model.buffers()) if t.device.type != "meta"}  # fmt: skip
    return Footprint(sum(shared.values()), tuple(getattr(model, "laconic_forms", ())))
