"""Integer pmfs: from counts, from distribution functions in fixed point, and compactly on the wire.

Everything here that a table depends on is integer arithmetic, because encoder and decoder build tables each for itself.
"""

from functools import lru_cache
from math import isqrt
from typing import NamedTuple

import numpy as np
from numba import njit

from laconic.core.errors import BadConfig, BadInput, CorruptStream
from laconic.kernels import rangecoder as rc
from laconic.kernels.bits import load64, store64
from laconic.kernels.rans import Tables, tables

__all__ = [
    "DISTRIBUTIONS",
    "MEAN_UNIT",
    "N_SCALES",
    "Located",
    "Placed",
    "check_scale",
    "cost_bits",
    "count_escapes",
    "histogram",
    "locate",
    "located",
    "located_tables",
    "normalize",
    "read_pmf",
    "scale_index",
    "substitute",
    "unlocate",
    "write_pmf",
]


@njit(cache=True, nogil=True)
def _normalize(counts, precision, freq):
    one, total, n_present, shift = 1 << precision, 0, 0, 0
    for c in counts:
        total += c
        n_present += c > 0
    while total >> shift >= 1 << 31:  # so that no product below passes 2^62
        shift += 1
    total = 0
    for i in range(counts.shape[0]):
        freq[i] = max(counts[i] >> shift, 1) if counts[i] > 0 else 0
        total += freq[i]
    # Every symbol present gets one slot; what it expects beyond that is scaled to the slots that are left.
    beyond = 0
    for f in freq:
        beyond += max((f << precision) - total, 0)
    spare = left = one - n_present
    rest = np.zeros(counts.shape[0], np.int64)
    for i in range(counts.shape[0]):
        if freq[i] > 0:
            share = max((freq[i] << precision) - total, 0) * spare
            whole = share // max(beyond, 1)
            rest[i] = share - whole * beyond
            freq[i] = 1 + whole
            left -= whole
    order = np.argsort(-rest, kind="mergesort")  # largest remainders first; ties in the order of the symbols
    for i in order[:left]:
        freq[i] += 1


def normalize(counts: np.ndarray, precision: int) -> np.ndarray:
    """Frequencies with the exact total 2^precision, at least 1 where the count is: int64, shape of `counts`.

    counts: (alphabet,) integers ≥ 0 with a sum below 2^62, at least one and at most 2^precision of them positive.
    """
    counts = np.ascontiguousarray(counts, np.int64)
    n_present = int(np.count_nonzero(counts))
    if not 1 <= n_present <= 1 << precision or counts.min() < 0:
        raise BadConfig(f"{n_present} symbols with a count; 1 to {1 << precision} have room in {precision} bits")
    freq = np.empty(counts.size, np.int64)
    _normalize(counts, precision, freq)
    return freq


@njit(cache=True, nogil=True)
def _histogram(index, counts):
    """Four counters a symbol, since one that is counted twice in a row would wait for itself."""
    n = index.shape[0] // 4 * 4
    for i in range(0, n, 4):
        counts[0, index[i]] += 1
        counts[1, index[i + 1]] += 1
        counts[2, index[i + 2]] += 1
        counts[3, index[i + 3]] += 1
    for i in range(n, index.shape[0]):
        counts[0, index[i]] += 1


@njit(cache=True, nogil=True)
def _histograms(index, table, counts):
    for i in range(index.shape[0]):
        counts[table[i], index[i]] += 1


def histogram(index: np.ndarray, alphabet: int, table: np.ndarray | None = None, n_tables: int = 1) -> np.ndarray:
    """How often each symbol occurs in each table: int64, shape (n_tables, alphabet).

    index: (n,) unsigned, below `alphabet`. table: (n,) unsigned, below `n_tables`, or None. Both checked by the caller.
    """
    if table is not None:
        counts = np.zeros((n_tables, alphabet), np.int64)
        _histograms(index, table, counts)
        return counts
    counts = np.zeros((4, alphabet), np.int64)
    _histogram(index, counts)
    return counts.sum(axis=0, keepdims=True)


@njit(cache=True, nogil=True)
def _substitute(index, table, missing, symbol, rare):
    n_rare, escape = 0, missing.shape[1]
    for i in range(index.shape[0]):
        symbol[i] = index[i]
        if missing[0 if table is None else table[i], index[i]]:
            symbol[i] = escape
            rare[n_rare] = index[i]
            n_rare += 1
    return n_rare


