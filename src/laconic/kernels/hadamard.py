"""Orthonormal Hadamard transforms of rows, for every order of Paley's, Williamson's and Sylvester's constructions.

y = H (s ⊙ x) / √n with H = H_q1 ⊗ … ⊗ H_2^k: a dense ±1 product for each core order q, butterflies for the power of
two. All additions happen in one order per entry, so the result does not depend on the number of rows, on the width of
the machine's vectors or on threads. Orders 2^k are done in registers: two passes over the caches up to n = 4096.

Sources: R. Paley, "On orthogonal matrices", J. Math. Phys. 12, 1933 (constructions I and II); J. Williamson,
"Hadamard's determinant theorem and the sum of four squares", Duke Math. J. 11, 1944; J. Sylvester, 1867 (2^k).
"""

from functools import lru_cache
from math import isqrt, lcm

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from laconic.core.errors import BadConfig, BadInput
from laconic.kernels.product import pack_rows, tile_height, tiles, vector_length

__all__ = ["aligned_empty", "factors", "hadamard", "hadamard_plain", "largest_order", "matrix", "orders"]

_MAX_CORE = 1024
_LANES = 16  # the unit of the code below; machines with narrower registers use two or four of theirs
_BLOCK_BITS = 8  # 256 entries are transformed in registers
_SPAN_BITS = 12  # 4096 entries are transformed in the first-level cache
_RADIX_BITS = 4  # beyond that, each pass over memory takes 4 bits
_STREAM_BYTES = 16 << 20  # results beyond the caches are written past them, as memcpy does


# --- Which orders exist -----------------------------------------------------------------------------------------------
# The order in which factors are chosen and field elements are numbered is part of the format: packets keep only a seed.


def _prime_power(q: int) -> tuple[int, int] | None:
    """(p, e) with q = p^e, or None."""
    p = next((d for d in range(2, isqrt(q) + 1) if q % d == 0), q)
    e, rest = 0, q
    while rest % p == 0 and rest > 1:
        rest //= p
        e += 1
    return (p, e) if q > 1 and rest == 1 else None


