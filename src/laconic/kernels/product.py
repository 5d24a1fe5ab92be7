"""Matrix products in one fixed order of operations: results that no thread count, batch size or library can change.

Every entry of the product is one chain of fused multiply-adds over k = 0, 1, 2, …, in the dtype of the operands:

    c = 0;  for k in 0 … K-1:  c = fma(x[r, k], m[k, c], c)

Blocking for the caches and for the registers changes which entries are worked on together, never the chain of one
entry, so a row of the product depends on that row of `x` and on `m` alone, and agrees bit for bit on every machine.

Source: K. Goto, R. van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34(3), 2008 (blocking).
"""

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils, config
from numba.extending import intrinsic

from laconic.core.errors import BadInput
from laconic.kernels.sharing import divide, take

__all__ = ["product", "product_plain"]


def _has_avx512() -> bool:
    """Whether the code Numba generates may use 512-bit registers (its target may be overridden in the environment)."""
    if config.CPU_FEATURES is not None:
        return "+avx512f" in config.CPU_FEATURES
    if config.CPU_NAME is not None and config.CPU_NAME != llvm.get_host_cpu_name():
        return False
    return bool(llvm.get_host_cpu_features().get("avx512f", False))


# One register tile is up to ROWS × 2 vectors. It must fit the register file: 24 of 32 zmm, or 8 of 16 ymm.
_WIDE = _has_avx512()
_VECTOR_BYTES = 64 if _WIDE else 32
_MAX_ROWS = 12 if _WIDE else 4
_K_BLOCK = 256  # a packed panel of m, K_BLOCK × 2 vectors, stays in the first-level cache
_ROW_BLOCK = 240  # packed rows of x, ROW_BLOCK × K_BLOCK, stay in the second-level cache
_COLUMN_BLOCK = 2048
_ROWS_A_THREAD = 60  # at least, or packing m costs more than it brings

_ONE, _TWO = (0,), (0, 0)
_R4, _R8, _R12 = (0,) * 4, (0,) * 8, (0,) * 12


def vector_length(item_bytes: int) -> int:
    """Entries of one vector of a register tile."""
    return _VECTOR_BYTES // item_bytes


@intrinsic
def _fma(typingctx, a, b, c):
    """a * b + c, rounded once."""

    def codegen(context, builder, sig, args):
        return builder.fma(*args)

    return a(a, a, a), codegen


@intrinsic
def tile(typingctx, depth, a, a_at, b, b_at, b_stride, c, c_at, c_stride, resume, rows, vectors):
    """c[i, j] (+)= sum over k < depth of a[k, i] b[k, j], for len(rows) × len(vectors) vectors of entries.

    `a` is packed (len(rows) entries a step), `b` and `c` have a row stride; all flat, offsets in elements. The lengths
    of the tuples `rows` and `vectors` are compile-time constants. No bound is checked here: callers do.
    """
    n_rows, n_vectors = rows.count, vectors.count
    signature = types.void(depth, a, a_at, b, b_at, b_stride, c, c_at, c_stride, resume, rows, vectors)

    def codegen(context, builder, sig, args):
        k_end, a_ary, a_off, b_ary, b_off, b_row, c_ary, c_off, c_row, again = args[:10]
        scalar = context.get_data_type(a.dtype)
        size = context.get_abi_sizeof(scalar)
        lanes = _VECTOR_BYTES // size
        vector = ir.VectorType(scalar, lanes)
        i64 = ir.IntType(64)
        lane_zero = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
        fma = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{lanes}f{size * 8}"
        )

        def base(kind, array, offset):
            return builder.gep(context.make_array(kind)(context, builder, array).data, [offset])

        def at(pointer, offset):
            return builder.bitcast(builder.gep(pointer, [offset]), vector.as_pointer())

        a_base, b_base, c_base = base(a, a_ary, a_off), base(b, b_ary, b_off), base(c, c_ary, c_off)
        entries = [(i, j) for i in range(n_rows) for j in range(n_vectors)]
        place = {(i, j): at(c_base, builder.add(builder.mul(c_row, i64(i)), i64(j * lanes))) for i, j in entries}
        total = {e: cgutils.alloca_once_value(builder, ir.Constant(vector, None)) for e in entries}
        with builder.if_then(builder.icmp_unsigned("!=", again, again.type(0))):
            for e in entries:
                builder.store(builder.load(place[e], align=size), total[e])
        with cgutils.for_range(builder, k_end, intp=i64) as loop:
            a_k = builder.gep(a_base, [builder.mul(loop.index, i64(n_rows))])
            b_k = builder.gep(b_base, [builder.mul(loop.index, b_row)])
            columns = [builder.load(at(b_k, i64(j * lanes)), align=size) for j in range(n_vectors)]
            for i in range(n_rows):
                one = builder.load(builder.gep(a_k, [i64(i)]))
                single = builder.insert_element(ir.Constant(vector, ir.Undefined), one, ir.IntType(32)(0))
                spread = builder.shuffle_vector(single, single, lane_zero)
                for j in range(n_vectors):
                    t = total[i, j]
                    builder.store(builder.call(fma, [spread, columns[j], builder.load(t)]), t)
        for e in entries:
            builder.store(builder.load(total[e]), place[e], align=size)
        return context.get_dummy_value()

    return signature, codegen


