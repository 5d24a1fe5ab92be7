"""Context mixing of bytes, decision by decision, in integers: the predictor and its binary arithmetic coder in one loop.

One loop serves both directions, so encoder and decoder cannot disagree: `text` is the history (read by the encoder, written
by the decoder) and `code` the arithmetic code (written by the encoder, read by the decoder).

    contexts: order 1 to 4, 6, word ──▶ bit history (one byte of state) ──▶ adaptive probability ─┐
    longest match                   ──▶ length, predicted bit           ──▶ adaptive probability ─┤
                                                                                                  ▼
      bit ◀── arithmetic coder ◀── two adaptive probability maps (order 0, order 1) ◀── one logistic mixer, of three weights

Decisions are those of a tree of bytes (`kernels.bytetree`), four at a time to a slot of 16 bytes, which is looked up once.
Weights of an input are the sum of three, which the node, the match with the last byte, and the orders that were seen select.
What lies behind a cache is asked for before it is needed: slots as soon as they are known, a match two bytes before.

Fixed point: probabilities of a one-bit have 16 bits; the logistic domain ("stretch", ln p/(1-p)) has 8 fraction bits; a
mixer weight of 1.0 is 32768. Every table is computed with Python integers, so it is the same on every machine.

Source: Mahoney, "Adaptive Weighing of Context Models for Lossless Data Compression" (2005), for mixing, bit histories and
adaptive probability maps. Differs: own state set and transition rule (`bit_histories`), own hashing, sums of weights.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from laconic.core.errors import BadInput, CorruptStream, claim
from laconic.kernels.bytetree import LEAF, plant, replant
from laconic.kernels.rangecoder import ENCODER, FRESH, adapt, decode_bit, encode_bit, ended, finish, start

N_CONTEXTS = 6  # order 1, 2, 3, 4, 6, word
N_HASHED = 5  # all but order 1, which is looked up directly
LANES = 16  # mixer inputs: 6 contexts twice, the last 2 where their histories agree, the match twice
STRETCH_LIMIT = 2047
WEIGHT_LIMIT = (1 << 19) - 1  # of the weights of 32 bits
DOMAIN = 3071  # the mixer's output, 12 nats either way
SETS_B, SETS_C = 256, 256 + 4 * 256  # where weights chosen by match and last byte, and by orders seen, begin
N_SETS = SETS_C + 5 * 4 * 8
FIRST_WEIGHT, FIRST_MATCH_WEIGHT = 2600, 3500
APM_BINS = 32
MIN_TABLE_BITS, MAX_TABLE_BITS = 16, 26
MIN_MATCH = 5  # bytes hashed; two more are known by when a match is taken up
FIRST_RATE, LAST_RATE = 32 << 10, 10 << 10  # of learning, in 1024ths

_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_NIBBLE = np.uint64(0xD6E8FEB86659FD93)
_1, _8, _16, _20, _24, _28, _32, _40, _48, _56, _255 = (
    np.uint64(k) for k in (1, 8, 16, 20, 24, 28, 32, 40, 48, 56, 255)
)
FAST = {"_nrt": False, "forceinline": True}


class Tables(NamedTuple):
    """What the loop looks up; read only."""

    following: np.ndarray  # (512,) uint8, bit history after a 0 and after a 1 of every history
    seen: np.ndarray  # (256,) uint8, how many bits a history holds: the priority of its slot
    kept: np.ndarray  # (256,) int16, -1 where a history holds anything, else 0
    agreed: np.ndarray  # (256,) int16, -1 where all bits of a history were the same, else 0
    start: np.ndarray  # (256,) uint32, the adaptive probability with which a history starts
    squash: np.ndarray  # (2 · DOMAIN + 1,) uint16, logistic -> probability of 16 bits
    stretch: np.ndarray  # (4096,) int16, probability of 12 bits -> logistic


def bit_histories() -> list[tuple[tuple[int, int, int], tuple[int, int]]]:
    """The states ((zeros, ones, last bit), (state after 0, state after 1)), at most 256, state 0 empty.

    A state keeps bounded counts of zeros and ones. When a bit comes, the count of the other one, if above 2, is cut to about
    half, because the recent past tells more; counts beyond what is kept are lowered until the state is one of the kept.
    """
    largest = (24, 20, 16, 12, 9, 7, 7)  # kept: max(zeros, ones) ≤ largest[min(zeros, ones)]
    number: dict[tuple[int, int, int], int] = {(0, 0, 0): 0}
    states = [(0, 0, 0)]
    after: list[tuple[int, int]] = []
    for zeros, ones, _ in states:  # grows as states are met
        row = []
        for bit in (0, 1):
            count = [zeros, ones]
            count[bit] += 1
            if count[1 - bit] > 2:
                count[1 - bit] = min(count[1 - bit] // 2 + 1, 7)
            while min(count) >= len(largest) or max(count) > largest[min(count)]:
                count[count[0] < count[1]] -= 1
            state = (count[0], count[1], bit if min(count) else 0)
            if state not in number:
                number[state] = len(states)
                states.append(state)
            row.append(number[state])
        after.append((row[0], row[1]))
    return list(zip(states, after, strict=True))


@lru_cache(maxsize=1)
def tables() -> Tables:
    """The constant tables. Decimal arithmetic is exactly specified, so they are the same on every machine."""
    following, seen = np.zeros(512, np.uint8), np.zeros(256, np.uint8)
    start = np.full(256, FRESH, np.uint32)
    kept, agreed = np.zeros(256, np.int16), np.zeros(256, np.int16)
    for i, ((zeros, ones, _), after) in enumerate(bit_histories()):
        following[2 * i : 2 * i + 2], seen[i] = after, zeros + ones
        kept[i], agreed[i] = -(zeros + ones > 0), -(min(zeros, ones) == 0)
        start[i] = ((1 << 22) * (2 * ones + 1) // (2 * (zeros + ones) + 2)) << 10
    squash = np.empty(2 * DOMAIN + 1, np.uint16)
    with localcontext() as context:
        context.prec = 40
        step, power = (Decimal(-1) / 256).exp(), Decimal(1)
        for k in range(DOMAIN + 1):
            p = min(int((65536 / (1 + power)).to_integral_value()), 65535)  # 65536 / (1 + exp(-k / 256))
            squash[DOMAIN + k], squash[DOMAIN - k] = p, 65536 - p
            power *= step
    middle = np.arange(4096) * 16 + 8  # stretch inverts squash at the middle of each of 4096 bins
    stretch = np.clip(np.searchsorted(squash, middle) - DOMAIN, -STRETCH_LIMIT, STRETCH_LIMIT).astype(np.int16)
    return Tables(following, seen, kept, agreed, start, squash, stretch)


def table_bits(n: int, max_bits: int) -> int:
    """log2 of the bytes of bit histories for a text of `n` bytes: 16 to 32 a byte, above 2^24 half as many."""
    bits = max((16 * n - 1).bit_length(), MIN_TABLE_BITS)
    if bits > 24:
        bits = max(bits - 1, 24)
    return min(bits, max_bits)


def _vector(context, builder, array_type, array, at):
    """Pointer to LANES int32 of a one-dimensional array."""
    base = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(base, [at]), ir.VectorType(ir.IntType(32), LANES).as_pointer())


def _splat(value):
    return ir.Constant(ir.VectorType(ir.IntType(32), LANES), [value] * LANES)


def lanes_summed(builder, total):
    """Σ of LANES int32, >> 8, as an int64."""
    half = LANES // 2
    while half:  # halve until one lane is left
        lanes = [ir.Constant(ir.VectorType(ir.IntType(32), half), list(range(k, k + half))) for k in (0, half)]
        low, high = (builder.shuffle_vector(total, total, lane) for lane in lanes)
        total, half = builder.add(low, high), half // 2
    first = builder.extract_element(total, ir.IntType(32)(0))
    return builder.sext(builder.ashr(first, ir.IntType(32)(8)), ir.IntType(64))


def mix(weights, row, x, at):
    """Σ (weights[row + i] · x[at + i] >> 8) >> 8 over LANES inputs: the mixer's output before it is limited."""
    return sum(int(weights[row + i]) * int(x[at + i]) >> 8 for i in range(LANES)) >> 8


