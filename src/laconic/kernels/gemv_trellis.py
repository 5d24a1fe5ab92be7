"""Products of a trellis-coded matrix and few vectors: 16 neighbouring values of a row are decoded into a register at a time.

Any value of a bitshift trellis can be read by itself: its state is the last L coded bits, a window of the bit string. So 16
lanes shift one 32-bit word by 15 … 0, mask L bits, add the free bits on top and gather their levels from a table:

    word m: coded bits of values 16 m … 16 m + 15, the first highest;   w = (word m−1) · 2^16 + word m
    state of value 16 m + i = (w >> (15 − i)) mod 2^L;   level = table[free bits, state]

and the word before a block's first is its last, because the path bites its tail. In memory a matrix is its codes, 1 + u bits
a value, and nothing is stored twice. Only trellises that take one coded bit a value (whole numbers of bits) are laid out.

Source: Tseng, Sun, Hou & De Sa 2024 (2406.11235, QTIP, §3: why a bitshift trellis decodes in parallel). Differs: levels come
from a table for any code of `laconic.kernels.trellis`, in float32.
"""

from math import gcd
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from laconic.core.errors import BadConfig, BadInput
from laconic.kernels.sharing import divide, take
from laconic.kernels.trellis import Code
from laconic.kernels.vectors import FLOATS, LANES, WORDS, Arrays, all_lanes, fma, registers, splat

__all__ = ["PackedTrellis", "dequantize_trellis", "gemv_trellis", "gemv_trellis_plain", "pack_trellis"]

_CHUNK = 64  # rows that a thread takes at a time
_MAX_MEMORY = 17  # a window of 16 states fits 32 bits
_SHARED_BYTES = 1 << 16


class PackedTrellis(NamedTuple):
    """A trellis-coded matrix.

    words: uint16 (n_out · n_in / 16 · (1 + free)): for 16 values the coded bits, then a word for each free bit, lowest first.
    table: float32 (2^(free + memory),). step: float32 (n_out · n_groups). block: values of a path.
    """

    words: np.ndarray
    table: np.ndarray
    step: np.ndarray
    memory: int
    free: int
    block: int
    n_out: int
    n_in: int

    @property
    def n_groups(self) -> int:
        return self.step.size // self.n_out

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.words.nbytes + self.table.nbytes + self.step.nbytes


@njit(cache=True, nogil=True)
def _pack(index, free, words):
    """index: (n,) of 1 + free bits, the coded bit lowest; words: zeros."""
    for i in range(index.shape[0]):
        at, place = i // 16 * (1 + free), 15 - i % 16
        for p in range(1 + free):
            words[at + p] |= (index[i] >> p & 1) << place


