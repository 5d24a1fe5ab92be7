"""Levels 1 to 9, and how one block of bytes is coded at each."""

from __future__ import annotations

import lzma
import zlib
from typing import TYPE_CHECKING, NamedTuple

from ...core.errors import BadConfig, CorruptStream
from ...core.stage import Stage
from ...core.wire import Reader, read_sections, write_sections

if TYPE_CHECKING:
    import zstandard

# Methods, as the wire has them. END is no block.
END, STORED, SAME, DEFLATE, LZMA, FIRST_MIX, FIRST_WIDE, ZSTD, SECOND_MIX, SECOND_WIDE, MIX, WIDE = range(12)
GONE = {FIRST_MIX: "first", FIRST_WIDE: "first", SECOND_MIX: "second", SECOND_WIDE: "second"}  # versions no longer read
_SAMPLE = 1 << 14
_LARGE = 1 << 17  # bytes of a block that is worth a look at a sample
_HISTORY = 128  # bytes for every byte of a block, at the highest levels


class Level(NamedTuple):
    """block_bits: log2 of the bytes of a block. setting: zstd's or zlib's level; nothing; log2 of the bytes of history."""

    method: int
    block_bits: int
    setting: int


LEVELS = {
    1: Level(ZSTD, 23, 3),
    2: Level(ZSTD, 23, 9),
    3: Level(LZMA, 23, 0),
    4: Level(MIX, 22, 22),
    5: Level(MIX, 24, 24),
    6: Level(MIX, 24, 26),
    7: Level(WIDE, 24, 24),
    8: Level(WIDE, 25, 26),
    9: Level(WIDE, 26, 28),
}
FIRST_LEVELS = {**LEVELS, 1: Level(DEFLATE, 20, 6), 2: Level(DEFLATE, 20, 9)}  # of streams of version 1
_MAGICLESS_PLAIN = 0b11100000  # of a frame's first byte: bits that say that its size is in the header


def level(n: int) -> Level:
    """The level of this number."""
    if n not in LEVELS:
        raise BadConfig(f"level {n}; 1 (fast) to 9 (small) are right")
    return LEVELS[n]


def memory_bytes(n: int, block_bytes: int | None = None) -> int:
    """Most that one thread takes at level `n`, to code or to decode, its block included."""
    chosen = level(n)
    block = 1 << chosen.block_bits if block_bytes is None else block_bytes
    own = 1 << 20
    if chosen.method == ZSTD:
        own = 4 * min(block, 1 << chosen.block_bits) + (16 << 20)
    if chosen.method == LZMA:
        own = 12 * (1 << chosen.block_bits)
    if chosen.method == MIX:
        from ...kernels.bytemix import workspace_bytes

        own = workspace_bytes(block, chosen.setting)
    if chosen.method == WIDE:
        from ...entropy.contextmix import ContextMix
        from ...kernels.contextmix import workspace_bytes as wide_bytes

        own = wide_bytes(ContextMix(chosen.setting, _HISTORY).bits(block))
    return own + 4 * block


def _stage(method: int, setting: int) -> Stage:
    if method == MIX:
        from ...entropy.bytemix import ByteMix

        return ByteMix(setting)
    from ...entropy.contextmix import ContextMix

    return ContextMix(setting, _HISTORY)


def _filters(chosen: Level) -> list[dict[str, int]]:
    return [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << chosen.block_bits}]


def _zstd(setting: int, n_bytes: int, repeats: bool, dictionary: bytes | None) -> zstandard.ZstdCompressor:
    """A frame without magic, size and checksum, which blocks have themselves.

    At 3 tables twice as large as zstd's, and five bytes for a match whatever the length: 0 to 2 % smaller at about the speed;
    but not on numbers and the like, where most searches find nothing.
    """
    import zstandard

    changed = {"strategy": zstandard.STRATEGY_DFAST, "min_match": 5, "hash_log": 18, "chain_log": 17}
    parameters = zstandard.ZstdCompressionParameters.from_level(
        setting, source_size=n_bytes, dict_size=len(dictionary or b""), format=zstandard.FORMAT_ZSTD1_MAGICLESS,
        write_content_size=0, write_dict_id=0, **(changed if setting == 3 and repeats else {}),
    )  # fmt: skip
    given = None if dictionary is None else zstandard.ZstdCompressionDict(dictionary)
    return zstandard.ZstdCompressor(compression_params=parameters, dict_data=given)


