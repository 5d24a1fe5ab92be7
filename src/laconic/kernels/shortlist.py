"""A query's short list: of the vectors of some lists, those of least estimated cost, which alone are costed as they are.

What a query v costs with a vector y of the list around o is estimated from columns alone (`kernels.columns`), by the mean ŷ of
all points that share what the columns hold. Written as a product it needs the list only as two numbers, so that a query has one
table for all of its lists, a vector a number δ of its own and, of COSINES, its norm ν:

    SQUARES:   ‖v − o‖² − 2 ⟨v, ŷ⟩ + δ,       δ = ‖y‖² + 2 ⟨o, ŷ⟩
    PRODUCTS:  −⟨v, o⟩ − ⟨v, ŷ⟩ + κ δ,        δ = −⟨o, y − ŷ⟩,   κ = ⟨v, o⟩ / ‖o‖²
    COSINES:   (−⟨v, o⟩ − ⟨v, ŷ⟩ + κ δ) / ν,  ν = ‖o + y‖

It is wrong by 2 ⟨v − o, ŷ − y⟩, of the others by ⟨v − κ o, ŷ − y⟩; in the mean by nothing. Of SQUARES the mean of all origins
is taken from queries and origins first, which changes no distance, and leaves the tables what tells vectors apart. ⟨v, ŷ⟩ is
added up over columns as in `kernels.scan`, in the steps of a table of 8 bits; a vector is taken up where its sum is at most
(worst · ν − κ δ − the rest) / step, worst that of the short list so far. Coarse columns are read sooner, and want a longer list.

Sources: André et al., VLDB 2015 (tables in registers); Jégou, Tavenard, Douze & Amsaleg, "Searching in one billion vectors:
re-rank with source coding", ICASSP 2011 (a first code for the list, the rest for its order). Differs: both are bits of one
scalar code; estimates by conditional means, with exact norms.
"""

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from laconic.kernels.columns import fine_code, unpack_columns, unpack_columns_plain
from laconic.kernels.product import product
from laconic.kernels.scan import (
    _AHEAD,
    _CACHED,
    _HALF,
    _QUARTER,
    _SHARES,
    _SHORTS,
    COSINES,
    PRODUCTS,
    SQUARES,
    Codes,
    Costs,
    _at,
    _block,
    _cosine_of,
    _exactly,
    _found,
    _lent,
    _lent_costs,
    _lowest,
    _products,
    _push,
    _spanned,
    _stepped,
    _vector,
    block_sums_plain,
    costs_plain,
    neighbours,
    neighbours_plain,
)
from laconic.kernels.sharing import divide, take
from laconic.kernels.vectors import F32, FLOATS, I32, I64, LANES, WORDS, Arrays, all_lanes, order, splat

__all__ = ["Estimates", "estimates_of", "shortlisted", "shortlisted_plain"]

_I16 = ir.IntType(16)
_EIGHT, _EIGHT_WORDS, _EIGHT_FLOATS = (ir.VectorType(t, 8) for t in (_I16, I32, F32))
_QUERIES = 64  # of a share at most: so many tables stay in the cache beside the codes
_PIECE = 32  # blocks of 64 vectors whose sums are kept
_SLACK = 0.25  # steps, for rounding


class Estimates(NamedTuple):
    """What estimates need beside codes; `estimates_of` makes it.

    mean: float32 (m, 16), beside `Costs.low`, of the points of a nibble. still: float32 (r,), of coordinates without a column the
    mean of all points, of others 0. at: int64, by block of the index, the first of its vectors, filled up to 64, in the order of
    the sums. own: uint16, their δ in whole steps; of a block δ = low + step · own. norms: the same of ν, with norm_low and
    norm_step; where all ν are 1 it is `own`, and norm_step is 0.
    """

    mean: np.ndarray
    still: np.ndarray
    at: np.ndarray
    own: np.ndarray
    low: np.ndarray
    step: np.ndarray
    norms: np.ndarray
    norm_low: np.ndarray
    norm_step: np.ndarray

    @property
    def nbytes(self) -> int:
        """Of what grows with the vectors."""
        return int(self.own.nbytes) + (0 if self.norms is self.own else int(self.norms.nbytes))


