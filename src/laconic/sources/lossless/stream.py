"""Streams of blocks: what `laconic.lossless` and `laconic compress -5` write.

    magic (4) | version (1) | level (1) | log2 of the block (1) | u32 xxh32 of these, and of the dictionary where there is one
    blocks:  method (1) | varint bytes | varint bytes of payload | payload | u32 xxh3(all of these, the decoded bytes)
    end:     0 | varint bytes in all | u32 xxh3(end's number, then xxh32 of the checksums of all blocks)

xxh3 is the low half of the hash of 64 bits. Version 2 codes levels 1 and 2 by zstd; version 1, which is read but not
written, by DEFLATE, and has xxh32 throughout. Version 3 is version 2 with a dictionary, which the reader must have.

Streams may follow each other, as files do with `cat`. Blocks do not know each other: they are coded in any number of
threads, which changes no byte, and decoded with at most (threads + 1) blocks held.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any, NamedTuple

import xxhash

from ...core.errors import BadConfig, BadInput, CorruptStream, ModelMismatch, decode_budget
from ...core.wire import Numbers, write_varint
from .levels import (
    DEFLATE,
    END,
    FIRST_LEVELS,
    GONE,
    LEVELS,
    ZSTD,
    decode_block,
    encode_block,
    level,
    memory_bytes,
)

MAGIC = b"\x89LAB"
DEFLATES, VERSION, WITH_DICTIONARY = 1, 2, 3  # versions
LIMIT_BYTES = 1 << 40
LIMIT_MEMORY = 1 << 30


class Block(NamedTuple):
    """A block as it stands in a stream."""

    method: int
    n_bytes: int
    payload: bytes
    check: bytes
    level: int
    dictionary: bytes | None
    digest: Any  # what its checksum is of


def _check(*parts: bytes, of: Any = xxhash.xxh3_64) -> bytes:
    digest = of()
    for part in parts:
        digest.update(part)
    return digest.digest()[-4:]


def _head(method: int, *numbers: int) -> bytes:
    out = bytearray([method])
    for n in numbers:
        write_varint(out, n)
    return bytes(out)


def _threads(threads: int) -> int:
    if not 1 <= threads <= 256:
        raise BadConfig(f"{threads} threads; 1 to 256 are right")
    return threads


def _coded(raw: bytes, n: int, dictionary: bytes | None) -> tuple[bytes, bytes, bytes]:
    """A block on the wire: its head, its payload, its checksum."""
    method, payload = encode_block(raw, n, dictionary)
    head = _head(method, len(raw), len(payload))
    return head, payload, _check(head, payload, raw)


def _plain(block: Block) -> bytes:
    with decode_budget(memory_bytes(block.level, block.n_bytes)):
        raw = decode_block(block.method, block.payload, block.n_bytes, block.level, block.dictionary)
    head = _head(block.method, block.n_bytes, len(block.payload))
    if _check(head, block.payload, raw, of=block.digest) != block.check:
        raise CorruptStream("a block whose checksum is not that of its bytes")
    return raw


class Writer(io.RawIOBase):
    """A binary stream that compresses what is written to it; `close` ends the stream and leaves `out` open."""

    def __init__(self, out: IO[bytes], level: int = 5, threads: int = 1, dictionary: bytes | None = None) -> None:
        chosen = LEVELS.get(level)
        if chosen is None:
            raise BadConfig(f"level {level}; 1 (fast) to 9 (small) are right")
        if dictionary is not None and (chosen.method != ZSTD or not dictionary):
            raise BadConfig(f"a dictionary of {len(dictionary):,} bytes at level {level}; levels 1 and 2 take one")
        self._dictionary = dictionary
        self._out, self._level, self._room = out, level, 1 << chosen.block_bits
        self._pool = ThreadPoolExecutor(threads, "laconic") if _threads(threads) > 1 else None
        self._ahead, self._flying = threads + 1, deque[Future[tuple[bytes, bytes, bytes]]]()
        self._held, self._n_bytes, self._digest = bytearray(), 0, xxhash.xxh32()
        head = MAGIC + bytes([VERSION if dictionary is None else WITH_DICTIONARY, level, chosen.block_bits])
        out.write(head + _check(head, dictionary or b"", of=xxhash.xxh32))

    def writable(self) -> bool:
        return True

    def write(self, data: bytes | bytearray | memoryview) -> int:  # type: ignore[override]
        """Take all of `data`."""
        view = memoryview(data).cast("B")
        at = 0
        while at < len(view):
            n = min(self._room - len(self._held), len(view) - at)
            part, at = view[at : at + n], at + n
            if n == self._room:
                self._send(bytes(part))
                continue
            self._held += part
            if len(self._held) == self._room:
                self._send_held()
        return len(view)

    def _send_held(self) -> None:
        raw = bytes(self._held)
        self._held.clear()
        self._send(raw)

    def _send(self, raw: bytes) -> None:
        self._n_bytes += len(raw)
        if self._pool is None:
            return self._put(*_coded(raw, self._level, self._dictionary))
        self._flying.append(self._pool.submit(_coded, raw, self._level, self._dictionary))
        while len(self._flying) > self._ahead:
            self._put(*self._flying.popleft().result())

    def _put(self, head: bytes, payload: bytes, check: bytes) -> None:
        for part in (head, payload, check):
            self._out.write(part)
        self._digest.update(check)

    def close(self) -> None:
        """Write what is held, and the end."""
        if self.closed:
            return
        try:
            if self._held:
                self._send_held()
            while self._flying:
                self._put(*self._flying.popleft().result())
            end = _head(END, self._n_bytes)
            self._out.write(end + _check(end, self._digest.digest()))
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close without an end, so that no reader takes the stream for a whole one."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
        super().close()

    def __exit__(self, kind: object, *rest: object) -> None:
        self.abandon() if kind else self.close()


class _Wire(Numbers):
    """Reads a stream forward; knows nothing of its length. What is taken at once is limited by whoever asks."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source, self.at = source, 0

    def take(self, n: int) -> bytes:
        parts, left = [], n
        while left:
            part = self._source.read(left)
            if not part:
                raise CorruptStream(f"the stream ends at byte {self.at:,}, {left:,} before it should")
            parts.append(part)
            left -= len(part)
            self.at += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def ended(self) -> bytes:
        """The next byte, or nothing at the end."""
        part = self._source.read(1)
        self.at += len(part)
        return part


