"""The lattice E8: nearest points in closed form, and two finite codes cut out of it.

E8 = D8 ∪ (D8 + ½), D8 being the integer vectors of even sum. Points are held doubled, as int64: eight even numbers or eight
odd ones, whose sum is a multiple of four.

Sources: J. Conway, N. Sloane, "Fast quantizing and decoding algorithms for lattice quantizers and codes", IEEE Trans. IT
28(2), 1982 (nearest point); "A fast encoding method for lattice codes and quantizers", IEEE Trans. IT 29(6), 1983
(Voronoi codes).
"""

from functools import lru_cache
from itertools import product as combinations

import numpy as np
from numba import njit

from laconic.core.errors import BadInput, CorruptStream
from laconic.kernels.distance import least

__all__ = [
    "BALL_BITS",
    "ball_decode",
    "ball_decode_plain",
    "ball_encode",
    "ball_encode_plain",
    "ball_points",
    "nearest",
    "nearest_plain",
    "voronoi_decode",
    "voronoi_decode_plain",
    "voronoi_encode",
]

MAX_LEVELS = 1 << 12


# --- nearest point ----------------------------------------------------------------------------------------------------
@njit(cache=True, nogil=True, inline="always")
def _nearest_even(y, point):
    """Nearest point of D8 to y (float64, 8 values) and its squared distance; of equal repairs the first."""
    odd = 0
    worst, at = -1.0, 0
    for k in range(8):
        f = np.floor(y[k] + 0.5)
        point[k] = np.int64(f)
        odd ^= point[k] & 1
        e = abs(y[k] - f)
        if e > worst:
            worst, at = e, k
    if odd:
        point[at] += 1 if y[at] >= point[at] else -1
    total = 0.0
    for k in range(8):
        e = y[k] - point[k]
        total += e * e
    return total


@njit(cache=True, nogil=True)
def _nearest_one(x, scratch, a, b, out):
    """Doubled nearest point of E8; of equal ones that of D8."""
    first = _nearest_even(x, a)
    for k in range(8):
        scratch[k] = x[k] - 0.5
    second = _nearest_even(scratch, b)
    for k in range(8):
        out[k] = 2 * b[k] + 1 if second < first else 2 * a[k]


@njit(cache=True, nogil=True)
def _nearest(x, out):
    scratch, a, b = np.empty(8), np.empty(8, np.int64), np.empty(8, np.int64)
    for i in range(x.shape[0]):
        _nearest_one(x[i], scratch, a, b, out[i])


def _checked(x: np.ndarray) -> np.ndarray:
    if x.ndim != 2 or x.shape[1] != 8:
        raise BadInput(f"vectors of shape {x.shape}; E8 has 8 dimensions")
    if x.size and not np.abs(x).max() < 2.0**40:
        raise BadInput("values beyond 2^40 lattice steps, or none; scale the array first")
    return np.ascontiguousarray(x, np.float64)


def nearest(x: np.ndarray) -> np.ndarray:
    """The nearest points of E8, doubled: int64, (n, 8). x: (n, 8)."""
    x = _checked(x)
    out = np.empty(x.shape, np.int64)
    _nearest(x, out)
    return out


