"""Bytes on the wire: varints, and the sections that a stage's declarations lay out.

A section is one array: `varint ndim | varint dim … | data | u32 xxh32(data)`. Its dtype, name and role are not sent: they
follow from the configuration, since every stage declares its side information. Order: payload, own side in declared order,
children in their order. Inside frames of a sequence the checksum is left out, because the frame's section has one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import xxhash

from .errors import CorruptStream, claim
from .stage import Kind, Leaf, Side, Stage

MAX_DIMS = 16


class Section(NamedTuple):
    """One array of a packet: where it belongs, what it is, and its bytes on the wire, framing included."""

    path: str
    role: str
    dtype: str
    shape: tuple[int, ...]
    data_bytes: int
    framing_bytes: int


def write_varint(out: bytearray, n: int) -> None:
    """LEB128, unsigned."""
    while n >= 0x80:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)


class Numbers:
    """What reads numbers byte by byte: `take(1)` gives the next one, `at` says where that was."""

    at: int

    def take(self, n: int) -> bytes | memoryview:
        """The next `n` bytes."""
        raise NotImplementedError

    def varint(self) -> int:
        """The next LEB128 number, below 2^63, as short as it can be."""
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 56:
                raise CorruptStream(f"a number of more than 63 bits ends at byte {self.at:,}")
        if shift and not byte:
            raise CorruptStream(f"a number that is longer than it needs to be ends at byte {self.at:,}")
        return value


class Reader(Numbers):
    """Reads forward through untrusted bytes; every read is checked against what is left."""

    def __init__(self, data: bytes | memoryview, start: int = 0) -> None:
        self.data = memoryview(data)
        self.at = start

    def take(self, n: int) -> memoryview:
        """The next `n` bytes."""
        if n < 0 or n > len(self.data) - self.at:
            raise CorruptStream(f"{n:,} bytes wanted at byte {self.at:,}, {len(self.data) - self.at:,} are left")
        self.at += n
        return self.data[self.at - n : self.at]

    def finish(self) -> None:
        """Refuse anything behind the end."""
        if self.at != len(self.data):
            raise CorruptStream(f"{len(self.data) - self.at:,} bytes behind the end")


def checksum(data: bytes | memoryview) -> bytes:
    """4 bytes of XXH32."""
    return xxhash.xxh32_digest(data)


def write_array(out: bytearray, array: np.ndarray, sum_: bool) -> None:
    """Append one section."""
    write_varint(out, array.ndim)
    for d in array.shape:
        write_varint(out, d)
    data = np.ascontiguousarray(array).tobytes()
    out += data
    if sum_:
        out += checksum(data)


def read_array(reader: Reader, path: str, leaf: Leaf, sum_: bool, seen: list[Section] | None = None) -> np.ndarray:
    """Read one section; the array is a copy, so it does not keep the packet alive. `seen` collects what was read."""
    return _view(reader, path, leaf, sum_, seen).copy()


def _view(reader: Reader, path: str, leaf: Leaf, sum_: bool, seen: list[Section] | None) -> np.ndarray:
    """`read_array` where it lies."""
    start = reader.at
    n_dims = reader.varint()
    if n_dims > MAX_DIMS:
        raise CorruptStream(f"{path}: {n_dims} dimensions; at most {MAX_DIMS} are allowed")
    shape = tuple(reader.varint() for _ in range(n_dims))
    size = math.prod(shape) * np.dtype(leaf.dtype).itemsize
    claim(size, path)
    data = reader.take(size)
    if sum_ and reader.take(4) != checksum(data):
        raise CorruptStream(f"{path}: checksum mismatch")
    if seen is not None:
        seen.append(Section(path, leaf.role, leaf.dtype, shape, size, reader.at - start - size))
    if 0 in shape and math.prod(max(d, 1) for d in shape) >= 1 << 60:
        raise CorruptStream(f"{path}: shape {shape}")
    return np.frombuffer(data, dtype=leaf.dtype).reshape(shape)


def layout(stage: Stage) -> Iterator[tuple[tuple[str, ...], Leaf]]:
    """Every section of a codec in wire order, as (keys into the side tree, declaration)."""
    if stage.gives is Kind.BYTES and stage.payload_role is not None:
        yield ("payload",), Leaf("uint8", stage.payload_role)
    yield from _below(stage)


def _below(stage: Stage) -> Iterator[tuple[tuple[str, ...], Leaf]]:
    for name, leaf in stage.side.items():
        yield (name,), leaf
    for key, child in stage.children().items():
        for keys, leaf in layout(child) if stage.holds_codecs else _below(child):
            yield (key, *keys), leaf


def write_sections(stage: Stage, side: Side, checksum: bool = True) -> bytes:
    """The sections of a codec's output, `side` with the payload in it."""
    out = bytearray()
    for keys, leaf in layout(stage):
        value: Any = side
        for k in keys:
            value = value[k]
        array = np.frombuffer(value, dtype=np.uint8) if isinstance(value, bytes) else value
        if array.dtype != np.dtype(leaf.dtype):
            raise TypeError(f"side {'.'.join(keys)} is {array.dtype}, declared {leaf.dtype}")
        write_array(out, array, checksum)
    return bytes(out)


def read_sections(stage: Stage, reader: Reader, checksum: bool = True, seen: list[Section] | None = None) -> Side:
    """The inverse of `write_sections`; `seen`, where given, collects what was read."""
    side = _empty(stage, whole=True)
    for keys, leaf in layout(stage):
        array = _view(reader, ".".join(keys), leaf, checksum, seen)
        node = side
        for k in keys[:-1]:
            node = node[k]
        if keys[-1] == "payload" and array.ndim != 1:
            raise CorruptStream(f"{'.'.join(keys)} has {array.ndim} dimensions; a payload has 1")
        node[keys[-1]] = array.tobytes() if keys[-1] == "payload" else array.copy()
    return side


def _empty(stage: Stage, whole: bool) -> Side:
    side: Side = {key: _empty(child, stage.holds_codecs) for key, child in stage.children().items()}
    return {**side, "payload": b""} if whole else side
