"""Nearest points: squared distances of many vectors to a codebook, and the search loops that stand on them.

The squared distance of x to a point c is ‖x‖² + 2 (‖c‖²/2 − x·c); the bracket, a *score*, decides. The inner product is
one chain of fused multiply-adds over the coordinates (`laconic.kernels.product`), ties go to the lower index, so the same
vectors get the same indices on every machine and whatever is searched together with them.
"""

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from laconic.core.errors import BadInput
from laconic.kernels.product import pack_rows, product, tile_height, tiles, vector_length

__all__ = ["Points", "first_below", "least", "nearest", "nearest_plain", "points", "weighted"]

_LANES = vector_length(4)


def _vector_at(context, builder, kind, array, offset):
    """A vector of float32 at an element of an array, any alignment."""
    base = context.make_array(kind)(context, builder, array).data
    pointer = builder.bitcast(builder.gep(base, [offset]), ir.VectorType(ir.FloatType(), _LANES).as_pointer())
    return builder.load(pointer, align=4)


def _splat(builder, value):
    lanes = ir.VectorType(value.type, _LANES)
    one = builder.insert_element(ir.Constant(lanes, ir.Undefined), value, ir.IntType(32)(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [0] * _LANES))


@intrinsic
def least(typingctx, bias, bias_at, values, at, n):
    """(least of bias[bias_at + j] − values[at + j], its lowest j) over j < n; (inf, 0) where nothing is below infinity.

    float32; n is a multiple of the vector length (16 or 8), which the caller's padding sees to.
    """
    signature = types.Tuple([types.float32, types.int64])(bias, bias_at, values, at, n)

    def codegen(context, builder, sig, args):
        i32, i64 = ir.IntType(32), ir.IntType(64)
        vector, lanes = ir.VectorType(ir.FloatType(), _LANES), ir.VectorType(i32, _LANES)
        best = cgutils.alloca_once_value(builder, ir.Constant(vector, [float("inf")] * _LANES))
        where = cgutils.alloca_once_value(builder, ir.Constant(lanes, [0] * _LANES))
        iota = ir.Constant(lanes, list(range(_LANES)))
        with cgutils.for_range(builder, builder.sdiv(args[4], i64(_LANES)), intp=i64) as loop:
            j = builder.mul(loop.index, i64(_LANES))
            score = builder.fsub(
                _vector_at(context, builder, sig.args[0], args[0], builder.add(args[1], j)),
                _vector_at(context, builder, sig.args[2], args[2], builder.add(args[3], j)),
            )
            old = builder.load(best)
            below = builder.fcmp_ordered("<", score, old)
            builder.store(builder.select(below, score, old), best)
            index = builder.add(_splat(builder, builder.trunc(j, i32)), iota)
            builder.store(builder.select(below, index, builder.load(where)), where)
        score, index, half = builder.load(best), builder.load(where), _LANES // 2
        while half:  # halves against each other; of equal scores the lower index
            turn = ir.Constant(lanes, [(i + half) % _LANES for i in range(_LANES)])
            other, other_index = builder.shuffle_vector(score, score, turn), builder.shuffle_vector(index, index, turn)
            equal = builder.and_(builder.fcmp_ordered("==", other, score), builder.icmp_signed("<", other_index, index))
            better = builder.or_(builder.fcmp_ordered("<", other, score), equal)
            score, index = builder.select(better, other, score), builder.select(better, other_index, index)
            half //= 2
        first = [builder.extract_element(v, i32(0)) for v in (score, index)]
        return context.make_tuple(builder, sig.return_type, [first[0], builder.zext(first[1], i64)])

    return signature, codegen


@intrinsic
def first_below(typingctx, values, at, n, limit):
    """The least j from `at` to n − 1 with values[j] < limit, or n. float32; reads up to one vector behind values[n − 1]."""
    signature = types.int64(values, types.int64, types.int64, types.float32)

    def codegen(context, builder, sig, args):
        i32, i64 = ir.IntType(32), ir.IntType(64)
        bits = ir.IntType(_LANES)
        limits = _splat(builder, args[3])
        found = cgutils.alloca_once_value(builder, args[2])
        here = cgutils.alloca_once_value(builder, args[1])
        head, body, end = (builder.append_basic_block(f"first_below.{s}") for s in ("head", "body", "end"))
        builder.branch(head)
        builder.position_at_end(head)
        j = builder.load(here)
        builder.cbranch(builder.icmp_signed("<", j, args[2]), body, end)
        builder.position_at_end(body)
        below = builder.fcmp_ordered("<", _vector_at(context, builder, sig.args[0], args[0], j), limits)
        mask = builder.bitcast(below, bits)
        builder.store(builder.add(j, i64(_LANES)), here)
        with builder.if_then(builder.icmp_unsigned("!=", mask, bits(0))):
            lane = builder.zext(builder.cttz(builder.zext(mask, i32), ir.IntType(1)(1)), i64)
            hit = builder.add(j, lane)
            builder.store(builder.select(builder.icmp_signed("<", hit, args[2]), hit, args[2]), found)
            builder.branch(end)
        builder.branch(head)
        builder.position_at_end(end)
        return builder.load(found)

    return signature, codegen


