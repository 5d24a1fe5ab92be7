"""Learned bases of the last axis: the Karhunen–Loève transform, and low rank in three metrics."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ..core.errors import BadConfig, BadInput, CodecError, CorruptStream, NotFitted
from ..core.stage import Stats, encoder_only, learned
from .base import Linear, Orthogonal, fitted, of_width, to_rows

if TYPE_CHECKING:
    from torch import Tensor

MAX_ORDER = 4096
_DAMPING = 0.01  # of the mean diagonal, as GPTQ damps


@dataclass(frozen=True)
class KLT(Orthogonal):
    """y = x B with B the eigenvectors of the second moment of the rows, greatest eigenvalue first.

    Put `Center` in front for the covariance (PCA). Cost: 16 n² bits in the model. The basis is kept in float16 and made
    orthonormal again where it is used, by Newton–Schulz steps in float64 with sums in a fixed order: encoder and decoder
    see one exactly orthonormal matrix, so the transform itself loses nothing but rounding. n ≤ 4096.
    Sources: Karhunen 1947, Loève 1948; Björck & Bowie, SIAM J. Numer. Anal. 8, 1971 (the steps).
    """

    basis: np.ndarray | None = learned("float16")

    def fit(self, x: Tensor, stats: Stats | None = None) -> Self:
        rows = to_rows(x).astype(np.float64)
        _, vectors = np.linalg.eigh(rows.T @ rows)
        return self.replace(basis=vectors[:, ::-1])

    def analyse(self, rows: np.ndarray) -> np.ndarray:
        from ..kernels.product import product

        return product(rows, self._basis(rows, BadInput))

    def synthesize(self, rows: np.ndarray) -> np.ndarray:
        from ..kernels.product import product

        return product(rows, self._basis(rows, CorruptStream), transposed=True)

    def _basis(self, rows: np.ndarray, error: type[CodecError]) -> np.ndarray:
        stored = of_width(fitted(self, "basis"), rows.shape[1], "basis", error)
        if rows.shape[1] > MAX_ORDER:
            raise error(f"a basis of {rows.shape[1]} channels; at most {MAX_ORDER} are allowed")
        if stored.shape != (rows.shape[1],) * 2:
            raise error(f"a basis of shape {stored.shape} for rows of {rows.shape[1]}")
        exact = _orthonormal(stored.tobytes(), len(stored))
        if exact is None:
            raise error("the basis is not orthonormal, not even nearly")
        return exact


@lru_cache(maxsize=4)
def _orthonormal(stored: bytes, n: int) -> np.ndarray | None:
    """The orthonormal matrix nearest to a float16 matrix that is nearly so; None where it is not."""
    from ..kernels.product import product

    b = np.frombuffer(stored, np.float16).reshape(n, n).astype(np.float64)
    for _ in range(4):  # the error is squared each time: 1e-2, 1e-4, 1e-8, 1e-16
        gram = product(np.ascontiguousarray(b.T), b)
        if np.abs(gram - np.eye(n)).max() > 0.25:
            return None
        b = product(b, 1.5 * np.eye(n) - 0.5 * gram)
    return b.astype(np.float32)


@dataclass(frozen=True)
class LowRank(Linear):
    """x ≈ y A with `rank` coordinates y a row; both are coded. What the rank leaves out is lost (or a residual's).

    metric: where the error is smallest.
      "plain"     ‖x − yA‖²: the truncated singular value decomposition (Eckart & Young 1936)
      "scaled"    ‖(x − yA) S‖², S = diag(a^alpha), a the root mean square of the inputs (ASVD, 2312.05821, eq. 7)
      "whitened"  (x − yA) H (x − yA)ᵀ, the loss on the layer's output (SVD-LLM, 2403.07378, Algorithm 1)
    Shapes: x (..., n) -> y (..., rank). Cost: 16 · rank · n bits in the model.
    A is kept in float16; y is then the least-squares fit to A as it is stored, so A's rounding costs little.
    Push: the Hessian of y is A H Aᵀ. The encoder must be the one that was fitted: it keeps its analysis matrix.
    """

    rank: int
    metric: str = "plain"
    alpha: float = 0.5
    synthesis: np.ndarray | None = learned("float16")
    analysis: Any = encoder_only()

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise BadConfig(f"rank {self.rank}; at least 1 is needed")
        if self.metric not in ("plain", "scaled", "whitened"):
            raise BadConfig(f"metric {self.metric!r}; plain, scaled or whitened are possible")

    def fit(self, x: Tensor, stats: Stats | None = None) -> Self:
        rows = to_rows(x).astype(np.float64)
        n = rows.shape[1]
        if self.rank > n:
            raise BadConfig(f"rank {self.rank} of rows of {n}; at most {n}")
        root = self._root(stats, n)
        _, v = np.linalg.eigh(root.T @ (rows.T @ rows) @ root)  # right singular vectors of x R
        a = np.linalg.solve(root.T, v[:, : -self.rank - 1 : -1]).T  # A = Vᵀ R⁻¹
        a /= np.abs(a).max(1, keepdims=True)  # the sizes belong to y: A's float16 must not overflow
        fitted_ = self.replace(synthesis=a)
        stored = fitted(fitted_, "synthesis").astype(np.float64)
        weighted = stored @ root @ root.T
        analysis = np.linalg.lstsq(stored @ weighted.T, weighted, rcond=None)[0].T  # B = M Aᵀ (A M Aᵀ)⁻¹
        return fitted_.replace(analysis=np.ascontiguousarray(analysis, np.float32))

    def _root(self, stats: Stats | None, n: int) -> np.ndarray:
        """R with R Rᵀ the metric, (n, n) float64."""
        if self.metric == "plain":
            return np.eye(n)
        if stats is None or stats.hessian is None or tuple(stats.hessian.shape) != (n, n):
            raise BadConfig(f"metric {self.metric!r} looks at the inputs; fit with a Hessian of shape {(n, n)}")
        h = stats.hessian.detach().cpu().numpy().astype(np.float64)
        damping = _DAMPING * max(h.diagonal().mean(), 1e-300)
        if self.metric == "scaled":
            return np.diag((h.diagonal() + damping) ** (self.alpha / 2))
        return np.linalg.cholesky(h + damping * np.eye(n))

    def analyse(self, rows: np.ndarray) -> np.ndarray:
        from ..kernels.product import product

        if self.analysis is None:
            raise NotFitted("LowRank can only decode here: its analysis matrix stayed with the encoder; call .fit(x)")
        return product(rows, of_width(self.analysis.T, rows.shape[1], "analysis", BadInput).T)

    def synthesize(self, rows: np.ndarray) -> np.ndarray:
        from ..kernels.product import product

        a = fitted(self, "synthesis").astype(np.float32)
        if a.ndim != 2 or a.shape[0] != rows.shape[1] or not np.isfinite(a).all():
            raise CorruptStream(f"a factor of shape {a.shape} for rows of {rows.shape[1]}")
        return product(rows, a)
