"""Sparse vectors: the k largest magnitudes, and codes of where they lie and which level each takes.

A vector of n places holds k values, each a sign and a level below L. The stream, lowest bit first, has for each of them

    gap     places skipped since the one before, as Golomb-Rice code with b low bits: gap >> b ones and a zero, then the low
            bits; from 24 ones on, 24 ones and the gap in 32 bits
    sign    one bit
    level   as many ones, and a zero unless it is the last level

b follows the gaps: the least b with count · 2^b ≥ sum, over the gaps so far, both halved when the count comes to 64; at
first count 1 and sum n // k. Adaptive codes find rows that are hit more often than others (tokens of a batch in an embedding).

Source: Golomb 1966; Rice 1979; the rule for b is LOCO-I's (Weinberger, Seroussi & Sapiro 2000, section III.C).
"""

import numpy as np
from numba import njit

from laconic.core.errors import BadInput, CorruptStream, claim
from laconic.kernels.bits import load64

__all__ = ["MAX_LEVELS", "largest", "largest_plain", "read_sparse", "write_sparse", "write_sparse_plain"]

MAX_LEVELS = 8
_ONES, _WINDOW = 24, 64
_MOST = np.iinfo(np.int32).max


@njit(cache=True, nogil=True)
def _coarse(bits, counts):
    """How many magnitudes begin with each of 2^11 patterns. counts: (4, 2^11), so that equal neighbours do not wait."""
    n = bits.size
    for i in range(0, n - 3, 4):
        counts[0, (bits[i] >> 20) & 2047] += 1
        counts[1, (bits[i + 1] >> 20) & 2047] += 1
        counts[2, (bits[i + 2] >> 20) & 2047] += 1
        counts[3, (bits[i + 3] >> 20) & 2047] += 1
    for i in range(n - n % 4, n):
        counts[0, (bits[i] >> 20) & 2047] += 1


@njit(cache=True, nogil=True)
def _collect(bits, least, some):
    """Places whose magnitude, as bits, is at least `least`: into `some`, which has room for one more (so: no branch)."""
    at = 0
    for i in range(bits.size):
        some[at] = i
        at += bits[i] & np.uint32(0x7FFFFFFF) >= least


@njit(cache=True, nogil=True)
def _refine(bits, some, low, n_above, k, place):
    """The k largest among the places `some`, of which n_above lie above the pattern `low` of the first 11 bits."""
    mask = np.uint32(2047 << 20)
    for step in range(2):
        shift, width = ((9, 11), (0, 9))[step]
        below = (1 << width) - 1
        counts = np.zeros(1 << 11, np.int64)
        for i in some:
            v = bits[i]
            if v & mask == low:
                counts[(v >> np.uint32(shift)) & np.uint32(below)] += 1
        at = below
        while n_above + counts[at] < k:
            n_above += counts[at]
            at -= 1
        low |= np.uint32(at << shift)
        mask |= np.uint32(below << shift)
    equal, at = k - n_above, 0
    for i in some:
        v = bits[i] & np.uint32(0x7FFFFFFF)
        if v > low:
            place[at] = i
            at += 1
        elif v == low and equal:
            equal -= 1
            place[at] = i
            at += 1


def largest(x: np.ndarray, k: int) -> np.ndarray:
    """Ascending places of the k largest magnitudes, of equal ones the first: int32. x: (n,) float32 without NaN."""
    if x.ndim != 1 or x.dtype != np.float32 or not 0 <= k <= x.size <= _MOST:
        raise BadInput(f"the {k} largest of {x.dtype}{x.shape}; a float32 vector of at least so many values is right")
    place = np.empty(k, np.int32)
    if not k:
        return place
    bits = np.ascontiguousarray(x).view(np.uint32)
    counts = np.zeros((4, 1 << 11), np.int64)
    _coarse(bits, counts)
    reached = counts.sum(0)[::-1].cumsum()[::-1]  # how many have this pattern or a larger one
    first = int(np.flatnonzero(reached >= k)[-1])
    some = np.empty(int(reached[first]) + 1, np.int32)
    low = np.uint32(first << 20)
    _collect(bits, low, some)
    _refine(bits, some[:-1], low, int(reached[first + 1]) if first < 2047 else 0, k, place)
    return place


def largest_plain(x: np.ndarray, k: int) -> np.ndarray:
    """`largest` by sorting."""
    return np.sort(np.argsort(-np.abs(x), kind="stable")[:k]).astype(np.int32)


