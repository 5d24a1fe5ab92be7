"""Error control compared, on workers of one process: quadratics whose minima lie apart, and digits split by label."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..sources.gradients.simulate import simulate
from .weights_text import data_folder

RULES = {"EF": "ef-levels", "EF21": "ef21", "EControl": "econtrol"}


def quadratics(
    rule: str, noise: float, lr: float, *, steps: int = 1000, n_workers: int = 8, d: int = 200, apart: float = 10.0, seed: int = 0,
    fraction: float = 0.05, **settings: Any,
) -> float:  # fmt: skip
    """Excess loss, mean over the last fifth of the steps, of f = mean ½ (x − c_i)ᵀ A_i (x − c_i) with normal c_i of deviation `apart`.

    A_i: diagonal, uniform in [.1, 1]. Gradients have normal noise of deviation `noise` a coordinate. The same compressor for all.
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


def label_split(
    rule: str | None, lr: float, *, steps: int = 500, batch: int = 8, seed: int = 0, fraction: float = 0.01, **settings: Any
) -> float:
    """Training loss, at the end, of softmax regression on MNIST by ten workers of one digit each. rule: None sends everything."""
    with np.load(data_folder() / "mnist" / "mnist.npz") as z:
        x, y = torch.from_numpy(z["x_train"]).reshape(-1, 784).float() / 255, torch.from_numpy(z["y_train"]).long()
    mine = [torch.nonzero(y == digit).flatten() for digit in range(10)]
    chosen = {"fraction": fraction, "levels": 8, **settings} if rule else {}
    workers = simulate(RULES[rule] if rule else "none", 10, smallest=1, **chosen)
    w, g = torch.zeros(10, 784), torch.Generator().manual_seed(seed)

    def gradient(at: torch.Tensor) -> torch.Tensor:
        p = torch.softmax(x[at] @ w.T, 1)
        p[torch.arange(len(at)), y[at]] -= 1
        return p.T @ x[at] / len(at)

    for _ in range(steps):
        batches = [m[torch.randint(0, len(m), (batch,), generator=g)] for m in mine]
        w = w - lr * workers.exchange([{"w": gradient(at)} for at in batches])["w"]
    some = torch.cat([m[:200] for m in mine])
    return float(torch.nn.functional.cross_entropy(x[some] @ w.T, y[some]))
