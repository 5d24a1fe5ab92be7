"""Products of a packed matrix and few vectors, without unpacking it to memory.

    y[r] = Σ_g step[r, g] · Σ_{c in g} level(code[r, c]) · x[c]  +  Σ_g offset[r, g] · Σ_{c in g} x[c]

Two kernels (one in integers, one in floats) on the layout of `laconic.kernels.packed`, 16 rows to a vector:

* `activations="int8"`: x is rounded to int8, symmetric, one scale a run of columns (a group, or up to 128 columns of one);
  sums of code · x are exact 32-bit integers, four products an instruction where the machine has one (vpdpbusd). A code is
  unsigned there: −zero · Σ x is where a run's sum starts. The rounding is 44 dB below a Gaussian x.
* `activations="int16"`: the same twice, for high and low bytes of x: hardly slower, as codes are read once, and 92 dB below.
* `activations="float32"`: fused multiply-adds in float32, levels from a register table; no rounding of x.

A row's additions have one order, so results do not depend on threads or on how many vectors are multiplied together.

Source: the integer scheme is that of llama.cpp's block formats (per-block activation scales); the row-interleaved layout is
the usual one of int8 GEMM libraries. Differs: activation scales go by runs of at most 128 columns, not 256.
"""

from collections.abc import Callable

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from laconic.core.errors import BadConfig, BadInput
from laconic.kernels.activations import quantize_activations_plain, quantizer, spreader
from laconic.kernels.packed import Packed, dequantize_plain, widths
from laconic.kernels.sharing import divide, take
from laconic.kernels.vectors import (
    F32,
    FLOATS,
    I8,
    I32,
    I64,
    LANES,
    WORDS,
    Arrays,
    Dots,
    all_lanes,
    bytes_of,
    call,
    fma,
    has,
    order,
    registers,
    splat,
)

__all__ = ["ACTIVATIONS", "add_sparse", "gemv", "gemv_plain", "prepare"]

ACTIVATIONS = ("int8", "int16", "float32")
_AHEAD = 4096  # bytes of codes that are asked for beforehand: the hardware's own guess ends with a page
_CHUNK = 4  # blocks that a thread takes at a time
_SHARED_BYTES = 1 << 18  # less work than reading so much is not worth a second thread


# --- Vector code ------------------------------------------------------------------------------------------------------


def _planes(builder, arrays, at, bits):
    """The vectors of a unit at byte `at`, plane by plane: [(width, [<16 x i32>, …]), …]."""
    arrays.prefetch(0, builder.add(at, I64(_AHEAD)), bits)
    found, first = [], 0
    for w in widths(bits):
        found.append((w, [arrays.load(0, builder.add(at, I64(64 * (first + i))), WORDS) for i in range(w)]))
        first += w
    return found


