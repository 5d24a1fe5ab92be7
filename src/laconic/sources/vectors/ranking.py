"""Which vectors are nearest: metrics, and the best k of many blocks."""

from __future__ import annotations

import numpy as np

from ...core.errors import BadConfig, BadInput, unknown

METRICS = ("l2", "ip", "cosine")


def check_metric(metric: str) -> None:
    """Raises BadConfig for a name that is none of `METRICS`."""
    if metric not in METRICS:
        raise unknown("metric", metric, list(METRICS))


def as_rows(x: object, dim: int, what: str) -> np.ndarray:
    """(n, dim) float32 of an array or tensor of numbers. Raises BadInput with the row where a value is not finite."""
    detach = getattr(x, "detach", None)
    a = np.asarray(detach().cpu().numpy() if detach is not None and hasattr(x, "cpu") else x)
    if a.dtype.kind not in "fiu":
        raise BadInput(f"{what} are {a.dtype}; float or integer vectors are right")
    if a.ndim != 2 or a.shape[1] != dim:
        raise BadInput(f"{what} have shape {a.shape}; (n, {dim}) is right")
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(a, np.float32)
    finite = np.isfinite(rows).all(1)
    if not finite.all():
        raise BadInput(
            f"row {int(np.flatnonzero(~finite)[0])} of {what} has a value that is NaN, infinite or beyond float32"
        )
    return rows


def directions(rows: np.ndarray) -> np.ndarray:
    """Rows divided by their norms; zeros stay."""
    norms = np.sqrt(np.square(rows, dtype=np.float64).sum(1, keepdims=True))
    return np.divide(rows, norms, out=np.zeros(rows.shape, np.float64), where=norms > 0).astype(np.float32)


def costs(queries: np.ndarray, vectors: np.ndarray, metric: str, products: np.ndarray | None = None) -> np.ndarray:
    """(n_queries, n) float32, small where near: squared distances, or inner products with a minus.

    cosine: queries are directions; vectors need not be, they are divided by their norms. products: queries @ vectors.T, where
    they are known.
    """
    products = queries @ vectors.T if products is None else products
    if metric == "ip":
        return -products
    powers = np.square(vectors, dtype=np.float64).sum(1)
    if metric == "cosine":
        norms = np.sqrt(powers).astype(np.float32)
        return np.divide(-products, norms, out=np.zeros_like(products), where=norms > 0)
    own = np.square(queries, dtype=np.float64).sum(1)
    return np.maximum(own[:, None] + powers - 2.0 * products, 0).astype(np.float32)


class Best:
    """The k least costs of every query, in order of (cost, number), over blocks that come one after the other."""

    def __init__(self, n_queries: int, k: int) -> None:
        if k < 1:
            raise BadConfig(f"k={k}; at least 1 is right")
        self.cost = np.full((n_queries, k), np.inf, np.float32)
        self.number = np.full((n_queries, k), -1, np.int64)

    def add(self, cost: np.ndarray, number: np.ndarray, queries: np.ndarray | None = None) -> None:
        """cost: (n_queries, n), inf for what is left out; number: (n,) int64; queries: places of the rows, all by default."""
        k = self.cost.shape[1]
        at = np.arange(len(self.cost)) if queries is None else queries
        if cost.shape[1] > 4 * k:  # ties at the edge stay in
            edge = np.partition(cost, k - 1, axis=1)[:, k - 1]
            some = np.flatnonzero((cost <= np.minimum(edge, self.cost[at, -1])[:, None]).any(0))
            cost, number = cost[:, some], number[some]
        both = np.concatenate([self.cost[at], cost], 1)
        names = np.concatenate([self.number[at], np.broadcast_to(number, cost.shape)], 1)
        names = np.where(np.isinf(both), np.int64(-1), names)
        order = np.lexsort((names, both), axis=1)[:, :k]
        self.cost[at] = np.take_along_axis(both, order, 1)
        self.number[at] = np.take_along_axis(names, order, 1)

    def distances(self, metric: str) -> np.ndarray:
        """As they are shown: inner products are large where near, and −inf where there is nothing."""
        return self.cost if metric == "l2" else -self.cost
