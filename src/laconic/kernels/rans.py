"""Interleaved rANS over integer pmfs: one table, or one of many for every symbol.

Coder: `n_lanes` states x of 32 bits in [2^16, 2^32), symbol i in lane i mod n_lanes; a state gives off or takes in one
16-bit word at most.

    encode  i = 0, 1, …   if x ≥ f·2^(32−p): emit x mod 2^16, x ← ⌊x / 2^16⌋;   x ← ⌊x / f⌋·2^p + c + x mod f
    decode  i = …, 1, 0   s: c_s ≤ x mod 2^p < c_s + f_s;   x ← f·⌊x / 2^p⌋ + x mod 2^p − c;
                          if x < 2^16: x ← x·2^16 + the last word not yet read

Words are written forward and read backward, so 16 lanes need no more than a compress (encoder) and an expand (decoder).
Every state starts at 2^16; a decoder that does not end with all of them there and all words read has damaged input.

Layout: words (uint16, little-endian), then the states (n_lanes × uint32).

All tables come from `tables`, which refuses what is no pmf; with that, no kernel here leaves its arrays on any data.

Source: J. Duda 2013 (1311.2540), range variant; F. Giesen 2014 (1402.3392), interleaving. Differs: symbols are encoded
first to last and decoded last to first; ⌊x / f⌋ comes from a float32 quotient corrected to the exact one.
"""

from functools import cache
from typing import NamedTuple

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils, config
from numba.extending import intrinsic, models, register_model

from laconic.core.errors import BadConfig, BadInput, CorruptStream, claim

__all__ = ["MAX_PRECISION", "MIN_PRECISION", "Tables", "decode", "encode", "lanes_for", "tables"]

MIN_PRECISION = 10
MAX_PRECISION = 14  # a state holds at least 2 bits more than a slot: .0006 bits a symbol are lost at 14, .009 at 16
_LOW = 1 << 16
_VECTOR = 16


class Tables(NamedTuple):
    """Integer pmfs, one behind the other, as the coder reads them.

    interval: (n_entries,) uint32, f << 16 | c of each symbol of each table.
    first: (n_tables + 1,) uint32, where each table begins in `interval`.
    lookup: (n_tables, 2^lookup_bits + 1) uint16, flat: the symbol that holds the first slot of each of 2^lookup_bits
        equal spans of slots, and the last symbol. With lookup_bits = precision this is the symbol itself; else it is
        found by bisection.
    """

    interval: np.ndarray
    first: np.ndarray
    lookup: np.ndarray
    precision: int
    lookup_bits: int


@njit(cache=True, nogil=True)
def _tables(freq, first, precision, lookup_bits, interval, lookup):
    """Fills `interval` and `lookup`; returns the first table whose frequencies do not sum to 2^precision, or −1."""
    span = 1 << (precision - lookup_bits)
    at = 0
    for t in range(first.shape[0] - 1):
        start = 0
        next_slot = 0
        for e in range(first[t], first[t + 1]):
            f = np.int64(freq[e])
            if f < 0 or start + f > 1 << precision:
                return t
            interval[e] = np.uint32(f << 16 | start)
            start += f
            while next_slot < start:
                lookup[at] = e - first[t]
                at += 1
                next_slot += span
        if start != 1 << precision:
            return t
        lookup[at] = first[t + 1] - first[t] - 1
        at += 1
    return -1


def tables(freq: np.ndarray, sizes: np.ndarray, precision: int, lookup_bits: int | None = None) -> Tables:
    """Tables of frequencies that sum to 2^precision each.

    freq: (Σ sizes,) integers ≥ 0; a symbol of frequency 0 cannot be coded. sizes: symbols a table, at most 2^16.
    """
    if not MIN_PRECISION <= precision <= MAX_PRECISION:
        raise BadConfig(f"precision {precision}; {MIN_PRECISION} to {MAX_PRECISION} bits are right")
    sizes = np.atleast_1d(sizes)
    lookup_bits = precision if lookup_bits is None else min(lookup_bits, precision)
    first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.uint32)
    if freq.ndim != 1 or first[-1] != freq.size or sizes.min(initial=1) < 1 or sizes.max(initial=1) > _LOW:
        raise BadConfig(f"{freq.size} frequencies for tables of {int(first[-1])} symbols")
    interval = np.empty(freq.size, np.uint32)
    lookup = np.empty(sizes.size * ((1 << lookup_bits) + 1), np.uint16)
    bad = _tables(np.ascontiguousarray(freq), first, precision, lookup_bits, interval, lookup)
    if bad >= 0:
        raise BadConfig(f"the frequencies of table {bad} are no pmf with total 2^{precision}")
    return Tables(interval, first, lookup, precision, lookup_bits)


