"""Error control compared, on workers of one process: quadratics whose minima lie apart, and digits split by label."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..sources.gradients.simulate import simulate
from .weights_text import data_folder

RULES = {"EF": "ef-levels", "EF21": "ef21", "EControl": "econtrol"}


def quadratics(
    rule: str, noise: float, lr: float, *, steps: int = 1000, n_workers: int = 8, d: int = 200, apart: float = 10.0,
    seed: int = 0, fraction: float = 0.05, **settings: Any,
) -> float:  # fmt: skip
    """Excess loss of f = mean ½ (x − c_i)ᵀ A_i (x − c_i), mean over the last fifth of the steps.

    c_i: normal, of deviation `apart`. A_i: diagonal, uniform in [.1, 1]. noise: deviation of normal noise on every coordinate of
    a gradient. The same compressor for all rules.
    """
    g = torch.Generator().manual_seed(seed)
    curvature = torch.rand(n_workers, d, generator=g) * 0.9 + 0.1
    centre = apart * torch.randn(n_workers, d, generator=g)
    best = (curvature * centre).sum(0) / curvature.sum(0)
    workers = simulate(RULES[rule], n_workers, smallest=1, fraction=fraction, levels=8, **settings)
    x, late = torch.zeros(d), []
    for t in range(steps):
        grads = curvature * (x - centre) + noise * torch.randn(n_workers, d, generator=g)
        x = x - lr * workers.exchange([{"x": v.reshape(1, d)} for v in grads])["x"].reshape(-1)
        if t >= 0.8 * steps:
            late.append(float((curvature.mean(0) * (x - best).square()).sum() / 2))
    return float(np.mean(late)) if np.isfinite(late).all() else float("inf")


RIDGE, A_DIGIT = 1e-2, 60


class Digits:
    """Ridge-regularised softmax regression on MNIST for ten workers, each with the first 60 pictures of one digit."""

    def __init__(self) -> None:
        with np.load(data_folder() / "mnist" / "mnist.npz") as z:
            x, y = torch.from_numpy(z["x_train"]).reshape(-1, 784).float() / 255, torch.from_numpy(z["y_train"]).long()
        chosen = torch.cat([torch.nonzero(y == digit).flatten()[:A_DIGIT] for digit in range(10)])
        self.x, self.y = x[chosen], y[chosen]

    def gradient(self, w: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """Of the mean over pictures `at`."""
        p = torch.softmax(self.x[at] @ w.T, 1)
        p[torch.arange(len(at)), self.y[at]] -= 1
        return p.T @ self.x[at] / len(at) + RIDGE * w

    def objective(self, w: torch.Tensor) -> float:
        """Of all pictures."""
        return float(torch.nn.functional.cross_entropy(self.x @ w.T, self.y) + RIDGE / 2 * w.square().sum())

    def optimum(self) -> float:
        """Found with full gradients."""
        w, everything = torch.zeros(10, 784), torch.arange(len(self.x))
        for _ in range(3000):
            w -= 0.5 * self.gradient(w, everything)
        return self.objective(w)

    def train(self, rule: str, batch: int, lr: float, steps: int = 800, seed: int = 0, **settings: Any) -> float:
        """Objective, mean over the last fifth of the steps. batch: pictures a worker and step, 0 for all of its 60."""
        workers = simulate(RULES[rule], 10, smallest=1, levels=8, **settings)
        w, g, late = torch.zeros(10, 784), torch.Generator().manual_seed(seed), []
        for t in range(steps):
            picks = [torch.randperm(A_DIGIT, generator=g)[: batch or A_DIGIT] + A_DIGIT * digit for digit in range(10)]
            w = w - lr * workers.exchange([{"w": self.gradient(w, at)} for at in picks])["w"]
            if t >= 0.8 * steps and t % 10 == 0:
                late.append(self.objective(w))
        return float(np.mean(late))
