"""A matrix as the product of two thin ones, each coded; fitted to what the layer gives, not to the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from ..core.combine import need
from ..core.errors import BadConfig, BadInput, CorruptStream, NotFitted, claim
from ..core.stage import Kind, Side, Stage, Stats, encoder_only

if TYPE_CHECKING:
    from torch import Tensor

_BETAS = np.linspace(0.0, 0.5, 11)  # beyond, the noise of few calibration tokens is followed (measured)


@dataclass(frozen=True)
class Factors(Stage):
    """W ≈ B A with B (m, r) and A (r, n), in the metric of the outputs; both factors have codecs.

    The rows of A span the best r-dimensional approximation of the target outputs by what the inputs x still allow:

        T = W (H + β D),   H = E[x xᵀ],   D = E[(x_f − x) xᵀ]        target W (x + β (x_f − x)) against x
        U = the r leading left singular vectors of G = T H^(−1/2),   A = Uᵀ T H⁻¹

    and B is the least-squares fit T Âᵀ (Â H Âᵀ)⁻¹ to A as it is stored. With β = 0 that is the PCA of the outputs W x, the
    same as the whitened singular value decomposition; without a Hessian the plain one.

    left, right: codecs of B and A; B's is fitted with the Hessian A H Aᵀ, A's with H. bits: rate of the matrix, from which the
    rank follows: r = ⌊bits · m n / (factor_bits · (m + n))⌋. factor_bits: what the codecs take for a value, about.
    beta: how far the target goes towards the original model's outputs; None: the β in [0, ½] at which rank r holds the
    largest part of ‖G‖², ACES. damping: added to the diagonal of H, as a part of its mean.

    Shapes: x (m, n). Encodes with the A that `fit` found. Raises BadInput for an array that is no matrix, BadConfig where the
    rate leaves no rank.
    Sources: Kaushal et al. 2023, LoRD (2309.14021) (PCA of outputs); Wang et al. 2024, SVD-LLM (2403.07378), Algorithm 1 (the
    same by whitening); Hu et al. 2026, SAES-SVD (2602.03051) (G(β), and ACES for β).
    """

    left: Stage
    right: Stage
    bits: float = 8.0
    factor_bits: float = 16.0
    beta: float | None = 0.0
    damping: float = 1e-3
    stats: Any = encoder_only()
    rows: Any = encoder_only()  # A, (r, n) float32
    target: Any = encoder_only()  # H + β D, (n, n) float64

    takes: ClassVar[Kind] = Kind.ARRAY
    gives: ClassVar[Kind] = Kind.BYTES
    holds_codecs: ClassVar[bool] = True
    payload_role: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        for codec in (self.left, self.right):
            need(codec, Kind.ARRAY, Kind.BYTES, "factors")
        if not 0 < self.bits <= 64 or not 0 < self.factor_bits <= 32:
            raise BadConfig(f"bits {self.bits}, factor_bits {self.factor_bits}; up to 64 and 32 are possible")
        if self.beta is not None and not 0 <= self.beta <= 1:
            raise BadConfig(f"beta {self.beta}; 0 to 1 is possible, or None for ACES")
        if not 0 <= self.damping <= 1e6:
            raise BadConfig(f"damping {self.damping}; a part of the mean diagonal such as .001 is right")

    def children(self) -> Mapping[str, Stage]:
        return {"left": self.left, "right": self.right}

    def push(self, stats: Stats) -> Stats:
        """None: bytes are not changed any more."""
        return Stats()

    def rank(self, m: int, n: int) -> int:
        """Rank of an (m, n) matrix."""
        r = min(int(self.bits * m * n / (self.factor_bits * (m + n)) + 1e-9), m, n)
        if r < 1:
            least = self.factor_bits * (m + n) / (m * n)
            raise BadConfig(
                f"{self.bits:g} bits leave no rank for a matrix of {m} × {n}; {least:.3g} bits are the least"
            )
        return r

    def fit(self, x: Tensor, stats: Stats | None = None) -> Self:
        import torch

        w = _matrix(x)
        h, d = self._moments(stats or Stats(), w.shape[1])
        target = h if d is None else h + self._beta(w, h, d, self.rank(*w.shape)) * d
        a = torch.from_numpy(self._right_factor(w @ target, h))
        right = self.right.fit(a, Stats(hessian=torch.from_numpy(h.astype(np.float32))))
        fitted = self.replace(right=right, rows=a, stats=stats, target=target)
        b, metric = fitted._left_factor(w, _decoded(right, a))
        left = self.left.fit(torch.from_numpy(b), Stats(hessian=torch.from_numpy(metric.astype(np.float32))))
        return fitted.replace(left=left)

    def chosen_beta(self, x: Tensor, stats: Stats) -> float:
        """β as it is set, or as ACES chooses it for x."""
        w = _matrix(x)
        return self._beta(w, *self._moments(stats, w.shape[1]), self.rank(*w.shape))

    def encode(self, x: Tensor) -> tuple[bytes, Side]:
        import torch

        if self.rows is None:
            raise NotFitted("Factors can only decode here: the factor it learned stayed with the encoder; call .fit(x)")
        w = _matrix(x)
        if w.shape[1] != self.rows.shape[1]:
            raise BadInput(f"rows of {w.shape[1]} values; fitted on rows of {self.rows.shape[1]}")
        payload, side = self.right.encode(self.rows)
        b, _ = self._left_factor(w, self.right.decode(payload, side).double().numpy())
        left, left_side = self.left.encode(torch.from_numpy(b))
        return b"", {"left": {**left_side, "payload": left}, "right": {**side, "payload": payload}}

    def decode(self, y: bytes, side: Side) -> Tensor:
        import torch

        from ..kernels.product import product

        b, a = (
            codec.decode(part["payload"], {k: v for k, v in part.items() if k != "payload"})
            for codec, part in ((self.left, side["left"]), (self.right, side["right"]))
        )
        if b.ndim != 2 or a.ndim != 2 or b.shape[1] != a.shape[0]:
            raise CorruptStream(f"factors of shapes {tuple(b.shape)} and {tuple(a.shape)} have no product")
        claim(4 * b.shape[0] * a.shape[1], "the product of two factors")
        top = np.finfo(np.float32).max
        with np.errstate(over="ignore", invalid="ignore"):
            out = product(np.ascontiguousarray(b.numpy()), np.ascontiguousarray(a.numpy()))
        if np.isnan(out).any():
            raise CorruptStream("factors whose product is not a number")
        return torch.from_numpy(np.clip(out, -top, top))

    def _moments(self, stats: Stats, n: int) -> tuple[np.ndarray, np.ndarray | None]:
        """H, damped, and D; (n, n) float64."""
        import torch

        from .rounding import live_hessian

        if stats.hessian is None:
            return np.eye(n), None
        h = live_hessian(stats.hessian, n)
        h = (h + self.damping * h.diagonal().mean() * torch.eye(n, dtype=torch.float64)).numpy()
        if stats.drift is None:
            return h, None
        if stats.drift.shape != (n, n) or not bool(torch.isfinite(stats.drift).all()):
            raise BadInput(f"a drift of shape {tuple(stats.drift.shape)} for rows of {n}; ({n}, {n}) finite is right")
        return h, stats.drift.double().numpy()

    def _beta(self, w: np.ndarray, h: np.ndarray, d: np.ndarray | None, rank: int) -> float:
        if d is None:
            return 0.0
        if self.beta is not None:
            return self.beta
        root = np.linalg.inv(np.linalg.cholesky(h)).T
        g, step = w @ h @ root, w @ d @ root
        parts = [_squares(g + beta * step, rank) for beta in _BETAS]
        return float(_BETAS[int(np.argmax(parts))])

    def _right_factor(self, outputs: np.ndarray, h: np.ndarray) -> np.ndarray:
        """A for T = `outputs`, (m, n): (r, n) float32, each row's largest magnitude 1 and positive."""
        rank, root = self.rank(*outputs.shape), np.linalg.cholesky(h)
        g = np.linalg.solve(root, (outputs / (np.abs(outputs).max() or 1.0)).T)  # (n, m): Gᵀ up to a rotation
        if outputs.shape[0] <= outputs.shape[1]:
            _, u = np.linalg.eigh(g.T @ g)
            a = np.linalg.solve(root.T, g @ u[:, : -rank - 1 : -1]).T
        else:
            _, v = np.linalg.eigh(g @ g.T)
            a = np.linalg.solve(root.T, v[:, : -rank - 1 : -1]).T
        peak = a[np.arange(rank), np.abs(a).argmax(1)]
        return np.ascontiguousarray(a / np.where(peak == 0, 1.0, peak)[:, None], np.float32)

    def _left_factor(self, w: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """B, (m, r) float32, and the metric A H Aᵀ of its rows."""
        h, _ = self._moments(self.stats or Stats(), w.shape[1])
        metric = a @ h @ a.T
        b = np.linalg.lstsq(metric, a @ (w @ self.target).T, rcond=1e-12)[0].T
        top = np.finfo(np.float32).max
        return np.ascontiguousarray(np.clip(b, -top, top), np.float32), metric


def _decoded(codec: Stage, x: Tensor) -> np.ndarray:
    """What the codec makes of x, float64."""
    return codec.decode(*codec.encode(x)).double().numpy()


def _matrix(x: Tensor) -> np.ndarray:
    """(m, n) float64."""
    if x.ndim != 2 or not x.numel():
        raise BadInput(f"shape {tuple(x.shape)}; two factors make a matrix")
    return x.detach().cpu().double().numpy()


def _squares(g: np.ndarray, rank: int) -> float:
    """The part of ‖g‖² in its `rank` largest singular values."""
    gram = g @ g.T if g.shape[0] <= g.shape[1] else g.T @ g
    values = np.linalg.eigvalsh(gram)
    return float(values[-rank:].sum() / max(values.sum(), 1e-300))