@njit(cache=True, nogil=True)
def _write(place, negative, level, n_levels, n, out):
    """Bits written. out: zeroed, uint8, long enough for the worst case."""
    word, filled, at = np.uint64(0), 0, 0
    count, total, before = 1, n // max(place.size, 1), -1
    for i in range(place.size):
        gap = np.int64(place[i]) - before - 1
        before = np.int64(place[i])
        b = 0
        while count << b < total:
            b += 1
        q = gap >> b
        if q < _ONES:
            code = np.uint64((1 << q) - 1) | np.uint64(gap - (q << b)) << np.uint64(q + 1)
            length = q + 1 + b
        else:
            code = np.uint64((1 << _ONES) - 1) | np.uint64(gap) << np.uint64(_ONES)
            length = _ONES + 32
        for part in range(2):
            if part:
                tail = np.int64(level[i])
                code = np.uint64(negative[i]) | np.uint64((1 << tail) - 1) << np.uint64(1)
                length = 1 + tail + (tail < n_levels - 1)
            word |= code << np.uint64(filled)  # filled < 8 and length ≤ 56, so nothing is lost
            filled += length
            while filled >= 8:
                out[at] = word & np.uint64(255)
                word >>= np.uint64(8)
                filled -= 8
                at += 1
        total += gap
        count += 1
        if count == _WINDOW:
            count >>= 1
            total >>= 1
    if filled:
        out[at] = word & np.uint64(255)
        at += 1
    return at


def write_sparse(place: np.ndarray, negative: np.ndarray, level: np.ndarray, n_levels: int, n: int) -> np.ndarray:
    """The stream of k values in a vector of n: uint8.

    place: (k,) int32, ascending, below n. negative: (k,) bool. level: (k,) uint8, below n_levels.
    """
    if not place.shape == negative.shape == level.shape or not 1 <= n_levels <= MAX_LEVELS or n > _MOST:
        raise BadInput(f"{place.shape} places, {level.shape} levels of {n_levels} in {n} places; they do not fit")
    out = np.zeros((place.size * (_ONES + 32 + 1 + n_levels)) // 8 + 2, np.uint8)
    return out[: _write(place, negative, level, n_levels, n, out)]


@njit(cache=True, nogil=True)
def _read(data, n_bits, k, n_levels, n, place, negative, level):
    """0, or what is wrong: 1 too short, 2 a place beyond the end, 3 too long or bits behind the end that are set.

    data: the stream and 8 bytes more. A gap has at most 56 bits, which is what a word holds behind any bit.
    """
    at, one = 0, np.uint64(1)
    count, total, before = 1, n // max(k, 1), -1
    for i in range(k):
        b = 0
        while count << b < total:
            b += 1
        if at >= n_bits:
            return 1
        word = load64(data, at >> 3) >> np.uint64(at & 7)
        q = 0
        while q < _ONES and word & one:
            word >>= one
            q += 1
        if q < _ONES:
            gap = (q << b) + np.int64((word >> one) & np.uint64((1 << b) - 1))
            at += q + 1 + b
        else:
            gap = np.int64(word & np.uint64(0xFFFFFFFF))
            at += _ONES + 32
            if gap >> b < _ONES:
                return 2
        before += gap + 1
        if before >= n:
            return 2
        if at >= n_bits:
            return 1
        place[i] = before
        word = load64(data, at >> 3) >> np.uint64(at & 7)
        negative[i] = word & one
        tail = 0
        while tail < n_levels - 1:
            word >>= one
            if not word & one:
                break
            tail += 1
        level[i] = tail
        at += 1 + tail + (tail < n_levels - 1)
        total += gap
        count += 1
        if count == _WINDOW:
            count >>= 1
            total >>= 1
    if at > n_bits:
        return 1
    if (at + 7) >> 3 != n_bits >> 3 or (at & 7 and data[at >> 3] >> (at & 7)):
        return 3
    return 0


def read_sparse(data: np.ndarray, k: int, n_levels: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(place, negative, level) of `write_sparse`. Raises CorruptStream for anything that it cannot have written."""
    if not 1 <= n_levels <= MAX_LEVELS or not 0 <= k <= n <= _MOST or 2 * k > 8 * data.size:
        raise CorruptStream(f"{k:,} values of {n_levels} levels in {n:,} places, in {data.size:,} bytes")
    claim(6 * k, "sparse values")
    place, negative, level = np.empty(k, np.int32), np.empty(k, np.bool_), np.empty(k, np.uint8)
    padded = np.concatenate([data, np.zeros(8, np.uint8)])
    wrong = _read(padded, 8 * data.size, k, n_levels, n, place, negative, level)
    if wrong:
        what = ("", "end too early", "lie beyond the end of the vector", "end too late")[wrong]
        raise CorruptStream(f"sparse values that {what}")
    return place, negative, level


def write_sparse_plain(place: np.ndarray, negative: np.ndarray, level: np.ndarray, n_levels: int, n: int) -> np.ndarray:
    """`write_sparse` as a string of bits."""
    text, before = "", -1
    count, total = 1, n // max(len(place), 1)
    for p, sign, tail in zip(place.tolist(), negative.tolist(), level.tolist(), strict=True):
        gap, before = p - before - 1, p
        b = next(b for b in range(64) if count << b >= total)
        if gap >> b < _ONES:
            low = format(gap & ((1 << b) - 1), f"0{b}b")[::-1] if b else ""
            text += "1" * (gap >> b) + "0" + low
        else:
            text += "1" * _ONES + format(gap, "032b")[::-1]
        text += str(int(sign)) + "1" * tail + "0" * (tail < n_levels - 1)
        total, count = total + gap, count + 1
        if count == _WINDOW:
            total, count = total >> 1, count >> 1
    return np.packbits(np.array([c == "1" for c in text], bool), bitorder="little")