@njit(cache=True, nogil=True)
def pack_rows(x, r0, n_rows, k0, n_k, height, out, at):
    """out[at:] = x[r0 : r0 + n_rows, k0 : k0 + n_k] turned, `height` entries a step, missing rows zero."""
    for i in range(height):
        if i < n_rows:
            for k in range(n_k):
                out[at + k * height + i] = x[r0 + i, k0 + k]
        else:
            for k in range(n_k):
                out[at + k * height + i] = 0


@njit(cache=True, nogil=True, inline="always")
def tile_height(n_left):
    """Rows of the next register tile: 12, 8 or 4 (the last tile of a matrix may be partly empty)."""
    if n_left > 8 and _MAX_ROWS >= 12:
        return 12
    if n_left > 4 and _MAX_ROWS >= 8:
        return 8
    return 4


@njit(cache=True, nogil=True)
def tiles(height, two, depth, a, a_at, b, b_at, b_stride, c, c_at, c_stride, resume):
    """`tile` with its constants chosen at run time."""
    if two:
        if height == 12:
            tile(depth, a, a_at, b, b_at, b_stride, c, c_at, c_stride, resume, _R12, _TWO)
        elif height == 8:
            tile(depth, a, a_at, b, b_at, b_stride, c, c_at, c_stride, resume, _R8, _TWO)
        else:
            tile(depth, a, a_at, b, b_at, b_stride, c, c_at, c_stride, resume, _R4, _TWO)
    elif height == 12:
        tile(depth, a, a_at, b, b_at, b_stride, c, c_at, c_stride, resume, _R12, _ONE)
    elif height == 8:
        tile(depth, a, a_at, b, b_at, b_stride, c, c_at, c_stride, resume, _R8, _ONE)
    else:
        tile(depth, a, a_at, b, b_at, b_stride, c, c_at, c_stride, resume, _R4, _ONE)


@njit(cache=True, nogil=True)
def _pack_columns(m, transposed, k0, n_k, c0, n_c, width, out):
    """Panels of `width` columns of m, each n_k × width, the last filled up with zeros."""
    whole = n_c // width * width
    if whole < n_c:
        out[whole * n_k : (whole + width) * n_k] = 0
    if transposed:
        for j in range(n_c):
            at = j // width * width * n_k + j % width
            for k in range(n_k):
                out[at + k * width] = m[c0 + j, k0 + k]
    else:
        for k in range(n_k):
            for p in range(0, n_c, width):
                at = p * n_k + k * width
                for j in range(min(width, n_c - p)):
                    out[at + j] = m[k0 + k, c0 + p + j]


