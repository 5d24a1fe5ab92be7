"""Calibration by several processes under torchrun: each has a share of the windows, moments are summed over all."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .capture import Moments
    from .walk import Fisher


def start() -> tuple[int, int]:
    """(rank, number of processes), joining the group that torchrun has prepared; (0, 1) without one."""
    import torch.distributed as dist

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return dist.get_rank(), dist.get_world_size()


def place(i: int) -> int:
    """The number that batch i of this process has among those of all."""
    import torch.distributed as dist

    return i * dist.get_world_size() + dist.get_rank() if _several() else i


def portion(n: int) -> int:
    """How many of n batches a process takes."""
    import torch.distributed as dist

    return -(-n // dist.get_world_size()) if _several() else n


def _several() -> bool:
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def share(batches: list[Any], rank: int, world: int) -> list[Any]:
    """The batches of one process."""
    return batches[rank::world]


def gather(own: dict[str, Any]) -> dict[str, Any]:
    """What all processes have, joined in order of their ranks."""
    import torch.distributed as dist

    if not _several():
        return own
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, own)
    return {k: v for part in every for k, v in part.items()}


def wait() -> None:
    """Until every process is here."""
    import torch.distributed as dist

    if _several():
        dist.barrier()


def sum_moments(moments: Moments) -> None:
    """Totals and counts over all processes, in float32; a process that met nothing at a matrix adds nothing."""
    import torch
    import torch.distributed as dist

    if not _several():
        return
    shapes: dict[str, Any] = {}
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, {k: tuple(v.shape) for k, v in moments.total.items()})
    leaders: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(leaders, moments.leader)
    for part, led in zip(every, leaders, strict=True):
        shapes.update(part)
        for k, v in led.items():
            moments.leader.setdefault(k, v)
    for name in sorted(shapes):
        total = moments.total.get(name, torch.zeros(shapes[name]))
        count = torch.tensor(moments.count.get(name, 0.0), dtype=torch.float64)
        dist.all_reduce(total)
        dist.all_reduce(count)
        moments.total[name], moments.count[name] = total, float(count)
    for sums in (moments.cross, moments.pooled):
        dist.all_gather_object(every, {k: tuple(v.shape) for k, v in sums.items()})
        for name, shape in sorted({k: s for part in every for k, s in part.items()}.items()):
            found = sums.get(name, torch.zeros(shape))
            dist.all_reduce(found)
            sums[name] = found
    counts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(counts, moments.n_pooled)
    moments.n_pooled = {k: sum(c.get(k, 0) for c in counts) for c in counts for k in c}


def mean_fisher(fisher: Fisher) -> Fisher:
    """Gradients' powers averaged, counts summed over all processes."""
    import torch.distributed as dist

    if not _several():
        return fisher
    sum_moments(fisher.moments)
    world = dist.get_world_size()
    names = sorted({k for part in _names(fisher) for k in part})
    for name in names:
        dist.all_reduce(fisher.rows[name])
        fisher.rows[name] /= world
    for name in sorted(fisher.frequencies):
        dist.all_reduce(fisher.frequencies[name])
    dist.all_reduce(fisher.looked_up)
    fisher.looked_up /= world
    shared: list[Any] = [None] * world
    dist.all_gather_object(shared, fisher.coherence)
    fisher.coherence = {k: sum(s.get(k, 0.0) for s in shared) / world for s in shared for k in s}
    return fisher


def _names(fisher: Fisher) -> list[list[str]]:
    import torch
    import torch.distributed as dist

    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, {k: int(v.numel()) for k, v in fisher.rows.items()})
    for part in every:
        for k, n in part.items():
            fisher.rows.setdefault(k, torch.zeros(n))
    return [list(p) for p in every]
