"""Scalar quantization against sorted thresholds: ranks, and the error a group would have under a grid.

x has rank r when r thresholds are below it (`x > t`). Levels one apart are found by rounding, with one comparison on either
side to make it exact; else few thresholds are counted one by one over a run of values, which is one comparison for a whole
vector register, and many are searched by bisection.
"""

import numpy as np
from numba import njit

from laconic.core.errors import BadInput

__all__ = [
    "group_errors", "group_errors_plain", "group_fit", "group_fit_plain", "group_moments", "group_moments_plain",
    "lloyd", "lloyd_plain", "rank", "rank_plain",
]  # fmt: skip

_RUN = 256
_COUNTED = 40  # up to that many thresholds are counted


@njit(cache=True, nogil=True, inline="always")
def bisect(x, thresholds):
    """How many thresholds lie below x."""
    low, n = 0, thresholds.shape[0]
    while n > 0:
        half = n >> 1
        up = x > thresholds[low + half]
        low = low + half + 1 if up else low
        n = n - half - 1 if up else half
    return low


_ZERO, _ONE = np.float32(0), np.float32(1)


@njit(cache=True, nogil=True, inline="always")
def _round(u, first, most):
    """Rank among the thresholds first, first + 1, … (`most` of them, multiples of 1/2); ties go to the level nearer zero."""
    k = np.ceil(u - first)
    k = k if k > _ZERO else _ZERO  # a NaN too
    k = k if k < most else most
    middle = first + k
    below = middle - _ONE
    k += _ONE if (u > middle) | ((u == middle) & (middle < _ZERO)) else _ZERO
    k -= _ONE if (u < below) | ((u == below) & (below >= _ZERO)) else _ZERO
    k = k if k > _ZERO else _ZERO
    return np.int32(k if k < most else most)


@njit(cache=True, nogil=True, inline="always")
def _ranks(u, thresholds, unit, count):
    """count[i] = rank of u[i]; a NaN has rank 0."""
    if unit:
        first, most = thresholds[0], np.float32(thresholds.shape[0])
        for i in range(u.shape[0]):
            count[i] = _round(u[i], first, most)
    elif thresholds.shape[0] <= _COUNTED:
        count[: u.shape[0]] = 0
        for t in thresholds:
            for i in range(u.shape[0]):
                count[i] += u[i] > t
    else:
        for i in range(u.shape[0]):
            count[i] = bisect(u[i], thresholds)


@njit(cache=True, nogil=True)
def _rank(x, thresholds, unit, out):
    count = np.empty(_RUN, np.int32)
    for start in range(0, x.shape[0], _RUN):
        n = min(_RUN, x.shape[0] - start)
        _ranks(x[start : start + n], thresholds, unit, count)
        for i in range(n):
            out[start + i] = count[i]


def _unit(thresholds: np.ndarray) -> tuple[np.ndarray, bool]:
    """Thresholds of levels one apart as multiples of 1/2 and True; others as they are and False.

    Where a tie goes up, a threshold is the float below the middle; `_round` wants the middle.
    """
    n = len(thresholds)
    if not n or not np.isfinite(thresholds).all() or abs(thresholds[0]) > 1 << 20:
        return thresholds, False
    middles = (np.rint(2 * thresholds[0]) / 2 + np.arange(n)).astype(np.float32)
    want = np.where(middles < 0, np.nextafter(middles, np.float32(-np.inf)), middles)
    return (middles, True) if np.array_equal(thresholds, want) else (thresholds, False)