# Vectors in Numba: a type for 16 values of 32 bits, one for 16 booleans, and the few operations the coder needs. All of
# it is generic LLVM, so that it is right on every machine; `_wide` says where it is also fast.
class _Vector(types.Type):
    def __init__(self, bits: int) -> None:
        super().__init__(name=f"Vector({bits}x{_VECTOR})")
        self.ir = ir.VectorType(ir.IntType(bits), _VECTOR)


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, fe_type):
        super().__init__(manager, fe_type, fe_type.ir)


_V, _MASK = _Vector(32), _Vector(1)
_HALF = ir.VectorType(ir.IntType(16), _VECTOR)
_I64 = ir.IntType(64)


def _splat(builder, value):
    word, undefined = builder.trunc(value, ir.IntType(32)), ir.Constant(_V.ir, ir.Undefined)
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), _VECTOR), [0] * _VECTOR)
    return builder.shuffle_vector(builder.insert_element(undefined, word, ir.IntType(32)(0)), undefined, lanes)


def _address(context, builder, array_type, array, at, element):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), element.as_pointer())


def _binary(emit, result):
    """An operation of two vectors, or of a vector and an integer that goes to every lane."""

    @intrinsic
    def operation(typingctx, x, y):
        def codegen(context, builder, sig, args):
            return emit(builder, *(a if t == _V else _splat(builder, a) for t, a in zip(sig.args, args, strict=True)))

        return result(*(t if t == _V else types.int64 for t in (x, y))), codegen

    return operation


_add = _binary(lambda b, x, y: b.add(x, y), _V)
_sub = _binary(lambda b, x, y: b.sub(x, y), _V)
_mul = _binary(lambda b, x, y: b.mul(x, y), _V)
_shl = _binary(lambda b, x, y: b.shl(x, y), _V)
_shr = _binary(lambda b, x, y: b.lshr(x, y), _V)
_and = _binary(lambda b, x, y: b.and_(x, y), _V)
_or = _binary(lambda b, x, y: b.or_(x, y), _V)
_less = _binary(lambda b, x, y: b.icmp_unsigned("<", x, y), _MASK)
_least = _binary(lambda b, x, y: b.icmp_unsigned(">=", x, y), _MASK)
_negative = _binary(lambda b, x, y: b.icmp_signed("<", x, y), _MASK)


@intrinsic
def _select(typingctx, mask, x, y):
    return _V(_MASK, _V, _V), lambda context, builder, sig, args: builder.select(*args)


@intrinsic
def _count(typingctx, mask):
    def codegen(context, builder, sig, args):
        return builder.zext(builder.ctpop(builder.bitcast(args[0], ir.IntType(_VECTOR))), _I64)

    return types.int64(_MASK), codegen


@intrinsic
def _load(typingctx, array, at):
    """16 successive unsigned elements of at most 32 bits."""

    def codegen(context, builder, sig, args):
        element = ir.VectorType(ir.IntType(sig.args[0].dtype.bitwidth), _VECTOR)
        value = builder.load(_address(context, builder, sig.args[0], *args, element), align=1)
        return value if element == _V.ir else builder.zext(value, _V.ir)

    return _V(array, types.intp), codegen


@intrinsic
def _store(typingctx, array, at, x):
    """16 successive elements, the low bits of each lane."""

    def codegen(context, builder, sig, args):
        element = ir.VectorType(ir.IntType(sig.args[0].dtype.bitwidth), _VECTOR)
        value = args[2] if element == _V.ir else builder.trunc(args[2], element)
        builder.store(value, _address(context, builder, sig.args[0], *args[:2], element), align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, _V), codegen


