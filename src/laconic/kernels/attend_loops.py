"""The loops of `laconic.kernels.attend`: codes to 16-bit levels in registers, scores, weights and sums in integers.

A *pair* is two coordinates of equal bits. Keys are unpacked to words of 32 bits, a token's two levels of a pair in each
(`vpmaddwd` multiplies and adds both); values to 16-bit levels, token behind token. Levels are at most 8,191, so that no sum of
products leaves 32 bits: 64 tokens' weights of 15 bits do not, nor does a query or a synthesis scaled to fit.
"""

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from laconic.kernels.packed import widths
from laconic.kernels.sharing import take
from laconic.kernels.vectors import F32, I8, I32, I64, Arrays, all_lanes, call, has, order

__all__ = [
    "FINE",
    "LANES",
    "PLANES",
    "RUN",
    "Reading",
    "Turning",
    "attend_runs",
    "fold_queries",
    "into_basis",
    "merge_runs",
    "out_of_basis",
]

RUN = 16  # blocks whose scores are kept together: the unit of work, and of merging
_TOKENS = 64 * RUN
_GROUP = 4  # blocks of values that are unpacked at a time, _PART pairs of coordinates of them
_PART = 16
_BLOCK_LEVELS = 2 * _PART * 64
FINE = 8191  # what levels are scaled to: 64 tokens' of that times 15-bit weights fill 32 bits
_SHORT = 32767
LANES = 16 if has("avx512bw") else 8
PLANES = has("avx2") and LANES == 8  # tables are looked up byte by byte

_I16 = ir.IntType(16)
FLOATS, WORDS, SHORTS = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES), ir.VectorType(_I16, 2 * LANES)
_BYTES, _HALF_BYTES, _EIGHT_WORDS = ir.VectorType(I8, 32), ir.VectorType(I8, 16), ir.VectorType(I32, 8)


class Reading(NamedTuple):
    """A history as kernels read it: `Coded` and `Decoder`, arrays only. sizes: int64 (n_heads,), bytes of a head's block."""

    places: np.ndarray
    scales: np.ndarray
    page_blocks: int
    sizes: np.ndarray
    head_at: np.ndarray
    ends: np.ndarray
    at: np.ndarray
    table_at: np.ndarray
    tables: np.ndarray


class Turning(NamedTuple):
    """How keys turn: `Rope`, arrays only. step: float64 (2, p), cosines and sines of a block's turn."""

    first: int
    inv_freq: np.ndarray
    step: np.ndarray
    channels: np.ndarray
    turn: np.ndarray
    chosen: np.ndarray
    counts: np.ndarray
    matrix: np.ndarray
    means: np.ndarray
    unit: np.ndarray


# --- Vector code ------------------------------------------------------------------------------------------------------

