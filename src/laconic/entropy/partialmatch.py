"""Any bytes, by partial matching and a denoising of what it predicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..core.errors import BadConfig, CorruptStream, claim
from ..core.stage import Kind, Leaf, Side, Stage


@dataclass(frozen=True)
class PartialMatch(Stage):
    """BYTES -> BYTES: one block of up to 2^31 bytes by orders 0 to 8, matches and words, denoised in some steps.

    Nothing is learned beforehand and nothing is sent but the code; a block that does not shrink is stored.
    steps: of denoising, 0 to 3. Both ends take at most 30 MB beside the block.
    Side: whether the block is coded; its length.
    Source: see `kernels.partialmatch`.
    """

    steps: int = 3

    takes: ClassVar[Kind] = Kind.BYTES
    gives: ClassVar[Kind] = Kind.BYTES
    lossless: ClassVar[bool] = True
    side: ClassVar[Mapping[str, Leaf]] = {"mode": Leaf("uint8", "header"), "length": Leaf("uint32", "header")}

    def __post_init__(self) -> None:
        if not 0 <= self.steps <= 3:
            raise BadConfig(f"steps={self.steps}; 0 to 3 are right")

    def encode(self, x: bytes) -> tuple[bytes, Side]:
        from ..kernels.partialmatch import encode

        code = encode(np.frombuffer(x, np.uint8), self.steps)
        side = {"mode": np.array([code is not None], np.uint8), "length": np.array([len(x)], np.uint32)}
        return x if code is None else code.tobytes(), side

    def decode(self, y: bytes, side: Side) -> bytes:
        from ..kernels.partialmatch import decode

        mode, length = side["mode"], side["length"]
        if mode.shape != (1,) or mode[0] > 1 or length.shape != (1,):
            raise CorruptStream(f"mode {mode[:4]} and length {length[:4]} of a block of bytes")
        n = int(length[0])
        claim(n, "a block of bytes")
        if not mode[0]:
            if len(y) != n:
                raise CorruptStream(f"{len(y):,} stored bytes, {n:,} announced")
            return y
        return decode(np.frombuffer(y, np.uint8), n, self.steps).tobytes()