@intrinsic
def _gather(typingctx, array, index):
    """The 32 bits at element `index` of each lane; elements may be shorter."""

    def codegen(context, builder, sig, args):
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        pointers = ir.VectorType(ir.IntType(32).as_pointer(), _VECTOR)
        element = ir.IntType(sig.args[0].dtype.bitwidth)
        at = builder.gep(data, [builder.zext(args[1], ir.VectorType(_I64, _VECTOR))], source_etype=element)
        at.type = pointers  # llvmlite does not know that a vector of indices gives a vector of pointers
        gather = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_V.ir, [pointers, _MASK.ir, _V.ir]), "llvm.masked.gather.v16i32.v16p0"
        )
        return builder.call(gather, [at, ir.Constant(_MASK.ir, [1] * _VECTOR), ir.Constant(_V.ir, ir.Undefined)])

    return _V(array, _V), codegen


@intrinsic
def _quotient(typingctx, x, f):
    """x / f in float32, toward zero: off by at most 1 where x / f < 2^22, which a precision of 10 bits sees to."""

    def codegen(context, builder, sig, args):
        floats = ir.VectorType(ir.FloatType(), _VECTOR)
        return builder.fptosi(builder.fdiv(*(builder.uitofp(a, floats) for a in args)), _V.ir)

    return _V(_V, _V), codegen


@intrinsic
def _compress(typingctx, words, at, x, mask):
    """Low halves of the lanes in `mask` to successive elements; 16 are written, whatever the count of `mask`."""

    def codegen(context, builder, sig, args):
        to = _address(context, builder, sig.args[0], *args[:2], _HALF)
        compress = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_HALF, [_HALF, _MASK.ir, _HALF]), "llvm.experimental.vector.compress.v16i16"
        )
        half = builder.trunc(args[2], _HALF)
        builder.store(builder.call(compress, [half, args[3], ir.Constant(_HALF, ir.Undefined)]), to, align=2)
        return context.get_dummy_value()

    return types.void(words, types.intp, _V, _MASK), codegen


@intrinsic
def _expand(typingctx, words, at, mask):
    """Successive elements into the lanes of `mask`, 0 elsewhere."""

    def codegen(context, builder, sig, args):
        half = ir.IntType(16).as_pointer()
        at = builder.bitcast(_address(context, builder, sig.args[0], *args[:2], _HALF), half)
        expand = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_HALF, [half, _MASK.ir, _HALF]), "llvm.masked.expandload.v16i16"
        )
        return builder.zext(builder.call(expand, [at, args[2], ir.Constant(_HALF, [0] * _VECTOR)]), _V.ir)

    return _V(words, types.intp, _MASK), codegen


@cache
def _wide() -> bool:
    """Whether Numba's target has 16-bit compress and expand in registers (Ice Lake, Zen 4 and later)."""
    if llvm.llvm_version_info < (19,):
        return False
    if config.CPU_FEATURES is not None:
        return "+avx512vbmi2" in config.CPU_FEATURES
    if config.CPU_NAME is not None and config.CPU_NAME != llvm.get_host_cpu_name():
        return False
    return bool(llvm.get_host_cpu_features().get("avx512vbmi2", False))


@njit(cache=True, nogil=True)
def _encode(index, table, interval, first, precision, state, words, begin, at):
    """Symbols from `begin` on, word `at` being the next free one. Returns the number of words, or −1 where f = 0."""
    mask = state.shape[0] - 1
    for i in range(begin, index.shape[0]):
        e = np.int64(index[i]) if table is None else np.int64(first[table[i]]) + np.int64(index[i])
        f, c = np.uint64(interval[e] >> 16), np.uint64(interval[e] & 0xFFFF)
        if f == 0:
            return -1
        x = np.uint64(state[i & mask])
        full = x >> np.uint64(32 - precision) >= f
        words[at] = x & np.uint64(0xFFFF)  # a word not kept is overwritten: no branch to mispredict
        at += full
        x >>= np.uint64(16 * full)
        q = np.uint64(np.float64(x) / np.float64(f))  # exact: 1 / f is more than the rounding of a quotient below 2^32
        state[i & mask] = (q << np.uint64(precision)) + c + (x - q * f)
    return at


