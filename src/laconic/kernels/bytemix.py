"""Context mixing of bytes, bit by bit, in integers: the predictor and its binary arithmetic coder in one loop.

One loop serves both directions, so encoder and decoder cannot disagree: `text` is the history (read by the encoder, written
by the decoder) and `code` the arithmetic code (written by the encoder, read by the decoder).

    contexts: order 0, 1, 2, 3, 4, 6, word, sparse  ──▶ bit history (one byte of state) ──▶ adaptive probability ─┐
    longest match                                   ──▶ length, predicted bit            ──▶ adaptive probability ─┤
                                                                                                                   ▼
      bit ◀── arithmetic coder ◀── two adaptive probability maps (order 0, order 1) ◀── two logistic mixers, averaged

Fixed point: probabilities of a one-bit have 16 bits; the logistic domain ("stretch", ln p/(1-p)) has 8 fraction bits; a
mixer weight of 1.0 is 65536. Every table is computed with Python integers, so it is the same on every machine.

Source: Mahoney, "Adaptive Weighing of Context Models for Lossless Data Compression" (2005), for mixing, bit histories and
adaptive probability maps. Differs: own state set and transition rule (`bit_histories`), own hashing, two averaged weight sets.
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
from laconic.kernels.rangecoder import ENCODER, FRESH, adapt, decode_bit, encode_bit, ended, finish, start

N_CONTEXTS = 8  # order 0, 1, 2, 3, 4, 6, word, sparse
N_HASHED = 6  # all but orders 0 and 1, which are looked up directly
LANES = 16  # mixer inputs: 8 contexts, the match, 6 confidences, a bias
MATCH, BIAS = 8, 15
STRETCH_LIMIT = 2047
WEIGHT_LIMIT = (1 << 19) - 1
DOMAIN = 3071  # the mixer's output, 12 nats either way
N_SETS = 256 + 4 * 256  # weights chosen by the bits of this byte; and by match length with the last byte
APM_BINS = 33
MIN_TABLE_BITS, MAX_TABLE_BITS = 16, 26
MIN_MATCH = 5

_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_NIBBLE = np.uint64(0xD6E8FEB86659FD93)
_1, _8, _16, _20, _24, _28, _32, _40, _56, _255 = (np.uint64(k) for k in (1, 8, 16, 20, 24, 28, 32, 40, 56, 255))


class Tables(NamedTuple):
    """What the loop looks up; read only."""

    following: np.ndarray  # (512,) uint8, bit history after a 0 and after a 1 of every history
    seen: np.ndarray  # (256,) uint8, how many bits a history holds: the priority of its slot
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
    for i, ((zeros, ones, _), after) in enumerate(bit_histories()):
        following[2 * i : 2 * i + 2], seen[i] = after, zeros + ones
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
    return Tables(following, seen, start, squash, stretch)


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


@overload(mix)
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


@overload(train)
def _train_overload(weights, row, x, at, error):
    return lambda weights, row, x, at, error: _train(weights, row, x, at, error)


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


@overload(take_slot, jit_options={"_nrt": False, "forceinline": True})
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


@overload(prefetch, jit_options={"_nrt": False, "forceinline": True})
def _prefetch_overload(table, at):
    return lambda table, at: _prefetch(table, at)


@njit(cache=True, nogil=True)
def _bin(stretched):
    """(bin, weight of the next bin in 128ths) of an adaptive probability map."""
    v = stretched + 2048
    return v >> 7, v & 127


@njit(cache=True, nogil=True)
def _transcode(text, code, decoding, work, t):
    """Code `text` into `code`, or back. Returns the length of the code, or -1 where a decoder finds it damaged.

    text: (n,) uint8. code: uint8; an encoder that runs out of room goes on counting. work: a fresh `Workspace`.
    """
    table, matches, apm = work
    n = text.size
    low, width, at = ENCODER
    value = np.uint64(0)
    if decoding:
        value, width, at = start(code)

    direct = np.zeros(256 + 65536, np.uint8)  # histories of orders 0 and 1
    maps = np.empty(N_CONTEXTS * 256, np.uint32)
    for i in range(N_CONTEXTS):
        maps[i * 256 : i * 256 + 256] = t.start
    match_maps = np.full(64, FRESH, np.uint32)
    weights = np.zeros(N_SETS * LANES, np.int32)
    for i in range(N_SETS):
        weights[i * LANES : i * LANES + MATCH + 1] = 15000
    x = np.zeros(LANES, np.int32)
    x[BIAS] = 256
    hashes = np.zeros(N_HASHED, np.uint64)
    slots = np.zeros(N_HASHED, np.uint64)
    nodes = np.zeros(N_HASHED, np.uint64)
    histories = np.zeros(N_HASHED, np.uint64)
    table_mask = np.uint64(table.size - 1)
    match_mask = np.uint64(matches.size - 1)

    last8 = np.uint64(0)  # the last eight bytes, newest lowest
    word = np.uint64(0)
    matched, length = 0, 0  # text[matched] is expected because the `length` bytes before it are the last ones
    rate = 32 << 10

    for i in range(n):
        last4 = last8 & np.uint64(0xFFFFFFFF)
        last1 = np.int64(last8 & np.uint64(255))
        hashes[0] = last4 & np.uint64(0xFFFF)
        hashes[1] = last4 & np.uint64(0xFFFFFF)
        hashes[2] = last4
        hashes[3] = last8 & np.uint64(0xFFFFFFFFFFFF)
        hashes[4] = word
        hashes[5] = last8 & np.uint64(0xF0F0F0F0F0F0)
        for k in range(N_HASHED):
            h = (hashes[k] + np.uint64(k + 1)) * _SPREAD
            h = (h ^ (h >> _28)) * _NIBBLE + np.uint64(k)
            hashes[k] = h ^ (h >> _24)
        expected = np.int64(text[matched]) | 256 if length else 0
        c0, node = 1, 1
        byte = 0 if decoding else np.int64(text[i])
        if decoding and at > code.size + 8:
            return -1
        for j in range(8):
            if j == 0 or j == 4:
                if j == 4:
                    for k in range(N_HASHED):
                        h = (hashes[k] + np.uint64(c0)) * _SPREAD
                        hashes[k] = h ^ (h >> _28)
                for k in range(N_HASHED):
                    prefetch(table, np.int64((hashes[k] >> _20) & table_mask))
                for k in range(N_HASHED):
                    first = (hashes[k] >> _20) & table_mask & ~np.uint64(15)
                    second, third = first ^ _16, first ^ _32
                    check = hashes[k] >> _56
                    seen1, seen2 = t.seen[table[first + _1]], t.seen[table[second + _1]]
                    place = first if seen1 <= seen2 else second
                    place = place if min(seen1, seen2) <= t.seen[table[third + _1]] else third
                    place = third if table[third] == check else place
                    place = second if table[second] == check else place
                    place = first if table[first] == check else place
                    if table[place] != check:
                        take_slot(table, place, check)
                    slots[k] = place
                node = 1

            # Predict
            state0, state1 = direct[c0], direct[256 + (last1 << 8) + c0]
            x[0] = t.stretch[maps[state0] >> 20]
            x[1] = t.stretch[maps[256 + np.int64(state1)] >> 20]
            for k in range(N_HASHED):
                node_at = slots[k] + np.uint64(node)
                history = np.uint64(512 + 256 * k) + np.uint64(table[node_at])
                nodes[k], histories[k] = node_at, history
                p = np.int64(maps[history] >> 20)
                x[2 + k] = t.stretch[p]
                x[9 + k] = (p - 2048) >> 1
            in_match = length > 0 and (expected >> (8 - j)) == c0
            bucket, match_map = 0, 0
            x[MATCH] = 0
            if in_match:
                match_map = min(length, 15) if length < 16 else min(16 + ((length - 16) >> 2), 31)
                match_map = 2 * match_map + ((expected >> (7 - j)) & 1)
                x[MATCH] = t.stretch[match_maps[match_map] >> 20]
                bucket = 1 + (length > 7) + (length > 15)
            row_a, row_b = c0 * LANES, (256 + 256 * bucket + last1) * LANES
            mixed_a = min(max(mix(weights, row_a, x, 0), -DOMAIN), DOMAIN)
            mixed_b = min(max(mix(weights, row_b, x, 0), -DOMAIN), DOMAIN)
            mixed = (mixed_a + mixed_b) >> 1
            p = np.int64(t.squash[mixed + DOMAIN])
            at_bin, part = _bin(min(max(mixed, -STRETCH_LIMIT), STRETCH_LIMIT))
            apm0 = c0 * APM_BINS + at_bin
            apm1 = (256 + (last1 << 8) + c0) * APM_BINS + at_bin
            q0 = (np.int64(apm[apm0]) * (128 - part) + np.int64(apm[apm0 + 1]) * part) >> 7
            q1 = (np.int64(apm[apm1]) * (128 - part) + np.int64(apm[apm1 + 1]) * part) >> 7
            p = min(max((p + q0 + 2 * q1 + 2) >> 2, 1), 65535)

            # Code
            if decoding:
                bit, value, width, at = decode_bit(value, width, at, code, p, 16)
            else:
                bit = (byte >> (7 - j)) & 1
                low, width, at = encode_bit(low, width, at, code, p, 16, bit)

            # Learn
            target = bit << 16
            lr = rate >> 10
            train(weights, row_a, x, 0, (target - np.int64(t.squash[mixed_a + DOMAIN])) * lr >> 4)
            train(weights, row_b, x, 0, (target - np.int64(t.squash[mixed_b + DOMAIN])) * lr >> 4)
            near = np.int64(part >= 64)
            goal = 65535 * bit
            apm[apm0 + near] += (goal - np.int64(apm[apm0 + near])) >> 6
            apm[apm1 + near] += (goal - np.int64(apm[apm1 + near])) >> 5
            maps[state0] = adapt(maps[state0], bit, 1023)
            direct[c0] = t.following[2 * np.int64(state0) + bit]
            maps[256 + np.int64(state1)] = adapt(maps[256 + np.int64(state1)], bit, 1023)
            direct[256 + (last1 << 8) + c0] = t.following[2 * np.int64(state1) + bit]
            for k in range(N_HASHED):
                history = histories[k]
                maps[history] = adapt(maps[history], bit, 1023)
                table[nodes[k]] = t.following[(history & _255) << _1 | np.uint64(bit)]
            if in_match:
                match_maps[match_map] = adapt(match_maps[match_map], bit, 255)
            c0, node = 2 * c0 + bit, 2 * node + bit

        # Remember the byte
        if decoding:
            text[i] = c0 & 255
        c = np.uint64(c0 & 255)
        last8 = last8 << _8 | c
        rate += ((8 << 10) - rate) >> 13
        letter = c | np.uint64(32)
        if (letter >= np.uint64(97) and letter <= np.uint64(122)) or c >= np.uint64(128):
            word = (word + letter) * _SPREAD
        else:
            word = np.uint64(0)
        if length and text[matched] == text[i]:
            length, matched = min(length + 1, 65535), matched + 1
        else:
            length = 0
        h = (last8 << _24) * _SPREAD
        seat = np.int64((h >> _40) & match_mask)
        if length == 0:
            matched = np.int64(matches[seat])
            while length < 32 and length < matched and text[matched - 1 - length] == text[i - length]:
                length += 1
            if length < MIN_MATCH:
                length = 0
        matches[seat] = i + 1

    if decoding:
        return at if ended(value, width, at, code) else -1
    return finish(low, width, at, code)


class Workspace(NamedTuple):
    """The arrays whose size depends on the text."""

    table: np.ndarray  # (2^k,) uint8 zeros, slots of 16 bytes; starts on a cache line
    matches: np.ndarray  # (2^(k-6),) int32 zeros, hash of the last MIN_MATCH bytes -> where they were last followed
    apm: np.ndarray  # ((256 + 65536) · APM_BINS,) uint16, adaptive probability maps, at first the identity


def workspace_bytes(n: int, max_bits: int) -> int:
    """Memory of a coder for a text of `n` bytes, beside the text and the code."""
    size = 1 << table_bits(n, max_bits)
    return size + size // 16 + (256 + 65536) * (2 * APM_BINS + 1) + 8 * 4096 + 4 * LANES * N_SETS


def _workspace(n: int, max_bits: int, t: Tables) -> Workspace:
    size = 1 << table_bits(n, max_bits)
    room = np.zeros(size + 64, np.uint8)
    at = -room.ctypes.data % 64
    line = t.squash[np.clip(np.arange(-16, 17) * 128, -STRETCH_LIMIT, STRETCH_LIMIT) + DOMAIN]
    return Workspace(room[at : at + size], np.zeros(size // 64, np.int32), np.tile(line, 256 + 65536))


def encode(text: np.ndarray, max_bits: int) -> np.ndarray | None:
    """text: (n,) uint8, n < 2^31 -> its code, uint8; None where the code would not be shorter than the text."""
    if text.size >= 1 << 31:
        raise BadInput(f"a block of {text.size:,} bytes; below 2^31 is possible, cut it")
    code = np.zeros(text.size, np.uint8)
    t = tables()
    n = _transcode(np.array(text, np.uint8), code, False, _workspace(text.size, max_bits, t), t)
    return code[:n] if n < text.size else None


def decode(code: np.ndarray, n: int, max_bits: int) -> np.ndarray:
    """The text of `n` bytes, uint8.

    Raises
    ------
    CorruptStream: the code is not one that `encode` makes for a text of this length.
    """
    # No bit costs less than log2(65536 / 65535) bits, hence no byte less than 1/5679 of one.
    if n >= 1 << 31 or n > 5680 * 8 * (code.size + 8):
        raise CorruptStream(f"{code.size:,} bytes of code cannot hold {n:,} bytes")
    claim(n + workspace_bytes(n, max_bits), "the text and its model")
    text = np.zeros(n, np.uint8)
    t = tables()
    if _transcode(text, np.array(code, np.uint8), True, _workspace(n, max_bits, t), t) < 0:
        raise CorruptStream(f"the code of {n:,} bytes does not end where it should")
    return text
