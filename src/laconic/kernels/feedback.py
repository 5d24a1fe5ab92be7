"""Sequential roundings of rows to scalar codebooks: the error-feedback sweep (GPTQ, LDLQ) and descent on the cosine."""

import numpy as np
from numba import njit

from laconic.core.errors import BadInput

from .product import product
from .scalar import bisect, rank_plain

__all__ = ["BLOCK", "descend", "descend_plain", "sweep", "sweep_plain"]

BLOCK = 128  # columns between two updates of the rest


@njit(cache=True, nogil=True)
def _sweep(w, step, offset, upper, thresholds, levels, exact, rank, error):
    """One block of columns. w (n_rows, b) is used up; `error` gets (w − q) / U_jj, what the columns behind still owe."""
    b = w.shape[1]
    for r in range(w.shape[0]):
        row = w[r]
        for j in range(b):
            s, o = step[r, j], offset[r, j]
            inverse = np.float32(1) / s if s != 0 else np.float32(0)
            k = bisect((row[j] - o) * inverse, thresholds)
            rank[r, j] = k
            kept = exact[r, j] if exact.shape[1] else np.float32(np.nan)
            q = levels[k] * s + o if np.isnan(kept) else kept
            e = (row[j] - q) / upper[j, j]
            error[r, j] = e
            for c in range(j + 1, b):
                row[c] -= e * upper[j, c]


def _checked(x, step, offset, upper, exact):
    n_rows, n = x.shape
    offset = np.zeros((n_rows, n), np.float32) if offset is None else offset
    exact = np.empty((n_rows, 0), np.float32) if exact is None else exact
    for name, a, shape in (("step", step, x.shape), ("offset", offset, x.shape), ("upper", upper, (n, n))):
        if a.shape != shape or a.dtype != np.float32:
            raise BadInput(f"{name} is {a.dtype}{a.shape}; float32{shape} is right")
    if exact.shape not in (x.shape, (n_rows, 0)) or exact.dtype != np.float32 or x.dtype != np.float32:
        raise BadInput(f"x {x.dtype}{x.shape}, exact {exact.dtype}{exact.shape}; float32 of one shape is right")
    return offset, exact


