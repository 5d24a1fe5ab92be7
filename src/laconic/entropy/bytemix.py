"""Any bytes, by context mixing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..core.errors import BadConfig
from ..core.stage import Kind, Leaf, Side, Stage
from .blocks import SIDE, coded_or_stored, read


@dataclass(frozen=True)
class ByteMix(Stage):
    """BYTES -> BYTES: one block of up to 2^31 bytes by an adaptive mix of orders 1 to 6, words and matches.

    Nothing is learned beforehand and nothing is sent but the code and the tree of bytes it decides by; a block that does
    not shrink is stored.
    table_bits: log2 of the bytes of history at most, 16 to 26; both ends take about 1.07 · 2^table_bits + 5 MB.
    Side: the mode and the length.
    Source: see `kernels.bytemix`.
    """

    table_bits: int = 24

    version: ClassVar[int] = 3  # by trees of bytes, and what histories agree on
    takes: ClassVar[Kind] = Kind.BYTES
    gives: ClassVar[Kind] = Kind.BYTES
    lossless: ClassVar[bool] = True
    side: ClassVar[Mapping[str, Leaf]] = SIDE

    def __post_init__(self) -> None:
        if not 16 <= self.table_bits <= 26:
            raise BadConfig(f"table_bits={self.table_bits}; 16 to 26 are right")

    def encode(self, x: bytes) -> tuple[bytes, Side]:
        from ..kernels.bytemix import encode

        return coded_or_stored(x, encode(np.frombuffer(x, np.uint8), self.table_bits))

    def decode(self, y: bytes, side: Side) -> bytes:
        from ..kernels.bytemix import decode

        return read(y, side, lambda code, n: decode(code, n, self.table_bits))
