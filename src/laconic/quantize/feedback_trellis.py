"""Entropy-coded trellis quantization under a Hessian: error feedback, a step for every column, one path down the columns.

    W ─ column j / step_j ─▶ Viterbi: least (w − L)² + λ · bits(L) ─ L_j ─▶ rANS ─▶ bytes
             ▲                                  │
             └──── columns behind: − e U_jk ◀── e = (w_j − step_j L_j) / U_jj          H⁻¹ = Uᵀ U

With feedback the error tr(Δ H Δᵀ) is Σ_j |e_j|², so a squared error in column j weighs 1 / U_jj². At a given rate the best
is the same weighted error everywhere: step_j = step · U_jj. Against one step for all, which an entropy coder serves just
as well, this gains the ratio of the arithmetic to the geometric mean of the weights 1 / U_jj², and what remains is
det(H)^(1/n): what no order of the columns can change. Columns whose spread is below their step are left at zero and
all of their value is fed back (reverse water-filling).

Which pmf a level has follows from its row and its column: log a = spread_row + spread_column − log step. Spreads and
steps are sent as small integers, entropy-coded: about 3 bits a column and 2 a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from ..core.errors import BadConfig, CorruptStream, claim
from ..core.stage import Kind, Leaf, Levels, Side, Stage, Stats, encoder_only
from ..core.wire import write_sections
from .dependent import (
    _FEW,
    _FIXED_SHARE,
    _LARGEST,
    _MOST_STEPS,
    _SAMPLE,
    _SMALLEST,
    _Coded,
    _positions,
    _search_step,
    _values,
    _waterfill,
    grid_tables,
)
from .feedback_plan import (
    Model,
    Plan,
    Task,
    best_base,
    coded_of,
    first_model,
    indices_of,
    lane_columns,
    learn,
    octaves,
    plan_of,
    read_lines,
    task_of,
    write_lines,
)

if TYPE_CHECKING:
    from torch import Tensor

_HEADER_BYTES = 144  # set aside for a packet's header
_HEAD_BYTES = 12  # of the models, which even the smallest matrix has
_NEAR = 0.3  # octaves of the step within which a model is kept


@dataclass(frozen=True)
class FeedbackTrellis(Stage):
    """ARRAY -> BYTES: entropy-coded trellis levels of a matrix, chosen column by column with error feedback.

    bits: rate to keep to, in bits per value, everything in the packet counted; solved by `encode`. Of a matrix whose share is
        below 16 kB the codes and exponents keep to it, the fixed parts come on top. None: `step` is taken as it is.
    step: of column j the step is step · U_jj, so that tr(Δ H Δᵀ) is about step² / 4 a value, in the units of H: one step for
        many matrices works all of them at the same slope of the sum of their errors.
    states: of the trellis, 8 to 65536 in powers of two.
    damping: added to the diagonal of H, in units of step² / 4 over the mean square of the weights: the noise that the step
        makes anyway. 1 is what the theory of coding below the noise wants, and measured as the best.
    stats: kept by `fit`. `hessian`: H, (n, n); without it, the identity. `importance`: weights of the rows, (m, 1).

    Shapes: x (..., n), any number of rows, float32. Side: `shape`; `step`, 4 bytes; `models`, the exponents and the pmfs'
    law; `lane_words`, 4 bytes a lane. Memory: 40 bytes a value, 24 n².

    Source: Fischer & Wang 1992 (entropy-coded TCQ); Frantar et al. 2022, GPTQ (2210.17323), Alg. 1 (feedback); QTIP
    (2406.11235) (trellis codes with feedback). The steps are those of high-resolution theory (Zador) for the weights 1 / U_jj².
    Differs: the path is one, and runs on from column to column; rate is in the metric, and pmfs follow rows and columns.

    Raises BadConfig for settings that cannot work, BadInput for statistics that do not fit.
    """

    bits: float | None = None
    step: float | None = None
    states: int = 256
    damping: float = 1.0
    stats: Any = encoder_only()

    takes: ClassVar[Kind] = Kind.ARRAY
    gives: ClassVar[Kind] = Kind.BYTES
    keeps_rate: ClassVar[bool] = True
    side: ClassVar[Mapping[str, Leaf]] = {
        "shape": Leaf("uint32", "header"),
        "step": Leaf("float32", "scales"),
        "models": Leaf("uint8", "models"),
        "lane_words": Leaf("uint32", "header"),
    }

    def __post_init__(self) -> None:
        if self.bits is None and self.step is None:
            raise BadConfig("neither bits nor step; name the rate (bits=2.0) or the quantizer's step")
        if self.bits is not None and not 0 < self.bits <= 12:
            raise BadConfig(f"bits={self.bits}; above 0, up to 12 is right")
        if self.step is not None and not 0 < self.step < math.inf:
            raise BadConfig(f"step={self.step}; a positive number is right")
        if self.states.bit_count() != 1 or not 8 <= self.states <= 65536:
            raise BadConfig(f"a trellis of {self.states} states; a power of two from 8 to 65536 is right")
        if not 0 <= self.damping <= 1e6:
            raise BadConfig(f"damping {self.damping}; a number such as 1 is right")

    def fit(self, x: Tensor, stats: Stats | None = None) -> Self:
        """Keeps the statistics and, with `bits`, solves the step for the rate on `x`."""
        fitted = self.replace(stats=stats)
        return fitted if self.bits is None else fitted.replace(step=fitted._solve(_values(x)).step)

    def push(self, stats: Stats) -> Stats:
        """None: bytes are not changed any more."""
        return Stats()

    def encode(self, x: Tensor) -> tuple[bytes, Side]:
        values = _values(x)
        if self.bits is None:
            coded = self._coder(self._task(values, self.step), values.shape)(self.step or 1.0)
        else:
            coded = self._solve(values)
        return coded.payload, coded.side

    def estimate(self, x: Tensor, stats: Stats | None = None) -> tuple[float, float]:
        """(estimated bits per value, estimated tr(Δ H Δᵀ)) at `step`: from about 2^17 values and with few states."""
        import torch

        if self.step is None:
            raise BadConfig("an estimate without a step; name one")
        quick, values = self.replace(stats=stats, bits=None, states=min(self.states, _FEW)), _values(x)
        task = quick._task(values, self.step)
        (n, m), sample = task.w.shape, task.thin(_SAMPLE)
        keep = sample.w.shape[1]
        coded = quick._coder(sample, (keep, n))(self.step)
        models = coded.side["models"].size * (n + m) / (n + keep) / (n * m)
        given = torch.from_numpy((sample.w * octaves(sample.row_step * task.resolution[1])[None]).T * task.size)
        error = (given - quick.decode(coded.payload, coded.side)).double()
        if stats is not None and stats.importance is not None:
            error *= stats.importance.double().reshape(-1, 1)[np.arange(keep) * m // keep].sqrt()
        weighted = error if stats is None or stats.hessian is None else error @ stats.hessian.double()
        return 8 * (len(coded.payload) / (n * keep) + models), float((weighted * error).sum()) * m / keep

    def _task(self, values: np.ndarray, step: float | None) -> Task:
        n = values.shape[-1] if values.ndim else 1
        return task_of(values.reshape(-1, n), self.stats or Stats(), self.damping, step)

    def _coder(self, task: Task, shape: tuple[int, ...]) -> Callable[[float], _Coded]:
        """What codes the matrix at a step, whatever rate that has; steps close to each other share what was learned."""
        from ..kernels.dependent import encode
        from ..kernels.dependent_columns import UNCODED, Swept, sweep_columns

        finest = float((np.abs(task.w).max(1) / task.column_steps(1.0)).max()) / _MOST_STEPS
        finest = max(finest, _SMALLEST / (task.unit * task.size))
        learned: dict[float, Model] = {}

        def sweep(model: Model, step: float, states: int) -> tuple[Plan, Swept]:
            plan = plan_of(task, model, step)
            return plan, sweep_columns(task.w, task.upper, plan.grid, plan.costs, states)

        def model_for(step: float) -> Model:
            near = min(learned, key=lambda other: abs(math.log2(other / step)), default=None)
            if near is None or abs(math.log2(near / step)) > _NEAR:
                first = first_model(task.w)
                near, learned[step] = step, learn(task, first, *sweep(first, step, min(self.states, _FEW)))
            return learned[near]

        def code(step: float) -> _Coded:
            step = max(step, finest)
            model = model_for(step)
            plan, swept = sweep(model, step, self.states)
            base, coded = best_base(plan, model.law, swept), swept.unions != UNCODED
            payload, lengths = b"", np.empty(0, np.uint32)
            if coded.any():
                bounds = np.concatenate([[0], np.cumsum(coded.sum(1))])[lane_columns(task.w.shape)]
                index = indices_of(plan.grid.row, plan.grid.column, base)[coded]
                indices = np.unique(index)
                tables = grid_tables(model.law, indices)
                words, lengths = encode(swept.q[coded], _positions(indices)[index], tables, self.states, bounds)
                payload = words.astype("<u4").tobytes()
            sent = min(max(step * task.unit * task.size * model.ratio, _SMALLEST), _LARGEST)
            head = (base, plan.grid.cut, model.law)
            side = {
                "shape": np.array(shape, np.uint32),
                "step": np.array([sent], np.float32),
                "models": write_lines(head, plan.column_spread, task.column_step, plan.row_spread, task.row_step),
                "lane_words": lengths,
            }
            return _Coded(step, payload, side)

        return code

    def _solve(self, values: np.ndarray) -> _Coded:
        """The matrix at the finest step found that keeps to `bits`."""
        assert self.bits is not None
        shape, n_values = values.shape, values.size
        task = self._task(values, self.step)
        if not values.any():
            return self._coder(task, shape)(self.step or 1.0)
        start, slope, budget = self.step, -0.9, self.bits * n_values / 8
        if start is None:
            power = np.square(task.w, dtype=np.float64).mean(1) / np.square(task.column_steps(1.0), dtype=np.float64)
            start = _waterfill(power, self.bits)
            if task.damped:
                start, slope = self._sampled_step(task, n_values, start, 0.05 * self.bits, slope)
                task = self._task(values, start)
            if n_values > _SAMPLE:
                start, slope = self._sampled_step(task, n_values, start, 0.005 * self.bits, slope)
        code = self._coder(task, shape)

        def whole(step: float) -> tuple[float, _Coded]:
            coded = code(step)
            return 8 * self._counted_bytes(coded, budget) / n_values, coded

        return _search_step(whole, start, self.bits, min(0.001 * self.bits, 1e-3) + 64 / n_values, slope)[0]

    def _sampled_step(self, task: Task, n_values: int, start: float, slack: float, slope: float) -> tuple[float, float]:
        """(about the step that keeps to `bits`, slope of the rate there) from a part of the rows, with few states."""
        assert self.bits is not None
        sample = task.thin(_SAMPLE)
        n, m = sample.w.shape
        code = self.replace(states=min(self.states, _FEW))._coder(sample, (m, n))

        def sampled(step: float) -> tuple[float, _Coded]:
            coded = code(step)
            models = max(coded.side["models"].size - _HEAD_BYTES, 0)
            return 8 * ((len(coded.payload) - 8 * coded.side["lane_words"].size) / (n * m) + models / n_values), coded

        found, slope = _search_step(sampled, start, self.bits, slack, slope)
        return found.step, slope

    def _counted_bytes(self, coded: _Coded, budget: float) -> float:
        """Of the packet, with what does not grow with the matrix up to its share."""
        state_bytes: int = 8 * coded.side["lane_words"].size
        models: int = max(coded.side["models"].size - _HEAD_BYTES, 0)
        fixed = _HEADER_BYTES + len(write_sections(self, {**coded.side, "payload": b""})) - models + state_bytes
        return len(coded.payload) - state_bytes + models + min(fixed, _FIXED_SHARE * budget)

    def decode(self, y: bytes, side: Side) -> Tensor:
        import torch

        levels, shape, column, row = self._read(y, side)
        out = levels.astype(np.float32)
        with np.errstate(over="ignore"):  # finite times finite, kept so: 0 · inf would be no number
            for scale in (column[:, None], row):
                out *= np.minimum(scale, np.float32(_LARGEST))
                np.clip(out, -_LARGEST, _LARGEST, out=out)
        return torch.from_numpy(np.ascontiguousarray(out.T).reshape(shape))

    def levels(self, y: bytes, side: Side) -> Levels | None:
        levels, shape, column, row = self._read(y, side)
        largest = float(np.abs(levels).max(initial=0)) * float(column.max()) * float(row.max())
        if len(shape) != 2 or not largest < _LARGEST:
            return None
        level = np.ascontiguousarray(levels.T)
        return Levels(level, np.ascontiguousarray(row[:, None]), shape[1], column_scale=column, sent=side)

    def _read(self, y: bytes, side: Side) -> tuple[np.ndarray, tuple[int, ...], np.ndarray, np.ndarray]:
        """(levels int32 (n, m), shape of the array, step of each column, factor of each row)."""
        from ..kernels.dependent import decode

        shape = tuple(int(d) for d in side["shape"].reshape(-1)[:17])
        if side["shape"].ndim != 1 or not 0 < len(shape) <= 16 or min(shape) < 1:
            raise CorruptStream(f"shape {shape}; up to 16 numbers from 1 on are right")
        n, size, step = shape[-1], math.prod(shape), side["step"]
        m = size // n
        claim(16 * size, f"an array of shape {shape}")
        if step.shape != (1,) or not 0 < step[0] < np.inf:
            raise CorruptStream(f"step {step[:4]}; one positive number is right")
        lines = read_lines(side["models"], n, m)
        index, coded = indices_of(lines.row, lines.column, lines.base), coded_of(lines.row, lines.column, lines.cut)
        counts = np.concatenate([[0], np.cumsum(coded.sum(1))])
        words, lengths = np.frombuffer(y, "<u4", len(y) // 4), side["lane_words"]
        bounds = counts[lane_columns((n, m))]
        wanted = len(bounds) - 1 if counts[-1] else 0
        if len(y) % 4 or lengths.shape != (wanted,) or not counts[-1] and words.size:
            raise CorruptStream(
                f"lanes {lengths.shape} in {len(y):,} bytes; {wanted} are right for {counts[-1]:,} values"
            )
        out = np.zeros((n, m), np.int32)
        if wanted:
            table = index[coded]
            indices = np.unique(table)
            tables = grid_tables(lines.law, indices)
            out[coded] = decode(words, lengths, _positions(indices)[table], tables, self.states, bounds)
        with np.errstate(over="ignore"):
            column = (octaves(lines.column_step) * float(step[0])).astype(np.float32)
        return out, shape, column, octaves(lines.row_step).astype(np.float32)
