"""k-means: learned points, the same on every machine.

Lloyd's two steps (assign, centre), with a start that is drawn from the data, and repair of empty cells. Every sum runs in
the order of the vectors in float64, so the points depend on the data and the seed alone.

Sources: S. Lloyd, "Least squares quantization in PCM", IEEE Trans. IT 28(2), 1982; D. Arthur, S. Vassilvitskii,
"k-means++: the advantages of careful seeding", SODA 2007.
"""

import numpy as np
from numba import njit

from laconic.core.errors import BadConfig, BadInput
from laconic.kernels.distance import half_norms, nearest, points, weighted
from laconic.kernels.random import permutation, uniform

__all__ = ["centers", "centers_plain", "kmeans", "step"]

STARTS = ("sampled", "plusplus")


@njit(cache=True, nogil=True)
def _centers(x, weights, index, total, mass):
    for i in range(x.shape[0]):
        c = index[i]
        for k in range(x.shape[1]):
            w = np.float64(weights[i, k if weights.shape[1] > 1 else 0])
            total[c, k] += w * np.float64(x[i, k])
            mass[c, k] += w


@njit(cache=True, nogil=True)
def _counted(x, index, total, count):
    for i in range(x.shape[0]):
        c = index[i]
        count[c] += 1
        for k in range(x.shape[1]):
            total[c, k] += x[i, k]


def centers(
    x: np.ndarray, weights: np.ndarray | None, index: np.ndarray, n_points: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted means of the vectors of each cell.

    **Shapes** x: (n, dim) float32; weights: (n, dim) or (n, 1) float32, or None for ones; index: (n,) int64 below
    n_points. Gives means (n_points, dim) float64, zero where there is no weight, and the mass of each cell (n_points,).
    """
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < n_points:
        raise BadInput(f"cells {index.min()} … {index.max()} of {n_points}")
    total = np.zeros((n_points, x.shape[1]))
    if weights is None:
        count = np.zeros(n_points, np.int64)
        _counted(x, index, total, count)
        return total / np.maximum(count, 1)[:, None], count.astype(np.float64)
    mass = np.zeros_like(total)
    _centers(x, weights, index, total, mass)
    return np.divide(total, mass, out=np.zeros_like(total), where=mass > 0), mass.max(1, initial=0.0)


def centers_plain(
    x: np.ndarray, weights: np.ndarray | None, index: np.ndarray, n_points: int
) -> tuple[np.ndarray, np.ndarray]:
    """`centers`, with NumPy's unbuffered additions: the same sums in the same order."""
    w = np.broadcast_to(np.ones((1, 1)) if weights is None else weights.astype(np.float64), x.shape)
    total, mass = np.zeros((n_points, x.shape[1])), np.zeros((n_points, x.shape[1]))
    np.add.at(total, index, w * x.astype(np.float64))
    np.add.at(mass, index, w)
    return np.divide(total, mass, out=np.zeros_like(total), where=mass > 0), mass.max(1, initial=0.0)


@njit(cache=True, nogil=True)
def _errors(x, weights, table, index, out):
    """Weighted squared error of every vector to its point, in float64."""
    for i in range(x.shape[0]):
        total = 0.0
        for k in range(x.shape[1]):
            e = np.float64(x[i, k]) - np.float64(table[index[i], k])
            total += np.float64(weights[i, k if weights.shape[1] > 1 else 0]) * e * e
        out[i] = total


@njit(cache=True, nogil=True)
def _closer(x, weights, point, distance):
    """distance = min(distance, weighted squared distance to one more point)."""
    for i in range(x.shape[0]):
        total = 0.0
        for k in range(x.shape[1]):
            e = np.float64(x[i, k]) - np.float64(point[k])
            total += np.float64(weights[i, k if weights.shape[1] > 1 else 0]) * e * e
        distance[i] = min(distance[i], total)


def _plusplus(x: np.ndarray, weights: np.ndarray, n_points: int, seed: int) -> np.ndarray:
    """Each next point is a vector drawn with probability proportional to its error under the points so far."""
    draws = uniform(seed, n_points, stream=1)
    chosen = [int(draws[0] * len(x))]
    distance = np.full(len(x), np.inf)
    for draw in draws[1:]:
        _closer(x, weights, x[chosen[-1]], distance)
        mass = np.cumsum(distance)
        at = int(np.searchsorted(mass, draw * mass[-1], side="right")) if mass[-1] > 0 else int(draw * len(x))
        chosen.append(min(at, len(x) - 1))
    return x[chosen]


def kmeans(
    x: np.ndarray,
    n_points: int,
    *,
    weights: np.ndarray | None = None,
    iterations: int = 25,
    seed: int = 0,
    start: str = "sampled",
) -> np.ndarray:
    """Points that make Σ w (x − c)² small: float32, (n_points, dim).

    x: (n, dim) float32; weights: (n, dim) or (n, 1) float32, not negative; start: "sampled" (vectors drawn without
    replacement) or "plusplus". A cell that runs empty takes over one of the worst-coded vectors. Stops early when no vector
    changes its cell. With fewer vectors than points the rest of the points repeat.
    """
    if start not in STARTS:
        raise BadConfig(f"k-means starts {start!r}; use {' or '.join(STARTS)}")
    if n_points < 1 or x.ndim != 2 or not len(x):
        raise BadInput(f"{n_points} points from vectors of shape {x.shape}; at least one of each is needed")
    x = np.ascontiguousarray(x, np.float32)
    per_value = weights if weights is not None else np.ones((1, 1), np.float32)
    per_value = np.ascontiguousarray(np.broadcast_to(per_value, (len(x), per_value.shape[1])), np.float32)
    if start == "plusplus":
        table = _plusplus(x, per_value, n_points, seed)
    else:
        table = x[np.resize(permutation(seed, len(x), stream=1), n_points)]
    table = np.ascontiguousarray(table)
    index = np.full(len(x), -1)
    for _ in range(iterations):
        before = index
        if weights is not None and per_value.shape[1] > 1:
            wide, both, bias = weighted(x, per_value, table)
            index, _score = nearest(wide, points(both, bias))
        else:
            index, _score = nearest(x, points(table))  # one weight a vector does not move its nearest point
        table, mass = _moved(x, None if weights is None else per_value, per_value, index, n_points)
        if mass.all() and np.array_equal(index, before):
            break
    return table


def _moved(
    x: np.ndarray, weights: np.ndarray | None, per_value: np.ndarray, index: np.ndarray, n_points: int
) -> tuple[np.ndarray, np.ndarray]:
    """Means of the cells, float32, and their masses; an empty cell takes over one of the worst-coded vectors."""
    means, mass = centers(x, weights, index, n_points)
    table = means.astype(np.float32)
    empty = np.flatnonzero(mass == 0)
    if len(empty):
        error = np.empty(len(x))
        _errors(x, per_value, table, index, error)
        worst = np.argsort(-error, kind="stable")[: len(empty)]
        table[empty[: len(worst)]] = x[worst]
    return table, mass


def step(x: np.ndarray, table: np.ndarray, penalty: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One step of k-means in which a cell costs its penalty: new points, how many vectors each cell had, and the cells.

    x: (n, dim) float32; table: (n_points, dim) float32; penalty: (n_points,) float32, added to ‖x − c‖² / 2. Gives float32
    (n_points, dim), float64 (n_points,) and int64 (n,). With penalties of zero this is what `kmeans` repeats.
    """
    index, _score = nearest(x, points(table, half_norms(table) + penalty))
    ones = np.ones((len(x), 1), np.float32)
    moved, mass = _moved(x, None, ones, index, len(table))
    return moved, mass, index
