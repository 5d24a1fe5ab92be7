"""Codes on a grid, moved step by step until they point where the vector points.

    c = code + ½ − 2^(b−1),   code in 0 … 2^b − 1;   largest ⟨o, c⟩² / ‖c‖²

A start by rounding on the vector's own range; then each coordinate in turn goes one step up or down wherever that brings the
direction nearer, in at most `rounds` sweeps. ⟨o, c⟩ and ‖c‖² change by one product each, so a sweep costs O(d).

Source: Li et al. 2025, SAQ, code adjustment (CAQ).
"""

import numpy as np
from numba import njit

from laconic.core.errors import BadInput

__all__ = ["adjust", "adjust_plain"]

_LEAST = 1e-8  # relative gain of the squared cosine below which a step is not taken


@njit(cache=True, nogil=True)
def _adjust(x, bits, rounds, out):
    n, d = x.shape
    last = (1 << bits) - 1
    half = 0.5 * last  # c = code − half
    for i in range(n):
        top = 0.0
        for j in range(d):
            top = max(top, abs(np.float64(x[i, j])))
        if top == 0.0:
            for j in range(d):
                out[i, j] = last // 2 + 1
            continue
        scale = (1 << (bits - 1)) / top
        dot, power = 0.0, 0.0
        for j in range(d):
            v = np.float64(x[i, j])
            code = min(max(int(np.floor(v * scale + (1 << (bits - 1)))), 0), last)
            out[i, j] = code
            dot += v * (code - half)
            power += (code - half) ** 2
        for _ in range(rounds):
            moved = False
            for j in range(d):
                v = np.float64(x[i, j])
                for step in (1, -1):
                    code = np.int64(out[i, j]) + step
                    if code < 0 or code > last:
                        continue
                    c = out[i, j] - half
                    new_dot, new_power = dot + step * v, power + 2 * step * c + 1
                    if new_dot > 0 and new_dot * new_dot * power > dot * dot * new_power * (1 + _LEAST):
                        out[i, j] = code
                        dot, power, moved = new_dot, new_power, True
            if not moved:
                break


def adjust(x: np.ndarray, bits: int, rounds: int = 6) -> np.ndarray:
    """Codes of every row: uint8, the shape of x. x: (n, d) float32; bits: 1 to 8; a row of zeros has code 2^(b−1)."""
    if x.ndim != 2 or x.dtype != np.float32 or not 1 <= bits <= 8:
        raise BadInput(f"vectors {x.dtype}{x.shape} at {bits} bits; float32 (n, d) at 1 to 8 are right")
    out = np.empty(x.shape, np.uint8)
    _adjust(np.ascontiguousarray(x), bits, rounds, out)
    return out


def adjust_plain(x: np.ndarray, bits: int, rounds: int = 6) -> np.ndarray:
    """`adjust` by its definition, with products over the whole vector at every step."""
    last = (1 << bits) - 1
    out = np.full(x.shape, last // 2 + 1, np.uint8)
    for row, target in zip(out, x.astype(np.float64), strict=True):
        top = np.abs(target).max(initial=0.0)
        if not top:
            continue
        code = np.clip(np.floor(target * ((1 << (bits - 1)) / top) + (1 << (bits - 1))), 0, last)
        for _ in range(rounds):
            before = code.copy()
            for j in range(len(code)):
                for step in (1, -1):
                    if 0 <= code[j] + step <= last:
                        new = code.copy()
                        new[j] += step
                        old, other = code - last / 2, new - last / 2
                        gain = (other @ target) ** 2 * (old @ old) - (old @ target) ** 2 * (other @ other) * (
                            1 + _LEAST
                        )
                        if other @ target > 0 and gain > 0:
                            code = new
            if np.array_equal(before, code):
                break
        row[:] = code
    return out
