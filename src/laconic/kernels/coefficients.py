"""Context mixing of quantized transform coefficients, and rate–distortion optimised choice of them, in one loop.

Blocks come row by row; of each block every plane; of each plane the coefficients in zigzag order, the constant one last.
A coefficient is coded as binary decisions: is it above 0, above 1, … (unary up to 14, then Exp-Golomb); then its sign.
Each decision is predicted by the adaptive probabilities of many contexts, each at two speeds, joined by two logistic mixers
and corrected by an adaptive probability map. The contexts are

    magnitudes around    in the block, in the four blocks above and to the left, in the planes before
    continuity           a column's coefficients, summed, are the value at the block's upper edge; summed with alternating
                         signs, at its lower edge. So the block above says what the sum should be. What is left of it when
                         the coefficients that are already known are taken away predicts size and sign of the next one,
                         and at last the constant one. The same with rows and the block to the left.

The loop serves an encoder, a decoder, and an encoder that still chooses: there each coefficient becomes the one of the
nearest integer, the two below it and zero that minimises (x − x̂)² + λ · bits, with the bits of the model as it stands.

Everything that steers a decoder is an integer.

Sources: Mahoney 2005 (mixing; see `bytemix`). Continuity: Horn, Elkabany, Lesniewski-Lass & Winstein, "The Design,
Implementation, and Deployment of a System to Transparently Compress Hundreds of Petabytes of Image Files for a File-Storage
Service" (NSDI 2017), section on the 7×1 and DC coefficients. Choice: Ramchandran & Vetterli, "Rate-distortion optimal fast
thresholding with complete JPEG/MPEG decoder compatibility" (1994). Differs: continuity is used for every coefficient, not
only the first row and column; the choice is greedy in coding order, because the model adapts with every choice.
"""

from __future__ import annotations

from functools import lru_cache
from math import isqrt, log2, prod
from typing import NamedTuple

import numpy as np
from numba import njit

from laconic.core.errors import CorruptStream, claim
from laconic.kernels.bytemix import DOMAIN, LANES, STRETCH_LIMIT, mix, tables, train
from laconic.kernels.rangecoder import (
    ENCODER,
    FRESH,
    adapt,
    decode_bit,
    decode_bits,
    encode_bit,
    encode_bits,
    ended,
    finish,
    probability,
    start,
)

MAX_VALUE = (1 << 24) - 1
MAX_PLANES = 16
MAX_BLOCK = 64
_UNARY = 14
_LEVELS = 18  # classes of decisions: 3 classes of planes × 6 of thresholds
_BUCKETS = 11  # of a sum of magnitudes
_POSITIONS = 256
_BANDS = 16
_N_CONTEXTS, _N_SIGN = 13, 5
_WIDTH = 2 * LANES  # mixer inputs
APM_BINS = 33  # of an adaptive probability map
_ENCODE, _DECODE, _CHOOSE = 0, 1, 2
_RATE, _SIGN_RATE = 10, 6
_LEAST = 32  # no decision is surer than 1 − 32/65536
_TAIL = 3 * 32  # Exp-Golomb lengths
_SIGN_ROW = _LEVELS * 32 + _LEVELS * 256
_ROOT2 = 362  # √2 in 256ths
_NONZERO_BITS = 1.5  # a sign, and what the neighbours' predictions pay for a value that is not 0

# How many contexts of each kind a class of decisions has; `_run` numbers them.
_AT = _POSITIONS * _BUCKETS
_SIZES = (_AT, _AT, _POSITIONS * 8, _AT, _POSITIONS * 8, _BUCKETS**3, _BUCKETS**3, _BUCKETS**3,
          _BUCKETS**2 * _BANDS, _BUCKETS**2 * _BANDS, 7**4, 6 * 6 * 4 * 4 * _BUCKETS, 8 * 8 * _BANDS)  # fmt: skip
_OFFSETS = tuple(int(v) for v in np.cumsum((0, *_SIZES)) * _LEVELS)
_SIGN_SIZES = (3 * _POSITIONS * 9, 3 * _POSITIONS * 9, 3 * _POSITIONS * 121, 3 * _BANDS * 121, 3 * 121 * 9)
_SIGN_OFFSETS = tuple(int(v) for v in np.cumsum((0, *_SIGN_SIZES)))


