"""PV-tuning: continuous steps on scales and gains, discrete steps on a small subset of codes, in turns."""

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
class _Coded:
    """A matrix as levels (numbers in the ladder's order), a log-factor a group, and Adam's moments of its gradient."""

    matrix: Matrix
    codes: Codes
    number: Tensor
    levels: Tensor
    factor: Tensor
    mean: Tensor
    power: Tensor

    def weight(self) -> Tensor:
        return self.codes.grid.denormalize(self.levels[self.number]) * self.codes.spread(self.factor.exp())

    def index(self) -> Tensor:
        ladder = self.codes.codebook.ladder()
        assert ladder is not None
        return torch.from_numpy(ladder.index[self.number.numpy()])


def _coded(matrix: Matrix, codes: Codes | None) -> _Coded | None:
    ladder = codes.codebook.ladder() if codes is not None and codes.grouped else None
    if codes is None or ladder is None:
        return None
    number = torch.from_numpy(np.argsort(ladder.index)[codes.index.numpy()])
    zeros = torch.zeros(number.shape)
    return _Coded(
        matrix, codes, number, torch.from_numpy(ladder.levels), torch.zeros(codes.lattice), zeros, zeros.clone()
    )


def alternate(
    tuning: Tuning, steps: int, n: int = 2, rate: float = 3e-3, gain_rate: float = 1e-2,
    share: float = 1e-3, trust: float = 1e-2, discrete: bool = True,
) -> int:  # fmt: skip
    """Steps of P (Adam on the log of every group's scale, and on gains of norms) and V (codes); returns moves of codes.

    V: a `share` of a matrix' codes, those whose mean gradient is largest against its scatter, move by one level against it,
    as many as keep ‖ΔW‖ below `trust` · ‖W‖. The rest stay: a step of ordinary length for all would be rounded away.
    discrete: False leaves V out. Matrices without scalar codes and a scale by groups stay as coded. Kept if samples set
    aside are nearer to the original than before.

    Source: Malinovskii et al. 2024, PV-Tuning (2405.14852), algorithm 1 and the subspace of section 3.2. Differs: scalar codes,
    which move by one level at a time; a step of P and one of V in turns; the moments behind V have a mean (.9).
    """
    if steps < 1 or n < 1 or not 0 < share <= 1 or trust <= 0:
        raise BadConfig(f"steps={steps}, n={n}, share={share}, trust={trust}; all above 0, share up to 1, are right")
    found = [_coded(m, tuning.codes(m)) for m in tuning.matrices]
    parts = [c for c in found if c is not None]
    before, old, gains = tuning.judge(), dict(tuning.packets), tuning.gains
    start = {k: p.detach().clone() for k, p in gains.items()}
    params = [tuning.coded.parameter(c.matrix) for c in parts]
    scale_adam = torch.optim.Adam([c.factor for c in parts], lr=rate) if parts else None
    gain_adam = torch.optim.Adam(gains.values(), lr=gain_rate, betas=(0.9, 0.95)) if gains else None
    for p in (*params, *gains.values()):
        p.requires_grad_(True)
    moves = 0
    for step in range(steps):
        tuning.tick(step, steps)
        for c in parts:
            tuning.coded.put(c.matrix, c.weight())
        tuning.gradients(step, n)
        for c, p in zip(parts, params, strict=True):
            assert p.grad is not None
            gradient = c.matrix.take(p.grad)
            c.factor.grad = c.codes.sums(gradient * c.weight())
            c.mean.mul_(0.9).add_(gradient, alpha=0.1)
            c.power.mul_(0.95).addcmul_(gradient, gradient, value=0.05)
            if discrete:
                moves += _move(c, share, trust)
        for p in params:
            p.grad = None
        for adam, top in ((scale_adam, rate), (gain_adam, gain_rate)):
            if adam is not None:
                adam.param_groups[0]["lr"] = top * (1 - step / steps)
                adam.step()
        if gain_adam is not None:
            gain_adam.zero_grad()
    for p in (*params, *gains.values()):
        p.requires_grad_(False)
        p.grad = None
    for c in parts:
        tuning.put(c.matrix, c.codes.packet(c.index(), c.codes.scaled(c.factor.exp())))
    for name in gains:
        tuning.keep(name)
    if tuning.judge() >= before:
        for c in parts:
            tuning.put(c.matrix, old[c.matrix.name])
        with torch.no_grad():
            for name, p in gains.items():
                p.copy_(start[name])
                tuning.keep(name)
    return moves


def _move(c: _Coded, share: float, trust: float) -> int:
    """The V step of one matrix."""
    toward = -c.mean.sign().long()
    other = (c.number + toward).clamp(0, len(c.levels) - 1)
    gap = (c.levels[other] - c.levels[c.number]).abs() * c.codes.grid.step.abs()
    promise = c.mean.abs() / (c.power.sqrt() + 1e-12 * float(c.power.max()) ** 0.5 + 1e-30) * (gap > 0)
    k = max(int(share * promise.numel()), 1)
    best = promise.reshape(-1).topk(k).indices
    room = (trust**2) * float(c.weight().square().sum())
    spent = gap.reshape(-1)[best].square().cumsum(0)
    best = best[(spent <= room) & (promise.reshape(-1)[best] > 0)]
    c.number.view(-1)[best] = other.view(-1)[best]
    c.mean.view(-1)[best] = 0.0
    return len(best)
