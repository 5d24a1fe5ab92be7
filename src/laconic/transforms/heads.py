"""A basis of its own for every attention head: coordinates that are uncorrelated, in order of what they are worth."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from ..core.errors import BadConfig, BadInput, CorruptStream
from ..core.stage import Leaf, Side, Stats, learned
from .base import Transform, fitted, refuse

if TYPE_CHECKING:
    from torch import Tensor

_LEAST = 1e-6  # of the largest eigenvalue; directions below it count as so large


@dataclass(frozen=True)
class HeadBasis(Transform):
    """y = (x − mean_h) B_h with one mean and basis a head, learned: the Karhunen–Loève transform in the metric of the queries.

    With C_h the covariance of the head's vectors and M_h the second moment of what meets them (`Stats.hessian`, for keys that
    of the queries; the identity without), the eigenvectors of M^½ C M^½ give coordinates that are uncorrelated and whose
    squared errors add up to the expected squared error of inner products. Greatest variance first.
    rank: coordinates a vector that are kept; 0: all, and with a Hessian no fewer. centre: whether the mean is taken away.

    Shapes: x (..., n_heads, n_tokens, d) -> (..., n_heads, n_tokens, rank). hessian: (n_heads, d, d) or (d, d).
    Cost: 16 (rank + 1) d bits a head in the model. The synthesis matrix is kept in float16; the analysis is its pseudo-inverse,
    so that its rounding costs nothing.
    Sources: Karhunen 1947, Loève 1948; the metric is that of Yuan et al. 2023, ASVD (2312.05821) and of SVD-LLM (2403.07378),
    with queries in place of inputs.
    """

    rank: int = 0
    centre: bool = True
    mean: np.ndarray | None = learned("float16", "zeros")
    synthesis: np.ndarray | None = learned("float16")

    affine: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise BadConfig(f"rank {self.rank}; 1 or more coordinates, or 0 for all, are right")

    def fit(self, x: Tensor, stats: Stats | None = None) -> Self:
        rows = _heads(x, BadInput)
        n_heads, _, d = rows.shape
        if self.rank > d:
            raise BadConfig(f"rank {self.rank} of vectors of {d}; at most {d}")
        rank = self.rank or d
        if rank < d and stats is not None and stats.hessian is not None:
            raise BadConfig(f"rank {rank} of {d} in the metric of a Hessian: the analysis is a pseudo-inverse, which projects in "
                            "no metric but its own; keep all coordinates and give those of least worth no bits")  # fmt: skip
        mean = rows.mean(1, dtype=np.float64) if self.centre else np.zeros((n_heads, d))
        synthesis = np.empty((n_heads, rank, d))
        for h, metric in enumerate(_metrics(stats, n_heads, d)):
            root, back = _roots(metric, d)
            centred = rows[h] - mean[h]
            _, vectors = np.linalg.eigh(root @ (centred.T @ centred / len(centred)) @ root)
            synthesis[h] = vectors[:, : -rank - 1 : -1].T @ back
            synthesis[h] /= np.linalg.norm(synthesis[h], axis=1, keepdims=True)  # within float16's range
        return self.replace(mean=np.clip(mean, -65504.0, 65504.0), synthesis=synthesis)

    def push(self, stats: Stats) -> Stats:
        import torch

        refuse(self, stats, "importance", "mask", "drift")
        if stats.hessian is None:
            return stats
        a = fitted(self, "synthesis").astype(np.float32)
        h = np.broadcast_to(stats.hessian.numpy(), (len(a), a.shape[2], a.shape[2]))
        return dataclasses.replace(stats, hessian=torch.from_numpy(np.ascontiguousarray(a @ h @ a.transpose(0, 2, 1))))

    def encode(self, x: Tensor) -> tuple[Tensor, Side]:
        import torch

        mean, analysis = self._arrays(x, BadInput)[0], self.analysis()
        rows = _folded(x) - mean[:, None]
        return torch.from_numpy(rows @ analysis).reshape(*x.shape[:-1], analysis.shape[2]), {}

    def decode(self, y: Tensor, side: Side) -> Tensor:
        import torch

        mean, synthesis = self._arrays(y, CorruptStream)
        if y.shape[-1] != synthesis.shape[1]:
            raise CorruptStream(f"{y.shape[-1]} coordinates for a basis of {synthesis.shape[1]}")
        rows = _product(_folded(y), synthesis) + mean[:, None]
        return torch.from_numpy(rows).reshape(*y.shape[:-1], synthesis.shape[2])

    def analysis(self) -> np.ndarray:
        """B, (n_heads, d, rank) float32: the pseudo-inverse of the synthesis as it is stored."""
        return np.linalg.pinv(fitted(self, "synthesis").astype(np.float64)).astype(np.float32)

    def _arrays(self, x: Tensor, error: type[Exception]) -> tuple[np.ndarray, np.ndarray]:
        mean, synthesis = fitted(self, "mean").astype(np.float32), fitted(self, "synthesis").astype(np.float32)
        heads, width = (x.shape[-3], x.shape[-1]) if x.ndim > 2 else (0, 0)
        if synthesis.ndim != 3 or mean.shape != (synthesis.shape[0], synthesis.shape[2]) or heads != len(mean):
            raise error(
                f"a basis {synthesis.shape}, means {mean.shape} for an array {tuple(x.shape)}; one a head is right"
            )
        if width not in synthesis.shape[1:] or not (np.isfinite(mean).all() and np.isfinite(synthesis).all()):
            raise error(f"a basis {synthesis.shape} that is not finite or does not fit vectors of {width}")
        return mean, synthesis


def _product(rows: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """(..., n_heads, n, r) times (n_heads, r, d), by our own product, whose order of additions is the same everywhere."""
    from ..kernels.product import product

    flat = rows.reshape(-1, *rows.shape[-3:])
    out = np.empty((*flat.shape[:3], basis.shape[2]), np.float32)
    for b in range(len(flat)):
        for h in range(flat.shape[1]):
            if flat.shape[2]:
                out[b, h] = product(np.ascontiguousarray(flat[b, h]), basis[h])
    return out.reshape(*rows.shape[:-1], basis.shape[2])


def _folded(x: Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.detach().cpu().numpy(), np.float32)


def _heads(x: Tensor, error: type[Exception]) -> np.ndarray:
    """(..., n_heads, n_tokens, d) -> (n_heads, all tokens, d)."""
    if x.ndim < 3 or not x.numel():
        raise error(f"an array of shape {tuple(x.shape)}; (…, heads, tokens, dim) with values is right")
    rows = _folded(x)
    return np.ascontiguousarray(np.moveaxis(rows, -3, 0).reshape(rows.shape[-3], -1, rows.shape[-1]))


def _metrics(stats: Stats | None, n_heads: int, d: int) -> Any:
    if stats is None or stats.hessian is None:
        return [None] * n_heads
    h = stats.hessian.numpy().astype(np.float64)
    if h.shape not in ((d, d), (n_heads, d, d)):
        raise BadConfig(f"a Hessian of shape {h.shape}; {(n_heads, d, d)} or {(d, d)} is right")
    return np.broadcast_to(h, (n_heads, d, d))


def _roots(metric: np.ndarray | None, d: int) -> tuple[np.ndarray, np.ndarray]:
    """M^½ and M^-½."""
    if metric is None:
        return np.eye(d), np.eye(d)
    values, vectors = np.linalg.eigh((metric + metric.T) / 2)
    values = np.sqrt(np.maximum(values, _LEAST * max(values[-1], 1e-30)))
    return (vectors * values) @ vectors.T, (vectors / values) @ vectors.T


@dataclass(frozen=True)
class OneHead(Transform):
    """(…, n, d) -> (1, N, d): all rows are the tokens of one head, for stages that learn head by head.

    Side: the axes before the last, 8 bytes each. Errors pass unchanged.
    """

    side: ClassVar[Mapping[str, Leaf]] = {"rows": Leaf("int64", "header")}
    affine: ClassVar[bool] = True

    def push(self, stats: Stats) -> Stats:
        refuse(self, stats, "importance", "mask")
        return stats

    def encode(self, x: Tensor) -> tuple[Tensor, Side]:
        return x.reshape(1, -1, x.shape[-1]), {"rows": np.array(x.shape[:-1], np.int64)}

    def decode(self, y: Tensor, side: Side) -> Tensor:
        outer = tuple(int(n) for n in side["rows"].ravel())
        if y.ndim != 3 or len(y) != 1 or min(outer, default=0) < 0 or math.prod(outer) != y.shape[1]:
            raise CorruptStream(f"rows {outer} for an array of shape {tuple(y.shape)}")
        return y.reshape(*outer, y.shape[-1])
