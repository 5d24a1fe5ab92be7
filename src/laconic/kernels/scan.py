"""What a query costs with every vector of a block of codes, from tables in registers, and the nearest found exactly.

Codes lie in the columns of `kernels.columns`. A query has costs F, 16 a column, whose sum over the columns is at most a vector's
true cost (equal to it where the columns hold all of its bits). The scan adds up F rounded down to whole steps in 8 bits:

    t_c[i] = min(⌊(F_c[i] − min F_c) / step⌋, cap_c)       Σ of cap_c over four columns ≤ 255, over all ≤ 65535
    Σ_c t_c[code_c] · step + Σ_c min F_c  ≤  Σ_c F_c[code_c]  ≤  true cost

so a vector whose sum is above (worst of the k nearest so far − Σ min F) / step is not among the k nearest, and is left where it
is; all others are costed exactly, at once, while their codes are at hand. Where there is no worst yet, the k vectors of least
sums among the first thousand are costed before the others: `_seed`. The result is that of costing all: a step that is too
coarse costs time, never a neighbour. With L steps below the limit rounding loses C / 2L of it for C columns, and capping what
passes caps; `_STEPS` a column weighs them. Tables are made anew when the limit has fallen by a quarter.

One register holds 32 vectors of a column; its 16 entries are looked up at once (pshufb), columns are added four by four in 8
bits, and then even and odd vectors apart in 16.

Source: André, Kermarrec & Le Scouarnec, "Cache locality is not enough: high-performance nearest neighbor search with product
quantization fast scan", VLDB 2015 (tables in registers, a bound from the neighbours so far). Differs: sums of 16 bits, caps by
columns, coordinates of unlike bits, several to a column, neighbours costed as they come, and seeds.
"""

from itertools import chain
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from laconic.core.errors import BadInput
from laconic.kernels.columns import Columns, fine_code, unpack_columns_plain
from laconic.kernels.sharing import divide, take
from laconic.kernels.vectors import FLOATS, I8, I32, I64, WORDS, Arrays, all_lanes, call, has, order, splat

__all__ = [
    "COSINES", "PRODUCTS", "SQUARES", "Codes", "Costs", "block_sums", "block_sums_plain", "costs_of", "costs_plain",
    "neighbouring", "neighbours", "neighbours_plain", "tables", "tables_plain",
]  # fmt: skip

_I16 = ir.IntType(16)
_SHORTS, _HALF, _QUARTER = ir.VectorType(_I16, 16), ir.VectorType(I8, 32), ir.VectorType(I8, 16)
_STEPS = 8.0  # below the limit, a column
_ROUNDING = 1e-5  # of costs in float32
_FALL = 0.75  # of the limit, when tables are made anew
_AHEAD = 1024  # bytes of codes that are asked for beforehand
_TOGETHER = 32  # queries that read codes while these are in the cache
_CACHED = 1 << 17  # bytes of codes that they read so
_SHARES = 4  # of the queries of lists, a thread: one that is held up leaves some to the others

SQUARES, PRODUCTS, COSINES = range(3)


# --- Tables -----------------------------------------------------------------------------------------------------------
# The 16 entries of a column are one vector of float32; every operation is that of the plain twin, entry by entry.


def _larger(builder, a, b):
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _smaller(builder, a, b):
    return builder.select(builder.fcmp_ordered("<", a, b), a, b)


@intrinsic
def _at(typingctx, array, place):
    """Element at a place of an array as it lies, 0 or more: without the question whether it counts from the end."""
    signature = array.dtype(array, place)

    def codegen(context, builder, sig, args):
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.load(builder.gep(data, [args[1]]))

    return signature, codegen


@intrinsic
def _extent(typingctx, f, at):
    """(least, greatest) of 16 float32 from an element on."""
    signature = types.UniTuple(types.float32, 2)(f, at)

    def codegen(context, builder, sig, args):
        x = Arrays(context, builder, sig, args).load(0, args[1], FLOATS)
        least, most, half = x, x, 8
        while half:
            (a, b), (c, d) = (
                [builder.shuffle_vector(y, y, order(*range(i, i + half))) for i in (0, half)] for y in (least, most)
            )
            least, most, half = _smaller(builder, a, b), _larger(builder, c, d), half // 2
        return context.make_tuple(builder, sig.return_type, [builder.extract_element(y, I32(0)) for y in (least, most)])

    return signature, codegen


@intrinsic
def _stepped(typingctx, f, at, low, inverse, cap, out):
    """out[at + i] = min((f[at + i] − low) · inverse, cap) without its fraction, uint8, for 16 of them."""
    signature = types.void(f, at, low, inverse, cap, out)

    def codegen(context, builder, sig, args):
        arrays = Arrays(context, builder, sig, args)
        x = builder.fsub(arrays.load(0, args[1], FLOATS), splat(builder, args[2]))
        x = _smaller(builder, builder.fmul(x, splat(builder, args[3])), splat(builder, args[4]))
        whole = builder.trunc(builder.fptosi(x, WORDS), _QUARTER)
        builder.store(whole, arrays.place(5, args[1], _QUARTER), align=1)
        return context.get_dummy_value()

    return signature, codegen


def _bounds_of(cost):
    """Writes f[f_at + i] = what `_bound` says for low[at + i] and high[at + i], 16 of them; added to what stands there where
    there is `more`. cost: (builder, v, low, high, o, w), vectors, -> vector."""

    @intrinsic
    def bounds(typingctx, v, low, high, at, o, w, f, f_at, more):
        signature = types.void(v, low, high, at, o, w, f, f_at, more)

        def codegen(context, builder, sig, args):
            arrays = Arrays(context, builder, sig, args)
            v, o, w = (splat(builder, args[i]) for i in (0, 4, 5))
            least, most = (arrays.load(i, args[3], FLOATS) for i in (1, 2))
            found = cost(builder, v, least, most, o, w)
            place = arrays.place(6, args[7], FLOATS)
            with builder.if_else(builder.icmp_unsigned("!=", args[8], args[8].type(0))) as (add, write):
                with add:
                    builder.store(builder.fadd(builder.load(place, align=4), found), place, align=4)
                with write:
                    builder.store(found, place, align=4)
            return context.get_dummy_value()

        return signature, codegen

    return bounds


