"""Context mixing of bytes with contexts that a program lists: the strongest coder of bytes here, in integers throughout."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from laconic.core.errors import BadInput, CorruptStream, claim
from laconic.kernels.bytemix import DOMAIN, STRETCH_LIMIT, _bin, prefetch, tables, take_slot
from laconic.kernels.rangecoder import ENCODER, FRESH, adapt, decode_bit, encode_bit, ended, finish, start

LANES = 16
WEIGHT_LIMIT = (1 << 20) - 1
SETS = 6  # weight sets of the first layer
APM_BINS = 33
N_FEATURES = 20
_M1 = np.uint64(0x9E3779B97F4A7C15)
_M2 = np.uint64(0xD6E8FEB86659FD93)
_u = np.uint64
_1, _7, _8, _15, _16, _20, _24, _28, _32, _40, _48, _56, _255 = (_u(k) for k in (1, 7, 8, 15, 16, 20, 24, 28, 32, 40, 48, 56, 255))


_FAST = {"_nrt": False, "forceinline": True}


def _vec():
    return ir.VectorType(ir.IntType(32), LANES)


def _vector(context, builder, array_type, array, at):
    base = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(base, [at]), _vec().as_pointer())


def _splat(value):
    return ir.Constant(_vec(), [value] * LANES)


def mix(weights, row, x, n):
    """Σ (weights[row + i] · x[i] >> 8) >> 8 over n inputs, a multiple of LANES."""
    return sum(int(weights[row + i]) * int(x[i]) >> 8 for i in range(n)) >> 8


@intrinsic
def _mix(typingctx, weights, row, x, n):
    def codegen(context, builder, sig, args):
        total = cgutils.alloca_once_value(builder, ir.Constant(_vec(), None))
        i64 = ir.IntType(64)
        with cgutils.for_range_slice(builder, i64(0), args[3], i64(LANES)) as (i, _):
            w = builder.load(_vector(context, builder, sig.args[0], args[0], builder.add(args[1], i)), align=4)
            v = builder.load(_vector(context, builder, sig.args[2], args[2], i), align=4)
            builder.store(builder.add(builder.load(total), builder.ashr(builder.mul(w, v), _splat(8))), total)
        total = builder.load(total)
        half = LANES // 2
        while half:  # halve until one lane is left
            lanes = [ir.Constant(ir.VectorType(ir.IntType(32), half), list(range(k, k + half))) for k in (0, half)]
            low, high = (builder.shuffle_vector(total, total, lane) for lane in lanes)
            total, half = builder.add(low, high), half // 2
        first = builder.extract_element(total, ir.IntType(32)(0))
        return builder.sext(builder.ashr(first, ir.IntType(32)(8)), ir.IntType(64))

    return types.int64(weights, types.int64, x, types.int64), codegen


@overload(mix, jit_options=_FAST)
def _mix_overload(weights, row, x, n):
    return lambda weights, row, x, n: _mix(weights, row, x, n)


def train(weights, row, x, n, error):
    """weights[row + i] += x[i] · error / 2^16, rounded, within the limit."""
    for i in range(n):
        w = int(weights[row + i]) + (int(x[i]) * error + (1 << 15) >> 16)
        weights[row + i] = min(max(w, -WEIGHT_LIMIT), WEIGHT_LIMIT)


@intrinsic
def _train(typingctx, weights, row, x, n, error):
    def codegen(context, builder, sig, args):
        e = builder.trunc(args[4], ir.IntType(32))
        e = builder.insert_element(_splat(0), e, ir.IntType(32)(0))
        e = builder.shuffle_vector(e, e, _splat(0))
        i64 = ir.IntType(64)
        with cgutils.for_range_slice(builder, i64(0), args[3], i64(LANES)) as (i, _):
            at = _vector(context, builder, sig.args[0], args[0], builder.add(args[1], i))
            v = builder.load(_vector(context, builder, sig.args[2], args[2], i), align=4)
            step = builder.ashr(builder.add(builder.mul(v, e), _splat(1 << 15)), _splat(16))
            w = builder.add(builder.load(at, align=4), step)
            for predicate, bound in (("<", WEIGHT_LIMIT), (">", -WEIGHT_LIMIT)):
                w = builder.select(builder.icmp_signed(predicate, w, _splat(bound)), w, _splat(bound))
            builder.store(w, at, align=4)
        return context.get_dummy_value()

    return types.void(weights, types.int64, x, types.int64, types.int64), codegen


@overload(train, jit_options=_FAST)
def _train_overload(weights, row, x, n, error):
    return lambda weights, row, x, n, error: _train(weights, row, x, n, error)


class Program(NamedTuple):
    """What a kind of data is predicted from."""

    masks: np.ndarray  # (n,) uint64, bytes of the last eight, hashed into each context
    features: np.ndarray  # (n,) uint32, bit set of the features hashed in
    n_runs: int  # contexts, from the first, that also remember which byte came last in them
    record: int  # distance of the byte above, 0 where there are no records
    tune: np.ndarray  # (8,) int64


class State(NamedTuple):
    table: np.ndarray
    runs: np.ndarray
    matches: np.ndarray
    apm: np.ndarray
    x: np.ndarray
    weights: np.ndarray
    final: np.ndarray
    outs: np.ndarray
    rows: np.ndarray
    maps: np.ndarray
    run_maps: np.ndarray
    match_maps: np.ndarray
    hashes: np.ndarray
    slots: np.ndarray
    run_at: np.ndarray  # (n_runs, 4): seat, check, count, byte
    run_map_at: np.ndarray
    feature: np.ndarray
    indirect1: np.ndarray
    indirect2: np.ndarray
    match: np.ndarray  # (2, 4): length, place, expected, map
    past: np.ndarray  # uint64: last 8 bytes, word, word1, word2, line start, classes
    place: np.ndarray  # int64: this line, the line before


ROWS = (0, 256, 512, 512 + 256, 512 + 256 + 1024, 512 + 256 + 1024 + 2048, 512 + 256 + 1024 + 4096)
LEN, AT, BYTE, MAP = 0, 1, 2, 3


def state(n, bits, p, t):
    n_ctx, tune = p.masks.size, p.tune
    base = 2 * n_ctx
    n_in = base + p.n_runs + 5
    n_in += -n_in % LANES
    row = np.zeros(n_in, np.int32)
    row[:base:2] = tune[0]
    row[base : base + p.n_runs] = tune[1]
    row[base + p.n_runs] = row[base + p.n_runs + 2] = tune[2]
    last = np.zeros(LANES, np.int32)
    last[:SETS] = 65536 // SETS
    z = lambda n, dtype=np.int64: np.zeros(n, dtype)
    size = 1 << bits
    room = np.zeros(size + 64, np.uint8)
    at = -room.ctypes.data % 64
    line = t.squash[np.clip(np.arange(-16, 17) * 128, -STRETCH_LIMIT, STRETCH_LIMIT) + DOMAIN]
    return State(
        room[at : at + size], z(size // 16, np.uint32), z(2 << 18, np.int32), np.tile(line, 256 + 2 * 65536),
        z(n_in, np.int32), np.tile(row, ROWS[SETS]), np.tile(last, 2 * 1024), z(LANES, np.int32), z(SETS),
        np.tile(t.start, n_ctx), np.full(p.n_runs * 64, FRESH, np.uint32), np.full(2 * 128, FRESH, np.uint32),
        z(n_ctx, np.uint64), z(n_ctx, np.uint64), z((p.n_runs, 4)), z(p.n_runs), z(N_FEATURES, np.uint64),
        z(256, np.uint64), z(65536, np.uint64), z((2, 4)), z(8, np.uint64), z(4))  # fmt: skip


_LOOP = {"cache": True, "nogil": True, "_nrt": False}


@njit(**_LOOP)
def _contexts(text, i, program, w):
    """Hash the contexts of byte i."""
    masks, features, n_runs, record, tune = program
    f, past, feature, hashes = w.feature, w.past, w.feature, w.hashes
    last8 = past[0]
    c1, c2 = np.int64(last8 & _255), np.int64((last8 >> _8) & _255)
    line, line_before = w.place[0], w.place[1]
    column = i - line
    above = np.int64(text[line_before + column]) if line_before + column < line else 10
    feature[0] = past[1]
    feature[1] = past[2]
    feature[2] = past[3]
    feature[3] = np.uint64(above)
    feature[4] = np.uint64(min(column, 255))
    feature[5] = w.indirect1[c1]
    feature[6] = w.indirect2[c1 << 8 | c2]
    feature[7] = np.uint64(w.match[0, BYTE]) << _8 | np.uint64(min(w.match[0, LEN], 31) >> 1)
    feature[8] = past[5] & np.uint64(0xFFFFFFFF)
    feature[9] = past[4]
    if record:
        feature[10] = np.uint64(i % record)
        feature[11] = np.uint64(text[i - record]) if i >= record else np.uint64(0)
        feature[12] = np.uint64(text[i - 2 * record]) if i >= 2 * record else np.uint64(0)
    feature[13] = np.uint64(w.match[1, BYTE])
    feature[14] = np.uint64(i & 3)
    feature[15] = w.indirect1[c1] & _255
    feature[16] = w.indirect2[c1 << 8 | c2] & np.uint64(0xFFFF)
    table_mask, run_mask = np.uint64(w.table.size - 1) & ~_15, np.uint64(w.runs.size - 1)
    for k in range(masks.size):
        h = (last8 & masks[k]) * _M1 + np.uint64(k + 1) * _M2
        h = (h ^ (h >> _32)) * _M2
        g, b = features[k], 0
        while g:
            if g & 1:
                h = (h + feature[b] + np.uint64(b)) * _M1
                h ^= h >> _28
            g >>= 1
            b += 1
        h = h * _M1
        h ^= h >> _32
        hashes[k] = h
        prefetch(w.table, np.int64((h >> _8) & table_mask))
        if k < n_runs:
            w.run_at[k, 0] = np.int64((h >> _16) & run_mask)
            w.run_at[k, 1] = np.int64(h >> _48)
            prefetch(w.runs, w.run_at[k, 0])
    for k in range(n_runs):
        r = np.int64(w.runs[w.run_at[k, 0]])
        w.run_at[k, 2] = (r >> 8) & 255 if r >> 16 == w.run_at[k, 1] else 0
        w.run_at[k, 3] = (r & 255) | 256


@njit(**_LOOP)
def _seek(w, t):
    """Find or take the slot of every context."""
    table, hashes, slots = w.table, w.hashes, w.slots
    table_mask = np.uint64(table.size - 1) & ~_15
    for k in range(hashes.size):
        first = (hashes[k] >> _8) & table_mask
        second, third = first ^ _16, first ^ _32
        check = hashes[k] >> _56
        place = first
        if table[first] != check:
            if table[second] == check:
                place = second
            elif table[third] == check:
                place = third
            else:
                seen1, seen2 = t.seen[table[first + _1]], t.seen[table[second + _1]]
                place = first if seen1 <= seen2 else second
                place = place if min(seen1, seen2) <= t.seen[table[third + _1]] else third
                take_slot(table, place, check)
        slots[k] = place


@njit(**_LOOP)
def _middle(w, c0):
    """Between the two halves of a byte."""
    hashes = w.hashes
    table_mask = np.uint64(w.table.size - 1) & ~_15
    for k in range(hashes.size):
        h = (hashes[k] + np.uint64(c0)) * _M1
        h ^= h >> _32
        hashes[k] = h
        prefetch(w.table, np.int64((h >> _8) & table_mask))


@njit(**_LOOP)
def _remember(text, i, program, w):
    """Learn byte i."""
    past, match, runs, run_at = w.past, w.match, w.runs, w.run_at
    cc = np.int64(text[i])
    c = np.uint64(cc)
    last8 = past[0]
    c1, c2 = np.int64(last8 & _255), np.int64((last8 >> _8) & _255)
    for k in range(program.n_runs):
        count = run_at[k, 2]
        count = min(count + 1, 255) if count and (run_at[k, 3] & 255) == cc else 1
        runs[run_at[k, 0]] = np.uint32(run_at[k, 1] << 16 | count << 8 | cc)
    w.indirect2[c1 << 8 | c2] = (w.indirect2[c1 << 8 | c2] << _8 | c) & np.uint64(0xFFFFFF)
    w.indirect1[c1] = (w.indirect1[c1] << _8 | c) & np.uint64(0xFFFFFF)
    last8 = last8 << _8 | c
    past[0] = last8
    letter = cc | 32
    if (letter >= 97 and letter <= 122) or cc >= 128:
        word = (past[1] + np.uint64(letter)) * _M1
        past[1] = word ^ (word >> _32)
        cls = 1 if cc == letter else 2
    else:
        if past[1]:
            past[3] = past[2]
            past[2] = past[1]
            past[1] = np.uint64(0)
        if cc >= 48 and cc <= 57:
            cls = 3
        elif cc == 32:
            cls = 4
        elif cc == 10:
            cls = 5
        elif cc == 46 or cc == 33 or cc == 63:
            cls = 6
        elif cc == 44 or cc == 59 or cc == 58:
            cls = 7
        elif cc < 32:
            cls = 0
        else:
            cls = 8 + ((cc * 3) & 7)
    past[5] = past[5] << np.uint64(4) | np.uint64(cls)
    if cc == 10:
        w.place[1], w.place[0] = w.place[0], i + 1
        past[4] = np.uint64(0)
    elif i + 1 - w.place[0] <= 4:
        past[4] = past[4] << _8 | c
    n_match = w.matches.size // 2
    match_mask = np.uint64(n_match - 1)
    for m in range(2):
        if match[m, LEN] and np.int64(text[match[m, AT]]) == cc:
            match[m, LEN], match[m, AT] = min(match[m, LEN] + 1, 65535), match[m, AT] + 1
        else:
            match[m, LEN] = 0
        h = (last8 << (_8 if m == 0 else _32)) * _M1
        seat = m * n_match + np.int64((h >> _40) & match_mask)
        if match[m, LEN] == 0:
            found, ln = np.int64(w.matches[seat]), 0
            while ln < 400 and ln < found and text[found - 1 - ln] == text[i - ln]:
                ln += 1
            if ln >= (7 if m == 0 else 4):
                match[m, LEN], match[m, AT] = ln, found
        w.matches[seat] = i + 1
        match[m, BYTE] = np.int64(text[match[m, AT]]) | 256 if match[m, LEN] else 0


@njit(**_LOOP)
def _transcode(text, code, decoding, program, w, t):
    n_runs, tune = program.n_runs, program.tune
    table, slots, x, weights, final, outs, rows = w.table, w.slots, w.x, w.weights, w.final, w.outs, w.rows
    maps, run_maps, match_maps, match, run_at, run_map_at = w.maps, w.run_maps, w.match_maps, w.match, w.run_at, w.run_map_at
    apm, past = w.apm, w.past
    n, n_ctx, n_in = text.size, program.masks.size, x.size
    low, width, at = ENCODER
    value = np.uint64(0)
    if decoding:
        value, width, at = start(code)
    lr_now, lr_end, flr = np.int64(tune[3]) << 10, np.int64(tune[4]) << 10, np.int64(tune[5])
    map_limit, run_limit = np.int64(tune[6]), np.int64(tune[7])
    base_runs = 2 * n_ctx
    base_match = base_runs + n_runs
    x[base_match + 4] = 256

    for i in range(n):
        _contexts(text, i, program, w)
        last8 = past[0]
        c1, c2, c3 = np.int64(last8 & _255), np.int64((last8 >> _8) & _255), np.int64((last8 >> _16) & _255)
        class_row = ROWS[4] + np.int64(past[5] & _255) * 8
        c3_row = ROWS[5] + (c3 >> 5 << 5 | (c2 >> 6) << 3 | (c1 >> 5)) * 8
        hash2 = (last8 & np.uint64(0xFFFF)) * _M1
        len0 = match[0, LEN]
        lb = 0
        if len0:
            lb = 1 + (len0 > 7) + (len0 > 11) + (len0 > 15) + (len0 > 23) + (len0 > 31)
        for m in range(2):
            ln = match[m, LEN]
            match[m, MAP] = m * 128 + 2 * (min(ln, 15) if ln < 16 else min(16 + ((ln - 16) >> 3), 63))
        c0, node = 1, np.uint64(1)
        byte = 0 if decoding else np.int64(text[i])
        if decoding and at > code.size + 8:
            return -1
        for j in range(8):
            if j == 0 or j == 4:
                if j == 4:
                    _middle(w, c0)
                _seek(w, t)
                node = _1

            # Predict
            up, down = 8 - j, 7 - j
            for k in range(n_ctx):
                s = np.uint64(table[slots[k] + node]) | np.uint64(k) << _8
                p = np.int64(maps[s] >> 20)
                x[2 * k] = t.stretch[p]
                x[2 * k + 1] = (p - 2048) >> 1
            for k in range(n_runs):
                expected = run_at[k, 3]
                known = run_at[k, 2] != 0 and expected >> up == c0
                run_map_at[k] = (k * 64 + min(run_at[k, 2], 31) * 2 + ((expected >> down) & 1)) if known else -1
                x[base_runs + k] = t.stretch[run_maps[run_map_at[k]] >> 20] if known else 0
            ex = 0
            for m in range(2):
                at_x = base_match + 2 * m
                if match[m, LEN] and match[m, BYTE] >> up == c0:
                    b = (match[m, BYTE] >> down) & 1
                    p = np.int64(match_maps[match[m, MAP] + b] >> 20)
                    x[at_x] = t.stretch[p]
                    x[at_x + 1] = (p - 2048) >> 1
                    if m == 0:
                        ex = 1 + b
                else:
                    match[m, LEN] = 0
                    x[at_x] = 0
                    x[at_x + 1] = 0
            if ex == 0:
                lb = 0
            rows[0] = c0
            rows[1] = ROWS[1] + c1
            rows[2] = ROWS[2] + c2
            rows[3] = ROWS[3] + (lb * 3 + ex) * 8 + j
            rows[4] = class_row + j
            rows[5] = c3_row + j
            for s in range(SETS):
                o = mix(weights, rows[s] * n_in, x, n_in)
                outs[s] = min(max(o, -STRETCH_LIMIT), STRETCH_LIMIT)
            row_a, row_b = c0 * LANES, (256 + (lb * 3 + ex) * 8 + j) * LANES
            mixed_a = min(max(mix(final, row_a, outs, LANES), -DOMAIN), DOMAIN)
            mixed_b = min(max(mix(final, row_b, outs, LANES), -DOMAIN), DOMAIN)
            mixed = (mixed_a + mixed_b) >> 1
            p = np.int64(t.squash[mixed + DOMAIN])
            at_bin, part = _bin(min(max(mixed, -STRETCH_LIMIT), STRETCH_LIMIT))
            a0 = c0 * APM_BINS + at_bin
            a1 = (256 + (c1 << 8) + c0) * APM_BINS + at_bin
            a2 = (256 + 65536 + np.int64((hash2 + np.uint64(c0)) * _M2 >> _48)) * APM_BINS + at_bin
            q0 = (np.int64(apm[a0]) * (128 - part) + np.int64(apm[a0 + 1]) * part) >> 7
            q1 = (np.int64(apm[a1]) * (128 - part) + np.int64(apm[a1 + 1]) * part) >> 7
            q2 = (np.int64(apm[a2]) * (128 - part) + np.int64(apm[a2 + 1]) * part) >> 7
            p = min(max((2 * p + q0 + 2 * q1 + 3 * q2 + 4) >> 3, 1), 65535)

            # Code
            if decoding:
                bit, value, width, at = decode_bit(value, width, at, code, p, 16)
            else:
                bit = (byte >> down) & 1
                low, width, at = encode_bit(low, width, at, code, p, 16, bit)

            # Learn
            target = bit << 16
            lr = lr_now >> 10
            for s in range(SETS):
                e = (target - np.int64(t.squash[outs[s] + DOMAIN])) * lr >> 4
                train(weights, rows[s] * n_in, x, n_in, e)
            train(final, row_a, outs, LANES, (target - np.int64(t.squash[mixed_a + DOMAIN])) * flr >> 4)
            train(final, row_b, outs, LANES, (target - np.int64(t.squash[mixed_b + DOMAIN])) * flr >> 4)
            near = np.int64(part >= 64)
            goal = 65535 * bit
            apm[a0 + near] += (goal - np.int64(apm[a0 + near])) >> 6
            apm[a1 + near] += (goal - np.int64(apm[a1 + near])) >> 6
            apm[a2 + near] += (goal - np.int64(apm[a2 + near])) >> 6
            next_ = np.uint64(bit)
            for k in range(n_ctx):
                here = slots[k] + node
                history = np.uint64(table[here])
                s = history | np.uint64(k) << _8
                maps[s] = adapt(maps[s], bit, map_limit)
                table[here] = t.following[history << _1 | next_]
            for k in range(n_runs):
                if run_map_at[k] >= 0:
                    run_maps[run_map_at[k]] = adapt(run_maps[run_map_at[k]], bit, run_limit)
            for m in range(2):
                if match[m, LEN]:
                    b = (match[m, BYTE] >> down) & 1
                    match_maps[match[m, MAP] + b] = adapt(match_maps[match[m, MAP] + b], bit, 1023)
            c0 = 2 * c0 + bit
            node = node << _1 | next_

        if decoding:
            text[i] = c0 & 255
        lr_now += (lr_end - lr_now) >> 13
        _remember(text, i, program, w)

    if decoding:
        return at if ended(value, width, at, code) else -1
    return finish(low, width, at, code)


ORDER = [(1 << (8 * k)) - 1 for k in range(9)]


def F(*k):
    return sum(1 << i for i in k)


TEXT = [
    (ORDER[1], 0), (ORDER[2], 0), (ORDER[3], 0), (ORDER[4], 0), (ORDER[5], 0), (ORDER[6], 0), (0, F(0)), (ORDER[1], F(0, 1)),
    (0, 0), (ORDER[8], 0), (0, F(0, 2)), (0, F(0, 1, 2)), (0xFF00, F(0)),
    (0xFF00, 0), (0xFFFF00, 0), (0xFF00FF, 0), (0xFFFF0000, 0),
    (ORDER[1], F(5)), (ORDER[1], F(6)), (0, F(3, 0)), (ORDER[1], F(8)), (ORDER[1], F(7)), (0, F(13, 7)), (0, F(9, 4)),
]  # fmt: skip
TUNE = np.array([16000, 4000, 20000, 28, 6, 3, 1023, 1023], np.int64)


def program(kind=TEXT, record=0, n_runs=8, tune=TUNE):
    return Program(np.array([m for m, _ in kind], np.uint64), np.array([f for _, f in kind], np.uint32), n_runs, record, tune)
