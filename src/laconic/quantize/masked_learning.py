"""Learns the masked network behind `Masked`, in floats; `Learner.network` gives it in the integers that codes are made with."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..core.telling import tell
from .autoregressive import ranges

if TYPE_CHECKING:
    from torch import Tensor

    from ..kernels.masked import Network

BATCH = 128
_RATE, _DECAY = 2.5e-3, 0.2  # of AdamW
_DROPPED = 0.2  # of the units
_STRETCHED = 0.05  # standard deviation of what half of the vectors are stretched by
_CHECKS = 20  # looks at vectors that are not learned from, of which the best is kept
_BITS16 = 32767
_TOLD = 20  # steps between two words on how far it is


class Scaled(NamedTuple):
    """Weights in whole numbers, and the power of two that they were multiplied by."""

    whole: np.ndarray
    exponent: int


def scaled(weights: np.ndarray, most: int) -> Scaled:
    """Into 16 bits, as fine as they allow, with an exponent from -8 to `most`."""
    peak = float(np.abs(weights).max(initial=0))
    exponent = max(-8, min(most, math.floor(math.log2(_BITS16 / peak)))) if peak else most
    return Scaled(np.rint(np.clip(np.ldexp(weights, exponent), -_BITS16, _BITS16)).astype(np.int16), exponent)


class Learner:
    """The network in floats: inputs and outputs are measured in what levels spread by, so that it outlives a change of step.

    d: coordinates. h: units. seed: of weights, batches and dropping.
    """

    def __init__(self, d: int, h: int, seed: int = 0) -> None:
        import torch

        from ..kernels.masked import FEATURES, degrees, first_units

        self.d, self.h = d, h
        self.draw = torch.Generator().manual_seed(seed)
        self.first = first_units(d, h)
        degree = torch.from_numpy(degrees(d, h))  # units see this many
        at = torch.arange(d)
        self.sees = (at < degree[:, None]).float().repeat(1, FEATURES)  # (h, 3d)
        self.feeds = (degree <= at[:, None]).float().repeat(2, 1)  # (2d, h)
        self.skips = (at < at[:, None]).float().repeat(2, FEATURES)  # (2d, 3d)
        scale = self.sees.sum(1, keepdim=True).clamp_min(1).rsqrt()
        first = torch.randn(h, FEATURES * d, generator=self.draw) * scale
        spread = torch.cat([torch.zeros(d), torch.full((d,), -0.5)])
        self.weights = [first, torch.zeros(2 * d, h), torch.zeros(2 * d, FEATURES * d), torch.zeros(h), spread]
        self.mean = self.size = torch.zeros(0)
        self.centre = np.zeros(d)
        self.step = 1.0

    def learn(
        self, rows: np.ndarray, q: np.ndarray, held: np.ndarray, step: float, steps: int, past: int, total: int
    ) -> None:
        """Takes `steps` of AdamW, of `total` of which some are past. rows: (n, d) values; q: their levels; held: levels of
        others, to judge by, maybe none."""
        import torch

        self.step, self.centre = step, np.rint(q.mean(0))
        low, high = ranges(q)
        self.low, self.high = torch.from_numpy(low).float(), torch.from_numpy(high).float()
        t, levels = torch.from_numpy(rows / step).float(), torch.from_numpy(q).float()
        phi = self._features(levels)
        self.mean, self.size = phi.mean(0), phi.std(0, correction=0) + 0.1
        weights = [w.clone().requires_grad_() for w in self.weights]
        kept = [w.clone() for w in self.weights]
        groups = [{"params": weights[:3], "weight_decay": _DECAY}, {"params": weights[3:], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=_RATE)
        plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
        judged = torch.from_numpy(held).float()
        best, least = kept, math.inf
        for at in range(steps):
            if at % _TOLD == 0:
                tell(past + at, total, "learning a network")
            rows_ = torch.randint(len(t), (min(BATCH, len(t)),), generator=self.draw)
            some = levels[rows_]
            stretched = t[rows_] * (1 + _STRETCHED * torch.randn(len(rows_), 1, generator=self.draw))
            chosen = torch.rand(len(rows_), 1, generator=self.draw) < 0.5
            some = torch.where(chosen, stretched.round().clamp(self.low, self.high), some)
            loss = self._bits(weights, some, _DROPPED).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            plan.step()
            part = 1 - min(0.99, at / (at + 10))
            with torch.no_grad():
                for old, new in zip(kept, weights, strict=True):
                    old.lerp_(new, part)
                if len(judged) and (at + 1) % max(1, steps // _CHECKS) == 0:
                    bits = float(self._bits(kept, judged, 0.0).mean())
                    if bits < least:
                        best, least = [w.clone() for w in kept], bits
        self.weights = best if len(judged) else kept

    def network(self, step: float, low: np.ndarray, high: np.ndarray) -> tuple[Network, tuple[int, int, int]]:
        """For levels of a step, near the one that was learned with; and the exponents of its three kinds of weights."""
        from ..kernels.autoregressive import ONE
        from ..kernels.masked import FEATURES, Network, gains

        d, h, ratio = self.d, self.h, self.step / step
        first, second, skip, unit, out = (w.double().numpy() for w in self.weights)
        mean, size = self.mean.double().numpy().copy(), self.size.double().numpy().copy()
        both = np.repeat([ratio, ratio, 1.0], d)
        mean, size = mean * both, size * both
        turn = np.concatenate([size[:d], np.full(d, 1 / math.log(2))])[:, None]  # to steps, and to octaves
        first, skip = first * self.sees.numpy() / size, turn * skip * self.skips.numpy() / size
        second = turn * second * self.feeds.numpy()
        octaves = out[d:] / math.log(2) + np.log2(size[:d]) + 1  # m is twice the logistic's scale
        start = np.stack([mean[:d] + size[:d] * out[:d], octaves]) - (skip @ mean).reshape(2, d)
        inward, outward, across = scaled(first, 14), scaled(second, 14), scaled(skip, 14)
        net = Network(
            np.ascontiguousarray(inward.whole.reshape(h, FEATURES, d).transpose(2, 1, 0)),
            np.ascontiguousarray(outward.whole.reshape(2, d, h).transpose(2, 0, 1)),
            np.ascontiguousarray(across.whole.reshape(2, d, FEATURES, d).transpose(3, 2, 0, 1)),
            np.rint(np.ldexp(unit - first @ mean, inward.exponent)),
            np.rint(ONE * start),
            self.first,
            gains(inward.exponent, outward.exponent, across.exponent),
            np.rint(self.centre * ratio).astype(np.int64),
            low,
            high,
        )
        return net, (inward.exponent, outward.exponent, across.exponent)

    def _features(self, q: Tensor) -> Tensor:
        import torch

        distance = (q - torch.from_numpy(self.centre).float()).abs()
        return torch.cat([q, distance, distance.clamp(max=1)], 1)

    def _bits(self, weights: list[Tensor], q: Tensor, dropped: float) -> Tensor:
        """(n, d), of each level."""
        import torch
        from torch.nn.functional import linear

        first, second, skip, unit, out = weights
        phi = (self._features(q) - self.mean) / self.size
        hidden = linear(phi, first * self.sees, unit).relu()
        if dropped:
            hidden = hidden * (torch.rand(hidden.shape, generator=self.draw) >= dropped) / (1 - dropped)
        both = linear(hidden, second * self.feeds, out) + linear(phi, skip * self.skips)
        d = self.d
        p, narrow = self.mean[:d] + self.size[:d] * both[:, :d], torch.exp(-both[:, d:].clamp(-5, 6)) / self.size[:d]
        above = torch.where(q >= self.high, 1.0, torch.sigmoid((q + 0.5 - p) * narrow))
        below = torch.where(q <= self.low, 0.0, torch.sigmoid((q - 0.5 - p) * narrow))
        return -torch.log2((above - below).clamp_min(2.0**-18))
