"""Sums of table entries over codes that lie as bit planes of 64 vectors: what a query costs with every vector.

Vectors and planes are those of `kernels.coordinates`. Coordinate j of b bits has a table of 2^b entries of 8 bits; the sum over
coordinates has 16. Tables hold a query's costs rounded to a common step, so that a sum says the cost to within
d / 2 steps, and every vector whose sum is within d steps of the k-th least may be among the k nearest:

    cost_j(level) ≈ low_j + step · table_j[code],   step = the least for which entries fit 8 bits and sums 16

A register holds 32 vectors of one coordinate; its 16 entries are looked up at once (pshufb), and tables of more entries in as
many goes as they have sixteens. Even and odd vectors are summed apart, as two bytes of a 16-bit word.

Source: André, Kermarrec & Le Scouarnec, "Cache locality is not enough: high-performance nearest neighbor search with product
quantization fast scan", VLDB 2015 (tables in registers). Differs: coordinates have bits of their own, the codes are those that
were stored, and what is kept for the exact ranking is complete.
"""

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from laconic.core.errors import BadInput
from laconic.kernels.coordinates import BLOCK, block_bytes, unpack
from laconic.kernels.packed import widths
from laconic.kernels.vectors import BYTES, I8, I64, WORDS, Arrays, all_lanes, bytes_of, order

__all__ = ["Candidates", "Query", "candidates", "query", "scan", "sums_plain"]

_I16 = ir.IntType(16)
_SHORTS = ir.VectorType(_I16, 32)
_HALF, _QUARTER = (ir.VectorType(I8, n) for n in (32, 16))


class Query(NamedTuple):
    """Tables of one query. runs: int64 (n_runs, 4): bits, coordinates, their first byte in a block, the first of their tables."""

    runs: np.ndarray
    tables: np.ndarray  # uint8, flat
    step: float
    base: float  # cost = base + step · sum, but for rounding
    slack: int  # in steps: twice the rounding of a sum


def query(costs: list[np.ndarray], bits: np.ndarray) -> Query:
    """Tables for a query. costs: of every coordinate, float (2^bits,), or (1,) without bits; bits: (d,) uint8."""
    if len(costs) != len(bits) or any(len(c) != 1 << int(b) for c, b in zip(costs, bits, strict=True)):
        raise BadInput(f"tables of {[len(c) for c in costs][:8]} … entries for bits {bits[:8].tolist()} …")
    low = np.array([c.min() for c in costs], np.float64)
    reach = np.array([c.max() for c in costs], np.float64) - low
    coded = int((bits > 0).sum())
    step = max(reach.max(initial=0.0) / 255, reach.sum() / max(65535 - coded, 1), 1e-30)
    edges = np.flatnonzero(np.diff(bits.astype(np.int64), prepend=-1, append=-1))
    at = 8 * np.append(0, np.cumsum(bits, dtype=np.int64))
    runs, tables, place = [], [], 0
    for a, b in zip(edges[:-1], edges[1:], strict=True):
        width = int(bits[a])
        if width:
            runs.append((width, b - a, at[a], place))
            rows = np.zeros((b - a, max(16, 1 << width)), np.uint8)
            for row, c, least in zip(rows, costs[a:b], low[a:b], strict=True):
                row[: 1 << width] = np.rint((c - least) / step)
            tables.append(rows.reshape(-1))
            place += rows.size
    flat = np.concatenate(tables) if tables else np.zeros(0, np.uint8)
    return Query(np.array(runs, np.int64).reshape(-1, 4), flat, float(step), float(low.sum()), coded + 1)


