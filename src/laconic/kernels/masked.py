"""Vectors coded coordinate by coordinate: every integer has a law that a masked network makes of the integers before it.

    φ_i = (q_i, |q_i − μ_i|, [q_i ≠ μ_i])
    h_u = max(b_u + Σ_{i < g_u} W_ui · φ_i, 0)                       unit u sees what comes before its degree g_u
    p_j = a_j + Σ_{i < j} S_ji · φ_i + Σ_{g_u ≤ j} V_ju h_u          where q_j is expected; log₂ m_j, its spread, likewise
    P(q_j ≤ k) = F((k + ½ − p_j) / m_j)                              F: logistic, straight between 89 points

All of it is integers, in any order of the sums: weights have 16 bits, units end at 2^22, sums in float64 stay below 2^53, and
count for 2^50 at most.
A coordinate adds to the units behind it as soon as it is known, so that a vector costs what one pass of the network costs.

Source: Germain, Gregor, Murray & Larochelle 2015 (1502.03509), MADE, equations 9 to 12.
"""

import math
from decimal import Context, Decimal, localcontext
from functools import cache
from typing import NamedTuple

import numpy as np
from numba import njit

from laconic.core.errors import CorruptStream, claim
from laconic.kernels.autoregressive import EDGES, ONE, Chosen, decode_under, expected, pick, slots_plain
from laconic.kernels.rangecoder import ended, start

__all__ = [
    "FEATURES",
    "FINE",
    "Network",
    "choose",
    "decode",
    "degrees",
    "first_units",
    "gains",
    "law",
    "network_plain",
    "powers",
]

FEATURES = 3
FINE = 10  # log2 of the parts of a unit's activation
_MOST = float(1 << 22)  # of them
_LEAST = 64  # of m: a 64th of a step
_FLAT, _STEEP = 28, -6  # of log2 m
_LARGEST = float(1 << 50)  # of sums


class Network(NamedTuple):
    """d coordinates, h units in the order of their degrees.

    inward: int16 (d, 3, h), what a coordinate adds to units; outward: int16 (h, 2, d), what units add to p and log₂ m; skip:
    int16 (d, 3, 2, d). hidden: float64 (h,), b, whole numbers. offset: float64 (2, d), in 2^-12. first: int64 (d + 1,), units
    of a degree below 0 … d. gains: float64 (3,), powers of two, from the sums of inward, outward and skip to what they stand
    for. centre, low, high: int64 (d,), μ and the range.
    """

    inward: np.ndarray
    outward: np.ndarray
    skip: np.ndarray
    hidden: np.ndarray
    offset: np.ndarray
    first: np.ndarray
    gains: np.ndarray
    centre: np.ndarray
    low: np.ndarray
    high: np.ndarray


def degrees(d: int, h: int) -> np.ndarray:
    """(h,) of units: from 1 to d − 1, rising and spread evenly."""
    return 1 + np.arange(h) * max(d - 1, 0) // max(h, 1)


def first_units(d: int, h: int) -> np.ndarray:
    """(d + 1,) how many of h units have a degree below 0 … d."""
    return np.searchsorted(degrees(d, h), np.arange(d + 1), "left").astype(np.int64)


def gains(inward: int, outward: int, across: int) -> np.ndarray:
    """`Network.gains` of weights that were multiplied by two to these powers."""
    return np.ldexp(1.0, np.array([FINE - inward, 12 - FINE - outward, 12 - across]))


@cache
def law() -> np.ndarray:
    """(1, 89) F in 2^-16, 1 / (1 + e^-2u) at `EDGES`: decimals, so that machines agree on the last digit."""
    with localcontext(Context(prec=40)):
        inner = [round(65536 / (1 + (-2 * Decimal(float(u))).exp())) for u in EDGES[1:-1]]
    return _kept([[0, *inner, 65536]])


@cache
def powers() -> np.ndarray:
    """(256,) 2^(i/256) in 2^-16."""
    with localcontext(Context(prec=40)):
        return _kept([round(65536 * Decimal(2) ** (Decimal(i) / 256)) for i in range(256)])


def _kept(values: list[int] | list[list[int]]) -> np.ndarray:
    out = np.array(values, np.int64)
    out.flags.writeable = False
    return out


@njit(cache=True, nogil=True, forceinline=True, _nrt=False)
def _whole(sum_, gain):
    """A sum as it counts, without its fraction and below 2^50."""
    return min(max(np.floor(sum_ * gain), -_LARGEST), _LARGEST)


@njit(cache=True, nogil=True, forceinline=True, _nrt=False)
def _law_of(net, power, j, skipped, passed):
    """p, m and 2^40 / m of coordinate j."""
    p = net.offset[0, j] + _whole(skipped[0, j], net.gains[2]) + _whole(passed[0, j], net.gains[1])
    size = net.offset[1, j] + _whole(skipped[1, j], net.gains[2]) + _whole(passed[1, j], net.gains[1])
    octaves = np.int64(min(max(size, _STEEP * ONE), _FLAT * ONE))
    up = (octaves >> 12) - 4
    m = power[(octaves & 4095) >> 4]
    m = m << up if up >= 0 else m >> -up
    return expected(np.float64(p), np.float64(m), _LEAST)


