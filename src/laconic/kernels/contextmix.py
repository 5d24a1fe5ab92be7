"""Context mixing of bytes with contexts that the kind of data picks: the strongest coder of bytes here, in integers.

    26 contexts: orders 0–6 and 8, words, sparse, columns and records, what followed last, the expected byte
         └─▶ slot of 15 bit histories (four decisions) ─▶ adaptive probability ─▶ stretch(p), p − ½, and    ┐
             stretch(p) once more where all bits of the history were the same                              │
    8 of them: the byte that came last there, how often in a row ─▶ adaptive probability ─▶ stretch(p)    ├─▶ 7 mixers ─▶
    two matches, of at least 7 and 5 bytes: length, predicted bit ─▶ adaptive probability ─▶ both         ┘
    ─▶ 3 mixers of mixers, averaged ─▶ 3 adaptive probability maps, averaged ─▶ arithmetic coder

Decisions are those of a tree of bytes (`kernels.bytetree`). Every mixer picks its weights by something else: the node of the
tree; the last byte; the match; classes of the last characters; the node and how many of the first six contexts were seen;
the byte before the last; letters of this word and the last mark. An empty history says nothing.
What lies behind a cache is asked for before it is needed. One loop serves both directions, so that encoder and decoder
cannot disagree, and nothing depends on threads. Arithmetic and constant tables are those of `kernels.bytemix`: integers, in
fixed point; a mixer weight of 1.0 is 16384 in the first layer and 65536 in the last.

`Program` says what a kind of data is predicted from: bytes of the last eight by a mask, and a set of features. What kind
it is, the encoder finds in the data (`entropy.contextmix`) and sends.

Source: Mahoney, "Adaptive Weighing of Context Models for Lossless Data Compression" (2005), sections 2.2 and 3: logistic
mixing, bit histories, adaptive probability maps; selected weight sets and mixers of mixers as in the later PAQ8 family.
Differs: own states, hashing, contexts and constants; contexts are data, not code.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from laconic.core.errors import BadInput, CorruptStream, claim
from laconic.kernels import bytemix
from laconic.kernels.bytemix import (
    APM_BINS,
    DOMAIN,
    FAST,
    LANES,
    STRETCH_LIMIT,
    bin_of,
    fresh_maps,
    get,
    halves_summed,
    on_a_line,
    pairs,
    prefetch,
    put,
    refined,
    seek,
    shorts,
    stepped,
    tables,
)
from laconic.kernels.bytetree import LEAF, plant, replant
from laconic.kernels.rangecoder import ENCODER, FRESH, adapt, decode_bit, encode_bit, ended, finish, start

SETS = 7  # mixers of the first layer
ROWS = (0, 256, 512, 768, 2816, 4608, 4864, 5120)  # where each one's weights begin
N_RUNS = 8  # contexts, from the first, that remember the byte that came last in them
N_FEATURES = 28  # and a last one that is 0
N_APMS = 256 + 2 * 65536
MIN_BITS, MAX_BITS = 16, 28
MAX_RECORD = 2048
# Of a match: length, place, the byte it expects (with a leading 1), its adaptive probability, the path of that byte; where
# the bytes before the last one are kept, what was kept there a byte before
LEN, AT, BYTE, MAP, PATH, KEPT, CANDIDATE = range(7)
SEAT, CHECK, COUNT, LAST = 0, 1, 2, 3  # of a run
# Of `past`: the last eight bytes, newest lowest; hashes of this word and of two before; how the line began; classes;
# letters of this word; the last byte that was neither letter, blank nor line's end
BYTES8, WORD, WORD1, WORD2, BEGIN, CLASSES, LENGTH, MARK = range(8)
MIN_MATCH = (7, 5)
# Weights at first: of stretch(p), of p − ½, of a run, of the two of a match; 0 of histories that agree
MIX_WEIGHT, HALF_WEIGHT, RUN_WEIGHT, MATCH_WEIGHT, MATCH_HALF_WEIGHT = 2000, -800, 450, 3500, -1500
FIRST_RATE, LAST_RATE, FINAL_RATE = 28 << 10, 8 << 10, 6  # of learning, in 1024ths; of the last layer, in sixteenths

_u = np.uint64
_M1, _M2 = _u(0x9E3779B97F4A7C15), _u(0xD6E8FEB86659FD93)
_1, _4, _8, _15, _16, _28, _32, _48, _56, _255 = (_u(k) for k in (1, 4, 8, 15, 16, 28, 32, 48, 56, 255))
_LOOP = {"cache": True, "nogil": True, "_nrt": False}  # without reference counts, which would cost more than the coder


def mix(weights, row, x, n):
    """Σ over lanes, each >> 3, of weights[row + i] · x[i]; >> 11. A lane is every LANES / 2-th pair of inputs.

    n: a multiple of LANES, at most 256.
    """
    total = 0
    for k in range(0, LANES, 2):
        total += sum(int(weights[row + i]) * int(x[i]) for j in range(k, n, LANES) for i in (j, j + 1)) >> 3
    return total >> 11


@intrinsic
def _mix(typingctx, weights, row, x, n):
    def codegen(context, builder, sig, args):
        lanes, i64 = ir.VectorType(ir.IntType(32), LANES // 2), ir.IntType(64)
        total = cgutils.alloca_once_value(builder, ir.Constant(lanes, None))
        with cgutils.for_range_slice(builder, i64(0), args[3], i64(LANES)) as (i, _):
            w = builder.load(shorts(context, builder, sig.args[0], args[0], builder.add(args[1], i)), align=32)
            v = builder.load(shorts(context, builder, sig.args[2], args[2], i), align=32)
            builder.store(builder.add(builder.load(total), pairs(context, builder, w, v)), total)
        return builder.ashr(halves_summed(builder, builder.load(total)), i64(11))

    return types.int64(weights, types.int64, x, types.int64), codegen


@overload(mix, jit_options=FAST)
def _mix_overload(weights, row, x, n):
    return lambda weights, row, x, n: _mix(weights, row, x, n)


def train(weights, row, x, n, error):
    """weights[row + i] += x[i] · error + 2^15 >> 16, saturated. error: int16."""
    for i in range(n):
        w = int(weights[row + i]) + (int(x[i]) * error + (1 << 15) >> 16)
        weights[row + i] = min(max(w, -32768), 32767)


@intrinsic
def _train(typingctx, weights, row, x, n, error):
    def codegen(context, builder, sig, args):
        i64, i32 = ir.IntType(64), ir.IntType(32)
        nothing = ir.Constant(ir.VectorType(ir.IntType(16), LANES), None)
        e = builder.insert_element(nothing, builder.trunc(args[4], ir.IntType(16)), i32(0))
        e = builder.shuffle_vector(e, e, ir.Constant(ir.VectorType(i32, LANES), None))
        with cgutils.for_range_slice(builder, i64(0), args[3], i64(LANES)) as (i, _):
            at = shorts(context, builder, sig.args[0], args[0], builder.add(args[1], i))
            v = builder.load(shorts(context, builder, sig.args[2], args[2], i), align=32)
            builder.store(stepped(builder, builder.load(at, align=32), v, e), at, align=32)
        return context.get_dummy_value()

    return types.void(weights, types.int64, x, types.int64, types.int64), codegen


@overload(train, jit_options=FAST)
def _train_overload(weights, row, x, n, error):
    return lambda weights, row, x, n, error: _train(weights, row, x, n, error)


class Program(NamedTuple):
    """What a kind of data is predicted from."""

    masks: np.ndarray  # (n,) uint64, bytes of the last eight that are hashed into each context
    features: np.ndarray  # (3 n,) uint8, the features hashed in, N_FEATURES where there is none
    record: int  # distance of the byte above, at least 1
    record2: int  # another such distance
    stride: int  # bytes a sample has


class State(NamedTuple):
    """All that the loop writes, beside the text and the code."""

    table: np.ndarray  # (2^k,) uint8, slots of 16 bytes: a check and 15 bit histories
    runs: np.ndarray  # (2^(k-4),) uint32: check, how often, byte
    matches: np.ndarray  # (2 · 2^m,) int32, hash of the last bytes -> where they were last followed
    apm: np.ndarray  # (N_APMS · APM_BINS,) uint16
    x: np.ndarray  # (n inputs, a multiple of LANES) int16
    weights: np.ndarray  # (ROWS[SETS] · n inputs,) int16
    final: np.ndarray  # (768 · LANES,) int32
    outs: np.ndarray  # (LANES,) int32, what the first layer gave
    rows: np.ndarray  # (SETS,) int64
    maps: np.ndarray  # (256 · n,) uint32, bit history -> adaptive probability of 22 bits
    run_maps: np.ndarray  # (64 · N_RUNS,) uint32
    match_maps: np.ndarray  # (2 · 128,) uint32
    hashes: np.ndarray  # (n,) uint64
    slots: np.ndarray  # (n,) int64
    run: np.ndarray  # (N_RUNS, 4) int64
    run_map: np.ndarray  # (N_RUNS,) int64, -1 where a run says nothing
    feature: np.ndarray  # (N_FEATURES + 1,) uint64
    indirect1: np.ndarray  # (256,) uint64, the three bytes that last followed a byte
    indirect2: np.ndarray  # (65536,) uint64, and two bytes
    match: np.ndarray  # (2, 7) int64
    past: np.ndarray  # (8,) uint64
    line: np.ndarray  # (2,) int64, where this line and the one before begin


def _sizes(bits, n_ctx):
    """(bits of a table of matches, inputs)."""
    n_in = 3 * n_ctx + N_RUNS + 4
    return min(max(bits - 6, 16), 22), n_in + -n_in % LANES


def workspace_bytes(bits: int) -> int:
    """Memory of a coder with 2^bits bytes of history, beside the text and the code."""
    match_bits, n_in = _sizes(bits, N_CONTEXTS)
    return (5 << bits - 2) + (8 << match_bits) + 2 * N_APMS * APM_BINS + 2 * ROWS[SETS] * n_in + (3 << 18)


def _state(bits, program, t):
    n_ctx = program.masks.size
    match_bits, n_in = _sizes(bits, n_ctx)
    row, last = np.zeros(n_in, np.int16), np.zeros(LANES, np.int32)
    row[: 3 * n_ctx : 3], row[1 : 3 * n_ctx : 3] = MIX_WEIGHT, HALF_WEIGHT
    row[3 * n_ctx : 3 * n_ctx + N_RUNS] = RUN_WEIGHT
    row[3 * n_ctx + N_RUNS : 3 * n_ctx + N_RUNS + 4] = (MATCH_WEIGHT, MATCH_HALF_WEIGHT) * 2
    last[:SETS] = 65536 // SETS
    weights = on_a_line(ROWS[SETS] * n_in, np.int16)
    weights.reshape(-1, n_in)[:] = row
    match = np.zeros((2, 7), np.int64)
    match[1, KEPT] = 1 << match_bits
    return State(
        table=on_a_line(1 << bits, np.uint8),
        runs=np.zeros(1 << bits - 4, np.uint32),
        matches=np.zeros(2 << match_bits, np.int32),
        apm=fresh_maps(N_APMS, t),
        x=on_a_line(n_in, np.int16),
        weights=weights,
        final=np.tile(last, 768),
        outs=np.zeros(LANES, np.int32),
        rows=np.zeros(SETS, np.int64),
        maps=np.tile(t.start >> 10, n_ctx),
        run_maps=np.full(64 * N_RUNS, FRESH, np.uint32),
        match_maps=np.full(256, FRESH, np.uint32),
        hashes=np.zeros(n_ctx, np.uint64),
        slots=np.zeros(n_ctx, np.int64),
        run=np.zeros((N_RUNS, 4), np.int64),
        run_map=np.zeros(N_RUNS, np.int64),
        feature=np.zeros(N_FEATURES + 1, np.uint64),
        indirect1=np.zeros(256, np.uint64),
        indirect2=np.zeros(65536, np.uint64),
        match=match,
        past=np.zeros(8, np.uint64),
        line=np.zeros(2, np.int64),
    )


@njit(**_LOOP)
def _contexts(text, i, program, w):
    """Hash the contexts of byte i."""
    masks, features, record, record2, stride = program
    past, feature, hashes = w.past, w.feature, w.hashes
    last8 = past[BYTES8]
    c1, c2 = np.int64(last8 & _255), np.int64((last8 >> _8) & _255)
    line, line_before = w.line[0], w.line[1]
    column = i - line
    above = np.int64(text[line_before + column]) if line_before + column < line else 10
    feature[0] = past[WORD]
    feature[1] = past[WORD1]
    feature[2] = past[WORD2]
    feature[3] = np.uint64(above)
    feature[4] = np.uint64(min(column, 255))
    feature[5] = w.indirect1[c1]
    feature[6] = w.indirect2[c1 << 8 | c2]
    feature[7] = np.uint64(w.match[0, BYTE]) << _8 | np.uint64(min(w.match[0, LEN], 31) >> 1)
    feature[8] = past[CLASSES] & np.uint64(0xFFFFFFFF)
    feature[9] = past[BEGIN]
    north = np.int64(text[i - record]) if i >= record else 0
    west = np.int64(text[i - stride]) if i >= stride else 0
    corner = np.int64(text[i - record - stride]) if i >= record + stride else 0
    east = np.int64(text[i - record + stride]) if i >= record and stride < record else 0
    north2 = np.int64(text[i - 2 * record]) if i >= 2 * record else 0
    feature[10] = np.uint64(i % record)
    feature[11] = np.uint64(north)
    feature[12] = np.uint64(north2)
    feature[17] = np.uint64(text[i - record2]) if i >= record2 else np.uint64(0)
    feature[18] = np.uint64(east)
    feature[19] = np.uint64(corner)
    feature[20] = np.uint64(north + west - corner & 255)
    feature[21] = np.uint64(north + west >> 1)
    feature[22] = np.uint64(west)
    feature[23] = np.uint64(2 * north - north2 & 255)
    feature[24] = np.uint64(text[i - 2 * record2]) if i >= 2 * record2 else np.uint64(0)
    feature[25] = np.uint64(i % stride)
    feature[13] = np.uint64(w.match[1, BYTE])
    feature[14] = np.uint64(i & 3)
    feature[15] = w.indirect1[c1] & _255
    feature[16] = w.indirect2[c1 << 8 | c2] & np.uint64(0xFFFF)
    feature[26] = past[LENGTH]
    feature[27] = past[MARK]
    table_mask, run_mask = np.uint64(w.table.size - 1) & ~_15, np.uint64(w.runs.size - 1)
    for k in range(masks.size):
        h = (last8 & masks[k]) * _M1 + np.uint64(k + 1) * _M2
        h = (h ^ (h >> _32)) * _M2
        h = (h + feature[np.uint64(features[3 * k])]) * _M1
        h ^= h >> _28
        h = (h + feature[np.uint64(features[3 * k + 1])]) * _M2
        h ^= h >> _32
        h = (h + feature[np.uint64(features[3 * k + 2])]) * _M1
        h ^= h >> _32
        hashes[k] = h
        prefetch(w.table, np.int64((h >> _8) & table_mask))
        if k < N_RUNS:
            w.run[k, SEAT] = np.int64((h >> _16) & run_mask)
            w.run[k, CHECK] = np.int64(h >> _48)
            prefetch(w.runs, w.run[k, SEAT])
    for k in range(N_RUNS):
        r = np.int64(w.runs[w.run[k, SEAT]])
        w.run[k, COUNT] = (r >> 8) & 255 if r >> 16 == w.run[k, CHECK] else 0
        w.run[k, LAST] = (r & 255) | 256


@njit(**_LOOP)
def _seek(w, t):
    """Find or take the slot of every context."""
    table_mask = np.uint64(w.table.size - 1) & ~_15
    for k in range(w.hashes.size):
        h = w.hashes[k]
        put(w.slots, k, seek(w.table, np.int64((h >> _8) & table_mask), np.int64(h >> _56), t))


@njit(**_LOOP)
def _middle(w, c0):
    """Between four decisions and the next."""
    hashes = w.hashes
    table_mask = np.uint64(w.table.size - 1) & ~_15
    for k in range(hashes.size):
        h = (hashes[k] + np.uint64(c0 + 1)) * _M1
        h ^= h >> _32
        hashes[k] = h
        prefetch(w.table, np.int64((h >> _8) & table_mask))


@njit(**_LOOP)
def _remember(text, i, program, w):
    """Learn byte i."""
    past, match, runs, run = w.past, w.match, w.runs, w.run
    cc = np.int64(text[i])
    c = np.uint64(cc)
    last8 = past[BYTES8]
    c1, c2 = np.int64(last8 & _255), np.int64((last8 >> _8) & _255)
    for k in range(N_RUNS):
        count = run[k, COUNT]
        count = min(count + 1, 255) if count and (run[k, LAST] & 255) == cc else 1
        runs[run[k, SEAT]] = np.uint32(run[k, CHECK] << 16 | count << 8 | cc)
    w.indirect2[c1 << 8 | c2] = (w.indirect2[c1 << 8 | c2] << _8 | c) & np.uint64(0xFFFFFF)
    w.indirect1[c1] = (w.indirect1[c1] << _8 | c) & np.uint64(0xFFFFFF)
    last8 = last8 << _8 | c
    past[BYTES8] = last8
    letter = cc | 32
    if (letter >= 97 and letter <= 122) or cc >= 128:
        word = (past[WORD] + np.uint64(letter)) * _M1
        past[WORD] = word ^ (word >> _32)
        past[LENGTH] += _1
        cls = 1 if cc == letter else 2
    else:
        if past[WORD]:
            past[WORD2] = past[WORD1]
            past[LENGTH] = np.uint64(0)
            past[WORD1] = past[WORD]
            past[WORD] = np.uint64(0)
        if cc != 32 and cc != 10:
            past[MARK] = c
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
    past[CLASSES] = past[CLASSES] << _4 | np.uint64(cls)
    if cc == 10:
        w.line[1], w.line[0] = w.line[0], i + 1
        past[BEGIN] = np.uint64(0)
    elif i + 1 - w.line[0] <= 4:
        past[BEGIN] = past[BEGIN] << _8 | c
    n_match = w.matches.size // 2
    match_mask = np.uint64(n_match - 1)
    for m in range(2):
        if match[m, LEN] and np.int64(text[match[m, AT]]) == cc:
            match[m, LEN], match[m, AT] = min(match[m, LEN] + 1, 65535), match[m, AT] + 1
        else:
            match[m, LEN] = 0
        # Two bytes before a match is taken up its place is asked for, one byte before its text.
        seat = m * n_match + np.int64((((last8 << (_16 if m == 0 else _32)) * _M1) >> _28) & match_mask)
        prefetch(w.matches, seat)
        if match[m, LEN] == 0 and match[m, CANDIDATE]:
            found, ln = match[m, CANDIDATE] + 1, 0
            while ln < 400 and ln < found and get(text, found - 1 - ln) == get(text, i - ln):
                ln += 1
            if ln >= MIN_MATCH[m]:
                match[m, LEN], match[m, AT] = ln, found
        before = get(w.matches, match[m, KEPT])
        match[m, CANDIDATE] = before + 1 if before else 0
        if before:
            prefetch(text, before + 2)
        put(w.matches, match[m, KEPT], i)
        match[m, KEPT] = seat
        match[m, BYTE] = np.int64(text[match[m, AT]]) | 256 if match[m, LEN] else 0


@njit(**_LOOP)
def _transcode(text, code, decoding, tree, program, w, t):
    child, paths = tree
    table, slots, x, weights, final, outs, rows = w.table, w.slots, w.x, w.weights, w.final, w.outs, w.rows
    maps, run_maps, match_maps, match, run, run_map = w.maps, w.run_maps, w.match_maps, w.match, w.run, w.run_map
    apm, past = w.apm, w.past
    n, n_ctx, n_in = text.size, program.masks.size, x.size
    low, width, at = ENCODER
    value = np.uint64(0)
    if decoding:
        value, width, at = start(code)
    rate = FIRST_RATE
    base_runs = 3 * n_ctx
    base_match = base_runs + N_RUNS

    for i in range(n):
        _contexts(text, i, program, w)
        last8 = past[BYTES8]
        c1 = np.int64(last8 & _255)
        class_row = ROWS[3] + np.int64(past[CLASSES] & _255) * 8
        c2 = np.int64((last8 >> _8) & _255)
        word_row = ROWS[6] + (min(np.int64(past[LENGTH]), 7) << 5 | np.int64(past[MARK] & np.uint64(31)))
        hash2 = (last8 & np.uint64(0xFFFF)) * _M1
        len0 = match[0, LEN]
        lb = 0
        if len0:
            lb = 1 + (len0 > 7) + (len0 > 11) + (len0 > 15) + (len0 > 23) + (len0 > 31)
        for m in range(2):
            ln = match[m, LEN]
            match[m, MAP] = m * 128 + 2 * (min(ln, 15) if ln < 16 else min(16 + ((ln - 16) >> 3), 63))
            match[m, PATH] = get(paths, match[m, BYTE] & 255)
        path, depth, c0, node = 0, 0, 0, 1
        byte_path = 0 if decoding else get(paths, get(text, i))
        if decoding and at > code.size + 8:
            return -1
        while c0 < LEAF:
            j = min(depth, 7)
            if depth & 3 == 0:
                if depth:
                    _middle(w, c0)
                _seek(w, t)
                node = 1
            a0 = c0 * APM_BINS
            a1 = (256 + (c1 << 8) + c0) * APM_BINS
            a2 = (256 + 65536 + np.int64((hash2 + np.uint64(c0)) * _M2 >> _48)) * APM_BINS
            prefetch(apm, a1)
            prefetch(apm, a2)

            # Predict
            up, down = 16 - depth, 15 - depth
            seen = 0
            for k in range(n_ctx):
                s = get(table, get(slots, k) + node)
                p = get(maps, k << 8 | s) >> 10
                told = get(t.kept, s)
                stretched = get(t.stretch, p) & told
                put(x, 3 * k, stretched)
                put(x, 3 * k + 1, ((p - 2048) >> 1) & told)
                put(x, 3 * k + 2, stretched & get(t.agreed, s))
                if k < 6:
                    seen += s != 0
            for k in range(N_RUNS):
                expected = get(paths, run[k, LAST] & 255)
                known = run[k, COUNT] != 0 and (expected ^ path) >> up == 0
                run_map[k] = (k * 64 + min(run[k, COUNT], 31) * 2 + ((expected >> down) & 1)) if known else -1
                put(x, base_runs + k, get(t.stretch, get(run_maps, run_map[k]) >> 20) if known else 0)
            ex = 0
            for m in range(2):
                at_x = base_match + 2 * m
                if match[m, LEN] and (match[m, PATH] ^ path) >> up == 0:
                    b = (match[m, PATH] >> down) & 1
                    p = get(match_maps, match[m, MAP] + b) >> 20
                    put(x, at_x, get(t.stretch, p))
                    put(x, at_x + 1, (p - 2048) >> 1)
                    if m == 0:
                        ex = 1 + b
                else:
                    match[m, LEN] = 0
                    put(x, at_x, 0)
                    put(x, at_x + 1, 0)
            if ex == 0:
                lb = 0
            rows[0] = c0 * n_in
            rows[1] = (ROWS[1] + c1) * n_in
            rows[2] = (ROWS[2] + (lb * 3 + ex) * 8 + j) * n_in
            rows[3] = (class_row + j) * n_in
            rows[4] = (ROWS[4] + (seen << 8) + c0) * n_in
            rows[5] = (ROWS[5] + c2) * n_in
            rows[6] = word_row * n_in
            for s in range(SETS):
                o = mix(weights, get(rows, s), x, n_in)
                put(outs, s, min(max(o, -STRETCH_LIMIT), STRETCH_LIMIT))
            row_a, row_b = c0 * LANES, (256 + (lb * 3 + ex) * 8 + j) * LANES
            mixed_a = min(max(bytemix.mix(final, row_a, outs, 0), -DOMAIN), DOMAIN)
            mixed_b = min(max(bytemix.mix(final, row_b, outs, 0), -DOMAIN), DOMAIN)
            row_c = (512 + c1) * LANES
            mixed_c = min(max(bytemix.mix(final, row_c, outs, 0), -DOMAIN), DOMAIN)
            mixed = (mixed_a + 2 * mixed_b + mixed_c) >> 2
            p = get(t.squash, mixed + DOMAIN)
            at_bin, part = bin_of(min(max(mixed, -STRETCH_LIMIT), STRETCH_LIMIT))
            a0, a1, a2 = a0 + at_bin, a1 + at_bin, a2 + at_bin
            q = 2 * p + refined(apm, a0, part) + 2 * refined(apm, a1, part) + 3 * refined(apm, a2, part)
            q = min(max((q + 4) >> 3, 1), 65535)

            # Code
            if decoding:
                bit, value, width, at = decode_bit(value, width, at, code, q, 16)
            else:
                bit = (byte_path >> down) & 1
                low, width, at = encode_bit(low, width, at, code, q, 16, bit)

            # Learn
            goal = bit << 16
            lr = rate >> 10
            for s in range(SETS):
                error = (goal - get(t.squash, get(outs, s) + DOMAIN)) * lr >> 6
                train(weights, get(rows, s), x, n_in, min(max(error, -32768), 32767))
            bytemix.train(final, row_a, outs, 0, (goal - get(t.squash, mixed_a + DOMAIN)) * FINAL_RATE >> 4)
            bytemix.train(final, row_b, outs, 0, (goal - get(t.squash, mixed_b + DOMAIN)) * FINAL_RATE >> 4)
            bytemix.train(final, row_c, outs, 0, (goal - get(t.squash, mixed_c + DOMAIN)) * FINAL_RATE >> 4)
            goal -= bit
            for a in (a0, a0 + 1, a1, a1 + 1, a2, a2 + 1):
                was = get(apm, a)
                put(apm, a, was + ((goal - was) >> 6))
            certain = 4194303 * bit
            for k in range(n_ctx):
                here = get(slots, k) + node
                history = get(table, here)
                s = k << 8 | history
                p = get(maps, s)
                put(maps, s, p + ((certain - p) >> 8))
                put(table, here, get(t.following, 2 * history + bit))
            for k in range(N_RUNS):
                if run_map[k] >= 0:
                    run_maps[run_map[k]] = adapt(run_maps[run_map[k]], bit, 1023)
            for m in range(2):
                if match[m, LEN]:
                    b = (match[m, PATH] >> down) & 1
                    match_maps[match[m, MAP] + b] = adapt(match_maps[match[m, MAP] + b], bit, 1023)
            path |= bit << down
            depth += 1
            c0, node = get(child, 2 * c0 + bit), 2 * node + bit

        if decoding:
            put(text, i, c0 - LEAF)
        rate += (LAST_RATE - rate) >> 13
        _remember(text, i, program, w)

    if decoding:
        return at if ended(value, width, at, code) else -1
    return finish(low, width, at, code)


ORDER = tuple((1 << 8 * k) - 1 for k in range(9))  # masks of whole orders
# Features by their number in `feature`; what they are is said in `_contexts`.
_WORD, _WORD1, _WORD2, _OVER, _COLUMN, _AFTER1, _AFTER2, _MATCH, _CLASSES, _BEGIN, _PLACE, _N, _NN, _MATCH2, _MOD4 = (
    range(15)
)
_N2, _NE, _NW, _GRADIENT, _MEAN, _W, _LINEAR, _NN2, _PART, _LENGTH, _MARK = range(17, 28)

_TEXT = (
    (ORDER[1],), (ORDER[2],), (ORDER[3],), (ORDER[4],), (ORDER[5],), (ORDER[6],), (0, _WORD), (ORDER[1], _WORD, _WORD1),
    (0,), (ORDER[8],), (0, _WORD, _WORD2), (0, _WORD, _WORD1, _WORD2), (0xFF00, _WORD), (0xFF00,), (0xFFFF00,),
    (0xFF00FF,), (0xF0F0F0F0F0F0,), (0, _WORD, _MARK), (ORDER[1], _LENGTH, _MARK), (0, _OVER, _WORD), (ORDER[1], _CLASSES),
    (ORDER[1], _MATCH), (0, _MATCH2, _MATCH), (0, _BEGIN, _COLUMN), (ORDER[2], _COLUMN), (0, _CLASSES),
)  # fmt: skip
_BINARY = (
    (ORDER[1],), (ORDER[2],), (ORDER[3],), (ORDER[4],), (ORDER[6],), (0, _N, _PART), (ORDER[1], _N), (0, _PLACE), (0,),
    (ORDER[5],), (0xFF00,), (0xFFFF00,), (0xFF00FF,), (0xFF0000,), (0xFFFF0000,), (0xFF000000, _MOD4),
    (ORDER[1], _AFTER1), (ORDER[1], _AFTER2), (ORDER[1], _MATCH), (0, _MATCH2, _MATCH), (ORDER[1], _PLACE), (0, _N, _NN),
    (0, _N, _N2), (0xF0F0F0F0,),
)  # fmt: skip
_RECORD = (
    (ORDER[1],), (ORDER[2],), (ORDER[3],), (ORDER[4],), (ORDER[6],), (0, _N, _PART), (ORDER[1], _N), (0, _PLACE),
    (0, _N2, _NN2), (0, _N, _NE), (0, _N, _NW), (0, _GRADIENT, _PART), (0, _MEAN, _PART), (0, _W, _N, _PART),
    (ORDER[1], _MEAN), (ORDER[1], _GRADIENT), (ORDER[1], _AFTER1), (ORDER[1], _N, _N2), (ORDER[1], _MATCH),
    (0, _MATCH2, _MATCH), (ORDER[2], _N), (0, _N, _NN), (0, _N, _N2), (0, _LINEAR, _PART),
)  # fmt: skip
KINDS = (_TEXT, _BINARY, _RECORD)
TEXT, BINARY, RECORD = range(3)
N_CONTEXTS = 26  # at most


def program(kind: int, record: int = 1, record2: int = 1, stride: int = 1) -> Program:
    """The contexts of a kind of data."""
    masks = np.array([mask for mask, *_ in KINDS[kind]], np.uint64)
    features = np.full((masks.size, 3), N_FEATURES, np.uint8)
    for k, (_, *some) in enumerate(KINDS[kind]):
        features[k, : len(some)] = some
    return Program(masks, features.ravel(), record, record2, stride)


def encode(text: np.ndarray, bits: int, program: Program, own: bool = True) -> np.ndarray | None:
    """text: (n,) uint8, n < 2^31 -> its code, uint8; None where the code would not be shorter than the text.

    own: whether the text may have a tree of bytes of its own.
    """
    if text.size >= 1 << 31:
        raise BadInput(f"a block of {text.size:,} bytes; below 2^31 is possible, cut it")
    sent, tree = plant(text, own)
    code = np.zeros(text.size, np.uint8)
    t = tables()
    n = _transcode(np.array(text, np.uint8), code, False, tree, program, _state(bits, program, t), t)
    return np.append(sent, code[:n]) if n + sent.size < text.size else None


def decode(code: np.ndarray, n: int, bits: int, program: Program) -> np.ndarray:
    """The text of `n` bytes, uint8.

    Raises
    ------
    CorruptStream: the code is not one that `encode` makes for a text of this length.
    """
    # No decision costs less than log2(65536 / 65535) bits, and no byte less than one decision.
    if n >= 1 << 31 or n > 5680 * 64 * (code.size + 8):
        raise CorruptStream(f"{code.size:,} bytes of code cannot hold {n:,} bytes")
    claim(n + workspace_bytes(bits), "the text and its model")
    code, tree = replant(code)
    text = np.zeros(n, np.uint8)
    t = tables()
    if _transcode(text, np.array(code, np.uint8), True, tree, program, _state(bits, program, t), t) < 0:
        raise CorruptStream(f"the code of {n:,} bytes does not end where it should")
    return text


@njit(**_LOOP)
def branches(text, forward):
    """Targets of x86 calls and jumps (E8, E9), from relative to absolute and back, in place.

    The 24 low bits of a target whose high byte is 0 or 255 are moved by their place. Backward through the text one way and
    forward the other, so that each step meets what its counterpart left.
    """
    n = text.size - 4
    for step in range(max(n, 0)):
        i = n - 1 - step if forward else step
        if text[i] & 254 == 0xE8 and (text[i + 4] == 0 or text[i + 4] == 255):
            a = np.int64(text[i + 1]) | np.int64(text[i + 2]) << 8 | np.int64(text[i + 3]) << 16
            a = a + i if forward else a - i
            text[i + 1], text[i + 2], text[i + 3] = a & 255, a >> 8 & 255, a >> 16 & 255
