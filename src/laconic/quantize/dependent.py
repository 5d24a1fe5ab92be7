"""Entropy-coded trellis quantization (ECTCQ): .1 to .2 dB from the Gaussian rate–distortion bound at every rate.

    x ─ / step ─▶ Viterbi: least (x − L)² + λ · bits(L) over the levels that the trellis allows ─ L ─▶ rANS ─▶ bytes
                                       ▲ one pmf per context and union ─────────────────────────────▲

One step serves all contexts, so every context works at the same slope of its rate–distortion curve (reverse water-filling)
whatever its variance is; a context tells only which pmf its levels have. It is one stage, not a quantizer and a coder:
the search needs the very pmfs of the coder, the coder needs the walk through the trellis, and contexts that cost more
than they save take part in neither.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

import numpy as np

from ..core.errors import BadConfig, BadInput, CorruptStream, claim
from ..core.stage import Kind, Leaf, Levels, Side, Stage, Stats
from ..core.wire import write_sections

if TYPE_CHECKING:
    from torch import Tensor

    from ..kernels.dependent import Costs, Tables

SCALES = 256  # scale i has a = 2^(i / 16 - 4) steps; 0 stands for a context of zeros that is not coded
CENTRED_BELOW = 64  # of the peaked laws, scales whose odd union holds zero as well: a < 1 step


class Law(NamedTuple):
    """A generalised Gaussian exp(-(|x| / a)^β / β) as this module needs it.

    span: tenths of a at which it has fallen to 2^-15. power: its second moment over a². peakedness: E x² / (E |x|)² up to
    which it is the law to take. dead: power in squared steps below which a context is not worth coding. peaked: it has
    centred unions.
    """

    span: int
    power: float
    peakedness: float
    dead: float
    peaked: bool


# By 2 β: Gaussian, between, Laplace, heavier. A context that is hardly ever worth a level pays for every odd union it
# meets, unless zero is in it: so it is better left out of the trellis below twice the distortion, with zero far below.
LAWS = {
    4: Law(46, 1.0, 1.63, 0.5, False),
    3: Law(63, 1.268, 1.85, 0.5, False),
    2: Law(104, 2.0, 2.6, 0.01, True),
    1: Law(270, 7.5, math.inf, 0.01, True),
}
# λ in squared steps a bit. The slope of the Gaussian rate-distortion bound at high rate is .34, and the gap to the bound is
# flat around it; below a bit (first number) less thrift would leave no rates between nothing and .4 bits. Where zero is in
# both unions, a coarser step and little thrift do better.
LAM, LAM_CENTRED = (0.5, 0.4), 0.2
_GRANULAR = 0.245  # mean squared error in squared steps at high rate: 4/12 less 1.34 dB
HEADER_BYTES = 192  # set aside for a packet's header
_FIXED_SHARE = 0.02  # of the budget, which what does not grow with the array takes at most
_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
_MOST_STEPS = 1 << 27  # from zero to the greatest value; the step is not taken finer than that
_FEW = 64  # states that are enough to learn pmfs and to look for a step
_MANY = 1024  # contexts
_SAMPLE = 1 << 17  # values on which the step is looked for first
_TURNS = 7  # codings of the whole array that are spent on keeping close to the rate
_LOG2_E = 0x171547652B82FE177  # log2(e) · 2^64


@lru_cache
def _root2(numerator: int, log2_denominator: int) -> int:
    """2^(numerator / 2^log2_denominator) · 2^64, rounded down but for the last few bits, for a numerator ≥ 0."""
    whole, part = numerator >> log2_denominator, numerator & (1 << log2_denominator) - 1
    value, root = 1 << 128, 2 << 128
    for k in range(log2_denominator - 1, -1, -1):
        root = math.isqrt(root << 128)  # 2^(2^k / 2^log2_denominator)
        if part >> k & 1:
            value = value * root >> 128
    return value << whole >> 64


@lru_cache
def _powers() -> tuple[np.ndarray, np.ndarray]:
    """2^31 · 2^(−i / 2^8) and 2^31 · 2^(−i / 2^16) for i < 256, rounded down."""
    coarse, fine = ([(1 << 95) // _root2(i, n) for i in range(256)] for n in (8, 16))
    return np.array(coarse, np.int64), np.array(fine, np.int64)


def _exp2(exponents: list[int]) -> np.ndarray:
    """2^31 · 2^(−e / 2^32), truncated, for exponents e ≥ 0."""
    e = np.array([min(v >> 16, 40 << 16) for v in exponents], np.int64)
    coarse, fine = _powers()
    return (coarse[(e >> 8) & 255] * fine[e & 255] >> 31) >> (e >> 16)


class GridPmf(NamedTuple):
    """(2, ROW) pmf of the indices in the even and the odd union, and what `coder_tables` needs beside it."""

    pmf: np.ndarray
    reach: int
    shift: int
    centred: bool


@lru_cache(maxsize=2048)
def grid_pmf(law: int, index: int) -> GridPmf:
    """A generalised Gaussian sampled on the levels of each union: p(L) ∝ exp(-(|L| / a)^β / β), β = law / 2.

    a = 2^(index / 16 - 4); totals 2^15. In integers throughout, so the tables are the same on every machine. At high rate
    the levels that the search picks have this law, and not that of a rounded source: the test channel of the
    rate-distortion bound has it. Zero in a centred odd union weighs .3 / a, from .35 to 1, as counted on Laplacian sources.
    """
    from ..kernels.dependent import PRECISION, ROW

    total, centred = 1 << PRECISION, LAWS[law].peaked and index < CENTRED_BELOW
    power, octave = divmod(law * (SCALES - index), 32)  # a^-β = 2^(law (64 - index) / 32), kept ≥ 0 by 2^(6 law)
    unit = _root2(octave, 5) * (_LOG2_E * 2 // law) << power >> 6 * law  # a^-β log2(e) / β · 2^128

    def exponent(level: int) -> int:  # -log2 of the weight, · 2^32
        return math.isqrt(abs(level) ** law << 64) * unit >> 128

    span = LAWS[law].span * _root2(index, 4) // 10 >> 68  # in levels
    shift = 0
    while (ROW // 2 - 2) << (shift + 1) < span:
        shift += 1
    reach = min(ROW // 2 - 2, max(1, -(-span >> (shift + 1))))
    pmf = np.zeros((2, ROW), np.int64)
    for c in (0, 1):
        odd = int(c and not centred)
        beyond = [reach + 1 + (1 << j) for j in range(7)]  # the escape: the tail in stretches that double
        middle = [(h << (shift + 1)) + (1 << shift) - 1 + odd for h in [*range(-reach - odd, reach + 1), *beyond]]
        if c and centred:
            middle = [m - (m > 0) + (m < 0) for m in middle]
        e = [exponent(level) for level in middle]
        weight = _exp2([v - min(e) for v in e])
        if c and centred:
            weight[reach] = int(weight[reach]) * min(max((77 << 68) // _root2(index, 4), 90), 256) >> 8
        tail = int((weight[-7:] << np.arange(7)).sum()) * 2
        weight = np.append(weight[:-7], tail)
        share = weight * total
        f = np.maximum(share // weight.sum(), 1)
        rest = total - int(f.sum())
        f[np.argsort(-(share % weight.sum()), kind="stable")[: max(rest, 0)]] += 1
        for _ in range(-rest):
            f[f.argmax()] -= 1
        pmf[c, : f.size] = f
    return GridPmf(pmf, reach, shift, centred)


def grid_tables(law: int, indices: np.ndarray) -> Tables:
    """The coder's tables for the given scales."""
    from ..kernels.dependent import coder_tables

    pmf, reach, shift, centred = zip(*(grid_pmf(law, int(i)) for i in indices), strict=True)
    return coder_tables(np.concatenate(pmf), np.array(reach), np.array(shift), np.array(centred))