@njit(cache=True, nogil=True)
def _decode(out, table, interval, first, lookup, precision, lookup_bits, state, words, at, begin, end):
    """Symbols end − 1 … begin, with `at` words left. Returns the words then left, or −1 where one was missing."""
    mask, shift = state.shape[0] - 1, precision - lookup_bits
    for i in range(end - 1, begin - 1, -1):
        x = np.int64(state[i & mask])
        slot = x & ((1 << precision) - 1)
        base, row = 0, slot >> shift
        if table is not None:
            base, row = np.int64(first[table[i]]), np.int64(table[i]) * ((1 << lookup_bits) + 1) + row
        low, high = np.int64(lookup[row]), np.int64(lookup[row + 1])
        if slot - np.int64(interval[base + low] & 0xFFFF) < np.int64(interval[base + low] >> 16):
            high = low
        while low < high:
            middle = (low + high + 1) >> 1
            if np.int64(interval[base + middle] & 0xFFFF) <= slot:
                low = middle
            else:
                high = middle - 1
        out[i] = low
        x = np.int64(interval[base + low] >> 16) * (x >> precision) + slot - np.int64(interval[base + low] & 0xFFFF)
        empty = x < 0x10000
        at -= empty
        if at < 0:
            return -1
        word = np.int64(words[at])
        x = x << 16 | word if empty else x
        state[i & mask] = x
    return at


