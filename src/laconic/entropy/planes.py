"""Arrays without loss: bytes of equal significance together, each plane with statistics of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..core.combine import need
from ..core.errors import CorruptStream, claim
from ..core.stage import Kind, Leaf, Side, Stage, Symbols
from ..core.wire import Reader, read_sections, write_sections, write_varint

if TYPE_CHECKING:
    from torch import Tensor

# Order is the wire's: a dtype is sent as its place here.
DTYPES = ("float16", "bfloat16", "float32", "float64", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64",
          "int64", "bool", "float8_e4m3fn", "float8_e5m2")  # fmt: skip


@dataclass(frozen=True)
class BytePlanes(Stage):
    """ARRAY -> SYMBOLS (bytes per value, values): plane k holds byte k of every value, the sign and exponent last.

    For bfloat16 the exponent's plane is where the redundancy is: weights of one layer use a few dozen of its 256 values.
    Side: dtype (its place in DTYPES) and shape.
    Source: the byte shuffle of blosc and HDF5; on weights, e.g. Zhang et al. 2025 (2504.11651).
    """

    takes: ClassVar[Kind] = Kind.ARRAY
    gives: ClassVar[Kind] = Kind.SYMBOLS
    lossless: ClassVar[bool] = True
    accepts: ClassVar[tuple[str, ...]] = DTYPES
    casts: ClassVar[bool] = False
    side: ClassVar[Mapping[str, Leaf]] = {"dtype": Leaf("uint8", "header"), "shape": Leaf("int64", "header")}

    def encode(self, x: Tensor) -> tuple[Symbols, Side]:
        import torch

        raw = x.contiguous().reshape(-1).view(torch.uint8).numpy().reshape(x.numel(), x.element_size())
        dtype = DTYPES.index(str(x.dtype).removeprefix("torch."))
        side = {"dtype": np.array([dtype], np.uint8), "shape": np.array(x.shape, np.int64)}
        return Symbols(np.ascontiguousarray(raw.T), 256), side

    def decode(self, y: Symbols, side: Side) -> Tensor:
        import torch

        shape = tuple(int(d) for d in side["shape"].ravel())
        if side["dtype"].shape != (1,) or side["dtype"][0] >= len(DTYPES) or min(shape, default=0) < 0:
            raise CorruptStream(f"dtype {side['dtype'][:4]} and shape {shape[:4]} of byte planes")
        dtype = getattr(torch, DTYPES[int(side["dtype"][0])])
        if y.alphabet != 256 or y.index.shape != (dtype.itemsize, math.prod(shape)):
            raise CorruptStream(f"planes of shape {y.index.shape} for {shape} of {dtype}")
        claim(y.index.size, "an array")
        raw = np.ascontiguousarray(y.index.T)
        if dtype is torch.bool and (raw > 1).any():
            raise CorruptStream("a truth value above 1")
        return torch.from_numpy(raw.reshape(-1)).view(dtype).reshape(shape)


@dataclass(frozen=True)
class Rows(Stage):
    """SYMBOLS -> BYTES: every row of the first axis coded by itself, so that it has its own statistics."""

    coder: Stage

    takes: ClassVar[Kind] = Kind.SYMBOLS
    gives: ClassVar[Kind] = Kind.BYTES
    lossless: ClassVar[bool] = True

    def __post_init__(self) -> None:
        need(self.coder, Kind.SYMBOLS, Kind.BYTES, "Rows")

    def encode(self, x: Symbols) -> tuple[bytes, Side]:
        out = bytearray()
        for row in x.index:
            y, side = self.coder.encode(Symbols(row, x.alphabet))
            frame = write_sections(self.coder, {**side, "payload": y}, checksum=False)
            write_varint(out, len(frame))
            out += frame
        return bytes(out), {}

    def decode(self, y: bytes, side: Side) -> Symbols:
        reader, rows, n_bytes = Reader(y), [], 0
        while reader.at < len(y):
            frame = Reader(reader.take(reader.varint()))
            inner = read_sections(self.coder, frame, checksum=False)
            frame.finish()
            rows.append(self.coder.decode(inner.pop("payload"), inner))
            n_bytes += rows[-1].index.nbytes
            claim(n_bytes, "rows of symbols")
        if not rows or len({(r.index.shape, r.alphabet) for r in rows}) != 1:
            raise CorruptStream(f"{len(rows)} rows of symbols that are not alike")
        return Symbols(np.stack([r.index for r in rows]), rows[0].alphabet)