@lru_cache(maxsize=1)
def _constructions() -> dict[int, tuple[str, int]]:
    """Core orders, 12 ≤ q ≤ 1024, not powers of two: order -> (construction, its parameter)."""
    found: dict[int, tuple[str, int]] = {}
    for order in range(12, _MAX_CORE + 1, 4):
        if order & (order - 1) == 0:
            continue
        if (order - 1) % 4 == 3 and _prime_power(order - 1):
            found[order] = ("paley 1", order - 1)
        elif (order // 2 - 1) % 4 == 1 and _prime_power(order // 2 - 1):
            found[order] = ("paley 2", order // 2 - 1)
        elif order in _WILLIAMSON:
            found[order] = ("williamson", order // 4)
    return found


def orders(limit: int = 1024) -> list[int]:
    """Every order up to `limit` for which `hadamard` has a full (not block-diagonal) transform."""
    return [n for n in range(1, limit + 1) if factors(n) is not None]


@lru_cache(maxsize=4096)
def factors(n: int) -> tuple[int, ...] | None:
    """Core orders q1 ≤ q2 ≤ … with n = q1 q2 … 2^k, of the smallest sum; () for 2^k; None where none is known."""
    if n < 1:
        return None
    if n & (n - 1) == 0:
        return ()
    best = None
    for q in _constructions():
        if n % q == 0 and (rest := factors(n // q)) is not None:
            candidate = tuple(sorted((q, *rest)))
            if best is None or (sum(candidate), candidate) < (sum(best), best):
                best = candidate
    return best


def largest_order(n: int) -> int:
    """The largest divisor of n for which a Hadamard matrix is known here (1 for odd n)."""
    divisors = {d for i in range(1, isqrt(n) + 1) if n % i == 0 for d in (i, n // i)}
    return max(d for d in divisors if factors(d) is not None)


def _field(p: int, e: int) -> tuple[np.ndarray, np.ndarray]:
    """GF(p^e), elements numbered by their base-p digits: subtraction table (q, q) and quadratic character (q,)."""
    q = p**e
    digits = np.array([[x // p**i % p for i in range(e)] for x in range(q)])
    place = p ** np.arange(e)

    def multiply(a: np.ndarray, b: np.ndarray, low: np.ndarray) -> np.ndarray:
        full = np.zeros((*np.broadcast_shapes(a.shape, b.shape)[:-1], 2 * e - 1), int)
        for i in range(e):
            full[..., i : i + e] += a[..., i : i + 1] * b
        for i in range(2 * e - 2, e - 1, -1):  # t^e = -low(t)
            full[..., i - e : i] -= full[..., i : i + 1] * low
        return full[..., :e] % p

    def has_no_zero_divisor(low: np.ndarray) -> bool:
        return bool(multiply(digits[1:, None], digits[None, 1:], low).any(-1).all())

    low = digits[0] if e == 1 else next(d for d in digits if d[0] and has_no_zero_divisor(d))
    character = np.full(q, -1)
    character[multiply(digits[1:], digits[1:], low) @ place] = 1
    character[0] = 0
    return (digits[:, None] - digits[None, :]) % p @ place, character


def _circulant(row: np.ndarray) -> np.ndarray:
    i = np.arange(len(row))
    return row[(i[None, :] - i[:, None]) % len(row)]


@lru_cache(maxsize=16)
def core(order: int) -> np.ndarray:
    """The ±1 matrix of a core order: int8, (order, order), read-only."""
    if order not in _constructions():
        raise BadConfig(f"no Hadamard core of order {order}; known up to {_MAX_CORE}: {list(_constructions())}")
    construction, parameter = _constructions()[order]
    if construction == "williamson":
        a, b, c, d = (_circulant(_symmetric(w, parameter)) for w in _WILLIAMSON[order])
        h = np.block([[a, b, c, d], [-b, a, -d, c], [-c, d, a, -b], [-d, -c, b, a]])
    else:
        prime_power = _prime_power(parameter)
        assert prime_power is not None
        difference, character = _field(*prime_power)
        bordered = np.ones((parameter + 1, parameter + 1), int)
        bordered[0, 0] = 0
        bordered[1:, 1:] = character[difference]
        one = np.eye(parameter + 1, dtype=int)
        if construction == "paley 1":
            bordered[1:, 0] = -1
            h = one + bordered
        else:
            h = np.kron(bordered, [[1, 1], [1, -1]]) + np.kron(one, [[1, -1], [-1, -1]])
    h = h.astype(np.int8)
    h.flags.writeable = False
    return h


def _symmetric(word: int, n: int) -> np.ndarray:
    """±1 sequence of odd length n with a[i] = a[n - i]: bit i - 1 of `word` set where a[i] = -1, a[0] = 1."""
    half = np.array([1 - 2 * (word >> i & 1) for i in range(n // 2)])
    return np.concatenate(([1], half, half[::-1]))


def matrix(n: int) -> np.ndarray:
    """The whole ±1 matrix of order n, H_q1 ⊗ … ⊗ H_2^k: int8, (n, n). For tests and small dense uses."""
    cores = _known(n)
    h = np.ones((1, 1), np.int8)
    for q in cores:
        h = np.kron(h, core(q))
    while len(h) < n:
        h = np.kron(h, np.array([[1, 1], [1, -1]], np.int8))
    return h


def _known(n: int) -> tuple[int, ...]:
    cores = factors(n)
    if cores is None:
        raise BadConfig(f"no Hadamard matrix of order {n} is known here; blocks of {largest_order(n)} divide it")
    return cores


# Symmetric circulants A, B, C, D with A² + B² + C² + D² = 4 n I: one ±1 row each, packed as `_symmetric` reads it.
# Found by exhaustive search (for order 172 of rows unchanged by x -> 6 x mod 43); the tests check each `core`.
_WILLIAMSON: dict[int, tuple[int, int, int, int]] = {
    92: (0x2B, 0x153, 0x19C, 0x71B),
    116: (0x1CB, 0x6E5, 0x1C24, 0x24F5),
    172: (0x192F1, 0x9AF63, 0xDC708, 0x1A0565),
}


# --- Register kernels -------------------------------------------------------------------------------------------------
_F32, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_VECTOR, _WORDS = ir.VectorType(_F32, _LANES), ir.VectorType(_I32, _LANES)


def _across(builder, regs, n_stages):
    """Butterflies between registers, smallest distance first."""
    for stage in range(n_stages):
        h = 1 << stage
        for i in range(len(regs)):
            if not i & h:
                a, b = regs[i], regs[i | h]
                regs[i], regs[i | h] = builder.fadd(a, b), builder.fsub(a, b)


def _within(builder, regs, n_stages):
    """Butterflies between the lanes of each register: partner + self, partner - self where the lane's bit is set."""
    for stage in range(n_stages):
        h = 1 << stage
        swap = ir.Constant(_WORDS, [j ^ h for j in range(_LANES)])
        flip = ir.Constant(_WORDS, [0x80000000 if j & h else 0 for j in range(_LANES)])
        for i, x in enumerate(regs):
            signed = builder.bitcast(builder.xor(builder.bitcast(x, _WORDS), flip), _VECTOR)
            regs[i] = builder.fadd(builder.shuffle_vector(x, x, swap), signed)


def _turn(builder, regs):
    """Transpose a 16 × 16 block held in 16 registers."""
    for h in (1, 2, 4, 8):
        low = ir.Constant(_WORDS, [_LANES + j - h if j & h else j for j in range(_LANES)])
        high = ir.Constant(_WORDS, [_LANES + j if j & h else j + h for j in range(_LANES)])
        for i in range(_LANES):
            if not i & h:
                a, b = regs[i], regs[i | h]
                regs[i], regs[i | h] = builder.shuffle_vector(a, b, low), builder.shuffle_vector(a, b, high)


def _array_at(context, builder, kind, array, offset):
    return builder.gep(context.make_array(kind)(context, builder, array).data, [offset])


def _vector_at(builder, base, offset):
    return builder.bitcast(builder.gep(base, [offset]), _VECTOR.as_pointer())


def _steps(builder, stride, n):
    return [builder.mul(stride, _I64(i)) for i in range(n)]


@intrinsic
def _block(typingctx, src, src_at, dst, dst_at, stride, pre, post, scale_at, across, within, streaming):
    """Butterflies of 2^len(across) vectors, `stride` entries apart, and of 2^len(within) lanes inside each.

    `pre` and `post`: None, or factors of the entries before or after, at `scale_at`, laid out as the vectors are.
    `streaming`: (0,) writes past the caches; `dst` must then be aligned to 64 bytes. Offsets in entries, unchecked.
    """
    signature = types.void(src, src_at, dst, dst_at, stride, pre, post, scale_at, across, within, streaming)
    n_regs = 1 << across.count

    def codegen(context, builder, sig, args):
        source = _array_at(context, builder, src, args[0], args[1])
        target = _array_at(context, builder, dst, args[2], args[3])
        offsets = _steps(builder, args[4], n_regs)

        def scaled(regs, kind, array):
            if isinstance(kind, types.NoneType):
                return regs
            base = _array_at(context, builder, kind, array, args[7])
            return [
                builder.fmul(r, builder.load(_vector_at(builder, base, o), align=4))
                for r, o in zip(regs, offsets, strict=True)
            ]

        regs = [builder.load(_vector_at(builder, source, o), align=4) for o in offsets]
        regs = scaled(regs, pre, args[5])
        _across(builder, regs, across.count)
        _within(builder, regs, within.count)
        regs = scaled(regs, post, args[6])
        for r, o in zip(regs, offsets, strict=True):
            store = builder.store(r, _vector_at(builder, target, o), align=64 if streaming.count else 4)
            if streaming.count:
                store.set_metadata("nontemporal", builder.module.add_metadata([_I32(1)]))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def _transpose(typingctx, src, src_at, src_stride, dst, dst_at, dst_stride):
    """dst[j, i] = src[i, j] for a 16 × 16 block; offsets and row strides in entries, unchecked."""
    signature = types.void(src, src_at, src_stride, dst, dst_at, dst_stride)

    def codegen(context, builder, sig, args):
        source = _array_at(context, builder, src, args[0], args[1])
        target = _array_at(context, builder, dst, args[3], args[4])
        regs = [builder.load(_vector_at(builder, source, o), align=4) for o in _steps(builder, args[2], _LANES)]
        _turn(builder, regs)
        for r, o in zip(regs, _steps(builder, args[5], _LANES), strict=True):
            builder.store(r, _vector_at(builder, target, o), align=4)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def _prefetch(typingctx, src, at, across):
    """Ask for the 2^len(across) vectors at `at`; an address outside the array is ignored by the machine."""
    signature = types.void(src, at, across)

    def codegen(context, builder, sig, args):
        base = _array_at(context, builder, src, args[0], args[1])
        pointer = ir.IntType(8).as_pointer()
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [pointer, _I32, _I32, _I32]), "llvm.prefetch.p0"
        )
        for i in range(1 << across.count):
            line = builder.bitcast(builder.gep(base, [_I64(i * _LANES)]), pointer)
            builder.call(function, [line, _I32(0), _I32(2), _I32(1)])
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def _fence(typingctx):
    """Order streaming stores before whatever comes next."""

    def codegen(context, builder, sig, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


# --- Rows of 2^k ------------------------------------------------------------------------------------------------------
# The numbers of bits are lengths of tuples of zeros: types, hence constants when a kernel is compiled.


def _wht(src, src_at, dst, dst_at, scratch, pre, post, scale_at, far, outer, inner, streaming):
    """One row of 2^(len(far) + len(outer) + len(inner) + 4) entries; `scratch` of that length where it is needed."""


@overload(_wht)
def _wht_overload(src, src_at, dst, dst_at, scratch, pre, post, scale_at, far, outer, inner, streaming):
    within = (0,) * 4
    n_outer, n_inner = outer.count, inner.count
    block = _LANES << n_inner
    span = block << n_outer
    n = span << far.count

    def in_registers(src, src_at, dst, dst_at, scratch, pre, post, scale_at, far, outer, inner, streaming):
        _block(src, src_at, dst, dst_at, _LANES, pre, post, scale_at, inner, within, streaming)

    def in_cache(src, src_at, dst, dst_at, scratch, pre, post, scale_at, far, outer, inner, streaming):
        for c in range(0, block, _LANES):
            _block(src, src_at + c, scratch, c, block, pre, None, scale_at + c, outer, (), ())
        for c in range(0, span, block):
            _prefetch(src, src_at + span + c, inner)  # the strided reads of the next row defeat the hardware's guess
            _block(scratch, c, dst, dst_at + c, _LANES, None, post, scale_at + c, inner, within, streaming)

    top = (0,) * ((far.count - 1) % _RADIX_BITS + 1)
    radix = (0,) * _RADIX_BITS

    def in_memory(src, src_at, dst, dst_at, scratch, pre, post, scale_at, far, outer, inner, streaming):
        step = n >> len(top)
        for c in range(0, step, _LANES):
            _block(src, src_at + c, scratch, c, step, pre, None, scale_at + c, top, (), ())
        while step > span:
            whole = step
            step = whole >> _RADIX_BITS
            for base in range(0, n, whole):
                for c in range(base, base + step, _LANES):
                    _block(scratch, c, scratch, c, step, None, None, 0, radix, (), ())
        for base in range(0, n, span):
            for c in range(base, base + block, _LANES):
                _block(scratch, c, scratch, c, block, None, None, 0, outer, (), ())
            for c in range(base, base + span, block):
                _block(scratch, c, dst, dst_at + c, _LANES, None, post, scale_at + c, inner, within, streaming)

    return in_memory if far.count else in_cache if n_outer else in_registers


@njit(cache=True, nogil=True)
def _rows_sylvester(x, out, n, pre, post, n_scale, scratch, far, outer, inner, streaming):
    scale_at = 0
    for at in range(0, x.shape[0], n):
        _wht(x, at, out, at, scratch, pre, post, scale_at, far, outer, inner, streaming)
        scale_at += n
        if scale_at == n_scale:
            scale_at = 0
    _fence()


@njit(cache=True, nogil=True)
def _rows_tiny(x, out, pre, post, n_scale, within, tail):
    """Rows of 1, 2, 4 or 8 entries, several in a register; the factors repeat every n_scale (a multiple of 16)."""
    n = x.shape[0]
    whole = n // _LANES * _LANES
    for at in range(0, whole, _LANES):
        _block(x, at, out, at, _LANES, pre, post, at % n_scale, (), within, ())
    if whole < n:
        for i in range(n - whole):
            tail[i] = x[whole + i]
        _block(tail, 0, tail, 0, _LANES, pre, post, whole % n_scale, (), within, ())
        for i in range(n - whole):
            out[whole + i] = tail[i]


# --- Rows of q1 q2 … 2^k ----------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _apply_core(packed, packed_at, q, src, src_at, n, inner, lanes, dst, dst_at):
    """y[o, i, c] = sum over j of H[i, j] x[o, j, c] for the n entries of (n / (q inner), q, inner); inner % 16 == 0."""
    for o in range(0, n, q * inner):
        i = 0
        while i < q:
            height = tile_height(q - i)
            c = 0
            while c < inner:
                two = c + 2 * lanes <= inner
                a_at, c_at = packed_at + i * q, dst_at + o + i * inner + c
                tiles(height, two, q, packed, a_at, src, src_at + o + c, inner, dst, c_at, inner, False)
                c += 2 * lanes if two else lanes
            i += height


@njit(cache=True, nogil=True)
def _scaled(x, scale, out):
    for i in range(x.shape[0]):
        out[i] = x[i] * scale[i]


@njit(cache=True, nogil=True)
def _rows_wide(x, out, n, pre, post, n_scale, packed, cores, lanes, work, scratch, far, outer, inner, streaming):
    """Rows whose power of two is at least 16. `cores` outermost first; `work` holds 2 n entries."""
    scale_at = 0
    for at in range(0, x.shape[0], n):
        src, src_at, here = x, at, 0
        if pre is not None:
            _scaled(x[at : at + n], pre[scale_at : scale_at + n], work)
            src, src_at, here = work, 0, n
        packed_at, power = 0, n
        for q in cores:
            power //= q
            _apply_core(packed, packed_at, q, src, src_at, n, power, lanes, work, here)
            src, src_at, here = work, here, n - here
            packed_at += q * q
        for c in range(0, n, power):
            _wht(work, src_at + c, out, at + c, scratch, None, post, scale_at + c, far, outer, inner, streaming)
        scale_at += n
        if scale_at == n_scale:
            scale_at = 0
    _fence()


@njit(cache=True, nogil=True)
def _turn_in(x, at, n_rows, n, work):
    """work[j, l] = x[row l, j]; rows that are missing are zero."""
    whole = n // _LANES * _LANES if n_rows == _LANES else 0
    for j in range(0, whole, _LANES):
        _transpose(x, at + j, n, work, j * _LANES, _LANES)
    for j in range(whole, n):
        for row in range(_LANES):
            work[j * _LANES + row] = x[at + row * n + j] if row < n_rows else 0


@njit(cache=True, nogil=True)
def _turn_out(work, start, out, at, n_rows, n):
    whole = n // _LANES * _LANES if n_rows == _LANES else 0
    for j in range(0, whole, _LANES):
        _transpose(work, start + j * _LANES, _LANES, out, at + j, n)
    for j in range(whole, n):
        for row in range(n_rows):
            out[at + row * n + j] = work[start + j * _LANES + row]


@njit(cache=True, nogil=True)
def _scale_turned(work, n, scale, n_scale, first_row):
    if n_scale == n:
        for j in range(n):
            entries = work[j * _LANES : (j + 1) * _LANES]
            for row in range(_LANES):
                entries[row] *= scale[j]
    else:
        for row in range(_LANES):
            scale_at = (first_row + row) * n % n_scale
            for j in range(n):
                work[j * _LANES + row] *= scale[scale_at + j]


@njit(cache=True, nogil=True)
def _rows_narrow(x, out, n, pre, post, n_scale, packed, cores, lanes, work, across):
    """Rows whose power of two, 2^len(across), is below 16: sixteen rows side by side. `work` holds 32 n entries."""
    group = n * _LANES
    for at in range(0, x.shape[0], group):
        n_rows = min(_LANES, (x.shape[0] - at) // n)
        _turn_in(x, at, n_rows, n, work)
        if pre is not None:
            _scale_turned(work[:group], n, pre, n_scale, at // n)
        here, packed_at, power = 0, 0, group
        for q in cores:
            power //= q
            _apply_core(packed, packed_at, q, work, here, group, power, lanes, work, group - here)
            here = group - here
            packed_at += q * q
        for c in range(here, here + group, power):
            _block(work, c, work, c, _LANES, None, None, 0, across, (), ())
        if post is not None:
            _scale_turned(work[here : here + group], n, post, n_scale, at // n)
        _turn_out(work, here, out, at, n_rows, n)


@lru_cache(maxsize=16)
def _packed_cores(cores: tuple[int, ...], inverse: bool) -> np.ndarray:
    """The cores one after the other as float32, in the layout of the register tiles."""
    out = np.empty(sum(q * q for q in cores), np.float32)
    at = 0
    for q in cores:
        h = np.ascontiguousarray(core(q).T if inverse else core(q)).astype(np.float32)
        i = 0
        while i < q:
            height = tile_height(q - i)
            pack_rows(h, i, height, 0, q, height, out, at + i * q)
            i += height
        at += q * q
    return out


def aligned_empty(shape: tuple[int, ...]) -> np.ndarray:
    """An uninitialised float32 array that starts on a cache line, which streaming stores need."""
    n_bytes = 4 * int(np.prod(shape, dtype=np.int64))
    raw = np.empty(n_bytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + n_bytes].view(np.float32).reshape(shape)


def _scales(n: int, block: int, signs: np.ndarray | None) -> np.ndarray:
    """The factor of every entry of a row: its sign and 1 / √block."""
    scale = np.full(n, 1.0 / np.sqrt(np.float64(block)), np.float32)
    if signs is not None:
        if signs.shape != (n,) or not (np.abs(signs) == 1).all():
            raise BadInput(f"signs are {signs.dtype}{signs.shape}; {n} values +1 or -1 are needed")
        scale *= signs.astype(np.float32)
    return scale


def _zeros(n: int) -> tuple[int, ...]:
    return (0,) * n


def hadamard(
    x: np.ndarray,
    *,
    signs: np.ndarray | None = None,
    block: int | None = None,
    inverse: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """y = H (signs ⊙ x) / √block of every row, block by block along the row; with `inverse`, x = signs ⊙ Hᵀ y / √block.

    **Shapes** x: (n_rows, n) float32, contiguous; signs: (n,) of ±1; gives (n_rows, n) float32. `out` may be x.
    **Block** the order of the transform; it divides n. None: `largest_order(n)`, which is n wherever a matrix is known.
    """
    if x.ndim != 2 or x.dtype != np.float32 or not x.flags.c_contiguous:
        raise BadInput(f"x is {x.dtype}{x.shape}; a contiguous float32 matrix is needed")
    n_rows, n = x.shape
    if out is None:
        out = aligned_empty((n_rows, n))
    elif out.shape != x.shape or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise BadInput(f"out is {out.dtype}{out.shape}; contiguous float32 {x.shape} is needed")
    elif out is not x and np.may_share_memory(out, x):
        raise BadInput("out overlaps x; give the same array or another one")
    if not x.size:
        return out
    block = largest_order(n) if block is None else block
    if block < 1 or n % block:
        raise BadConfig(f"block {block} does not divide rows of {n}; largest known order: {largest_order(n)}")
    cores = _known(block)
    scale = _scales(n, block, signs)
    if not x.flags.writeable:
        x = x.copy()  # a read-only array is another type to Numba: one compilation less
    flat, result = x.reshape(-1), out.reshape(-1)
    power = block
    for q in cores:
        power //= q
    bits = power.bit_length() - 1
    inner = min(bits, _BLOCK_BITS) - 4
    outer = min(bits, _SPAN_BITS) - 4 - inner
    far = bits - 4 - inner - outer
    streaming = _zeros(int(out.nbytes >= _STREAM_BYTES and out.ctypes.data % 64 == 0))
    if not cores and bits < 4:  # several rows to a register, so the factors come in whole registers too
        scale = np.tile(scale, lcm(n, _LANES) // n)
    pre, post = (None, scale) if inverse else (scale, None)
    if not cores and bits < 4:
        _rows_tiny(flat, result, pre, post, len(scale), _zeros(bits), np.zeros(_LANES, np.float32))
    elif not cores:
        scratch = aligned_empty((block if bits > _BLOCK_BITS else 1,))
        shape = _zeros(far), _zeros(outer), _zeros(inner)
        _rows_sylvester(flat, result, block, pre, post, n, scratch, *shape, streaming)
    else:
        work = np.empty(2 * block * (_LANES if bits < 4 else 1), np.float32)
        packing = _packed_cores(cores, inverse), np.array(cores), vector_length(4), work
        if bits < 4:
            _rows_narrow(flat, result, block, pre, post, n, *packing, _zeros(bits))
        else:
            scratch = aligned_empty((power if bits > _BLOCK_BITS else 1,))
            shape = _zeros(far), _zeros(outer), _zeros(inner)
            _rows_wide(flat, result, block, pre, post, n, *packing, scratch, *shape, streaming)
    return out


def hadamard_plain(
    x: np.ndarray, *, signs: np.ndarray | None = None, block: int | None = None, inverse: bool = False
) -> np.ndarray:
    """`hadamard` in NumPy, with its additions in the same order: the same bits."""
    n = x.shape[1]
    block = largest_order(n) if block is None else block
    scale = _scales(n, block, signs)
    cores = _known(block)
    y = (x if inverse else x * scale).reshape(-1, block)

    stride = block
    for q in cores:
        stride //= q
        h = (core(q).T if inverse else core(q)).astype(np.float32)
        view = y.reshape(len(y), -1, q, stride)
        total = np.zeros_like(view)
        for j in range(q):
            total += h[:, j, None] * view[:, :, j, None]
        y = total.reshape(len(y), block)
    bits = stride.bit_length() - 1
    far: list[int] = []
    for low in range(_SPAN_BITS, bits, _RADIX_BITS):
        far = [*range(low, min(low + _RADIX_BITS, bits)), *far]
    stages = [*far, *range(_BLOCK_BITS, min(bits, _SPAN_BITS)), *range(4, min(bits, _BLOCK_BITS)), *range(min(bits, 4))]
    for stage in stages:
        pair = y.reshape(len(y), -1, 2, 1 << stage)
        y = np.stack([pair[:, :, 0] + pair[:, :, 1], pair[:, :, 0] - pair[:, :, 1]], 2).reshape(len(y), block)
    return y.reshape(x.shape) * scale if inverse else y.reshape(x.shape)
