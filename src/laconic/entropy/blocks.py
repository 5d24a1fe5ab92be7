"""One block of bytes behind a coder that may give up: coded, or stored as it is, and told apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..core.errors import CorruptStream, claim
from ..core.stage import Leaf, Side

SIDE = {"mode": Leaf("uint8", "header"), "length": Leaf("uint32", "header")}  # whether the block is coded; its length


def coded_or_stored(x: bytes, code: np.ndarray | None) -> tuple[bytes, Side]:
    """A block and its side information. code: None where it would not be smaller."""
    side = {"mode": np.array([code is not None], np.uint8), "length": np.array([len(x)], np.uint32)}
    return x if code is None else code.tobytes(), side


def read(y: bytes, side: Side, decode: Callable[[np.ndarray, int], np.ndarray]) -> bytes:
    """The bytes of a block. decode: (code, length) -> uint8. Raises CorruptStream."""
    mode, length = side["mode"], side["length"]
    if mode.shape != (1,) or mode[0] > 1 or length.shape != (1,):
        raise CorruptStream(f"mode {mode[:4]} and length {length[:4]} of a block of bytes")
    n = int(length[0])
    claim(n, "a block of bytes")
    if mode[0]:
        return decode(np.frombuffer(y, np.uint8), n).tobytes()
    if len(y) != n:
        raise CorruptStream(f"{len(y):,} stored bytes, {n:,} announced")
    return y
