"""Few-bit codes of vectors, coordinate by coordinate, laid out so that a register holds many tokens of one coordinate.

Vectors of r coordinates, one a token; coordinate j has bits[j] in 0 … 8. Tokens lie in blocks of 64, the last one filled up
with code 0. A block holds for every coordinate in order 8 · bits[j] bytes: a code of b bits takes one plane for each power of
two in b (7 = 4 + 2 + 1, `widths`), from its lowest bits up:

    width 8: byte t is token t                       4: byte i has tokens i, i + 32 from its lowest bits up
    width 1: token t is bit t % 8 of byte t // 8     2: byte i has tokens i, i + 16, i + 32, i + 48

    bytes of a block = 8 · Σ bits

`pack(index, bits) -> codes`, `unpack(codes, bits, n_tokens) -> index` for one set of vectors (n_tokens, r); `pack_heads` and
`unpack_heads` for (n_heads, n_tokens, r) with bits (n_heads, r), one head's blocks behind the other's.
`Thresholds.of(lists)` and `quantize_coordinates(y, thresholds) -> index` find the codes: ranks among sorted thresholds.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from laconic.core.errors import BadConfig, BadInput, CorruptStream
from laconic.kernels.packed import widths
from laconic.kernels.vectors import FLOATS, I8, I64, Arrays, call, order, splat

__all__ = [
    "BLOCK", "Thresholds", "block_bytes", "pack", "pack_heads", "pack_heads_plain", "pack_plain", "quantize_coordinates",
    "quantize_coordinates_plain", "unpack", "unpack_heads", "unpack_heads_plain", "unpack_plain",
]  # fmt: skip

BLOCK = 64  # tokens
_ONES, _LOWS = np.uint64(0x0101010101010101), np.uint64(0x7F7F7F7F7F7F7F7F)
_GATHER, _SPREAD = np.uint64(0x0102040810204080), np.uint64(0x8040201008040201)
_SEVEN, _LAST = np.uint64(7), np.uint64(56)


# --- Layout -----------------------------------------------------------------------------------------------------------


_ROW = ir.VectorType(I8, 16)
_PERFECT = [order(*[i for k in range(8) for i in (first + k, 16 + first + k)]) for first in (0, 8)]


@intrinsic
def _turn(typingctx, src, at, stride, dst, dst_at, dst_stride):
    """dst[j, i] = src[i, j] for 16 × 16 bytes, rows `stride` apart: four perfect shuffles of 256 bytes transpose them."""
    signature = types.void(src, at, stride, dst, dst_at, dst_stride)

    def codegen(context, builder, sig, args):
        arrays = Arrays(context, builder, sig, args)
        rows = [arrays.load(0, builder.add(args[1], builder.mul(args[2], I64(i))), _ROW) for i in range(16)]
        for _ in range(4):
            rows = [builder.shuffle_vector(rows[i], rows[8 + i], half) for i in range(8) for half in _PERFECT]
        for i, row in enumerate(rows):
            place = builder.add(args[4], builder.mul(args[5], I64(i)))
            builder.store(row, arrays.place(3, place, _ROW), align=1)
        return context.get_dummy_value()

    return signature, codegen


@njit(cache=True, nogil=True)
def _pack_plane(column, low, width, out, at):
    """One plane of 64 codes: bits low … low + width − 1 of each. column: (64,) uint8."""
    if width == 8:
        for i in range(64):
            out[at + i] = column[i]
    elif width == 4:
        for i in range(32):
            out[at + i] = ((column[i] >> low) & 15) | (((column[i + 32] >> low) & 15) << 4)
    elif width == 2:
        for i in range(16):
            a, b = (column[i] >> low) & 3, (column[i + 16] >> low) & 3
            c, d = (column[i + 32] >> low) & 3, (column[i + 48] >> low) & 3
            out[at + i] = a | (b << 2) | (c << 4) | (d << 6)
    else:
        words = column.view(np.uint64)
        for i in range(8):
            out[at + i] = (((words[i] >> np.uint64(low)) & _ONES) * _GATHER) >> _LAST


@njit(cache=True, nogil=True)
def _unpack_plane(codes, at, low, width, column):
    """Adds one plane to 64 codes."""
    if width == 8:
        for i in range(64):
            column[i] = codes[at + i]
    elif width == 4:
        for i in range(32):
            c = codes[at + i]
            column[i] |= (c & 15) << low
            column[i + 32] |= (c >> 4) << low
    elif width == 2:
        for i in range(16):
            c = codes[at + i]
            column[i] |= (c & 3) << low
            column[i + 16] |= ((c >> 2) & 3) << low
            column[i + 32] |= ((c >> 4) & 3) << low
            column[i + 48] |= (c >> 6) << low
    else:
        words = column.view(np.uint64)
        for i in range(8):
            spread = (np.uint64(codes[at + i]) * _ONES) & _SPREAD
            words[i] |= (((spread + _LOWS) >> _SEVEN) & _ONES) << np.uint64(low)


@njit(cache=True, nogil=True)
def _pack(index, bits, out):
    """index: (n_heads, n, r). Returns whether every code fits into its bits."""
    n_heads, n, r = index.shape
    columns = np.empty((16, 64), np.uint8)
    beyond, at = 0, 0
    for h in range(n_heads):
        for first in range(0, n, 64):
            here = min(64, n - first)
            for j in range(0, r, 16):
                wide = min(16, r - j)
                if here == 64 and wide == 16:
                    for t in range(0, 64, 16):
                        _turn(index, ((h * n + first + t) * r) + j, r, columns, t, 64)
                else:
                    columns[:] = 0
                    for t in range(here):
                        for c in range(wide):
                            columns[c, t] = index[h, first + t, j + c]
                for c in range(wide):
                    b, column, seen = bits[h, j + c], columns[c], 0
                    for t in range(64):
                        seen |= column[t]
                    beyond |= seen >> b
                    low = 0
                    for width in (8, 4, 2, 1):
                        if b & width:
                            _pack_plane(column, low, width, out, at)
                            at += 8 * width
                            low += width
    return beyond == 0


@njit(cache=True, nogil=True)
def _unpack(codes, bits, out):
    n_heads, n, r = out.shape
    columns = np.empty((16, 64), np.uint8)
    at = 0
    for h in range(n_heads):
        for first in range(0, n, 64):
            here = min(64, n - first)
            for j in range(0, r, 16):
                wide = min(16, r - j)
                columns[:] = 0
                for c in range(wide):
                    low = 0
                    for width in (8, 4, 2, 1):
                        if bits[h, j + c] & width:
                            _unpack_plane(codes, at, low, width, columns[c])
                            at += 8 * width
                            low += width
                if here == 64 and wide == 16:
                    for t in range(0, 64, 16):
                        _turn(columns, t, 64, out, ((h * n + first + t) * r) + j, r)
                else:
                    for t in range(here):
                        for c in range(wide):
                            out[h, first + t, j + c] = columns[c, t]


def _checked(bits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if bits.shape != shape or bits.dtype != np.uint8 or (bits.size and int(bits.max()) > 8):
        most = int(bits.max()) if bits.size else 0
        raise BadConfig(f"bits are {bits.dtype}{bits.shape}, up to {most}; uint8{shape}, 0 to 8, is right")
    return np.ascontiguousarray(bits)


def block_bytes(bits: np.ndarray) -> int:
    """Bytes of a block of 64 tokens; of all heads' where bits are (n_heads, r)."""
    return 8 * int(bits.sum(dtype=np.int64))


