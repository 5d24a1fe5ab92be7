"""Error feedback over the columns of a matrix whose levels a trellis restricts (the code is that of `dependent`).

One path runs down the rows of column 0, then of column 1, and so on. A column is searched from the state in which the one
before it ended, is then final, and what its levels miss is fed to the columns that are still free.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from laconic.core.errors import BadInput

from .dependent import MAX_LEVEL, PRECISION, Costs, Tables, _code, _parity, _search, _symbol, levels, quantize_plain
from .feedback import BLOCK
from .product import product

__all__ = ["UNCODED", "Grid", "Swept", "line_lengths", "sweep_columns", "sweep_columns_plain"]

UNCODED = 2
_AHEAD = 12  # values of the next column that are looked at, for each bit of the state


class Grid(NamedTuple):
    """Steps and kinds of the values of a matrix.

    step: (n,) float32, of the columns. ratio: the decoder's step over the searched one. Value (r, j) is of the kind
    k = row[r] + column[j] (int64), which is left at zero below `cut`, else has row min(k, last) - first of the costs.
    restart: (n,) bool, True where the trellis begins anew with a column.
    """

    step: np.ndarray
    ratio: float
    row: np.ndarray
    column: np.ndarray
    cut: int
    first: int
    restart: np.ndarray


class Swept(NamedTuple):
    """What a sweep decided, arrays (n, m) like the columns it was given.

    q: int32, indices; unions: uint8; level: int32, L; 0, UNCODED and 0 where nothing is coded. seen: float32, the values
    that were quantized, with what was fed to them. error: the sum of the squared feedback, tr(Δ H Δᵀ).
    """

    q: np.ndarray
    unions: np.ndarray
    level: np.ndarray
    seen: np.ndarray
    error: float


@njit(nogil=True, cache=True)
def _gather(w, inverse, row, column, cut, first, last, x, table, at, n):
    """Appends the coded values of a column, in steps, their kinds and their rows behind n others; gives the new n."""
    limit = np.float32(MAX_LEVEL // 2)
    for r in range(w.shape[0]):
        kind = row[r] + column
        if kind >= cut:
            x[n] = min(max(w[r] * inverse, -limit), limit)
            table[n] = min(kind - first, last)
            at[n] = r
            n += 1
    return n


@njit(nogil=True, cache=True)
def _walk(index, table, at, centre, union, branch, memory, s, q, unions, level):
    """Puts indices, unions and levels of a path from state s to their rows."""
    for i in range(at.shape[0]):
        c, k = _parity(s & union), np.int64(index[i])
        s = (2 * s + ((k & 1) ^ _parity(s & branch))) & ((1 << memory) - 1)
        q[at[i]] = k
        unions[at[i]] = c
        level[at[i]] = 2 * k + c
        if c and centre[table[i]] < np.inf:
            level[at[i]] = 2 * k - np.int64(k > 0) + np.int64(k < 0)
    return s


@njit(nogil=True, cache=True)
def _columns(
    w, step, ratio, upper, row, column, cut, first, restart, cost, half, shift, centre, union, branch, memory, state,
    q, unions, level, error,
):  # fmt: skip
    """One block of columns, w: (b, m), whose rows are the columns of the matrix; gives the state behind it.

    The rows in which a column begins are final long before those in which it ends. So they are searched first, and what
    they hand on to the next column is known when the last ones are chosen: these do not leave a state that suits it badly.
    """
    b, m = w.shape
    ahead = min(_AHEAD * memory, m)
    room = m + ahead
    x, table = np.empty(room, np.float32), np.empty(room, np.uint8)
    at, index = np.empty(room, np.int64), np.empty(room, np.int32)
    last = cost.shape[0] - 1
    q[:], unions[:], level[:] = 0, UNCODED, 0
    for j in range(b):
        n = _gather(w[j], np.float32(1) / step[j], row, column[j], cut, first, last, x, table, at, 0)
        made, inverse = np.float32(step[j] * ratio), np.float32(1) / upper[j, j]
        state = np.int64(0) if restart[j] else np.int64(state)
        end = n
        if n and j + 1 < b and not restart[j + 1]:
            k = min(n, 2 * _AHEAD * memory)
            _search(x[:k], table[:k], cost, half, shift, centre, union, branch, memory, state, index)
            _walk(index[:k], table, at[:k], centre, union, branch, memory, state, q[j], unions[j], level[j])
            head = np.empty(ahead, np.float32)
            for r in range(ahead):
                head[r] = w[j + 1, r] - upper[j, j + 1] * ((w[j, r] - np.float32(level[j, r]) * made) * inverse)
            end = _gather(head, np.float32(1) / step[j + 1], row, column[j + 1], cut, first, last, x, table, at, n)
        if n:
            _search(x[:end], table[:end], cost, half, shift, centre, union, branch, memory, state, index)
            state = _walk(index[:n], table, at[:n], centre, union, branch, memory, state, q[j], unions[j], level[j])
        for r in range(m):
            error[j, r] = (w[j, r] - np.float32(level[j, r]) * made) * inverse
        for k in range(j + 1, b):
            u = upper[j, k]
            if u != 0:
                for r in range(m):
                    w[k, r] -= u * error[j, r]
    return state


def _checked(w: np.ndarray, upper: np.ndarray, grid: Grid, costs: Costs) -> None:
    n, m = w.shape
    if w.dtype != np.float32 or upper.dtype != np.float32 or upper.shape != (n, n):
        raise BadInput(f"columns {w.dtype}{w.shape}, factor {upper.dtype}{upper.shape}; float32, (n, m) and (n, n)")
    if not (grid.step.shape == grid.column.shape == grid.restart.shape == (n,) and grid.row.shape == (m,)):
        raise BadInput(f"steps {grid.step.shape}, kinds {grid.row.shape} and {grid.column.shape} for {w.shape} values")
    if not 0 < len(costs.level) <= 256 or grid.first > grid.cut:
        raise BadInput(f"{len(costs.level)} kinds from {grid.first} on, coded from {grid.cut}; up to 256 are right")


def sweep_columns(w: np.ndarray, upper: np.ndarray, grid: Grid, costs: Costs, states: int) -> Swept:
    """Levels of least tr(Δ H Δᵀ) + cost, column by column.

        L_j = search(w_j / step_j),   e = (w_j − ratio · step_j L_j) / U_jj,   w_k ← w_k − e U_jk  (k > j)

    **Shapes** w: (n, m) float32, the matrix turned: row j is column j; upper: U (n, n) float32, H⁻¹ = Uᵀ U. costs: by kind.

    Columns behind a block of 128 are updated once a block, by one matrix product in a fixed order of operations.

    Source: Frantar et al. 2022 (2210.17323), Alg. 1; QTIP (2406.11235), section 3 (trellis codes under feedback).
    """
    _checked(w, upper, grid, costs)
    union, branch = _code(states)
    level, centre = (np.ascontiguousarray(a, np.float32) for a in (costs.level, costs.centre))
    shift, half, memory = np.ascontiguousarray(costs.shift, np.int64), level.shape[1] // 2, states.bit_length() - 1
    seen, q, chosen = np.array(w, order="C"), np.empty(w.shape, np.int32), np.empty(w.shape, np.int32)
    unions = np.empty(w.shape, np.uint8)
    state, total, n = 0, 0.0, len(w)
    for a in range(0, n, BLOCK):
        b = min(a + BLOCK, n)
        error = np.empty((b - a, w.shape[1]), np.float32)
        state = _columns(
            seen[a:b], grid.step[a:b], np.float32(grid.ratio), np.ascontiguousarray(upper[a:b, a:b]), grid.row,
            grid.column[a:b], grid.cut, grid.first, grid.restart[a:b], level, half, shift, centre, union, branch, memory,
            state, q[a:b], unions[a:b], chosen[a:b], error,
        )  # fmt: skip
        total += float(np.square(error, dtype=np.float64).sum())
        if b < n:
            seen[b:] -= product(np.ascontiguousarray(upper[a:b, b:].T), error)
    return Swept(q, unions, chosen, seen, total)


def _path_plain(q: np.ndarray, centred: np.ndarray, states: int, s: int) -> tuple[np.ndarray, np.ndarray, int]:
    """(unions, levels, state behind) of indices on the path from state s."""
    union, branch = _code(states)
    unions = np.zeros(len(q), np.uint8)
    for i, k in enumerate(q.tolist()):
        unions[i] = (s & union).bit_count() & 1
        s = (2 * s + ((k & 1) ^ (s & branch).bit_count() & 1)) % states
    return unions, levels(q, unions, centred), s


def sweep_columns_plain(w: np.ndarray, upper: np.ndarray, grid: Grid, costs: Costs, states: int) -> Swept:
    """`sweep_columns` in NumPy, for a matrix of up to 128 columns."""
    _checked(w, upper, grid, costs)
    n, m = w.shape
    memory, top = states.bit_length() - 1, len(costs.level) - 1
    seen, error = np.array(w), np.empty(w.shape, np.float32)
    q, unions = np.zeros(w.shape, np.int32), np.full(w.shape, UNCODED, np.uint8)
    level, state = np.zeros(w.shape, np.int32), 0
    kind = grid.column[:, None] + grid.row
    table = np.clip(kind - grid.first, 0, top).astype(np.uint8)
    coded, centred = kind >= grid.cut, np.isfinite(costs.centre)[table]

    def search(x: np.ndarray, kinds: np.ndarray) -> np.ndarray:
        return quantize_plain(x, kinds, costs, states, np.array([0, len(x)]), state)

    def missed(j: int, rows: slice) -> np.ndarray:
        made = np.float32(grid.step[j] * np.float32(grid.ratio))
        return (seen[j, rows] - level[j, rows].astype(np.float32) * made) * (np.float32(1) / upper[j, j])

    for j in range(n):
        own = np.flatnonzero(coded[j])
        x, kinds = seen[j, own] * (np.float32(1) / grid.step[j]), table[j, own]
        state = 0 if grid.restart[j] else state
        if len(own) and j + 1 < n and not grid.restart[j + 1]:
            ahead, first = min(_AHEAD * memory, m), own[: 2 * _AHEAD * memory]
            _, level[j, first], _ = _path_plain(
                search(x[: len(first)], kinds[: len(first)]), centred[j, first], states, state
            )
            head = seen[j + 1, :ahead] - upper[j, j + 1] * missed(j, slice(ahead))
            more = np.flatnonzero(coded[j + 1, :ahead])
            x = np.concatenate([x, head[more] * (np.float32(1) / grid.step[j + 1])])
            kinds = np.concatenate([kinds, table[j + 1, more]])
        if len(own):
            q[j, own] = search(x, kinds)[: len(own)]
            unions[j, own], level[j, own], state = _path_plain(q[j, own], centred[j, own], states, state)
        error[j] = missed(j, slice(None))
        seen[j + 1 :] -= upper[j, j + 1 :, None] * error[j]
    return Swept(q, unions, level, seen, float(np.square(error, dtype=np.float64).sum()))


@njit(nogil=True, cache=True)
def _line_lengths(q, unions, row, column, bits, reach, shift, centred, by_column, by_row):
    for j in range(q.shape[0]):
        for r in range(q.shape[1]):
            if unions[j, r] == UNCODED:
                continue
            t, c = min(max(row[r] + column[j], 0), reach.shape[0] - 1), np.int64(unions[j, r])
            symbol, beyond = _symbol(np.int64(q[j, r]), c & ~centred[t], reach[t], shift[t])
            length = bits[2 * t + c, symbol]
            if beyond != 0:
                length += 6 + np.floor(np.log2(abs(beyond)))
            by_column[j] += length
            by_row[r] += length


def line_lengths(swept: Swept, row: np.ndarray, column: np.ndarray, tables: Tables) -> tuple[np.ndarray, np.ndarray]:
    """Ideal code lengths in bits, (n,) of the columns and (m,) of the rows, where (r, j) has table row[r] + column[j].

    row, column: int64; sums beyond the tables stand for the first or the last one.
    """
    frequency = tables.entry & 0xFFFF
    bits = np.where(frequency > 0, PRECISION - np.log2(np.maximum(frequency, 1)), 0.0)
    bits += np.repeat(tables.shift, 2)[:, None]
    by_column, by_row = np.zeros(len(column)), np.zeros(len(row))
    _line_lengths(
        swept.q, swept.unions, row, column, bits, tables.reach, tables.shift, tables.centred, by_column, by_row
    )
    return by_column, by_row
