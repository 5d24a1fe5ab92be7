"""Entropy-coded trellis quantization: the Viterbi search and the rANS coder that walks the same trellis.

Levels are integers L that stand for L · step. A state of the trellis allows those of one union, even levels or odd ones,
and bit 0 of the index q of the level in its union drives the state. So one bit of every level is known beforehand, and the
sequences that remain are packed almost as well as the best lattices of very high dimension.

    even union (c = 0)       L = 2 q
    odd union (c = 1)        L = 2 q + 1
    centred odd union        L = 2 q - sgn q: zero as well, for peaked laws at low rates, to whom ±1 would cost too much

A union and a parity of q make a subset, y = c + 2 (q & 1); without centring y is L mod 4. The code, of rate 1/2:

    encoder   shift register, s' = (2 s + u) mod S; c = parity(s & union), bit 0 of q = u ^ parity(s & branch)
    decoder   the same code as a syndrome register: c = s & 1, s' = (s >> 1) ^ (c · branch) ^ (bit 0 of q · union)

The path is the one of least Σ (x - L)² + cost(L), where the cost of a level is λ times its code length under the pmf
with which it will be coded.

Sources: Ungerboeck 1982 (set partitioning, the code); Marcellin & Fischer 1990 (TCQ); Fischer & Wang 1992 and
Marcellin 1994 (entropy-coded TCQ on the union codebooks, rate in the Viterbi metric); Schwarz et al. 2021 (dependent
quantization in VVC: parity drives the state, the centred union); Duda 2013 (1311.2540, rANS).
Differs: codes with up to 2^16 states, found by search for mean squared error; path metrics are 16-bit integers.

Tables of the coder. Table t has two rows, 2 t + c, one for each union. With o = 1 in an odd union that is not centred, else
0, and h = q >> shift[t], symbol i stands for h = i - reach[t] - o, i ≤ 2 · reach[t] + o, and the next symbol is the escape.
The `shift` low bits of q are sent as they are. After an escape: 5 bits n, n bits, 1 bit sign; 2^n plus those bits is how
far h is beyond the table.

A lane is a stretch of the sequence with its own trellis (from state 0) and its own rANS state: 64 bits, renormalised by
32-bit words, first at 2^31 and back there when the lane has been read. Its words: the state, then as the decoder needs them.
"""

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from laconic.core.errors import BadConfig, BadInput, CorruptStream, claim

__all__ = [
    "CODES",
    "Costs",
    "MAX_LEVEL",
    "PRECISION",
    "ROW",
    "Tables",
    "code_lengths",
    "coder_tables",
    "decode",
    "decode_plain",
    "encode",
    "encode_plain",
    "lane_bounds",
    "levels",
    "quantize",
    "quantize_plain",
    "viterbi_plain",
    "walk",
]

PRECISION = 15  # bits of a pmf's total
ROW = 256  # places for symbols in a row of the tables; one is left free, so that a symbol fits a byte
MAX_LEVEL = 1 << 28
_TOTAL = 1 << PRECISION
_LOWER = 1 << 31  # the least rANS state
_COARSE = 7  # 2^7 slots share an entry of the table that starts the search for a symbol
_WINDOW = 2048  # values decided at once; twice as many are searched, at least 30 times the memory of the longest code
_ONE = 256  # path metric of a squared error of step²
_CLIP = 8 * _ONE - 1  # 16 steps of growth and 16 of spread between states, at most _CLIP each, fit into 16 bits
_RENORM = 16
_UNREACHED = 40000
_LOW32 = np.uint64(0xFFFFFFFF)

# states: (union, branch), the taps of the code: the best of a random search for the least squared error on a uniform source.
# Behind each its granular gain in dB; rounding has 0, and 1.53 (π e / 6) is the most there can be.
CODES: dict[int, tuple[int, int]] = {
    8: (0x1, 0x7),  # 1.09
    16: (0x4, 0xD),  # 1.16
    32: (0x5, 0x18),  # 1.22
    64: (0x11, 0x3A),  # 1.27
    128: (0x2F, 0x56),  # 1.31
    256: (0x63, 0xD4),  # 1.34
    512: (0xA5, 0x1B6),  # 1.37
    1024: (0x109, 0x297),  # 1.39
    2048: (0x299, 0x6FE),  # 1.40
    4096: (0x46F, 0xF8D),  # 1.42
    8192: (0xE1B, 0x1FF1),  # 1.43
    16384: (0xBED, 0x3B50),  # 1.44
    32768: (0x3383, 0x41EC),  # 1.45
    65536: (0x71EA, 0xC989),  # 1.46
}

_I16 = ir.IntType(16)
_I32 = ir.IntType(32)


def _base(context, builder, array_type, array, at, bits):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), ir.IntType(bits).as_pointer())


def _load(builder, base, width, at=0):
    vector = ir.VectorType(_I16, width)
    return builder.load(builder.bitcast(builder.gep(base, [_I32(at)]), vector.as_pointer()), align=2)


def _store(builder, value, base, at=0):
    builder.store(value, builder.bitcast(builder.gep(base, [_I32(at)]), value.type.as_pointer()), align=2)