def pack_heads(index: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Lay out codes, one head behind the other: uint8, flat, ⌈n_tokens / 64⌉ · 8 · Σ bits.

    index: (n_heads, n_tokens, r) uint8, below 2^bits. bits: (n_heads, r) uint8; heads may differ in their sums.
    Raises BadInput: a code that its bits cannot hold.
    """
    if index.ndim != 3 or index.dtype != np.uint8:
        raise BadInput(f"codes are {index.dtype}{index.shape}; uint8 (n_heads, n_tokens, r) is right")
    bits = _checked(bits, (index.shape[0], index.shape[2]))
    out = np.empty(-(-index.shape[1] // BLOCK) * block_bytes(bits), np.uint8)
    if not _pack(np.ascontiguousarray(index), bits, out):
        over = np.argwhere((index >> bits[:, None, :]) > 0)[0]
        h, t, j = (int(i) for i in over)
        raise BadInput(f"code {index[h, t, j]} of token {t}, head {h}, coordinate {j}, which has {bits[h, j]} bits")
    return out


def unpack_heads(codes: np.ndarray, bits: np.ndarray, n_tokens: int) -> np.ndarray:
    """The codes of `pack_heads`: uint8 (n_heads, n_tokens, r).

    Raises CorruptStream: more or fewer bytes than so many tokens take.
    """
    bits = _checked(bits, bits.shape if bits.ndim == 2 else (1, bits.size))
    right = -(-n_tokens // BLOCK) * block_bytes(bits)
    if codes.shape != (right,) or codes.dtype != np.uint8:
        raise CorruptStream(f"{codes.dtype}{codes.shape} for {n_tokens} tokens; uint8({right},) is right")
    out = np.empty((bits.shape[0], n_tokens, bits.shape[1]), np.uint8)
    _unpack(np.ascontiguousarray(codes), bits, out)
    return out


def pack(index: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """`pack_heads` of one head. index: (n_tokens, r) uint8, bits: (r,) uint8."""
    return pack_heads(index[None], bits[None])


def unpack(codes: np.ndarray, bits: np.ndarray, n_tokens: int) -> np.ndarray:
    """The codes of `pack`: uint8 (n_tokens, r)."""
    return unpack_heads(codes, bits[None], n_tokens)[0]


# --- Quantization -----------------------------------------------------------------------------------------------------

_COUNTED = 31  # up to that many thresholds are counted, many coordinates at a time; more are searched, 16 and 16


class Thresholds(NamedTuple):
    """Thresholds of every coordinate, sorted.

    counted: (most, r) float32, threshold k of coordinate j in row k, +∞ where there are fewer. searched: the coordinates with
    more than 31; theirs are in `fine` (n_searched, 256), +∞ behind, and every sixteenth of them, 15, 31, …, in `coarse`.
    """

    counted: np.ndarray
    searched: np.ndarray
    coarse: np.ndarray
    fine: np.ndarray

    @classmethod
    def of(cls, thresholds: Sequence[np.ndarray]) -> "Thresholds":
        """From one sorted array a coordinate, up to 255 long; a coordinate of 0 bits has an empty one."""
        for j, t in enumerate(thresholds):
            if t.ndim != 1 or len(t) > 255 or np.isnan(t).any() or (np.diff(t) < 0).any():
                raise BadConfig(f"thresholds of coordinate {j}: {t.shape}; up to 255 ascending numbers are right")
        few = [t if len(t) <= _COUNTED else t[:0] for t in thresholds]
        counted = np.full((max((len(t) for t in few), default=0), len(few)), np.inf, np.float32)
        for j, t in enumerate(few):
            counted[: len(t), j] = t
        searched = np.array([j for j, t in enumerate(thresholds) if len(t) > _COUNTED], np.int64)
        fine = np.full((len(searched), 256), np.inf, np.float32)
        for i, j in enumerate(searched):
            fine[i, : len(thresholds[j])] = thresholds[j]
        return cls(counted, searched, np.ascontiguousarray(fine[:, 15::16]), fine)

    @classmethod
    def between(cls, levels: np.ndarray, sizes: np.ndarray) -> "Thresholds":
        """Halfway between neighbours of finite ascending levels, float32, those of one coordinate behind those of the one before.

        sizes: int64 (r,), how many each has, 1 to 256. The same as `of`, without a loop over coordinates.
        """
        halfway = (levels[1:] + levels[:-1]) / 2
        coordinate = np.repeat(np.arange(len(sizes)), sizes)
        number = np.arange(len(levels)) - (np.cumsum(sizes) - sizes)[coordinate]
        inside = number[:-1] < sizes[coordinate[:-1]] - 1
        halfway, number, coordinate = halfway[inside], number[:-1][inside], coordinate[:-1][inside]
        few = sizes <= _COUNTED + 1
        counted = np.full((int(sizes[few].max(initial=1)) - 1, len(sizes)), np.inf, np.float32)
        is_few = few[coordinate]
        counted[number[is_few], coordinate[is_few]] = halfway[is_few]
        searched = np.flatnonzero(~few)
        fine = np.full((len(searched), 256), np.inf, np.float32)
        fine[np.searchsorted(searched, coordinate[~is_few]), number[~is_few]] = halfway[~is_few]
        return cls(counted, searched, np.ascontiguousarray(fine[:, 15::16]), fine)


@intrinsic
def _below(typingctx, thresholds, at, x):
    """How many of the 16 float32 from `at` on are below x."""
    signature = types.int64(thresholds, at, x)

    def codegen(context, builder, sig, args):
        found = Arrays(context, builder, sig, args).load(0, args[1], FLOATS)
        below = builder.bitcast(builder.fcmp_ordered("<", found, splat(builder, args[2])), ir.IntType(16))
        return builder.zext(call(builder, "llvm.ctpop.i16", ir.IntType(16), [below]), I64)

    return signature, codegen


@njit(cache=True, nogil=True)
def _quantize(y, counted, searched, coarse, fine, out):
    r = y.shape[1]
    for t in range(y.shape[0]):
        row, code = y[t], out[t]
        code[:] = 0
        for k in range(counted.shape[0]):
            level = counted[k]
            for j in range(r):
                code[j] += row[j] > level[j]
        for i in range(searched.shape[0]):
            x = row[searched[i]]
            start = 16 * _below(coarse, 16 * i, x)
            code[searched[i]] = start + _below(fine, 256 * i + start, x)


def quantize_coordinates(y: np.ndarray, thresholds: Thresholds) -> np.ndarray:
    """Ranks of every coordinate among its thresholds (those below it), uint8, the shape of y; a NaN has rank 0.

    y: (n, r) float32.
    """
    if y.ndim != 2 or y.dtype != np.float32 or y.shape[1] != thresholds.counted.shape[1]:
        right = f"float32 (n, {thresholds.counted.shape[1]})"
        raise BadInput(f"values are {y.dtype}{y.shape}; {right} is right")
    out = np.empty(y.shape, np.uint8)
    _quantize(np.ascontiguousarray(y), *thresholds, out)
    return out


# --- The same in NumPy -------------------------------------------------------------------------------------------------


def pack_plain(index: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """`pack` in NumPy, bit by bit."""
    n, r = index.shape
    padded = np.zeros((-(-n // BLOCK) * BLOCK, r), np.uint8)
    padded[:n] = index
    blocks = padded.reshape(-1, BLOCK, r)
    parts = [np.empty((len(blocks), 0), np.uint8)]
    for j in range(r):
        low = 0
        for w in widths(int(bits[j])):
            field = blocks[:, :, j] >> low & (1 << w) - 1
            # width 1 has neighbours in a byte, the wider ones have tokens far apart
            places = field.reshape(-1, 8, 8) if w == 1 else field.reshape(-1, 8 // w, 8 * w).swapaxes(1, 2)
            parts.append((places << np.arange(0, 8, w, dtype=np.uint8)).sum(-1, dtype=np.uint8))
            low += w
    return np.concatenate(parts, 1).reshape(-1)


def unpack_plain(codes: np.ndarray, bits: np.ndarray, n_tokens: int) -> np.ndarray:
    """`unpack` in NumPy."""
    n_blocks = -(-n_tokens // BLOCK)
    blocks = codes.reshape(n_blocks, block_bytes(bits))
    out = np.zeros((n_blocks, BLOCK, len(bits)), np.uint8)
    at = 0
    for j, b in enumerate(bits.tolist()):
        low = 0
        for w in widths(b):
            fields = blocks[:, at : at + 8 * w, None] >> np.arange(0, 8, w, dtype=np.uint8) & (1 << w) - 1
            fields = fields if w == 1 else fields.swapaxes(1, 2)
            out[:, :, j] |= fields.reshape(n_blocks, BLOCK) << low
            at, low = at + 8 * w, low + w
    return out.reshape(-1, len(bits))[:n_tokens]


def pack_heads_plain(index: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """`pack_heads` in NumPy."""
    return np.concatenate([pack_plain(i, b) for i, b in zip(index, bits, strict=True)])


def unpack_heads_plain(codes: np.ndarray, bits: np.ndarray, n_tokens: int) -> np.ndarray:
    """`unpack_heads` in NumPy."""
    ends = np.cumsum([-(-n_tokens // BLOCK) * block_bytes(b) for b in bits])
    parts = np.split(codes, ends[:-1])
    return np.stack([unpack_plain(c, b, n_tokens) for c, b in zip(parts, bits, strict=True)])


def quantize_coordinates_plain(y: np.ndarray, thresholds: Sequence[np.ndarray]) -> np.ndarray:
    """`quantize_coordinates` in NumPy, from the lists."""
    columns = [(y[:, j, None] > np.asarray(t, np.float32)).sum(1) for j, t in enumerate(thresholds)]
    return np.stack(columns, 1).astype(np.uint8)