@intrinsic
def _mix(typingctx, weights, row, x, at):
    def codegen(context, builder, sig, args):
        w = builder.load(_vector(context, builder, sig.args[0], args[0], args[1]), align=4)
        v = builder.load(_vector(context, builder, sig.args[2], args[2], args[3]), align=4)
        total = builder.ashr(builder.mul(w, v), _splat(8))
        return lanes_summed(builder, total)

    return types.int64(weights, types.intp, x, types.intp), codegen


@overload(mix, jit_options=FAST)
def _mix_overload(weights, row, x, at):
    return lambda weights, row, x, at: _mix(weights, row, x, at)


def train(weights, row, x, at, error):
    """weights[row + i] += x[at + i] · error / 2^16, rounded, within ±8: a step down the gradient of the code length."""
    for i in range(LANES):
        w = int(weights[row + i]) + (int(x[at + i]) * error + (1 << 15) >> 16)
        weights[row + i] = min(max(w, -WEIGHT_LIMIT), WEIGHT_LIMIT)


@intrinsic
def _train(typingctx, weights, row, x, start, error):
    def codegen(context, builder, sig, args):
        at = _vector(context, builder, sig.args[0], args[0], args[1])
        v = builder.load(_vector(context, builder, sig.args[2], args[2], args[3]), align=4)
        e = builder.trunc(args[4], ir.IntType(32))
        e = builder.insert_element(_splat(0), e, ir.IntType(32)(0))
        e = builder.shuffle_vector(e, e, _splat(0))
        w = builder.add(
            builder.load(at, align=4), builder.ashr(builder.add(builder.mul(v, e), _splat(1 << 15)), _splat(16))
        )
        for predicate, bound in (("<", WEIGHT_LIMIT), (">", -WEIGHT_LIMIT)):
            w = builder.select(builder.icmp_signed(predicate, w, _splat(bound)), w, _splat(bound))
        builder.store(w, at, align=4)
        return context.get_dummy_value()

    return types.void(weights, types.intp, x, types.intp, types.int64), codegen