def level_costs(law: int, scale: np.ndarray) -> Costs:
    """λ · bits of every level, as the search wants it.

    scale: (T,) float. The search takes the law at the very scale, not at the nearest that can be sent, so that the rate is a
    smooth function of the step.
    """
    from ..kernels.dependent import PRECISION, Costs

    rows = [grid_pmf(law, int(i)) for i in np.rint(scale)]
    reach, shift, centred = (np.array([r[k] for r in rows])[:, None] for k in (1, 2, 3))
    half = int(2 * reach.max() + 4)
    level, a, beta = np.arange(-half, half + 1) << shift, 2.0 ** (scale[:, None] / 16 - 4), law / 2
    exponent = (np.abs(level) / a) ** beta * (math.log2(math.e) / beta)
    union = np.where(shift == 0, level & 1, 0)  # with a shift an entry stands for levels of both unions
    weight = np.where(centred, np.clip(0.3 / a, 0.35, 1), 0)  # of zero in the odd union
    bits = np.empty(level.shape)
    for c in (0, 1):
        own = union == c
        least = np.where(c * centred, 0, exponent.min(1, keepdims=True, where=own, initial=1e9))
        total = np.exp2(np.minimum(least - exponent, 0)).sum(1, keepdims=True, where=own)
        total = np.log2(np.maximum(total * 2.0 ** np.maximum(shift - 1, 0) + c * weight, 1e-300))
        bits = np.where(own, exponent - least + total, bits)
    beyond = np.maximum((np.abs(level) >> (shift + 1)) - reach, 0)
    bits = np.minimum(bits, PRECISION + np.where(beyond > 0, 6 + np.log2(np.maximum(beyond, 1)), 0) + shift)
    lam = np.where(centred, LAM_CENTRED, np.interp(scale[:, None], (48, 64), LAM))
    centre = np.where(centred, lam * (total - np.log2(np.where(centred, weight, 1))), np.inf)
    return Costs((lam * bits).astype(np.float32), shift[:, 0], centre[:, 0].astype(np.float32))