def _square(builder, v, low, high, o, w):
    d = _larger(builder, builder.fsub(low, v), builder.fsub(v, high))
    d = _larger(builder, d, ir.Constant(FLOATS, None))
    return builder.fmul(d, d)


def _product(builder, v, low, high, o, w):
    return _smaller(builder, *(builder.fmul(builder.fneg(v), y) for y in (low, high)))


def _cosine(builder, v, low, high, o, w):
    y = builder.fdiv(v, builder.fadd(w, w))
    y = _larger(builder, y, builder.fadd(low, o))
    y = _smaller(builder, y, builder.fadd(high, o))
    return builder.fmul(builder.fsub(builder.fmul(w, y), v), y)


_squares, _products, _cosines = (_bounds_of(cost) for cost in (_square, _product, _cosine))


@njit(cache=True, nogil=True)
def tables(f, limit, out):
    """Writes the tables of costs f, float32 (C, 16), for a limit on their sum. out: uint8 (C, 16). Gives (step, Σ min), float32.

    limit: may be infinite. The step is what makes nothing need a cap, or less, `_STEPS` · C of them below the limit.
    """
    extents, base = np.empty((2, f.shape[0]), np.float32), np.float32(0)
    for c in range(f.shape[0]):
        base += _spanned(f, c, extents)
    return _tables(f, extents, base, limit, out), base


@njit(cache=True, nogil=True)
def _spanned(f, c, extents):
    """Writes the least entry of column c, and how far the others reach above; gives the least."""
    least, most = _extent(f, 16 * c)
    extents[0, c], extents[1, c] = least, most - least
    return least