def _call(builder, name, *args):
    vector = args[0].type
    kind = ir.FunctionType(vector, [vector] * len(args))
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"{name}.v{vector.count}i16"), args)


def _shuffle(builder, a, b, order):
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(order)), order))


def _add_compare_select(width):
    """One step for `width` pairs of states that share their successors."""

    @intrinsic
    def kernel(typingctx, old, low, high, metric, at0, at1, new, to, chosen, bits0, bits1):
        """new[to + 2 j + u] = min over the predecessors low + j and high + j of old + metric; `chosen`: 1 is high.

        Metrics are width values at at0 (u = 0 from low, u = 1 from high) and at at1 (the other two branches).
        """

        def codegen(context, builder, sig, args):
            kinds = sig.args
            a = _load(builder, _base(context, builder, kinds[0], args[0], args[1], 16), width)
            b = _load(builder, _base(context, builder, kinds[0], args[0], args[2], 16), width)
            m0 = _load(builder, _base(context, builder, kinds[3], args[3], args[4], 16), width)
            m1 = _load(builder, _base(context, builder, kinds[3], args[3], args[5], 16), width)
            best = []
            for here, there, at in ((m0, m1, args[9]), (m1, m0, args[10])):
                from_low = _call(builder, "llvm.uadd.sat", a, here)
                from_high = _call(builder, "llvm.uadd.sat", b, there)
                choice = builder.bitcast(builder.icmp_unsigned("<", from_high, from_low), ir.IntType(width))
                if width < 8:
                    choice = builder.zext(choice, ir.IntType(8))
                place = _base(context, builder, kinds[8], args[8], at, choice.type.width)
                builder.store(choice, place, align=1)
                best.append(_call(builder, "llvm.umin", from_low, from_high))
            out = _base(context, builder, kinds[6], args[6], args[7], 16)
            order = [k for j in range(width) for k in (j, width + j)]
            _store(builder, _shuffle(builder, *best, order[:width]), out)
            _store(builder, _shuffle(builder, *best, order[width:]), out, width)
            return context.get_dummy_value()

        return types.void(old, low, high, metric, at0, at1, new, to, chosen, bits0, bits1), codegen

    return kernel


_acs4, _acs8, _acs16, _acs32 = (_add_compare_select(width) for width in (4, 8, 16, 32))


@intrinsic
def _spread(typingctx, subset, at, low_bit, high_bit, out):
    """out[32 q + j] = subset[at + (q ^ (low_bit[j] + 2 high_bit[j]))]; the bits are masks of 0 or 0xFFFF."""

    def codegen(context, builder, sig, args):
        kinds = sig.args
        zero = _I32(0)
        four = _load(builder, _base(context, builder, kinds[0], args[0], args[1], 16), 4)
        value = [_shuffle(builder, four, four, [y] * 32) for y in range(4)]
        none = ir.Constant(ir.VectorType(_I16, 32), [0] * 32)
        masks = [
            _load(builder, _base(context, builder, k, a, zero, 16), 32)
            for k, a in zip(kinds[2:4], args[2:4], strict=True)
        ]
        low, high = (builder.icmp_unsigned("!=", m, none) for m in masks)
        pair = [builder.select(low, value[y ^ 1], value[y]) for y in range(4)]
        base = _base(context, builder, kinds[4], args[4], zero, 16)
        for q in range(4):
            _store(builder, builder.select(high, pair[q ^ 2], pair[q]), base, 32 * q)
        return context.get_dummy_value()

    return types.void(subset, at, low_bit, high_bit, out), codegen


@intrinsic
def _lower(typingctx, paths, n):
    """Subtract the least of the n path metrics (a multiple of 8) from all of them."""

    def codegen(context, builder, sig, args):
        base = _base(context, builder, sig.args[0], args[0], _I32(0), 16)
        i64 = ir.IntType(64)
        width = 8
        pointer = ir.VectorType(_I16, width).as_pointer()
        n_blocks = builder.udiv(args[1], i64(width))
        least = cgutils.alloca_once_value(builder, ir.Constant(pointer.pointee, [65535] * width))
        with cgutils.for_range(builder, n_blocks) as loop:
            place = builder.bitcast(builder.gep(base, [builder.mul(loop.index, i64(width))]), pointer)
            builder.store(_call(builder, "llvm.umin", builder.load(least), builder.load(place, align=2)), least)
        lanes = builder.load(least)
        for step in (4, 2, 1):
            lanes = _call(
                builder, "llvm.umin", lanes, _shuffle(builder, lanes, lanes, [j ^ step for j in range(width)])
            )
        with cgutils.for_range(builder, n_blocks) as loop:
            place = builder.bitcast(builder.gep(base, [builder.mul(loop.index, i64(width))]), pointer)
            builder.store(builder.sub(builder.load(place, align=2), lanes), place, align=2)
        return context.get_dummy_value()

    return types.void(paths, n), codegen


@njit(inline="always")
def _parity(v):
    v ^= v >> 8
    v ^= v >> 4
    v ^= v >> 2
    v ^= v >> 1
    return v & 1


