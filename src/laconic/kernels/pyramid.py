"""The pyramid: integer vectors of L values with Σ|y| = K. Search of a near one, and their enumeration.

How many there are:  N(L, K) = N(L−1, K) + N(L, K−1) + N(L−1, K−1),  N(L, 0) = 1,  N(0, K) = 0 for K > 0.

The number of a point counts those before it: coordinate by coordinate, the values in the order 0, 1, −1, 2, −2, …; a value v
with l coordinates and k pulses behind it leaves out N(l, k) points for each value before v.

Source: T. Fischer, "A pyramid vector quantizer", IEEE Trans. IT 32(4), 1986. Differs: the order of the values.
"""

from functools import lru_cache

import numpy as np
from numba import njit

from laconic.core.errors import BadConfig, BadInput, CorruptStream, claim

__all__ = ["counts", "pulses", "pulses_plain", "rank", "rank_plain", "unrank", "unrank_plain"]

MAX_LENGTH = MAX_PULSES = 256


@lru_cache(maxsize=16)
def counts(length: int, n_pulses: int) -> tuple[tuple[int, ...], ...]:
    """N(l, k) for l ≤ length and k ≤ n_pulses, exactly."""
    if not (1 <= length <= MAX_LENGTH and 0 <= n_pulses <= MAX_PULSES):
        raise BadConfig(f"a pyramid of {length} values and {n_pulses} pulses; 1 … 256 and 0 … 256 are possible")
    rows = [[1] + [0] * n_pulses]
    for _ in range(length):
        row = [1]
        for k in range(1, n_pulses + 1):
            row.append(rows[-1][k] + row[-1] + rows[-1][k - 1])
        rows.append(row)
    return tuple(map(tuple, rows))


def _words(length: int, n_pulses: int) -> np.ndarray | None:
    """`counts` as uint64, if they fit."""
    table = counts(length, n_pulses)
    return np.array(table, np.uint64) if table[-1][-1] < 1 << 63 else None


# --- search -----------------------------------------------------------------------------------------------------------
@njit(cache=True, nogil=True)
def _pulses(x, n_pulses, out):
    n, length = x.shape
    size = np.empty(length)
    for i in range(n):
        total = 0.0
        for j in range(length):
            size[j] = abs(np.float64(x[i, j]))
            total += size[j]
        if not total > 0:
            size[0] = total = 1.0
        left = n_pulses
        product, square = 0.0, 0.0
        for j in range(length):
            y = min(np.int64(np.floor(n_pulses * (size[j] / total))), left)
            out[i, j] = y
            left -= y
            product += y * size[j]
            square += np.float64(y) * y
        for _ in range(left):
            best, at = -1.0, 0
            for j in range(length):
                p = product + size[j]
                score = p * p / (square + 2.0 * out[i, j] + 1.0)
                if score > best:
                    best, at = score, j
            product += size[at]
            square += 2.0 * out[i, at] + 1.0
            out[i, at] += 1
        for j in range(length):
            if x[i, j] < 0:
                out[i, j] = -out[i, j]


def _check_rows(x: np.ndarray, n_pulses: int) -> None:
    if x.ndim != 2 or not 1 <= x.shape[1] <= MAX_LENGTH or not 1 <= n_pulses <= MAX_PULSES:
        raise BadInput(f"{n_pulses} pulses for vectors of shape {x.shape}; up to 256 each are possible")


def pulses(x: np.ndarray, n_pulses: int) -> np.ndarray:
    """A point of the pyramid whose direction is near that of x: int32, (n, length).

    x: (n, length) float32. Starts at the floor of the projection; the pulses that are left go one by one where the cosine
    rises most.
    """
    _check_rows(x, n_pulses)
    out = np.empty(x.shape, np.int32)
    _pulses(np.ascontiguousarray(x, np.float32), n_pulses, out)
    return out


def pulses_plain(x: np.ndarray, n_pulses: int) -> np.ndarray:
    """`pulses`, vector by vector in NumPy."""
    _check_rows(x, n_pulses)
    out = np.empty(x.shape, np.int32)
    for i, row in enumerate(x.astype(np.float64)):
        size = np.abs(row)
        total = float(np.cumsum(size)[-1])
        if not total > 0:
            size[0] = total = 1.0
        y = np.floor(n_pulses * (size / total))
        y = np.minimum(y, np.maximum(n_pulses - np.concatenate([[0.0], np.cumsum(y)[:-1]]), 0))
        product, square = float(np.cumsum(y * size)[-1]), float(y @ y)
        for _ in range(n_pulses - int(y.sum())):
            at = int(np.argmax((product + size) ** 2 / (square + 2 * y + 1)))
            product, square = product + size[at], square + 2 * y[at] + 1
            y[at] += 1
        out[i] = np.where(row < 0, -y, y)
    return out