@overload(train, jit_options=FAST)
def _train_overload(weights, row, x, at, error):
    return lambda weights, row, x, at, error: _train(weights, row, x, at, error)


def get(array, at):
    """array[at] as an integer, at ≥ 0."""
    return int(array[at])


@intrinsic
def _get(typingctx, array, at):
    def codegen(context, builder, sig, args):
        base = context.make_array(sig.args[0])(context, builder, args[0]).data
        value = builder.load(builder.gep(base, [args[1]]))
        wide = ir.IntType(64)
        if value.type.width == 64:
            return value
        return builder.sext(value, wide) if sig.args[0].dtype.signed else builder.zext(value, wide)

    return types.int64(array, types.int64), codegen


@overload(get, jit_options=FAST)
def _get_overload(array, at):
    return lambda array, at: _get(array, at)


def put(array, at, value):
    """array[at] = value, at ≥ 0, for a value that fits."""
    array[at] = value


@intrinsic
def _put(typingctx, array, at, value):
    def codegen(context, builder, sig, args):
        base = context.make_array(sig.args[0])(context, builder, args[0]).data
        place = builder.gep(base, [args[1]])
        kind = place.type.pointee
        builder.store(args[2] if kind.width == 64 else builder.trunc(args[2], kind), place)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), codegen


@overload(put, jit_options=FAST)
def _put_overload(array, at, value):
    return lambda array, at, value: _put(array, at, value)


def shorts(context, builder, array_type, array, at):
    """Pointer to LANES int16 of a one-dimensional array."""
    base = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(base, [at]), ir.VectorType(ir.IntType(16), LANES).as_pointer())


