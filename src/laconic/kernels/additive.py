"""Search in additive codes: a vector is the sum of one codeword from each of several books.

    ‖x − Σ_m c_m‖² = ‖x‖² + Σ_m u_m + Σ_{l<m} p_lm,   u_m = ‖c_m‖² − 2 x·c_m,   p_lm = 2 c_l·c_m

u is one product per vector and p one table per code, so a step of the search costs additions of table rows, not inner
products. Both searches run book by book over a block of vectors: only the rows of that book's table are touched.

Sources: A. Babenko, V. Lempitsky, "Additive quantization for extreme vector compression", CVPR 2014 (beam search);
J. Martinez et al., "Revisiting additive quantization", ECCV 2016 (iterated conditional modes); J. Martinez et al., "LSQ++:
lower running time and higher recall in multi-codebook quantization", ECCV 2018 (noise on the codewords while they learn).
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from laconic.core.errors import BadInput, claim
from laconic.kernels.distance import first_below, half_norms, least, nearest, points
from laconic.kernels.kmeans import centers, kmeans
from laconic.kernels.product import product, vector_length
from laconic.kernels.random import gaussian

__all__ = ["Books", "books", "learn", "refit", "search", "search_plain", "sums", "sums_plain"]

_LANES = vector_length(4)
_BLOCK = 256  # vectors whose u lies in the cache together


class Books(NamedTuple):
    """A code laid out for the search. Every book is filled up to whole vectors with codewords that never win."""

    table: np.ndarray  # (depth · padded, dim) float32
    pair: np.ndarray  # (depth, depth · padded, padded) float32: [m, l · padded + i, j] = 2 c_l,i · c_m,j
    norms: np.ndarray  # (depth · padded,) float32: ‖c‖², infinite for codewords that fill up
    n_points: int


def books(table: np.ndarray) -> Books:
    """Lay out a code. table: (depth, n_points, dim) float32."""
    depth, n_points, dim = table.shape
    padded = -(-n_points // _LANES) * _LANES
    flat = np.zeros((depth, padded, dim), np.float32)
    flat[:, :n_points] = table
    flat = flat.reshape(depth * padded, dim)
    pair = np.empty((depth, depth * padded, padded), np.float32)
    for m in range(depth):
        product(flat, np.ascontiguousarray(2 * flat[m * padded : (m + 1) * padded]), transposed=True, out=pair[m])
    norms = (2 * half_norms(flat)).reshape(depth, padded)
    norms[:, n_points:] = np.inf
    return Books(flat, pair, norms.reshape(-1), n_points)


@njit(cache=True, nogil=True)
def _beam(unary, pair, width, found, cost):
    """Widen the beam book by book. found: (n, width, depth); cost: (n, width), best first."""
    n, depth, padded = found.shape[0], pair.shape[0], pair.shape[2]
    scores = np.empty(padded + _LANES, np.float32)
    size = np.ones(n, np.int64)
    best = np.empty(width, np.float32)
    parent = np.empty(width, np.int64)
    child = np.empty(width, np.int64)
    path = np.empty((width, depth), np.int64)
    cost[:, 0] = 0
    for m in range(depth):
        table = pair[m]
        for v in range(n):
            limit = np.float32(np.inf)
            kept = 0
            for b in range(size[v]):
                for j in range(padded):
                    scores[j] = cost[v, b] + unary[v, m * padded + j]
                for q in range(m):
                    row = q * padded + found[v, b, q]
                    for j in range(padded):
                        scores[j] += table[row, j]
                j = first_below(scores, 0, padded, limit)
                while j < padded:
                    s = scores[j]
                    at = min(kept, width - 1)
                    while at > 0 and best[at - 1] > s:  # of equal costs the earlier stays in front
                        best[at], parent[at], child[at] = best[at - 1], parent[at - 1], child[at - 1]
                        at -= 1
                    best[at], parent[at], child[at] = s, b, j
                    kept = min(kept + 1, width)
                    if kept == width:
                        limit = best[width - 1]
                    j = first_below(scores, j + 1, padded, limit)
            for b in range(kept):
                for q in range(m):
                    path[b, q] = found[v, parent[b], q]
            for b in range(kept):
                for q in range(m):
                    found[v, b, q] = path[b, q]
                found[v, b, m] = child[b]
                cost[v, b] = best[b]
            size[v] = kept


@njit(cache=True, nogil=True)
def _conditional_modes(unary, pair, index, sweeps):
    """Re-choose every codeword given all others, book by book, until nothing changes or `sweeps` are done."""
    n, depth = index.shape
    padded = pair.shape[2]
    scores = np.empty(padded, np.float32)
    zeros = np.zeros(padded, np.float32)
    live = np.ones(n, np.bool_)
    for _ in range(sweeps):
        moved = np.zeros(n, np.bool_)
        for m in range(depth):
            table = pair[m]
            for v in range(n):
                if live[v]:
                    for j in range(padded):
                        scores[j] = unary[v, m * padded + j]
                    for q in range(depth):
                        if q != m:
                            row = q * padded + index[v, q]
                            for j in range(padded):
                                scores[j] += table[row, j]
                    score, j = least(scores, 0, zeros, 0, padded)
                    if score < scores[index[v, m]]:
                        index[v, m] = j
                        moved[v] = True
        live = moved


def search(x: np.ndarray, code: Books, *, beam: int, sweeps: int) -> np.ndarray:
    """Indices of a good sum for every vector: int64, (n, depth).

    x: (n, dim) float32. beam: sums that are kept at every book (1: greedy). sweeps: of conditional modes behind it.
    """
    depth, _, padded = code.pair.shape
    if x.ndim != 2 or x.shape[1] != code.table.shape[1] or beam < 1:
        raise BadInput(f"vectors of shape {x.shape}, beam {beam}; (n, {code.table.shape[1]}) and at least 1 are needed")
    if depth == 1:  # the same scores but for a factor of two, so the same indices
        return nearest(np.ascontiguousarray(x), points(code.table[: code.n_points]))[0][:, None]
    out = np.empty((len(x), depth), np.int64)
    minus_two = np.float32(-2) * code.table
    for start in range(0, len(x), _BLOCK):
        rows = np.ascontiguousarray(x[start : start + _BLOCK])
        unary = product(rows, minus_two, transposed=True)
        unary += code.norms
        found = np.empty((len(rows), beam, depth), np.int64)
        _beam(unary, code.pair, beam, found, np.empty((len(rows), beam), np.float32))
        index = np.ascontiguousarray(found[:, 0])
        _conditional_modes(unary, code.pair, index, sweeps)
        out[start : start + _BLOCK] = index
    return out


def search_plain(x: np.ndarray, table: np.ndarray, *, beam: int, sweeps: int) -> np.ndarray:
    """`search` by its definition, distances in float64. table: (depth, n_points, dim)."""
    depth = len(table)
    out = np.empty((len(x), depth), np.int64)
    t = table.astype(np.float64)
    for v, target in enumerate(x.astype(np.float64)):
        beams = [(float(target @ target), ())]
        for m in range(depth):
            grown = []
            for _, path in beams:
                rest = target - sum((t[q, i] for q, i in enumerate(path)), np.zeros(x.shape[1]))
                grown += [(float(((rest - c) ** 2).sum()), (*path, j)) for j, c in enumerate(t[m])]
            beams = sorted(grown, key=lambda g: g[0])[:beam]
        index = list(beams[0][1])
        for _ in range(sweeps):
            before = list(index)
            for m in range(depth):
                rest = target - sum((t[q, i] for q, i in enumerate(index) if q != m), np.zeros(x.shape[1]))
                index[m] = int(((rest - t[m]) ** 2).sum(1).argmin())
            if index == before:
                break
        out[v] = index
    return out


@njit(cache=True, nogil=True)
def _sums(table, index, slices, out):
    n, depth = index.shape[0], table.shape[0]
    dim = table.shape[2]
    for s in range(slices):
        a, b = s * dim // slices, (s + 1) * dim // slices
        for i in range(n):
            for k in range(a, b):
                out[i, k] = table[0, index[i, s * depth], k]
            for m in range(1, depth):
                c = index[i, s * depth + m]
                for k in range(a, b):
                    out[i, k] += table[m, c, k]


def sums(table: np.ndarray, index: np.ndarray, slices: int = 1) -> np.ndarray:
    """What indices stand for: codewords added in the order of the books, float32.

    **Shapes** table: (depth, n_points, dim) float32; index: (n, slices · depth) int64, checked here. Slice s holds the
    coordinates s·dim // slices … (s + 1)·dim // slices, and its indices follow each other. Gives (n, dim).
    """
    depth, n_points, dim = table.shape
    if index.ndim != 2 or index.shape[1] != slices * depth or not 0 < slices <= max(dim, 1):
        raise BadInput(f"indices of shape {index.shape} for {slices} slices of {depth} books")
    if index.size and not 0 <= int(index.min()) <= int(index.max()) < n_points:
        raise BadInput(f"indices {index.min()} … {index.max()} for books of {n_points} codewords")
    claim(len(index) * dim * 4, "sums of codewords")
    out = np.empty((len(index), dim), np.float32)
    _sums(np.ascontiguousarray(table), np.ascontiguousarray(index), slices, out)
    return out


def sums_plain(table: np.ndarray, index: np.ndarray, slices: int = 1) -> np.ndarray:
    """`sums`, by NumPy's gathers."""
    depth, _, dim = table.shape
    out = np.zeros((len(index), dim), np.float32)
    for s in range(slices):
        span = slice(s * dim // slices, (s + 1) * dim // slices)
        for m in range(depth):
            share = table[m, index[:, s * depth + m], span]
            out[:, span] = out[:, span] + share if m else share
    return out


# A codeword is the mean of its n vectors' residuals, drawn to zero as if r more were zero, r = RIDGE · depth · (power of the
# residual) / (power of the source): noise over signal of a codeword, were all books alike. Without it codewords of few
# vectors fit these and nothing else. Both numbers chosen by the error on vectors that were not learned from.
_RIDGE = 3.0
_HEAT = 0.3  # noise on the codewords in the first round, in standard deviations of the residual; none in the last
_BEAM, _SWEEPS, _REFITS = 4, 2, 2


def refit(x: np.ndarray, table: np.ndarray, index: np.ndarray, sweeps: int, ridge: float = 0.0) -> np.ndarray:
    """Codewords that make Σ ‖x − Σ_m c_m‖² + ridge Σ ‖c‖² small for given indices: float32, (depth, n_points, dim).

    Least squares by blocks: one book after the other, given all others, is a mean of residuals in closed form. Without
    ridge no step raises the error.
    """
    table = table.astype(np.float32)
    rest = x - sums(table, index)
    for _ in range(sweeps):
        for m in range(len(table)):
            rest += table[m, index[:, m]]
            mean, mass = centers(rest, None, index[:, m], table.shape[1])
            used = mass > 0
            table[m, used] = (mean * (mass / (mass + ridge + (mass == 0)))[:, None])[used]
            rest -= table[m, index[:, m]]
    return table


def learn(x: np.ndarray, depth: int, n_points: int, *, rounds: int, seed: int) -> np.ndarray:
    """Books for sums that come near the vectors x, which should have mean zero: float32, (depth, n_points, dim).

    Starts from greedy residual k-means; then `rounds` times: search all vectors, fit all books, shake them a little less
    than before.
    """
    table = np.empty((depth, n_points, x.shape[1]), np.float32)
    rest = x
    for m in range(depth):
        table[m] = kmeans(rest, n_points, iterations=10, seed=seed + m)
        rest = rest - table[m, nearest(np.ascontiguousarray(rest), points(table[m]))[0]]
    source = _power(x)
    n_noise = table.size + (table.size & 1)
    for t in range(rounds):
        index = search(x, books(table), beam=_BEAM, sweeps=_SWEEPS)
        left = _power(x - sums(table, index))
        ridge = _RIDGE * depth * left[-1] / source[-1] if source[-1] > 0 else 0.0
        table = refit(x, table, index, _REFITS, ridge)
        if t + 1 < rounds:
            spread = np.sqrt(np.diff(_power(x - sums(table, index)), prepend=0.0))
            noise = gaussian(seed, table.size, stream=2, start=t * n_noise).reshape(table.shape)
            table += (noise * spread * (_HEAT * np.sqrt(1 - (t + 1) / rounds))).astype(np.float32)
    return table


def _power(x: np.ndarray) -> np.ndarray:
    """Mean square of each column, added up from the first to this one: float64, in the order of the rows."""
    mean, _ = centers(x * x, None, np.zeros(len(x), np.int64), 1)
    return np.cumsum(mean[0])
