"""Fixed-rate trellis-coded quantization: tail-biting Viterbi search and the decoder that walks the same trellis.

A trellis has 2^L states. A step takes k coded bits c (1 or 2, in a periodic pattern) and u free bits j, moves

    s' = (s · 2^k + c) mod 2^L

and reproduces the value points[j, class(s')]. Every state offers 2^u points spread over the whole law (quantiles
(j + f) / 2^u), so the free bits act like a coarse scalar quantizer, and the L last coded bits choose the fraction f
by a linear map over GF(2): bit i of f (most significant first) is the parity of s' & GENERATORS[L][i]. The taps make
the two (or four) branches that leave a state, and those that enter one, differ in the first bits of f: by half a cell
(a quarter), the most that there is, as Ungerboeck's rules have it.

The rate is exact: k + u bits a step, no more, because the path bites its tail: the state before the first step is the
one after the last. A symbol is one period of the pattern, step by step from the lowest bits, c below j.

    rate 2 = 1 + 1     rate 2.25 = (1, 1, 1, 2) + 1     rate 3 = 1 + 2     rate 1.5 = (1, 2) + 0

The search: the state before the first step comes from a search over the seam alone (as far as paths remember, on both
sides of it); then one pass with this state at both ends. All 2^k states s' that share s' >> k have the same
predecessors, so a step is one minimum over 2^L metrics and one addition, whatever k is.

Sources: Ungerboeck 1982 (set partitioning, parallel transitions); Marcellin & Fischer 1990 (TCQ); Tseng, Sun, Hou & De Sa
2024 (2406.11235, QTIP: the bitshift trellis, tail-biting from a first search, computed Gaussian codebooks).
Differs: QTIP shifts in all bits of a value (u = 0) and maps states at random. One coded bit a step remembers R times
as many values with the same states, and the linear map keeps merging paths apart: 2^12 states have a lower distortion
than QTIP reports for 2^16. Path metrics are 16-bit integers.
"""

from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from laconic.core.errors import BadConfig, BadInput, CodecError, CorruptStream

__all__ = ["GENERATORS", "Code", "code", "decode", "decode_plain", "encode", "encode_plain"]

_LANES = 32  # states that share an entry of Code.base, and lanes of a vector of metrics
_TOP = 65535
_SPAN = 512.0  # a path this many mean squared errors behind the best is as good as dead: it saturates
_MEMORY = 12  # a path forgets its start after this many times L coded bits

# L: the taps of the bits of f, most significant first. Found by random draws, then hill climbing, on the mean squared
# error of 2^14 or 2^15 Gaussian values summed over rates from 1 to 4 bits. The first four or five rows have taps
# everywhere, the others in the newest five bits only, so that 32 neighbouring states use one of a few sets of 32 points.
GENERATORS: dict[int, tuple[int, ...]] = {
    8: (0xC7, 0x56, 0x3C, 0x14, 0x20, 0x10, 0x14, 0x8, 0x1C),
    9: (0x1B3, 0x9E, 0x74, 0x48, 0x10, 0x18, 0x1C, 0x10),
    10: (0x397, 0x10E, 0x44, 0xF4, 0xD0, 0x18, 0x14, 0x10, 0x14),
    11: (0x4ED, 0x2DE, 0x70, 0x17C, 0x88, 0x14, 0x1C, 0x18, 0x1C),
    12: (0xC11, 0x67E, 0x2B4, 0x1C8, 0xA0, 0xC, 0x14, 0x1C, 0x14),
    13: (0x1F4B, 0x8AE, 0x514, 0x16C, 0xA8, 0x1C, 0x4, 0x14, 0x1C),
    14: (0x2C67, 0x10D6, 0xCC4, 0xB74, 0x4B8, 0x1C, 0x10, 0x8, 0x10),
    15: (0x7BE7, 0x2612, 0x1D58, 0x1AA8, 0x17CC, 0x14, 0x8, 0x4, 0x14),
    16: (0x8E33, 0x78CE, 0x1DE0, 0x39D0, 0x61C, 0xC, 0x4, 0x10, 0x4),
    17: (0x1FC99, 0xB306, 0xC80, 0x232C, 0x3538, 0x4, 0xC, 0x14, 0xC),
    18: (0x3B513, 0x14D9E, 0xB3A4, 0xEEA8, 0x95CC, 0x4, 0xC, 0x14, 0x4),
    19: (0x40DA1, 0x3ABE6, 0xC858, 0x19B38, 0x12548, 0x14, 0x18, 0x10, 0x14),
    20: (0x9B481, 0x6B8F6, 0xCF84, 0x32C68, 0xAD3C, 0x1C, 0xC, 0x8, 0xC),
}