@njit(nogil=True, cache=True)
def _subset_metrics(v, cost, half, shift, centre, metric, index):
    """The best index q in each subset y for the value v, and its metric; returns the least of the four.

    Of each subset only the nearest level and the next one towards zero can be best. cost: (2 half + 1,) float32 by L >>
    shift. centre: cost of zero in the centred odd union; infinite if the union is not centred.
    """
    start = np.int64(np.floor(v)) - 1
    toward = np.int64(-4) if v >= 0 else np.int64(4)
    for k in range(4):
        near = start + k
        d = v - np.float32(near)
        a = d * d + cost[min(max((near >> shift) + half, 0), 2 * half)]
        d = v - np.float32(near + toward)
        b = d * d + cost[min(max(((near + toward) >> shift) + half, 0), 2 * half)]
        y = near & 3
        if b < a:
            a = b
            near += toward
        index[y] = near >> 1
        metric[y] = a
    if centre < np.inf:
        magnitude = abs(v)
        for y in (1, 3):  # 3, 7, 11 … and zero; 1, 5, 9 …
            lowest = 4 - y
            k = np.int64(np.floor((magnitude - np.float32(lowest)) * np.float32(0.25) + np.float32(0.5)))
            near = lowest + 4 * max(k, 0)
            d = magnitude - np.float32(near)
            a = d * d + cost[min(near + half, 2 * half)]
            if near > lowest:
                d = magnitude - np.float32(near - 4)
                b = d * d + cost[min(near - 4 + half, 2 * half)]
                if b < a:
                    a = b
                    near -= 4
            if y == 1 and near == 3:
                b = magnitude * magnitude + centre
                if b < a:
                    a = b
                    near = -1
            q = (near + 1) >> 1
            index[y] = q if v >= 0 else -q
            metric[y] = a
    return min(min(metric[0], metric[1]), min(metric[2], metric[3]))


@njit(nogil=True, cache=True)
def _predecessor(s, chosen, i, row, memory):
    """The state before step i on the best path that is in state s behind it."""
    pair = s >> 1
    at = (i & (2 * _WINDOW - 1)) * row + (s & 1) * (row >> 1) + (pair >> 3)
    return pair | (((chosen[at] >> (pair & 7)) & 1) << (memory - 1))


@njit(nogil=True, cache=True)
def _commit(paths, best, chosen, i, stop, row, memory):
    """Drop the paths (they end behind step i) that do not leave step `stop` - 1 in the same state as the best one.

    The next stretch begins where this one ends, so no path may survive that began elsewhere. Most have met by then, and a
    union-find over the paths follows only those that have not: about S log(steps) operations.
    """
    n_states = 1 << memory
    joined, path, state = np.arange(n_states), np.arange(n_states), np.arange(n_states)
    seen, owner = np.full(n_states, -1), np.empty(n_states, np.int64)
    n_distinct = n_states
    for back in range(i, stop - 1, -1):
        n_left = 0
        for k in range(n_distinct):
            s = _predecessor(state[k], chosen, back, row, memory)
            if seen[s] == back:
                joined[path[k]] = owner[s]
            else:
                seen[s] = back
                owner[s] = path[k]
                path[n_left], state[n_left] = path[k], s
                n_left += 1
        n_distinct = n_left
        if n_distinct == 1:
            return
    root = _root(joined, best)
    for k in range(n_states):
        if _root(joined, k) != root:
            paths[k] = _UNREACHED


@njit(nogil=True, cache=True)
def _root(joined, k):
    while joined[k] != k:
        joined[k] = joined[joined[k]]
        k = joined[k]
    return k


@njit(nogil=True, cache=True)
def _search(x, table, cost, half, shift, centre, union, branch, memory, begin, q):
    """Viterbi over n ≥ 1 values. x: (n,) float32 in steps; table: (n,) unsigned; q: (n,) int32, written.

    begin: the state before the first value; returns the one behind the last.
    """
    n = x.shape[0]
    states = 1 << memory
    pairs = states >> 1
    width = min(pairs, 32)
    n_blocks = pairs // width
    block_bytes = max(width >> 3, 1)
    row = 2 * n_blocks * block_bytes

    low_bit, high_bit = np.zeros(32, np.uint16), np.zeros(32, np.uint16)
    for j in range(width):
        low_bit[j] = 65535 * _parity(j & union)
        high_bit[j] = 65535 * _parity(j & branch)
    subset = np.empty(n_blocks, np.int64)
    for k in range(n_blocks):
        subset[k] = 32 * (_parity((k * width) & union) + 2 * _parity((k * width) & branch))

    old, new = np.full(states, _UNREACHED, np.uint16), np.empty(states, np.uint16)
    old[begin] = 0
    metric, best, exact = np.empty(4, np.uint16), np.empty(128, np.uint16), np.empty(4, np.float32)
    kept = np.empty((2 * _WINDOW, 4), np.int32)
    chosen = np.empty(min(n, 2 * _WINDOW) * row, np.uint8)
    done, end = 0, np.int64(begin)
    for i in range(n):
        ring = i & (2 * _WINDOW - 1)
        t = table[i]
        least = _subset_metrics(x[i], cost[t], half, shift[t], centre[t], exact, kept[ring])
        for y in range(4):
            metric[y] = np.uint16(min((exact[y] - least) * np.float32(_ONE) + np.float32(0.5), np.float32(_CLIP)))
        _spread(metric, 0, low_bit, high_bit, best)
        at = ring * row
        if width == 32:
            for k in range(n_blocks):
                m = subset[k]
                to, bits0 = 64 * k, at + 4 * k
                bits1 = bits0 + 4 * n_blocks
                _acs32(old, 32 * k, pairs + 32 * k, best, m, m ^ 64, new, to, chosen, bits0, bits1)
        elif width == 16:
            _acs16(old, 0, 16, best, 0, 64, new, 0, chosen, at, at + 2)
        elif width == 8:
            _acs8(old, 0, 8, best, 0, 64, new, 0, chosen, at, at + 1)
        else:
            _acs4(old, 0, 4, best, 0, 64, new, 0, chosen, at, at + 1)
        old, new = new, old
        if i % _RENORM == _RENORM - 1:
            _lower(old, states)
        last = i == n - 1
        if last or i + 1 - done == 2 * _WINDOW:
            stop = n if last else done + _WINDOW
            s = np.argmin(old)
            end = s
            if not last:
                _commit(old, s, chosen, i, stop, row, memory)
            for back in range(i, done - 1, -1):
                u, before = s & 1, _predecessor(s, chosen, back, row, memory)
                if back < stop:
                    y = _parity(before & union) + 2 * (u ^ _parity(before & branch))
                    q[back] = kept[back & (2 * _WINDOW - 1), y]
                s = before
            done = stop
    return end