# --- enumeration ------------------------------------------------------------------------------------------------------
@njit(cache=True, nogil=True)
def _rank(y, table, out):
    n, length = y.shape
    for i in range(n):
        k = table.shape[1] - 1
        number = np.uint64(0)
        for j in range(length):
            v = abs(np.int64(y[i, j]))
            behind = length - j - 1
            if v:
                number += table[behind, k]
                for a in range(1, v):
                    number += np.uint64(2) * table[behind, k - a]
                if y[i, j] < 0:
                    number += table[behind, k - v]
            k -= v
        out[i] = number


@njit(cache=True, nogil=True)
def _unrank(number, table, out):
    """Every number must be below table[-1, -1]; then the values below add up to the pulses."""
    n, length = out.shape
    for i in range(n):
        k = table.shape[1] - 1
        left = number[i]
        for j in range(length):
            behind = length - j - 1
            v = 0
            while True:  # ends: the counts of all values add up to table[behind + 1, k], and `left` is below it
                size = table[behind, k - v]
                if left < size:
                    out[i, j] = v
                    break
                left -= size
                if v and left < size:
                    out[i, j] = -v
                    break
                if v:
                    left -= size
                v += 1
            k -= v


def _check_points(y: np.ndarray, n_pulses: int) -> None:
    if y.ndim != 2 or (np.abs(y.astype(np.int64)).sum(1) != n_pulses).any():
        raise BadInput(f"vectors of shape {y.shape} whose absolute values do not all add up to {n_pulses}")


def rank(y: np.ndarray, n_pulses: int) -> np.ndarray:
    """The number of every point: uint64, or Python integers (dtype object) where N(L, K) ≥ 2^63. y: (n, L) int32."""
    _check_points(y, n_pulses)
    table = _words(y.shape[1], n_pulses)
    if table is None:
        return rank_plain(y, n_pulses)
    out = np.empty(len(y), np.uint64)
    _rank(np.ascontiguousarray(y, np.int32), table, out)
    return out


def rank_plain(y: np.ndarray, n_pulses: int) -> np.ndarray:
    """`rank`, in Python integers."""
    _check_points(y, n_pulses)
    table, out = counts(y.shape[1], n_pulses), []
    for row in y.tolist():
        k, number = n_pulses, 0
        for j, v in enumerate(row):
            behind = table[len(row) - j - 1]
            number += sum(behind[k - abs(a)] for a in range(1 - abs(v), abs(v))) if v else 0
            number += behind[k - abs(v)] if v < 0 else 0
            k -= abs(v)
        out.append(number)
    return np.array(out, dtype=object)


def _check_numbers(number: np.ndarray, length: int, n_pulses: int) -> None:
    size = counts(length, n_pulses)[-1][-1]
    claim(4 * length * len(number), "points of a pyramid")
    if len(number) and int(number.max()) >= size:
        raise CorruptStream(f"point number {int(number.max()):,} of a pyramid of {size:,} points")


def unrank(number: np.ndarray, length: int, n_pulses: int) -> np.ndarray:
    """The points of the given numbers: int32, (n, length). Raises CorruptStream for a number beyond the last point."""
    _check_numbers(number, length, n_pulses)
    table = _words(length, n_pulses)
    if table is None:
        return unrank_plain(number, length, n_pulses)
    out = np.empty((len(number), length), np.int32)
    _unrank(np.ascontiguousarray(number, np.uint64), table, out)
    return out


def unrank_plain(number: np.ndarray, length: int, n_pulses: int) -> np.ndarray:
    """`unrank`, in Python integers."""
    _check_numbers(number, length, n_pulses)
    table, out = counts(length, n_pulses), np.empty((len(number), length), np.int32)
    for i, left in enumerate(int(c) for c in number):
        k = n_pulses
        for j in range(length):
            behind = table[length - j - 1]
            v = 0
            while left >= behind[k - abs(v)]:
                left -= behind[k - abs(v)]
                v = -v if v > 0 else 1 - v
            out[i, j] = v
            k -= abs(v)
    return out