def _header(wire: _Wire, first: bytes, dictionary: bytes | None) -> tuple[int, int]:
    """(version, level) that a stream's head names."""
    head = first + wire.take(6)
    if head[:4] != MAGIC:
        raise CorruptStream(f"a stream that begins with {head[:4]!r}; {MAGIC!r} is right")
    version, n, bits = head[4:]
    shared = (dictionary or b"") if version == WITH_DICTIONARY else b""
    if wire.take(4) != _check(head, shared, of=xxhash.xxh32):
        if version == WITH_DICTIONARY:
            raise ModelMismatch("the stream needs the dictionary it was made with, or its head is damaged")
        raise CorruptStream("a head whose checksum is not that of its bytes")
    levels = FIRST_LEVELS if version == DEFLATES else LEVELS
    if not DEFLATES <= version <= WITH_DICTIONARY or n not in levels or bits != levels[n].block_bits:
        raise CorruptStream(f"version {version}, level {n}, blocks of 2^{bits} bytes; this reader knows versions "
                            f"{DEFLATES} to {WITH_DICTIONARY}")  # fmt: skip
    return version, n


def _blocks(
    wire: _Wire, limit_bytes: int, limit_memory: int, threads: int, dictionary: bytes | None = None
) -> Iterator[Block]:
    """All blocks; every number is checked before it is believed."""
    in_all, first = 0, wire.ended()
    if not first:
        raise CorruptStream("an empty file is no stream")
    while first:
        version, n = _header(wire, first, dictionary)
        chosen = FIRST_LEVELS[n] if version == DEFLATES else level(n)
        n_bytes, digest, most = 0, xxhash.xxh32(), 1 << chosen.block_bits
        shared = dictionary if version == WITH_DICTIONARY else None
        of = xxhash.xxh32 if version == DEFLATES else xxhash.xxh3_64
        while (method := wire.take(1)[0]) != END:
            size, n_payload = wire.varint(), wire.varint()
            if not 0 < size <= most or n_payload > size:
                raise CorruptStream(f"a block of {size:,} bytes in {n_payload:,}; at most {most:,} are right")
            in_all, n_bytes = in_all + size, n_bytes + size
            if in_all > limit_bytes:
                raise CorruptStream(f"more than {limit_bytes:,} bytes; raise the limit if that is meant")
            if method >= DEFLATE and method != chosen.method and method not in GONE:
                raise CorruptStream(f"a block of method {method} in a stream of level {n}")
            need = memory_bytes(n, size) if method == chosen.method else 4 * size
            if need * threads > limit_memory:
                raise CorruptStream(f"a block needs {need:,} bytes of memory in each of {threads} threads, "
                                    f"{limit_memory:,} are allowed; raise the limit or take fewer threads")  # fmt: skip
            payload, check = wire.take(n_payload), wire.take(4)
            digest.update(check)
            yield Block(method, size, payload, check, n, shared, of)
        end = _head(END, said := wire.varint())
        if wire.take(4) != _check(end, digest.digest(), of=of) or said != n_bytes:
            raise CorruptStream("the end of the stream does not fit what came before")
        first = wire.ended()


def _decoded(blocks: Iterable[Block], threads: int) -> Iterator[bytes]:
    if threads == 1:
        yield from map(_plain, blocks)
        return
    flying: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(threads, "laconic") as pool:
        for block in blocks:
            flying.append(pool.submit(_plain, block))
            if len(flying) > threads:
                yield flying.popleft().result()
        while flying:
            yield flying.popleft().result()