class Costs(NamedTuple):
    """What the search pays for the levels, in squared steps, for T kinds of values.

    level: (T, 2 half + 1) float32 by (L >> shift) + half; the ends hold for all that is beyond. shift: (T,) int64, 0 where
    the odd union is centred. centre: (T,) float32, of zero in a centred odd union; infinite where it is not centred.
    """

    level: np.ndarray
    shift: np.ndarray
    centre: np.ndarray


class Tables(NamedTuple):
    """What the coder looks up: T tables of two rows, even and odd union.

    entry: (2 T, ROW) uint32, start << 16 | frequency of each symbol; first: (2 T, 256) uint8, the symbol that holds slot
    128 k. reach, shift: (T,) int64, see the module's head. centred: (T,) int64, 1 where the odd union is.
    """

    entry: np.ndarray
    first: np.ndarray
    reach: np.ndarray
    shift: np.ndarray
    centred: np.ndarray


def coder_tables(pmf: np.ndarray, reach: np.ndarray, shift: np.ndarray, centred: np.ndarray) -> Tables:
    """pmf: (2 T, ROW) integers, rows with the total 2^15, positive exactly where there is a symbol."""
    pmf = np.asarray(pmf, np.int64)
    reach, shift, centred = (np.asarray(a, np.int64) for a in (reach, shift, centred))
    n_tables = len(reach)
    if pmf.shape != (2 * n_tables, ROW) or not shift.shape == centred.shape == (n_tables,) or not 0 < n_tables <= 256:
        raise BadConfig(f"pmfs of shape {pmf.shape} for {n_tables} tables; (2 T, {ROW}) is right, T ≤ 256")
    n_symbols = 2 * np.repeat(reach, 2) + 2
    n_symbols[1::2] += 1 - centred
    if np.any((pmf > 0) != (np.arange(ROW) < n_symbols[:, None])) or np.any(pmf.sum(1) != _TOTAL):
        raise BadConfig(f"a pmf that is not positive on its symbols, zero behind them, with the total {_TOTAL}")
    if np.any(reach < 0) or np.any(n_symbols >= ROW) or np.any(shift < 0) or np.any(shift > 16):
        raise BadConfig("reach beyond the row, or a shift beyond 16 bits")
    if np.any((centred != 0) & ((centred != 1) | (shift != 0))):
        raise BadConfig("a centred union takes no shift")
    end = np.cumsum(pmf, axis=1)
    entry = ((end - pmf) << 16 | pmf).astype(np.uint32)
    slots = np.arange(0, _TOTAL, 1 << _COARSE)
    first = np.stack([np.searchsorted(row, slots, side="right") for row in end]).astype(np.uint8)
    return Tables(entry, first, reach, shift, centred)