# Two vectors of 32 bits packed to 16 keep each 128-bit lane to itself; unpacking and interleaving undo that. Tokens are in
# that order while they are 16 bits wide, and 32 bytes are in the order that unpacks to it.
_SHORT_ORDER = [LANES * half + 4 * lane + k for lane in range(LANES // 4) for half in (0, 1) for k in range(4)]
if PLANES:
    _BYTE_ORDER = [16 * half + t for lane in (0, 1) for half in (0, 1) for t in _SHORT_ORDER[8 * lane : 8 * lane + 8]]
else:
    _BYTE_ORDER = [first + t for first in range(0, 32, 2 * LANES) for t in _SHORT_ORDER]


@intrinsic
def _pointer(typingctx, address):
    """An address as a pointer to bytes."""

    def codegen(context, builder, sig, args):
        return builder.inttoptr(args[0], I8.as_pointer())

    return types.CPointer(types.uint8)(address), codegen


@intrinsic
def _widen(typingctx, half, at, out, out_at):
    """16 float16, given as their bits, as float32."""
    signature = types.void(half, at, out, out_at)

    def codegen(context, builder, sig, args):
        arrays = Arrays(context, builder, sig, args)
        sixteen = arrays.side(0, args[1])
        builder.store(sixteen, arrays.place(2, args[3], sixteen.type), align=4)
        return context.get_dummy_value()

    return signature, codegen


def _splat(builder, value):
    """A scalar in every lane, of which there are as many as this machine has."""
    nothing = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
    one = builder.insert_element(nothing, value, I32(0))
    return builder.shuffle_vector(one, one, order(*[0] * LANES))


def _fma(builder, a, b, c):
    return call(builder, f"llvm.fma.v{LANES}f32", FLOATS, [a, b, c])


def _dot2(builder, total, a, b):
    """total[i] += Σ_k a[2 i + k] · b[2 i + k] in 16-bit integers, two to a word; all <LANES x i32>."""
    if LANES == 16 and has("avx512vnni"):
        return call(builder, "llvm.x86.avx512.vpdpwssd.512", WORDS, [total, a, b])
    a, b = builder.bitcast(a, SHORTS), builder.bitcast(b, SHORTS)
    if LANES == 16:
        return builder.add(total, call(builder, "llvm.x86.avx512.pmaddw.d.512", WORDS, [a, b]))
    if has("avx2"):
        return builder.add(total, call(builder, "llvm.x86.avx2.pmadd.wd", WORDS, [a, b]))
    wide = ir.VectorType(I32, 2 * LANES)
    products = builder.mul(builder.sext(a, wide), builder.sext(b, wide))
    even, odd = (builder.shuffle_vector(products, products, order(*range(k, 2 * LANES, 2))) for k in (0, 1))
    return builder.add(total, builder.add(even, odd))


def _variables(builder, kind, n):
    return [cgutils.alloca_once(builder, kind) for _ in range(n)]


def _zero(builder, variables):
    for v in variables:
        builder.store(ir.Constant(v.type.pointee, None), v)


def _codes(builder, arrays, at, bits):
    """Codes of 64 tokens from byte `at` of array 0: two <32 x i8>, each in the order of _BYTE_ORDER."""
    halves, low = [None, None], 0
    for w in widths(bits):
        x = arrays.load(0, builder.add(at, I64(8 * low)), ir.VectorType(I8, 8 * w))
        if w == 4:
            x = builder.shuffle_vector(x, x, order(*_BYTE_ORDER))
        for half in (0, 1):
            tokens = [32 * half + t for t in _BYTE_ORDER]
            if w == 8:
                part = builder.shuffle_vector(x, x, order(*tokens))
            elif w == 4:
                part = builder.lshr(x, all_lanes(_BYTES, 4)) if half else builder.and_(x, all_lanes(_BYTES, 15))
            elif w == 2:  # four neighbours shift alike
                part = builder.bitcast(builder.shuffle_vector(x, x, order(*[t % 16 for t in tokens])), _EIGHT_WORDS)
                part = builder.lshr(part, ir.Constant(_EIGHT_WORDS, [t // 16 * 2 for t in tokens[::4]]))
                part = builder.and_(part, all_lanes(_EIGHT_WORDS, 0x03030303))
                part = builder.bitcast(builder.shl(part, all_lanes(_EIGHT_WORDS, low)) if low else part, _BYTES)
            else:
                part = builder.shuffle_vector(x, x, order(*[t // 8 for t in tokens]))
                there = builder.and_(part, ir.Constant(_BYTES, [1 << t % 8 for t in tokens]))
                there = builder.icmp_unsigned("!=", there, ir.Constant(_BYTES, None))
                part = builder.and_(builder.sext(there, _BYTES), all_lanes(_BYTES, 1 << low))
            halves[half] = part if halves[half] is None else builder.or_(halves[half], part)
        low += w
    return halves


def _narrowed(builder, found, index, bit):
    """One of several lookups, by the bits of the index from `bit` on."""
    while len(found) > 1:
        zero = ir.Constant(index.type, None)
        high = builder.icmp_unsigned("!=", builder.and_(index, all_lanes(index.type, bit)), zero)
        found = [builder.select(high, b, a) for a, b in zip(found[::2], found[1::2], strict=True)]
        bit *= 2
    return found[0]


def _interleaved(builder, a, b, high):
    """Neighbours of the low or high halves of each 128-bit lane of a and b."""
    n = a.type.count
    per = 128 // a.type.element.width
    first = [lane + high * per // 2 + i for lane in range(0, n, per) for i in range(per // 2)]
    return builder.shuffle_vector(a, b, order(*[j for i in first for j in (i, i + n)]))


def _looked_up(builder, arrays, at, codes, bits):
    """Levels of 32 tokens from entry `at` of array 1: vectors of 2 · LANES shorts, each in the order of _SHORT_ORDER."""
    n_sixteens = max(1, 1 << bits >> 4)
    if PLANES:
        planes = []
        low = builder.and_(codes, all_lanes(_BYTES, 127)) if bits == 8 else codes  # a byte with its top bit set finds 0
        for k in (0, 1):
            found = []
            for s in range(n_sixteens):
                sixteen = arrays.load(1, builder.add(at, I64(16 * s + 8 * k)), _HALF_BYTES)
                table = builder.shuffle_vector(sixteen, sixteen, order(*list(range(16)) * 2))
                found.append(call(builder, "llvm.x86.avx2.pshuf.b", _BYTES, [table, low]))
            planes.append(_narrowed(builder, found, codes, 16))
        return [builder.bitcast(_interleaved(builder, *planes, high), SHORTS) for high in (0, 1)]
    parts = []
    for first in range(0, 32, 2 * LANES):
        index = builder.shuffle_vector(codes, codes, order(*range(first, first + 2 * LANES)))
        index = builder.zext(index, SHORTS)
        if LANES == 16:
            tables = [arrays.load(1, builder.add(at, I64(32 * s)), SHORTS) for s in range(max(1, n_sixteens // 2))]
            if len(tables) == 1:
                parts.append(call(builder, "llvm.x86.avx512.permvar.hi.512", SHORTS, [tables[0], index]))
                continue
            name = "llvm.x86.avx512.vpermi2var.hi.512"
            two = zip(tables[::2], tables[1::2], strict=True)
            parts.append(_narrowed(builder, [call(builder, name, SHORTS, [a, index, b]) for a, b in two], index, 64))
            continue
        found = ir.Constant(SHORTS, ir.Undefined)
        for lane in range(2 * LANES):
            place = builder.add(at, builder.zext(builder.extract_element(index, I32(lane)), I64))
            found = builder.insert_element(found, arrays.load(1, place, _I16), I32(lane))
        parts.append(found)
    return parts


@intrinsic
def _unpack(typingctx, codes, tables, at, table_at, ends, head, first, last, out, out_at, joined):
    """Levels of 64 tokens, pairs first … last − 1 of a head, to `out`, int16.

    joined: a pair's levels of each token next to each other, 128 for each pair; else 64 for each coordinate, tokens in the order
    of _SHORT_ORDER. codes: a block. at, table_at, ends: as in `Decoder`. joined: length of a tuple.
    """
    signature = types.void(codes, tables, at, table_at, ends, head, first, last, out, out_at, joined)

    def codegen(context, builder, sig, args):
        arrays = Arrays(context, builder, sig, args)
        n_pairs = builder.extract_value(context.make_array(sig.args[2])(context, builder, args[2]).shape, 1)
        row = builder.mul(args[5], n_pairs)

        def furthest(a, b, sense):
            return builder.select(builder.icmp_signed(sense, a, b), a, b)

        for bits in range(1, 9):
            end = builder.add(builder.mul(args[5], I64(9)), I64(bits))
            low = furthest(arrays.load(4, builder.sub(end, I64(1)), I64), args[6], ">")
            high = furthest(arrays.load(4, end, I64), args[7], "<")
            with cgutils.for_range_slice(builder, low, high, I64(1), intp=I64) as (pair, _):
                levels = []
                for e in (0, 1):
                    where = builder.add(builder.mul(builder.add(row, pair), I64(2)), I64(e))
                    halves = _codes(builder, arrays, arrays.load(2, where, I64), bits)
                    table = arrays.load(3, where, I64)
                    levels.append([v for codes in halves for v in _looked_up(builder, arrays, table, codes, bits)])
                place = builder.add(args[9], builder.mul(builder.sub(pair, args[6]), I64(128)))
                if joined.count:
                    for i, (a, b) in enumerate(zip(*levels, strict=True)):
                        for high in (0, 1):
                            at = builder.add(place, I64((2 * i + high) * 2 * LANES))
                            builder.store(_interleaved(builder, a, b, high), arrays.place(8, at, SHORTS), align=2)
                    continue
                for i, v in enumerate(levels[0] + levels[1]):
                    at = builder.add(place, I64(i * 2 * LANES))
                    builder.store(v, arrays.place(8, at, SHORTS), align=2)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def _score(typingctx, words, n, q, q_at, side, side_at, factor, factor_at, scores, scores_at, stride, queries):
    """scores[g, t] = side[0, g] · factor[t] · Σ_i words[i, t] · q[i, g] + side[1, g] for 64 tokens, i < n pairs.

    words: int16, 128 a pair. q: int32, two int16 each, rows of len(queries), which is 1, 2 or 4. scores: rows `stride` apart.
    """
    signature = types.void(words, n, q, q_at, side, side_at, factor, factor_at, scores, scores_at, stride, queries)
    n_queries = queries.count
    n_vectors = min(64 // LANES, 8 // n_queries)

    def codegen(context, builder, sig, args):
        arrays = Arrays(context, builder, sig, args)
        totals = [_variables(builder, WORDS, n_vectors) for _ in range(n_queries)]
        for first in range(0, 64, n_vectors * LANES):
            for row in totals:
                _zero(builder, row)
            with cgutils.for_range(builder, args[1], intp=I64) as i:
                at = builder.add(builder.mul(i.index, I64(128)), I64(2 * first))
                pair = [arrays.load(0, builder.add(at, I64(2 * v * LANES)), WORDS) for v in range(n_vectors)]
                for g in range(n_queries):
                    at = builder.add(args[3], builder.add(builder.mul(i.index, I64(n_queries)), I64(g)))
                    one = _splat(builder, arrays.load(2, at, I32))
                    for v in range(n_vectors):
                        builder.store(_dot2(builder, builder.load(totals[g][v]), pair[v], one), totals[g][v])
            factors = [arrays.load(6, builder.add(args[7], I64(first + v * LANES)), FLOATS) for v in range(n_vectors)]
            for g in range(n_queries):
                unit, constant = (
                    _splat(builder, arrays.load(4, builder.add(args[5], I64(g + k * n_queries)), F32)) for k in (0, 1)
                )
                row = builder.add(args[9], builder.mul(args[10], I64(g)))
                for v in range(n_vectors):
                    x = builder.fmul(builder.sitofp(builder.load(totals[g][v]), FLOATS), unit)
                    place = arrays.place(8, builder.add(row, I64(first + v * LANES)), FLOATS)
                    builder.store(_fma(builder, x, factors[v], constant), place, align=4)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def _turned(
    typingctx, words, chosen, n, s, s_at, mean, mean_at, factor, factor_at, unit, turn, turn_at, q, q_at, q_half, n_queries,
    scores, scores_at, stride, rotated,
):  # fmt: skip
    """Scores of 4 channels of 64 keys, which are formed on the way.

    k[c, t] = mean[c] + unit · factor[t] · Σ_i words[chosen[i], t] · s[i, c], i < n; rotated: channels (0, 2) by turn[0, :, t],
    and (1, 3) by turn[1, :, t]; scores[g, t] += Σ_c q[g, c] · k[c, t]. words: int16, 128 a pair; s: (…, 4) int32, two int16
    each, and chosen: from s_at · 4 and s_at; q: channels 0, 1 and 2, 3 of query g from q_at + (2 g) · q_half and
    q_at + (2 g + 1) · q_half on. rotated: length of a tuple.
    """
    signature = types.void(
        words, chosen, n, s, s_at, mean, mean_at, factor, factor_at, unit, turn, turn_at, q, q_at, q_half, n_queries,
        scores, scores_at, stride, rotated,
    )  # fmt: skip

    def codegen(context, builder, sig, args):
        arrays = Arrays(context, builder, sig, args)
        totals = [_variables(builder, WORDS, 2) for _ in range(4)]
        for first in range(0, 64, 2 * LANES):
            for row in totals:
                _zero(builder, row)
            with cgutils.for_range(builder, args[2], intp=I64) as i:
                where = builder.add(args[4], i.index)
                at = builder.mul(builder.zext(arrays.load(1, where, I32), I64), I64(128))
                pair = [arrays.load(0, builder.add(at, I64(2 * (first + v * LANES))), WORDS) for v in (0, 1)]
                for c in range(4):
                    at = builder.add(builder.mul(where, I64(4)), I64(c))
                    one = _splat(builder, arrays.load(3, at, I32))
                    for v in (0, 1):
                        builder.store(_dot2(builder, builder.load(totals[c][v]), pair[v], one), totals[c][v])
            for v in (0, 1):
                t = first + v * LANES
                near = arrays.load(7, builder.add(args[8], I64(t)), FLOATS)
                near = builder.fmul(near, _splat(builder, args[9]))
                k = []
                for c in range(4):
                    middle = _splat(builder, arrays.load(5, builder.add(args[6], I64(c)), F32))
                    k.append(_fma(builder, builder.sitofp(builder.load(totals[c][v]), FLOATS), near, middle))
                if rotated.count:
                    for a, b in ((0, 2), (1, 3)):
                        at = builder.add(args[11], I64(128 * a + t))
                        cos, sin = (arrays.load(10, builder.add(at, I64(o)), FLOATS) for o in (0, 64))
                        x = _fma(builder, k[a], cos, builder.fneg(builder.fmul(k[b], sin)))
                        k[a], k[b] = x, _fma(builder, k[b], cos, builder.fmul(k[a], sin))
                with cgutils.for_range(builder, args[15], intp=I64) as g:
                    row = builder.add(args[17], builder.mul(g.index, args[18]))
                    place = arrays.place(16, builder.add(row, I64(t)), FLOATS)
                    total = builder.load(place, align=4)
                    for c in range(4):
                        half = builder.mul(builder.add(builder.mul(g.index, I64(2)), I64(c // 2)), args[14])
                        at = builder.add(args[13], builder.add(half, I64(c % 2)))
                        total = _fma(builder, k[c], _splat(builder, arrays.load(12, at, F32)), total)
                    builder.store(total, place, align=4)
        return context.get_dummy_value()

    return signature, codegen


_LOG2E, _LN2_HIGH, _LN2_LOW = 1.4426950408889634, 0.693359375, -2.12194440e-4
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_NEAR = 12582912.0  # 1.5 · 2^23: adding it rounds to integers


def _exp(builder, x):
    """e^x for x ≤ 0, 0 below −87; a NaN stays. Cephes' polynomial, within 2 units of the last place."""
    near = all_lanes(FLOATS, _NEAR)
    shifted = _fma(builder, x, all_lanes(FLOATS, _LOG2E), near)
    n = builder.fsub(shifted, near)
    r = _fma(builder, n, all_lanes(FLOATS, -_LN2_HIGH), x)
    r = _fma(builder, n, all_lanes(FLOATS, -_LN2_LOW), r)
    y = all_lanes(FLOATS, _EXP[0])
    for c in _EXP[1:]:
        y = _fma(builder, y, r, all_lanes(FLOATS, c))
    y = _fma(builder, builder.fmul(y, r), r, builder.fadd(r, all_lanes(FLOATS, 1.0)))
    scale = builder.add(
        builder.shl(builder.bitcast(shifted, WORDS), all_lanes(WORDS, 23)), all_lanes(WORDS, 0x3F800000)
    )
    y = builder.fmul(y, builder.bitcast(scale, FLOATS))
    return builder.select(builder.fcmp_ordered("<", x, all_lanes(FLOATS, -87.0)), ir.Constant(FLOATS, None), y)


def _across(builder, x, join):
    """All lanes of a vector joined to one."""
    while x.type.count > 1:
        x = join(*(builder.shuffle_vector(x, x, order(*range(k, x.type.count, 2))) for k in (0, 1)))
    return builder.extract_element(x, I32(0))


def _greater(builder):
    return lambda a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b)


@intrinsic
def _greatest(typingctx, scores, at, n):
    """The greatest of n float32; NaNs are passed over. n: a multiple of 16."""
    signature = types.float32(scores, at, n)

    def codegen(context, builder, sig, args):
        arrays = Arrays(context, builder, sig, args)
        best = _variables(builder, FLOATS, 1)[0]
        builder.store(all_lanes(FLOATS, -np.inf), best)
        with cgutils.for_range(builder, builder.udiv(args[2], I64(LANES)), intp=I64) as i:
            x = arrays.load(0, builder.add(args[1], builder.mul(i.index, I64(LANES))), FLOATS)
            builder.store(_greater(builder)(x, builder.load(best)), best)
        return _across(builder, builder.load(best), _greater(builder))

    return signature, codegen


def _packed(builder, a, b):
    """Two vectors of integers below 2^15 in size, given as floats, to shorts in the order of _SHORT_ORDER."""
    near = all_lanes(FLOATS, _NEAR)
    a, b = (builder.sub(builder.bitcast(builder.fadd(v, near), WORDS), all_lanes(WORDS, 0x4B400000)) for v in (a, b))
    if LANES == 16:
        return call(builder, "llvm.x86.avx512.packssdw.512", SHORTS, [a, b])
    if has("avx2"):
        return call(builder, "llvm.x86.avx2.packssdw", SHORTS, [a, b])
    half = ir.VectorType(_I16, LANES)
    return builder.shuffle_vector(builder.trunc(a, half), builder.trunc(b, half), order(*_SHORT_ORDER))


@intrinsic
def _weigh(typingctx, scores, at, n, m, factor, weights, units, units_at):
    """Weights e^(scores − m) of n blocks: gives their sum; times `factor`, as shorts, to `weights`, times what to `units`.

    weights: int16, from `at` on as scores, in the order of _SHORT_ORDER; units: float32, one a block.
    """
    signature = types.float32(scores, at, n, m, factor, weights, units, units_at)

    def codegen(context, builder, sig, args):
        arrays = Arrays(context, builder, sig, args)
        (total,) = _variables(builder, FLOATS, 1)
        _zero(builder, [total])
        m, zero = _splat(builder, args[3]), ir.Constant(FLOATS, None)
        size = ir.Constant(WORDS, [0x7FFFFFFF] * LANES)
        with cgutils.for_range(builder, args[2], intp=I64) as b:
            start = builder.mul(b.index, I64(64))
            row = builder.add(args[1], start)
            kept, most, sum_, check = [], zero, zero, zero
            for t in range(0, 64, LANES):
                y = _exp(builder, builder.fsub(arrays.load(0, builder.add(row, I64(t)), FLOATS), m))
                sum_ = builder.fadd(sum_, y)
                w = builder.fmul(y, arrays.load(4, builder.add(start, I64(t)), FLOATS))
                w = builder.select(builder.fcmp_ordered("==", y, zero), zero, w)  # whatever factor nobody looks at
                kept.append(w)
                w = builder.bitcast(builder.and_(builder.bitcast(w, WORDS), size), FLOATS)
                most, check = _greater(builder)(w, most), builder.fadd(check, w)
            builder.store(builder.fadd(builder.load(total), sum_), total)
            most = _across(builder, most, _greater(builder))
            check = _across(builder, check, builder.fadd)  # not finite where any weight is not
            some = builder.fcmp_ordered(">", most, F32(1e-30))  # beside the greatest weight of a run, which is 1
            unit = builder.fdiv(most, F32(_SHORT))
            by = _splat(builder, builder.select(some, builder.fdiv(F32(1), unit), F32(0)))
            unit = builder.fadd(unit, builder.fsub(check, check))
            builder.store(unit, arrays.place(6, builder.add(args[7], b.index), F32), align=4)
            for i in range(0, len(kept), 2):
                pair = _packed(builder, *(builder.fmul(w, by) for w in kept[i : i + 2]))
                builder.store(pair, arrays.place(5, builder.add(row, I64(i * LANES)), SHORTS), align=2)
        return _across(builder, builder.load(total), builder.fadd)

    return signature, codegen


def _lane_sums(builder, vectors):
    """Sums over the lanes of eight vectors, <8 x float>."""
    while (n := vectors[0].type.count) > 8:
        halves = (order(*range(n // 2)), order(*range(n // 2, n)))
        vectors = [builder.fadd(*(builder.shuffle_vector(v, v, half) for half in halves)) for v in vectors]
    even, odd = order(0, 2, 8, 10, 4, 6, 12, 14), order(1, 3, 9, 11, 5, 7, 13, 15)
    while len(vectors) > 2:  # neighbours are added within each 128-bit lane
        vectors = [
            builder.fadd(builder.shuffle_vector(a, b, even), builder.shuffle_vector(a, b, odd))
            for a, b in zip(vectors[::2], vectors[1::2], strict=True)
        ]
    low, high = order(0, 1, 2, 3, 8, 9, 10, 11), order(4, 5, 6, 7, 12, 13, 14, 15)
    return builder.fadd(*(builder.shuffle_vector(*vectors, lanes) for lanes in (low, high)))


@intrinsic
def _mix(typingctx, levels, at, n, weights, weights_at, units, units_at, acc, acc_at, queries):
    """acc[i, g] += Σ_b units[g, b] · Σ_t weights[g, b, t] · levels[i, b, t], n blocks, for 8 pairs (i, g), g < len(queries).

    levels: int16, rows of 64, blocks _BLOCK_LEVELS apart; weights: int16, rows _TOKENS apart; units: float32, rows RUN apart;
    acc: 8 float32 from acc_at on.
    """
    signature = types.void(levels, at, n, weights, weights_at, units, units_at, acc, acc_at, queries)
    n_queries = queries.count

    def codegen(context, builder, sig, args):
        arrays = Arrays(context, builder, sig, args)
        totals = _variables(builder, FLOATS, 8)
        _zero(builder, totals)
        with cgutils.for_range(builder, args[2], intp=I64) as b:
            start = builder.mul(b.index, I64(64))
            sums = [ir.Constant(WORDS, None)] * 8
            for t in range(0, 64, 2 * LANES):
                here = builder.add(start, I64(t))
                row = builder.add(args[1], builder.add(builder.mul(b.index, I64(_BLOCK_LEVELS)), I64(t)))
                weight = [
                    arrays.load(3, builder.add(builder.add(args[4], here), I64(g * _TOKENS)), WORDS)
                    for g in range(n_queries)
                ]
                for c in range(8 // n_queries):
                    level = arrays.load(0, builder.add(row, I64(c * 64)), WORDS)
                    for g in range(n_queries):
                        k = c * n_queries + g
                        sums[k] = _dot2(builder, sums[k], level, weight[g])
            for g in range(n_queries):
                where = builder.add(builder.add(args[6], b.index), I64(g * RUN))
                unit = _splat(builder, arrays.load(5, where, F32))
                for k in range(g, 8, n_queries):
                    total = _fma(builder, builder.sitofp(sums[k], FLOATS), unit, builder.load(totals[k]))
                    builder.store(total, totals[k])
        sums = _lane_sums(builder, [builder.load(total) for total in totals])
        place = arrays.place(7, args[8], ir.VectorType(F32, 8))
        builder.store(builder.fadd(sums, builder.load(place, align=4)), place, align=4)
        return context.get_dummy_value()

    return signature, codegen


# --- Drivers ----------------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _block(reading, h, b):
    """The bytes of a block of one head."""
    page, slot = b // reading.page_blocks, b % reading.page_blocks
    place = reading.places[page] + reading.page_blocks * reading.head_at[h] + slot * reading.sizes[h]
    return carray(_pointer(place), (reading.sizes[h],), np.uint8)


@njit(cache=True, nogil=True)
def _factors(reading, h, first, n_blocks, out):
    """float16 factors of n blocks from `first` on, as float32; 1 where there are none."""
    if reading.scales.shape[0] == 0:
        out[: n_blocks * 64] = 1
        return
    for b in range(n_blocks):
        page, slot = (first + b) // reading.page_blocks, (first + b) % reading.page_blocks
        place = reading.scales[page] + 2 * 64 * (reading.page_blocks * h + slot)
        half = carray(_pointer(place), (128,), np.uint8).view(np.uint16)
        for i in range(0, 64, 16):
            _widen(half, i, out, b * 64 + i)


@njit(cache=True, nogil=True)
def _folded_scores(keys, q, side, h, first, n_blocks, factor, words, scores, queries):
    """Scores of a run from queries in coordinates. q: int32 (n_heads, n_tiles, n_pairs, len(queries)), two int16 each."""
    n, n_tiles, n_pairs = keys.ends[h, 8], q.shape[1], q.shape[2]
    for b in range(n_blocks):
        codes = _block(keys, h, first + b)
        _unpack(codes, keys.tables, keys.at, keys.table_at, keys.ends, h, 0, n, words, 0, (0,))
        for tile in range(n_tiles):
            row = h * n_tiles + tile
            _score(words, n, q, row * n_pairs * len(queries), side, row * 2 * len(queries), factor, b * 64,
                   scores, tile * len(queries) * _TOKENS + b * 64, _TOKENS, queries)  # fmt: skip


@njit(cache=True, nogil=True)
def _turn_queries(base, step, q, turned):
    """Queries as seen from a block's first position, R(position)ᵀ q; `base` moves on to the next block.

    base: float64 (2, p), cosines and sines; step: float64 (2, p), a block's; q, turned: float32 (n_queries, 2, ≥ p).
    """
    for g in range(q.shape[0]):
        for i in range(base.shape[1]):
            c, s = np.float32(base[0, i]), np.float32(base[1, i])
            turned[g, 0, i] = q[g, 0, i] * c + q[g, 1, i] * s
            turned[g, 1, i] = q[g, 1, i] * c - q[g, 0, i] * s
    for i in range(base.shape[1]):
        c, s = base[0, i], base[1, i]
        base[0, i] = c * step[0, i] - s * step[1, i]
        base[1, i] = s * step[0, i] + c * step[1, i]


@njit(cache=True, nogil=True)
def _turned_scores(keys, turning, q, h, first, n_blocks, factor, words, base, room, scores):
    """Scores q · R k of a run. q: (n_heads, n_queries, d); room: (2, n_queries, 2, 2 · n_fours), first and second channels."""
    n_queries, p, n_fours = q.shape[1], turning.inv_freq.shape[0], turning.channels.shape[0]
    plain, turned = room[0], room[1]
    for f in range(n_fours):
        for c in range(4):
            channel = turning.channels[f, c]
            for g in range(n_queries):
                plain[g, c >> 1, 2 * f + (c & 1)] = q[h, g, channel] if channel >= 0 else 0
    turned[:] = plain
    for i in range(p):
        angle = np.float64(turning.first + first * 64) * np.float64(turning.inv_freq[i])
        base[0, i], base[1, i] = np.cos(angle), np.sin(angle)
    for b in range(n_blocks):
        _turn_queries(base, turning.step, plain, turned)
        codes = _block(keys, h, first + b)
        _unpack(codes, keys.tables, keys.at, keys.table_at, keys.ends, h, 0, keys.ends[h, 8], words, 0, (0,))
        for f in range(n_fours):
            row = h * n_fours + f
            place = row * turning.chosen.shape[2]
            if 2 * f < p:
                _turned(words, turning.chosen, turning.counts[h, f], turning.matrix, place, turning.means, row * 4,
                        factor, b * 64, turning.unit[h], turning.turn, f * 256, turned, 2 * f, 2 * n_fours, n_queries,
                        scores, b * 64, _TOKENS, (0,))  # fmt: skip
            else:
                _turned(words, turning.chosen, turning.counts[h, f], turning.matrix, place, turning.means, row * 4,
                        factor, b * 64, turning.unit[h], turning.turn, 0, turned, 2 * f, 2 * n_fours, n_queries,
                        scores, b * 64, _TOKENS, ())  # fmt: skip


@njit(cache=True, nogil=True)
def _weights(scores, n_blocks, mask, first, n_tokens, factor, weights, units, m, mass):
    """Scores of a run to weights, those of masked tokens to 0; their greatest score, and their sum before factors."""
    n = n_blocks * 64
    for g in range(m.shape[0]):
        if mask.shape[0]:
            for t in range(min(n, n_tokens - first * 64)):
                if mask[first * 64 + t] == 0:
                    scores[g, t] = -np.inf
        scores[g, max(0, min(n, n_tokens - first * 64)) : n] = -np.inf
        m[g] = _greatest(scores, g * _TOKENS, n)
        low = m[g] if m[g] > -np.inf else np.float32(0)
        mass[g] = _weigh(scores, g * _TOKENS, n_blocks, low, factor, weights, units, g * RUN)


@njit(cache=True, nogil=True)
def _mixed(values, h, first, n_blocks, levels, weights, units, acc, queries):
    """acc[tile, i, g] = Σ_t weight[tile, g, t] · level_i of a run. acc: flat, rows of len(queries), 8 coordinates at a time."""
    n_tiles, per = weights.shape[0] // len(queries), 8 // len(queries)
    rows = acc.shape[0] // weights.shape[0]
    n = values.ends[h, 8]
    for group in range(0, n_blocks, _GROUP):
        here = min(_GROUP, n_blocks - group)
        for pair in range(0, n, _PART):
            last = min(n, pair + _PART)
            for b in range(here):
                codes = _block(values, h, first + group + b)
                _unpack(codes, values.tables, values.at, values.table_at, values.ends, h, pair, last,
                        levels, b * _BLOCK_LEVELS, ())  # fmt: skip
            for tile in range(n_tiles):
                for c in range(0, 2 * (last - pair), per):
                    _mix(levels, c * 64, here, weights, tile * len(queries) * _TOKENS + group * 64,
                         units, tile * len(queries) * RUN + group, acc,
                         (tile * rows + 2 * pair + c) * len(queries), queries)  # fmt: skip


@njit(cache=True, nogil=True)
def attend_runs(counter, keys, values, q, side, turning, n_tokens, mask, acc, m, mass, queries):
    """Runs of heads, as long as there are any that no other thread took.

    q: int32 (n_heads, n_tiles, n_pairs, len(queries)) and side: float32 (n_heads, n_tiles, 2, len(queries)), units and
    constants; where keys turn, float32 (n_heads, n_queries, d), and side says only how many tiles there are.
    acc: float32 (n_heads, n_runs, …); m, mass: (n_heads, n_runs, n_queries).
    """
    n_heads, n_runs, n_queries = m.shape
    n_rows = side.shape[1] * len(queries)
    scores, weights = np.zeros((n_rows, _TOKENS), np.float32), np.zeros((n_rows, _TOKENS), np.int16)
    units, factor = np.zeros((n_rows, RUN), np.float32), np.empty(_TOKENS, np.float32)
    words, levels = np.zeros(128 * keys.at.shape[1], np.int16), np.zeros(_GROUP * _BLOCK_LEVELS, np.int16)
    if turning is not None:
        base = np.empty((2, turning.inv_freq.shape[0]), np.float64)
        room = np.empty((2, n_queries, 2, 2 * turning.channels.shape[0]), np.float32)
    while True:
        item = take(counter, 1)
        if item >= n_heads * n_runs:
            return
        h, run = item // n_runs, item % n_runs
        first = run * RUN
        n_blocks = min(RUN, (n_tokens + 63) // 64 - first)
        _factors(keys, h, first, n_blocks, factor)
        if turning is not None:
            scores[:] = 0
            _turned_scores(keys, turning, q, h, first, n_blocks, factor, words, base, room, scores)
        else:
            _folded_scores(keys, q, side, h, first, n_blocks, factor, words, scores, queries)
        _factors(values, h, first, n_blocks, factor)
        _weights(scores, n_blocks, mask, first, n_tokens, factor, weights, units, m[h, run], mass[h, run])
        _mixed(values, h, first, n_blocks, levels, weights, units, acc[h, run], queries)


@njit(cache=True, nogil=True)
def _basis_row(half, whole, h, j, step, row):
    """Row j of a head's synthesis times a step. half: its float16 as their bits, or empty, and then it is in `whole`."""
    d = row.shape[0]
    if half.shape[0]:
        sixteens = d // 16 * 16
        flat = half[h, j]
        for i in range(0, sixteens, 16):
            _widen(flat, i, row, i)
        for i in range(sixteens, d):
            row[i] = whole[h, j, i - sixteens]
    else:
        row[:] = whole[h, j]
    for i in range(d):
        row[i] *= step


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def into_basis(q, half, whole, slots, step, out):
    """out[h, g, i] = step_i · synthesis[slot i] · q[h, g]; 0 where a slot is empty. q: float32 (n_heads, n_queries, d)."""
    n_heads, n_queries, d = q.shape
    row = np.empty(d, np.float32)
    for h in range(n_heads):
        for i in range(slots.shape[1]):
            j = slots[h, i]
            if j < 0:
                out[h, :, i] = 0
                continue
            _basis_row(half, whole, h, j, step[h, i], row)
            for g in range(n_queries):
                total = np.float32(0)
                for c in range(d):
                    total += row[c] * q[h, g, c]
                out[h, g, i] = total


@njit(cache=True, nogil=True)
def out_of_basis(y, half, whole, slots, step, mass, mean, out):
    """out[h, g] = mass[h, g] · mean[h] + Σ_i y[h, g, i] · step_i · synthesis[slot i]."""
    n_heads, n_queries, d = out.shape
    row = np.empty(d, np.float32)
    for h in range(n_heads):
        for g in range(n_queries):
            for c in range(d):
                out[h, g, c] = mass[h, g] * mean[h, c]
        for i in range(slots.shape[1]):
            j = slots[h, i]
            if j < 0:
                continue
            _basis_row(half, whole, h, j, step[h, i], row)
            for g in range(n_queries):
                by = y[h, g, i]
                for c in range(d):
                    out[h, g, c] += by * row[c]


@njit(cache=True, nogil=True)
def fold_queries(x, constant, q, side):
    """Queries in coordinates as integers: the q (zeros before) and side of `attend_runs`.

    x: float32 (n_heads, n_queries, 2 · n_pairs), what levels are multiplied by; constant: float32 (n_heads, n_queries). A
    query's unit is the least with which its integers fit 16 bits, and their sum of products with levels 32; it is not finite
    where the query is not.
    """
    n_heads, n_queries, n = x.shape
    width = q.shape[3]
    for h in range(n_heads):
        for g in range(n_queries):
            tile, lane = g // width, g % width
            most, sum_ = 0.0, 0.0
            for i in range(n):
                size = np.float64(abs(x[h, g, i]))
                most = size if size > most else most
                sum_ += size
            unit = max(most / _SHORT, sum_ / ((1 << 31) / FINE - n - 1))
            side[h, tile, 0, lane], side[h, tile, 1, lane] = unit + (sum_ - sum_), constant[h, g]
            by = 1 / unit if 1e-30 < unit < np.inf else 0.0
            for i in range(0, n if sum_ < np.inf else 0, 2):
                low, high = np.int64(np.rint(x[h, g, i] * by)), np.int64(np.rint(x[h, g, i + 1] * by))
                q[h, tile, i >> 1, lane] = (low & 0xFFFF) | (high << 16)


@njit(cache=True, nogil=True)
def merge_runs(acc, m, mass, n_queries, out, out_m, out_mass):
    """Runs into one, in order. acc: (n_heads, n_runs, n_tiles · rows · n_queries); out: (n_heads, G, rows)."""
    n_heads, n_runs, n_all = m.shape
    rows = out.shape[2]
    total = np.empty(rows, np.float64)
    for h in range(n_heads):
        for g in range(n_all):
            best = np.float32(-np.inf)
            for run in range(n_runs):
                best = m[h, run, g] if m[h, run, g] > best else best
            out_m[h, g] = best
            low = np.float64(best) if best > -np.inf else 0.0
            total[:] = 0
            sum_ = 0.0
            start = g // n_queries * rows * n_queries + g % n_queries
            for run in range(n_runs):
                w = np.exp(np.float64(m[h, run, g]) - low)
                sum_ += w * mass[h, run, g]
                for i in range(rows):
                    total[i] += w * acc[h, run, start + i * n_queries]
            out_mass[h, g] = sum_
            for i in range(rows):
                out[h, g, i] = total[i]