@njit(cache=True, nogil=True)
def _seen(net, j, k, hidden, skipped, passed):
    """What coordinate j, an integer k, adds to units and coordinates behind it, and what the units add that it completes."""
    d, h = skipped.shape[1], hidden.shape[0]
    if j + 1 == d:
        return
    begin, end = net.first[j + 1], net.first[j + 2]
    if k != 0 or net.centre[j] != 0:
        value, distance = np.float64(k), np.float64(abs(k - net.centre[j]))
        other = 1.0 if k != net.centre[j] else 0.0
        for u in range(begin, h):
            hidden[u] += net.inward[j, 0, u] * value + net.inward[j, 1, u] * distance + net.inward[j, 2, u] * other
        for side in range(2):
            for o in range(j + 1, d):
                skipped[side, o] += (net.skip[j, 0, side, o] * value + net.skip[j, 1, side, o] * distance
                                     + net.skip[j, 2, side, o] * other)  # fmt: skip
    for u in range(begin, end):
        active = min(np.floor(hidden[u] * net.gains[0]), _MOST)
        if active > 0:
            for side in range(2):
                for o in range(j + 1, d):
                    passed[side, o] += net.outward[u, side, o] * active


@njit(cache=True, nogil=True)
def _choose(t, net, table, power, lam, q, begin, freq):
    n, d = t.shape
    hidden, skipped, passed = np.empty(net.hidden.shape[0]), np.empty((2, d)), np.empty((2, d))
    for i in range(n):
        hidden[:], skipped[:], passed[:] = net.hidden, 0.0, 0.0
        for j in range(d):
            p, m, inverse = _law_of(net, power, j, skipped, passed)
            k, first, width = pick(table, 0, t[i, j], net.low[j], net.high[j], p, m, inverse, lam)
            q[i, j], begin[i, j], freq[i, j] = k, first, width
            _seen(net, j, k, hidden, skipped, passed)


@njit(cache=True, nogil=True)
def _decode(data, net, table, power, q):
    n, d = q.shape
    hidden, skipped, passed = np.empty(net.hidden.shape[0]), np.empty((2, d)), np.empty((2, d))
    code, width, at = start(data)
    for i in range(n):
        hidden[:], skipped[:], passed[:] = net.hidden, 0.0, 0.0
        for j in range(d):
            p, m, inverse = _law_of(net, power, j, skipped, passed)
            k, code, width, at = decode_under(code, width, at, data, table, 0, net.low[j], net.high[j], p, m, inverse)
            q[i, j] = k
            _seen(net, j, k, hidden, skipped, passed)
        if at > data.shape[0] + 64:
            return False
    return ended(code, width, at, data)


def choose(t: np.ndarray, net: Network, lam: float = 0.0) -> Chosen:
    """Integers for values t, float64 (n, d) in steps, |t| ≤ 2^24: of the nearest and its neighbour towards p the cheaper.

    lam: squared steps that a bit is worth. p and m are not traced.
    """
    n, d = t.shape
    none = np.empty((0, d), np.int64)
    out = Chosen(np.empty((n, d), np.int32), np.empty((n, d), np.uint32), np.empty((n, d), np.uint32), none, none)
    _choose(t, net, law(), powers(), lam, *out[:3])
    return out


def decode(data: np.ndarray, net: Network, n: int) -> np.ndarray:
    """q int32 (n, d) from a code (uint8). Raises CorruptStream where the code does not end as codes do."""
    d = len(net.low)
    claim(4 * n * d, "integers of vectors")
    q = np.empty((n, d), np.int32)
    if not _decode(data, net, law(), powers(), q):
        raise CorruptStream("a code of vectors is damaged: it does not end where its vectors do")
    return q


def network_plain(q: np.ndarray, net: Network) -> np.ndarray:
    """(4, n, d): p, m, begin, freq of integers q by their definition, in Python's integers; freq 0 for an escape."""
    out = np.zeros((4, *q.shape), np.int64)
    h = len(net.hidden)
    degree = degrees(q.shape[1], h).tolist()
    drop = [round(-math.log2(g)) for g in net.gains]  # bits to the right; to the left where negative

    def shifted(v: int, by: int) -> int:
        return v >> by if by >= 0 else v << -by

    def whole(v: int, by: int) -> int:
        return min(max(shifted(v, by), -1 << 50), 1 << 50)

    for i, row in enumerate(q.tolist()):
        phi = [(k, abs(k - int(c)), int(k != c)) for k, c in zip(row, net.centre.tolist(), strict=True)]
        units = []
        for u in range(h):
            total = int(net.hidden[u])
            total += sum(int(w) * f for j in range(degree[u]) for w, f in zip(net.inward[j, :, u], phi[j], strict=True))
            units.append(min(max(shifted(total, drop[0]), 0), 1 << 22))
        for j, k in enumerate(row):
            sums = []
            for side in range(2):
                before = sum(int(w) * f for b in range(j) for w, f in zip(net.skip[b, :, side, j], phi[b], strict=True))
                through = sum(int(net.outward[u, side, j]) * units[u] for u in range(h) if degree[u] <= j)
                sums.append(int(net.offset[side, j]) + whole(before, drop[2]) + whole(through, drop[1]))
            octaves = min(max(sums[1], _STEEP * ONE), _FLAT * ONE)
            m = max(min(shifted(int(powers()[(octaves & 4095) >> 4]), 4 - (octaves >> 12)), 1 << 40), _LEAST)
            p = min(max(sums[0], -1 << 40), 1 << 40)
            out[:, i, j] = p, m, *slots_plain(k, law()[0], int(net.low[j]), int(net.high[j]), p, m)
    return out