class Choice(NamedTuple):
    """What the search decided.

    q: indices of the coded values only, (m,) int32; unions: theirs, (m,) uint8. scale: (n_contexts,) uint8, 0 where a
    context is not coded.
    """

    q: np.ndarray
    unions: np.ndarray
    scale: np.ndarray
    law: int


def choose_levels(x: np.ndarray, context: np.ndarray, n_contexts: int, states: int) -> Choice:
    """Levels, scales and law for values x: (n,) float32 in steps; context: (n,) unsigned, below n_contexts.

    Each pass is a search with the pmfs at hand (with few states but for the last), then the best pmf of every context for
    the levels found: Lloyd's iteration with rate (Chou, Lookabaugh & Gray 1989).
    """
    from ..kernels.dependent import quantize, walk

    count = np.maximum(np.bincount(context, minlength=n_contexts), 1)
    size = np.bincount(context, weights=np.abs(x), minlength=n_contexts)
    energy = np.bincount(context, weights=np.square(x, dtype=np.float64), minlength=n_contexts) / count
    law = _law(energy, np.square(size / count), count)
    exact = 8 * np.log2(np.maximum(energy - _GRANULAR, 0.05) / LAWS[law].power) + 64
    exact = np.where(energy < LAWS[law].dead, 0, exact.clip(1, SCALES - 1))
    n_passes = 3 if LAWS[law].peaked else 2
    for turn in range(n_passes):
        last = turn == n_passes - 1
        coded = exact[context] > 0
        here, bounds = context[coded], lanes(int(coded.sum()))
        if not here.size:
            return Choice(np.empty(0, np.int32), np.empty(0, np.uint8), np.zeros(n_contexts, np.uint8), law)
        # A table for every context as long as these are few; a rounding to sixteenths of an octave averages out over many.
        distinct, table = np.unique(exact if n_contexts <= _MANY else np.rint(exact), return_inverse=True)
        costs = level_costs(law, np.maximum(distinct, 1))
        turn_states = states if last else min(states, _FEW)
        q = quantize(x[coded], table.astype(np.uint16)[here], costs, turn_states, bounds)
        unions, scale = walk(q, turn_states, bounds), np.rint(exact).astype(np.uint8)
        if turn == 0:
            law = _best_law(q, unions, here, scale, law)
        scale, exact = _best_scales(q, unions, here, scale, law, turn == 0)
        if not last:
            exact[np.bincount(here, weights=q != 0, minlength=n_contexts) == 0] = 0
    return Choice(q, unions, scale, law)


