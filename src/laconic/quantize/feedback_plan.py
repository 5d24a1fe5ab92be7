"""Spreads and steps of the rows and columns of a matrix: which pmf each of its values has, from few small integers.

A value (r, j) is of the kind k = row[r] + column[j], in sixteenths of an octave; its levels have the law of scale
base + k (see `dependent.grid_pmf`), and none where k is below a cut. Both summands are spread − step, in units that are
coarse where few values share a line. `_WIDEST` bounds them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..core.errors import BadInput, CorruptStream
from ..core.stage import Stats
from .dependent import _GRANULAR, _LARGEST, _SMALLEST, LAWS, SCALES, _root2, grid_tables, lanes, level_costs

if TYPE_CHECKING:
    from ..kernels.dependent import Costs
    from ..kernels.dependent_columns import Grid, Swept

_UNKNOWN, _LEAST, _MOST = 0.01, 1e-5, 1e3  # damping: before the step is known, and between what, of the mean diagonal
# Of λ, against a codec without feedback: the slope of the rate–distortion bound itself. What thrift saves in one column,
# the columns behind pay for. Where a level is worth less than a bit (first scale) all of it is needed, as there.
_THRIFT = (56, 72), (1.0, 0.5)
_FLOOR = 0.05  # least energy of levels, in squared steps, that a pmf is made for
_WIDEST = 1 << 12  # sixteenths of an octave: the most that steps or spreads differ


def resolution_of(n: int) -> int:
    """Sixteenths of an octave between two exponents that hold for n values each: finer where more values pay for it.

    Below 8 values all have the same, but for lines of zeros.
    """
    return next((unit for most, unit in ((7, _WIDEST), (31, 16), (95, 8), (512, 4), (4096, 2)) if n <= most), 1)


def octaves(sixteenths: np.ndarray) -> np.ndarray:
    """2^(i / 16) in float64, the same on every machine."""
    roots = np.array([_root2(i, 4) / 2.0**64 for i in range(16)])
    return np.ldexp(roots[sixteenths & 15], sixteenths >> 4)


class Task(NamedTuple):
    """What is coded: the matrix turned, (n, m) float32, without its size and the steps of its rows.

    upper: U (n, n) float32. column_step, row_step: exponents, in units of their resolutions. unit: what the column steps
    are multiples of at step 1. size: a power of two, the unit in which w is. damped: whether the step had a say in U.
    """

    w: np.ndarray
    upper: np.ndarray
    column_step: np.ndarray
    row_step: np.ndarray
    unit: float
    size: float
    damped: bool

    @property
    def resolution(self) -> tuple[int, int]:
        """Of columns and of rows."""
        return resolution_of(self.w.shape[1]), resolution_of(self.w.shape[0])

    def column_steps(self, step: float) -> np.ndarray:
        """(n,) float32, those of the columns in the unit of w, where the weighted step is `step`."""
        steps = step * self.unit * octaves(self.column_step * self.resolution[0])
        return np.clip(steps, _SMALLEST, _LARGEST).astype(np.float32)

    def thin(self, n_values: int) -> Task:
        """About so many values, from rows that are evenly spread."""
        n, m = self.w.shape
        keep = max(1, min(m, n_values // n))
        at = np.arange(keep) * m // keep
        column_step = np.rint(self.column_step * (resolution_of(m) / resolution_of(keep))).astype(np.int64)
        return self._replace(w=np.ascontiguousarray(self.w[:, at]), column_step=column_step, row_step=self.row_step[at])


def task_of(x: np.ndarray, stats: Stats, damping: float, step: float | None) -> Task:
    """The task for rows x: (m, n) float32. step: about what the weighted step will be; None where nobody knows.

    damping: in units of θ / σ², with θ = step² / 4, the weighted error of a value, and σ² the mean square of the values.
    A direction of H with an eigenvalue λ costs ½ log2((λ + θ / σ²) / (θ / σ²)) bits at the bound; the plain H would have
    the feedback care for directions in which the values are below the noise.
    """
    from .rounding import inverse_factor, live_hessian

    m, n = x.shape
    exponent = int(np.frexp(np.abs(x).max())[1])
    w = np.ldexp(np.ascontiguousarray(x.T), -exponent)
    row_step, middle, by_row = np.zeros(m, np.int64), 0, resolution_of(n)
    if stats.importance is not None:
        weight = stats.importance.detach().double().cpu().numpy().reshape(-1)
        if weight.shape != (m,) or not np.isfinite(weight).all() or not (weight > 0).all():
            raise BadInput(
                f"importance of shape {tuple(stats.importance.shape)} for {m} rows; one positive weight a row is right"
            )
        row_step = np.rint(np.log2(weight) * (-8 / by_row)).astype(np.int64)
        middle = int(np.median(row_step))
        row_step = np.clip(row_step - middle, -_WIDEST // by_row, _WIDEST // by_row)
        w = (w / octaves(row_step * by_row)).astype(np.float32)
    common = math.ldexp(2.0 ** (middle * by_row / 16), -exponent)
    upper = None
    if stats.hessian is not None:
        hessian, share = live_hessian(stats.hessian, n), _UNKNOWN
        power = float(np.square(w).mean(dtype=np.float64))
        if step is not None and power > 0:
            mean = float(hessian.diagonal().mean())
            share = min(max(damping * (step * common) ** 2 / (4 * power * mean), _LEAST), _MOST)
        upper = inverse_factor(hessian, share)
    factor = np.eye(n, dtype=np.float32) if upper is None else upper.numpy()
    log = np.log2(np.diagonal(factor).astype(np.float64))
    column_step = np.rint((log - log.mean()) * (16 / resolution_of(m))).astype(np.int64)
    column_step = np.clip(column_step, -_WIDEST // resolution_of(m), _WIDEST // resolution_of(m))
    return Task(
        w,
        factor,
        column_step,
        row_step,
        2.0 ** float(log.mean()) * common,
        math.ldexp(1.0, exponent),
        upper is not None,
    )


class Model(NamedTuple):
    """How the values spread, in the units of the matrix: what one coding learns for the next.

    column, row: energies, of which the product is that of a value; 0 where a line is not worth coding. column_shift,
    row_shift: corrections of the kinds, in sixteenths of an octave. ratio: the decoder's step over the searched one.
    """

    column: np.ndarray
    row: np.ndarray
    column_shift: np.ndarray
    row_shift: np.ndarray
    law: int
    ratio: float


class Plan(NamedTuple):
    """A model at a step: spreads in units of their resolutions, the grid of the search, the scale of kind 0."""

    step: float
    column_spread: np.ndarray
    row_spread: np.ndarray
    grid: Grid
    base: float
    costs: Costs


def _energies(square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The (n,) and (m,) factors whose product is nearest to the energies (n, m), in the sense of Gaussian likelihood."""
    column = square.mean(1, dtype=np.float64)
    row = (square.mean(0, dtype=np.float64) > 0).astype(np.float64)
    for _ in range(4):
        inverse = np.divide(1, column, out=np.zeros_like(column), where=column > 0).astype(np.float32)
        row = (inverse @ square).astype(np.float64)
        live = row > 0
        if not live.any():
            break
        row[live] /= np.exp(np.log(row[live]).mean())
        inverse = np.divide(1, row, out=np.zeros_like(row), where=live).astype(np.float32)
        column = (square @ inverse).astype(np.float64) / live.sum()
    return column, row