def _quad(builder, planes, quad):
    """Codes of a quad as 64 bytes in <16 x i32>."""
    total, low = None, 0
    for w, vectors in planes:
        vector, place = divmod(quad, 8 // w)
        shift = place * w - low
        x = vectors[vector]
        if shift > 0:
            x = builder.lshr(x, all_lanes(WORDS, shift))
        elif shift < 0:
            x = builder.shl(x, all_lanes(WORDS, -shift))
        if w < 8:
            x = builder.and_(x, all_lanes(WORDS, (((1 << w) - 1) << low) * 0x01010101))
        total = x if total is None else builder.or_(total, x)
        low += w
    return total


def _walk(builder, n_groups, runs, units, halves, run_body):
    """Calls run_body(group, run, [(unit, quads), …] or a loop over units) for every run of columns in order.

    halves: two groups of 16 columns in each unit; else a group has `runs` runs of `units` units each.
    """
    if halves:
        with cgutils.for_range(builder, builder.udiv(n_groups, I64(2)), intp=I64) as unit:
            for half in range(2):
                run = builder.add(builder.mul(unit.index, I64(2)), I64(half))
                run_body(run, run, lambda body, u=unit.index, h=half: body(u, range(4 * h, 4 * h + 4)))
        return
    with cgutils.for_range(builder, n_groups, intp=I64) as group, cgutils.for_range(builder, runs, intp=I64) as part:
        run = builder.add(builder.mul(group.index, runs), part.index)
        first = builder.mul(run, units)

        def each(body):
            with cgutils.for_range(builder, units, intp=I64) as unit:
                body(builder.add(first, unit.index), range(8))

        run_body(group.index, run, each)


def _finish(builder, arrays, totals, out, out_at, stride):
    for m, total in enumerate(totals):
        at = builder.add(out_at, builder.mul(stride, I64(m)))
        builder.store(builder.load(total), arrays.place(out, at, FLOATS), align=4)


@intrinsic
def _int_block(
    typingctx, codes, at, fine, step, offset, side_at, x, scale, start, sums, x_at, run_at,
    n_groups, runs, units, x_stride, run_stride, out, out_at, out_stride, bits, tokens, halves,
):  # fmt: skip
    """16 rows times len(tokens) vectors of int8.

    codes from byte `at`; fine: None or (16,) uint8; step, offset from `side_at`; x: int8 from `x_at`, `x_stride` apart; scale,
    start (int32), sums (float32; scale · Σ x): one a run, from `run_at`. out: float32. bits, tokens, halves: lengths of tuples.
    """
    signature = types.void(
        codes, at, fine, step, offset, side_at, x, scale, start, sums, x_at, run_at,
        n_groups, runs, units, x_stride, run_stride, out, out_at, out_stride, bits, tokens, halves,
    )  # fmt: skip
    n_bits, n_tokens = bits.count, tokens.count
    has_table = not isinstance(fine, types.NoneType)

    def codegen(context, builder, sig, args):
        arrays = Arrays(context, builder, sig, args)
        totals = registers(builder, FLOATS, n_tokens)
        even, odd = registers(builder, WORDS, n_tokens), registers(builder, WORDS, n_tokens)
        if has_table:
            sixteen = arrays.load(2, I64(0), ir.VectorType(I8, 16))
            table = builder.shuffle_vector(sixteen, sixteen, order(*list(range(16)) * 4))

        def add_unit(unit, quads):
            dots = Dots(builder, 255 if has_table else (1 << n_bits) - 1)
            planes = _planes(builder, arrays, builder.add(args[1], builder.mul(unit, I64(64 * n_bits))), n_bits)
            for quad in quads:
                level = _quad(builder, planes, quad)
                level = bytes_of(builder, table, level) if has_table else level
                for m in range(n_tokens):
                    column = builder.add(builder.mul(unit, I64(32)), I64(4 * quad))
                    place = builder.add(args[10], builder.add(builder.mul(args[15], I64(m)), column))
                    four = splat(builder, arrays.load(6, place, I32))
                    dots.add((even, odd)[quad & 1 and not dots.narrow][m], level, four)
            dots.flush()

        def add_run(group, run, over_units):
            places = [builder.add(args[11], builder.add(builder.mul(args[16], I64(m)), run)) for m in range(n_tokens)]
            for m in range(n_tokens):
                builder.store(splat(builder, arrays.load(8, places[m], I32)), even[m])
                builder.store(ir.Constant(WORDS, None), odd[m])
            over_units(add_unit)
            sides = builder.add(args[5], builder.mul(group, I64(LANES)))
            steps, offsets = arrays.side(3, sides), arrays.side(4, sides)
            for m in range(n_tokens):
                sum_ = builder.sitofp(builder.add(builder.load(even[m]), builder.load(odd[m])), FLOATS)
                sum_ = builder.fmul(sum_, splat(builder, arrays.load(7, places[m], F32)))
                total = fma(builder, sum_, steps, builder.load(totals[m]))
                if offsets is not None:
                    total = fma(builder, splat(builder, arrays.load(9, places[m], F32)), offsets, total)
                builder.store(total, totals[m])

        _walk(builder, args[12], args[13], args[14], bool(halves.count), add_run)
        _finish(builder, arrays, totals, 17, args[18], args[19])
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def _float_block(
    typingctx, codes, at, table, zero, step, offset, side_at, x, sums, x_at, run_at,
    n_groups, runs, units, x_stride, run_stride, out, out_at, out_stride, bits, tokens, halves,
):  # fmt: skip
    """`_int_block` for float32 x. table: None (level = code − zero) or float32 (16,): the level of code mod 2^bits."""
    signature = types.void(
        codes, at, table, zero, step, offset, side_at, x, sums, x_at, run_at,
        n_groups, runs, units, x_stride, run_stride, out, out_at, out_stride, bits, tokens, halves,
    )  # fmt: skip
    n_bits, n_tokens = bits.count, tokens.count
    has_table = not isinstance(table, types.NoneType)

    def codegen(context, builder, sig, args):
        arrays = Arrays(context, builder, sig, args)
        totals = registers(builder, FLOATS, n_tokens)
        partial = [registers(builder, FLOATS, 4) for _ in range(n_tokens)]
        levels = arrays.load(2, I64(0), FLOATS) if has_table and n_bits <= 4 else None
        zeros = splat(builder, builder.trunc(args[3], I32))

        def level(planes, quad, j):
            if levels is not None and has("avx512f"):  # the low four bits decide; the table repeats if fewer count
                w, vectors = planes[0]
                if w == n_bits:
                    vector, place = divmod(quad, 8 // w)
                    index = builder.lshr(vectors[vector], all_lanes(WORDS, 8 * j + w * place))
                else:
                    index = builder.lshr(_quad(builder, planes, quad), all_lanes(WORDS, 8 * j))
                return call(builder, "llvm.x86.avx512.permvar.sf.512", FLOATS, [levels, index])
            index = builder.and_(
                builder.lshr(_quad(builder, planes, quad), all_lanes(WORDS, 8 * j)), all_lanes(WORDS, 255)
            )
            if not has_table:
                return builder.sitofp(builder.sub(index, zeros), FLOATS)
            return arrays.gather(2, index)

        def add_unit(unit, quads):
            planes = _planes(builder, arrays, builder.add(args[1], builder.mul(unit, I64(64 * n_bits))), n_bits)
            for quad in quads:
                for j in range(4):
                    value = level(planes, quad, j)
                    for m in range(n_tokens):
                        column = builder.add(builder.mul(unit, I64(32)), I64(4 * quad + j))
                        place = builder.add(args[9], builder.add(builder.mul(args[14], I64(m)), column))
                        one = splat(builder, arrays.load(7, place, F32))
                        builder.store(fma(builder, value, one, builder.load(partial[m][j])), partial[m][j])

        def add_run(group, run, over_units):
            for m in range(n_tokens):
                for j in range(4):
                    builder.store(ir.Constant(FLOATS, None), partial[m][j])
            over_units(add_unit)
            sides = builder.add(args[6], builder.mul(group, I64(LANES)))
            steps, offsets = arrays.side(4, sides), arrays.side(5, sides)
            for m in range(n_tokens):
                a, b, c, d = (builder.load(p) for p in partial[m])
                sum_ = builder.fadd(builder.fadd(a, b), builder.fadd(c, d))
                total = fma(builder, sum_, steps, builder.load(totals[m]))
                if offsets is not None:
                    place = builder.add(args[10], builder.add(builder.mul(args[15], I64(m)), run))
                    total = fma(builder, splat(builder, arrays.load(8, place, F32)), offsets, total)
                builder.store(total, totals[m])

        _walk(builder, args[11], args[12], args[13], bool(halves.count), add_run)
        _finish(builder, arrays, totals, 16, args[17], args[18])
        return context.get_dummy_value()

    return signature, codegen


# --- Drivers ----------------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _gemv_int(
    counter,
    codes,
    fine,
    step,
    offset,
    x,
    scale,
    start,
    sums,
    n_groups,
    runs,
    units,
    n_blocks,
    out,
    bits,
    tokens,
    halves,
):
    """Blocks of rows, as long as there are any that no other thread took. x: (n, padded_in), a multiple of len(tokens)."""
    per_block = codes.shape[0] // n_blocks
    while True:
        first = take(counter, _CHUNK)
        if first >= n_blocks:
            return
        for b in range(first, min(n_blocks, first + _CHUNK)):
            for t in range(0, x.shape[0], len(tokens)):
                _int_block(
                    codes, b * per_block, fine, step, offset, b * n_groups * 16,
                    x, scale, start, sums, t * x.shape[1], t * scale.shape[1],
                    n_groups, runs, units, x.shape[1], scale.shape[1],
                    out, t * out.shape[1] + b * 16, out.shape[1], bits, tokens, halves,
                )  # fmt: skip


@njit(cache=True, nogil=True)
def _gemv_float(
    counter, codes, table, zero, step, offset, x, sums, n_groups, runs, units, n_blocks, out, bits, tokens, halves
):
    """`_gemv_int` for float32 x."""
    per_block = codes.shape[0] // n_blocks
    while True:
        first = take(counter, _CHUNK)
        if first >= n_blocks:
            return
        for b in range(first, min(n_blocks, first + _CHUNK)):
            for t in range(0, x.shape[0], len(tokens)):
                _float_block(
                    codes, b * per_block, table, zero, step, offset, b * n_groups * 16,
                    x, sums, t * x.shape[1], t * sums.shape[1],
                    n_groups, runs, units, x.shape[1], sums.shape[1],
                    out, t * out.shape[1] + b * 16, out.shape[1], bits, tokens, halves,
                )  # fmt: skip


def gemv(p: Packed, x: np.ndarray, *, activations: str = "int16", threads: int = 1) -> np.ndarray:
    """y = x Wᵀ for a packed W: float32 (m, n_out). x: (m, n_in) float32, contiguous.

    activations: what x is rounded to; int16 and float32 differ from no rounding by less than float32 sums do from exact ones.
    Levels that are no integers always take float32.
    """
    return prepare(p, activations)(x, threads)


def prepare(p: Packed, activations: str = "int16") -> Callable[[np.ndarray, int], np.ndarray]:
    """`gemv` of one matrix as (x, threads) -> y; what does not depend on x is worked out here, once for many tokens."""
    if activations not in ACTIVATIONS:
        raise BadConfig(f"activations {activations!r}; {', '.join(ACTIVATIONS)} are right")
    whole = activations != "float32" and p.quantum > 0
    parts = 2 if whole and activations == "int16" else 1
    n_in, n_out, width, n_bytes = p.n_in, p.n_out, p.n_blocks * LANES, p.codes.nbytes
    shape = (p.stored_groups, p.padded_group // p.run, max(1, p.run // 32), p.n_blocks)
    bits, halves = (0,) * p.bits, (0,) * int(p.padded_group == 16)
    table = None if p.affine and p.bits > 4 else np.resize(p.table, max(LANES, len(p.table)))
    read = quantizer(p, parts) if whole else spreader(p)
    work = _gemv_int if whole else _gemv_float
    matrix = (p.codes, p.fine, p.step, p.offset) if whole else (p.codes, table, p.zero, p.step, p.offset)

    def product(x: np.ndarray, threads: int = 1) -> np.ndarray:
        if x.ndim != 2 or x.shape[1] != n_in or x.dtype != np.float32 or not x.flags.c_contiguous:
            raise BadInput(f"x is {x.dtype}{x.shape}; contiguous float32 (m, {n_in}) is needed")
        if not x.flags.writeable:
            x = x.copy()  # a read-only array is another type to Numba: one compilation less
        m = len(x) * parts
        tokens = (0,) * (m if m in (1, 2) else 4)
        n = -(-m // len(tokens)) * len(tokens)
        out = np.empty((n, width), np.float32)
        shared = threads if n_bytes * m > _SHARED_BYTES else 1
        divide(shared, work, *matrix, *read(x, n), *shape, out, bits, tokens, halves)
        if parts == 2:
            return out[0:m:2, :n_out] + out[1:m:2, :n_out]
        return out[:m, :n_out]

    return product


def gemv_plain(p: Packed, x: np.ndarray, *, activations: str = "int16") -> np.ndarray:
    """`gemv` in NumPy and float64, from the dense matrix and from what the activations are rounded to."""
    w = dequantize_plain(p).astype(np.float64)
    if activations == "float32" or not p.quantum:
        return x.astype(np.float64) @ w.T
    parts = 2 if activations == "int16" else 1
    q, scale, _, _ = quantize_activations_plain(x, p, parts)
    runs = q.reshape(len(q), -1, p.run) * (scale.astype(np.float64) / p.quantum)[..., None]
    groups = runs.reshape(len(x), parts, -1, p.padded_group).sum(1)[:, : p.n_groups, : p.group]
    return groups.reshape(len(x), -1)[:, : p.n_in] @ w.T


@njit(cache=True, nogil=True)
def add_sparse(places, values, x, y):
    """y[t, places[0, i]] += values[i] · x[t, places[1, i]], in order of i. x, y: (m, …) float32."""
    for t in range(x.shape[0]):
        for i in range(values.shape[0]):
            y[t, places[0, i]] += values[i] * x[t, places[1, i]]
