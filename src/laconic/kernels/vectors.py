"""Vector code shared by the products of packed matrices: 16 lanes of 32 bits, for whatever the machine has of them.

Every function puts LLVM instructions into a kernel that is being compiled; `has` says which of several ways is open.
"""

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils, config

from laconic.kernels.packed import LANES

__all__ = [
    "FLOATS",
    "LANES",
    "WORDS",
    "Arrays",
    "Dots",
    "all_lanes",
    "bytes_of",
    "call",
    "fma",
    "has",
    "order",
    "splat",
    "registers",
]


def has(feature: str) -> bool:
    """Whether Numba's target has a feature (it may be overridden in the environment)."""
    if config.CPU_FEATURES is not None:
        return f"+{feature}" in config.CPU_FEATURES.split(",")
    if config.CPU_NAME is not None and config.CPU_NAME != llvm.get_host_cpu_name():
        return False
    return bool(llvm.get_host_cpu_features().get(feature, False))


I8, I32, I64, F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
BYTES, WORDS, FLOATS = ir.VectorType(I8, 64), ir.VectorType(I32, LANES), ir.VectorType(F32, LANES)
_HALVES = ir.VectorType(ir.HalfType(), LANES)


def call(builder, name, result, args):
    """Call an LLVM intrinsic."""
    function = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), args)


def order(*lanes):
    """The mask of a shuffle."""
    return ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes))


def all_lanes(kind, value):
    """A constant in every lane."""
    return ir.Constant(kind, [value] * kind.count)


def splat(builder, value):
    """A scalar in all 16 lanes."""
    kind = ir.VectorType(value.type, LANES)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, I32(0))
    return builder.shuffle_vector(one, one, order(*[0] * LANES))


def _parts(builder, x, n):
    """A vector cut into pieces of n elements."""
    return [builder.shuffle_vector(x, x, order(*range(i, i + n))) for i in range(0, x.type.count, n)]


def _joined(builder, a, b):
    return builder.shuffle_vector(a, b, order(*range(2 * a.type.count)))


def dot4(builder, total, unsigned, signed):
    """total[i] += Σ_j unsigned[4 i + j] · signed[4 i + j] in 32-bit integers; all <16 x i32>."""
    if has("avx512vnni"):
        return call(builder, "llvm.x86.avx512.vpdpbusd.512", WORDS, [total, unsigned, signed])
    if has("avxvnni"):
        cut = zip(*(_parts(builder, v, 8) for v in (total, unsigned, signed)), strict=True)
        kind = ir.VectorType(I32, 8)
        return _joined(builder, *(call(builder, "llvm.x86.avx512.vpdpbusd.256", kind, list(part)) for part in cut))
    wide = ir.VectorType(I32, 64)  # pairs of 16-bit products are one instruction on most machines; the compiler sees it
    a = builder.zext(builder.bitcast(unsigned, BYTES), wide)
    b = builder.sext(builder.bitcast(signed, BYTES), wide)
    products = builder.mul(a, b)
    while products.type.count > LANES:
        n = products.type.count
        even, odd = (builder.shuffle_vector(products, products, order(*range(i, n, 2))) for i in (0, 1))
        products = builder.add(even, odd)
    return builder.add(total, products)


class Dots:
    """Sums of `dot4` in variables <16 x i32>; `flush` ends them.

    largest: of the unsigned bytes. Where AVX2 is all that there is, two products are added in 16 bits (vpmaddubsw), as many
    such pairs on top as cannot overflow, and only then 32 bits are taken: a third of the instructions.
    """

    def __init__(self, builder, largest):
        self.narrow = has("avx2") and not (has("avx512vnni") or has("avxvnni"))
        self._builder, self._room, self._held = builder, 32767 // (2 * 128 * largest), {}

    def add(self, variable, unsigned, signed):
        """variable += `dot4` of the two, now or when flushed."""
        builder = self._builder
        if not self.narrow:
            builder.store(dot4(builder, builder.load(variable), unsigned, signed), variable)
        elif not self._room:  # bytes above 127: their highest bit by itself
            low, top = (builder.and_(x, all_lanes(WORDS, mask)) for x, mask in (
                (unsigned, 0x7F7F7F7F), (builder.lshr(unsigned, all_lanes(WORDS, 7)), 0x01010101)))  # fmt: skip
            self._widen(variable, self._pairs(low, signed), 1)
            self._widen(variable, self._pairs(top, signed), 128)
        else:
            pairs = self._pairs(unsigned, signed)
            _, before, n = self._held.pop(id(variable), (None, None, 0))
            held = pairs if before is None else [builder.add(a, b) for a, b in zip(before, pairs, strict=True)]
            self._held[id(variable)] = variable, held, n + 1
            if n + 1 == self._room:
                self.flush()

    def flush(self):
        """Add what is still held in 16 bits."""
        for variable, held, _ in self._held.values():
            self._widen(variable, held, 1)
        self._held.clear()

    def _pairs(self, unsigned, signed):
        kind, halves = ir.VectorType(I8, 32), ir.VectorType(ir.IntType(16), 16)
        cut = (_parts(self._builder, self._builder.bitcast(v, BYTES), kind.count) for v in (unsigned, signed))
        return [call(self._builder, "llvm.x86.avx2.pmadd.ub.sw", halves, list(p)) for p in zip(*cut, strict=True)]

    def _widen(self, variable, pairs, factor):
        builder, kind = self._builder, ir.VectorType(I32, 8)
        factors = all_lanes(pairs[0].type, factor)
        sums = [call(builder, "llvm.x86.avx2.pmadd.wd", kind, [p, factors]) for p in pairs]
        builder.store(builder.add(builder.load(variable), _joined(builder, *sums)), variable)