def _unzstd(payload: bytes, n_bytes: int, dictionary: bytes | None) -> bytes:
    import zstandard

    if (
        not payload or payload[0] & _MAGICLESS_PLAIN
    ):  # a size in the frame would be taken as memory before it is checked
        raise CorruptStream("a frame that begins otherwise than those of these streams")
    given = None if dictionary is None else zstandard.ZstdCompressionDict(dictionary)
    coder = zstandard.ZstdDecompressor(given, max_window_size=1 << 27, format=zstandard.FORMAT_ZSTD1_MAGICLESS)
    try:
        return coder.decompress(payload, max_output_size=n_bytes, allow_extra_data=False)
    except zstandard.ZstdError as e:
        raise CorruptStream(f"a block that does not unpack: {e}") from None


def _repeats(raw: bytes) -> bool:
    """Whether a sample has repetitions to speak of, which numbers have not: by DEFLATE with and without its search."""
    middle = len(raw) // 2
    sample = raw[middle : middle + _SAMPLE // 2]
    coders = [zlib.compressobj(1, wbits=-15, strategy=s) for s in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY)]
    searched, unsearched = (len(c.compress(sample) + c.flush()) for c in coders)
    return searched < 0.98 * unsearched


def _hopeless(raw: bytes) -> bool:
    """Whether samples look like noise, which is then not worth the time."""
    if len(raw) < 4 * _SAMPLE:
        return False
    step = (len(raw) - _SAMPLE) // 3
    samples = [raw[k * step :][:_SAMPLE] for k in range(4)]
    return sum(len(zlib.compress(s, 1)) for s in samples) >= 0.997 * 4 * _SAMPLE


def encode_block(raw: bytes, n: int, dictionary: bytes | None = None) -> tuple[int, bytes]:
    """(method, payload) of a block at level `n`; never longer than the block. dictionary: for levels of zstd."""
    chosen = level(n)
    method, payload = chosen.method, raw
    if raw[0] == raw[-1] and raw[1:] == raw[:-1]:
        return SAME, raw[:1]
    if method != ZSTD and _hopeless(raw):  # zstd finds out by itself, and sooner
        return STORED, raw
    if method == ZSTD:
        repeats = len(raw) < _LARGE or chosen.setting != 3 or _repeats(raw)
        payload = _zstd(chosen.setting, len(raw), repeats, dictionary).compress(raw)
    elif method == LZMA:
        payload = lzma.compress(raw, lzma.FORMAT_RAW, filters=_filters(chosen))
    else:
        stage = _stage(method, chosen.setting)
        body, side = stage.encode(raw)
        payload = write_sections(stage, {**side, "payload": body}, checksum=False)
    return (method, bytes(payload)) if len(payload) < len(raw) else (STORED, raw)


def decode_block(method: int, payload: bytes, n_bytes: int, n: int, dictionary: bytes | None = None) -> bytes:
    """The block of `n_bytes` again; the caller has checked that they may be had."""
    chosen = FIRST_LEVELS[n] if method == DEFLATE else level(n)
    if method == STORED:
        raw = payload
    elif method == SAME:
        raw = payload * n_bytes if len(payload) == 1 else b""
    elif method in GONE:
        raise CorruptStream(f"a block by the {GONE[method]} version of the byte coders; this laconic reads their third")
    elif method != chosen.method:
        raise CorruptStream(f"a block of method {method} in a stream of level {n}")
    elif method == ZSTD:
        raw = _unzstd(payload, n_bytes, dictionary)
    elif method == DEFLATE:
        raw = _inflate(zlib.decompressobj(-15), payload, n_bytes, zlib.error)
    elif method == LZMA:
        coder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_filters(chosen))
        raw = _inflate(coder, payload, n_bytes, lzma.LZMAError)
    else:
        stage = _stage(method, chosen.setting)
        frame = Reader(payload)
        side = read_sections(stage, frame, checksum=False)
        frame.finish()
        body = side.pop("payload")
        raw = stage.decode(body, side)
    if len(raw) != n_bytes:
        raise CorruptStream(f"a block of {len(raw):,} bytes, {n_bytes:,} announced")
    return raw


def _inflate(coder: zlib._Decompress | lzma.LZMADecompressor, payload: bytes, n_bytes: int, error: type) -> bytes:
    """What the standard library's coder gives, at most one byte more than announced."""
    try:
        raw = coder.decompress(payload, n_bytes + 1)
    except error as e:
        raise CorruptStream(f"a block that does not unpack: {e}") from None
    if coder.unused_data or not coder.eof and len(raw) == n_bytes and getattr(coder, "unconsumed_tail", b""):
        raise CorruptStream("a block that does not end where it should")
    return raw