def chunks(
    source: IO[bytes],
    threads: int = 1,
    limit_bytes: int = LIMIT_BYTES,
    limit_memory: int = LIMIT_MEMORY,
    dictionary: bytes | None = None,
) -> Iterator[bytes]:
    """The bytes of a stream, block by block, each checked before it is handed out.

    Raises
    ------
    CorruptStream: damaged, cut, or beyond a limit. limit_bytes: decoded bytes. limit_memory: memory of all threads.
    ModelMismatch: made with a dictionary that is not the given one.
    """
    return _decoded(_blocks(_Wire(source), limit_bytes, limit_memory, _threads(threads), dictionary), threads)


class Reader(io.RawIOBase):
    """A binary stream of the decoded bytes; wrap it in `io.BufferedReader`, as `open` does."""

    def __init__(
        self, source: IO[bytes], threads: int = 1, limit_bytes: int = LIMIT_BYTES, limit_memory: int = LIMIT_MEMORY
    ) -> None:
        self._source, self._left = source, memoryview(b"")
        self._chunks = chunks(source, threads, limit_bytes, limit_memory)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill what is there of the next block."""
        while not self._left:
            block = next(self._chunks, None)
            if block is None:
                return 0
            self._left = memoryview(block)
        view = memoryview(buffer).cast("B")
        n = min(len(view), len(self._left))
        view[:n] = self._left[:n]
        self._left = self._left[n:]
        return n

    def close(self) -> None:
        """Close the source too."""
        if not self.closed:
            self._source.close()
        super().close()


class StreamInfo(NamedTuple):
    """What a stream says of itself without being decoded. n_memory: what decoding takes in one thread."""

    level: int
    n_blocks: int
    n_bytes: int
    n_coded: int
    n_memory: int


def info(source: IO[bytes], dictionary: bytes | None = None) -> StreamInfo:
    """Walk over the blocks without decoding them."""
    wire, n, n_blocks, n_bytes, memory = _Wire(source), 0, 0, 0, 0
    for block in _blocks(wire, 1 << 62, 1 << 62, 1, dictionary):
        n, n_blocks, n_bytes = block.level, n_blocks + 1, n_bytes + block.n_bytes
        own = block.method == level(n).method
        memory = max(memory, memory_bytes(n, block.n_bytes) if own else 4 * block.n_bytes)
    return StreamInfo(n, n_blocks, n_bytes, wire.at, memory)


def compress(
    data: bytes | bytearray | memoryview, *, level: int = 5, threads: int = 1, dictionary: bytes | None = None
) -> bytes:
    """Bytes to fewer bytes: levels 1 (fast) to 9 (small). The same bytes come out for every number of threads.

    dictionary: what many small inputs have in common, see `train_dictionary`; at levels 1 and 2.

    >>> decompress(compress(b"to be or not to be" * 9, level=1)) == b"to be or not to be" * 9
    True
    """
    out = io.BytesIO()
    with Writer(out, level, threads, dictionary) as writer:
        writer.write(data)
    return out.getvalue()


def decompress(
    data: bytes | bytearray | memoryview,
    *,
    threads: int = 1,
    limit_bytes: int = 1 << 32,
    limit_memory: int = LIMIT_MEMORY,
    dictionary: bytes | None = None,
) -> bytes:
    """The bytes again.

    Raises
    ------
    CorruptStream: damaged, cut, extended, or more than the limits allow.
    ModelMismatch: made with a dictionary that is not the given one.
    """
    return b"".join(chunks(io.BytesIO(data), threads, limit_bytes, limit_memory, dictionary))


def train_dictionary(samples: list[bytes], n_bytes: int = 112_640) -> bytes:
    """What many small inputs have in common, at most `n_bytes`, for `dictionary=`: zstd's trainer.

    Raises
    ------
    BadInput: samples that nothing can be learned from; some hundred, ten times the dictionary in all, are right.
    """
    import zstandard

    try:
        return zstandard.train_dictionary(n_bytes, samples, level=LEVELS[1].setting).as_bytes()
    except (zstandard.ZstdError, ValueError) as e:
        raise BadInput(f"no dictionary from {len(samples)} samples of {sum(map(len, samples)):,} bytes: {e}") from None


def open_stream(path: str, mode: str = "rb", *, level: int = 5, threads: int = 1) -> IO[bytes]:
    """A file of a stream as a binary file object: mode "rb" reads the decoded bytes, "wb" or "xb" writes them."""
    if mode == "rb":
        return io.BufferedReader(Reader(open(path, "rb"), threads))  # type: ignore[return-value]
    if mode not in ("wb", "xb"):
        raise BadConfig(f"mode {mode!r}; rb, wb and xb are right")
    if level not in LEVELS:
        raise BadConfig(f"level {level}; 1 (fast) to 9 (small) are right")
    return _Owning(open(path, mode), level, threads)  # type: ignore[return-value]


class _Owning(Writer):
    """A writer that closes what it writes to."""

    def abandon(self) -> None:
        super().abandon()
        self._out.close()