def _joined(builder, parts):
    while len(parts) > 1:
        every = order(*range(2 * parts[0].type.count))
        parts = [builder.shuffle_vector(a, b, every) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _plane(builder, arrays, at, width):
    """A plane of 64 codes from array 0: <64 x i8>."""
    if width == 1:
        bits = arrays.load(0, at, I64)
        return builder.zext(builder.bitcast(bits, ir.VectorType(ir.IntType(1), 64)), BYTES)
    x = arrays.load(0, at, ir.VectorType(I8, 8 * width))
    mask = all_lanes(x.type, (1 << width) - 1)
    shifts = range(0, 8, width)
    return _joined(builder, [builder.and_(builder.lshr(x, all_lanes(x.type, s)) if s else x, mask) for s in shifts])


def _entries(builder, arrays, place, bits, index):
    """Table entries of 64 codes; the table is at `place` of array 2."""
    code = builder.bitcast(index, WORDS)
    if bits <= 4:
        sixteen = arrays.load(2, place, _QUARTER)
        return bytes_of(builder, builder.shuffle_vector(sixteen, sixteen, order(*[*range(16)] * 4)), code)
    low = builder.bitcast(builder.and_(index, all_lanes(BYTES, 15)), WORDS)
    high = builder.lshr(index, all_lanes(BYTES, 4))
    found = ir.Constant(BYTES, None)
    for part in range(1 << (bits - 4)):
        sixteen = arrays.load(2, builder.add(place, I64(16 * part)), _QUARTER)
        some = bytes_of(builder, builder.shuffle_vector(sixteen, sixteen, order(*[*range(16)] * 4)), low)
        here = builder.icmp_unsigned("==", high, all_lanes(BYTES, part))
        found = builder.select(here, builder.bitcast(some, BYTES), found)
    return builder.bitcast(found, WORDS)


@intrinsic
def _add_run(typingctx, codes, at, tables, table_at, n, sums, bits):
    """sums (64,) uint16 += entries of n coordinates of len(bits) bits each; even vectors in front of odd ones."""
    width = bits.count
    signature = types.void(codes, at, tables, table_at, n, sums, bits)

    def codegen(context, builder, sig, args):
        arrays = Arrays(context, builder, sig, args)
        totals = [arrays.load(5, I64(32 * i), _SHORTS) for i in (0, 1)]
        held = [cgutils.alloca_once_value(builder, t) for t in totals]
        with cgutils.for_range(builder, args[4], intp=I64) as loop:
            place = builder.add(args[1], builder.mul(loop.index, I64(8 * width)))
            index, low = None, 0
            for w in widths(width):
                plane = _plane(builder, arrays, builder.add(place, I64(8 * low)), w)
                shifted = builder.shl(plane, all_lanes(BYTES, low)) if low else plane
                index = shifted if index is None else builder.or_(index, shifted)
                low += w
            table = builder.add(args[3], builder.mul(loop.index, I64(max(16, 1 << width))))
            found = builder.bitcast(_entries(builder, arrays, table, width, index), _SHORTS)
            even = builder.and_(found, all_lanes(_SHORTS, 255))
            odd = builder.lshr(found, all_lanes(_SHORTS, 8))
            for variable, x in zip(held, (even, odd), strict=True):
                builder.store(builder.add(builder.load(variable), x), variable)
        for i, variable in enumerate(held):
            builder.store(builder.load(variable), arrays.place(5, I64(32 * i), _SHORTS), align=1)
        return context.get_dummy_value()

    return signature, codegen


_1, _2, _3, _4 = (0,), (0,) * 2, (0,) * 3, (0,) * 4
_5, _6, _7, _8 = (0,) * 5, (0,) * 6, (0,) * 7, (0,) * 8


@njit(cache=True, nogil=True)
def _sums(codes, at, runs, tables, sums):
    sums[:] = 0
    for r in range(runs.shape[0]):
        bits, n, place, table = runs[r, 0], runs[r, 1], at + runs[r, 2], runs[r, 3]
        if bits == 4:
            _add_run(codes, place, tables, table, n, sums, _4)
        elif bits == 1:
            _add_run(codes, place, tables, table, n, sums, _1)
        elif bits == 2:
            _add_run(codes, place, tables, table, n, sums, _2)
        elif bits == 3:
            _add_run(codes, place, tables, table, n, sums, _3)
        elif bits == 5:
            _add_run(codes, place, tables, table, n, sums, _5)
        elif bits == 6:
            _add_run(codes, place, tables, table, n, sums, _6)
        elif bits == 7:
            _add_run(codes, place, tables, table, n, sums, _7)
        else:
            _add_run(codes, place, tables, table, n, sums, _8)


@njit(cache=True, nogil=True)
def _scan(codes, size, n, runs, tables, slack, skip, best, found, costs):
    """Places and sums of vectors within `slack` of the k-th least so far; best: (k,) int64, ascending, kept up to date."""
    sums = np.empty(64, np.uint16)
    k, count = best.shape[0], 0
    limit = best[k - 1] + slack
    for block in range((n + 63) // 64):
        _sums(codes, block * size, runs, tables, sums)
        least = sums[0]
        for i in range(64):
            least = min(least, sums[i])
        if least > limit:
            continue
        for i in range(64):
            v = np.int64(sums[i])
            if v > limit:
                continue
            place = block * 64 + (2 * i if i < 32 else 2 * i - 63)
            if place >= n or (skip.shape[0] and skip[place]):
                continue
            found[count], costs[count] = place, v
            count += 1
            if v < best[k - 1]:
                at = k - 1
                while at > 0 and best[at - 1] > v:
                    best[at] = best[at - 1]
                    at -= 1
                best[at] = v
                limit = best[k - 1] + slack
    return count


class Candidates(NamedTuple):
    """place: int32 (n,), of vectors that may be among the nearest, in no order; sum: int32 (n,)."""

    place: np.ndarray
    sum: np.ndarray


def scan(
    codes: np.ndarray, bits: np.ndarray, n_vectors: int, q: Query, best: np.ndarray, skip: np.ndarray | None = None
) -> Candidates:
    """Every vector that may be among the k nearest, given the k least sums so far, in `best`, which is brought up to date.

    codes: uint8, the blocks of `coordinates.pack`; best: int64 (k,), ascending, beginning with a number above 2^16; skip: bool
    (n_vectors,), what not to find. In the end those stay whose sum is at most best[k − 1] + slack.
    """
    size = block_bytes(bits)
    if (
        codes.dtype != np.uint8
        or len(codes) != size * -(-n_vectors // BLOCK)
        or best.dtype != np.int64
        or not len(best)
    ):
        raise BadInput(f"{len(codes):,} bytes of {codes.dtype} for {n_vectors:,} vectors of {size} bytes in {BLOCK}")
    place, sums = np.empty(n_vectors, np.int32), np.empty(n_vectors, np.int32)
    left_out = np.empty(0, bool) if skip is None else skip
    n = _scan(codes, size, n_vectors, q.runs, q.tables, q.slack, left_out, best, place, sums)
    return Candidates(place[:n].copy(), sums[:n].copy())


def candidates(found: Candidates, q: Query, best: np.ndarray) -> np.ndarray:
    """Places of those that are left once `best` is final."""
    return found.place[found.sum <= best[-1] + q.slack]


def sums_plain(codes: np.ndarray, bits: np.ndarray, n_vectors: int, q: Query) -> np.ndarray:
    """Sums of all vectors, int64, by unpacking: the twin of what `scan` adds up."""
    index = unpack(codes, bits, n_vectors)
    out, at = np.zeros(n_vectors, np.int64), 0
    for j in np.flatnonzero(bits):
        size = max(16, 1 << int(bits[j]))
        out += q.tables[at : at + size][index[:, j]]
        at += size
    return out
