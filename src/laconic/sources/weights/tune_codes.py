"""Codes that move on the grids of their packets: rounding by the model's KL, and steps of a subset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...core.errors import BadConfig
from ...quantize.codes import Codes

if TYPE_CHECKING:
    from torch import Tensor

    from .network import Matrix
    from .tune import Tuning


@dataclass
class _Between:
    """A matrix between the two neighbours of each weight on its grid: down + x · gap, x in [0, 1].

    y: away from which end each is drawn, ½ for neither. rank: the number of the lower neighbour in the ladder.
    """

    matrix: Matrix
    codes: Codes
    down: Tensor
    gap: Tensor
    y: Tensor
    rank: np.ndarray
    x: Tensor

    def weight(self) -> Tensor:
        return self.down + self.x * self.gap

    def rounded(self) -> Tensor:
        """Indices of the nearer ends."""
        ladder = self.codes.codebook.ladder()
        assert ladder is not None
        return torch.from_numpy(ladder.index[self.rank + (self.x >= 0.5).numpy()])


def _between(matrix: Matrix, codes: Codes, original: Tensor, anchor: float) -> _Between | None:
    ladder = codes.codebook.ladder()
    if ladder is None or len(ladder.levels) < 2:
        return None
    grid, most = codes.grid, len(ladder.levels) - 2
    u = grid.normalize(original).numpy()
    below = np.searchsorted(ladder.levels, u, side="right") - 1
    if anchor:  # the coded level is one end, the other lies where the original does
        number = np.argsort(ladder.index)[codes.index.numpy()]
        below = np.where(u > ladder.levels[number], number, number - 1)
    rank = np.clip(below, 0, most)
    low, high = (grid.denormalize(torch.from_numpy(ladder.levels[rank + i])) for i in (0, 1))
    gap = high - low
    if anchor:
        x = torch.from_numpy((number > rank).astype(np.float32))
        return _Between(matrix, codes, low, gap, 0.5 + anchor * (x - 0.5), rank, x)
    y = torch.where(gap == 0, 0.0, (original - low) / torch.where(gap == 0, 1.0, gap)).clamp(0, 1)
    return _Between(matrix, codes, low, gap, y, rank, y.clone())


def round_by_divergence(
    tuning: Tuning,
    steps: int,
    n: int = 2,
    rate: float = 0.1,
    strength: float = 1e4,
    clamp: float = 1.0,
    anchor: float = 0.5,
) -> float:
    """Every weight to one of its two neighbours on the grid, all weights of the model at once, by the KL.

        x ← clip(x − Adam[−(2y − 1) + clip(strength · ∂KL/∂x, ±clamp)], 0, 1)

    The first term draws each weight to an end, the second to where the model stays what it was. With `anchor` 0 y is where
    the original lies between its neighbours, and x starts there. With more, x starts at the code that is there, y is
    ½ ± anchor / 2 on its side, and the other end is the neighbour towards the original: what error feedback has found holds
    unless the divergence says otherwise. Matrices whose packets have no scalar codes stay as coded. The rounded model is
    kept if it is nearer to the original than what was there, by samples set aside. Returns the share of weights that had
    reached an end before the last rounding.

    Source: Chee et al. 2025, DiscQuant (2501.06417), algorithm 1. Differs: starts at the original weights or at codes, not at
    random.
    """
    if steps < 1 or n < 1:
        raise BadConfig(f"steps={steps}, n={n}; 1 or more is right")
    found = [
        _between(m, c, tuning.original_weight(m), anchor) for m in tuning.matrices if (c := tuning.codes(m)) is not None
    ]
    parts = [p for p in found if p is not None]
    if not parts:
        return 1.0
    before = tuning.judge()
    params = {id(p): p for p in (tuning.coded.parameter(b.matrix) for b in parts)}
    adam = torch.optim.Adam([b.x for b in parts], lr=rate)
    for p in params.values():
        p.requires_grad_(True)
    for step in range(steps):
        tuning.tick(step, steps)
        for b in parts:
            tuning.coded.put(b.matrix, b.weight())
        tuning.gradients(step, n)
        for b in parts:
            gradient = tuning.coded.parameter(b.matrix).grad
            assert gradient is not None
            pull = b.matrix.take(gradient) * b.gap
            b.x.grad = 1 - 2 * b.y + (strength * pull).clamp_(-clamp, clamp)
        for p in params.values():
            p.grad = None
        for group in adam.param_groups:
            group["lr"] = rate * 0.5 * (1 + float(np.cos(np.pi * step / steps)))
        adam.step()
        for b in parts:
            b.x.clamp_(0, 1)
    for p in params.values():
        p.requires_grad_(False)
    decided = sum(float(((b.x == 0) | (b.x == 1)).sum()) for b in parts) / sum(b.x.numel() for b in parts)
    old = {b.matrix.name: tuning.packets[b.matrix.name] for b in parts}
    for b in parts:
        tuning.put(b.matrix, b.codes.packet(b.rounded()))
    if tuning.judge() >= before:
        for b in parts:
            tuning.put(b.matrix, old[b.matrix.name])
    return decided
