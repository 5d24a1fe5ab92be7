"""A second scale for every column, found in turns with the quantized values: D²Quant's dual-scale quantizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from ..core.errors import BadConfig, BadInput
from ..core.stage import Stats, learned
from ..transforms.base import fitted
from ..transforms.scaling import Diagonal
from .base import Codebook, Scale, error_weights

if TYPE_CHECKING:
    from torch import Tensor

_MOST = 64.0  # a factor lies within this of 1


@dataclass(frozen=True)
class DualScale(Diagonal):
    """y = x / s, one factor for every column, such that x ≈ Q(x / s) · s has least squared error.

        s = 1;  repeat:  q = Q(x / s),   s_j = Σ_r x_rj q_rj / Σ_r q_rj²

    Q rounds to nearest with `codebook` and `scale`; errors count by the importance or the Hessian's diagonal. The best of the
    iterates is kept, 1 among them, so it is never worse than none. Cost: 16 bits a column in the model.
    A runtime can have the factors for nothing where the inputs come from a matrix of their own (a down projection behind
    an up projection): x Wᵀ = (x · s) (W / s)ᵀ, so the rows of that matrix are multiplied by s instead.

    Source: Yan et al. 2026, D²Quant (2602.02546), the dual-scale quantizer. Differs: weighted errors; the best iterate;
    factors are half floats within 1/64 … 64.
    """

    codebook: Codebook
    scale: Scale
    rounds: int = 15
    factors: np.ndarray | None = learned("float16", "scales")

    def __post_init__(self) -> None:
        if not 0 <= self.rounds <= 1000:
            raise BadConfig(f"{self.rounds} rounds; 0 to 1000 are right")

    def divisors(self) -> np.ndarray:
        return fitted(self, "factors").astype(np.float32)

    def fit(self, x: Tensor, stats: Stats | None = None) -> Self:
        import torch

        if not x.ndim:
            raise BadInput("a number without an axis has no columns")
        rows, weights = x.reshape(-1, x.shape[-1]), error_weights(stats)
        if weights is not None and weights.shape == x.shape:
            weights = weights.reshape(rows.shape)
        s = best = torch.ones(x.shape[-1])
        least = float("inf")
        for _ in range(self.rounds + 1 if x.numel() else 0):
            q = self._quantized(rows / s, weights if weights is None else weights * s.square())
            squares = (q * s - rows).double().square()
            error = float((squares if weights is None else squares * weights).sum())
            if error < least:
                best, least = s, error
            w = torch.ones(()) if weights is None or weights.shape != rows.shape else weights.double()
            bottom = (w * q.double().square()).sum(dim=0)
            found = torch.where(bottom > 0, (w * rows.double() * q).sum(dim=0) / bottom, s.double())
            s = torch.where(found > 0, found, s).clamp(1 / _MOST, _MOST).half().float()
        return self.replace(factors=best.numpy())

    def _quantized(self, y: Tensor, weights: Tensor | None) -> Tensor:
        grid = self.scale.expand(self.scale.measure(y, self.codebook, weights), tuple(y.shape))
        return grid.denormalize(self.codebook.lookup(self.codebook.nearest(grid.normalize(y))))