class _Model(NamedTuple):
    """What adapts."""

    slow: np.ndarray  # (contexts,) uint32, adaptive probabilities
    fast: np.ndarray  # (contexts,) uint16, the same at a rate of 1/16
    apm: np.ndarray  # (rows · APM_BINS,) int32, adaptive probability maps, 20 bits
    weights: np.ndarray  # (rows · _WIDTH,) int32
    x: np.ndarray  # (2 · _WIDTH,) int32, mixer inputs for magnitudes, then for signs
    ctx: np.ndarray  # (_N_CONTEXTS,) int64, the contexts of the decision at hand
    within: np.ndarray  # (_N_CONTEXTS,) int64, the same without the class of the decision


class _Tables(NamedTuple):
    squash: np.ndarray
    stretch: np.ndarray
    log: np.ndarray  # (4096,) int32, 96 log2(1 + v)
    cost: np.ndarray  # (65537,) float32, bits of an event of probability p / 65536
    u: np.ndarray  # (b²,) int64, row of each coefficient
    v: np.ndarray  # (b²,) int64, column


def _fresh() -> _Model:
    slow = np.full(_OFFSETS[-1] + _SIGN_OFFSETS[-1] + _TAIL, FRESH, np.uint32)
    fast = np.full(_OFFSETS[-1] + _SIGN_OFFSETS[-1], 1 << 15, np.uint16)
    t = tables()
    line = t.squash[np.clip(np.arange(-16, 17) * 128, -STRETCH_LIMIT, STRETCH_LIMIT) + DOMAIN].astype(np.int32) << 4
    weights = np.zeros((_SIGN_ROW + 3 * 64 + 3 * 9, _WIDTH), np.int32)
    weights[:_SIGN_ROW, : 2 * _N_CONTEXTS] = 65536 * 6 // 10 // _N_CONTEXTS
    weights[_SIGN_ROW:, : 2 * _N_SIGN] = 65536 * 3 // 10
    x = np.zeros(2 * _WIDTH, np.int32)
    x[_WIDTH - 1] = 256
    ctx = np.zeros(_N_CONTEXTS, np.int64)
    apm = np.tile(line, _LEVELS * _BUCKETS + 3)
    return _Model(slow, fast, apm, weights.reshape(-1), x, ctx, ctx.copy())


@lru_cache(maxsize=8)
def _constants(block: int) -> _Tables:
    t = tables()
    # floor(96 log2(1 + v)) from integers: the bit length of (1 + v)^96
    log = np.array([((1 + v) ** 96).bit_length() - 1 for v in range(4096)], np.int32)
    cost = np.array([0.0] + [16 - log2(p) for p in range(1, 65537)], np.float32)
    u, v = np.divmod(np.arange(block * block), block)
    d = u + v
    order = np.lexsort((np.where(d % 2, u, v), d))  # JPEG's zigzag
    return _Tables(t.squash, t.stretch, log, cost, u[order], v[order])


@njit(cache=True, nogil=True)
def _bucket(total):
    """11 classes of a sum of magnitudes."""
    if total < 5:
        return total
    if total < 10:
        return 5 if total < 7 else 6
    if total < 24:
        return 7 if total < 15 else 8
    return 9 if total < 40 else 10


@njit(cache=True, nogil=True)
def _urge(rest):
    """8 classes of what continuity still asks for, in 256ths of a step."""
    a = abs(rest)
    if a < 224:
        return 0 if a < 64 else 1 if a < 128 else 2
    if a < 640:
        return 3 if a < 384 else 4
    return 5 if a < 1100 else 6 if a < 2200 else 7


@njit(cache=True, nogil=True)
def _lean(rest):
    """11 classes of the same with its sign; 5 is none."""
    a = abs(rest)
    size = 0 if a < 64 else 1 if a < 160 else 2 if a < 320 else 3 if a < 640 else 4 if a < 1280 else 5
    return 5 + size if rest > 0 else 5 - size


@njit(cache=True, nogil=True)
def _predict(model, t, n, at, row_a, row_b, apm):
    """(P(1) of 16 bits, the two mixers' outputs, the entry of the map to adapt) from the `n` contexts in model.ctx."""
    for i in range(n):
        model.x[at + 2 * i] = t.stretch[model.slow[model.ctx[i]] >> 20]
        model.x[at + 2 * i + 1] = t.stretch[model.fast[model.ctx[i]] >> 4]
    a = mix(model.weights, row_a, model.x, at) + mix(model.weights, row_a + LANES, model.x, at + LANES)
    b = mix(model.weights, row_b, model.x, at) + mix(model.weights, row_b + LANES, model.x, at + LANES)
    a, b = min(max(a, -DOMAIN), DOMAIN), min(max(b, -DOMAIN), DOMAIN)
    mixed = (a + b) >> 1
    place = min(max(mixed, -STRETCH_LIMIT), STRETCH_LIMIT) + 2048
    part = place & 127
    place = apm * APM_BINS + (place >> 7)
    q = (np.int64(model.apm[place]) * (128 - part) + np.int64(model.apm[place + 1]) * part) >> 11
    p = (np.int64(t.squash[mixed + DOMAIN]) + q) >> 1
    return min(max(p, _LEAST), 65536 - _LEAST), a, b, place + (part >> 6)


