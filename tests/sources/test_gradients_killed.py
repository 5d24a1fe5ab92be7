"""A rank of four is killed in the middle of its work; the job goes on from its last checkpoint, along the same curve."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing import ProcessExitedException
from torch.nn.parallel import DistributedDataParallel as DDP

import laconic

from .ranks import batch, net, spawn

RANKS, STEPS, EVERY, LAST = 4, 18, 5, 12
RECIPES: dict[str, dict[str, Any]] = {"ef-levels": {"fraction": 0.05}, "ef-factors": {"rank": 2}}


def newest(folder: Path) -> int:
    """The last step of which every rank has written its checkpoint; 0 for none."""
    steps = [int(p.stem.split("-")[0]) for p in folder.glob("*-0.pt")]
    return max((s for s in steps if all((folder / f"{s}-{r}.pt").exists() for r in range(RANKS))), default=0)


def run(ident: str, rank: int, folder: Path | None, last: int | None = None) -> tuple[list[float], torch.Tensor, int]:
    """(loss by step, weights, the step it began with). folder: of checkpoints. last: the step in which rank 2 is killed."""
    begin = newest(folder) if folder else 0
    state, model, losses = None, net(), []
    if begin:
        weights, momenta, state, losses = torch.load(folder / f"{begin}-{rank}.pt", weights_only=False)
        model.load_state_dict(weights)
    ddp = DDP(model, bucket_cap_mb=0.003)
    state = state.bind(ddp) if state else laconic.gradients.compressor(ident, ddp, smallest=100, **RECIPES[ident])
    ddp.register_comm_hook(state, laconic.gradients.hook)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05, momentum=0.9)
    if begin:
        optimizer.load_state_dict(momenta)
    for step in range(begin, STEPS):
        x, y = batch(step, rank)
        value = (ddp(x) - y).square().mean()
        optimizer.zero_grad()
        if step == last and rank == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
        if folder and (step + 1) % EVERY == 0:
            part = folder / f"{step + 1}-{rank}.part"
            torch.save((ddp.module.state_dict(), optimizer.state_dict(), state, losses), part)
            part.rename(part.with_suffix(".pt"))
    return losses, torch.cat([p.detach().flatten() for p in ddp.parameters()]), begin


def killed(rank: int, _: int, folder: str) -> None:
    for ident in RECIPES:  # the second one is killed
        run(ident, rank, Path(folder) / ident, LAST if ident == "ef-factors" else None)


def resumed_and_whole(rank: int, _: int, folder: str) -> tuple[Any, Any]:
    return run("ef-factors", rank, Path(folder) / "ef-factors"), [run(ident, rank, None) for ident in RECIPES]


def test_a_job_goes_on_after_a_rank_was_killed(tmp_path: Path) -> None:
    for ident in RECIPES:
        (tmp_path / ident).mkdir()
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        spawn(killed, RANKS, str(tmp_path))
    assert newest(tmp_path / "ef-factors") == 10
    ranks = spawn(resumed_and_whole, RANKS, str(tmp_path))
    for (losses, weights, begin), (_, whole) in ranks:
        assert begin == 10
        # Buckets are laid out anew, and with them the order in which gloo's ring adds four numbers.
        assert losses == pytest.approx(whole[0], rel=1e-5)
        torch.testing.assert_close(weights, whole[1], rtol=0, atol=1e-5)
    for ident, at in zip(RECIPES, range(2), strict=True):  # four ranks agree, and learn
        runs = [r[1][at] for r in ranks]
        assert all(torch.equal(runs[0][1], r[1]) for r in runs), ident
        means = [sum(r[0][s] for r in runs) for s in (0, STEPS - 1)]
        assert means[1] < means[0], ident