def sweep(
    x: np.ndarray, step: np.ndarray, offset: np.ndarray | None, upper: np.ndarray,
    thresholds: np.ndarray, levels: np.ndarray, exact: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Rounds the columns of x first to last, each with the errors of those before it fed back.

        q_j = nearest(w_j),   e = (w_j − q_j) / U_jj,   w_k ← w_k − e U_jk  (k > j)

    **Shapes** x, step, offset: (n_rows, n) float32; upper: U (n, n), H⁻¹ = Uᵀ U; exact: shape of x, NaN where the value is
    quantized, else what is stored instead of q. Gives the ranks of the levels, (n_rows, n) int64.

    Columns behind a block of 128 are updated once a block, by one matrix product in a fixed order of operations.

    Source: Frantar et al. 2022 (2210.17323), Alg. 1.
    """
    offset, exact = _checked(x, step, offset, upper, exact)
    n = x.shape[1]
    w = np.array(x, order="C")
    out = np.empty(x.shape, np.int64)
    for a in range(0, n, BLOCK):
        b = min(a + BLOCK, n)
        here = (np.ascontiguousarray(t[:, a:b]) for t in (w, step, offset))
        kept = np.ascontiguousarray(exact[:, a:b]) if exact.shape[1] else exact
        error, rank = np.empty((len(x), b - a), np.float32), np.empty((len(x), b - a), np.int64)
        _sweep(*here, np.ascontiguousarray(upper[a:b, a:b]), thresholds, levels, kept, rank, error)
        out[:, a:b] = rank
        if b < n:
            w[:, b:] -= product(error, np.ascontiguousarray(upper[a:b, b:]))
    return out


def sweep_plain(
    x: np.ndarray, step: np.ndarray, offset: np.ndarray | None, upper: np.ndarray,
    thresholds: np.ndarray, levels: np.ndarray, exact: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """`sweep` in NumPy, column by column."""
    offset, exact = _checked(x, step, offset, upper, exact)
    exact = exact if exact.shape[1] else np.full(x.shape, np.nan, np.float32)
    n = x.shape[1]
    w, out = np.array(x, order="C"), np.empty(x.shape, np.int64)
    error = np.empty(x.shape, np.float32)
    for j in range(n):
        a, b = j // BLOCK * BLOCK, min(j // BLOCK * BLOCK + BLOCK, n)
        s, o = step[:, j], offset[:, j]
        inverse = np.divide(np.float32(1), s, out=np.zeros_like(s), where=s != 0)
        out[:, j] = rank_plain((w[:, j] - o) * inverse, thresholds)
        q = np.where(np.isnan(exact[:, j]), levels[out[:, j]] * s + o, exact[:, j])
        error[:, j] = (w[:, j] - q) / upper[j, j]
        w[:, j + 1 : b] -= error[:, j, None] * upper[j, j + 1 : b]
        if j == b - 1 and b < n:
            w[:, b:] -= product(np.ascontiguousarray(error[:, a:b]), np.ascontiguousarray(upper[a:b, b:]))
    return out


@njit(cache=True, nogil=True)
def _descend(x, step, offset, levels, rounds, rank):
    n, top = x.shape[1], levels.shape[0] - 1
    for r in range(x.shape[0]):
        xy, yy = 0.0, 0.0
        for j in range(n):
            y = np.float64(levels[rank[r, j]]) * step[r, j] + offset[r, j]
            xy += x[r, j] * y
            yy += y * y
        for _ in range(rounds):
            moved = False
            for j in range(n):
                for way in (-1, 1):
                    k = rank[r, j]
                    if not 0 <= k + way <= top:
                        continue
                    y = np.float64(levels[k]) * step[r, j] + offset[r, j]
                    z = np.float64(levels[k + way]) * step[r, j] + offset[r, j]
                    new_xy, new_yy = xy + x[r, j] * (z - y), yy + (z - y) * (z + y)
                    if new_xy > 0 and new_xy * abs(new_xy) * yy > xy * abs(xy) * new_yy * (1 + 1e-8):
                        rank[r, j] = k + way
                        xy, yy = new_xy, new_yy
                        moved = True
            if not moved:
                break


def descend(
    x: np.ndarray, step: np.ndarray, offset: np.ndarray | None, levels: np.ndarray, rank: np.ndarray, rounds: int
) -> np.ndarray:
    """Moves ranks by one, coordinate after coordinate, wherever the cosine of x and its reconstruction rises.

    **Shapes** x, step, offset: (n_rows, n) float32; rank: (n_rows, n) int64, where to start. Gives new ranks.
    """
    offset = np.zeros(x.shape, np.float32) if offset is None else offset
    if not (x.shape == step.shape == offset.shape == rank.shape) or rank.dtype != np.int64:
        raise BadInput(
            f"x {x.shape}, step {step.shape}, offset {offset.shape}, rank {rank.dtype}{rank.shape} do not fit"
        )
    if rank.size and not 0 <= rank.min() <= rank.max() < len(levels):
        raise BadInput(f"ranks up to {rank.max()} among {len(levels)} levels")
    rank = np.array(rank, order="C")
    x, step, offset = (np.ascontiguousarray(a, np.float32) for a in (x, step, offset))
    _descend(x, step, offset, np.ascontiguousarray(levels, np.float32), rounds, rank)
    return rank


def descend_plain(
    x: np.ndarray, step: np.ndarray, offset: np.ndarray | None, levels: np.ndarray, rank: np.ndarray, rounds: int
) -> np.ndarray:
    """`descend` in NumPy: all rows step by step, cosines from scratch."""
    step, offset = step.astype(np.float64), 0.0 if offset is None else offset.astype(np.float64)
    rank, x = rank.copy(), x.astype(np.float64)

    def score(k: np.ndarray) -> np.ndarray:
        y = levels.astype(np.float64)[k] * step + offset
        xy, yy = (x * y).sum(axis=1), (y * y).sum(axis=1)
        return xy * np.abs(xy) / np.where(yy > 0, yy, 1)

    for _ in range(rounds):
        before = rank.copy()
        for j in range(x.shape[1]):
            for way in (-1, 1):
                other = rank.copy()
                other[:, j] += way
                inside = (other[:, j] >= 0) & (other[:, j] < len(levels))
                other[:, j] = np.clip(other[:, j], 0, len(levels) - 1)
                now, then = score(rank), score(other)
                rank = np.where((inside & (then > 0) & (then > now * (1 + np.sign(now) * 1e-8)))[:, None], other, rank)
        if np.array_equal(before, rank):
            break
    return rank