@njit(cache=True, nogil=True)
def _learn(model, t, n, at, row_a, row_b, guess, bit, rate):
    """Adapt everything that `_predict` used."""
    _, a, b, place = guess
    error_a = ((bit << 16) - np.int64(t.squash[a + DOMAIN])) * rate >> 4
    error_b = ((bit << 16) - np.int64(t.squash[b + DOMAIN])) * rate >> 4
    train(model.weights, row_a, model.x, at, error_a)
    train(model.weights, row_a + LANES, model.x, at + LANES, error_a)
    train(model.weights, row_b, model.x, at, error_b)
    train(model.weights, row_b + LANES, model.x, at + LANES, error_b)
    model.apm[place] += ((bit << 20) - np.int64(model.apm[place])) >> 6
    for i in range(n):
        c = model.ctx[i]
        model.slow[c] = adapt(model.slow[c], bit, 255)
        f = np.int64(model.fast[c])
        model.fast[c] = f + ((65535 * bit - f) >> 4)


@njit(cache=True, nogil=True)
def _level(level, model, u, v, a, b):
    """Set model.ctx for the decision of class `level`; returns (row_a, row_b) of the mixers."""
    for i in range(_N_CONTEXTS):
        model.ctx[i] = _OFFSETS[i] + level * _SIZES[i] + model.within[i]
    return (level * 32 + min(u + v, 31)) * _WIDTH, (_LEVELS * 32 + level * 256 + a * 16 + b) * _WIDTH


@njit(cache=True, nogil=True)
def _class(threshold):
    """The six classes of unary decisions."""
    if threshold < 3:
        return threshold
    return 3 if threshold < 5 else 4 if threshold < 8 else 5


