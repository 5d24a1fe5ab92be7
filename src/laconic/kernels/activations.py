"""Activations as the products of packed matrices take them: padded as the columns are, in int8 or as they are.

A *run* is a number of columns that share a scale (`Packed.run`): a group, or up to 128 columns of one.
"""

from collections.abc import Callable

import numpy as np
from numba import njit

from laconic.kernels.packed import Packed

__all__ = ["quantize_activations", "quantize_activations_plain", "quantizer", "spreader"]

_FINITE = np.int32(0x7F7FFFFF)  # the bits of the largest finite number; an absolute value's bits sort as integers do


@njit(cache=True, nogil=True)
def _quantize(x, group, padded_group, run, zero, quantum, parts, q, scale, start, sums):
    """Rows of x: (n, n_in) float32; the others: zeros. Where a run has no finite scale it is NaN."""
    n_in = x.shape[1]
    y = np.zeros(run, np.float32)
    bits = y.view(np.int32)
    most = np.float32(127 if parts == 1 else 127 * 256)
    for t in range(x.shape[0]):
        for i in range(scale.shape[1]):
            place = i * run
            c = place // padded_group * group + place % padded_group
            n = min(run, n_in - c, group - place % padded_group)
            if n <= 0:
                continue
            y[:n] = x[t, c : c + n]
            largest = np.int32(0)
            for k in range(n):
                largest = max(largest, bits[k] & np.int32(0x7FFFFFFF))
            if largest > _FINITE:
                for part in range(parts):
                    scale[t * parts + part, i] = sums[t * parts + part, i] = np.nan
                continue
            bits[0], saved = largest, y[0]
            amax, y[0] = y[0], saved
            s = amax / most
            inverse = np.float32(1) / s if s > 0 else np.float32(0)
            if not inverse < np.float32(3e38):  # denormal activations are zero
                s = inverse = np.float32(0)
            high, low = np.int32(0), np.int32(0)
            if parts == 1:
                for k in range(n):
                    v = np.int32(np.rint(y[k] * inverse))
                    q[t, place + k] = v
                    low += v
            else:
                for k in range(n):
                    v = np.int32(np.rint(y[k] * inverse))
                    h = (v + np.int32(128)) >> np.int32(8)
                    v -= h << np.int32(8)
                    q[2 * t, place + k] = h
                    q[2 * t + 1, place + k] = v
                    high += h
                    low += v
                scale[2 * t, i] = s * quantum * np.float32(256)
                start[2 * t, i] = -zero * high
                sums[2 * t, i] = s * np.float32(256) * np.float32(high)
            last = (t + 1) * parts - 1
            scale[last, i] = s * quantum
            start[last, i] = -zero * low
            sums[last, i] = s * np.float32(low)


@njit(cache=True, nogil=True)
def _spread(x, group, padded_group, run, y, sums):
    """Rows of x padded as the columns of the matrix are, and their sums by runs."""
    n_in = x.shape[1]
    for t in range(x.shape[0]):
        for i in range(sums.shape[1]):
            place = i * run
            c = place // padded_group * group + place % padded_group
            total = np.float32(0)
            for k in range(min(run, n_in - c, group - place % padded_group)):
                y[t, place + k] = x[t, c + k]
                total += x[t, c + k]
            sums[t, i] = total


def quantize_activations(x: np.ndarray, p: Packed, parts: int = 1, n: int | None = None) -> tuple[np.ndarray, ...]:
    """Rows of x as int8 for a packed matrix, padded as its columns are, and to n rows.

    parts: 1, or 2 for 15 bits and a sign: a row of x is a row of high parts, worth 256 each, and one of low parts.

    **Shapes** x: (m, n_in) float32. Gives q (n, padded_in) int8, scale (n, n_runs) float32 (times the matrix's quantum),
    start (n, n_runs) int32 = −zero · Σ q and sums (n, n_runs) float32 = Σ q in units of x.
    """
    return quantizer(p, parts)(x, len(x) * parts if n is None else n)


def quantizer(p: Packed, parts: int) -> Callable[[np.ndarray, int], tuple[np.ndarray, ...]]:
    """`quantize_activations` for one matrix as (x, n) -> (q, scale, start, sums)."""
    padded_in, n_runs = p.padded_in, p.padded_in // p.run
    layout = (p.group, p.padded_group, p.run, p.zero, np.float32(p.quantum), parts)

    def quantize(x: np.ndarray, n: int) -> tuple[np.ndarray, ...]:
        q, scale = np.zeros((n, padded_in), np.int8), np.zeros((n, n_runs), np.float32)
        start, sums = np.zeros((n, n_runs), np.int32), np.zeros((n, n_runs), np.float32)
        _quantize(x, *layout, q, scale, start, sums)
        return q, scale, start, sums

    return quantize


def quantize_activations_plain(x: np.ndarray, p: Packed, parts: int = 1) -> tuple[np.ndarray, ...]:
    """`quantize_activations` in NumPy, for finite x."""
    m = len(x)
    padded = np.zeros((m, p.n_groups * p.group), np.float32)
    padded[:, : p.n_in] = x
    wide = np.zeros((m, p.padded_in // p.padded_group, p.padded_group), np.float32)
    wide[:, : p.n_groups, : p.group] = padded.reshape(m, p.n_groups, p.group)
    runs = wide.reshape(m, -1, p.run)
    s = np.abs(runs).max(-1) / np.float32(127 if parts == 1 else 127 * 256)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / s
    dead = ~(inverse < np.float32(3e38))
    s[dead], inverse[dead] = 0, 0
    v = np.rint(runs * inverse[..., None]).astype(np.int32)
    both = [v] if parts == 1 else [(v + 128) >> 8, v - ((v + 128) >> 8 << 8)]
    q = np.stack(both, 1)  # (m, parts, n_runs, run)
    unit = np.stack([s] if parts == 1 else [s * np.float32(256), s], 1)
    total = q.sum(-1, dtype=np.int32)
    sums = unit * total.astype(np.float32)
    q8, scale, start = q.astype(np.int8), unit * np.float32(p.quantum), -p.zero * total
    return tuple(a.reshape(m * parts, -1) for a in (q8, scale, start, sums))


def spreader(p: Packed) -> Callable[[np.ndarray, int], tuple[np.ndarray, ...]]:
    """(x, n) -> x as it is, padded to what the matrix has and to n rows: float32 (n, padded_in), and sums by runs (n, n_runs)."""
    padded_in, n_runs, layout = p.padded_in, p.padded_in // p.run, (p.group, p.padded_group, p.run)

    def spread(x: np.ndarray, n: int) -> tuple[np.ndarray, ...]:
        y, sums = np.zeros((n, padded_in), np.float32), np.zeros((n, n_runs), np.float32)
        _spread(x, *layout, y, sums)
        return y, sums

    return spread