class Code(NamedTuple):
    """A trellis: all that search and decoder need but the points.

    memory: L. free: u. shifts: (P,) int64, coded bits of each step of the pattern.
    base: (2^(L−5),) int64, multiples of 32 plus 0 … 31: the class of state s is base[s >> 5] ^ (s & 31).
    fraction: (C,) int64 in 0 … 2^depth − 1, the fraction f of each class.
    sets, set_of: the different entries of base, and which of them each entry is: base = sets[set_of].
    """

    memory: int
    free: int
    shifts: np.ndarray
    base: np.ndarray
    fraction: np.ndarray
    depth: int
    sets: np.ndarray
    set_of: np.ndarray

    @property
    def period(self) -> int:
        """Values a symbol."""
        return len(self.shifts)

    @property
    def symbol_bits(self) -> int:
        """Bits a symbol."""
        return int(self.shifts.sum()) + self.free * self.period

    @property
    def bits(self) -> float:
        """Bits a value."""
        return self.symbol_bits / self.period

    def least(self) -> int:
        """Values that a block must have at least, so that its coded bits fill a state: a multiple of the period."""
        return self.period * -(-self.memory // int(self.shifts.sum()))


@lru_cache(maxsize=32)
def code(bits: float, states: int) -> Code:
    """The trellis for a rate.

    bits: at least 1, a fraction whose denominator P (the period) keeps a symbol of P values within 16 bits.
    states: a power of two for which there is a generator.
    """
    memory = states.bit_length() - 1
    if states != 1 << max(memory, 0) or memory not in GENERATORS:
        raise BadConfig(f"{states} states; 2^{min(GENERATORS)} to 2^{max(GENERATORS)} in powers of two are right")
    rate = Fraction(bits).limit_denominator(16)
    period = rate.denominator
    if rate < 1 or float(rate) != bits or rate * period > 16:
        raise BadConfig(f"{bits} bits a value; whole numbers of bits for 1 to 16 values, 1 ≤ bits a value, are right")
    free = int(rate) - 1
    extra = int(rate % 1 * period)
    steps = np.arange(period + 1) * extra // period
    taps = np.array(GENERATORS[memory], np.uint64)[:, None]
    weight = 1 << np.arange(len(taps) - 1, -1, -1)
    f = [weight @ (np.bitwise_count(s & taps) & 1) for s in _blocks(states)]
    # f is linear: f(s) = f(s − i) ^ f(i) for the lowest five bits i. States whose f(s − i) differ by some f(x) have the
    # same 32 fractions, in an order that is permuted by i -> i ^ x; a class is a coset and a place in it.
    of_lane, of_block = f
    classes: dict[int, int] = {}
    fraction: list[int] = []
    for start in np.unique(of_block).tolist():
        if start not in classes:
            coset = [start ^ lane for lane in of_lane.tolist()]
            classes |= {value: len(fraction) + i for i, value in reversed(list(enumerate(coset)))}
            fraction += coset
    base = np.array([classes[start] for start in of_block.tolist()], np.int64)
    sets, set_of = np.unique(base, return_inverse=True)
    shifts = 1 + np.diff(steps).astype(np.int64)
    return Code(memory, free, shifts, base, np.array(fraction), len(taps), sets, set_of.astype(np.uint16))


def _blocks(states: int) -> tuple[np.ndarray, np.ndarray]:
    """The first 32 states, and the first state of every 32."""
    return np.arange(_LANES, dtype=np.uint64), np.arange(0, states, _LANES, dtype=np.uint64)


# --- Vector code -------------------------------------------------------------------------------------------------------
_I16, _I32, _I64, _F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_METRICS = ir.VectorType(_I16, _LANES)
_COSTS = ir.VectorType(_F32, _LANES)


def _array(context, builder, sig, args, i):
    return context.make_array(sig.args[i])(context, builder, args[i]).data


def _place(builder, base, at, kind):
    return builder.bitcast(builder.gep(base, [at]), kind.as_pointer())


def _splat(builder, value, kind):
    none = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(none, value, _I32(0))
    return builder.shuffle_vector(first, none, ir.Constant(ir.VectorType(_I32, _LANES), [0] * _LANES))


def _metric_op(builder, name, *args):
    function = ir.FunctionType(_METRICS, [_METRICS] * len(args))
    return builder.call(cgutils.get_or_insert_function(builder.module, function, f"llvm.{name}.v{_LANES}i16"), args)


def _lesser(builder, a, b):
    """The minimum that is `a` wherever `b` is not below it, NaN included."""
    return builder.select(builder.fcmp_ordered("<", b, a), b, a)


@intrinsic
def _branch_costs(typingctx, x, points, n_free, n_classes, scale, exact, cost):
    """cost[c] = min(65535, scale · (e(c) − min e)), e(c) = min over j of (x − points[j · n_classes + c])².

    points, exact: float32, exact: room for n_classes (a multiple of 32); cost: uint16.
    """

    def codegen(context, builder, sig, args):
        p, e, out = (_array(context, builder, sig, args, i) for i in (1, 5, 6))
        value = _splat(builder, args[0], _COSTS)
        worst = ir.Constant(_COSTS, [3e38] * _LANES)
        least = cgutils.alloca_once_value(builder, worst)
        nearest = cgutils.alloca_once(builder, _COSTS)
        blocks = builder.udiv(args[3], _I64(_LANES))
        with cgutils.for_range(builder, blocks) as block:
            c = builder.mul(block.index, _I64(_LANES))
            builder.store(worst, nearest)
            with cgutils.for_range(builder, args[2]) as free:
                at = builder.add(builder.mul(free.index, args[3]), c)
                d = builder.fsub(value, builder.load(_place(builder, p, at, _COSTS), align=4))
                builder.store(_lesser(builder, builder.load(nearest), builder.fmul(d, d)), nearest)
            here = builder.load(nearest)
            builder.store(here, _place(builder, e, c, _COSTS), align=4)
            builder.store(_lesser(builder, builder.load(least), here), least)
        lanes = builder.load(least)
        step = _LANES
        while step > 1:
            step //= 2
            order = ir.Constant(ir.VectorType(_I32, _LANES), [i ^ step for i in range(_LANES)])
            lanes = _lesser(builder, lanes, builder.shuffle_vector(lanes, lanes, order))
        factor = _splat(builder, args[4], _COSTS)
        top = ir.Constant(_COSTS, [float(_TOP)] * _LANES)
        with cgutils.for_range(builder, blocks) as block:
            c = builder.mul(block.index, _I64(_LANES))
            over = builder.fsub(builder.load(_place(builder, e, c, _COSTS), align=4), lanes)
            over = builder.fptosi(_lesser(builder, top, builder.fmul(over, factor)), ir.VectorType(_I32, _LANES))
            builder.store(builder.trunc(over, _METRICS), _place(builder, out, c, _METRICS), align=2)
        return context.get_dummy_value()

    return types.void(types.float32, points, types.int64, types.int64, types.float32, exact, cost), codegen


@intrinsic
def _arrange(typingctx, cost, sets, n_sets, out):
    """out[32 i + lane] = cost[sets[i] ^ lane], uint16, i < n_sets."""

    def codegen(context, builder, sig, args):
        source, bases, target = (_array(context, builder, sig, args, i) for i in (0, 1, 3))
        with cgutils.for_range(builder, args[2]) as loop:
            base = builder.load(builder.gep(bases, [loop.index]))
            lanes = builder.load(_place(builder, source, builder.and_(base, _I64(-_LANES)), _METRICS), align=2)
            step = 1
            while step < _LANES:
                order = ir.Constant(ir.VectorType(_I32, _LANES), [i ^ step for i in range(_LANES)])
                moved = builder.shuffle_vector(lanes, lanes, order)
                moves = builder.icmp_unsigned("!=", builder.and_(base, _I64(step)), _I64(0))
                lanes = builder.select(moves, moved, lanes)
                step *= 2
            place = _place(builder, target, builder.mul(loop.index, _I64(_LANES)), _METRICS)
            builder.store(lanes, place, align=2)
        return context.get_dummy_value()

    return types.void(cost, sets, types.int64, out), codegen


def _add_compare_select(k):
    """One step of the search, for k coded bits."""
    ways = 1 << k

    @intrinsic
    def step(typingctx, old, new, cost, set_of, chosen, at, n_blocks, lower):
        """new[s'] = min over h of old[h · n + (s' >> k)] − lower + cost[32 · set_of[s' >> 5] + (s' & 31)], saturating.

        n = 32 · n_blocks = 2^(L−k).

        chosen[at …]: 2^k − 1 words of 32 bits for each of n_blocks, the knock-out that found h: pairs first, a set bit
        means that the second was less. Returns the least metric before the costs were added.
        """

        def codegen(context, builder, sig, args):
            source, target, costs, sets, words = (_array(context, builder, sig, args, i) for i in range(5))
            n = builder.mul(args[6], _I64(_LANES))
            lower = _splat(builder, args[7], _METRICS)
            least = cgutils.alloca_once_value(builder, ir.Constant(_METRICS, [_TOP] * _LANES))
            with cgutils.for_range(builder, args[6]) as block:
                q = builder.mul(block.index, _I64(_LANES))
                row = [builder.load(_place(builder, source, builder.add(q, builder.mul(n, _I64(h))), _METRICS), align=2)
                       for h in range(ways)]  # fmt: skip
                word = builder.add(args[5], builder.mul(block.index, _I64(ways - 1)))
                while len(row) > 1:
                    winners = []
                    for a, b in zip(row[::2], row[1::2], strict=True):
                        bits = builder.bitcast(builder.icmp_unsigned("<", b, a), _I32)
                        builder.store(bits, builder.gep(words, [word]), align=4)
                        word = builder.add(word, _I64(1))
                        winners.append(_metric_op(builder, "umin", a, b))
                    row = winners
                best = _metric_op(builder, "usub.sat", row[0], lower)
                builder.store(_metric_op(builder, "umin", builder.load(least), best), least)
                for part in range(ways):
                    order = [(part * _LANES + i) >> k for i in range(_LANES)]
                    copies = builder.shuffle_vector(best, best, ir.Constant(ir.VectorType(_I32, _LANES), order))
                    to = builder.add(builder.mul(block.index, _I64(ways)), _I64(part))
                    which = builder.zext(builder.load(builder.gep(sets, [to])), _I64)
                    added = builder.load(_place(builder, costs, builder.mul(which, _I64(_LANES)), _METRICS), align=2)
                    place = _place(builder, target, builder.mul(to, _I64(_LANES)), _METRICS)
                    builder.store(_metric_op(builder, "uadd.sat", copies, added), place, align=2)
            reduce = ir.FunctionType(_I16, [_METRICS])
            name = f"llvm.vector.reduce.umin.v{_LANES}i16"
            return builder.call(cgutils.get_or_insert_function(builder.module, reduce, name), [builder.load(least)])

        kinds = (types.int64, types.int64, types.uint16)
        return types.uint16(old, new, cost, set_of, chosen, *kinds), codegen

    return step


_step1, _step2 = _add_compare_select(1), _add_compare_select(2)


# --- Search ------------------------------------------------------------------------------------------------------------
class _Room(NamedTuple):
    """What a thread works in. metrics: (2, 2^L) uint16; exact: (C,) float32; cost: (C,) uint16; arranged: (sets, 32) uint16;
    chosen: (steps, words of a step) uint32; coded: (steps,) uint8."""

    metrics: np.ndarray
    exact: np.ndarray
    cost: np.ndarray
    arranged: np.ndarray
    chosen: np.ndarray
    coded: np.ndarray


@njit(cache=True, nogil=True)
def _forward(x, first, n, trellis, points, scale, room):
    """n steps from x[first], round the circle, from the metrics in room.metrics[0]. Returns those behind the last step."""
    size, period = x.shape[0], trellis.shifts.shape[0]
    n_free, n_classes = points.shape
    levels, chosen, row = points.reshape(-1), room.chosen.reshape(-1), room.chosen.shape[1]
    old, new, arranged = room.metrics[0], room.metrics[1], room.arranged.reshape(-1)
    n_blocks = old.shape[0] // 32
    lower = np.uint16(0)
    i = first
    for t in range(n):
        _branch_costs(x[i], levels, n_free, n_classes, scale, room.exact, room.cost)
        _arrange(room.cost, trellis.sets, trellis.sets.shape[0], arranged)
        if trellis.shifts[i % period] == 1:
            lower = _step1(old, new, arranged, trellis.set_of, chosen, t * row, n_blocks >> 1, lower)
        else:
            lower = _step2(old, new, arranged, trellis.set_of, chosen, t * row, n_blocks >> 2, lower)
        old, new = new, old
        i += 1
        if i == size:
            i = 0
    return old


@njit(cache=True, nogil=True)
def _back(s, k, memory, chosen):
    """The state before s. chosen: the words of the step."""
    q = s >> k
    block, lane = q >> 5, q & 31
    if k == 1:
        h = np.int64(chosen[block] >> lane) & 1
    else:
        h = np.int64(chosen[3 * block + 2] >> lane) & 1
        h = 2 * h + (np.int64(chosen[3 * block + h] >> lane) & 1)
    return (h << (memory - k)) | q


@njit(cache=True, nogil=True)
def _encode(x, bounds, trellis, points, scale, around, room, out):
    """Blocks bounds[i] … bounds[i + 1] of x to symbols. `around`: steps on each side of the seam, a multiple of P."""
    memory, free, shifts, base = trellis.memory, trellis.free, trellis.shifts, trellis.base
    period = shifts.shape[0]
    for b in range(bounds.shape[0] - 1):
        block = x[bounds[b] : bounds[b + 1]]
        n = block.shape[0]
        room.metrics[0, :] = 0
        s = np.int64(np.argmin(_forward(block, -around % n, 2 * around, trellis, points, scale, room)))
        for t in range(2 * around - 1, around - 1, -1):
            s = _back(s, shifts[t % period], memory, room.chosen[t])
        seam = s
        room.metrics[0, :] = _TOP
        room.metrics[0, seam] = 0
        _forward(block, 0, n, trellis, points, scale, room)
        for t in range(n - 1, -1, -1):
            k = shifts[t % period]
            room.coded[t] = s & ((1 << k) - 1)
            s = _back(s, k, memory, room.chosen[t])
        # The decoder starts from the last L coded bits, which are `seam`, whether or not the path led back to it.
        s = seam
        symbol, at, to = np.int64(0), 0, bounds[b] // period
        for t in range(n):
            k, c = shifts[t % period], np.int64(room.coded[t])
            s = ((s << k) | c) & ((1 << memory) - 1)
            point = base[s >> 5] ^ (s & 31)
            near, least = 0, np.float32(np.inf)
            for j in range(points.shape[0]):
                d = block[t] - points[j, point]
                d *= d
                if d < least:
                    near, least = j, d
            symbol |= (near << k | c) << at
            at += k + free
            if t % period == period - 1:
                out[to] = symbol
                symbol, at, to = np.int64(0), 0, to + 1


@njit(cache=True, nogil=True)
def _decode(index, bounds, trellis, points, out):
    """Symbols of the blocks to values. Whatever the symbols are, nothing beyond the tables is read."""
    free, shifts, base = trellis.free, trellis.shifts, trellis.base
    period = shifts.shape[0]
    states, last_free, n_classes = (1 << trellis.memory) - 1, points.shape[0] - 1, points.shape[1]
    levels = points.reshape(-1)
    symbols_of_state = (trellis.memory + shifts.sum() - 1) // shifts.sum()
    for b in range(bounds.shape[0] - 1):
        first, end = bounds[b] // period, bounds[b + 1] // period
        s = np.int64(0)
        for i in range(max(first, end - symbols_of_state), end):
            symbol = np.int64(index[i])
            for p in range(period):
                k = shifts[p]
                s = ((s << k) | (symbol & ((1 << k) - 1))) & states
                symbol >>= k + free
        for i in range(first, end):
            symbol = np.int64(index[i])
            for p in range(period):
                k = shifts[p]
                s = ((s << k) | (symbol & ((1 << k) - 1))) & states
                j = (symbol >> k) & last_free
                out[i * period + p] = levels[j * n_classes + (base[s >> 5] ^ (s & 31))]
                symbol >>= k + free


def _aligned(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """An uninitialised array whose vectors do not straddle cache lines."""
    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(n_bytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + n_bytes].view(dtype).reshape(shape)


def _check(trellis: Code, points: np.ndarray, bounds: np.ndarray, error: type[CodecError]) -> None:
    right = (1 << trellis.free, len(trellis.fraction))
    if points.shape != right or points.dtype != np.float32:
        raise BadConfig(f"points are {points.dtype}{points.shape}; float32{right} is right")
    sizes = np.diff(bounds)
    if bounds[0] != 0 or np.any(sizes < trellis.least()) or np.any(sizes % trellis.period):
        right_sizes = f"at least {trellis.least()} in multiples of {trellis.period}"
        raise error(f"blocks of {', '.join(map(str, np.unique(sizes)[:4]))} values; {right_sizes} are right")


def _around(trellis: Code) -> int:
    return trellis.period * -(-_MEMORY * trellis.memory // int(trellis.shifts.sum()))


def _scale(trellis: Code) -> np.float32:
    return np.float32(_TOP / _SPAN * 4.0**trellis.bits)


def encode(x: np.ndarray, bounds: np.ndarray, trellis: Code, points: np.ndarray, threads: int = 1) -> np.ndarray:
    """Symbols of the best tail-biting path of each block, uint16 (n / P,).

    x: (n,) float32, finite. bounds: (blocks + 1,) int64 from 0 to n, multiples of P; a block has trellis.least() values
    or more. points: (2^u, C) float32, for values of variance about 1. The result does not depend on `threads`.
    Memory: 2^L · (longest block) / 16 bytes a thread, half as much again where the pattern has a 2.
    """
    x, points, bounds = np.ascontiguousarray(x), np.ascontiguousarray(points), np.asarray(bounds, np.int64)
    _check(trellis, points, bounds, BadInput)
    if x.dtype != np.float32 or x.shape != (bounds[-1],):
        raise BadInput(f"values are {x.dtype}{x.shape}; float32({bounds[-1]},) is right")
    out = np.empty(len(x) // trellis.period, np.uint16)
    around = _around(trellis)
    steps = max(2 * around, int(np.diff(bounds).max(initial=0)))
    n_classes, k = points.shape[1], int(trellis.shifts.max())
    words = ((1 << k) - 1 << trellis.memory - k) // _LANES

    def run(part: np.ndarray) -> None:
        room = _Room(
            metrics=_aligned((2, 1 << trellis.memory), np.uint16),
            exact=_aligned((n_classes,), np.float32),
            cost=_aligned((n_classes,), np.uint16),
            arranged=_aligned((len(trellis.sets), _LANES), np.uint16),
            chosen=_aligned((steps, words), np.uint32),
            coded=np.empty(steps, np.uint8),
        )
        _encode(x, part, trellis, points, _scale(trellis), around, room, out)

    n_blocks = len(bounds) - 1
    threads = max(1, min(threads, n_blocks))
    if threads == 1:
        run(bounds)
    else:
        cuts = np.arange(threads + 1) * n_blocks // threads
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, [bounds[a : b + 1] for a, b in zip(cuts[:-1], cuts[1:], strict=True)]))
    return out


def decode(index: np.ndarray, bounds: np.ndarray, trellis: Code, points: np.ndarray) -> np.ndarray:
    """Values of symbols, float32 (n,). index: (n / P,) unsigned or int64; bounds, points: as `encode` had them.

    Raises CorruptStream: blocks that `encode` cannot have made, or a symbol beyond the alphabet.
    """
    points, bounds = np.ascontiguousarray(points), np.asarray(bounds, np.int64)
    _check(trellis, points, bounds, CorruptStream)
    if index.shape != (bounds[-1] // trellis.period,):
        raise CorruptStream(f"{index.shape} symbols for {bounds[-1]} values; {bounds[-1] // trellis.period} are right")
    if index.size and (int(index.min()) < 0 or int(index.max()) >> trellis.symbol_bits):
        raise CorruptStream(f"symbols from {index.min()} to {index.max()} in an alphabet of {1 << trellis.symbol_bits}")
    out = np.empty(bounds[-1], np.float32)
    _decode(np.ascontiguousarray(index), bounds, trellis, points, out)
    return out


# --- The same in NumPy -------------------------------------------------------------------------------------------------
def _search_plain(x, start, first, n, trellis, points):
    """Metrics behind n steps from x[first], and per step the winner h of every s' >> k."""
    states, period = 1 << trellis.memory, trellis.period
    s = np.arange(states)
    classes = trellis.base[s >> 5] ^ (s & 31)
    metrics = np.zeros(states, np.int64) if start < 0 else np.where(s == start, 0, _TOP)
    lower, winners = 0, []
    for t in range(first, first + n):
        d = x[t % len(x)] - points
        exact = (d * d).min(axis=0)
        cost = np.minimum((exact - exact.min()) * _scale(trellis), np.float32(_TOP)).astype(np.int64)
        k = trellis.shifts[t % len(x) % period]
        rows = metrics.reshape(1 << k, -1)
        winners.append(rows.argmin(axis=0))
        best = np.maximum(rows.min(axis=0) - lower, 0)
        lower = best.min()
        metrics = np.minimum(np.repeat(best, 1 << k) + cost[classes], _TOP)
    return metrics, winners


def encode_plain(x: np.ndarray, bounds: np.ndarray, trellis: Code, points: np.ndarray) -> np.ndarray:
    """`encode` in NumPy, with 8 bytes for each state and step."""
    out = []
    for low, high in zip(bounds[:-1], bounds[1:], strict=True):
        block, n = x[low:high], high - low
        around = _around(trellis)
        metrics, winners = _search_plain(block, -1, -around % n, 2 * around, trellis, points)
        s = int(metrics.argmin())
        steps = [int(trellis.shifts[t % trellis.period]) for t in range(max(n, 2 * around))]
        for t in range(2 * around - 1, around - 1, -1):
            q = s >> steps[t]
            s = int(winners[t][q]) << (trellis.memory - steps[t]) | q
        seam = s
        _, winners = _search_plain(block, seam, 0, n, trellis, points)
        coded = []
        for t in range(n - 1, -1, -1):
            coded.append(s & ((1 << steps[t]) - 1))
            q = s >> steps[t]
            s = int(winners[t][q]) << (trellis.memory - steps[t]) | q
        s = seam
        for i in range(0, n, trellis.period):
            symbol, at = 0, 0
            for t in range(i, i + trellis.period):
                c = coded[n - 1 - t]
                s = (s << steps[t] | c) & ((1 << trellis.memory) - 1)
                d = block[t] - points[:, trellis.base[s >> 5] ^ (s & 31)]
                symbol |= (int((d * d).argmin()) << steps[t] | c) << at
                at += steps[t] + trellis.free
            out.append(symbol)
    return np.array(out, np.uint16)


def decode_plain(index: np.ndarray, bounds: np.ndarray, trellis: Code, points: np.ndarray) -> np.ndarray:
    """`decode` from windows of L bits of each block's coded bits, laid in a ring; any value can be read by itself."""
    at = np.cumsum(trellis.shifts + trellis.free) - trellis.shifts - trellis.free
    steps = index.astype(np.int64)[:, None] >> at
    coded = steps & ((1 << trellis.shifts) - 1)
    free = (steps >> trellis.shifts) & ((1 << trellis.free) - 1)
    out = []
    for low, high in zip(bounds[:-1] // trellis.period, bounds[1:] // trellis.period, strict=True):
        shifts = np.tile(trellis.shifts, high - low)
        c = coded[low:high].reshape(-1)
        ring = np.array([bit >> i & 1 for bit, k in zip(c, shifts, strict=True) for i in range(k - 1, -1, -1)])
        ends = np.cumsum(shifts)
        s = sum(ring[(ends - 1 - i) % len(ring)] << i for i in range(trellis.memory))
        out.append(points[free[low:high].reshape(-1), trellis.base[s >> 5] ^ (s & 31)])
    return np.concatenate(out) if out else np.empty(0, np.float32)
