"""Any bytes, by the widest context mixing; what kind of data a block is, the encoder finds out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from ..core.errors import BadConfig, CorruptStream, claim
from ..core.stage import Kind, Leaf, Side, Stage

STORED = 3  # behind the kinds of data: a block as it is
_SAMPLE = 1 << 16


class Look(NamedTuple):
    """What an encoder found: kind of data, distances of repetition, bytes a sample, whether branches are moved."""

    kind: int
    record: int = 1
    record2: int = 1
    stride: int = 1
    x86: int = 0


def look(x: np.ndarray) -> Look:
    """Find the kind of a block. x: (n,) uint8.

    Text: nineteen of twenty bytes are printable ASCII, blanks or from multi-byte characters without control characters.
    Records: bytes equal those at some distance more often than not quite by chance. Else any binary data.
    """
    from ..kernels.contextmix import BINARY, MAX_RECORD, RECORD, TEXT

    middle = x[max(0, x.size // 2 - _SAMPLE // 2) :][:_SAMPLE]
    if middle.size < 64:
        return Look(TEXT)
    counts = np.bincount(middle, minlength=256)
    if counts[32:127].sum() + counts[[9, 10, 13]].sum() >= 0.95 * middle.size:
        return Look(TEXT)
    if counts[0] + counts[14:32].sum() < middle.size >> 10 and counts[32:].sum() >= 0.98 * middle.size < x.size * 2:
        letters = counts[97:123].sum() + counts[32]
        if letters >= middle.size >> 2:
            return Look(TEXT)
    n_lags = min(MAX_RECORD, middle.size // 4)
    equal = np.array([0.0, *(float((middle[k:] == middle[:-k]).mean()) for k in range(1, n_lags + 1))])
    stride = 1
    for k in range(2, min(5, n_lags + 1)):
        if equal[k] > 1.02 * equal[stride]:
            stride = k
    first = int(equal[3:].argmax()) + 3
    rest = equal.copy()
    rest[: min(16, n_lags)] = 0
    rest[first - first // 8 : first + first // 8 + 1] = 0
    second = max(int(rest.argmax()), 1)
    low, high = sorted((first, second))
    if high % low == 0 and equal[low] > 0.9 * equal[high]:
        first, second = low, high
    kind = RECORD if equal[first] > 0.3 else BINARY
    # Code has about one call in a hundred bytes; by chance the pattern is one in 16,384.
    whole = x[: 1 << 20]
    far = whole[4:]
    calls = int((((whole[: far.size] & 254) == 0xE8) & ((far == 0) | (far == 255))).sum())
    x86 = int(kind == BINARY and calls > x[: 1 << 20].size // 500)
    return Look(kind, first, second, stride, x86)


@dataclass(frozen=True)
class ContextMix(Stage):
    """BYTES -> BYTES: one block of up to 2^31 bytes by an adaptive mix of 24 to 26 contexts that suit the kind of data.

    Nothing is learned beforehand and nothing is sent but the code, the tree of bytes and what `look` found; a block that
    does not shrink is stored.
    table_bits: log2 of the bytes of history at most, 16 to 28; both ends take about 1.27 · 2^table_bits + 12 MB.
    history: bytes of history for every byte of the block, beyond the first 3 MiB; 10 keeps within what a packet may use.
    Side: kind of data, distances of repetition, bytes a sample and whether branches were moved; the length.
    Source: see `kernels.contextmix`.
    """

    table_bits: int = 26
    history: int = 10

    version: ClassVar[int] = 3  # by trees of bytes, and what histories agree on
    takes: ClassVar[Kind] = Kind.BYTES
    gives: ClassVar[Kind] = Kind.BYTES
    lossless: ClassVar[bool] = True
    side: ClassVar[Mapping[str, Leaf]] = {"look": Leaf("uint16", "header"), "length": Leaf("uint32", "header")}

    def __post_init__(self) -> None:
        if not 16 <= self.table_bits <= 28:
            raise BadConfig(f"table_bits={self.table_bits}; 16 to 28 are right")
        if not 1 <= self.history <= 256:
            raise BadConfig(f"history={self.history}; 1 to 256 are right")

    def bits(self, n: int) -> int:
        """log2 of the bytes of history for a block of `n` bytes."""
        return min(self.table_bits, (self.history * n + (3 << 20)).bit_length() - 1)

    def encode(self, x: bytes) -> tuple[bytes, Side]:
        from ..kernels import contextmix

        text = np.frombuffer(x, np.uint8)
        found = look(text)
        own = found.kind != contextmix.RECORD  # numbers keep their bits
        if found.x86:
            text = text.copy()
            contextmix.branches(text, True)
        code = contextmix.encode(text, self.bits(len(x)), contextmix.program(*found[:4]), own) if x else None
        if code is None:
            found = Look(STORED)
        return x if code is None else code.tobytes(), {
            "look": np.array(found, np.uint16), "length": np.array([len(x)], np.uint32)}  # fmt: skip

    def decode(self, y: bytes, side: Side) -> bytes:
        from ..kernels import contextmix

        said, length = side["look"], side["length"]
        if said.shape != (5,) or length.shape != (1,):
            raise CorruptStream(f"{said.size} numbers on a block of bytes and {length.size} lengths")
        found, n = Look(*(int(v) for v in said)), int(length[0])
        in_range = all(1 <= v <= contextmix.MAX_RECORD for v in found[1:4])
        if found.kind > STORED or not in_range or found.x86 > 1:
            raise CorruptStream(f"a block of bytes of kind {found}")
        claim(n, "a block of bytes")
        if found.kind == STORED:
            if len(y) != n:
                raise CorruptStream(f"{len(y):,} stored bytes, {n:,} announced")
            return y
        program = contextmix.program(*found[:4])
        text = contextmix.decode(np.frombuffer(y, np.uint8), n, self.bits(n), program)
        if found.x86:
            contextmix.branches(text, False)
        return text.tobytes()