def bytes_of(builder, table, index):
    """table[index & 15], byte by byte; table: <64 x i8>, 16 bytes four times; index: <16 x i32> of bytes below 128."""
    index = builder.bitcast(index, BYTES)
    if has("avx512bw"):
        found = call(builder, "llvm.x86.avx512.pshuf.b.512", BYTES, [table, index])
    elif has("avx2"):
        cut = zip(_parts(builder, table, 32), _parts(builder, index, 32), strict=True)
        kind = ir.VectorType(I8, 32)
        found = _joined(builder, *(call(builder, "llvm.x86.avx2.pshuf.b", kind, list(part)) for part in cut))
    else:
        found = ir.Constant(BYTES, None)
        for code in range(16):
            level = builder.shuffle_vector(table, table, order(*[code] * 64))
            found = builder.select(builder.icmp_unsigned("==", index, all_lanes(BYTES, code)), level, found)
    return builder.bitcast(found, WORDS)


def fma(builder, a, b, c):
    """a · b + c, rounded once."""
    return call(builder, f"llvm.fma.v{LANES}f32", FLOATS, [a, b, c])


class Arrays:
    """Loads from array arguments of an intrinsic, by number."""

    def __init__(self, context, builder, sig, args):
        self._builder = builder
        self._kinds = sig.args
        self._data = {
            i: context.make_array(kind)(context, builder, arg).data
            for i, (kind, arg) in enumerate(zip(sig.args, args, strict=True))
            if isinstance(kind, types.Array)
        }

    def place(self, i, at, kind):
        return self._builder.bitcast(self._builder.gep(self._data[i], [at]), kind.as_pointer())

    def load(self, i, at, kind):
        return self._builder.load(self.place(i, at, kind), align=1)

    def prefetch(self, i, at, n_lines):
        """Ask for cache lines of 64 bytes; an address outside the array is ignored by the machine."""
        kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
        function = cgutils.get_or_insert_function(self._builder.module, kind, "llvm.prefetch.p0")
        for line in range(n_lines):
            place = self.place(i, self._builder.add(at, I64(64 * line)), I8)
            self._builder.call(function, [place, I32(0), I32(3), I32(1)])

    def gather(self, i, index):
        """float32 at 16 places (<16 x i32>, below 2^31)."""
        builder = self._builder
        if has("avx512f"):
            base = builder.bitcast(self._data[i], I8.as_pointer())
            every = ir.Constant(ir.IntType(16), -1)
            mask = builder.bitcast(every, ir.VectorType(ir.IntType(1), LANES))
            args = [ir.Constant(FLOATS, None), base, index, mask, I32(4)]
            return call(builder, "llvm.x86.avx512.mask.gather.dps.512", FLOATS, args)
        found = ir.Constant(FLOATS, ir.Undefined)
        for lane in range(LANES):
            at = builder.zext(builder.extract_element(index, I32(lane)), I64)
            found = builder.insert_element(found, self.load(i, at, F32), I32(lane))
        return found

    def words(self, i, index):
        """32 bits each at 16 bytes (<16 x i32>, below 2^31) of an array of bytes."""
        builder = self._builder
        found = ir.Constant(WORDS, ir.Undefined)
        for lane in range(LANES):
            at = builder.zext(builder.extract_element(index, I32(lane)), I64)
            found = builder.insert_element(found, self.load(i, at, I32), I32(lane))
        return found

    def side(self, i, at):
        """16 steps or offsets, stored as float32 or as float16 bits; None where there are none."""
        if i not in self._data:
            return None
        if self._kinds[i].dtype == types.float32:
            return self.load(i, at, FLOATS)
        builder = self._builder
        if has("f16c") or has("fullfp16"):
            return builder.fpext(self.load(i, at, _HALVES), FLOATS)
        bits = builder.zext(self.load(i, at, ir.VectorType(ir.IntType(16), LANES)), WORDS)
        size = builder.shl(builder.and_(bits, all_lanes(WORDS, 0x7FFF)), all_lanes(WORDS, 13))
        size = builder.fmul(builder.bitcast(size, FLOATS), all_lanes(FLOATS, 2.0**112))  # the exponent's other bias
        sign = builder.shl(builder.and_(bits, all_lanes(WORDS, 0x8000)), all_lanes(WORDS, 16))
        return builder.bitcast(builder.or_(builder.bitcast(size, WORDS), sign), FLOATS)


def registers(builder, kind, n):
    """n variables that begin with zero; the compiler keeps them in registers."""
    return [cgutils.alloca_once_value(builder, ir.Constant(kind, None)) for _ in range(n)]
