"""The `.lac` file: a table of what it holds, then one packet per chunk, streamable in both directions.

    magic "\\x89LAR" | u8 version | varint n | header, n bytes | u32 xxh32(header)
    (varint length | packet) per chunk, in the order of the table
    u32 xxh32 of all lengths as u64 | end

The header is JSON, raw-deflated: `{"files": [{"path", "format", "meta", "items": [{"name", "dtype", "shape", "chunks"}]}]}`.
Packets guard their own content; the last checksum guards their number and order of sizes.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

import xxhash

from ..core.errors import CorruptStream
from ..core.packet import ITEM_BYTES

MAGIC = b"\x89LAR"
VERSION = 1
MAX_HEADER = 64 << 20
MAX_CHUNKS = 1 << 24


@dataclass(frozen=True)
class Item:
    """One array or byte string of a file. shape: () for bytes means its length is in the packets."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: int


@dataclass(frozen=True)
class Entry:
    """One file of the archive: how to make it again from its items."""

    path: str
    format: str
    meta: dict[str, Any] = field(default_factory=dict)
    items: tuple[Item, ...] = ()


class Writer:
    """Writes the table, then packets in its order."""

    def __init__(self, out: IO[bytes], entries: list[Entry]) -> None:
        self.out, self.sums, self.n_bytes = out, xxhash.xxh32(), 0
        coder = zlib.compressobj(9, zlib.DEFLATED, -15)
        text = json.dumps({"files": [asdict(e) for e in entries]}, separators=(",", ":"))
        head = coder.compress(text.encode()) + coder.flush()
        self._write(MAGIC + bytes([VERSION]) + _varint(len(head)) + head + xxhash.xxh32_digest(head))

    def add(self, packet: bytes) -> int:
        """Append a packet; returns its bytes on disk."""
        self.sums.update(len(packet).to_bytes(8, "little"))
        return self._write(_varint(len(packet)) + packet)

    def finish(self) -> None:
        """The closing checksum."""
        self._write(self.sums.digest())

    def _write(self, data: bytes) -> int:
        self.out.write(data)
        self.n_bytes += len(data)
        return len(data)


class Reader:
    """Reads an archive forward; never takes more memory than one packet."""

    def __init__(self, source: IO[bytes]) -> None:
        self.source, self.sums = source, xxhash.xxh32()
        magic = source.read(4)
        if magic != MAGIC:
            raise CorruptStream(f"not a laconic file: it begins with {magic!r}, not {MAGIC!r}")
        if (version := self._take(1)[0]) != VERSION:
            raise CorruptStream(f"file version {version}; this laconic reads version {VERSION}")
        n = self._varint()
        if n > MAX_HEADER:
            raise CorruptStream(f"a table of {n:,} bytes; at most {MAX_HEADER:,} are allowed")
        head = self._take(n)
        if self._take(4) != xxhash.xxh32_digest(head):
            raise CorruptStream("table of contents: checksum mismatch")
        self.header_bytes = 4 + 1 + len(_varint(n)) + n + 4
        self.entries = _entries(head)

    def packets(self, item: Item) -> Iterator[bytes]:
        """The packets of the next item of the table."""
        for _ in range(item.chunks):
            n = self._varint()
            self.sums.update(n.to_bytes(8, "little"))
            yield self._take(n)

    def skip(self, item: Item) -> Iterator[tuple[int, int]]:
        """Where the packets of the next item are, without reading them: (place, bytes). The source must be seekable."""
        end = os.fstat(self.source.fileno()).st_size
        for _ in range(item.chunks):
            n, at = self._varint(), self.source.tell()
            if at + n > end:
                raise CorruptStream(f"a packet of {n:,} bytes, {end - at:,} are left")
            self.sums.update(n.to_bytes(8, "little"))
            self.source.seek(n, 1)
            yield at, n

    def finish(self) -> None:
        """Check that the file ends here, as it was written."""
        if self._take(4) != self.sums.digest():
            raise CorruptStream("the list of packets: checksum mismatch")
        if self.source.read(1):
            raise CorruptStream("bytes behind the end")

    def _take(self, n: int) -> bytes:
        parts, left = [], n
        while left:  # in pieces: a lying length must not allocate what the file does not have
            piece = self.source.read(min(left, 16 << 20))
            if not piece:
                raise CorruptStream(f"the file ends {left:,} bytes early")
            parts.append(piece)
            left -= len(piece)
        return b"".join(parts)

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 56:
                raise CorruptStream("a length of more than 63 bits")


def _varint(n: int) -> bytes:
    out = bytearray()
    while n >= 0x80:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def _entries(head: bytes) -> list[Entry]:
    coder = zlib.decompressobj(-15)
    try:
        data = json.loads(coder.decompress(head, MAX_HEADER))
        files = data["files"]
        entries = [
            Entry(f["path"], f["format"], dict(f["meta"]), tuple(
                Item(i["name"], i["dtype"], tuple(i["shape"]), i["chunks"]) for i in f["items"]))
            for f in files
        ]  # fmt: skip
    except (zlib.error, ValueError, RecursionError, KeyError, TypeError) as e:
        raise CorruptStream(f"table of contents: {type(e).__name__} {e}") from None
    for e in entries:
        if not isinstance(e.path, str) or not isinstance(e.format, str):
            raise CorruptStream("table of contents: a file without path or format")
        path = PurePosixPath(e.path)
        if path.is_absolute() or ".." in path.parts or "\\" in e.path or "\0" in e.path or not path.parts:
            raise CorruptStream(f"table of contents: path {e.path[:80]!r} leaves the output")
        for i in e.items:
            dims = all(isinstance(d, int) and not isinstance(d, bool) and 0 <= d < 1 << 48 for d in i.shape)
            if not (isinstance(i.name, str) and i.dtype in ITEM_BYTES and dims and len(i.shape) <= 16):
                raise CorruptStream(f"table of contents: item {str(i)[:120]}")
            if not isinstance(i.chunks, int) or not 0 < i.chunks <= MAX_CHUNKS:
                raise CorruptStream(f"table of contents: {i.chunks} chunks")
    if len({e.path for e in entries}) != len(entries):
        raise CorruptStream("table of contents: a path stands twice")
    return entries


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """Write beside `path` and rename when whole, so that a kill or a full disk leaves the old state."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """The same for a folder: filled beside `path`, renamed when whole; an old folder is moved aside until then."""
    tag = secrets.token_hex(4)
    part, old = path.with_name(f".{path.name}.{tag}.part"), path.with_name(f".{path.name}.{tag}.old")
    part.mkdir()
    try:
        yield part
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(part, path)
        except OSError:
            if old.exists():
                os.replace(old, path)
            raise
    finally:
        for leftover in (part, old):
            shutil.rmtree(leftover, ignore_errors=True)
