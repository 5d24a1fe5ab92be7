"""Quantized transform coefficients, by context mixing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..core.errors import BadInput, CorruptStream
from ..core.stage import Kind, Leaf, Side, Stage, Symbols
from ..core.wire import Reader, write_varint


@dataclass(frozen=True)
class CoefficientCoder(Stage):
    """SYMBOLS -> BYTES: blocks of transform coefficients, each decision predicted from those around it.

    Shapes: (planes, rows, columns, b²) int32 without bound, zigzag, |q| < 2^24, up to 16 planes and b ≤ 64. The prediction
    from continuity takes all coefficients to have one step; it is as decodable, and less sharp, where they have not.
    Side: planes, rows, columns and b, a byte or two each.
    Source: see `kernels.coefficients`.
    """

    takes: ClassVar[Kind] = Kind.SYMBOLS
    gives: ClassVar[Kind] = Kind.BYTES
    lossless: ClassVar[bool] = True
    side: ClassVar[Mapping[str, Leaf]] = {"head": Leaf("uint8", "header")}

    def encode(self, x: Symbols) -> tuple[bytes, Side]:
        from ..kernels.coefficients import MAX_VALUE, block_of, encode

        block = block_of(x.index.shape)
        if x.alphabet != 0 or x.index.dtype != np.int32 or not block:
            raise BadInput(
                f"{x.index.dtype} symbols of alphabet {x.alphabet} and shape {x.index.shape}; "
                "unbounded int32 of shape (planes, rows, columns, b²) are needed"
            )
        q = np.ascontiguousarray(x.index)
        if q.size and max(int(q.max()), -int(q.min())) > MAX_VALUE:
            raise BadInput(f"coefficients from {q.min()} to {q.max()}; at most {MAX_VALUE:,} in size are possible")
        head = bytearray()
        for n in (*q.shape[:3], block):
            write_varint(head, n)
        return encode(q).tobytes(), {"head": np.frombuffer(bytes(head), np.uint8)}

    def decode(self, y: bytes, side: Side) -> Symbols:
        from ..kernels.coefficients import MAX_BLOCK, decode

        reader = Reader(side["head"].tobytes())
        planes, rows, columns, block = (reader.varint() for _ in range(4))
        reader.finish()
        if block > MAX_BLOCK:
            raise CorruptStream(f"blocks of {block}; at most {MAX_BLOCK} are possible")
        return Symbols(decode(np.frombuffer(y, np.uint8), (planes, rows, columns, block * block)), 0)