@njit(cache=True, nogil=True)
def _product(x, m, transposed, out, lanes):
    n_rows, n_k = x.shape
    n_columns = out.shape[1]
    width = 2 * lanes
    flat = out.reshape(-1)
    k_block = min(_K_BLOCK, n_k)
    row_block = min(_ROW_BLOCK, (n_rows + 11) // 12 * 12)
    column_block = min(_COLUMN_BLOCK, (n_columns + width - 1) // width * width)
    panel = np.empty(k_block * column_block, x.dtype)
    rows = np.empty(k_block * row_block, x.dtype)
    edge = np.empty(12 * width, x.dtype)
    for c0 in range(0, n_columns, column_block):
        n_c = min(column_block, n_columns - c0)
        for k0 in range(0, n_k, k_block):
            depth = min(k_block, n_k - k0)
            _pack_columns(m, transposed, k0, depth, c0, n_c, width, panel)
            for r0 in range(0, n_rows, row_block):
                n_r = min(row_block, n_rows - r0)
                r = 0
                while r < n_r:
                    height = tile_height(n_r - r)
                    pack_rows(x, r0 + r, min(height, n_r - r), k0, depth, height, rows, r * depth)
                    r += height
                for c in range(0, n_c, width):
                    w = min(width, n_c - c)
                    r = 0
                    while r < n_r:
                        height = tile_height(n_r - r)
                        h = min(height, n_r - r)
                        corner, a, b = (r0 + r) * n_columns + c0 + c, r * depth, c * depth
                        if h == height and w == width:
                            tiles(height, True, depth, rows, a, panel, b, width, flat, corner, n_columns, k0 > 0)
                        else:
                            if k0 > 0:
                                for i in range(h):
                                    for j in range(w):
                                        edge[i * width + j] = flat[corner + i * n_columns + j]
                            tiles(height, True, depth, rows, a, panel, b, width, edge, 0, width, k0 > 0)
                            for i in range(h):
                                for j in range(w):
                                    flat[corner + i * n_columns + j] = edge[i * width + j]
                        r += height


@njit(cache=True, nogil=True)
def _product_plain(x, m, transposed, out):
    for r in range(x.shape[0]):
        if transposed:
            for c in range(out.shape[1]):
                total = out.dtype.type(0)
                for k in range(x.shape[1]):
                    total = _fma(x[r, k], m[c, k], total)
                out[r, c] = total
        else:
            for c in range(out.shape[1]):
                out[r, c] = 0
            for k in range(x.shape[1]):
                for c in range(out.shape[1]):
                    out[r, c] = _fma(x[r, k], m[k, c], out[r, c])


def _checked(x: np.ndarray, m: np.ndarray, transposed: bool, out: np.ndarray | None) -> np.ndarray:
    for name, a in (("x", x), ("m", m)):
        if a.ndim != 2 or a.dtype not in (np.float32, np.float64) or not a.flags.c_contiguous:
            raise BadInput(f"{name} is {a.dtype}{a.shape}; a contiguous float32 or float64 matrix is needed")
    n_k, n_columns = m.shape[::-1] if transposed else m.shape
    if x.shape[1] != n_k or x.dtype != m.dtype:
        raise BadInput(f"x {x.dtype}{x.shape} does not fit m {m.dtype}{m.shape}, transposed={transposed}")
    if out is None:
        return np.empty((x.shape[0], n_columns), x.dtype)
    if out.shape != (x.shape[0], n_columns) or out.dtype != x.dtype or not out.flags.c_contiguous:
        raise BadInput(f"out is {out.dtype}{out.shape}; contiguous {x.dtype}{(x.shape[0], n_columns)} is needed")
    if np.may_share_memory(out, x) or np.may_share_memory(out, m):
        raise BadInput("out shares memory with an operand")
    return out


@njit(cache=True, nogil=True)
def _rows(counter, x, m, transposed, out, lanes, n):
    """n rows at a time, until none is left."""
    while True:
        at = take(counter, n)
        if at >= len(x):
            return
        _product(x[at : at + n], m, transposed, out[at : at + n], lanes)


def product(
    x: np.ndarray, m: np.ndarray, *, transposed: bool = False, out: np.ndarray | None = None, threads: int = 1
) -> np.ndarray:
    """x @ m, or x @ m.T, each entry summed in the order of k by fused multiply-adds.

    **Shapes** x: (n_rows, K); m: (K, n_columns), or (n_columns, K) if `transposed`; both float32 or both float64,
    contiguous. Gives (n_rows, n_columns) in the same dtype.
    """
    out = _checked(x, m, transposed, out)
    if x.shape[1] == 0:
        out[:] = 0
    elif out.size and x.shape[0] < 4 and not transposed:
        _product_plain(x, m, transposed, out)  # memory-bound: packing m would cost more than the product
    elif out.size and threads > 1 and x.shape[0] >= 2 * _ROWS_A_THREAD:
        n = -(-x.shape[0] // (2 * threads))  # every share packs m once more
        divide(threads, _rows, x, m, transposed, out, vector_length(x.itemsize), np.int64(max(n, _ROWS_A_THREAD)))
    elif out.size:
        _product(x, m, transposed, out, vector_length(x.itemsize))
    return out


def product_plain(x: np.ndarray, m: np.ndarray, *, transposed: bool = False) -> np.ndarray:
    """`product`, entry by entry: the definition."""
    out = _checked(x, m, transposed, None)
    _product_plain(x, m, transposed, out)
    return out