def pack_trellis(index: np.ndarray, trellis: Code, points: np.ndarray, step: np.ndarray, block: int) -> PackedTrellis:
    """Lay out symbols.

    index: (n_out, n_in), the symbols of `laconic.kernels.trellis.encode`, one a value, in blocks of `block` along rows.
    points: (2^u, C) float32. step: (n_out, n_groups) float32.
    """
    if trellis.period != 1 or int(trellis.shifts[0]) != 1 or trellis.memory > _MAX_MEMORY:
        raise BadConfig(
            f"a trellis of {trellis.bits} bits and 2^{trellis.memory} states; whole bits and up to 2^{_MAX_MEMORY} states "
            "have a packed form"
        )
    n_out, n_in = index.shape
    if index.size and (int(index.min()) < 0 or int(index.max()) >> trellis.symbol_bits):
        raise BadInput(f"symbols from {index.min()} to {index.max()}; 0 to {(1 << trellis.symbol_bits) - 1} are right")
    n_groups = step.shape[1] if step.shape[:1] == (n_out,) and step.ndim == 2 else 0
    if block % LANES or n_in % block or not n_groups or n_in % n_groups or n_in // n_groups % LANES:
        raise BadConfig(f"rows of {n_in} in blocks of {block} with steps {step.shape}; multiples of {LANES} are right")
    states = np.arange(1 << trellis.memory)
    table = points[:, trellis.base[states >> 5] ^ (states & 31)].astype(np.float32).reshape(-1)
    words = np.zeros(n_out * n_in // LANES * (1 + trellis.free), np.uint16)
    _pack(np.ascontiguousarray(index).reshape(-1).astype(np.uint16), trellis.free, words)
    scale = np.ascontiguousarray(step, np.float32).reshape(-1)
    return PackedTrellis(words, table, scale, trellis.memory, trellis.free, block, n_out, n_in)


@intrinsic
def _segment(typingctx, words, at, before, n, table, memory, step, x, x_at, x_stride, total, free, tokens):
    """total[m, lane] += step · Σ level · x[m] over n vectors of 16 values; returns the last coded word.

    words from `at`; before: the coded word in front of them. free, tokens: lengths of tuples. Offsets in elements.
    """
    signature = types.int64(words, at, types.int64, n, table, memory, step, x, x_at, x_stride, total, free, tokens)
    n_words = 1 + free.count

    def codegen(context, builder, sig, args):
        i16, i32, i64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
        arrays = Arrays(context, builder, sig, args)
        partial = registers(builder, FLOATS, tokens.count)
        last = cgutils.alloca_once_value(builder, builder.trunc(args[2], i32))
        down = ir.Constant(WORDS, list(range(LANES - 1, -1, -1)))
        memory = builder.trunc(args[5], i32)
        mask = splat(builder, builder.sub(builder.shl(i32(1), memory), i32(1)))
        with cgutils.for_range(builder, args[3], intp=i64) as loop:
            here = builder.add(args[1], builder.mul(loop.index, i64(n_words)))
            row = [builder.zext(arrays.load(0, builder.add(here, i64(p)), i16), i32) for p in range(n_words)]
            window = builder.or_(builder.shl(builder.load(last), i32(16)), row[0])
            builder.store(row[0], last)
            place = builder.and_(builder.lshr(splat(builder, window), down), mask)
            for p, word in enumerate(row[1:]):
                bit = builder.and_(builder.lshr(splat(builder, word), down), all_lanes(WORDS, 1))
                place = builder.or_(place, builder.shl(bit, splat(builder, builder.add(memory, i32(p)))))
            value = arrays.gather(4, place)
            for m in range(tokens.count):
                column = builder.add(builder.mul(args[9], i64(m)), builder.mul(loop.index, i64(LANES)))
                others = arrays.load(7, builder.add(args[8], column), FLOATS)
                builder.store(fma(builder, value, others, builder.load(partial[m])), partial[m])
        scale = splat(builder, args[6])
        for m in range(tokens.count):
            old = arrays.load(10, i64(LANES * m), FLOATS)
            new = fma(builder, builder.load(partial[m]), scale, old)
            builder.store(new, arrays.place(10, i64(LANES * m), FLOATS), align=4)
        return builder.zext(builder.load(last), i64)

    return signature, codegen


@njit(cache=True, nogil=True)
def _rows(counter, words, table, memory, step, block, segment, x, out, free, tokens):
    """Rows, as long as there are any that no other thread took. x: (n, n_in), a multiple of len(tokens); block and segment
    in vectors of 16 values."""
    n_out, n_in = out.shape[1], x.shape[1]
    n_words, per_row = 1 + len(free), n_in // 16
    per_group = per_row // (step.shape[0] // n_out)
    total = np.empty(16 * len(tokens), np.float32)
    while True:
        first = take(counter, _CHUNK)
        if first >= n_out:
            return
        for r in range(first, min(n_out, first + _CHUNK)):
            for t in range(0, x.shape[0], len(tokens)):
                total[:] = 0
                word = np.int64(0)
                for v in range(0, per_row, segment):
                    at = (r * per_row + v) * n_words
                    if v % block == 0:
                        word = np.int64(words[at + (block - 1) * n_words])
                    s = step[(r * per_row + v) // per_group]
                    word = _segment(words, at, word, segment, table, memory, s, x, t * n_in + v * 16, n_in, total,
                                    free, tokens)  # fmt: skip
                for m in range(len(tokens)):
                    half = 8  # halves added to each other: one order
                    while half:
                        for i in range(half):
                            total[16 * m + i] += total[16 * m + half + i]
                        half >>= 1
                    out[t + m, r] = total[16 * m]


@njit(cache=True, nogil=True)
def _dequantize(words, table, memory, free, step, block, first, out):
    """Rows first, first + 1, …"""
    n_words, per_row, mask = 1 + free, out.shape[1] // 16, (1 << memory) - 1
    per_group = words.shape[0] // n_words // step.shape[0]  # in vectors of 16 values
    for r in range(out.shape[0]):
        for c in range(0, out.shape[1], 16):
            v = (first + r) * per_row + c // 16
            before = v - 1 if c // 16 % block else v + block - 1
            window = np.int64(words[before * n_words]) << 16 | np.int64(words[v * n_words])
            s = step[v // per_group]
            for i in range(16):
                place = window >> (15 - i) & mask
                for p in range(free):
                    place |= (np.int64(words[v * n_words + 1 + p]) >> (15 - i) & 1) << (memory + p)
                out[r, c + i] = table[place] * s


def gemv_trellis(p: PackedTrellis, x: np.ndarray, *, threads: int = 1) -> np.ndarray:
    """y = x Wᵀ: float32 (m, n_out). x: (m, n_in) float32, contiguous. Exact but for rounding in float32."""
    if x.ndim != 2 or x.shape[1] != p.n_in or x.dtype != np.float32 or not x.flags.c_contiguous:
        raise BadInput(f"x is {x.dtype}{x.shape}; contiguous float32 (m, {p.n_in}) is needed")
    m = len(x)
    tokens = (0,) * (1 if m == 1 else 4)
    n = -(-m // len(tokens)) * len(tokens)
    if n != m or not x.flags.writeable:
        x = np.concatenate([x, np.zeros((n - m, p.n_in), np.float32)])
    out = np.empty((n, p.n_out), np.float32)
    segment = gcd(p.block, p.n_in // p.n_groups) // LANES
    threads = threads if p.words.nbytes * m > _SHARED_BYTES else 1
    divide(threads, _rows, p.words, p.table, p.memory, p.step, p.block // LANES, segment, x, out, (0,) * p.free, tokens)
    return out[:m]


def dequantize_trellis(p: PackedTrellis, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Rows start … stop − 1 as float32 (n, n_in): level · step, rounded once."""
    out = np.empty(((p.n_out if stop is None else stop) - start, p.n_in), np.float32)
    _dequantize(p.words, p.table, p.memory, p.free, p.step, p.block // LANES, start, out)
    return out


def gemv_trellis_plain(p: PackedTrellis, x: np.ndarray) -> np.ndarray:
    """`gemv_trellis` in float64, from the dense matrix."""
    return x.astype(np.float64) @ dequantize_trellis(p).astype(np.float64).T
