"""Vectors coded coordinate by coordinate: every integer has a law that the integers before it in its vector predict.

    p_j = a_j + Σ_{i<j} A_ij q_i           where q_j is expected, in 2^-12 steps
    m_j = c_j + Σ_{i<j} C_ij |q_i − μ_i|   its mean distance from there
    P(q_j ≤ k) = F_j((k + ½ − p_j) / m_j)   F: of a coordinate, straight between 89 points

All of it is integers: sums are kept in float64 below 2^53, where they are exact in any order, so that machines agree. The ends
of a coordinate's range take what lies beyond (a bound that values pile up at), and an escape what lies outside.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from laconic.core.errors import CorruptStream, claim
from laconic.kernels.rangecoder import (
    ENCODER,
    decode_bits,
    decode_interval,
    decode_slot,
    encode_bits,
    encode_interval,
    ended,
    finish,
    start,
)

__all__ = [
    "EDGES",
    "LIMIT",
    "ONE",
    "POINTS",
    "SPAN",
    "Chosen",
    "Laws",
    "bits_of",
    "choose",
    "decode",
    "decode_under",
    "encode",
    "expected",
    "laws_plain",
    "pick",
    "slots_plain",
]

ONE = 4096  # a step
LIMIT = 1 << 24  # of |q|
SPAN = 4096  # of a coordinate's range at most
_SLOTS = 16  # log2 of the slots of a law
_TOTAL = 1 << _SLOTS
_ESCAPE = 8  # slots
_FAR, _NEAR = 16, 4  # in m: where F ends, and up to where its points are an eighth apart; beyond they are one apart
_TAIL = _FAR - _NEAR
POINTS = 2 * _TAIL + 16 * _NEAR + 1
EDGES = np.concatenate([np.arange(-_FAR, -_NEAR), np.arange(-8 * _NEAR, 8 * _NEAR) / 8, np.arange(_NEAR, _FAR + 1)])
_LARGEST = 1 << 40  # of p and m


class Laws(NamedTuple):
    """What predicts, d coordinates.

    mean, spread: float64 (d, d), whole numbers; row i holds what coordinate i adds to those behind it. offset: float64
    (2, d), a and c. centre: int64 (d,), μ. least: int64 (d,), of m. low, high: int64 (d,), the range. law: int64 (d, POINTS),
    F in 2^-16, from 0 to 2^16.
    """

    mean: np.ndarray
    spread: np.ndarray
    offset: np.ndarray
    centre: np.ndarray
    least: np.ndarray
    low: np.ndarray
    high: np.ndarray
    law: np.ndarray


@njit(cache=True, nogil=True, forceinline=True, _nrt=False)
def _below(law, j, difference, m, inverse):
    """F of a coordinate at difference / m, in 2^-16."""
    if difference >= m * _FAR:
        return _TOTAL
    if difference <= -m * _FAR:
        return 0
    u = (difference * inverse) >> 28
    if u < -_NEAR * ONE:
        at, part, shift = (u + _FAR * ONE) >> 12, (u + _FAR * ONE) & 4095, 12
    elif u < _NEAR * ONE:
        at, part, shift = _TAIL + ((u + _NEAR * ONE) >> 9), (u + _NEAR * ONE) & 511, 9
    else:
        at, part, shift = _TAIL + 16 * _NEAR + ((u - _NEAR * ONE) >> 12), (u - _NEAR * ONE) & 4095, 12
    at = min(max(at, 0), POINTS - 2)
    low = law[j, at]
    return low + ((law[j, at + 1] - low) * part >> shift)


@njit(cache=True, nogil=True, forceinline=True, _nrt=False)
def _begin(law, j, k, low, high, p, m, inverse):
    """The first slot of k, low ≤ k ≤ high + 1."""
    if k <= low:
        return _ESCAPE
    if k > high:
        return _TOTAL
    room = _TOTAL - _ESCAPE - (high - low + 1)
    return _ESCAPE + (_below(law, j, k * ONE - ONE // 2 - p, m, inverse) * room >> 16) + (k - low)


@njit(cache=True, nogil=True, forceinline=True, _nrt=False)
def expected(p, m, least):
    """Sums as the integers that laws are made of: p, m, and 2^40 / m."""
    whole = np.int64(min(max(p, -_LARGEST), _LARGEST))
    size = max(np.int64(min(max(m, 0.0), _LARGEST)), least)
    return whole, size, np.int64(1 << 40) // size


@njit(cache=True, nogil=True, forceinline=True, _nrt=False)
def pick(law, j, t, low, high, p, m, inverse, lam):
    """(k, its first slot, its slots; 0 for an escape): the nearest integer or its neighbour towards p, whichever costs less."""
    k = np.int64(np.rint(t))
    if k < low or k > high:
        return k, np.int64(0), np.int64(0)
    first = _begin(law, j, k, low, high, p, m, inverse)
    width = _begin(law, j, k + 1, low, high, p, m, inverse) - first
    other = k + 1 if p > k * ONE else k - 1
    if lam > 0 and low <= other <= high:
        a = _begin(law, j, other, low, high, p, m, inverse)
        w = _begin(law, j, other + 1, low, high, p, m, inverse) - a
        loss = (t - other) ** 2 - (t - k) ** 2
        if loss < lam * (math.log2(w) - math.log2(width)):
            k, first, width = other, a, w
    return k, first, width


@njit(cache=True, nogil=True, forceinline=True, _nrt=False)
def decode_under(code, width, at, data, law, j, low, high, p, m, inverse):
    """(k, code, width, at): the next integer of a code, under a law."""
    slot = decode_slot(code, width, _SLOTS)
    if slot < _ESCAPE:
        code, width, at = decode_interval(code, width, at, data, 0, _ESCAPE, _SLOTS)
        k, code, width, at = decode_bits(code, width, at, data, 26)
        return min(k - LIMIT, LIMIT), code, width, at
    a, z = low, high + 1  # begin(a) ≤ slot < begin(z)
    first, end = np.int64(_ESCAPE), np.int64(_TOTAL)
    while z - a > 1:
        k = (a + z) >> 1
        here = _begin(law, j, k, low, high, p, m, inverse)
        if here <= slot:
            a, first = k, here
        else:
            z, end = k, here
    code, width, at = decode_interval(code, width, at, data, first, end - first, _SLOTS)
    return a, code, width, at


@njit(cache=True, nogil=True)
def _add(mean, spread, j, value, distance, p, m):
    """What coordinate j adds to those behind it."""
    d = p.shape[0]
    if value != 0:
        for k in range(j + 1, d):
            p[k] += mean[j, k] * value
    if distance != 0:
        for k in range(j + 1, d):
            m[k] += spread[j, k] * distance


@njit(cache=True, nogil=True)
def _choose(t, laws, lam, q, begin, freq, p_out, m_out):
    """q, and where its law puts it; freq 0 for an escape. Sizes of p_out, m_out: (n, d), or 0 rows where nobody asks."""
    n, d = t.shape
    p, m = np.empty(d, np.float64), np.empty(d, np.float64)
    for i in range(n):
        p[:], m[:] = laws.offset[0], laws.offset[1]
        for j in range(d):
            whole, size, inverse = expected(p[j], m[j], laws.least[j])
            low, high = laws.low[j], laws.high[j]
            k, first, width = pick(laws.law, j, t[i, j], low, high, whole, size, inverse, lam)
            q[i, j], begin[i, j], freq[i, j] = k, first, width
            if p_out.shape[0]:
                p_out[i, j], m_out[i, j] = whole, size
            _add(laws.mean, laws.spread, j, np.float64(k), np.float64(abs(k - laws.centre[j])), p, m)


@njit(cache=True, nogil=True)
def _encode(q, begin, freq, out):
    low, width, at = ENCODER
    for i in range(q.shape[0]):
        for j in range(q.shape[1]):
            if freq[i, j]:
                low, width, at = encode_interval(low, width, at, out, begin[i, j], freq[i, j], _SLOTS)
            else:
                low, width, at = encode_interval(low, width, at, out, 0, _ESCAPE, _SLOTS)
                low, width, at = encode_bits(low, width, at, out, q[i, j] + LIMIT, 26)
    return finish(low, width, at, out)


@njit(cache=True, nogil=True)
def _decode(data, laws, q, way, octave):
    n, d = q.shape
    p, m = np.empty(d, np.float64), np.empty(d, np.float64)
    code, width, at = start(data)
    for i in range(n):
        p[:], m[:] = laws.offset[0], laws.offset[1]
        for j in range(d):
            whole, size, inverse = expected(p[j], m[j], laws.least[j])
            low, high = laws.low[j], laws.high[j]
            k, code, width, at = decode_under(code, width, at, data, laws.law, j, low, high, whole, size, inverse)
            q[i, j], way[i, j] = k, min(max(whole - k * ONE, -ONE), ONE)
            octave[i, j] = math.frexp(np.float64(size))[1]
            _add(laws.mean, laws.spread, j, np.float64(k), np.float64(abs(k - laws.centre[j])), p, m)
        if at > data.shape[0] + 64:
            return False
    return ended(code, width, at, data)


class Chosen(NamedTuple):
    """q: int32 (n, d). begin, freq: uint32 (n, d), of 2^16 slots; freq 0 for an escape. p, m: int64 (n, d), where asked for."""

    q: np.ndarray
    begin: np.ndarray
    freq: np.ndarray
    p: np.ndarray
    m: np.ndarray


def choose(t: np.ndarray, laws: Laws, lam: float = 0.0, traced: bool = False) -> Chosen:
    """Integers for values t: float64 (n, d) in steps, |t| ≤ LIMIT.

    lam: squared steps that a bit is worth: of the nearest integer and its neighbour towards p the cheaper one is taken.
    """
    n, d = t.shape
    seen = (n if traced else 0, d)
    out = Chosen(np.empty((n, d), np.int32), np.empty((n, d), np.uint32), np.empty((n, d), np.uint32),
                 np.empty(seen, np.int64), np.empty(seen, np.int64))  # fmt: skip
    _choose(t, laws, lam, *out)
    return out


def bits_of(chosen: Chosen) -> np.ndarray:
    """(n, d) bits that each integer takes."""
    return np.where(chosen.freq > 0, _SLOTS - np.log2(np.maximum(chosen.freq, 1)), 16 - math.log2(_ESCAPE) + 26)


def encode(chosen: Chosen) -> np.ndarray:
    """The code, uint8."""
    room = int(bits_of(chosen).sum() / 8 * 1.01) + 64
    out = np.empty(room, np.uint8)
    n = _encode(chosen.q, chosen.begin, chosen.freq, out)
    if n > room:
        raise AssertionError(f"{n} bytes where {room} were to be enough")
    return out[:n]


def decode(data: np.ndarray, laws: Laws, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """q int32, the way from it to p int16, and the octave of m uint8, each (n, d), from a code (uint8).

    The way is in 2^-12 steps and ends at one step; m is below 2^octave, and not below half of it.
    Raises CorruptStream where the code does not end as codes do.
    """
    d = len(laws.low)
    claim(7 * n * d, "integers of vectors")
    q, way, octave = np.empty((n, d), np.int32), np.empty((n, d), np.int16), np.empty((n, d), np.uint8)
    if not _decode(data, laws, q, way, octave):
        raise CorruptStream("a code of vectors is damaged: it does not end where its vectors do")
    return q, way, octave


def slots_plain(k: int, law: np.ndarray, low: int, high: int, p: int, m: int) -> tuple[int, int]:
    """(first slot of k, its slots; 0 for an escape) by their definition, in Python's integers."""
    points = [round(e * ONE) for e in EDGES]

    def begin(k: int) -> int:
        if k <= low or k > high:
            return _ESCAPE if k <= low else _TOTAL
        difference = k * ONE - ONE // 2 - p
        u = difference * ((1 << 40) // m) >> 28
        if abs(difference) >= _FAR * m:
            f = _TOTAL if difference > 0 else 0
        else:
            at = min(max(int(np.searchsorted(points, u, "right")) - 1, 0), POINTS - 2)
            a, z = (int(v) for v in law[at : at + 2])
            f = a + ((z - a) * (u - points[at]) // (points[at + 1] - points[at]))
        return _ESCAPE + (f * (_TOTAL - _ESCAPE - (high - low + 1)) >> 16) + k - low

    return (begin(k), begin(k + 1) - begin(k)) if low <= k <= high else (0, 0)


def laws_plain(q: np.ndarray, laws: Laws) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """p, m, begin, freq of integers q (n, d) by their definition, in Python's integers; freq 0 for an escape."""
    out = np.zeros((4, *q.shape), np.int64)
    for i, row in enumerate(q.tolist()):
        for j, k in enumerate(row):
            p = int(laws.offset[0, j]) + sum(int(laws.mean[i2, j]) * row[i2] for i2 in range(j))
            m = int(laws.offset[1, j]) + sum(
                int(laws.spread[i2, j]) * abs(row[i2] - int(laws.centre[i2])) for i2 in range(j)
            )
            p, m = min(max(p, -_LARGEST), _LARGEST), max(min(max(m, 0), _LARGEST), int(laws.least[j]))
            low, high = int(laws.low[j]), int(laws.high[j])

            out[:, i, j] = p, m, *slots_plain(k, laws.law[j], low, high, p, m)
    return tuple(out)
