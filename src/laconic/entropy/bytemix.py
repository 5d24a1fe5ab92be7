"""Any bytes, by context mixing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..core.errors import BadConfig, CorruptStream, claim
from ..core.stage import Kind, Leaf, Side, Stage

MODES = 2  # how a block is coded: as it is, mixed


@dataclass(frozen=True)
class ByteMix(Stage):
    """BYTES -> BYTES: one block of up to 2^31 bytes by an adaptive mix of orders 0 to 6, words, sparse contexts and matches.

    Nothing is learned beforehand and nothing is sent but the code and the tree of bytes it decides by; a block that does
    not shrink is stored.
    table_bits: log2 of the bytes of history at most, 16 to 26; both ends take about 1.07 · 2^table_bits + 5 MB.
    Side: the mode and the length.
    Source: see `kernels.bytemix`.
    """

    table_bits: int = 24

    version: ClassVar[int] = 2  # by trees of bytes
    takes: ClassVar[Kind] = Kind.BYTES
    gives: ClassVar[Kind] = Kind.BYTES
    lossless: ClassVar[bool] = True
    side: ClassVar[Mapping[str, Leaf]] = {"mode": Leaf("uint8", "header"), "length": Leaf("uint32", "header")}

    def __post_init__(self) -> None:
        if not 16 <= self.table_bits <= 26:
            raise BadConfig(f"table_bits={self.table_bits}; 16 to 26 are right")

    def encode(self, x: bytes) -> tuple[bytes, Side]:
        from ..kernels.bytemix import encode

        code = encode(np.frombuffer(x, np.uint8), self.table_bits)
        side = {"mode": np.array([code is not None], np.uint8), "length": np.array([len(x)], np.uint32)}
        return x if code is None else code.tobytes(), side

    def decode(self, y: bytes, side: Side) -> bytes:
        from ..kernels.bytemix import decode

        mode, length = side["mode"], side["length"]
        if mode.shape != (1,) or mode[0] >= MODES or length.shape != (1,):
            raise CorruptStream(f"mode {mode[:4]} and length {length[:4]} of a block of bytes")
        n = int(length[0])
        claim(n, "a block of bytes")
        if not mode[0]:
            if len(y) != n:
                raise CorruptStream(f"{len(y):,} stored bytes, {n:,} announced")
            return y
        return decode(np.frombuffer(y, np.uint8), n, self.table_bits).tobytes()