@njit(cache=True, nogil=True)
def _encode_wide(index, table, interval, first, precision, state, words):
    """`_encode` of all whole rows of lanes, 16 lanes at a time."""
    n_lanes, at, lost = state.shape[0], 0, 0
    for row in range(index.shape[0] // n_lanes):
        for lane in range(0, n_lanes, 16):
            e = _load(index, row * n_lanes + lane)
            if table is not None:
                e = _add(e, _gather(first, _load(table, row * n_lanes + lane)))
            e = _gather(interval, e)
            f = _shr(e, 16)
            lost |= _count(_less(f, 1))
            x = _load(state, lane)
            full = _least(_shr(x, 32 - precision), f)
            _compress(words, at, x, full)
            at += _count(full)
            x = _select(full, _shr(x, 16), x)
            q = _quotient(x, f)
            r = _sub(x, _mul(q, f))
            under = _negative(r, 0)
            q, r = _select(under, _sub(q, 1), q), _select(under, _add(r, f), r)
            over = _least(r, f)
            q, r = _select(over, _add(q, 1), q), _select(over, _sub(r, f), r)
            _store(state, lane, _add(_add(_shl(q, precision), _and(e, 0xFFFF)), r))
    return -1 if lost else at


@njit(cache=True, nogil=True)
def _decode_wide(out, table, interval, first, lookup, precision, lookup_bits, state, words, at):
    """`_decode` of all whole rows of lanes, 16 lanes at a time. `words` is followed by 16 more that may be read."""
    n_lanes, shift = state.shape[0], precision - lookup_bits
    for row in range(out.shape[0] // n_lanes - 1, -1, -1):
        for lane in range(n_lanes - 16, -16, -16):
            i = row * n_lanes + lane
            x = _load(state, lane)
            slot = _and(x, (1 << precision) - 1)
            span = _shr(slot, shift)
            if table is not None:
                t = _load(table, i)
                base = _gather(first, t)
                span = _add(span, _mul(t, (1 << lookup_bits) + 1))
            both = _gather(lookup, span)
            low = _and(both, 0xFFFF)
            e = _gather(interval, low) if table is None else _gather(interval, _add(base, low))
            if shift > 0:
                high = _select(_less(_sub(slot, _and(e, 0xFFFF)), _shr(e, 16)), low, _shr(both, 16))
                while _count(_less(low, high)):
                    middle = _shr(_add(_add(low, high), 1), 1)
                    m = _gather(interval, middle) if table is None else _gather(interval, _add(base, middle))
                    below = _less(slot, _and(m, 0xFFFF))
                    low, high = _select(below, low, middle), _select(below, _sub(middle, 1), high)
                e = _gather(interval, low) if table is None else _gather(interval, _add(base, low))
            _store(out, i, low)
            x = _sub(_add(_mul(_shr(e, 16), _shr(x, precision)), slot), _and(e, 0xFFFF))
            empty = _less(x, 0x10000)
            at -= _count(empty)
            if at < 0:
                return -1
            _store(state, lane, _select(empty, _or(_shl(x, 16), _expand(words, at, empty)), x))
    return at


@njit(cache=True, nogil=True)
def _in_range(index, table, first):
    """Whether every symbol is one of its table, and every table exists."""
    n_tables, good = first.shape[0] - 1, True
    for i in range(index.shape[0]):
        t = min(np.int64(table[i]), n_tables - 1)
        good &= (np.int64(table[i]) == t) & (np.int64(index[i]) < np.int64(first[t + 1]) - np.int64(first[t]))
    return good


def lanes_for(n_bytes: float) -> int:
    """Lanes for a code of about this length, so that their states are below .3 % of it: 1, 4 or 32."""
    return 32 if n_bytes >= 1 << 15 else 4 if n_bytes >= 1 << 12 else 1


def _check_lanes(n_lanes: int) -> None:
    if n_lanes not in (1, 2, 4, 8, 16, 32, 64):
        raise BadConfig(f"{n_lanes} lanes; a power of two up to 64 is right")


def encode(index: np.ndarray, tables: Tables, n_lanes: int, table: np.ndarray | None = None) -> np.ndarray:
    """Symbols -> uint8 array.

    index: (n,) uint8 or uint16. table: (n,) uint8 or uint16, the table of each symbol; None: all are of table 0.
    Raises BadInput: a symbol is not in its table or has frequency 0 there, or there is no such table.
    """
    _check_lanes(n_lanes)
    interval, first, precision = tables.interval, tables.first, tables.precision
    if table is None:
        good = int(index.max(initial=0)) < first[1]
    else:
        good = table.shape == index.shape and _in_range(index, table, first)
    if not good:
        raise BadInput("a symbol outside the alphabet of its table, or a table that does not exist")
    words = np.empty(index.size + _VECTOR + 2 * n_lanes, np.uint16)  # a vector of words is stored whole
    state = np.full(n_lanes, _LOW, np.uint32)
    at = done = 0
    if _wide() and n_lanes % _VECTOR == 0:
        at = _encode_wide(index, table, interval, first, precision, state, words)
        done = index.size // n_lanes * n_lanes
    if at >= 0:
        at = _encode(index, table, interval, first, precision, state, words, done, at)
    if at < 0:
        raise BadInput("a symbol of frequency 0 in its table")
    words[at : at + 2 * n_lanes] = state.view(np.uint16)
    return words[: at + 2 * n_lanes].view(np.uint8)


def decode(data: np.ndarray, tables: Tables, n: int, n_lanes: int, table: np.ndarray | None = None) -> np.ndarray:
    """The `n` symbols of `encode`: uint8, or uint16 where a table has more than 256 symbols.

    data: uint8. table: as `encode` had it.
    Raises CorruptStream: words are missing or left over, or a state does not end where it began.
    """
    _check_lanes(n_lanes)
    if data.size % 2 or data.size < 4 * n_lanes:
        raise CorruptStream(f"{data.size} bytes are no rANS code of {n_lanes} lanes")
    if table is not None and (table.size != n or int(table.max(initial=0)) >= tables.first.size - 1):
        raise BadInput(f"{table.size} table indices up to {table.max(initial=0)} for {n} symbols")
    dtype = np.uint8 if int(np.diff(tables.first).max()) <= 256 else np.uint16
    claim(n * np.dtype(dtype).itemsize, "entropy-coded symbols")
    words = np.array(data).view(np.uint16)
    at = words.size - 2 * n_lanes
    state = words[at:].copy().view(np.uint32)
    if n and int(state.min()) < _LOW:
        raise CorruptStream("a rANS state is below its range")
    out = np.empty(n, dtype)
    args = (tables.interval, tables.first, tables.lookup, tables.precision, tables.lookup_bits, state, words)
    wide = n // n_lanes * n_lanes if _wide() and n_lanes % _VECTOR == 0 else 0
    at = _decode(out, table, *args, at, wide, n)
    if wide and at >= 0:
        at = _decode_wide(out, table, *args, at)
    if at != 0 or (state != _LOW).any():
        raise CorruptStream("a rANS code that does not end where its symbols do")
    return out