@njit(cache=True, nogil=True)
def _run(q, code, mode, wanted, importance, lagrangian, model, t):
    """Code q into `code` or back, or choose q. Returns (length of the code or -1 for a damaged one, bits).

    q: (planes, rows, columns, b²) int32, zigzag. code: uint8. mode: _ENCODE, _DECODE or _CHOOSE.
    wanted: shape of q, float32, in steps; importance: (b²,) float32, of squared errors in steps². lagrangian: per bit.
    """
    n_planes, n_rows, n_columns, n = q.shape
    block = np.int64(t.u[-1]) + 1
    slow = model.slow
    within = model.within
    x = model.x
    low, width, at = ENCODER
    value = np.uint64(0)
    if mode == _DECODE:
        value, width, at = start(code)
    bits = 0.0
    # Two rows of blocks, the one above and this one: magnitudes with a margin, and signed values. In `mag` the constant
    # coefficient stands for what its prediction left over.
    mag = np.zeros((2, n_planes, n_columns + 2, block + 4, block + 4), np.int32)
    signed = np.zeros((2, n_planes, n_columns + 2, block, block), np.int32)
    rest_u = np.zeros(block, np.int64)  # what continuity with the block above asks of each column, 256ths of a step
    rest_l = np.zeros(block, np.int64)  # with the block to the left, of each row
    beyond = np.zeros(n + 1, np.int64)  # magnitudes of both neighbours from here on in zigzag order

    for r in range(n_rows):
        now, above = r & 1, (r + 1) & 1
        for c in range(n_columns):
            mag[now, :, c + 1] = 0
            if mode == _DECODE and at > code.size + 8:
                return -1, bits
            for p in range(n_planes):
                plane = min(p, 2)
                here, left, up = mag[now, p, c + 1], mag[now, p, c], mag[above, p, c + 1]
                up_left, up_right = mag[above, p, c], mag[above, p, c + 2]
                mine, its, their = signed[now, p, c + 1], signed[now, p, c], signed[above, p, c + 1]
                for i in range(block):
                    rest_u[i] = 256 * np.int64(their[0, i])
                    rest_l[i] = 256 * np.int64(its[i, 0])
                    sign = -_ROOT2
                    for j in range(1, block):
                        rest_u[i] += sign * np.int64(their[j, i])
                        rest_l[i] += sign * np.int64(its[i, j])
                        sign = -sign
                for k in range(n - 1, -1, -1):
                    u, v = t.u[k], t.v[k]
                    beyond[k] = beyond[k + 1] + np.int64(left[u + 2, v + 2]) + np.int64(up[u + 2, v + 2])
                n_nonzero = 0

                for i in range(n):
                    k = i + 1 if i + 1 < n else 0
                    u, v = t.u[k], t.v[k]
                    # Magnitudes around: in the block, in the blocks before, in the planes before
                    h1, h2 = np.int64(here[u + 2, v + 1]), np.int64(here[u + 2, v])
                    v1, v2 = np.int64(here[u + 1, v + 2]), np.int64(here[u, v + 2])
                    d1 = np.int64(here[u + 1, v + 1])
                    inside = 2 * (h1 + v1) + d1 + h2 + v2 + np.int64(here[u + 1, v + 3]) + np.int64(here[u + 3, v + 1])
                    l0, u0 = np.int64(left[u + 2, v + 2]), np.int64(up[u + 2, v + 2])
                    ul, ur = np.int64(up_left[u + 2, v + 2]), np.int64(up_right[u + 2, v + 2])
                    around = 2 * (l0 + u0)
                    around += np.int64(left[u + 3, v + 2]) + np.int64(left[u + 2, v + 3])
                    around += np.int64(left[u + 1, v + 2]) + np.int64(left[u + 2, v + 1])
                    around += np.int64(up[u + 3, v + 2]) + np.int64(up[u + 2, v + 3])
                    around += np.int64(up[u + 1, v + 2]) + np.int64(up[u + 2, v + 1])
                    other = 0
                    for j in range(p):
                        other += 2 * np.int64(mag[now, j, c + 1, u + 2, v + 2])
                        other += np.int64(mag[now, j, c + 1, u + 1, v + 2]) + np.int64(mag[now, j, c + 1, u + 3, v + 2])
                        other += np.int64(mag[now, j, c + 1, u + 2, v + 1]) + np.int64(mag[now, j, c + 1, u + 2, v + 3])
                    asked_u = rest_u[v] if v and k else 0
                    asked_l = rest_l[u] if u and k else 0
                    urge_u, urge_l = _urge(asked_u), _urge(asked_l)
                    a, s, o, f = _bucket(inside), _bucket(around), _bucket(other), _bucket(beyond[k])
                    at_k = min(k, _POSITIONS - 1)
                    band = min(u + v, _BANDS - 1)
                    within[0] = at_k * 11 + _bucket(2 * inside + around + other)
                    within[1] = at_k * 11 + a
                    within[2] = at_k * 8 + min(n_nonzero, 7)
                    within[3] = at_k * 11 + _bucket(2 * u0)
                    within[4] = at_k * 8 + max(urge_u, urge_l)
                    within[5] = (_bucket(3 * v1) * 11 + _bucket(3 * h1)) * 11 + _bucket(2 * l0)
                    within[6] = (a * 11 + o) * 11 + s
                    first = np.int64(mag[now, 0, c + 1, u + 2, v + 2]) if p else 0
                    last = _bucket(2 * np.int64(mag[now, 1, c + 1, u + 2, v + 2])) if p > 1 else o
                    within[7] = (_bucket(2 * first) * 11 + last) * 11 + a
                    within[8] = (_bucket(3 * l0) * 11 + _bucket(3 * u0)) * 16 + band
                    within[9] = (band * 11 + s) * 11 + f
                    within[10] = ((min(v1, 6) * 7 + min(h1, 6)) * 7 + min(d1, 6)) * 7 + min(v2 + h2, 6)
                    within[11] = (((min(l0, 5) * 6 + min(u0, 5)) * 4 + min(ul, 3)) * 4 + min(ur, 3)) * 11 + a
                    within[12] = (urge_u * 8 + urge_l) * 16 + band
                    x[2 * _N_CONTEXTS] = t.log[min(inside, 4095)]
                    x[2 * _N_CONTEXTS + 1] = t.log[min(around, 4095)]
                    x[2 * _N_CONTEXTS + 2] = t.log[min(other, 4095)]

                    # The constant coefficient is what continuity asks for, and a difference
                    predicted = 0
                    if k == 0:
                        both = rest_u[0] + rest_l[0] if r == 0 or c == 0 else (rest_u[0] + rest_l[0]) >> 1
                        predicted = min(max((both + 128) >> 8, -MAX_VALUE), MAX_VALUE)
                    number = 0 if mode == _DECODE else np.int64(q[p, r, c, k]) - predicted
                    size = abs(number)

                    if mode == _CHOOSE and k and 0 < size <= _UNARY:
                        goal = abs(wanted[p, r, c, k])
                        least, chosen, spent = np.inf, 0, 0.0
                        for level in range(size + 1):
                            what = 6 * plane + _class(min(level, _UNARY - 1))
                            row_a, row_b = _level(what, model, u, v, a, o)
                            above_p = _predict(model, t, _N_CONTEXTS, 0, row_a, row_b, what * _BUCKETS + f)[0]
                            if level == 0 or level >= size - 2:
                                error = goal - level
                                bill = spent + t.cost[65536 - above_p] + (_NONZERO_BITS if level else 0.0)
                                total = importance[k] * error * error + lagrangian * bill
                                if total < least:
                                    least, chosen = total, level
                            spent += t.cost[above_p]
                        size = chosen
                        number = size if number > 0 else -size
                        q[p, r, c, k] = number

                    level, going = 0, True
                    while going and level < _UNARY:
                        what = 6 * plane + _class(level)
                        row_a, row_b = _level(what, model, u, v, a, o)
                        guess = _predict(model, t, _N_CONTEXTS, 0, row_a, row_b, what * _BUCKETS + f)
                        if mode == _DECODE:
                            bit, value, width, at = decode_bit(value, width, at, code, guess[0], 16)
                        else:
                            bit = np.int64(size > level)
                            if mode == _ENCODE:
                                low, width, at = encode_bit(low, width, at, code, guess[0], 16, bit)
                            else:
                                bits += t.cost[guess[0]] if bit else t.cost[65536 - guess[0]]
                        _learn(model, t, _N_CONTEXTS, 0, row_a, row_b, guess, bit, _RATE)
                        going = bit == 1
                        level += bit
                    if going:  # at least _UNARY: Exp-Golomb of the rest
                        tail = slow.size - _TAIL + plane * 32
                        n_bits = 0
                        if mode == _DECODE:
                            bit = 1
                            while bit and n_bits < 26:
                                prob = probability(slow[tail + n_bits])
                                bit, value, width, at = decode_bit(value, width, at, code, prob, 16)
                                slow[tail + n_bits] = adapt(slow[tail + n_bits], bit, 255)
                                n_bits += bit
                            extra, value, width, at = decode_bits(value, width, at, code, n_bits)
                            size = _UNARY + (1 << n_bits) - 1 + np.int64(extra)
                        else:
                            over = size - _UNARY + 1
                            while over >> (n_bits + 1):
                                n_bits += 1
                            for j in range(n_bits + 1):
                                prob = probability(slow[tail + j])
                                bit = np.int64(j < n_bits)
                                if mode == _ENCODE:
                                    low, width, at = encode_bit(low, width, at, code, prob, 16, bit)
                                else:
                                    bits += t.cost[prob] if bit else t.cost[65536 - prob]
                                slow[tail + j] = adapt(slow[tail + j], bit, 255)
                            if mode == _ENCODE:
                                low, width, at = encode_bits(low, width, at, code, over - (1 << n_bits), n_bits)
                            bits += n_bits
                    elif mode == _DECODE:
                        size = level

                    if size:
                        s_left = np.sign(np.int64(its[u, v])) + 1 if k else 0
                        s_up = np.sign(np.int64(their[u, v])) + 1 if k else 0
                        s_0 = np.sign(np.int64(signed[now, 0, c + 1, u, v])) + 1 if p else 0
                        s_1 = np.sign(np.int64(signed[now, 1, c + 1, u, v])) + 1 if p > 1 else 0
                        lean_u, lean_l = _lean(asked_u), _lean(asked_l)
                        ctx = model.ctx
                        position = plane * _POSITIONS + at_k
                        ctx[0] = position * 9 + s_up * 3 + s_left
                        ctx[1] = position * 9 + s_0 * 3 + s_1
                        ctx[2] = (position * 11 + lean_u) * 11 + lean_l
                        ctx[3] = ((plane * 16 + band) * 11 + lean_u) * 11 + lean_l
                        ctx[4] = ((plane * 11 + lean_u) * 11 + lean_l) * 9 + s_0 * 3 + s_1
                        for j in range(_N_SIGN):
                            ctx[j] += _OFFSETS[_N_CONTEXTS] + _SIGN_OFFSETS[j]
                        x[_WIDTH + 2 * _N_SIGN] = min(max(asked_u, -STRETCH_LIMIT), STRETCH_LIMIT)
                        x[_WIDTH + 2 * _N_SIGN + 1] = min(max(asked_l, -STRETCH_LIMIT), STRETCH_LIMIT)
                        row_a = (_SIGN_ROW + plane * 64 + min(k, 63)) * _WIDTH
                        row_b = (_SIGN_ROW + 3 * 64 + plane * 9 + s_0 * 3 + s_1) * _WIDTH
                        guess = _predict(model, t, _N_SIGN, _WIDTH, row_a, row_b, _LEVELS * _BUCKETS + plane)
                        if mode == _DECODE:
                            bit, value, width, at = decode_bit(value, width, at, code, guess[0], 16)
                            number = -size if bit else size
                        else:
                            bit = np.int64(number < 0)
                            if mode == _ENCODE:
                                low, width, at = encode_bit(low, width, at, code, guess[0], 16, bit)
                            else:
                                bits += t.cost[guess[0]] if bit else t.cost[65536 - guess[0]]
                        _learn(model, t, _N_SIGN, _WIDTH, row_a, row_b, guess, bit, _SIGN_RATE)
                        n_nonzero += 1

                    number += predicted
                    if mode == _DECODE:
                        if abs(number) > MAX_VALUE:
                            return -1, bits
                        q[p, r, c, k] = number
                    here[u + 2, v + 2] = size
                    mine[u, v] = number
                    if k:
                        rest_u[v] -= number * (_ROOT2 if u else 256)
                        rest_l[u] -= number * (_ROOT2 if v else 256)

    if mode == _DECODE:
        return at if ended(value, width, at, code) else -1, bits
    return finish(low, width, at, code), bits