def first_model(w: np.ndarray) -> Model:
    """What the values themselves say, (n, m), before any of them was coded."""
    square = np.square(w)
    column, row = _energies(square)
    expected = np.sqrt(column)[:, None] * np.sqrt(row)
    size = np.abs(w).sum(dtype=np.float64) / max(float(expected.sum()), 1e-300)
    peakedness = 1 / max(size, 1e-6) ** 2
    law = next(law for law, of in LAWS.items() if peakedness < of.peakedness)
    return Model(column, row, np.zeros(len(column), np.int64), np.zeros(len(row), np.int64), law, 1.0)


def plan_of(task: Task, model: Model, step: float) -> Plan:
    """What the search needs at this step."""
    from ..kernels.dependent_columns import Grid

    of, (by_column, by_row) = LAWS[model.law], task.resolution
    steps = task.column_steps(step)
    energy = model.column / np.square(steps, dtype=np.float64)

    def scale(energy: np.ndarray) -> np.ndarray:  # of the levels, as `grid_pmf` counts it
        return 8 * np.log2(np.maximum(energy - _GRANULAR, _FLOOR) / of.power) + 64

    live, live_rows = model.column > 0, model.row > 0
    wanted = scale(energy) + model.column_shift + by_column * task.column_step
    kept = live & (energy > of.dead)
    base = float(np.clip(np.median(wanted[kept]), -_WIDEST / 2, _WIDEST / 2)) if kept.any() else 64.0
    cut = math.ceil(max(float(scale(np.array(of.dead))) - base, 1 - round(base)))
    row_size = 8 * np.log2(model.row, out=np.zeros_like(model.row), where=live_rows)
    row_spread = np.rint((row_size + model.row_shift) / by_row).astype(np.int64) + task.row_step
    row = by_row * (row_spread - task.row_step)
    highest = int(row[live_rows].max()) if live_rows.any() else 0
    column_spread = np.rint((wanted - base) / by_column).astype(np.int64)
    column = by_column * (column_spread - task.column_step)
    # Lines without a level need not say how far they are from having one.
    bare = ~live | (column + highest < cut)
    column_spread = np.where(bare, np.minimum((cut - 1 - highest) // by_column + task.column_step, 0), column_spread)
    column_spread = np.clip(column_spread, -_WIDEST // by_column, _WIDEST // by_column)
    column = by_column * (column_spread - task.column_step)
    tallest = int(column.max())
    row_spread = np.where(live_rows, row_spread, np.minimum((cut - 1 - tallest) // by_row + task.row_step, 0))
    row_spread = np.clip(row_spread, -_WIDEST // by_row, _WIDEST // by_row)
    row = by_row * (row_spread - task.row_step)
    first = cut
    last = max(first, min(int(row.max() + column.max()), SCALES - 1 - round(base)))
    scales = np.clip(base + np.arange(first, last + 1), 1, SCALES - 1)
    thrift, costs = np.interp(scales, *_THRIFT).astype(np.float32), level_costs(model.law, scales)
    costs = costs._replace(level=costs.level * thrift[:, None], centre=costs.centre * thrift)
    restart = np.zeros(len(column), bool)
    restart[lane_columns(task.w.shape)[:-1]] = True
    return Plan(
        step, column_spread, row_spread, Grid(steps, model.ratio, row, column, cut, first, restart), base, costs
    )


def lane_columns(shape: tuple[int, int]) -> np.ndarray:
    """The columns with which the lanes begin, and n behind them."""
    from ..kernels.dependent import lane_bounds

    n, m = shape
    return lane_bounds(n, min(n, len(lanes(n * m)) - 1))


def learn(task: Task, model: Model, plan: Plan, swept: Swept) -> Model:
    """The model that would have coded these levels in the fewest bits."""
    column, row = _energies(np.square(swept.seen))
    column = np.where((swept.q != 0).any(1), column, 0)
    row = np.where((swept.q != 0).any(0), row, 0)
    steps = plan.grid.step.astype(np.float64)
    weight = np.square(1 / np.diagonal(task.upper).astype(np.float64)) * steps
    level = swept.level.astype(np.float32)
    along = float(weight @ np.einsum("ij,ij->i", swept.seen, level))
    across = float((weight * steps) @ np.einsum("ij,ij->i", level, level))
    ratio = min(max(along / across, 0.8), 1.25) if across > 0 else 1.0
    laws = [law for law, of in LAWS.items() if of.peaked == LAWS[model.law].peaked]
    unmoved = (np.zeros_like(model.column_shift), np.zeros_like(model.row_shift))
    tried = [_moved(task, Model(column, row, *unmoved, law, ratio), plan.step, swept) for law in laws]
    return min(tried, key=lambda pair: pair[0])[1]


def _moved(task: Task, model: Model, step: float, swept: Swept) -> tuple[float, Model]:
    """(bits for the levels, the model with the shifts that make it these): all lines, then columns, rows, columns."""
    from ..kernels.dependent_columns import line_lengths

    grid, base = (plan := plan_of(task, model, step)).grid, round(plan.base) - 1
    tables = grid_tables(model.law, np.arange(1, SCALES))

    def lengths(shift: list[np.ndarray], which: int, move: int) -> np.ndarray:
        column, row = (s + move * (i == which) for i, s in enumerate(shift))
        return line_lengths(swept, grid.row + row, grid.column + base + column, tables)[which]

    shift = [np.zeros_like(grid.column), np.zeros_like(grid.row)]
    shift[0] += min(range(-8, 9, 2), key=lambda move: lengths(shift, 0, move).sum())
    for which in (0, 1, 0):
        moves = np.arange(-2, 3) * task.resolution[which]
        shift[which] += moves[np.argmin([lengths(shift, which, int(move)) for move in moves], axis=0)]
    total = float(lengths(shift, 0, 0).sum())
    return total, model._replace(column_shift=shift[0], row_shift=shift[1])


class Lines(NamedTuple):
    """What the decoder knows of columns (n,) and rows (m,): kinds, and exponents of steps in sixteenths of an octave."""

    base: int
    cut: int
    law: int
    column: np.ndarray
    row: np.ndarray
    column_step: np.ndarray
    row_step: np.ndarray


def write_lines(head: tuple[int, int, int], *lines: np.ndarray) -> np.ndarray:
    """uint8: base, cut and law, spreads and steps of the columns, and of the rows, each in units of its resolution."""
    from ..kernels.rangecoder import encode_integers

    base, cut, law = head
    parts = [np.array([base - 64, cut + 16, law]), *lines]
    context = np.repeat(np.arange(len(parts), dtype=np.uint8), [len(p) for p in parts])
    return encode_integers(np.concatenate(parts).astype(np.int32), context, len(parts))


def read_lines(code: np.ndarray, n: int, m: int) -> Lines:
    """What `write_lines` wrote for an (m, n) matrix. Raises CorruptStream."""
    from ..kernels.rangecoder import decode_integers

    if code.ndim != 1:
        raise CorruptStream(f"models of shape {code.shape}; bytes in a row are right")
    counts = [3, n, n, m, m]
    context = np.repeat(np.arange(5, dtype=np.uint8), counts)
    values = decode_integers(code, sum(counts), context, 5).astype(np.int64)
    head, *lines = np.split(values, np.cumsum(counts)[:-1])
    base, cut, law = int(head[0]) + 64, int(head[1]) - 16, int(head[2])
    if law not in LAWS or max(abs(base), abs(cut)) > _WIDEST or base + cut < 1:
        raise CorruptStream(f"law {law}, base {base} and cut {cut}; one of {[*LAWS]} and a sum from 1 on are right")
    units = [unit for unit in (resolution_of(m), resolution_of(n)) for _ in range(2)]
    spread, step, row_spread, row_step = (line * unit for line, unit in zip(lines, units, strict=True))
    widest = max(int(np.abs(line).max()) for line in (spread, step, row_spread, row_step))
    if widest > _WIDEST:
        raise CorruptStream(f"an exponent of {widest} sixteenths of an octave; up to {_WIDEST} are right")
    return Lines(base, cut, law, spread - step, row_spread - row_step, step, row_step)


def indices_of(row: np.ndarray, column: np.ndarray, base: int) -> np.ndarray:
    """(n, m) uint8: the scale of every value, where it is coded."""
    kinds = column.astype(np.int16)[:, None] + row.astype(np.int16)
    kinds += np.int16(base)
    return np.clip(kinds, 1, SCALES - 1, out=kinds).astype(np.uint8)


def coded_of(row: np.ndarray, column: np.ndarray, cut: int) -> np.ndarray:
    """(n, m) bool: the values that are on the path."""
    return column.astype(np.int16)[:, None] + row.astype(np.int16) >= cut


def best_base(plan: Plan, law: int, swept: Swept) -> int:
    """The scale of kind 0 with the shortest code for the levels; peaked laws keep it, as their indices depend on it."""
    from ..kernels.dependent_columns import line_lengths

    base = round(plan.base)
    if LAWS[law].peaked:
        return base
    tables = grid_tables(law, np.arange(1, SCALES))
    moves = [move for move in range(-3, 4) if base + move + plan.grid.cut >= 1]
    row, column = plan.grid.row, plan.grid.column - 1
    return base + min(moves, key=lambda move: line_lengths(swept, row, column + (base + move), tables)[0].sum())