class Points(NamedTuple):
    """A codebook laid out for the search: panels of two vectors of points, and what is added to −x·c."""

    panels: np.ndarray  # float32, flat: panel p holds points p·width … as dim × width, missing ones zero
    bias: np.ndarray  # float32, one a point, infinite for missing ones
    n_points: int
    dim: int


@njit(cache=True, nogil=True)
def _panels(table, width, out):
    n, dim = table.shape
    for j in range(n):
        at = j // width * width * dim + j % width
        for k in range(dim):
            out[at + k * width] = table[j, k]


@njit(cache=True, nogil=True)
def half_norms(table):
    """‖c‖²/2 of every row, summed in order in float64: float32."""
    out = np.empty(table.shape[0], np.float32)
    for j in range(table.shape[0]):
        total = 0.0
        for k in range(table.shape[1]):
            total += np.float64(table[j, k]) * np.float64(table[j, k])
        out[j] = np.float32(0.5 * total)
    return out


def points(table: np.ndarray, bias: np.ndarray | None = None) -> Points:
    """Lay out a codebook. table: (n_points, dim) float32; bias: (n_points,) float32, ‖c‖²/2 where not given."""
    if table.ndim != 2 or table.dtype != np.float32 or not table.shape[0]:
        raise BadInput(
            f"a codebook is {table.dtype}{table.shape}; float32 (n_points, dim) with at least one point is needed"
        )
    n, dim = table.shape
    width = 2 * _LANES
    padded = -(-n // width) * width
    panels = np.zeros(padded * dim, np.float32)
    _panels(np.ascontiguousarray(table), width, panels)
    full = np.full(padded, np.inf, np.float32)
    full[:n] = half_norms(np.ascontiguousarray(table)) if bias is None else bias
    return Points(panels, full, n, dim)


@njit(cache=True, nogil=True)
def _nearest(x, panels, bias, width, index, score):
    n, dim = x.shape
    n_padded = bias.shape[0]
    rows = np.empty(12 * dim, np.float32)
    dots = np.empty(12 * n_padded, np.float32)
    r = 0
    while r < n:
        height = tile_height(n - r)
        h = min(height, n - r)
        pack_rows(x, r, h, 0, dim, height, rows, 0)
        for p in range(0, n_padded, width):
            tiles(height, True, dim, rows, 0, panels, p * dim, width, dots, p, n_padded, False)
        for i in range(h):
            score[r + i], index[r + i] = least(bias, 0, dots, i * n_padded, n_padded)
        r += h


def nearest(x: np.ndarray, book: Points) -> tuple[np.ndarray, np.ndarray]:
    """The nearest point of every vector.

    **Shapes** x: (n, dim) float32, contiguous. Gives index (n,) int64 and score (n,) float32; the squared distance is
    ‖x‖² + 2 · score.
    """
    if x.ndim != 2 or x.dtype != np.float32 or x.shape[1] != book.dim or not x.flags.c_contiguous:
        raise BadInput(f"vectors are {x.dtype}{x.shape}; contiguous float32 (n, {book.dim}) is needed")
    index, score = np.empty(len(x), np.int64), np.empty(len(x), np.float32)
    if book.dim == 0:
        index[:], score[:] = 0, book.bias[0]
    else:
        _nearest(x, book.panels, book.bias, 2 * _LANES, index, score)
    return index, score


def nearest_plain(x: np.ndarray, table: np.ndarray, bias: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """`nearest`, from the matrix of all scores."""
    score = (half_norms(table) if bias is None else bias) - product(x, table, transposed=True)
    index = np.argmin(score, 1)
    return index, score[np.arange(len(x)), index]


def weighted(x: np.ndarray, weights: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors, points and bias of twice the dimension whose scores are those of Σ_k w_k (x_k − c_k)² / 2.

    x, weights: (n, dim) float32; table: (n_points, dim) float32. With Σ w c²/2 − Σ w x c as an inner product of
    (w x, w) and (c, −c²/2) the weighted search is the plain one.
    """
    wide = np.concatenate([weights * x, weights], 1)
    both = np.concatenate([table, -0.5 * table * table], 1)
    return wide, both, np.zeros(len(table), np.float32)