def estimates_of(costs: Costs, held: list[tuple[int, np.ndarray, int]]) -> Estimates:
    """From points, origins and codes. held: by block of the index its list, codes in columns, and how many vectors."""
    costs = _centred(costs)
    where = costs.where
    widths = np.diff(costs.first)
    points = [
        costs.levels[costs.start[u] : costs.start[u] + (w << int(where.bits[u]))].reshape(-1, w).astype(np.float64)
        for u, w in enumerate(widths.tolist())
    ]
    count = np.zeros((len(points), 256), np.int64)
    for _, codes, n in held:
        _count(unpack_columns(codes, where, n), count)
    means = []
    for u, (y, m) in enumerate(zip(points, count, strict=True)):
        top, share = 1 << int(where.top[u]), np.maximum(m[: len(y)], 1e-9).reshape(1 << int(where.top[u]), -1, 1)
        means.append((y.reshape(top, -1, y.shape[1]) * share).sum(1) / share.sum(1))
    of = {int(j): u for u in range(len(points)) for j in range(costs.first[u], costs.first[u + 1])}
    mean = np.zeros((len(costs.member), 16), np.float32)
    for t, j in enumerate(costs.member.tolist()):
        u = of[j]
        mean[t] = means[u][np.arange(16) >> where.shift[u] & (1 << where.top[u]) - 1, j - costs.first[u]]
    still = np.concatenate([m[0] * (where.top[u] == 0) for u, m in enumerate(means)]) if points else np.zeros(0)
    at = np.cumsum([0, *(-(-n // 64) * 64 for _, _, n in held)])
    steps = [(np.zeros(int(at[-1]), np.uint16), *np.zeros((2, len(held)), np.float32)) for _ in range(2)]
    # Of every coordinate what it is and what columns say of it, by code: (r, 2^bits at most).
    most = 1 << int(where.bits.max(initial=0))
    true, seen = np.zeros((2, len(still), most))
    for u, (y, m) in enumerate(zip(points, means, strict=True)):
        true[costs.first[u] : costs.first[u + 1], : len(y)] = y.T
        seen[costs.first[u] : costs.first[u + 1], : len(y)] = np.repeat(m, len(y) // len(m), 0).T
    tables: dict[int, list[np.ndarray]] = {}
    for b, (list_, codes, n) in enumerate(held):
        if list_ not in tables:
            o = costs.origins[list_].astype(np.float64)[:, None]
            own = true * true + 2 * o * seen if costs.kind == SQUARES else o * (seen - true)
            parts = [own, np.square(true + o)] if costs.kind == COSINES else [own]
            tables = {list_: [np.add.reduceat(x, costs.first[:-1], 0) for x in parts] if len(points) else [own]}
        index = unpack_columns(codes, where, n)
        _in_steps(_looked_up(index, tables[list_][0]), b, at[b], *steps[0])
        if costs.kind == COSINES:
            _in_steps(np.sqrt(_looked_up(index, tables[list_][1])), b, at[b], *steps[1])
    if costs.kind != COSINES:
        steps[1] = steps[0][0], np.ones(len(held), np.float32), steps[1][2]
    return Estimates(mean, still.astype(np.float32), at[:-1].astype(np.int64), *steps[0], *steps[1])


def _in_steps(x: np.ndarray, b: int, at: int, own: np.ndarray, low: np.ndarray, step: np.ndarray) -> None:
    """Writes what vectors of block b of the index have of their own."""
    low[b], step[b] = x.min(), max((x.max() - x.min()) / 65535, 1e-30)
    filled = np.zeros(-(-len(x) // 64) * 64, np.uint16)
    filled[: len(x)] = np.rint(np.clip((x - low[b]) / step[b], 0, 65535))
    own[at : at + len(filled)] = filled.reshape(-1, 64)[:, [_vector(i) for i in range(64)]].reshape(-1)


def _centred(costs: Costs) -> Costs:
    """The same distances with the mean of the origins at 0: what is far from 0 would be all that tables and steps could tell."""
    if costs.kind != SQUARES:
        return costs
    centre = costs.origins.mean(0, dtype=np.float64).astype(np.float32)
    return costs._replace(queries=costs.queries - centre, origins=costs.origins - centre)


@njit(cache=True, nogil=True)
def _count(index, count):
    for t in range(index.shape[0]):
        for u in range(index.shape[1]):
            count[u, index[t, u]] += 1


@njit(cache=True, nogil=True)
def _looked_up(index, table):
    """Σ over codes of table[u, code u], by vector."""
    out = np.zeros(index.shape[0])
    for t in range(index.shape[0]):
        for u in range(index.shape[1]):
            out[t] += table[u, index[t, u]]
    return out


@intrinsic
def _sum_two(typingctx, codes, at, n, n_blocks, tables, first, second, sums, apart):
    """Sums of blocks by two tables of n columns, whose first bytes are given: uint16, 64 a block in the order of `_sum_block`,
    those of the second table `apart` places behind.

    Codes are read once for both; eight columns are added in 8 bits before they are in 16.
    """
    signature = types.void(codes, at, n, n_blocks, tables, first, second, sums, apart)

    def codegen(context, builder, sig, args):
        arrays = Arrays(context, builder, sig, args)
        held = [[cgutils.alloca_once(builder, _SHORTS) for _ in range(4)] for _ in range(2)]

        def add(begin, column, count):
            """`count` columns of the block that begins at a byte."""
            totals: list = [[None, None], [None, None]]
            for i in range(count):
                c = builder.add(column, I64(i))
                x = arrays.load(0, builder.add(begin, builder.mul(c, I64(32))), _HALF)
                parts = builder.and_(x, all_lanes(_HALF, 15)), builder.lshr(x, all_lanes(_HALF, 4))
                for total, table in zip(totals, args[5:7], strict=True):
                    entries = arrays.load(4, builder.add(table, builder.mul(c, I64(16))), _QUARTER)
                    both = builder.shuffle_vector(entries, entries, order(*[*range(16)] * 2))
                    for h, index in enumerate(parts):
                        found = _found(builder, both, index)
                        total[h] = found if total[h] is None else builder.add(total[h], found)
            for total, variables in zip(totals, held, strict=True):
                for h, x in enumerate(total):
                    words = builder.bitcast(x, _SHORTS)
                    odd = builder.lshr(words, all_lanes(_SHORTS, 8))
                    for variable, y in zip(variables[2 * h : 2 * h + 2], (words, odd), strict=True):
                        builder.store(builder.add(builder.load(variable), y), variable)

        with cgutils.for_range(builder, args[3], intp=I64) as blocks:
            begin = builder.add(args[1], builder.mul(blocks.index, builder.mul(args[2], I64(32))))
            for variable in (*held[0], *held[1]):
                builder.store(ir.Constant(_SHORTS, None), variable)
            with cgutils.for_range(builder, builder.lshr(args[2], I64(3)), intp=I64) as loop:
                column = builder.mul(loop.index, I64(8))
                arrays.prefetch(0, builder.add(builder.add(begin, builder.mul(column, I64(32))), I64(_AHEAD)), 4)
                add(begin, column, 8)
            whole = builder.and_(args[2], I64(-8))
            with cgutils.for_range(builder, builder.and_(args[2], I64(7)), intp=I64) as loop:
                add(begin, builder.add(whole, loop.index), 1)
            for q, variables in enumerate(held):
                to = builder.add(builder.mul(args[8], I64(q)), builder.mul(blocks.index, I64(64)))
                for h in range(2):
                    words, odd = (builder.load(v) for v in variables[2 * h : 2 * h + 2])
                    even = builder.sub(words, builder.shl(odd, all_lanes(_SHORTS, 8)))
                    for i, x in enumerate((even, odd)):
                        place = arrays.place(7, builder.add(to, I64(32 * h + 16 * i)), _SHORTS)
                        builder.store(x, place, align=1)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def _below(typingctx, sums, at, own, norms, own_at, a, b, c):
    """Bits of 64 uint16 sums from one on that are not above a · own[own_at + i] + b · norms[own_at + i] + c, in float32."""
    signature = types.uint64(sums, at, own, norms, own_at, a, b, c)

    def codegen(context, builder, sig, args):
        arrays = Arrays(context, builder, sig, args)

        def eight(x):
            one = builder.insert_element(ir.Constant(_EIGHT_FLOATS, ir.Undefined), x, I32(0))
            return builder.shuffle_vector(one, one, order(*[0] * 8))

        def floats(array, at):
            return builder.sitofp(builder.zext(arrays.load(array, at, _EIGHT), _EIGHT_WORDS), _EIGHT_FLOATS)

        total, (a, b, c) = I64(0), (eight(x) for x in args[5:8])
        for part in range(8):
            place = builder.add(args[4], I64(8 * part))
            room = builder.fadd(builder.fmul(floats(2, place), a), builder.fmul(floats(3, place), b))
            room = builder.fadd(room, c)
            # Unordered: what is no number, of queries or vectors beyond all measure, is looked at.
            below = builder.fcmp_unordered("<=", floats(0, builder.add(args[1], I64(8 * part))), room)
            mask = builder.zext(builder.bitcast(below, ir.IntType(8)), I64)
            total = builder.or_(total, builder.shl(mask, I64(8 * part)))
        return total

    return signature, codegen


@njit(cache=True, nogil=True)
def _tabled(costs, mean, q, f, extents, table):
    """Writes the table of a query; gives its step, and what sums of 0 stand for."""
    g = np.float32(2) if costs.kind == SQUARES else np.float32(1)
    base, zero = np.float32(0), np.float32(0)
    v, n = costs.queries[q], costs.where.n_columns
    for c in range(n):
        begin = costs.term[c]
        for t in range(begin, costs.term[c + 1]):
            _products(g * v[costs.member[t]], mean, mean, 16 * t, zero, zero, f, 16 * c, t > begin)
        base += _spanned(f, c, extents)
    step = np.float32(1e-30)
    room = np.float32(min(255, 65535 // max(1, n // 8 + n % 8)))
    for g in range(0, n // 8 * 8, 8):
        reach = np.float32(0)
        for c in range(g, g + 8):
            reach += _at(extents, n + c)
        step = max(step, reach / room)
    for c in range(n // 8 * 8, n):
        step = max(step, extents[1, c] / room)
    for c in range(n):
        _stepped(f, 16 * c, extents[0, c], np.float32(1) / step, room, table)
    return step, base + step * np.float32(0.5 * n)  # entries are rounded down by half a step, as they come


def _tabled_plain(costs: Costs, known: Estimates, q: int) -> tuple[np.ndarray, np.float32, np.float32]:
    """`_tabled` in NumPy: (table, step, base)."""
    n, one = costs.where.n_columns, np.float32
    f, base, step = np.zeros((n, 16), one), one(0), one(1e-30)
    for c in range(n):
        for t in range(costs.term[c], costs.term[c + 1]):
            f[c] += -(costs.queries[q, costs.member[t]] * one(2 if costs.kind == SQUARES else 1)) * known.mean[t]
        base += f[c].min()
    low, high = f.min(1), f.max(1)
    room = one(min(255, 65535 // max(1, n // 8 + n % 8)))
    for columns in [
        *(range(g, g + 8) for g in range(0, n // 8 * 8, 8)),
        *(range(c, c + 1) for c in range(n // 8 * 8, n)),
    ]:
        reach = one(0)
        for c in columns:
            reach += high[c] - low[c]
        step = max(step, reach / room)
    table = np.minimum((f - low[:, None]) * (one(1) / step), room).astype(np.uint8)
    return table, step, base + step * one(0.5 * n)


@njit(cache=True, nogil=True)
def _estimated(part, begin, end, b, known, step, base, weight, dead, sums, short, place):
    """Puts vectors of least estimates on the short list: those of blocks begin … end − 1 of 64 of a part, block b of the index.

    base: of a sum of 0, with what the query costs at the origin. weight: κ. sums: of the blocks. place: of those on the list,
    block · 2³² + vector of it.
    """
    n, _, numbers, _ = part
    own, norms, first = known.own, known.norms, known.at[b]
    low, unit = weight * known.low[b], weight * known.step[b]
    norm_low, norm_unit = known.norm_low[b], known.norm_step[b]
    for block in range(begin, end):
        slope, norm_slope, room, worst = np.float32(0), np.float32(0), np.float32(np.inf), short[0]
        if worst < np.inf:
            slope, norm_slope = -unit / step, worst * norm_unit / step
            room = (worst * norm_low - base - low) / step + np.float32(_SLACK)
        at, own_at = 64 * (block - begin), first + 64 * block
        mask = _below(sums, at, own, norms, own_at, slope, norm_slope, room)
        while mask:
            s = _lowest(mask)
            mask &= mask - np.uint64(1)
            i = 64 * block + _vector(s)
            if i >= n or (dead.shape[0] and dead[numbers[i]]):
                continue
            found = base + step * np.float32(sums[at + s]) + (low + unit * np.float32(own[own_at + s]))
            nu = norm_low + norm_unit * np.float32(norms[own_at + s])
            _push(short, place, found / nu if nu > 0 else np.float32(0), np.int64(b) << 32 | i)


@intrinsic
def _of_scalars(typingctx, codes, at, up, bit, fields, n, levels, v, o, product):
    """What the first n codes of a vector cost, n a multiple of 16, each of one coordinate; the sum of 16 sums of every 16th, in
    halves. at: byte of its first column. up: 4 for the high nibble. bit: of its first fine bit. fields: see `_fields`."""
    signature = types.float32(codes, at, up, bit, fields, n, levels, v, o, product)

    def codegen(context, builder, sig, args):
        arrays = Arrays(context, builder, sig, args)
        codes = context.make_array(sig.args[0])(context, builder, args[0])
        last = splat(builder, builder.trunc(builder.sub(codes.nitems, I64(4)), I32))
        at, up, bit = (splat(builder, builder.trunc(x, I32)) for x in args[1:4])
        total = cgutils.alloca_once_value(builder, ir.Constant(FLOATS, None))
        product = builder.icmp_unsigned("!=", args[9], args[9].type(0))

        def word(byte, shift):
            """The 32 bits at a byte of the codes, from one on; none are read behind the last."""
            inside = builder.select(builder.icmp_signed("<", byte, last), byte, last)
            beyond = builder.and_(builder.shl(builder.sub(byte, inside), all_lanes(WORDS, 3)), all_lanes(WORDS, 31))
            return builder.lshr(arrays.words(0, inside), builder.add(shift, beyond))

        with cgutils.for_range(builder, builder.lshr(args[5], I64(4)), intp=I64) as loop:
            first = builder.mul(loop.index, I64(LANES))
            column, shift, mask, low, low_mask, fine, start = (
                arrays.load(4, builder.add(builder.mul(args[5], I64(f)), first), WORDS) for f in range(7)
            )
            code = builder.and_(word(builder.add(at, column), builder.add(up, shift)), mask)
            fine = builder.add(bit, fine)
            fine = word(builder.lshr(fine, all_lanes(WORDS, 3)), builder.and_(fine, all_lanes(WORDS, 7)))
            code = builder.or_(builder.shl(code, low), builder.and_(fine, low_mask))
            y = arrays.gather(6, builder.add(start, code))
            v, o = (arrays.load(i, first, FLOATS) for i in (7, 8))
            x = builder.fadd(o, y)
            d = builder.fsub(v, x)
            cost = builder.select(product, builder.fmul(builder.fneg(v), x), builder.fmul(d, d))
            builder.store(builder.fadd(builder.load(total), cost), total)
        found, half = builder.load(total), LANES // 2
        while half:
            a, b = (builder.shuffle_vector(found, found, order(*range(i, i + half))) for i in (0, half))
            found, half = builder.fadd(a, b), half // 2
        return builder.extract_element(found, I32(0))

    return signature, codegen


def _fields(costs: Costs) -> np.ndarray:
    """int32 (7, n): of the first n codes, a multiple of 16, while each is of one coordinate: byte of the column, shift and mask
    in the nibble, fine bits, their mask and place, and where levels start."""
    column, shift, mask, low, fine, start, _, width = costs.steps.T
    n = int(np.argmax(width != 1)) if (width != 1).any() else len(width)
    column = 32 * np.maximum(column, 0)  # where there is none, the mask is 0
    found = np.stack([column, shift, mask, low, (1 << low) - 1, fine, start])
    return np.ascontiguousarray(found[:, : n // LANES * LANES], np.int32)


@njit(cache=True, nogil=True)
def _true(kind, where, levels, steps, fields, codes, fine, i, v, o):
    """What vector i of a part costs, as its code says: SQUARES and PRODUCTS, in float32."""
    at, up = 32 * where.n_columns * (i // 64) + i % 32, 4 * (i % 64 // 32)
    bit, n = 8 * fine + i * where.n_fine, fields.shape[1]
    total = _of_scalars(codes, at, up, bit, fields, n, levels, v, o, kind == PRODUCTS)
    for p in range(8 * n, steps.size, 8):
        column, low = max(np.int64(_at(steps, p)), 0), np.int64(_at(steps, p + 3))
        code = (np.int64(_at(codes, at + 32 * column) >> up) >> _at(steps, p + 1)) & _at(steps, p + 2)
        code = code << low | fine_code(codes, bit + _at(steps, p + 4), low)
        width, begin = np.int64(_at(steps, p + 7)), np.int64(_at(steps, p + 6))
        y = np.int64(_at(steps, p + 5)) + code * width
        for j in range(width):
            total += _exactly(kind, _at(v, begin + j), _at(o, begin + j) + _at(levels, y + j))
    return total


@njit(cache=True, nogil=True)
def _shortly(
    counter, costs, blocks, known, fields, first, share, query, list_, offset, weight, dead, short, place, cost, number
):
    """Shares s of queries first[s] … and of their pairs with lists share[s] …; see `shortlisted`."""
    costs, mean, dead = _lent_costs(costs), _lent(known.mean), _lent(dead)
    known = Estimates(
        mean, _lent(known.still), _lent(known.at), _lent(known.own), _lent(known.low), _lent(known.step), _lent(known.norms),
        _lent(known.norm_low), _lent(known.norm_step),
    )  # fmt: skip
    short, place, cost, number = _lent(short), _lent(place), _lent(cost), _lent(number)
    blocks = Codes(_lent(blocks.address), _lent(blocks.numbers), _lent(blocks.n), _lent(blocks.first))
    n_columns, most = costs.where.n_columns, np.max(first[1:] - first[:-1])
    f, extents = np.empty((n_columns, 16), np.float32), np.empty((2, n_columns), np.float32)
    table, made = np.empty((most, n_columns * 16), np.uint8), np.empty((most, 2), np.float32)
    piece = min(max(1, _CACHED // (32 * n_columns)), _PIECE)
    sums, shifted = np.empty((2, 64 * piece), np.uint16), np.empty((2, costs.queries.shape[1]), np.float32)
    while True:
        s = take(counter, np.int64(1))
        if s >= first.shape[0] - 1:
            return
        for q in range(first[s], first[s + 1]):
            made[q - first[s]] = _tabled(costs, mean, q, f, extents, _lent(table[q - first[s]]))
        p, end = share[s], share[s + 1]
        while p < end:
            alike = p + 1
            while alike < end and list_[alike] == list_[p]:
                alike += 1
            for b in range(blocks.first[list_[p]], blocks.first[list_[p] + 1]):
                part = _block(costs, blocks, b)
                n_groups = (part[0] + 63) // 64
                for begin in range(0, n_groups, piece):  # read by all queries of the list while it is in the cache
                    stop = min(begin + piece, n_groups)
                    for at in range(p, alike, 2):
                        t, u = query[at] - first[s], query[min(at + 1, alike - 1)] - first[s]
                        _sum_two(
                            part[1], 32 * n_columns * begin, n_columns, stop - begin, table, 16 * n_columns * t,
                            16 * n_columns * u, sums, 64 * piece,
                        )  # fmt: skip
                        for i in range(at, min(at + 2, alike)):
                            q = query[i]
                            step, base = made[q - first[s], 0], made[q - first[s], 1] + offset[i]
                            _estimated(
                                part,
                                begin,
                                stop,
                                b,
                                known,
                                step,
                                base,
                                weight[i],
                                dead,
                                sums[i - at],
                                short[q],
                                place[q],
                            )
            p = alike
        for q in range(first[s], first[s + 1]):
            for x in place[q]:
                if x < 0:
                    continue
                b, i = x >> 32, x & 0xFFFFFFFF
                _, codes, numbers, fine = _block(costs, blocks, b)
                v, o = costs.queries[q], costs.origins[np.searchsorted(blocks.first, b, side="right") - 1]
                if costs.kind == COSINES:
                    shifted[0], shifted[1] = v, o
                    c = _cosine_of(costs, codes, fine, i // 64, i % 64, shifted)
                else:
                    c = _true(costs.kind, costs.where, costs.levels, costs.steps, fields, codes, fine, i, v, o)
                _push(cost[q], number[q], c, numbers[i])


def shortlisted(
    costs: Costs,
    codes: Codes,
    known: Estimates,
    k: int,
    near: np.ndarray,
    r: int,
    *,
    dead: np.ndarray | None = None,
    threads: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of every query among the r vectors (k at least) of its lists that have the least estimates, as `neighbours`
    gives them. near: int64 (n, n_probe), nearest first, each once. Of equal estimates those of earlier blocks are on the list.

    Without a column there is nothing to estimate by, and all are costed.
    """
    if not costs.where.n_columns:
        return neighbours(costs, codes, k, near=near, dead=dead, threads=threads)
    costs = _centred(costs)
    n, r = len(costs.queries), max(k, min(r, int(codes.n.sum())))
    cost, number = np.full((n, k), np.inf, np.float32), np.full((n, k), -1, np.int64)
    if n:
        n_shares = max(min(n, threads if threads == 1 else _SHARES * threads), -(-n // _QUERIES))
        first = np.linspace(0, n, n_shares + 1).astype(np.int64)
        # A query's nearest list first, for a worst to compare with; then list by list, so that a list is read while in the cache.
        group = np.repeat(np.arange(n_shares), np.diff(first))
        key = (2 * group[:, None] + (np.arange(near.shape[1]) > 0)) * len(costs.origins) + near
        order_ = np.argsort(key.astype(np.min_scalar_type(key.max())), axis=None, kind="stable")
        query, list_ = order_ // near.shape[1], near.reshape(-1)[order_]
        offset, weight = (x[query, list_] for x in _at_origins(costs, known, threads))
        short, place = np.full((n, r), np.inf, np.float32), np.full((n, r), -1, np.int64)
        divide(
            min(threads, n_shares), _shortly, costs, codes, known, _fields(costs), first, first * near.shape[1], query, list_,
            offset, weight, np.empty(0, bool) if dead is None else dead, short, place, cost, number,
        )  # fmt: skip
    order_ = np.lexsort((number, cost), axis=1)
    return np.take_along_axis(cost, order_, 1), np.take_along_axis(number, order_, 1)


def _at_origins(costs: Costs, known: Estimates, threads: int) -> tuple[np.ndarray, np.ndarray]:
    """(n_queries, n_lists) float32: what a query costs at the origin of a list, but for what it costs at all alike; and κ."""
    products = product(costs.queries, costs.origins, transposed=True, threads=threads)
    power = np.square(costs.origins).sum(1)
    if costs.kind == SQUARES:
        return power - np.float32(2) * products, np.broadcast_to(np.float32(1), products.shape)
    weight = np.divide(products, power, out=np.zeros_like(products), where=power > 0)
    # Divided by norms, what coordinates without a column cost is not alike.
    still = product(costs.queries, known.still[:, None]) if costs.kind == COSINES else np.float32(0)
    return -products - still, weight


def shortlisted_plain(
    costs: Costs,
    blocks: list[tuple[int, np.ndarray, np.ndarray]],
    known: Estimates,
    k: int,
    near: np.ndarray,
    r: int,
    dead: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`shortlisted` in NumPy: all vectors are estimated and costed, and then sorted. blocks: (list, codes, numbers)."""
    if not costs.where.n_columns:
        return neighbours_plain(costs, blocks, k, near, dead)
    n, one = len(near), np.float32
    cost, number = np.full((n, k), np.inf, one), np.full((n, k), -1, np.int64)
    costs = _centred(costs)
    offset, weight = _at_origins(costs, known, 1)
    places = np.argsort([_vector(i) for i in range(64)])
    for q in range(n):
        table, step, base = _tabled_plain(costs, known, q)
        listed, true = [], {}
        for b, (list_, codes, numbers) in enumerate(blocks):
            if list_ not in near[q]:
                continue
            sums = np.concatenate([block_sums_plain(codes, i, table) for i in range(-(-len(numbers) // 64))])
            own, norms = (
                x[known.at[b] : known.at[b] + len(sums)].reshape(-1, 64)[:, places].reshape(-1).astype(one)
                for x in (known.own, known.norms)
            )
            kappa = weight[q, list_]
            found = (base + offset[q, list_]) + step * sums.astype(one)
            found = found + (kappa * known.low[b] + (kappa * known.step[b]) * own)
            nu = known.norm_low[b] + known.norm_step[b] * norms
            found = np.divide(found, nu, out=np.zeros(len(nu), one), where=nu > 0)
            true[b] = _true_plain(costs, q, list_, unpack_columns_plain(codes, costs.where, len(numbers)))
            listed += [(found[i], b, i) for i, v in enumerate(numbers) if dead is None or not dead[v]]
        best = sorted((true[b][i], blocks[b][2][i]) for _, b, i in sorted(listed)[: max(k, r)])[:k]
        for i, pair in enumerate(best):
            cost[q, i], number[q, i] = pair
    return cost, number


def _true_plain(costs: Costs, q: int, list_: int, index: np.ndarray) -> np.ndarray:
    """`_true`, and what COSINES cost, of codes (n, n_codes)."""
    if costs.kind == COSINES:
        return costs_plain(costs, q, list_, index)
    widths = np.diff(costs.first)
    each_code = zip(costs.start, index.T.astype(np.int64), widths, strict=False)
    at = np.concatenate([s + c[:, None] * w + np.arange(w) for s, c, w in each_code], 1)
    x, v = costs.origins[list_] + costs.levels[at], costs.queries[q]
    each = np.square(v - x) if costs.kind == SQUARES else -v * x
    n = _fields(costs).shape[1]
    total = np.zeros((len(index), LANES), np.float32)
    for g in range(0, n, LANES):
        total += each[:, g : g + LANES]
    while total.shape[1] > 1:
        half = total.shape[1] // 2
        total = total[:, :half] + total[:, half:]
    total = total[:, 0]
    for j in range(n, len(v)):
        total = total + each[:, j]
    return total
