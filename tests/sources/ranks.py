"""Processes that train together, for tests: `spawn(job, n, …)` gives what `job(rank, n, …)` returned, by rank."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn


def spawn(job: Callable[..., Any], n: int, *args: Any) -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_run, (job, n, folder, args), nprocs=n)
        return [torch.load(Path(folder) / f"{r}.pt", weights_only=False) for r in range(n)]


def _run(rank: int, job: Callable[..., Any], n: int, folder: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=n)
    try:
        torch.save(job(rank, n, *args), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def net(seed: int = 0, width: int = 48) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3))


def batch(step: int, rank: int, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1000 * step + rank)
    x = torch.randn(size, 20, generator=g)
    return x, torch.stack([x[:, :5].sum(1), (x[:, 5] * x[:, 6]), x[:, 7].sin()], 1)