def substitute(index: np.ndarray, table: np.ndarray | None, missing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symbols with those that are missing replaced by the number of the alphabet: ((n,) uint16, the missing uint16).

    index, table: as of `histogram`. missing: (n_tables, alphabet) bool.
    """
    symbol, rare = np.empty(index.size, np.uint16), np.empty(index.size, np.uint16)
    return symbol, rare[: _substitute(index, table, missing, symbol, rare)]


def cost_bits(counts: np.ndarray, freq: np.ndarray, precision: int) -> float:
    """Ideal code length of symbols with these counts under a pmf, in bits. For decisions of an encoder only."""
    used = counts > 0
    return float(counts[used] @ (precision - np.log2(freq[used]))) if used.any() else 0.0


# A pmf on the wire: per symbol the bit length of its frequency, as the difference from the one before in adaptive
# unary steps, then the highest `n_top` bits below the leading one. The reader takes the middle of what is missing and
# normalizes.
_LENGTHS = 16


@njit(cache=True, nogil=True)
def _length(f):
    length = 0
    while f >> length:
        length += 1
    return length


@njit(cache=True, nogil=True)
def _coarse(f, n_top):
    drop = max(_length(f) - 1 - n_top, 0)
    return (f >> drop << drop) + ((1 << drop) >> 1)


@njit(cache=True, nogil=True)
def _write_pmf(freq, n_top, out):
    low, width, at = rc.ENCODER
    model = np.full((3, 2 * _LENGTHS), rc.FRESH, np.uint32)
    before, context = 0, 0
    for f in freq:
        length = _length(f)
        # The difference in zigzag, so that "the same" is the first decision; its length is the context of the next one.
        step = 2 * (before - length) - 1 if length < before else 2 * (length - before)
        for j in range(step):
            state = model[context, j]
            low, width, at = rc.encode_bit(low, width, at, out, rc.probability(state), 16, 1)
            model[context, j] = rc.adapt(state, 1, 30)
        state = model[context, step]
        low, width, at = rc.encode_bit(low, width, at, out, rc.probability(state), 16, 0)
        model[context, step] = rc.adapt(state, 0, 30)
        context = min((step + 1) >> 1, 2)
        before = length
        n = min(length - 1, n_top)
        if n > 0:
            low, width, at = rc.encode_bits(low, width, at, out, f >> (length - 1 - n), n)
    return rc.finish(low, width, at, out)


@njit(cache=True, nogil=True)
def _read_pmf(data, n_top, freq):
    code, width, at = rc.start(data)
    model = np.full((3, 2 * _LENGTHS), rc.FRESH, np.uint32)
    before, context = 0, 0
    for i in range(freq.shape[0]):
        step, bit = 0, 1
        while True:
            state = model[context, step]
            bit, code, width, at = rc.decode_bit(code, width, at, data, rc.probability(state), 16)
            model[context, step] = rc.adapt(state, bit, 30)
            if bit == 0 or step == 2 * _LENGTHS - 1:
                break
            step += 1
        context = min((step + 1) >> 1, 2)
        length = before - ((step + 1) >> 1) if step & 1 else before + (step >> 1)
        if length < 0 or length > _LENGTHS - 1:
            return False
        before = length
        freq[i] = 0
        if length > 0:
            n = min(length - 1, n_top)
            top, code, width, at = rc.decode_bits(code, width, at, data, n)
            drop = length - 1 - n
            freq[i] = ((1 << n | top) << drop) + ((1 << drop) >> 1)
    return rc.ended(code, width, at, data)


def write_pmf(counts: np.ndarray, precision: int) -> tuple[np.ndarray, np.ndarray]:
    """The cheapest description of counts: (frequencies as the reader will see them, uint8 bytes).

    Bits of the description and bits of the symbols under the pmf it stands for are weighed against each other.
    Side: one byte with how many bits of each frequency are kept, then the code.
    """
    exact = normalize(counts, precision)
    least = np.inf
    for n_top in range(precision):
        code = rc.with_room(counts.size + 64, lambda out, n_top=n_top: _write_pmf(exact, n_top, out))
        freq = normalize(np.array([_coarse(f, n_top) for f in exact], np.int64), precision)
        cost = 8 * code.size + cost_bits(counts, freq, precision)
        if cost >= least:
            break
        least, kept, data = cost, freq, np.concatenate([np.array([n_top], np.uint8), code])
    return kept, data


def read_pmf(data: np.ndarray, alphabet: int, precision: int) -> np.ndarray:
    """The frequencies of `write_pmf`: int64, shape (alphabet,).

    Raises CorruptStream: the bytes are no pmf of this alphabet, or go on behind it.
    """
    freq = np.empty(alphabet, np.int64)
    if data.size < 1 or data[0] >= precision or not _read_pmf(np.array(data[1:]), int(data[0]), freq):
        raise CorruptStream(f"{data.size} bytes are no pmf of {alphabet} symbols")
    n_present = int(np.count_nonzero(freq))
    if not 1 <= n_present <= 1 << precision:
        raise CorruptStream(f"a pmf of {alphabet} symbols with {n_present} that can occur")
    return normalize(freq, precision)


# Distributions with a location and a scale. Scales are 2^(s/8 − 3), s = 0 … 127, and means come in 1/32.
#
#   scale      means that have a table of their own
#   < 1/2      32 to an integer          A table is off by up to half a step of mean and of scale, which costs
#   1/2 … 2    16                        about .002 bits a symbol: .1 % where symbols take two bits.
#   2 … 8      4
#   8 … 16     1
#   ≥ 16       the tables of 8 … 16 on multiples of 2^k; the k lowest bits are sent as they are
MEAN_UNIT = 32
N_SCALES = 128
_PER_OCTAVE = 8
_PRECISION = 14
_MEANS_16, _MEANS_4, _MEANS_1, _FOLDED = (k * _PER_OCTAVE for k in (2, 4, 6, 7))  # first scale index of each kind
_GRID = 256  # points of a distribution function per unit
_REACH = 14  # units it is tabulated for
_ONE = 1 << 40  # its 1
_STEP_BITS = 28  # fraction bits of a reciprocal scale


def _exp_grid(n: int, power: int) -> list[int]:
    """2^64 · exp(−x^power / power) at x = i / (2 · GRID), i = 0 … n − 1, in integers; power 1 or 2.

    By recurrence: v_{i+1} = v_i r_i and r_{i+1} = r_i b, where b = 1 for power 1 and r_0² for power 2.
    """
    one = 1 << 128
    inverse = (2 * _GRID) ** power * power  # r_0 = exp(−1 / inverse), by its series
    ratio = term = one
    k = 0
    while term:
        k += 1
        term //= k * inverse
        ratio += -term if k % 2 else term
    bend = one if power == 1 else ratio * ratio // one
    values, value = [], one
    for _ in range(n):
        values.append(value >> 64)
        value = value * ratio // one
        ratio = ratio * bend // one
    return values


@lru_cache
def _cdf(name: str) -> np.ndarray:
    """The distribution function of unit scale at x = i / GRID ≥ 0, times 2^40: int64, (REACH · GRID + 1,)."""
    n = _REACH * _GRID
    if name == "laplace":
        e = _exp_grid(2 * n + 1, 1)
        return np.array([_ONE - (v >> 25) for v in e[::2]], np.int64)
    # Simpson's rule over half steps; the density's constant is what makes the integral one half.
    e = _exp_grid(2 * n + 1, 2)
    sums = [0]
    for i in range(n):
        sums.append(sums[-1] + e[2 * i] + 4 * e[2 * i + 1] + e[2 * i + 2])
    return np.array([(_ONE >> 1) + (_ONE >> 1) * s // sums[-1] for s in sums], np.int64)


DISTRIBUTIONS = ("gaussian", "laplace")


def _scale_fixed(s: int) -> int:
    """1 / scale of index `s`, with 28 fraction bits: the integer nearest below 2^(28 + 3 − s/8)."""
    # 2^(−j/8) as nested integer square roots of 2^(8m − j).
    value, rest = divmod(s, _PER_OCTAVE)
    root = 1 << (8 * (_STEP_BITS + 3 + 16) - rest)
    for _ in range(3):
        root = isqrt(root)
    return root >> (16 + value)


class Located(NamedTuple):
    """Tables of a distribution for every scale and sub-integer mean.

    first: (N_SCALES,) uint16, the table of mean 0.
    lowest: (n_tables,) int32, the residual that is symbol 0 of a table; the last symbol is the escape.
    """

    tables: Tables
    first: np.ndarray
    lowest: np.ndarray


@lru_cache
def located(name: str) -> Located:
    """All tables of "gaussian" or "laplace"; a few thousand pmf entries."""
    cdf = _cdf(name)
    freqs, sizes, lowest, first = [], [], [], np.empty(N_SCALES, np.uint16)
    for s in range(N_SCALES):
        if s >= _FOLDED:
            first[s] = first[s - _PER_OCTAVE]
            continue
        first[s] = len(sizes)
        inverse = _scale_fixed(s)
        n_means = 32 if s < _MEANS_16 else 16 if s < _MEANS_4 else 4 if s < _MEANS_1 else 1
        reach = ((_REACH << (_STEP_BITS + 3)) // inverse >> 3) + 2
        for m in range(n_means):
            # Edges r − 1/2 − mean of residuals r in units of 1/32; over the scale they are points of the grid.
            edges = 32 * np.arange(-reach, reach + 2, dtype=np.int64) - 16 - m * (32 // n_means)
            x = np.abs(edges) * inverse  # 5 + STEP_BITS fraction bits, below 2^45
            shift = 5 + _STEP_BITS - 8
            i = np.minimum(x >> shift, cdf.size - 2)
            t = np.where(x >> shift < cdf.size - 1, (x & ((1 << shift) - 1)) >> (shift - 16), 1 << 16)
            value = cdf[i] + ((cdf[i + 1] - cdf[i]) * t >> 16)
            mass = np.diff(np.where(edges < 0, _ONE - value, value))
            inside = np.flatnonzero(mass >= _ONE >> (_PRECISION + 1))
            low, high = inside[0], inside[-1] + 1
            counts = np.append(mass[low:high], max(_ONE - int(mass[low:high].sum()), 1))
            freqs.append(normalize(counts, _PRECISION))
            sizes.append(counts.size)
            lowest.append(low - reach)
    flat = tables(np.concatenate(freqs), np.array(sizes), _PRECISION, lookup_bits=7)
    return Located(flat, first, np.array(lowest, np.int32))


# Per scale index, so that the loops over symbols need no branches: a mean is rounded by `_ADD` and `_DROP` to the means
# that the scale has tables for, and split into the offset of the table (`_MEAN_BITS` of it) and an integer.
_S = np.arange(N_SCALES)
_MEAN_BITS = np.select([_S < _MEANS_16, _S < _MEANS_4, _S < _MEANS_1], [5, 4, 2], 0)
_N_LOW = np.maximum((_S - _FOLDED) // _PER_OCTAVE + 1, 0)
_DROP = 5 - _MEAN_BITS
# The middle of 2^k integers lies half-way between two of them: the mean is rounded down, and up by 1 − 2^(k−1) in all.
_ADD = np.where(_N_LOW > 0, 0, (1 << _DROP) >> 1)
_OFFSET = np.where(_N_LOW > 0, 1 - ((1 << _N_LOW) >> 1), 0)


@njit(cache=True, nogil=True, forceinline=True, _nrt=False)
def _place(s, mean):
    """(offset of the table of a mean from that of mean 0, what to subtract from a symbol)."""
    mean = (mean + _ADD[s]) >> _DROP[s]
    return mean & ((1 << _MEAN_BITS[s]) - 1), (mean >> _MEAN_BITS[s]) + _OFFSET[s]


@njit(cache=True, nogil=True)
def _locate(y, scale, mean, first, lowest, begin, table, symbol, escaped, low_bits):
    """Returns (number of escaped symbols, number of low bits). `low_bits` has 8 bytes more than it needs."""
    n_escaped, word, fill, at = 0, np.uint64(0), 0, 0
    for i in range(y.shape[0]):
        s = np.int64(scale[i])
        offset, base = _place(s, 0 if mean is None else np.int64(mean[i]))
        n_low = _N_LOW[s]
        t = np.int64(first[s]) + offset
        r = np.int64(np.int32(np.int64(y[i]) - base))
        word |= np.uint64(r & ((1 << n_low) - 1)) << np.uint64(fill)
        store64(low_bits, at, word)
        fill += n_low
        at += fill >> 3
        word >>= np.uint64(fill & 24)
        fill &= 7
        r = (r >> n_low) - lowest[t]
        escape = np.int64(begin[t + 1]) - np.int64(begin[t]) - 1
        table[i] = t
        symbol[i] = r
        if r < 0 or r >= escape:
            symbol[i] = escape
            escaped[n_escaped] = r if r < 0 else r - escape
            n_escaped += 1
    return n_escaped, 8 * at + fill


@njit(cache=True, nogil=True)
def _tables_of(scale, mean, first, table):
    """Fills `table`; returns the number of low bits."""
    n_low_bits = 0
    for i in range(scale.shape[0]):
        s = np.int64(scale[i])
        offset, _ = _place(s, 0 if mean is None else np.int64(mean[i]))
        table[i] = np.int64(first[s]) + offset
        n_low_bits += _N_LOW[s]
    return n_low_bits


@njit(cache=True, nogil=True)
def _unlocate(symbol, table, scale, mean, lowest, begin, escaped, low_bits, y):
    """Fills `y`. There is an entry of `escaped` for every escape, and `low_bits` has 8 bytes more than it needs."""
    n_escaped, at = 0, 0
    for i in range(symbol.shape[0]):
        s, t = np.int64(scale[i]), np.int64(table[i])
        _, base = _place(s, 0 if mean is None else np.int64(mean[i]))
        n_low = _N_LOW[s]
        escape = np.int64(begin[t + 1]) - np.int64(begin[t]) - 1
        r = np.int64(symbol[i])
        if r == escape:
            r = np.int64(escaped[n_escaped])
            r = r if r < 0 else r + escape
            n_escaped += 1
        low = np.int64(load64(low_bits, at >> 3) >> np.uint64(at & 7)) & ((1 << n_low) - 1)
        at += n_low
        y[i] = np.int32(((r + lowest[t]) << n_low | low) + base)


@njit(cache=True, nogil=True)
def _count_escapes(symbol, table, begin):
    n = 0
    for i in range(symbol.shape[0]):
        t = np.int64(table[i])
        n += np.int64(symbol[i]) == np.int64(begin[t + 1]) - np.int64(begin[t]) - 1
    return n


def scale_index(scale: np.ndarray) -> np.ndarray:
    """The index of the nearest scale (on a logarithmic axis) to positive floats: uint8. For the side that measures."""
    s = np.round((np.log2(np.maximum(scale, 1e-30)) + 3) * _PER_OCTAVE)
    return np.clip(s, 0, N_SCALES - 1).astype(np.uint8)


class Placed(NamedTuple):
    """Integers as a coder takes them.

    table, symbol: (n,) uint16. escaped: int32, one for every symbol outside its table. low_bits: uint8, packed.
    """

    table: np.ndarray
    symbol: np.ndarray
    escaped: np.ndarray
    low_bits: np.ndarray


def check_scale(scale: np.ndarray) -> np.ndarray:
    """Scale indices as uint8. Raises BadInput: one is below 0 or no less than N_SCALES."""
    if scale.size and not 0 <= int(scale.min()) <= int(scale.max()) < N_SCALES:
        raise BadInput(f"scale indices from {scale.min()} to {scale.max()}; 0 to {N_SCALES - 1} are known")
    return scale.astype(np.uint8)


def locate(y: np.ndarray, scale: np.ndarray, mean: np.ndarray | None, model: Located) -> Placed:
    """Integers relative to their tables.

    y: (n,) int32. scale: (n,) uint8 from `check_scale`. mean: (n,) integers in units of 1 / MEAN_UNIT, or None for 0.
    """
    table, symbol, escaped = np.empty(y.size, np.uint16), np.empty(y.size, np.uint16), np.empty(y.size, np.int32)
    low_bits = np.empty(y.size * int(_N_LOW[scale.max(initial=0)]) // 8 + 9, np.uint8)
    n_escaped, n_bits = _locate(
        y, scale, mean, model.first, model.lowest, model.tables.first, table, symbol, escaped, low_bits
    )
    return Placed(table, symbol, escaped[:n_escaped], low_bits[: (n_bits + 7) // 8])


def located_tables(scale: np.ndarray, mean: np.ndarray | None, model: Located) -> tuple[np.ndarray, int]:
    """What a decoder knows beforehand: (table of each symbol, length of the low bits in bytes)."""
    table = np.empty(scale.size, np.uint16)
    return table, (_tables_of(scale, mean, model.first, table) + 7) // 8


def count_escapes(symbol: np.ndarray, table: np.ndarray, model: Located) -> int:
    """How many symbols are the escape of their table."""
    return int(_count_escapes(symbol, table, model.tables.first))


def unlocate(placed: Placed, scale: np.ndarray, mean: np.ndarray | None, model: Located) -> np.ndarray:
    """The inverse of `locate`: (n,) int32.

    `table` is from `located_tables`, which also gives the length of `low_bits`; `escaped` has `count_escapes` entries.
    """
    if placed.escaped.size != count_escapes(placed.symbol, placed.table, model):
        raise CorruptStream(f"{placed.escaped.size} escaped values")
    y = np.empty(placed.symbol.size, np.int32)
    low_bits = np.concatenate([placed.low_bits, np.zeros(8, np.uint8)])
    _unlocate(placed.symbol, placed.table, scale, mean, model.lowest, model.tables.first, placed.escaped, low_bits, y)
    return y