def pairs(context, builder, w, v):
    """(LANES / 2,) int32, the sums of neighbouring products of two vectors of int16.

    x86 has an instruction for it, which LLVM does not find by itself.
    """
    half, i32 = LANES // 2, ir.IntType(32)
    triple, _, features = context.codegen().magic_tuple()
    if triple.startswith("x86_64"):
        wide = "+avx2" in features
        n, name = (half, "llvm.x86.avx2.pmadd.wd") if wide else (half // 2, "llvm.x86.sse2.pmadd.wd")
        kind = ir.VectorType(ir.IntType(16), 2 * n)
        multiply = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VectorType(i32, n), [kind, kind]), name
        )

        def part(vector, at):
            return builder.shuffle_vector(
                vector, vector, ir.Constant(ir.VectorType(i32, 2 * n), list(range(at, at + 2 * n)))
            )

        sums = [builder.call(multiply, [part(w, at), part(v, at)]) for at in range(0, LANES, 2 * n)]
        if wide:
            return sums[0]
        return builder.shuffle_vector(*sums, ir.Constant(ir.VectorType(i32, half), list(range(half))))

    def every_other(vector, first):
        lanes = ir.Constant(ir.VectorType(i32, half), list(range(first, LANES, 2)))
        return builder.sext(builder.shuffle_vector(vector, vector, lanes), ir.VectorType(i32, half))

    even, odd = (builder.mul(every_other(w, k), every_other(v, k)) for k in (0, 1))
    return builder.add(even, odd)


def halves_summed(builder, total):
    """Σ (lane >> 3) of LANES / 2 int32, as an int64."""
    half = LANES // 2
    total = builder.ashr(total, ir.Constant(total.type, [3] * half))
    while half > 1:
        half //= 2
        lanes = [ir.Constant(ir.VectorType(ir.IntType(32), half), list(range(k, k + half))) for k in (0, half)]
        low, high = (builder.shuffle_vector(total, total, lane) for lane in lanes)
        total = builder.add(low, high)
    return builder.sext(builder.extract_element(total, ir.IntType(32)(0)), ir.IntType(64))


def stepped(builder, w, v, e):
    """w + (v · e + 2^15 >> 16), saturated; vectors of int16."""
    short, wide = w.type, ir.VectorType(ir.IntType(32), LANES)
    product = builder.mul(builder.sext(v, wide), builder.sext(e, wide))
    high = builder.trunc(builder.ashr(product, ir.Constant(wide, [16] * LANES)), short)
    low = builder.lshr(builder.mul(v, e), ir.Constant(short, [15] * LANES))  # what rounds up
    kind = ir.FunctionType(short, [short, short])
    add = cgutils.get_or_insert_function(builder.module, kind, f"llvm.sadd.sat.v{LANES}i16")
    return builder.call(add, [w, builder.add(high, low)])


def _gathered(builder, values):
    """A vector of int16 of LANES int64."""
    vector = ir.Constant(ir.VectorType(ir.IntType(16), LANES), ir.Undefined)
    for k, value in enumerate(values):
        vector = builder.insert_element(vector, builder.trunc(value, ir.IntType(16)), ir.IntType(32)(k))
    return vector


def mix3(weights, a, b, c, x):
    """Σ over pairs of LANES inputs, each >> 3, of x times the sum of three rows of weights; >> 12: the mixer's output.

    weights: int16, 1.0 is 32768. a, b, c: where rows begin. x: LANES integers within ±2048.
    """
    total = 0
    for k in range(0, LANES, 2):
        lane = sum(int(weights[row + i]) * x[i] for row in (a, b, c) for i in (k, k + 1))
        total += lane >> 3
    return total >> 12


@intrinsic
def _mix3(typingctx, weights, a, b, c, x):
    def codegen(context, builder, sig, args):
        v = _gathered(builder, cgutils.unpack_tuple(builder, args[4], LANES))
        total = None
        for row in args[1:4]:
            w = builder.load(shorts(context, builder, sig.args[0], args[0], row), align=32)
            lane = pairs(context, builder, w, v)
            total = lane if total is None else builder.add(total, lane)
        return builder.ashr(halves_summed(builder, total), ir.IntType(64)(12))

    return types.int64(weights, types.int64, types.int64, types.int64, x), codegen


@overload(mix3, jit_options=FAST)
def _mix3_overload(weights, a, b, c, x):
    return lambda weights, a, b, c, x: _mix3(weights, a, b, c, x)


def train3(weights, a, b, c, x, error):
    """weights[row + i] += x[i] · error + 2^15 >> 16, saturated, in three rows that are not the same. error: int16."""
    for row in (a, b, c):
        for i in range(LANES):
            w = int(weights[row + i]) + (x[i] * error + (1 << 15) >> 16)
            weights[row + i] = min(max(w, -32768), 32767)