def nearest_plain(x: np.ndarray) -> np.ndarray:
    """`nearest`, in NumPy."""

    def even(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        point = np.floor(y + 0.5)
        at = np.argmax(np.abs(y - point), 1)
        rows = np.arange(len(y))
        step = np.where(y[rows, at] >= point[rows, at], 1.0, -1.0)
        point[rows, at] += np.where(point.sum(1) % 2 != 0, step, 0.0)
        e = y - point
        total = np.zeros(len(y))
        for k in range(8):
            total += e[:, k] * e[:, k]
        return point, total

    x = x.astype(np.float64)
    (a, first), (b, second) = even(x), even(x - 0.5)
    return np.where((second < first)[:, None], 2 * b + 1, 2 * a).astype(np.int64)


# --- Voronoi codes ----------------------------------------------------------------------------------------------------
@njit(cache=True, nogil=True, inline="always")
def _coordinates(p, q, index):
    """Coordinates of a doubled point in the basis below, modulo q.

    Basis: (2, 0, …), (−1, 1, 0, …), (0, −1, 1, 0, …), …, (…, −1, 1, 0), (½, …, ½).
    """
    last = p[7]
    index[7] = last % q
    after = np.int64(0)
    for k in range(6, 0, -1):
        after += (p[k] - last) // 2
        index[k] = after % q
    index[0] = (((p[0] - last) // 2 + after) // 2) % q


@njit(cache=True, nogil=True, inline="always")
def _residue_even(p, shift, q, f):
    """Nearest point f of D8 to (p − shift) / 2q, all in integers, and the squared distance in units of 1 / 2q."""
    odd = 0
    worst, at = np.int64(-1), 0
    for k in range(8):
        f[k] = (p[k] - shift + q) // (2 * q)
        odd ^= f[k] & 1
        e = abs(p[k] - shift - 2 * q * f[k])
        if e > worst:
            worst, at = e, k
    if odd:
        f[at] += 1 if p[at] - shift >= 2 * q * f[at] else -1
    total = np.int64(0)
    for k in range(8):
        e = p[k] - shift - 2 * q * f[k]
        total += e * e
    return total


@njit(cache=True, nogil=True)
def _representative(index, q, a, b, p):
    """The doubled point of the code that an index stands for: the shortest of its class modulo q E8."""
    for k in range(1, 7):
        p[k] = 2 * (index[k] - (index[k + 1] if k < 6 else 0)) + index[7]
    p[0] = 2 * (2 * index[0] - index[1]) + index[7]
    p[7] = index[7]
    first = _residue_even(p, 0, q, a)
    second = _residue_even(p, q, q, b)
    for k in range(8):
        p[k] -= q * (2 * b[k] + 1) if second < first else 2 * q * a[k]


@njit(cache=True, nogil=True)
def _voronoi_decode(index, q, out):
    a, b = np.empty(8, np.int64), np.empty(8, np.int64)
    for i in range(index.shape[0]):
        _representative(index[i], q, a, b, out[i])


@njit(cache=True, nogil=True)
def _voronoi_encode(x, q, halvings, index):
    """Nearest points; where one is no point of the code, the farthest on the ray to x that is, by bisection."""
    scratch, y = np.empty(8), np.empty(8)
    a, b, p, back = np.empty(8, np.int64), np.empty(8, np.int64), np.empty(8, np.int64), np.empty(8, np.int64)
    trial = np.empty(8, np.int64)
    n_overloaded = 0
    for i in range(x.shape[0]):
        low, high, size = 0.0, 1.0, 1.0
        for k in range(8):
            index[i, k] = 0
        for step in range(halvings + 1):
            for k in range(8):
                y[k] = size * x[i, k]
            _nearest_one(y, scratch, a, b, p)
            _coordinates(p, q, trial)
            _representative(trial, q, a, b, back)
            inside = True
            for k in range(8):
                inside &= back[k] == p[k]
            if inside:
                for k in range(8):
                    index[i, k] = trial[k]
                if step == 0:
                    break
                low = size
            else:
                n_overloaded += step == 0
                high = size
            size = 0.5 * (low + high)
    return n_overloaded


def _check_levels(levels: int) -> None:
    if not 2 <= levels <= MAX_LEVELS:
        raise BadInput(f"{levels} levels a dimension; 2 to {MAX_LEVELS} are possible")


def voronoi_encode(x: np.ndarray, levels: int, *, halvings: int = 12) -> tuple[np.ndarray, int]:
    """Indices in the Voronoi code E8 / levels·E8, and how many vectors lay outside of it.

    **Shapes** x: (n, 8), in lattice steps. Gives (n, 8) int64, each below `levels`: log2(levels) bits a dimension. A vector
    outside is drawn in along its ray, to within 2^−halvings of its length.
    """
    _check_levels(levels)
    x = _checked(x)
    index = np.empty(x.shape, np.int64)
    return index, int(_voronoi_encode(x, levels, halvings, index))


def _check_index(index: np.ndarray, levels: int) -> np.ndarray:
    _check_levels(levels)
    if index.ndim != 2 or index.shape[1] != 8:
        raise CorruptStream(f"indices of shape {index.shape}; E8 has 8 dimensions")
    if index.size and not 0 <= int(index.min()) <= int(index.max()) < levels:
        raise CorruptStream(f"indices {index.min()} … {index.max()} for {levels} levels")
    return np.ascontiguousarray(index, np.int64)


def voronoi_decode(index: np.ndarray, levels: int) -> np.ndarray:
    """The doubled points that indices stand for: int64, (n, 8). Integer arithmetic throughout."""
    index = _check_index(index, levels)
    out = np.empty(index.shape, np.int64)
    _voronoi_decode(index, levels, out)
    return out


def voronoi_decode_plain(index: np.ndarray, levels: int) -> np.ndarray:
    """`voronoi_decode`, in NumPy: p = index · basis, minus levels times the nearest point of E8 to p / levels."""
    basis = 2 * np.eye(8, dtype=np.int64) - 2 * np.eye(8, k=-1, dtype=np.int64)
    basis[0, 0], basis[7] = 4, 1
    p = index.astype(np.int64) @ basis

    def even(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        f = (p + levels) // (2 * levels)
        at = np.argmax(np.abs(p - 2 * levels * f), 1)
        rows = np.arange(len(p))
        step = np.where(p[rows, at] >= 2 * levels * f[rows, at], 1, -1)
        f[rows, at] += np.where(f.sum(1) % 2 != 0, step, 0)
        return f, ((p - 2 * levels * f) ** 2).sum(1)

    (a, first), (b, second) = even(p), even(p - levels)
    return p - np.where((second < first)[:, None], levels * (2 * b + 1), 2 * levels * a)


# --- the ball of 2^16 points ------------------------------------------------------------------------------------------
BALL_BITS = 16


@lru_cache(maxsize=1)
def ball_points() -> np.ndarray:
    """256 vectors of odd absolute values (doubled coordinates of D8 + ½): uint8, (256, 8).

    The 227 of squared length up to 10 and 29 of the 224 of length 12, the first in the order of (how many coordinates are
    5/2; the vector). The rule is part of the format.
    """
    odd = [p for p in combinations((1, 3, 5), repeat=8) if sum(c * c for c in p) <= 4 * 12]
    odd.sort(key=lambda p: (sum(c * c for c in p), p.count(5), p))
    out = np.array(odd[:256], np.uint8)
    out.flags.writeable = False
    return out


@njit(cache=True, nogil=True)
def _ball_encode(x, half, odd, out):
    """The nearest code: exhaustive over the absolute values and the two shifts, the signs in closed form.

    Signs that make every product positive are best; where their sum is odd, the sign whose change costs least changes.
    half: (8, 256) float32, half the table; odd: (2, 256) float32, whether an absolute value needs the change, given the
    parity of the negative coordinates.
    """
    n_points = half.shape[1]
    size = np.empty((2, 8), np.float32)
    score, least_product = np.empty(n_points, np.float32), np.empty(n_points, np.float32)
    zeros = np.zeros(n_points, np.float32)
    for i in range(x.shape[0]):
        best = np.float32(np.inf)
        shift, point = 0, np.int64(0)
        for t in range(2):
            negative = 0
            total = np.float32(0)
            for k in range(8):
                v = np.float32(x[i, k] - (0.25 if t == 0 else -0.25))
                size[t, k] = abs(v)
                negative ^= v < 0
                total += v * v
            for c in range(n_points):
                score[c] = total
                least_product[c] = np.float32(np.inf)
            for k in range(8):
                v = size[t, k]
                for c in range(n_points):
                    s = half[k, c]
                    p = v * s
                    score[c] += s * s - np.float32(2) * p
                    least_product[c] = p if p < least_product[c] else least_product[c]
            for c in range(n_points):
                score[c] += np.float32(4) * odd[negative, c] * least_product[c]
            found, c = least(score, 0, zeros, 0, n_points)
            if found < best:
                best, shift, point = found, t, c
        signs, at = 0, 0
        cheapest = np.float32(np.inf)
        negative = 0
        for k in range(8):
            if x[i, k] - (0.25 if shift == 0 else -0.25) < 0:
                signs |= 1 << k
                negative ^= 1
            p = size[shift, k] * half[k, point]
            if p < cheapest:
                cheapest, at = p, k
        if odd[negative, point] > 0:
            signs ^= 1 << at
        out[i] = (point << 8) | ((signs & 127) << 1) | shift


@njit(cache=True, nogil=True)
def _ball_decode(code, table, out):
    for i in range(code.shape[0]):
        c = code[i] >> 8
        signs = (code[i] >> 1) & 127
        parity = 0
        for k in range(8):
            parity ^= (table[c, k] >> 1) & 1
            if k < 7:
                parity ^= (signs >> k) & 1
        signs |= parity << 7  # the last sign follows from the even sum
        for k in range(8):
            v = -2 * np.int64(table[c, k]) if (signs >> k) & 1 else 2 * np.int64(table[c, k])
            out[i, k] = v + 1 if code[i] & 1 == 0 else v - 1


def ball_encode(x: np.ndarray) -> np.ndarray:
    """The nearest of the 2^16 points: int64, (n,). x: (n, 8), in lattice steps.

    Code: absolute values (8 bits), signs of the first seven coordinates (7), shift (1): + ¼ if 0, − ¼ if 1.
    """
    x = _checked(x)
    table = ball_points()
    parity = (table >> 1).sum(1) & 1
    out = np.empty(len(x), np.int64)
    half = np.ascontiguousarray(table.T * np.float32(0.5))
    _ball_encode(x, half, np.stack([parity, 1 - parity]).astype(np.float32), out)
    return out


def ball_decode(code: np.ndarray) -> np.ndarray:
    """Four times the points that codes stand for: int64, (n, 8)."""
    if code.size and not 0 <= int(code.min()) <= int(code.max()) < 1 << BALL_BITS:
        raise CorruptStream(f"codes {code.min()} … {code.max()} of {BALL_BITS} bits")
    out = np.empty((code.size, 8), np.int64)
    _ball_decode(np.ascontiguousarray(code.reshape(-1), np.int64), ball_points(), out)
    return out


def ball_decode_plain(code: np.ndarray) -> np.ndarray:
    """`ball_decode`, in NumPy."""
    size = ball_points()[code >> 8].astype(np.int64)
    negative = ((code >> 1)[:, None] >> np.arange(7)) & 1
    last = ((size - 1) // 2).sum(1) + negative.sum(1)
    negative = np.concatenate([negative, (last % 2)[:, None]], 1)
    return 2 * np.where(negative == 1, -size, size) + np.where(code & 1, -1, 1)[:, None]


def ball_encode_plain(x: np.ndarray) -> np.ndarray:
    """`ball_encode`, from the distances to all points."""
    every = ball_decode_plain(np.arange(1 << BALL_BITS)) / 4
    return np.array([int(((v - every) ** 2).sum(1).argmin()) for v in x.astype(np.float64)])