def _workspace_bytes(shape: tuple[int, ...], block: int) -> int:
    """Memory beside the coefficients themselves: the model and two rows of blocks."""
    return 8 * _OFFSETS[-1] + 8 * shape[0] * (shape[2] + 2) * ((block + 4) ** 2 + block**2)


def block_of(shape: tuple[int, ...]) -> int:
    """b of a shape (planes, rows, columns, b²); 0 where it is none that can be coded."""
    if len(shape) != 4 or not 1 <= shape[0] <= MAX_PLANES:
        return 0
    block = isqrt(shape[3])
    return block if block * block == shape[3] and block <= MAX_BLOCK else 0


_NOTHING = np.zeros((1, 1, 1, 1), np.float32)
_ONE = np.ones(1, np.float32)


def encode(q: np.ndarray) -> np.ndarray:
    """q: (planes, rows, columns, b²) int32, zigzag, |q| ≤ MAX_VALUE -> code, uint8."""
    t = _constants(block_of(q.shape))
    room = q.size // 2 + 1024
    while True:
        code = np.zeros(room, np.uint8)
        n, _ = _run(q, code, _ENCODE, _NOTHING, _ONE, 0.0, _fresh(), t)
        if n <= room:
            return code[:n]
        room = n


def decode(code: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The coefficients of that shape, int32.

    Raises
    ------
    CorruptStream: the shape is impossible, or the code is not one of `encode` for it.
    """
    block, n = block_of(shape), prod(shape)
    # A coefficient takes one decision at least, and no decision less than 1/1419 of a bit.
    if not block or n > 1420 * 8 * (code.size + 8) or (n == 0 and code.size):
        raise CorruptStream(f"{code.size:,} bytes of code cannot hold coefficients of shape {shape}")
    claim(4 * n + _workspace_bytes(shape, block), "coefficients and their model")
    q = np.zeros(shape, np.int32)
    if n and _run(q, np.array(code, np.uint8), _DECODE, _NOTHING, _ONE, 0.0, _fresh(), _constants(block))[0] < 0:
        raise CorruptStream("the code of the coefficients is damaged or does not end where it should")
    return q


def choose(wanted: np.ndarray, importance: np.ndarray, lagrangian: float) -> tuple[np.ndarray, float]:
    """The coefficients that minimise Σ importance · (wanted − q)² + lagrangian · bits, greedily, and their bits.

    wanted: (planes, rows, columns, b²) float32, in steps. importance: (b²,) float32.
    """
    t = _constants(block_of(wanted.shape))
    q = np.clip(np.rint(wanted), -MAX_VALUE, MAX_VALUE).astype(np.int32)
    _, bits = _run(q, np.zeros(0, np.uint8), _CHOOSE, wanted, importance, float(lagrangian), _fresh(), t)
    return q, float(bits)