@njit(cache=True, nogil=True)
def _tables(f, extents, base, limit, out):
    """`tables` from what `_spanned` found, and the sum of the least entries; gives the step."""
    n, low, reach = f.shape[0], extents[0], extents[1]
    fours = n // 4
    room = np.float32(min(255, 65535 // max(1, fours + n % 4)))
    widest = np.float32(0)
    for c in range(0, 4 * fours, 4):
        widest = max(widest, _at(reach, c) + _at(reach, c + 1) + _at(reach, c + 2) + _at(reach, c + 3))
    for c in range(4 * fours, n):
        widest = max(widest, reach[c])
    step = widest / room
    if limit - base < np.inf:
        step = min(step, max(limit - base, np.float32(0)) / np.float32(_STEPS * max(1, n)))
    step = max(step, np.float32(1e-30))
    inverse = np.float32(1) / step
    for g in range(0, 4 * fours, 4):
        most = _at(reach, g) + _at(reach, g + 1) + _at(reach, g + 2) + _at(reach, g + 3)
        capped = most * inverse > room
        for c in range(g, g + 4):
            cap = np.float32(np.int32(room * _at(reach, c) / most)) if capped else room
            _stepped(f, 16 * c, _at(low, c), inverse, cap, out)
    for c in range(4 * fours, n):
        _stepped(f, 16 * c, low[c], inverse, room, out)
    return step


def tables_plain(f: np.ndarray, limit: float) -> tuple[np.ndarray, np.float32, np.float32]:
    """`tables` in NumPy: (tables, step, Σ min)."""
    n, one = len(f), np.float32
    low = f.min(1, initial=np.inf)
    reach, base = f.max(1, initial=-np.inf) - low, one(0)
    for least in low:
        base += least
    fours = n // 4
    room = one(min(255, 65535 // max(1, fours + n % 4)))
    groups = [range(4 * g, 4 * g + 4) for g in range(fours)] + [range(c, c + 1) for c in range(4 * fours, n)]
    totals = np.zeros(n, one)
    for group in groups:
        total = reach[group[0]]
        for c in group[1:]:
            total = total + reach[c]
        totals[list(group)] = total
    step = totals.max(initial=one(0)) / room
    if limit - base < np.inf:
        step = min(step, max(one(limit) - base, one(0)) / one(_STEPS * max(1, n)))
    step = max(one(step), one(1e-30))
    inverse = one(1) / step
    with np.errstate(invalid="ignore", divide="ignore"):
        caps = np.where(totals * inverse > room, np.trunc(room * reach / totals), room).astype(one)
    return np.minimum((f - low[:, None]) * inverse, caps[:, None]).astype(np.uint8), step, base


# --- Sums of a block --------------------------------------------------------------------------------------------------


def _found(builder, table, index):
    """Entries of a table of 16 bytes, twice side by side, for 32 indices below 16: <32 x i8>."""
    if has("avx2"):
        return call(builder, "llvm.x86.avx2.pshuf.b", _HALF, [table, index])
    total = ir.Constant(_HALF, None)
    for code in range(16):
        entry = builder.shuffle_vector(table, table, order(*[code] * 32))
        total = builder.select(builder.icmp_unsigned("==", index, all_lanes(_HALF, code)), entry, total)
    return total


@intrinsic
def _sum_block(typingctx, codes, at, tables_, tables_at, n, sums):
    """sums (64,) uint16 of n columns at byte `at`: even and odd vectors of the first 32, then of the others."""
    signature = types.void(codes, at, tables_, tables_at, n, sums)

    def codegen(context, builder, sig, args):
        arrays = Arrays(context, builder, sig, args)
        held = [cgutils.alloca_once_value(builder, ir.Constant(_SHORTS, None)) for _ in range(4)]

        def add(first, count):
            halves: list = [None, None]
            for i in range(count):
                column = builder.add(first, I64(i))
                x = arrays.load(0, builder.add(args[1], builder.mul(column, I64(32))), _HALF)
                entries = arrays.load(2, builder.add(args[3], builder.mul(column, I64(16))), _QUARTER)
                both = builder.shuffle_vector(entries, entries, order(*[*range(16)] * 2))
                parts = builder.and_(x, all_lanes(_HALF, 15)), builder.lshr(x, all_lanes(_HALF, 4))
                for h, index in enumerate(parts):
                    found = _found(builder, both, index)
                    halves[h] = found if halves[h] is None else builder.add(halves[h], found)
            for h, total in enumerate(halves):
                words = builder.bitcast(total, _SHORTS)
                odd = builder.lshr(words, all_lanes(_SHORTS, 8))
                for variable, x in zip(held[2 * h : 2 * h + 2], (words, odd), strict=True):
                    builder.store(builder.add(builder.load(variable), x), variable)

        with cgutils.for_range(builder, builder.lshr(args[4], I64(2)), intp=I64) as loop:
            first = builder.mul(loop.index, I64(4))
            arrays.prefetch(0, builder.add(builder.add(args[1], builder.mul(first, I64(32))), I64(_AHEAD)), 2)
            add(first, 4)
        begun = builder.and_(args[4], I64(-4))
        with cgutils.for_range(builder, builder.and_(args[4], I64(3)), intp=I64) as loop:
            add(builder.add(begun, loop.index), 1)
        for h in range(2):
            words, odd = (builder.load(v) for v in held[2 * h : 2 * h + 2])
            even = builder.sub(words, builder.shl(odd, all_lanes(_SHORTS, 8)))
            for i, x in enumerate((even, odd)):
                builder.store(x, arrays.place(5, I64(32 * h + 16 * i), _SHORTS), align=1)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def _at_most(typingctx, sums, limit):
    """Bits of the 64 uint16 sums that are at most `limit` (uint16)."""
    signature = types.uint64(sums, limit)

    def codegen(context, builder, sig, args):
        arrays = Arrays(context, builder, sig, args)
        one = builder.insert_element(ir.Constant(_SHORTS, ir.Undefined), args[1], I32(0))
        limits = builder.shuffle_vector(one, one, order(*[0] * 16))
        total = I64(0)
        for part in range(4):
            below = builder.icmp_unsigned("<=", arrays.load(0, I64(16 * part), _SHORTS), limits)
            mask = builder.zext(builder.bitcast(below, _I16), I64)
            total = builder.or_(total, builder.shl(mask, I64(16 * part)))
        return total

    return signature, codegen


@intrinsic
def _lowest(typingctx, mask):
    """The number of the lowest bit that is set in a uint64 other than 0."""

    def codegen(context, builder, sig, args):
        return builder.cttz(args[0], ir.IntType(1)(1))

    return types.int64(mask), codegen


@njit(cache=True, nogil=True)
def _vector(i):
    """Vector of a block whose sum is the i-th."""
    return i // 32 * 32 + i % 16 * 2 + i // 16 % 2


@njit(cache=True, nogil=True)
def _block_sums(codes, at, table, n, out):
    sums = np.empty(64, np.uint16)
    _sum_block(codes, at, table.reshape(-1), 0, n, sums)
    for i in range(64):
        out[_vector(i)] = sums[i]


def block_sums(codes: np.ndarray, block: int, table: np.ndarray) -> np.ndarray:
    """The 64 sums of a block, uint16. codes: uint8, the columns of `columns.pack_columns`; table: uint8 (C, 16)."""
    out = np.empty(64, np.uint16)
    _block_sums(codes, 32 * len(table) * block, table, len(table), out)
    return out


def block_sums_plain(codes: np.ndarray, block: int, table: np.ndarray) -> np.ndarray:
    """`block_sums` in NumPy."""
    size = 32 * len(table)
    x = codes[block * size : (block + 1) * size].reshape(len(table), 32)
    nibbles = np.concatenate([x & 15, x >> 4], 1)
    return np.take_along_axis(table.astype(np.int64), nibbles.astype(np.int64), 1).sum(0).astype(np.uint16)


# --- Costs ------------------------------------------------------------------------------------------------------------


class Costs(NamedTuple):
    """What codes cost a query; `costs_of` makes it.

    A code says where one or more neighbouring coordinates of a vector lie: its *point*. Coordinates first[u] … first[u + 1] − 1
    are those of code u.

    kind: SQUARES Σ (v_j − o_j − y_j)², PRODUCTS −Σ v_j (o_j + y_j), COSINES the same over the norm of o + y.
    where: see `Columns`, of codes. levels: float32, the points of every code behind those of the one before, from start[u] on.
    term: int64 (C + 1,); member: int32 (m,), coordinates that are in column c, from term[c] on; low, high: float32 (m, 16),
    least and greatest of what each may be for each nibble. steps: int32 (n_codes, 8), of each code: its column or −1, shift and
    mask in the nibble, fine bits, their place, where its levels start, its first coordinate, and how many it has. partial: the
    steps of codes of columns that do not hold all their bits, column after column, alike ones together and those first that
    leave most open; then of codes without a column. least_all, most_all: float32 (r,), of all points.
    least, most: squared norms of all vectors lie between (COSINES). queries: v, float32 (n, r). origins: o, float32
    (n_lists, r).
    """

    kind: int
    where: Columns
    levels: np.ndarray
    start: np.ndarray
    first: np.ndarray
    term: np.ndarray
    member: np.ndarray
    low: np.ndarray
    high: np.ndarray
    steps: np.ndarray
    partial: np.ndarray
    least_all: np.ndarray
    most_all: np.ndarray
    least: float
    most: float
    queries: np.ndarray
    origins: np.ndarray


def costs_of(
    kind: int,
    where: Columns,
    levels: list[np.ndarray],
    queries: np.ndarray,
    origins: np.ndarray,
    norms: tuple[float, float] = (0.0, 0.0),
) -> Costs:
    """Costs from points. levels: of each code, float32 (2^bits,) or (2^bits, width); points that share their highest four bits
    should lie together. queries (n, r), origins (n_lists, r), r the sum of the widths."""
    points = [np.asarray(x, np.float32).reshape(len(x), -1) for x in levels]
    right = [1 << int(b) for b in where.bits]
    first = np.cumsum([0, *(x.shape[1] for x in points)]).astype(np.int64)
    r = int(first[-1])
    if [len(x) for x in points] != right or queries.shape[1:] != (r,) or origins.shape[1:] != (r,):
        raise BadInput(f"points, queries {queries.shape} and origins {origins.shape} for {len(right)} codes of {r}")
    terms = [(c, u, j) for c, us in enumerate(where.members()) for u in us for j in range(first[u], first[u + 1])]
    low, high = np.zeros((len(terms), 16), np.float32), np.zeros((len(terms), 16), np.float32)
    for t, (_, u, j) in enumerate(terms):
        top, cut = int(where.top[u]), int(where.low[u])
        code = np.arange(16) >> where.shift[u] & (1 << top) - 1
        rows = points[u][:, j - first[u]].reshape(1 << top, 1 << cut)
        low[t], high[t] = rows.min(1)[code], rows.max(1)[code]
    of, _, member = (np.array([t[i] for t in terms], np.int32) for i in range(3))
    term = np.searchsorted(of, np.arange(where.n_columns + 1)).astype(np.int64)
    spread = np.zeros(where.n_columns)
    np.add.at(spread, of, (high - low).max(1, initial=0).astype(np.float64))
    members = where.members()
    short = [c for c in range(where.n_columns) if where.low[members[c]].any()]
    alike: dict[tuple[int, ...], list[int]] = {}  # one after the other, so that the reader's branches are foreseen
    for c in sorted(short, key=lambda c: -spread[c]):
        alike.setdefault(tuple(where.low[members[c]]), []).append(c)
    partial: list[int] = [u for c in chain.from_iterable(alike.values()) for u in members[c]]
    partial += [int(u) for u in np.flatnonzero((where.top == 0) & (where.bits > 0))]
    start = np.cumsum([0, *(x.size for x in points[:-1])], dtype=np.int64)
    steps = np.stack(
        [where.column, where.shift, (1 << where.top.astype(np.int32)) - 1, where.low, where.fine, start[: len(right)],
         first[:-1], np.diff(first)], 1, dtype=np.int32, casting="unsafe",
    )  # fmt: skip
    least_all, most_all = (
        np.concatenate([f(x, 0) for x in points]) if points else np.empty(0, np.float32) for f in (np.min, np.max)
    )
    flat = np.concatenate([x.reshape(-1) for x in points]) if points else np.empty(0, np.float32)
    return Costs(
        kind, where, flat, start, first, term, member, low, high, steps, steps[np.array(partial, np.int64)], least_all, most_all,
        *norms, np.ascontiguousarray(queries, np.float32), np.ascontiguousarray(origins, np.float32),
    )  # fmt: skip


def neighbouring(points: np.ndarray, few: bool = False) -> np.ndarray:
    """An order of 2^b points, int64, in which those that share their highest four bits lie together: 16 boxes of few overlaps.

    points: float32 (2^b, width). Halved four times, each part across the coordinate in which it is widest, by comparisons
    alone, so that every machine finds the same. Source: Bentley 1975, k-d trees. Up to 16 points stay as they are, unless `few`
    are put in order too, for columns that hold less than four of their bits.
    """
    parts = [np.arange(len(points))]
    for _ in range(4 if few or len(points) > 16 else 0):
        halves = []
        for part in (p for p in parts if len(p)):
            rows = points[part]
            widest = int(np.argmax(rows.max(0) - rows.min(0)))
            part = part[np.argsort(rows[:, widest], kind="stable")]
            halves += [part[: len(part) // 2], part[len(part) // 2 :]]
        parts = halves
    return np.concatenate(parts)


@njit(cache=True, nogil=True)
def _bound(kind, v, low, high, o, w):
    """The least that a coordinate costs whose level lies in low … high."""
    if kind == SQUARES:
        d = max(max(low - v, v - high), np.float32(0))
        return d * d
    if kind == PRODUCTS:
        return min(-v * low, -v * high)
    y = min(max(v / (w + w), low + o), high + o)  # the vertex of w y² − v y, or what is nearest to it
    return (w * y - v) * y


@njit(cache=True, nogil=True)
def _limit(kind, least, most, worst):
    """(w, limit): what may be among the nearest has Σ −v y + w y² at most at the limit.

    COSINES: −⟨v, y⟩ / √s ≤ worst with s in least … most; √s is above its chord a + b s, so w = −worst · b, limit = worst · a.
    Where the worst is above 0, √s is below √most.
    """
    tiny = np.float32(1e-20)
    if kind != COSINES or not worst < np.inf:
        return tiny, worst
    a, b = np.sqrt(np.float32(least)), np.sqrt(np.float32(most))
    if worst >= 0:
        return tiny, worst * b
    return max(-worst / max(a + b, tiny), tiny), worst * (a * b / max(a + b, tiny))


@njit(cache=True, nogil=True)
def _prepare(costs, q, list_, worst, scratch):
    """Fills scratch but for its sums and seeds. What is at most at the limit has sums up to (limit − rest − base) / step."""
    kind, shifted, f, extents, table, made = (
        costs.kind, scratch.shifted, scratch.f, scratch.extents, scratch.table, scratch.made
    )  # fmt: skip
    w, limit = _limit(kind, costs.least, costs.most, worst)
    rest = np.float32(0)
    v, o = costs.queries[q], costs.origins[list_]
    for j in range(v.shape[0]):
        shifted[0, j] = v[j] - o[j] if kind == SQUARES else v[j]
        shifted[1, j] = np.float32(0) if kind == SQUARES else o[j]
        if kind == PRODUCTS:
            rest -= v[j] * o[j]
    for u in range(costs.where.bits.shape[0]):
        if not costs.where.top[u]:
            for j in range(costs.first[u], costs.first[u + 1]):
                rest += _bound(kind, shifted[0, j], costs.least_all[j], costs.most_all[j], shifted[1, j], w)
    base = np.float32(0)
    for c in range(costs.where.n_columns):
        begin = costs.term[c]
        for t in range(begin, costs.term[c + 1]):
            j, more = np.int64(_at(costs.member, t)), t > begin
            y, z = _at(shifted, j), shifted[1, j]
            if kind == SQUARES:
                _squares(y, costs.low, costs.high, 16 * t, z, w, f, 16 * c, more)
            elif kind == PRODUCTS:
                _products(y, costs.low, costs.high, 16 * t, z, w, f, 16 * c, more)
            else:
                _cosines(y, costs.low, costs.high, 16 * t, z, w, f, 16 * c, more)
        base += _spanned(f, c, extents)
    made[0], made[1] = _tables(f, extents, base, np.float32(limit - rest), table), base
    made[2], made[3] = rest, worst


@njit(cache=True, nogil=True, inline="always")  # a call would pass every array of `where`
def _code(where, codes, fine, block, i, u):
    """Code u of vector i of a block. fine: byte at which fine bits begin."""
    low, code = np.int64(where.bits[u] - where.top[u]), 0
    if where.top[u]:
        nibble = codes[32 * (where.n_columns * block + where.column[u]) + i % 32] >> 4 * (i // 32)
        code = ((nibble >> where.shift[u]) & ((1 << where.top[u]) - 1)) << low
    if low:
        code |= fine_code(codes, 8 * fine + (64 * block + i) * where.n_fine + where.fine[u], low)
    return code


@njit(cache=True, nogil=True)
def _exactly(kind, v, y):
    """What a coordinate costs at a level, SQUARES or PRODUCTS."""
    return (v - y) * (v - y) if kind == SQUARES else -v * y


@njit(cache=True, nogil=True)
def _refined(kind, partial, levels, least, most, codes, columns_at, fine_at, i, shifted, f, total, worst):
    """Cost of vector i of a block, SQUARES or PRODUCTS, from its Σ F: what columns are short of it is put on top, in float32.
    Where it is above the worst, it may be anything above, for nothing that is put on top is below 0.

    columns_at: byte at which those of the block begin. fine_at: bit at which those of the vector do. The rest as in `Costs`;
    arrays one by one, for a tuple of them would be counted as it is passed.
    """
    column, up = np.int32(-1), 4 * (i // 32)
    exact, bound, nibble = np.float32(0), np.float32(0), np.int64(0)
    for p in range(0, partial.size, 8):
        c, begin, width = _at(partial, p), np.int64(_at(partial, p + 6)), np.int64(_at(partial, p + 7))
        if c < 0 or c != column:
            total += exact - bound
            if total > worst:
                return total
            column, exact, bound, nibble = c, np.float32(0), np.float32(0), np.int64(0)
            if c >= 0:
                nibble = np.int64(_at(codes, columns_at + 32 * c + i % 32) >> up) & 15
                bound = _at(f, 16 * c + nibble)
            else:
                for j in range(begin, begin + width):
                    bound += _bound(kind, _at(shifted, j), _at(least, j), _at(most, j), shifted[1, j], np.float32(0))
        low = np.int64(_at(partial, p + 3))
        code = ((nibble >> _at(partial, p + 1)) & _at(partial, p + 2)) << low
        code |= fine_code(codes, fine_at + _at(partial, p + 4), low)
        at = _at(partial, p + 5) + code * width
        if width == 1:
            exact += _exactly(kind, _at(shifted, begin), _at(levels, at))
        else:
            for j in range(width):
                exact += _exactly(kind, _at(shifted, begin + j), _at(levels, at + j))
    return total + (exact - bound)


@njit(cache=True, nogil=True)
def _cosine_of(costs, codes, fine, block, i, shifted):
    """Cost of vector i of a block, COSINES, by its points, in float64."""
    total, power = 0.0, 0.0
    for u in range(costs.where.bits.shape[0]):
        begin, end = costs.first[u], costs.first[u + 1]
        at = costs.start[u] + _code(costs.where, codes, fine, block, i, u) * (end - begin)
        for j in range(begin, end):
            y = np.float64(costs.levels[at + j - begin]) + np.float64(shifted[1, j])
            total -= np.float64(shifted[0, j]) * y
            power += y * y
    return np.float32(total / np.sqrt(power) if power > 0 else 0.0)


# --- Neighbours -------------------------------------------------------------------------------------------------------


class Codes(NamedTuple):
    """Where codes lie in memory: arrays by block of the index.

    address, numbers: int64, of their first byte and of their vectors' numbers (int64). n: int64, vectors. first: int64
    (n_lists + 1,), the blocks of each list.
    """

    address: np.ndarray
    numbers: np.ndarray
    n: np.ndarray
    first: np.ndarray


@intrinsic
def _lent(typingctx, array):
    """The same array, its owner not counted: threads that count the same owners wait for each other. Whoever calls keeps it."""

    def codegen(context, builder, sig, args):
        lent = context.make_array(sig.args[0])(context, builder, args[0])
        lent.meminfo = ir.Constant(lent.meminfo.type, None)
        return lent._getvalue()

    return array(array), codegen


@njit(cache=True, nogil=True)
def _lent_costs(costs):
    w = costs.where
    where = Columns(_lent(w.bits), _lent(w.column), _lent(w.shift), _lent(w.top), _lent(w.fine), w.n_columns, w.n_fine)
    return Costs(
        costs.kind, where, _lent(costs.levels), _lent(costs.start), _lent(costs.first), _lent(costs.term), _lent(costs.member),
        _lent(costs.low), _lent(costs.high), _lent(costs.steps), _lent(costs.partial), _lent(costs.least_all),
        _lent(costs.most_all), costs.least, costs.most, _lent(costs.queries), _lent(costs.origins),
    )  # fmt: skip


@intrinsic
def _pointer(typingctx, address):
    """An integer as a pointer."""

    def codegen(context, builder, sig, args):
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(address), codegen


@njit(cache=True, nogil=True)
def _push(cost, number, c, v):
    """Puts (c, v) in place of the worst of a heap of (cost, number), worst first, where it is better; of equal costs the lower
    number is."""
    k = cost.shape[0]
    if c > cost[0] or (c == cost[0] and v > number[0]):
        return
    i = 0
    while True:
        child = 2 * i + 1
        if child >= k:
            break
        if child + 1 < k and (
            cost[child + 1] > cost[child] or (cost[child + 1] == cost[child] and number[child + 1] > number[child])
        ):
            child += 1
        if cost[child] < c or (cost[child] == c and number[child] < v):
            break
        cost[i], number[i] = cost[child], number[child]
        i = child
    cost[i], number[i] = c, v


@njit(cache=True, nogil=True)
def _sum_of(codes, at, up, f, n):
    """Σ F of a vector: four sums of every fourth column, in float32."""
    a, b, c, d = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for g in range(n // 4):
        i, p = 64 * g, at + 128 * g
        a += _at(f, i + ((_at(codes, p) >> up) & 15))
        b += _at(f, i + 16 + ((_at(codes, p + 32) >> up) & 15))
        c += _at(f, i + 32 + ((_at(codes, p + 64) >> up) & 15))
        d += _at(f, i + 48 + ((_at(codes, p + 96) >> up) & 15))
    for i in range(n // 4 * 4, n):
        a += _at(f, 16 * i + ((_at(codes, at + 32 * i) >> up) & 15))
    return (a + b) + (c + d)


@njit(cache=True, nogil=True)
def _highest(kind, least, most, worst, step, base, rest):
    """The greatest sum that may be among the nearest, −1 for none; two steps and 1e-5 of all costs more, for rounding."""
    if not worst < np.inf:
        return np.int64(65535)
    limit = np.float64(_limit(kind, least, most, worst)[1])
    room = limit - rest - base + _ROUNDING * (abs(limit) + abs(rest) + abs(base))
    return np.int64(min(max(room / step + 2.0, -1.0), 65535.0))


@njit(cache=True, nogil=True, inline="always")  # a call would pass every array of `costs`
def _cost(costs, codes, fine, block, i, shifted, f, rest, limit, worst):
    """Cost of vector i of a block; one that is above the worst may be anything above."""
    at = 32 * costs.where.n_columns * block
    c = _sum_of(codes, at + i % 32, 4 * (i // 32), f, costs.where.n_columns) + rest
    if costs.kind == COSINES:
        if c > limit + np.float32(_ROUNDING) * (abs(limit) + abs(c)):
            c = np.float32(np.inf)
        else:
            c = _cosine_of(costs, codes, fine, block, i, shifted)
    elif c <= worst:
        c = _refined(
            costs.kind, costs.partial, costs.levels, costs.least_all, costs.most_all, codes, at,
            8 * fine + (64 * block + i) * costs.where.n_fine, i, shifted, f, c, worst,
        )  # fmt: skip
    return c


class Scratch(NamedTuple):
    """What one query works with, or several, then with an axis in front.

    shifted: float32 (2, r), v and o as `_bound` takes them. f: float32 (C, 16), the costs. extents: float32 (2, C), their least
    of every column, and how far the others reach above. table: uint8 (C, 16). made: float32 (4,), the table's step, Σ of the
    least, what is outside of columns, and the worst that it was made for; this is NaN where there is no table yet. sums: uint16
    (64,), of a block. seeds: uint64, bits of the sums of every block whose vectors are costed already.
    """

    shifted: np.ndarray
    f: np.ndarray
    extents: np.ndarray
    table: np.ndarray
    made: np.ndarray
    sums: np.ndarray
    seeds: np.ndarray


@njit(cache=True, nogil=True)
def _scratch(costs, n, k):
    """For n queries at a time that look for k vectors."""
    n_columns = costs.where.n_columns
    return Scratch(
        np.empty((n, 2, costs.queries.shape[1]), np.float32), np.empty((n, n_columns, 16), np.float32),
        np.empty((n, 2, n_columns), np.float32), np.empty((n, n_columns, 16), np.uint8), np.empty((n, 4), np.float32),
        np.empty(64, np.uint16), np.empty(_first_piece(k), np.uint64),
    )  # fmt: skip


@njit(cache=True, nogil=True)
def _of(scratch, i):
    return Scratch(
        _lent(scratch.shifted[i]), _lent(scratch.f[i]), _lent(scratch.extents[i]), _lent(scratch.table[i]),
        _lent(scratch.made[i]), _lent(scratch.sums), _lent(scratch.seeds),
    )  # fmt: skip


@njit(cache=True, nogil=True)
def _first_piece(k):
    """Blocks among which to look for a first limit."""
    return max(16, (4 * k + 63) // 64)


@njit(cache=True, nogil=True)
def _seed(costs, part, end, dead, scratch, cost, number):
    """Costs those vectors of blocks 0 … end − 1 whose sums are least, as many as there is room for: a first limit."""
    n, codes, numbers, fine = part
    n_columns, sums, seeds = costs.where.n_columns, scratch.sums, scratch.seeds
    for block in range(end):
        seeds[block] = 0
        _sum_block(codes, 32 * n_columns * block, scratch.table, 0, n_columns, sums)
        mask = _at_most(sums, np.uint16(min(cost[0], np.float32(65535))))
        while mask:
            at = _lowest(mask)
            mask &= mask - np.uint64(1)
            place = 64 * block + _vector(at)
            if place < n and not (dead.shape[0] and dead[numbers[place]]):
                _push(cost, number, np.float32(sums[at]), 64 * block + at)
    found, inf = number.copy(), np.float32(np.inf)
    cost[:], number[:] = inf, -1
    for at in found:
        if at >= 0:
            block, i = at // 64, _vector(at % 64)
            seeds[block] |= np.uint64(1) << np.uint64(at % 64)
            c = _cost(costs, codes, fine, block, i, scratch.shifted, scratch.f, scratch.made[2], inf, inf)
            _push(cost, number, c, numbers[64 * block + i])


@njit(cache=True, nogil=True)
def _scan(costs, part, begin, end, dead, scratch, seeded, cost, number):
    """Reads blocks begin … end − 1 of 64 vectors. seeded: of how many of the first ones some vectors are costed already."""
    n, codes, numbers, fine = part
    n_columns, sums = costs.where.n_columns, scratch.sums
    step, base, rest = scratch.made[0], scratch.made[1], scratch.made[2]
    highest = _highest(costs.kind, costs.least, costs.most, cost[0], step, base, rest)
    limit = _limit(costs.kind, costs.least, costs.most, cost[0])[1]
    for block in range(begin, end):
        if highest < 0:
            return
        _sum_block(codes, 32 * n_columns * block, scratch.table, 0, n_columns, sums)
        mask = _at_most(sums, np.uint16(highest))
        if block < seeded:
            mask &= ~scratch.seeds[block]
        while mask:
            at = _lowest(mask)
            mask &= mask - np.uint64(1)
            i = _vector(at)
            place = 64 * block + i
            if place >= n or sums[at] > highest:
                continue
            v = numbers[place]
            if dead.shape[0] and dead[v]:
                continue
            worst = cost[0]
            c = _cost(costs, codes, fine, block, i, scratch.shifted, scratch.f, rest, limit, worst)
            if c > worst:
                continue
            _push(cost, number, c, v)
            if cost[0] < worst:
                limit = _limit(costs.kind, costs.least, costs.most, cost[0])[1]
                highest = _highest(costs.kind, costs.least, costs.most, cost[0], step, base, rest)


@njit(cache=True, nogil=True)
def _worth(kind, made_for, worst, least):
    """Whether tables that were made for a limit should be made anew for the worst so far. least: that a vector could cost."""
    if not made_for < np.inf:
        return worst < np.inf
    floor = np.float32(-1) if kind == COSINES else least
    return worst - floor < np.float32(_FALL) * (made_for - floor)


@njit(cache=True, nogil=True)
def _block(costs, where_codes, b):
    """Of block b: how many vectors, their codes and numbers, and the byte at which fine bits begin behind the columns."""
    n, n_columns = where_codes.n[b], costs.where.n_columns
    fine = (n + 63) // 64 * 32 * n_columns
    codes = carray(_pointer(where_codes.address[b]), (fine + (n * costs.where.n_fine + 7) // 8,), np.uint8)
    return n, codes, carray(_pointer(where_codes.numbers[b]), (n,), np.int64), fine


@njit(cache=True, nogil=True)
def _read(costs, q, list_, part, begin, end, dead, scratch, cost, number):
    """Blocks begin … end − 1 of a part for one query. part: see `_block`."""
    cost, number, dead, made, seeded = _lent(cost), _lent(number), _lent(dead), scratch.made, 0
    if np.isnan(made[3]) or _worth(costs.kind, made[3], cost[0], made[1] + made[2]):
        _prepare(costs, q, list_, cost[0], scratch)
    if begin == 0 and not cost[0] < np.inf and number.max() < 0:
        seeded = min(end, scratch.seeds.shape[0])
        _seed(costs, part, seeded, dead, scratch, cost, number)
        if cost[0] < np.inf:
            _prepare(costs, q, list_, cost[0], scratch)
    _scan(costs, part, begin, end, dead, scratch, seeded, cost, number)


@njit(cache=True, nogil=True)
def _all(counter, costs, where_codes, dead, cost, number):
    """Every query reads every block, some queries together."""
    n_queries, k = cost.shape
    costs, scratch = _lent_costs(costs), _scratch(costs, _TOGETHER, k)
    most = max(1, _CACHED // max(1, 32 * costs.where.n_columns))
    while True:
        start = take(counter, np.int64(_TOGETHER))
        if start >= n_queries:
            return
        several = min(_TOGETHER, n_queries - start)
        scratch.made[:, 3] = np.nan
        piece = _first_piece(k)
        for b in range(where_codes.n.shape[0]):
            part, begin, n_groups = _block(costs, where_codes, b), 0, (where_codes.n[b] + 63) // 64
            while begin < n_groups:
                end = min(begin + piece, n_groups)
                for i in range(several):
                    q = start + i
                    _read(costs, q, 0, part, begin, end, dead, _of(scratch, i), cost[q], number[q])
                begin, piece = end, min(4 * piece, most)


@njit(cache=True, nogil=True)
def _some(counter, costs, where_codes, share, query, list_, dead, cost, number):
    """Pairs of a query and a list, in shares of which no two have a query in common. share: int64 (n_shares + 1,)."""
    costs, scratch = _lent_costs(costs), _scratch(costs, 1, cost.shape[1])
    while True:
        s = take(counter, np.int64(1))
        if s >= share.shape[0] - 1:
            return
        for p in range(share[s], share[s + 1]):
            q, found = query[p], list_[p]
            scratch.made[0, 3] = np.nan
            for b in range(where_codes.first[found], where_codes.first[found + 1]):
                part, begin, n_groups = _block(costs, where_codes, b), 0, (where_codes.n[b] + 63) // 64
                piece = _first_piece(cost.shape[1])
                while begin < n_groups:
                    end = min(begin + piece, n_groups)
                    _read(costs, q, found, part, begin, end, dead, _of(scratch, 0), cost[q], number[q])
                    begin, piece = end, 64


def neighbours(
    costs: Costs,
    codes: Codes,
    k: int,
    *,
    near: np.ndarray | None = None,
    dead: np.ndarray | None = None,
    threads: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """The k least costs of every query, (n, k) float32, and the vectors' numbers, int64; inf and −1 where there are fewer.

    near: int64 (n, n_probe), the lists that each query reads, nearest first; by default all blocks are read as one list.
    dead: bool, by number, what not to find. Of equal costs the lower number is nearer.
    """
    n = len(costs.queries)
    cost, number = np.full((n, k), np.inf, np.float32), np.full((n, k), -1, np.int64)
    skip = np.empty(0, bool) if dead is None else dead
    if near is None:
        divide(min(threads, -(-n // _TOGETHER)), _all, costs, codes, skip, cost, number)
    elif n:
        # A query's nearest list first, which gives it a limit; then list by list, so that a list is read while in the cache.
        group = np.arange(n) * min(n, threads if threads == 1 else _SHARES * threads) // n
        for part in (near[:, :1], near[:, 1:]):
            query, list_ = np.repeat(np.arange(n), part.shape[1]), part.reshape(-1)
            order_ = np.lexsort((list_, group[query]))
            share = np.searchsorted(group[query][order_], np.arange(group[-1] + 2))
            pairs = query[order_], list_[order_]
            divide(min(threads, len(share) - 1), _some, costs, codes, share, *pairs, skip, cost, number)
    order_ = np.lexsort((number, cost), axis=1)
    return np.take_along_axis(cost, order_, 1), np.take_along_axis(number, order_, 1)


def neighbours_plain(
    costs: Costs,
    blocks: list[tuple[int, np.ndarray, np.ndarray]],
    k: int,
    near: np.ndarray,
    dead: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`neighbours` in NumPy, from all costs. blocks: (list, codes, numbers)."""
    n = len(near)
    cost, number = np.full((n, k), np.inf, np.float32), np.full((n, k), -1, np.int64)
    for q in range(n):
        found = [(np.full(k, np.inf, np.float32), np.full(k, -1, np.int64))]
        for list_, codes, numbers in blocks:
            if list_ in near[q]:
                c = costs_plain(costs, q, list_, unpack_columns_plain(codes, costs.where, len(numbers)))
                alive = np.ones(len(numbers), bool) if dead is None else ~dead[numbers]
                found.append((c[alive], numbers[alive]))
        every, names = (np.concatenate(x) for x in zip(*found, strict=True))
        best = np.lexsort((names, every))[:k]
        cost[q], number[q] = every[best], names[best]
    return cost, number


def costs_plain(costs: Costs, q: int, list_: int, index: np.ndarray) -> np.ndarray:
    """Costs of vectors by their codes (n, n_codes): COSINES in float64 by coordinates; others in float32, the sum of what
    columns cost at least, then what each is short of."""
    kind, where, one, first = costs.kind, costs.where, np.float32, costs.first
    v, o, n = costs.queries[q], costs.origins[list_], len(index)
    y = np.empty((len(v), n), one)
    for u in range(len(where.bits)):
        width = first[u + 1] - first[u]
        for k in range(width):
            y[first[u] + k] = costs.levels[costs.start[u] + index[:, u].astype(np.int64) * width + k]
    if kind == COSINES:
        total, power = np.zeros(n), np.zeros(n)
        for j in range(len(v)):
            x = y[j].astype(np.float64) + np.float64(o[j])
            total -= np.float64(v[j]) * x
            power += x * x
        return np.divide(total, np.sqrt(power), out=np.zeros(n), where=power > 0).astype(one)

    def cost(j: int, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        if kind == PRODUCTS:
            return np.minimum(-v[j] * low, -v[j] * high)
        x = v[j] - o[j]
        return np.square(np.maximum(np.maximum(low - x, x - high), one(0)))

    rest = one(0)
    for j in range(len(v) if kind == PRODUCTS else 0):
        rest -= v[j] * o[j]
    least, exact = np.zeros((where.n_columns, n), one), np.zeros((where.n_columns, n), one)
    outside = []
    for u in np.flatnonzero(where.top == 0):
        both = np.zeros((2, n), one)
        for j in range(first[u], first[u + 1]):
            bound = cost(j, costs.least_all[j : j + 1], costs.most_all[j : j + 1])[0]
            rest += bound
            both += np.stack([np.full(n, bound), cost(j, y[j], y[j])])
        outside.append((u, both[1] - both[0]))
    members = where.members()
    for c, us in enumerate(members):
        for u in us:
            nibble = (index[:, u] >> where.low[u]).astype(np.int64) << where.shift[u]
            for j in range(first[u], first[u + 1]):
                t = int(np.flatnonzero(costs.member == j)[0])
                least[c] += cost(j, costs.low[t][nibble], costs.high[t][nibble])
                exact[c] += cost(j, y[j], y[j])
    total = _by_columns(list(least), rest, n)
    for c in dict.fromkeys(int(c) for c in costs.partial[:, 0] if c >= 0):
        total = total + (exact[c] - least[c])
    for u, short in outside:
        total = total + short if where.bits[u] else total
    return total


def _by_columns(parts: list[np.ndarray], rest: np.float32, n: int) -> np.ndarray:
    """(n,) float32: parts of every fourth column added up, then the four sums."""
    fours = len(parts) // 4 * 4
    total = np.zeros((4, n), np.float32)
    for c, part in enumerate(parts):
        total[c % 4 if c < fours else 0] += part
    return (total[0] + total[1]) + (total[2] + total[3]) + np.float32(rest)
