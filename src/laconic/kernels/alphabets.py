"""The error-feedback sweep where every column has an alphabet of its own."""

import numpy as np
from numba import njit

from laconic.core.errors import BadInput

from .product import product

__all__ = ["sweep_alphabets", "sweep_alphabets_plain"]

BLOCK = 128  # columns between two updates of the rest


@njit(cache=True, nogil=True)
def _sweep(w, low, width, alphabet, upper, rank, error):
    """One block of columns; w (n_rows, b) is used up; `error` gets (w − q) / U_jj."""
    b = w.shape[1]
    for r in range(w.shape[0]):
        row = w[r]
        for j in range(b):
            cells = np.float32(alphabet[j] - 1)
            step = width[r, j] / cells if cells > 0 else np.float32(0)
            base = low[r, j] if cells > 0 else low[r, j] + width[r, j] * np.float32(0.5)
            k = np.float32(0)
            if step > 0:
                k = min(max(np.rint((row[j] - base) / step), np.float32(0)), cells)
            rank[r, j] = np.int64(k)
            e = (row[j] - (k * step + base)) / upper[j, j]
            error[r, j] = e
            for c in range(j + 1, b):
                row[c] -= e * upper[j, c]


def _checked(x, low, width, alphabet, upper):
    n = x.shape[1]
    for name, a, shape in (("low", low, x.shape), ("width", width, x.shape), ("upper", upper, (n, n))):
        if a.shape != shape or a.dtype != np.float32:
            raise BadInput(f"{name} is {a.dtype}{a.shape}; float32{shape} is right")
    if alphabet.shape != (n,) or alphabet.dtype != np.int64 or (n and alphabet.min() < 1):
        raise BadInput(f"alphabets {alphabet.dtype}{alphabet.shape}; int64({n},) of 1 and more is right")


def sweep_alphabets(
    x: np.ndarray, low: np.ndarray, width: np.ndarray, alphabet: np.ndarray, upper: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rounds column j to `alphabet[j]` equally spaced levels from `low` to `low + width`, errors fed to later columns.

    An alphabet of 1 stands for the middle of the range.

    **Shapes** x, low, width: (n_rows, n) float32; alphabet: (n,) int64; upper: U (n, n), H⁻¹ = Uᵀ U. Gives the ranks of the
    levels, (n_rows, n) int64, and (w − q) / U_jj, (n_rows, n) float32: the squares of its columns are their losses.

    Source: Frantar et al. 2022 (2210.17323), Alg. 1; Zhang et al. 2025, BAQ (2506.05664), for the alphabets.
    """
    _checked(x, low, width, alphabet, upper)
    w, n = np.array(x, np.float32, order="C"), x.shape[1]
    rank, error = np.empty(x.shape, np.int64), np.empty(x.shape, np.float32)
    for a in range(0, n, BLOCK):
        b = min(a + BLOCK, n)
        here = [np.ascontiguousarray(t[:, a:b]) for t in (w, low, width)]
        r, e = np.empty((len(x), b - a), np.int64), np.empty((len(x), b - a), np.float32)
        _sweep(*here, alphabet[a:b], np.ascontiguousarray(upper[a:b, a:b]), r, e)
        rank[:, a:b], error[:, a:b] = r, e
        if b < n:
            w[:, b:] -= product(e, np.ascontiguousarray(upper[a:b, b:]))
    return rank, error


def sweep_alphabets_plain(
    x: np.ndarray, low: np.ndarray, width: np.ndarray, alphabet: np.ndarray, upper: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`sweep_alphabets` in NumPy, column by column."""
    _checked(x, low, width, alphabet, upper)
    w, n = np.array(x, np.float32, order="C"), x.shape[1]
    rank, error = np.empty(x.shape, np.int64), np.empty(x.shape, np.float32)
    for j in range(n):
        a, b = j // BLOCK * BLOCK, min(j // BLOCK * BLOCK + BLOCK, n)
        cells = np.float32(alphabet[j] - 1)
        step = width[:, j] / cells if cells else np.zeros(len(x), np.float32)
        base = low[:, j] if cells else low[:, j] + width[:, j] * np.float32(0.5)
        u = np.divide(w[:, j] - base, step, out=np.zeros_like(step), where=step > 0)
        k = np.clip(np.rint(u), np.float32(0), cells)
        rank[:, j], error[:, j] = k, (w[:, j] - (k * step + base)) / upper[j, j]
        w[:, j + 1 : b] -= error[:, j, None] * upper[j, j + 1 : b]
        if j == b - 1 and b < n:
            w[:, b:] -= product(np.ascontiguousarray(error[:, a:b]), np.ascontiguousarray(upper[a:b, b:]))
    return rank, error