def lane_bounds(n: int, n_lanes: int) -> np.ndarray:
    """Where the lanes of a sequence of n begin and end: (n_lanes + 1,) int64, lengths that differ by at most 1."""
    return np.arange(n_lanes + 1, dtype=np.int64) * (n // n_lanes) + np.minimum(np.arange(n_lanes + 1), n % n_lanes)


@njit(nogil=True, cache=True)
def _symbol(q, odd, reach, shift):
    """(symbol, how far beyond the table, 0 if within). odd: 1 in an odd union that is not centred."""
    escape = 2 * reach + 1 + odd
    i = (q >> shift) + reach + odd
    if i < 0:
        return escape, i
    if i >= escape:
        return escape, i - escape + 1
    return i, np.int64(0)


@njit(nogil=True, cache=True)
def _code_lengths(q, unions, context, which, bits, reach, shift, centred, out):
    for i in range(q.shape[0]):
        t = np.int64(which[context[i]])
        c = np.int64(unions[i])
        symbol, beyond = _symbol(np.int64(q[i]), c & ~centred[t], reach[t], shift[t])
        length = bits[2 * t + c, symbol]
        if beyond != 0:
            m = abs(beyond)
            while m > 1:
                m >>= 1
                length += 1
            length += 6
        out[context[i]] += length


@njit(nogil=True, cache=True)
def _walk(q, union, branch, unions):
    s = np.int64(0)
    for i in range(q.shape[0]):
        unions[i] = s & 1
        s = (s >> 1) ^ (branch if s & 1 else 0) ^ (union if q[i] & 1 else 0)


@njit(nogil=True, cache=True)
def _make_room(x, width, out, at):
    """Emit a word if `width` more bits would not fit below 2^63."""
    if x >> np.uint64(63 - width):
        at -= 1
        out[at] = x & _LOW32
        x >>= np.uint64(32)
    return x, at


@njit(nogil=True, cache=True)
def _put_raw(x, value, width, out, at):
    x, at = _make_room(x, width, out, at)
    return (x << np.uint64(width)) | np.uint64(value & ((1 << width) - 1)), at


@njit(nogil=True, cache=True, error_model="numpy")
def _encode(q, unions, table, entry, reach, shift, centred, out):
    """One lane, from its end. out: uint32, filled from its end; returns where the lane's words begin in it."""
    x = np.uint64(_LOWER)
    at = out.shape[0]
    for i in range(q.shape[0] - 1, -1, -1):
        t, c = np.int64(table[i]), np.int64(unions[i])
        symbol, beyond = _symbol(np.int64(q[i]), c & ~centred[t], reach[t], shift[t])
        if shift[t] > 0:
            x, at = _put_raw(x, np.int64(q[i]), shift[t], out, at)
        if beyond != 0:
            m = abs(beyond)
            n_bits = 0
            while m >> (n_bits + 1):
                n_bits += 1
            m -= 1 << n_bits
            x, at = _put_raw(x, np.int64(beyond < 0), 1, out, at)
            if n_bits > 16:
                x, at = _put_raw(x, m >> 16, n_bits - 16, out, at)
            x, at = _put_raw(x, m, min(n_bits, 16), out, at)
            x, at = _put_raw(x, n_bits, 5, out, at)
        packed = np.uint64(entry[2 * t + c, symbol])
        frequency, start = packed & np.uint64(0xFFFF), packed >> np.uint64(16)
        if x >= frequency << np.uint64(63 - PRECISION):
            at -= 1
            out[at] = x & _LOW32
            x >>= np.uint64(32)
        quotient = x // frequency
        x = (quotient << np.uint64(PRECISION)) + (x - quotient * frequency) + start
    out[at - 1] = x & _LOW32
    out[at - 2] = x >> np.uint64(32)
    return at - 2


@njit(nogil=True, cache=True)
def _refill(x, words, at, end):
    """(state, position) after a renormalisation; a position beyond the end says that words are missing."""
    if x < np.uint64(_LOWER):
        if at < end:
            x = (x << np.uint64(32)) | np.uint64(words[at])
        at += 1
    return x, at


@njit(nogil=True, cache=True)
def _take_raw(x, width, words, at, end):
    value = np.int64(x & ((np.uint64(1) << np.uint64(width)) - np.uint64(1)))
    x, at = _refill(x >> np.uint64(width), words, at, end)
    return value, x, at


@njit(nogil=True, cache=True)
def _decode(words, offset, bounds, table, entry, first, reach, shift, centred, union, branch, levels):
    """All lanes, eight at a time. Returns the index of the first value of a lane that is damaged, -1 where none is."""
    n_lanes = bounds.shape[0] - 1
    state, register = np.empty(8, np.uint64), np.empty(8, np.int64)
    place, end = np.empty(8, np.int64), np.empty(8, np.int64)
    for group in range(0, n_lanes, 8):
        n_group = min(8, n_lanes - group)
        longest = np.int64(0)
        for j in range(n_group):
            lane = group + j
            longest = max(longest, bounds[lane + 1] - bounds[lane])
            at = offset[lane]
            register[j], place[j], end[j] = 0, at + 2, offset[lane + 1]
            state[j] = (np.uint64(words[at]) << np.uint64(32)) | np.uint64(words[at + 1])
            if state[j] < np.uint64(_LOWER) or state[j] >> np.uint64(63):
                return bounds[lane]
        for i in range(longest):
            for j in range(n_group):
                k = bounds[group + j] + i
                if k >= bounds[group + j + 1]:
                    continue
                x, s, at = state[j], register[j], place[j]
                t = np.int64(table[k])
                c = s & 1
                row = 2 * t + c
                slot = np.int64(x & np.uint64(_TOTAL - 1))
                symbol = np.int64(first[row, slot >> _COARSE])
                packed = np.int64(entry[row, symbol])
                while slot >= (packed >> 16) + (packed & 0xFFFF):
                    symbol += 1
                    packed = np.int64(entry[row, symbol])
                x = np.uint64(packed & 0xFFFF) * (x >> np.uint64(PRECISION)) + np.uint64(slot - (packed >> 16))
                x, at = _refill(x, words, at, end[j])
                odd = c & ~centred[t]
                q = symbol - reach[t] - odd
                if symbol == 2 * reach[t] + 1 + odd:
                    n_bits, x, at = _take_raw(x, 5, words, at, end[j])
                    m, x, at = _take_raw(x, min(n_bits, 16), words, at, end[j])
                    if n_bits > 16:
                        high, x, at = _take_raw(x, n_bits - 16, words, at, end[j])
                        m += high << 16
                    m += 1 << n_bits
                    sign, x, at = _take_raw(x, 1, words, at, end[j])
                    q = -reach[t] - odd - m if sign else reach[t] + m
                if shift[t] > 0:
                    low, x, at = _take_raw(x, shift[t], words, at, end[j])
                    q = (q << shift[t]) | low
                level = 2 * q + odd
                if c != odd:  # a centred union
                    level -= np.int64(q > 0) - np.int64(q < 0)
                if level > MAX_LEVEL or level < -MAX_LEVEL or at > end[j]:
                    return bounds[group + j]
                levels[k] = level
                state[j], place[j] = x, at
                register[j] = (s >> 1) ^ (branch if c else 0) ^ (union if q & 1 else 0)
        for j in range(n_group):
            if state[j] != np.uint64(_LOWER) or place[j] != end[j]:
                return bounds[group + j]
    return -1


def _code(states: int) -> tuple[int, int]:
    if states not in CODES:
        raise BadConfig(f"a trellis of {states} states; {', '.join(map(str, CODES))} are there")
    return CODES[states]


def _check_table(table: np.ndarray, shape: tuple[int, ...], n_tables: int) -> None:
    if (
        table.dtype not in (np.uint8, np.uint16)
        or table.shape != shape
        or (table.size and int(table.max()) >= n_tables)
    ):
        raise BadInput(f"table indices {table.dtype} {table.shape}; uint8 or uint16 {shape} below {n_tables} is right")


def quantize(x: np.ndarray, table: np.ndarray, costs: Costs, states: int, bounds: np.ndarray) -> np.ndarray:
    """The indices q of the levels of least Σ (x - L)² + cost among those that the trellis allows.

    x: (n,) float32, in steps, |x| < 2^28. table: (n,) uint8 or uint16, which row of `costs` holds for a value. bounds:
    `lane_bounds`. Returns (n,) int32.
    """
    union, branch = _code(states)
    _check_table(table, x.shape, len(costs.level))
    if x.dtype != np.float32 or x.ndim != 1 or bounds[0] != 0 or bounds[-1] != x.size or np.any(np.diff(bounds) < 0):
        raise BadInput(f"values {x.dtype} {x.shape} in lanes up to {bounds[-1]}; float32 (n,) and n are right")
    if x.size and not np.abs(x).max() < MAX_LEVEL - 8:  # NaN fails too
        raise BadInput(f"values up to {np.abs(x).max()} steps; below {MAX_LEVEL} is right: take a coarser step")
    level, centre = (np.ascontiguousarray(a, np.float32) for a in (costs.level, costs.centre))
    shift = np.ascontiguousarray(costs.shift, np.int64)
    if level.shape[1] % 2 == 0 or not shift.shape == centre.shape == (len(level),):
        raise BadInput(f"costs {level.shape}, {shift.shape}, {centre.shape}; (T, 2 half + 1), (T,) and (T,) are right")
    x, table, q = np.ascontiguousarray(x), np.ascontiguousarray(table), np.empty(x.size, np.int32)
    half, memory = level.shape[1] // 2, states.bit_length() - 1
    for a, b in zip(bounds[:-1], bounds[1:], strict=True):
        _search(x[a:b], table[a:b], level, half, shift, centre, union, branch, memory, 0, q[a:b])
    return q


def walk(q: np.ndarray, states: int, bounds: np.ndarray) -> np.ndarray:
    """The union of every value on the path that the indices take, (n,) uint8. Any indices are a path."""
    union, branch = _code(states)
    unions = np.empty(q.size, np.uint8)
    for a, b in zip(bounds[:-1], bounds[1:], strict=True):
        _walk(q[a:b], union, branch, unions[a:b])
    return unions


def levels(q: np.ndarray, unions: np.ndarray, centred: np.ndarray) -> np.ndarray:
    """The levels L, (n,) int32, of indices. centred: (n,), whether the odd union of a value is."""
    return (2 * q + unions * np.where(centred, -np.sign(q), 1)).astype(np.int32)


def encode(
    q: np.ndarray, table: np.ndarray, tables: Tables, states: int, bounds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(words of all lanes, uint32; number of words of each, (n_lanes,) uint32). q: (n,) int32, |q| < 2^27."""
    _check_table(table, q.shape, len(tables.reach))
    if q.dtype != np.int32 or (q.size and not -MAX_LEVEL < 2 * int(q.min()) <= 2 * int(q.max()) < MAX_LEVEL):
        raise BadInput(f"indices {q.dtype} beyond 2^27; int32 below is right")
    q, table, unions, lanes = np.ascontiguousarray(q), np.ascontiguousarray(table), walk(q, states, bounds), []
    reach = tables.reach[table] << tables.shift[table]
    beyond = (q > reach) | (q < -reach)  # and a few more
    for a, b in zip(bounds[:-1], bounds[1:], strict=True):
        room = (b - a) * (PRECISION + int(tables.shift.max())) + 36 * (int(beyond[a:b].sum()) + 1)
        out = np.empty(room // 32 + 4, np.uint32)
        start = _encode(q[a:b], unions[a:b], table[a:b], tables.entry, tables.reach, tables.shift, tables.centred, out)
        lanes.append(out[start:])
    return np.concatenate(lanes), np.array([len(lane) for lane in lanes], np.uint32)


def decode(
    words: np.ndarray, lengths: np.ndarray, table: np.ndarray, tables: Tables, states: int, bounds: np.ndarray
) -> np.ndarray:
    """The levels L, (n,) int32, of what `encode` wrote. Raises CorruptStream for anything that it cannot have."""
    union, branch = _code(states)
    _check_table(table, (int(bounds[-1]),), len(tables.reach))
    offset = np.concatenate([[0], np.cumsum(lengths.astype(np.int64))])
    if len(offset) != len(bounds) or offset[-1] != words.size or np.any(lengths < 2):
        right = len(bounds) - 1
        raise CorruptStream(f"{len(lengths)} lanes of {offset[-1]:,} words in {words.size:,}; {right} are right")
    claim(5 * table.size, "levels")
    out = np.empty(table.size, np.int32)
    words, table = np.ascontiguousarray(words, np.uint32), np.ascontiguousarray(table)
    if (wrong := _decode(words, offset, bounds, table, *tables, union, branch, out)) >= 0:
        raise CorruptStream(f"the lane that begins at value {wrong:,} is damaged")
    return out


def code_lengths(
    q: np.ndarray, unions: np.ndarray, context: np.ndarray, which: np.ndarray, tables: Tables
) -> np.ndarray:
    """Ideal code length in bits of the indices of each context, (n_contexts,) float64.

    q: (n,) int32; unions: (n,) uint8, 0 or 1. context: (n,) unsigned, below n_contexts. which: (n_contexts,) uint8, the
    table of each context.
    """
    _check_table(which, which.shape, len(tables.reach))
    if not context.shape == unions.shape == q.shape or (context.size and int(context.max()) >= len(which)):
        raise BadInput(f"contexts {context.shape} of {q.shape} indices; as many, all below {len(which)}, are right")
    frequency = tables.entry & 0xFFFF
    bits = np.where(frequency > 0, PRECISION - np.log2(np.maximum(frequency, 1)), 0.0)
    bits += np.repeat(tables.shift, 2)[:, None]
    out = np.zeros(len(which))
    _code_lengths(q, unions & 1, context, which, bits, tables.reach, tables.shift, tables.centred, out)
    return out


def viterbi_plain(metric: np.ndarray, states: int, begin: int = 0) -> np.ndarray:
    """The subsets y, (n,), on the path of least Σ metric[i, y] from a state. metric: (n, 4) integers. The search, in NumPy."""
    union, branch = _code(states)
    s = np.arange(states)
    parity = np.array([bin(v).count("1") & 1 for v in range(states)])
    low = s >> 1  # the predecessors of s' are low and low + S / 2
    predecessor = np.stack([low, low + states // 2])
    subset = parity[predecessor & union] + 2 * ((s & 1) ^ parity[predecessor & branch])
    path = np.where(s == begin, 0, _UNREACHED).astype(np.int64)
    chosen = np.empty((len(metric), states), np.int64)
    for i, m in enumerate(np.asarray(metric, np.int64)):
        arriving = path[predecessor] + m[subset]
        chosen[i] = arriving[1] < arriving[0]
        path = arriving.min(0)
    at, out = int(path.argmin()), np.empty(len(metric), np.int64)
    for i in range(len(metric) - 1, -1, -1):
        k = chosen[i, at]
        out[i], at = subset[k, at], predecessor[k, at]
    return out


def quantize_plain(
    x: np.ndarray, table: np.ndarray, costs: Costs, states: int, bounds: np.ndarray, begin: int = 0
) -> np.ndarray:
    """`quantize` value by value and without its window. begin: the state in which every lane does."""
    half = costs.level.shape[1] // 2
    q, metric = np.empty((len(x), 4), np.int32), np.empty((len(x), 4), np.float32)
    for i, (v, t) in enumerate(zip(x, table, strict=True)):
        row, shift, centre, floor = costs.level[t], int(costs.shift[t]), costs.centre[t], int(np.floor(v))
        for y in range(4):
            if y & 1 and centre < np.inf:  # levels of the sign of v; zero stands before 3
                near = (
                    4 - y + 4 * max(0, int(np.floor((abs(v) - np.float32(4 - y)) * np.float32(0.25) + np.float32(0.5))))
                )
                ways = [level for level in (near, near - 4) if level > 0]
                ways += [0] if y == 1 and near <= 7 else []
                ways = [level if v >= 0 else -level for level in ways]
            else:
                near = floor - 1 + ((y - floor + 1) & 3)
                ways = [near, near - 4 if v >= 0 else near + 4]
            paid = [row[min(max((level >> shift) + half, 0), 2 * half)] for level in ways]
            if y & 1 and ways[-1] == 0:
                paid[-1] = centre
            value = [(v - np.float32(level)) ** 2 + cost for level, cost in zip(ways, paid, strict=True)]
            level = ways[int(np.argmin(value))]
            q[i, y] = (level + np.sign(level)) // 2 if y & 1 and centre < np.inf else level >> 1
            metric[i, y] = min(value)
    over = (metric - metric.min(1, keepdims=True)) * np.float32(_ONE) + np.float32(0.5)
    over = np.minimum(over, np.float32(_CLIP)).astype(np.int64)
    y = np.concatenate([viterbi_plain(over[a:b], states, begin) for a, b in zip(bounds[:-1], bounds[1:], strict=True)])
    return q[np.arange(len(x)), y]


def encode_plain(
    q: np.ndarray, table: np.ndarray, tables: Tables, states: int, bounds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`encode` in Python's integers, with the encoder's form of the code."""
    union, branch = _code(states)
    lanes = []
    for a, b in zip(bounds[:-1], bounds[1:], strict=True):
        pieces: list[tuple[int, int, int]] = []  # (start, frequency, log2 of the total) in the order of reading
        s = 0
        for index, t in zip(q[a:b].tolist(), table[a:b].tolist(), strict=True):
            reach, shift, c = int(tables.reach[t]), int(tables.shift[t]), (s & union).bit_count() & 1
            s = (2 * s + ((index & 1) ^ (s & branch).bit_count() & 1)) % states
            odd = c & ~int(tables.centred[t])
            symbol, escape = (index >> shift) + reach + odd, 2 * reach + 1 + odd
            m = symbol - escape + 1 if symbol >= escape else max(-symbol, 0)
            packed = int(tables.entry[2 * t + c, escape if m else symbol])
            pieces.append((packed >> 16, packed & 0xFFFF, PRECISION))
            if m:
                n_bits = m.bit_length() - 1
                low = min(n_bits, 16)
                for value, width in ((n_bits, 5), (m, low), ((m ^ 1 << n_bits) >> 16, n_bits - low), (symbol < 0, 1)):
                    pieces += [(int(value) & ((1 << width) - 1), 1, width)] if width else []
            pieces += [(index & ((1 << shift) - 1), 1, shift)] if shift else []
        x, words = _LOWER, []
        for start, frequency, width in reversed(pieces):
            if x >= frequency << (63 - width):
                words.append(x & 0xFFFFFFFF)
                x >>= 32
            x = (x // frequency << width) + x % frequency + start
        lanes.append([x >> 32, x & 0xFFFFFFFF, *reversed(words)])
    return np.array(sum(lanes, []), np.uint32), np.array([len(lane) for lane in lanes], np.uint32)


class _Reader:
    """One lane for `decode_plain`."""

    def __init__(self, words: list[int]) -> None:
        self.words, self.x = iter(words), 0
        self.x = next(self.words) << 32 | next(self.words)

    def take(self, start: int, frequency: int, width: int) -> None:
        self.x = frequency * (self.x >> width) + (self.x & (1 << width) - 1) - start
        if self.x < _LOWER:
            self.x = self.x << 32 | next(self.words)

    def raw(self, width: int) -> int:
        value = self.x & (1 << width) - 1
        self.take(value, 1, width)
        return value


def decode_plain(
    words: np.ndarray, lengths: np.ndarray, table: np.ndarray, tables: Tables, states: int, bounds: np.ndarray
) -> np.ndarray:
    """`decode` of an undamaged stream in Python's integers, with the encoder's form of the code."""
    union, branch = _code(states)
    out: list[int] = []
    at = 0
    for a, b, length in zip(bounds[:-1], bounds[1:], lengths.tolist(), strict=True):
        lane, s = _Reader(words[at : at + length].tolist()), 0
        at += length
        for t in table[a:b].tolist():
            reach, shift, c = int(tables.reach[t]), int(tables.shift[t]), (s & union).bit_count() & 1
            odd = c & ~int(tables.centred[t])
            row, slot = tables.entry[2 * t + c].tolist(), lane.x & _TOTAL - 1
            symbol = next(i for i, e in enumerate(row) if slot < (e >> 16) + (e & 0xFFFF))
            lane.take(row[symbol] >> 16, row[symbol] & 0xFFFF, PRECISION)
            h = symbol - reach - odd
            if symbol == 2 * reach + 1 + odd:
                n_bits = lane.raw(5)
                m = lane.raw(min(n_bits, 16)) | 1 << n_bits
                m |= lane.raw(n_bits - 16) << 16 if n_bits > 16 else 0
                h = -reach - odd - m if lane.raw(1) else reach + m
            q = h << shift | (lane.raw(shift) if shift else 0)
            out.append(2 * q + odd - (c ^ odd) * ((q > 0) - (q < 0)))
            s = (2 * s + ((q & 1) ^ (s & branch).bit_count() & 1)) % states
    return np.array(out, np.int32)