@intrinsic
def _train3(typingctx, weights, a, b, c, x, error):
    def codegen(context, builder, sig, args):
        v = _gathered(builder, cgutils.unpack_tuple(builder, args[4], LANES))
        e = _gathered(builder, [args[5]] * LANES)
        for row in args[1:4]:
            at = shorts(context, builder, sig.args[0], args[0], row)
            builder.store(stepped(builder, builder.load(at, align=32), v, e), at, align=32)
        return context.get_dummy_value()

    return types.void(weights, types.int64, types.int64, types.int64, x, types.int64), codegen


@overload(train3, jit_options=FAST)
def _train3_overload(weights, a, b, c, x, error):
    return lambda weights, a, b, c, x, error: _train3(weights, a, b, c, x, error)


def take_slot(table, at, check):
    """Clear the 16 bytes of a slot and write its check byte."""
    table[at] = check
    for k in range(1, 16):
        table[int(at) + k] = 0


@intrinsic
def _take_slot(typingctx, table, at, check):
    def codegen(context, builder, sig, args):
        words = ir.VectorType(ir.IntType(64), 2)
        base = context.make_array(sig.args[0])(context, builder, args[0]).data
        fresh = builder.insert_element(ir.Constant(words, [0, 0]), args[2], ir.IntType(32)(0))
        builder.store(fresh, builder.bitcast(builder.gep(base, [args[1]]), words.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(table, types.uint64, types.uint64), codegen


@overload(take_slot, jit_options=FAST)
def _take_slot_overload(table, at, check):
    return lambda table, at, check: _take_slot(table, at, check)


def prefetch(table, at):
    """Ask for the cache line of table[at]."""


@intrinsic
def _prefetch(typingctx, table, at):
    def codegen(context, builder, sig, args):
        byte = ir.IntType(8).as_pointer()
        base = context.make_array(sig.args[0])(context, builder, args[0]).data
        i32 = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [builder.bitcast(builder.gep(base, [args[1]]), byte), i32(1), i32(3), i32(1)])
        return context.get_dummy_value()

    return types.void(table, types.intp), codegen


@overload(prefetch, jit_options=FAST)
def _prefetch_overload(table, at):
    return lambda table, at: _prefetch(table, at)


@njit(cache=True, nogil=True, **FAST)
def seek(table, first, check, t):
    """The slot with this check among the three that begin at `first`, the least used of them cleared for it if there is none."""
    second, third = first ^ 16, first ^ 32
    seen1, seen2 = get(t.seen, get(table, first + 1)), get(t.seen, get(table, second + 1))
    place = first if seen1 <= seen2 else second
    place = place if min(seen1, seen2) <= get(t.seen, get(table, third + 1)) else third
    place = third if get(table, third) == check else place
    place = second if get(table, second) == check else place
    place = first if get(table, first) == check else place
    if get(table, place) != check:
        take_slot(table, np.uint64(place), np.uint64(check))
    return place


@njit(cache=True, nogil=True, **FAST)
def bin_of(mixed):
    """(bin, weight of the next bin in 128ths) of an adaptive probability map, of an output within ±STRETCH_LIMIT."""
    v = (mixed + 2048) * (APM_BINS - 1)
    return v >> 12, (v >> 5) & 127


@njit(cache=True, nogil=True, **FAST)
def refined(apm, at, part):
    """The probability between two bins."""
    return (get(apm, at) * (128 - part) + get(apm, at + 1) * part) >> 7


@njit(cache=True, nogil=True, _nrt=False)
def _transcode(text, code, decoding, tree, work, t):
    """Code `text` into `code`, or back. Returns the length of the code, or -1 where a decoder finds it damaged.

    text: (n,) uint8. code: uint8; an encoder that runs out of room goes on counting. work: a fresh `Workspace`.
    """
    child, paths = tree
    table, matches, apm, weights, maps, match_maps, direct, hashes, slots = work
    n = text.size
    low, width, at = ENCODER
    value = np.uint64(0)
    if decoding:
        value, width, at = start(code)
    table_mask = np.uint64(table.size - 1) & ~np.uint64(15)
    match_bits = np.uint64(0)
    while (np.uint64(1) << match_bits) < np.uint64(matches.size):
        match_bits += _1
    match_shift = np.uint64(64) - match_bits

    last8 = np.uint64(0)  # the last eight bytes, newest lowest
    word = np.uint64(0)
    matched, length = 0, 0  # text[matched] is expected because the `length` bytes before it are the last ones
    seat, candidate = 0, 0  # where the bytes before the last one are kept; what was kept there a byte before
    rate = FIRST_RATE

    for i in range(n):
        next_seat = np.int64(((last8 << _24) * _SPREAD) >> match_shift)
        prefetch(matches, next_seat)
        last1 = np.int64(last8 & _255)
        last4 = last8 & np.uint64(0xFFFFFFFF)
        hashes[0] = (last8 & np.uint64(0xFFFF)) * _SPREAD + np.uint64(1)
        hashes[1] = (last8 & np.uint64(0xFFFFFF)) * _SPREAD + np.uint64(2)
        hashes[2] = last4 * _SPREAD + np.uint64(3)
        hashes[3] = (last8 & np.uint64(0xFFFFFFFFFFFF)) * _SPREAD + np.uint64(4)
        hashes[4] = word * _SPREAD + np.uint64(5)
        for k in range(N_HASHED):
            h = hashes[np.uint64(k)]
            h = (h ^ (h >> _28)) * _NIBBLE
            h ^= h >> _24
            hashes[np.uint64(k)] = h
            prefetch(table, np.int64((h >> _20) & table_mask))
        if length == 0 and candidate > 0:
            matched = candidate + 1
            while length < 400 and length < matched and get(text, matched - 1 - length) == get(text, i - 1 - length):
                length += 1
            if length < MIN_MATCH:
                length = 0
        candidate = get(matches, seat)
        if candidate:
            candidate += 1
            prefetch(text, candidate + 1)
        put(matches, seat, max(i - 1, 0))
        seat = next_seat

        expected = get(paths, get(text, matched)) if length else 0
        bucket, match_map = 0, 0
        if length:
            bucket = 1 + (length > 7) + (length > 15)
            match_map = 2 * (length if length < 16 else min(16 + ((length - 16) >> 3), 63))
        in_match = length > 0
        path, depth, c0, node = 0, 0, 0, 1
        byte_path = 0 if decoding else get(paths, get(text, i))
        if decoding and at > code.size + 8:
            return -1
        while c0 < LEAF:
            if depth & 3 == 0:
                if depth:
                    for k in range(N_HASHED):
                        h = (hashes[np.uint64(k)] + np.uint64(c0 + 1)) * _SPREAD
                        h ^= h >> _28
                        hashes[np.uint64(k)] = h
                        prefetch(table, np.int64((h >> _20) & table_mask))
                for k in range(N_HASHED):
                    h = hashes[np.uint64(k)]
                    put(slots, k, seek(table, np.int64((h >> _20) & table_mask), np.int64(h >> _56), t))
                node = 1
            down = 15 - depth
            apm0, apm1 = c0 * APM_BINS, (256 + (last1 << 8) + c0) * APM_BINS
            prefetch(apm, apm1)

            # Predict
            at0 = (last1 << 8) + c0
            at1, at2, at3 = get(slots, 0) + node, get(slots, 1) + node, get(slots, 2) + node
            at4, at5 = get(slots, 3) + node, get(slots, 4) + node
            s0, s1, s2 = get(direct, at0), 256 + get(table, at1), 512 + get(table, at2)
            s3, s4, s5 = 768 + get(table, at3), 1024 + get(table, at4), 1280 + get(table, at5)
            p0, p1, p2, p3 = get(maps, s0), get(maps, s1), get(maps, s2), get(maps, s3)
            p4, p5 = get(maps, s4), get(maps, s5)
            next_bit = (expected >> down) & 1
            in_match = in_match and (expected ^ path) >> (down + 1) == 0
            match_at, match_p, match_half = match_map + next_bit, 0, 0
            if in_match:
                match_half = (get(match_maps, match_at) >> 20) - 2048
                match_p = get(t.stretch, match_half + 2048)
            y4, y5 = get(t.stretch, p4 >> 4), get(t.stretch, p5 >> 4)
            x = (
                get(t.stretch, p0 >> 4), get(t.stretch, p1 >> 4), get(t.stretch, p2 >> 4), get(t.stretch, p3 >> 4), y4, y5,
                (p0 - 32768) >> 5, (p1 - 32768) >> 5, (p2 - 32768) >> 5, (p3 - 32768) >> 5, (p4 - 32768) >> 5,
                (p5 - 32768) >> 5, y4 & get(t.agreed, s4 & 255), y5 & get(t.agreed, s5 & 255), match_p, match_half,
            )  # fmt: skip
            in_bucket = bucket if in_match else 0
            seen = (s1 != 256) + (s2 != 512) + (s3 != 768) + (s4 != 1024)
            row_a = c0 * LANES
            row_b = (SETS_B + (in_bucket << 8) + last1) * LANES
            row_c = (SETS_C + ((seen * 4 + in_bucket) << 3) + min(depth, 7)) * LANES
            mixed = min(max(mix3(weights, row_a, row_b, row_c, x), -STRETCH_LIMIT), STRETCH_LIMIT)
            p = get(t.squash, mixed + DOMAIN)
            at_bin, part = bin_of(mixed)
            apm0, apm1 = apm0 + at_bin, apm1 + at_bin
            q = (p + refined(apm, apm0, part) + 2 * refined(apm, apm1, part) + 2) >> 2
            q = min(max(q, 1), 65535)

            # Code
            if decoding:
                bit, value, width, at = decode_bit(value, width, at, code, q, 16)
            else:
                bit = (byte_path >> down) & 1
                low, width, at = encode_bit(low, width, at, code, q, 16, bit)

            # Learn
            goal = 65535 * bit
            error = min(max((goal - p) * (rate >> 10) >> 6, -32768), 32767)
            train3(weights, row_a, row_b, row_c, x, error)
            near = part >> 6
            was = get(apm, apm0 + near)
            put(apm, apm0 + near, was + ((goal - was) >> 6))
            was = get(apm, apm1 + near)
            put(apm, apm1 + near, was + ((goal - was) >> 6))
            put(maps, s0, p0 + ((goal - p0) >> 8))
            put(maps, s1, p1 + ((goal - p1) >> 8))
            put(maps, s2, p2 + ((goal - p2) >> 8))
            put(maps, s3, p3 + ((goal - p3) >> 8))
            put(maps, s4, p4 + ((goal - p4) >> 8))
            put(maps, s5, p5 + ((goal - p5) >> 8))
            put(direct, at0, get(t.following, 2 * s0 + bit))
            put(table, at1, get(t.following, 2 * (s1 & 255) + bit))
            put(table, at2, get(t.following, 2 * (s2 & 255) + bit))
            put(table, at3, get(t.following, 2 * (s3 & 255) + bit))
            put(table, at4, get(t.following, 2 * (s4 & 255) + bit))
            put(table, at5, get(t.following, 2 * (s5 & 255) + bit))
            if in_match:
                match_maps[match_at] = adapt(match_maps[match_at], bit, 1023)
            path |= bit << down
            depth += 1
            c0, node = get(child, 2 * c0 + bit), 2 * node + bit

        # Remember the byte
        byte = c0 - LEAF
        if decoding:
            put(text, i, byte)
        c = np.uint64(byte)
        last8 = last8 << _8 | c
        rate += (LAST_RATE - rate) >> 14
        letter = byte | 32
        if (letter >= 97 and letter <= 122) or byte >= 128:
            word = (word + np.uint64(letter)) * _SPREAD
        else:
            word = np.uint64(0)
        if length and get(text, matched) == byte:
            length, matched = min(length + 1, 65535), matched + 1
        else:
            length = 0

    if decoding:
        return at if ended(value, width, at, code) else -1
    return finish(low, width, at, code)


class Workspace(NamedTuple):
    """All that the loop writes, beside the text and the code."""

    table: np.ndarray  # (2^k,) uint8 zeros, slots of 16 bytes; starts on a cache line
    matches: np.ndarray  # (2^(k-6),) int32 zeros, hash of MIN_MATCH bytes -> where they were last followed
    apm: (
        np.ndarray
    )  # ((256 + 65536) · APM_BINS,) uint16, adaptive probability maps, at first the identity; on a cache line
    weights: np.ndarray  # (N_SETS · LANES,) int16; on a cache line
    maps: np.ndarray  # (256 · N_CONTEXTS,) uint16, bit history -> adaptive probability
    match_maps: np.ndarray  # (128,) uint32
    direct: np.ndarray  # (65536,) uint8, bit histories of order 1
    hashes: np.ndarray  # (N_HASHED,) uint64
    slots: np.ndarray  # (N_HASHED,) int64


def on_a_line(n: int, dtype: type) -> np.ndarray:
    """(n,) zeros that start on a cache line, and on pages as large as the system has where they are many."""
    room = np.zeros(n * np.dtype(dtype).itemsize + 64, np.uint8)
    at = -room.ctypes.data % 64
    return room[at : at + n * np.dtype(dtype).itemsize].view(dtype)


def fresh_maps(n: int, t: Tables) -> np.ndarray:
    """(n · APM_BINS,) uint16, adaptive probability maps that change nothing."""
    line = t.squash[
        np.clip(np.arange(APM_BINS) * 4096 // (APM_BINS - 1) - 2048, -STRETCH_LIMIT, STRETCH_LIMIT) + DOMAIN
    ]
    out = on_a_line(n * APM_BINS, np.uint16)
    out.reshape(n, APM_BINS)[:] = line
    return out


def workspace_bytes(n: int, max_bits: int) -> int:
    """Memory of a coder for a text of `n` bytes, beside the text and the code."""
    size = 1 << table_bits(n, max_bits)
    return size + size // 16 + (256 + 65536) * (2 * APM_BINS + 1) + 4096 * N_CONTEXTS + 2 * LANES * N_SETS


def _workspace(n: int, max_bits: int, t: Tables) -> Workspace:
    size = 1 << table_bits(n, max_bits)
    weights = on_a_line(N_SETS * LANES, np.int16)
    weights.reshape(N_SETS, LANES)[:, :N_CONTEXTS] = FIRST_WEIGHT
    weights.reshape(N_SETS, LANES)[:, LANES - 2] = FIRST_MATCH_WEIGHT
    return Workspace(
        table=on_a_line(size, np.uint8),
        matches=np.zeros(size // 64, np.int32),
        apm=fresh_maps(256 + 65536, t),
        weights=weights,
        maps=np.tile((t.start >> 16).astype(np.uint16), N_CONTEXTS),
        match_maps=np.full(128, FRESH, np.uint32),
        direct=np.zeros(65536, np.uint8),
        hashes=np.zeros(N_HASHED, np.uint64),
        slots=np.zeros(N_HASHED, np.int64),
    )


def encode(text: np.ndarray, max_bits: int) -> np.ndarray | None:
    """text: (n,) uint8, n < 2^31 -> its code, uint8; None where the code would not be shorter than the text."""
    if text.size >= 1 << 31:
        raise BadInput(f"a block of {text.size:,} bytes; below 2^31 is possible, cut it")
    sent, tree = plant(text)
    code = np.zeros(text.size, np.uint8)
    t = tables()
    n = _transcode(np.array(text, np.uint8), code, False, tree, _workspace(text.size, max_bits, t), t)
    return np.append(sent, code[:n]) if n + sent.size < text.size else None


def decode(code: np.ndarray, n: int, max_bits: int) -> np.ndarray:
    """The text of `n` bytes, uint8.

    Raises
    ------
    CorruptStream: the code is not one that `encode` makes for a text of this length.
    """
    # No decision costs less than log2(65536 / 65535) bits, and no byte less than one decision.
    if n >= 1 << 31 or n > 5680 * 64 * (code.size + 8):
        raise CorruptStream(f"{code.size:,} bytes of code cannot hold {n:,} bytes")
    claim(n + workspace_bytes(n, max_bits), "the text and its model")
    code, tree = replant(code)
    text = np.zeros(n, np.uint8)
    t = tables()
    if _transcode(text, np.array(code, np.uint8), True, tree, _workspace(n, max_bits, t), t) < 0:
        raise CorruptStream(f"the code of {n:,} bytes does not end where it should")
    return text