def _law(energy: np.ndarray, size: np.ndarray, count: np.ndarray) -> int:
    """The law whose ratio of E x² to (E |x|)² the contexts have, each by its share of the bits."""
    share = np.log2(1 + energy / _GRANULAR) * count
    if not share.any():
        return 4
    ratio = np.divide(energy, size, out=np.ones_like(energy), where=size > 0)
    peakedness = float(np.average(ratio, weights=share))
    return next(law for law, of in LAWS.items() if peakedness < of.peakedness)


def lanes(n: int) -> np.ndarray:
    """Bounds of the lanes for n coded values: eight from 2^18 on, for speed, and more from 2^24 on, for threads."""
    from ..kernels.dependent import lane_bounds

    return lane_bounds(n, max(1, min(8, n >> 15), min(256, n >> 21)))


def _positions(indices: np.ndarray) -> np.ndarray:
    """(SCALES,) uint8: which of the sorted `indices` a scale is."""
    out = np.zeros(SCALES, np.uint8)
    out[indices] = np.arange(len(indices))
    return out


def _lengths(q: np.ndarray, unions: np.ndarray, context: np.ndarray, scale: np.ndarray, law: int) -> np.ndarray:
    from ..kernels.dependent import code_lengths

    indices = np.unique(scale)
    return code_lengths(q, unions, context, _positions(indices)[scale], grid_tables(law, np.maximum(indices, 1)))