def rank(x: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Ranks of float32 values (any shape) among sorted float32 thresholds: int64, the shape of x."""
    if x.dtype != np.float32 or thresholds.dtype != np.float32 or thresholds.ndim != 1:
        raise BadInput(f"values {x.dtype}, thresholds {thresholds.dtype}{thresholds.shape}; float32 is needed")
    out = np.empty(x.shape, np.int64)
    _rank(np.ascontiguousarray(x).reshape(-1), *_unit(thresholds), out.reshape(-1))
    return out


def rank_plain(x: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """`rank` in NumPy."""
    return np.searchsorted(thresholds, x, side="left")


@njit(cache=True, nogil=True, inline="always")
def _normalize(row, step, offset, u):
    inverse = np.float32(1) / step if step != 0 else np.float32(0)
    for i in range(row.shape[0]):
        u[i] = (row[i] - offset) * inverse


@njit(cache=True, nogil=True)
def _group_errors(x, weights, step, offset, thresholds, unit, levels, power, out):
    n = x.shape[1]
    squared = power == 2.0
    u = np.empty(n, np.float32)
    count = np.empty(n, np.int32)
    for g in range(x.shape[0]):
        s, o = step[g], offset[g]
        row = x[g]
        _normalize(row, s, o, u)
        _ranks(u, thresholds, unit, count)
        total = 0.0
        for i in range(n):
            e = np.float64(levels[count[i]] * s + o - row[i])
            e = e * e if squared else abs(e) ** power
            total += e * weights[g, i] if weights.shape[1] else e
        out[g] = total


def _checked(x, weights, step, offset, thresholds, levels):
    g = x.shape[0]
    step = np.ascontiguousarray(step, np.float32)
    offset = np.zeros(g, np.float32) if offset is None else np.ascontiguousarray(offset, np.float32)
    weights = np.empty((g, 0), np.float32) if weights is None else np.ascontiguousarray(weights, np.float32)
    if step.shape != (g,) or offset.shape != (g,) or weights.shape not in (x.shape, (g, 0)):
        raise BadInput(f"x {x.shape}, weights {weights.shape}, step {step.shape}, offset {offset.shape} do not fit")
    if len(levels) != len(thresholds) + 1:
        raise BadInput(f"{len(thresholds)} thresholds between {len(levels)} levels")
    thresholds, levels = (np.ascontiguousarray(a, np.float32) for a in (thresholds, levels))
    return np.ascontiguousarray(x, np.float32), weights, step, offset, *_unit(thresholds), levels


def group_errors(
    x: np.ndarray, weights: np.ndarray | None, step: np.ndarray, offset: np.ndarray | None,
    thresholds: np.ndarray, levels: np.ndarray, power: float = 2.0,
) -> np.ndarray:  # fmt: skip
    """Σ weight · |x̂ − x|^power of every group, x̂ the level nearest to (x − offset) / step, times step, plus offset.

    **Shapes** x, weights: (n_groups, m) float32; step, offset: (n_groups,) float32. Gives (n_groups,) float64.
    A group with step 0 is reconstructed as its offset.
    """
    out = np.empty(x.shape[0], np.float64)
    _group_errors(*_checked(x, weights, step, offset, thresholds, levels), power, out)
    return out


def group_errors_plain(
    x: np.ndarray, weights: np.ndarray | None, step: np.ndarray, offset: np.ndarray | None,
    thresholds: np.ndarray, levels: np.ndarray, power: float = 2.0,
) -> np.ndarray:  # fmt: skip
    """`group_errors` in NumPy."""
    s = step[:, None].astype(np.float32)
    o = np.float32(0) if offset is None else offset[:, None].astype(np.float32)
    inverse = np.divide(np.float32(1), s, out=np.zeros_like(s), where=s != 0)
    e = np.abs(levels[rank_plain((x - o) * inverse, thresholds)] * s + o - x).astype(np.float64) ** power
    return (e if weights is None else e * weights).sum(axis=1)


@njit(cache=True, nogil=True, inline="always")
def _sums(row, weight, count, levels):
    """Σ w, Σ w x, Σ w q, Σ w x², Σ w x q, Σ w q², where no weights means 1."""
    w1, wx, wq, wxx, wxq, wqq = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(row.shape[0]):
        w = np.float64(weight[i]) if weight.shape[0] else 1.0
        x, q = np.float64(row[i]), np.float64(levels[count[i]])
        w1 += w
        wx += w * x
        wq += w * q
        wxx += w * x * x
        wxq += w * x * q
        wqq += w * q * q
    return w1, wx, wq, wxx, wxq, wqq


@njit(cache=True, nogil=True)
def _group_moments(x, weights, step, offset, thresholds, unit, levels, out):
    u = np.empty(x.shape[1], np.float32)
    count = np.empty(x.shape[1], np.int32)
    for g in range(x.shape[0]):
        _normalize(x[g], step[g], offset[g], u)
        _ranks(u, thresholds, unit, count)
        sums = _sums(x[g], weights[g], count, levels)
        for k in range(6):
            out[k, g] = sums[k]


def group_moments(
    x: np.ndarray, weights: np.ndarray | None, step: np.ndarray, offset: np.ndarray | None,
    thresholds: np.ndarray, levels: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Σ w, Σ w x, Σ w q, Σ w x², Σ w x q, Σ w q² of every group, q the level nearest to (x − offset) / step.

    **Shapes** as in `group_errors`; gives (6, n_groups) float64.
    """
    out = np.empty((6, x.shape[0]), np.float64)
    _group_moments(*_checked(x, weights, step, offset, thresholds, levels), out)
    return out


def group_moments_plain(
    x: np.ndarray, weights: np.ndarray | None, step: np.ndarray, offset: np.ndarray | None,
    thresholds: np.ndarray, levels: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """`group_moments` in NumPy."""
    s = step[:, None]
    o = np.float32(0) if offset is None else offset[:, None]
    inverse = np.divide(np.float32(1), s, out=np.zeros_like(s), where=s != 0)
    q = levels[rank_plain((x - o) * inverse, thresholds)].astype(np.float64)
    w = np.ones(x.shape) if weights is None else weights.astype(np.float64)
    v = x.astype(np.float64)
    return np.stack([t.sum(axis=1) for t in (w, w * v, w * q, w * v * v, w * v * q, w * q * q)])


@njit(cache=True, nogil=True)
def _group_fit(x, weights, step, offset, thresholds, unit, levels, affine, rounds, new_step, new_offset, error):
    u = np.empty(x.shape[1], np.float32)
    count = np.empty(x.shape[1], np.int32)
    for g in range(x.shape[0]):
        s, o = step[g], offset[g]
        for _ in range(rounds):
            _normalize(x[g], s, o, u)
            _ranks(u, thresholds, unit, count)
            w1, wx, wq, wxx, wxq, wqq = _sums(x[g], weights[g], count, levels)
            if affine:
                bottom = wqq * w1 - wq * wq
                if bottom > 1e-10 * wqq * w1:
                    t = (wxq * w1 - wx * wq) / bottom
                    s, o = np.float32(t), np.float32((wx - t * wq) / w1)
            elif wqq > 0:
                s = np.float32(wxq / wqq)
            a, b = np.float64(s), np.float64(o)
            error[g] = wxx + a * a * wqq + b * b * w1 - 2 * (a * wxq + b * wx - a * b * wq)
        new_step[g], new_offset[g] = s, o


def group_fit(
    x: np.ndarray, weights: np.ndarray | None, step: np.ndarray, offset: np.ndarray | None,
    thresholds: np.ndarray, levels: np.ndarray, rounds: int,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:  # fmt: skip
    """`rounds` ≥ 1 of alternating least squares in every group: nearest levels for the step, step for the levels.

    **Shapes** as in `group_errors`. Gives step and offset (None where none is given), float32, and the error of that grid
    with the levels it was fitted to, float64: with the nearest levels it is that or less.
    A group whose levels are all the same keeps its step and offset.
    """
    new_step, new_offset = np.empty((2, x.shape[0]), np.float32)
    error, affine = np.empty(x.shape[0], np.float64), offset is not None
    arrays = _checked(x, weights, step, offset, thresholds, levels)
    _group_fit(*arrays, affine, rounds, new_step, new_offset, error)
    return new_step, new_offset if affine else None, error


def group_fit_plain(
    x: np.ndarray, weights: np.ndarray | None, step: np.ndarray, offset: np.ndarray | None,
    thresholds: np.ndarray, levels: np.ndarray, rounds: int,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:  # fmt: skip
    """`group_fit` in NumPy."""
    for _ in range(rounds):
        w1, wx, wq, wxx, wxq, wqq = group_moments_plain(x, weights, step, offset, thresholds, levels)
        if offset is None:
            step = np.divide(wxq, wqq, out=step.astype(np.float64), where=wqq > 0).astype(np.float32)
        else:
            bottom = wqq * w1 - wq * wq
            good = bottom > 1e-10 * wqq * w1
            t = np.divide(wxq * w1 - wx * wq, bottom, out=np.zeros_like(bottom), where=good)
            offset = np.where(good, (wx - t * wq) / np.where(w1 > 0, w1, 1), offset).astype(np.float32)
            step = np.where(good, t, step).astype(np.float32)
        a, b = step.astype(np.float64), 0.0 if offset is None else offset.astype(np.float64)
        error = wxx + a * a * wqq + b * b * w1 - 2 * (a * wxq + b * wx - a * b * wq)
    return step, offset, error


@njit(cache=True, nogil=True)
def lloyd(v, total, levels, rounds, least):
    """Lloyd's iterations: levels go to the means of their cells, cells end halfway between levels; an empty cell keeps its level.

    v: float64 (n,), ascending; total: float64 (n + 1,), sums of the values before each. levels: float64 (m,), ascending, moved in
    place until none moves by more than `least`, or for so many rounds.
    """
    m = len(levels)
    moved = np.empty(m)
    for _ in range(rounds):
        start, most = 0, 0.0
        for k in range(m):
            stop = len(v)
            if k + 1 < m:
                stop = np.searchsorted(v, (levels[k + 1] + levels[k]) / 2, side="right")
            moved[k] = (total[stop] - total[start]) / (stop - start) if stop > start else levels[k]
            most = max(most, abs(moved[k] - levels[k]))
            start = stop
        if most <= least:
            return
        for k in range(m):
            levels[k] = moved[k] if k == 0 else max(moved[k], levels[k - 1])


def lloyd_plain(v, total, levels, rounds, least):
    """Like `lloyd`, in NumPy."""
    for _ in range(rounds):
        bounds = np.concatenate([[0], np.searchsorted(v, (levels[1:] + levels[:-1]) / 2, side="right"), [len(v)]])
        count = np.diff(bounds)
        moved = np.where(count > 0, np.diff(total[bounds]) / np.maximum(count, 1), levels)
        if np.abs(moved - levels).max() <= least:
            return
        levels[:] = np.maximum.accumulate(moved)
