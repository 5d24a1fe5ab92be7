"""Rounding by gradient descent on what a layer gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.errors import BadConfig
from ..core.stage import Stats
from .base import Codebook, Grid, Rounding
from .rounding import live_hessian

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Reconstruct(Rounding):
    """Weights move until what they round to gives the layer's outputs best: min over V of tr(E H Eᵀ), E = Q(W + V) − W.

    Adam on V, gradients passed straight through Q where W + V is inside the book's span; every row keeps the best it had. A
    weight may move over several steps of the grid. Without a Hessian: nearest.

    steps: of Adam. rate: of learning, in steps of the grid, falling to a tenth along a cosine.
    Source: Hubara et al. 2021, AdaQuant (2006.10518), eq. 2. Differs: outputs by their second moment instead of samples; the
    grid is given, the paper learns its scale too.
    """

    steps: int = 100
    rate: float = 0.02

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 100_000 or not 0 < self.rate <= 10:
            raise BadConfig(f"steps={self.steps}, rate={self.rate}; 1 or more, and a number such as .02, are right")

    def __call__(self, x: Tensor, grid: Grid, codebook: Codebook, stats: Stats | None) -> Tensor:
        import torch

        if stats is None or stats.hessian is None:
            return codebook.nearest(grid.normalize(x))
        hessian = live_hessian(stats.hessian, x.shape[-1]).float()
        hessian = hessian / hessian.diagonal().mean()
        low, high = codebook.span()
        start = grid.normalize(x)
        u, mean, power = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
        best = codebook.nearest(u)
        least = torch.full(x.shape[:-1], float("inf"))
        for t in range(self.steps + 1):
            index = codebook.nearest(u)
            error = grid.denormalize(codebook.lookup(index)) - x
            slope = error @ hessian
            loss = (slope * error).sum(-1)
            better = loss < least
            least = torch.where(better, loss, least)
            best = torch.where(better[..., None], index, best)
            slope = slope * grid.step * ((u >= low) & (u <= high))
            mean.mul_(0.9).add_(slope, alpha=0.1)
            power.mul_(0.999).addcmul_(slope, slope, value=0.001)
            unbiased = (power / (1 - 0.999 ** (t + 1))).sqrt().add_(1e-12 * float(slope.abs().max()) + 1e-30)
            share = 0.55 + 0.45 * float(torch.cos(torch.tensor(torch.pi * t / self.steps)))
            u.addcdiv_(mean, unbiased, value=-self.rate * share / (1 - 0.9 ** (t + 1)))
        return best