def _best_scales(
    q: np.ndarray, unions: np.ndarray, context: np.ndarray, scale: np.ndarray, law: int, far: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(the scale of every context with the shortest code, (n_contexts,) uint8; the same between the scales, float).

    No context crosses the scale from which on odd unions are not centred: its indices mean other levels there.
    """
    edge = CENTRED_BELOW if LAWS[law].peaked else 1
    least, most = np.where(scale < edge, 1, edge), np.where(scale < edge, edge - 1, SCALES - 1)

    def moved(move: int) -> np.ndarray:
        return np.where(scale > 0, np.clip(scale.astype(np.int64) + move, least, most), 0).astype(np.uint8)

    best = _lengths(q, unions, context, scale, law)
    for step in (8, 4, 2, 1) if far else (2, 1):
        for move in (step, -step):
            tried = moved(move)
            length = _lengths(q, unions, context, tried, law)
            scale, best = np.where(length < best, tried, scale), np.minimum(length, best)
    above, below = (_lengths(q, unions, context, moved(move), law) - best for move in (1, -1))
    bend = np.maximum(above + below, 1e-9)  # the vertex of a parabola through three code lengths
    exact = np.clip(scale + np.clip((below - above) / (2 * bend), -0.5, 0.5), least, most + 0.49)
    return scale, np.where(scale > 0, exact, 0)


def _best_law(
    q: np.ndarray, unions: np.ndarray, context: np.ndarray, scale: np.ndarray, law: int, sample: int = 1 << 17
) -> int:
    """The law with the shortest code for some of the indices, among those that are peaked or not as `law` is."""
    if q.size > sample:
        pick = np.random.default_rng(0).integers(0, q.size, sample)
        q, unions, context = q[pick], unions[pick], context[pick]

    def length(law: int) -> float:
        return float(_lengths(q, unions, context, _best_scales(q, unions, context, scale, law, True)[0], law).sum())

    return min((k for k, of in LAWS.items() if of.peaked == LAWS[law].peaked), key=length)


@dataclass(frozen=True)
class EntropyCodedTrellis(Stage):
    """ARRAY -> BYTES: uniform levels that a trellis restricts, chosen by rate and distortion, coded by rANS.

    bits: rate to keep to, in bits per value, everything in the packet counted; solved by `encode`, from where `fit` left
        `step`. Of an array whose share is below 16 kB the codes and scales keep to it, the fixed parts come on top.
        None: `step` is taken as it is.
    step: the quantizer's step; the mean squared error is about a quarter of its square. Raised where a value would be beyond
        2^27 steps.
    axes: values with the same coordinates on these axes share a pmf. (): all of them. (-1,): columns, such as the
        coefficients of a transform; (0,): rows, such as those of a weight matrix; (-2, -1): the bands of blocks.
    states: of the trellis, 8 to 65536 in powers of two. Of Gaussian values, at 1 to 4 bits and with every byte of a packet of
        2^20, 8 states stay .47 dB above the bound, 64 .28, 256 .21, 1024 .165, 4096 .137, 65536 .10. The time of a search
        doubles with the states from about 256 on.

    Shapes: x any shape, float32. Side: `shape`; `scale`, 1 byte a context; `step`, 4 bytes; `law`, 1 byte; `lane_words`, 4
    bytes for each of 1 to 256 lanes. Memory: 40 bytes a value and 2^10 bytes a state.

    Source: Fischer & Wang 1992 and Marcellin 1994 (entropy-coded TCQ); Chou, Lookabaugh & Gray 1989 (rate in the metric).
    Differs: one pmf per variance, a sampled generalised Gaussian, in place of trained ones; a context of Gaussian values
    whose power is below half a squared step is left out of the trellis, because odd levels would cost it more than it can
    save, and peaked ones have zero in both unions; the decoder's step is the least-squares one, in place of centroids.

    Raises BadConfig for settings that cannot work, BadInput where the side information alone takes more than `bits`.
    """

    bits: float | None = None
    step: float | None = None
    axes: tuple[int, ...] = ()
    states: int = 1024

    takes: ClassVar[Kind] = Kind.ARRAY
    gives: ClassVar[Kind] = Kind.BYTES
    keeps_rate: ClassVar[bool] = True
    side: ClassVar[Mapping[str, Leaf]] = {
        "shape": Leaf("int64", "header"),
        "scale": Leaf("uint8", "scales"),
        "step": Leaf("float32", "scales"),
        "law": Leaf("uint8", "models"),
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

    def fit(self, x: Tensor, stats: Stats | None = None) -> Self:
        """Solves the step for the rate on `x`. Statistics have no say: scale columns beforehand to weigh their errors."""
        return self if self.bits is None else self.replace(step=self._solve(_values(x)).step)

    def encode(self, x: Tensor) -> tuple[bytes, Side]:
        values = _values(x)
        coded = self._code(values, self.step or 1.0) if self.bits is None else self._solve(values)
        return coded.payload, coded.side

    def decode(self, y: bytes, side: Side) -> Tensor:
        import torch

        levels, shape, step = self._read(y, side)
        with np.errstate(over="ignore"):  # an array up to the end of float32 may be overshot by half a step
            out = np.clip(levels.astype(np.float32) * step, -_LARGEST, _LARGEST)
        return torch.from_numpy(out.reshape(shape))

    def levels(self, y: bytes, side: Side) -> Levels | None:
        levels, shape, step = self._read(y, side)
        if len(shape) != 2 or float(np.abs(levels).max(initial=0)) * float(step) > _LARGEST:
            return None
        return Levels(levels.reshape(shape), np.full((shape[0], 1), step, np.float32), shape[1], sent=side)

    def _read(self, y: bytes, side: Side) -> tuple[np.ndarray, tuple[int, ...], np.float32]:
        """(levels int32 (n,), shape of the array, step)."""
        from ..kernels.dependent import decode, lane_bounds

        scale, law, step = side["scale"], side["law"], side["step"]
        shape, n = _shape(side["shape"], self.axes, scale)
        claim(12 * n, f"an array of shape {shape}")
        if law.shape != (1,) or int(law[0]) not in LAWS or step.shape != (1,) or not 0 < step[0] < np.inf:
            raise CorruptStream(
                f"law {law[:4]} and step {step[:4]}; one of {[*LAWS]} and one positive number are right"
            )
        spread = _spread(scale, shape, self.axes)
        coded = spread > 0
        table, words, lengths = spread[coded], np.frombuffer(y, "<u4", len(y) // 4), side["lane_words"]
        if len(y) % 4 or lengths.ndim != 1 or not min(1, table.size) <= lengths.size <= table.size:
            raise CorruptStream(f"{lengths.size} lanes in {len(y):,} bytes for {table.size:,} values")
        out = np.zeros(n, np.int32)
        if table.size:
            indices = np.unique(scale[scale > 0])
            tables, bounds = grid_tables(int(law[0]), indices), lane_bounds(table.size, lengths.size)
            out[coded] = decode(words, lengths, _positions(indices)[table], tables, self.states, bounds)
        elif words.size:
            raise CorruptStream(f"{words.size:,} words behind an array of zeros")
        return out, shape, step[0]

    def _code(self, x: np.ndarray, step: float) -> _Coded:
        """x at the step, whatever rate that has."""
        from ..kernels.dependent import encode, levels

        context, n_contexts = _contexts(x.shape, self.axes)
        flat = x.reshape(-1)
        step = min(max(step, _SMALLEST, float(np.abs(flat).max()) / _MOST_STEPS), _LARGEST)
        choice = choose_levels(flat / np.float32(step), context, n_contexts, self.states)
        here = choice.scale[context]
        coded = here > 0
        payload, lengths, sent = b"", np.empty(0, np.uint32), step
        if choice.q.size:
            indices = np.unique(choice.scale[choice.scale > 0])
            table, tables = _positions(indices)[here[coded]], grid_tables(choice.law, indices)
            words, lengths = encode(choice.q, table, tables, self.states, lanes(choice.q.size))
            payload = words.astype("<u4").tobytes()
            sent = _least_squares(flat[coded], levels(choice.q, choice.unions, tables.centred[table]), step)
        side = {
            "shape": np.array(x.shape, np.int64),
            "scale": choice.scale,
            "step": np.array([sent], np.float32),
            "law": np.array([choice.law], np.uint8),
            "lane_words": lengths,
        }
        return _Coded(step, payload, side)

    def _solve(self, x: np.ndarray) -> _Coded:
        """x at the finest step found that keeps to `bits`."""
        assert self.bits is not None
        context, n_contexts = _contexts(x.shape, self.axes)
        energy = np.bincount(context, weights=np.square(x.reshape(-1), dtype=np.float64), minlength=n_contexts)
        if not energy.any():
            return self._code(x, self.step or 1.0)
        budget = self.bits * x.size / 8
        if n_contexts >= budget:
            raise BadInput(
                f"bits={self.bits}: {n_contexts:,} scales for {x.size:,} values take {8 * n_contexts / x.size:.3f} bits; "
                "allow more, or let more values share a scale (axes)"
            )

        def whole(step: float) -> tuple[float, _Coded]:
            coded = self._code(x, step)
            state_bytes = 8 * coded.side["lane_words"].size
            fixed = HEADER_BYTES + len(write_sections(self, {**coded.side, "payload": b""})) - n_contexts + state_bytes
            n_bytes = len(coded.payload) - state_bytes + n_contexts + min(fixed, _FIXED_SHARE * budget)
            return 8 * n_bytes / x.size, coded

        def sampled(step: float) -> tuple[float, _Coded]:
            coded = quick._code(sample, step)
            return 8 * len(coded.payload) / sample.size + 8 * n_contexts / x.size, coded

        start, slope = self.step or _waterfill(energy * (n_contexts / x.size), self.bits), -0.9
        sample, quick = _thin(x, self.axes, _SAMPLE), self.replace(states=min(self.states, _FEW))
        if self.step is None and sample.size < x.size:
            near, slope = _search_step(sampled, start, self.bits, 0.001 * self.bits, slope)
            start = near.step
        return _search_step(whole, start, self.bits, min(0.001 * self.bits, 1e-3) + 64 / x.size, slope)[0]


class _Coded(NamedTuple):
    step: float
    payload: bytes
    side: Side


def _search_step(
    code: Callable[[float], tuple[float, _Coded]], start: float, bits: float, slack: float, slope: float
) -> tuple[_Coded, float]:
    """(x at the finest step found whose rate is at most `bits`, content with `slack` less; last slope of the rate).

    code(step) -> (rate, what was coded). Secants on log2(step), against which the rate falls almost linearly (`slope` to
    begin with), held inside the bracket known so far.
    """
    u = math.log2(start)
    fine, coarse = -math.inf, math.inf  # coarsest step above the rate, finest that keeps to it
    best: _Coded | None = None
    last: tuple[float, float] | None = None
    for turn in range(40):
        rate, coded = code(2.0**u)
        if rate > bits:
            fine = max(fine, u)
        elif u < coarse:
            best, coarse = coded, u
        patience = _TURNS if fine > -math.inf else 3 * _TURNS
        if best is not None and (bits - slack <= rate <= bits or turn >= patience or coarse - fine < 1e-4):
            return best, slope
        if last is not None and last[0] != u:
            slope = min(max((rate - last[1]) / (u - last[0]), -1.5), -0.02)
        last = u, rate
        u += min(max((bits - slack / 2 - rate) / slope, -2.0), 2.0)
        if not fine < u < coarse:
            outside = fine + 0.5 if coarse == math.inf else coarse - 0.5
            u = outside if math.isinf(coarse - fine) else (fine + coarse) / 2
    raise BadInput(f"no step found that keeps to {bits} bits a value; allow more")


def _waterfill(power: np.ndarray, bits: float) -> float:
    """The step at which contexts of this power take so many bits on average, by the Gaussian rate–distortion function."""
    high = float(power.max()) / _GRANULAR
    low = 1e-12 * high
    for _ in range(100):
        middle = math.sqrt(low * high)
        rate = np.maximum(0.5 * np.log2(np.maximum(power / (_GRANULAR * middle), 1e-300)), 0).mean()
        low, high = (middle, high) if rate > bits else (low, middle)
    return math.sqrt(low)


def _least_squares(x: np.ndarray, chosen: np.ndarray, step: float) -> float:
    """The step with which the levels come closest to x."""
    wide = chosen.astype(np.float64)
    square = float(np.square(wide).sum())
    best = float((x * wide).sum()) / max(square, 1.0)
    return best if best >= _SMALLEST else step


def _values(x: Tensor) -> np.ndarray:
    values = np.ascontiguousarray(x.detach().cpu().numpy(), np.float32)
    if not values.size or not np.isfinite(values).all():
        raise BadInput(f"an array of shape {values.shape} that is empty or holds NaN or Inf; finite values are right")
    return values


def _axes(axes: tuple[int, ...], n_dims: int) -> list[int]:
    if any(not -n_dims <= a < n_dims for a in axes) or len({a % n_dims for a in axes}) != len(axes):
        raise BadInput(
            f"axes {axes} of an array of {n_dims} dimensions; each at most once, from {-n_dims} to {n_dims - 1}"
        )
    return [a % n_dims for a in axes]


def _contexts(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[np.ndarray, int]:
    """(context of every value, (n,) uint32; number of contexts)."""
    n_contexts = math.prod(shape[a] for a in _axes(axes, len(shape)))
    return _spread(np.arange(n_contexts, dtype=np.uint32), shape, axes), n_contexts


def _spread(scale: np.ndarray, shape: tuple[int, ...], axes: tuple[int, ...]) -> np.ndarray:
    """What a context has, at each of its values: (n_contexts,) -> (n,)."""
    own = set(_axes(axes, len(shape)))
    grid = [d if a in own else 1 for a, d in enumerate(shape)]
    return np.ascontiguousarray(np.broadcast_to(scale.reshape(grid), shape)).reshape(-1)


def _thin(x: np.ndarray, axes: tuple[int, ...], n: int) -> np.ndarray:
    """About n values of x, from all contexts."""
    free = [a for a in range(x.ndim) if a not in _axes(axes, x.ndim)]
    if not free or x.size <= n:
        return x
    axis = max(free, key=lambda a: x.shape[a])
    keep = max(1, x.shape[axis] * n // x.size)
    return np.take(x, np.arange(keep) * x.shape[axis] // keep, axis)


def _shape(sent: np.ndarray, axes: tuple[int, ...], scale: np.ndarray) -> tuple[tuple[int, ...], int]:
    """(shape, number of values) from the side information, checked against the scales."""
    shape = tuple(int(d) for d in sent.reshape(-1)[:17])
    if sent.ndim != 1 or not 0 < len(shape) <= 16 or min(shape) < 1:
        raise CorruptStream(f"shape {shape}; up to 16 numbers from 1 on are right")
    try:
        n_contexts = math.prod(shape[a] for a in _axes(axes, len(shape)))
    except BadInput as e:
        raise CorruptStream(str(e)) from None
    if scale.shape != (n_contexts,):
        raise CorruptStream(f"scales of shape {scale.shape} for {n_contexts:,} contexts")
    return shape, math.prod(shape)
