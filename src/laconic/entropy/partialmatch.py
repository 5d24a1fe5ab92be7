"""Any bytes, by partial matching and a denoising of what it predicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..core.errors import BadConfig
from ..core.stage import Kind, Leaf, Side, Stage
from .blocks import SIDE, coded_or_stored, read


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
    side: ClassVar[Mapping[str, Leaf]] = SIDE

    def __post_init__(self) -> None:
        if not 0 <= self.steps <= 3:
            raise BadConfig(f"steps={self.steps}; 0 to 3 are right")

    def encode(self, x: bytes) -> tuple[bytes, Side]:
        from ..kernels.partialmatch import encode

        return coded_or_stored(x, encode(np.frombuffer(x, np.uint8), self.steps))

    def decode(self, y: bytes, side: Side) -> bytes:
        from ..kernels.partialmatch import decode

        return read(y, side, lambda code, n: decode(code, n, self.steps))
