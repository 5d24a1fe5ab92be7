"""Training on several ranks, for the benchmark of gradients: `launch(jobs)` runs them under torchrun and gives what came out.

llama: the architecture of english-llama-7m with half its width and two of its eight layers, on the bytes of Shakespeare's plays.
mnist: a convolutional network of 0.1 million parameters. Batches depend on the seed, the step and the rank alone.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import CodecError
from .weights_text import data_folder


@dataclass
class Job:
    """One training. recipe: of `laconic.gradients.compressor`, "onebit-adam", "ddp" (no hook), or "torch-powersgd" (PyTorch's).

    tokens: of a sequence; batch: sequences a rank, or 16 pictures each. lr: its peak; 0: 2e-3 for llama, trained with Adam, .05
    for mnist, with momentum .9; up in 20 steps, down along a cosine. settings: of the compressor or optimizer.
    """

    task: str
    recipe: str
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    steps: int = 240
    batch: int = 4
    tokens: int = 64
    lr: float = 0.0


@dataclass
class Outcome:
    """Rank 0's view. losses: mean over ranks, by step. final: of data that was held out. dense_bytes, sent_bytes: of a rank.

    step_s: median seconds of a step without network; cpu_s: the same in processor time of the training thread; compute_s: mean
        seconds in the hook (of `onebit-adam`, in the optimizer).
    """

    losses: list[float]
    final: float
    sent_bytes: float
    dense_bytes: float
    step_s: float
    cpu_s: float
    compute_s: float
    network_s: float
    wall_s: float
    levels: dict[str, float]


def launch(jobs: Sequence[Job], n_ranks: int = 2, prefix: Sequence[str] = ()) -> list[Outcome]:
    """Run jobs one after the other on `n_ranks` processes of one thread each. prefix: of the command, such as ip netns exec."""
    with tempfile.TemporaryDirectory() as folder:
        todo, done = Path(folder) / "jobs.json", Path(folder) / "done.json"
        todo.write_text(json.dumps([asdict(j) for j in jobs]))
        one = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        env = {**os.environ, **one, "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        command = [
            *prefix, sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1",
            f"--nproc-per-node={n_ranks}", "-m", "laconic.bench.gradients_train", str(todo), str(done),
        ]  # fmt: skip
        run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if run.returncode or not done.is_file():
            raised = re.compile(r"(\[rank\d+\]: *)?(laconic\.core\.errors\.\w+|\w*Error): ")
            said = [line for line in run.stderr.splitlines() if raised.match(line)] or run.stderr.splitlines()[-5:]
            raise CodecError(f"training on {n_ranks} ranks ended with {run.returncode}: {' | '.join(said)[:600]}")
        return [Outcome(**o) for o in json.loads(done.read_text())]


def _llama(job: Job, rank: int) -> tuple[Any, Callable[[int], Any], Callable[[], float]]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    text = (data_folder() / "tinyshakespeare" / "input.txt").read_bytes()
    data = torch.from_numpy(np.frombuffer(text, np.uint8).astype(np.int64))
    cut = len(data) * 9 // 10
    torch.manual_seed(job.seed)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=256, hidden_size=128, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, max_position_embeddings=1024, tie_word_embeddings=True, attn_implementation="sdpa",
    ))  # fmt: skip

    def loss(step: int, net: Any) -> Any:
        g = torch.Generator().manual_seed(hash((job.seed, step, rank)) % (1 << 31))
        at = torch.randint(0, cut - job.tokens - 1, (job.batch,), generator=g)
        x = torch.stack([data[i : i + job.tokens + 1] for i in at.tolist()])
        logits = net(x[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.reshape(-1, 256), x[:, 1:].reshape(-1))

    def final() -> float:
        with torch.no_grad():
            x = data[cut : cut + 128 * 129].reshape(128, 129)
            logits = model(x[:, :-1]).logits
            return float(torch.nn.functional.cross_entropy(logits.reshape(-1, 256), x[:, 1:].reshape(-1)))

    return model, loss, final


def _mnist(job: Job, rank: int) -> tuple[Any, Callable[[int], Any], Callable[[], float]]:
    import torch
    from torch import nn

    with np.load(data_folder() / "mnist" / "mnist.npz") as z:
        x, y, xt, yt = (torch.from_numpy(z[k]) for k in ("x_train", "y_train", "x_test", "y_test"))
    torch.manual_seed(job.seed)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 5, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(1568, 64), nn.ReLU(),
        nn.Linear(64, 10),
    )  # fmt: skip

    def loss(step: int, net: Any) -> Any:
        g = torch.Generator().manual_seed(hash((job.seed, step, rank)) % (1 << 31))
        at = torch.randint(0, len(x), (16 * job.batch,), generator=g)
        return nn.functional.cross_entropy(net(x[at, None].float() / 255 - 0.5), y[at].long())

    def final() -> float:
        with torch.no_grad():
            return float(nn.functional.cross_entropy(model(xt[:4000, None].float() / 255 - 0.5), yt[:4000].long()))

    return model, loss, final


def train(job: Job) -> Outcome:
    """One job on this rank."""
    import torch
    import torch.distributed as dist
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as torch_powersgd
    from torch.nn.parallel import DistributedDataParallel

    from ..sources.gradients.compressor import compressor
    from ..sources.gradients.hook import hook
    from ..sources.gradients.onebit import OneBitAdam

    rank, world = dist.get_rank(), dist.get_world_size()
    model, loss_of, final = {"llama": _llama, "mnist": _mnist}[job.task](job, rank)
    # PyTorch's PowerSGD hook reduces each bucket from callbacks, whose order over gloo differs by rank: one bucket has one order.
    ddp = DistributedDataParallel(model, bucket_cap_mb=1024 if job.recipe == "torch-powersgd" else None)
    peak = job.lr or {"llama": 2e-3, "mnist": 0.05}[job.task]
    n_values = sum(p.numel() for p in model.parameters())
    dense = 2 * (world - 1) / world * 4 * n_values * job.steps
    state: Any = None
    if job.recipe == "onebit-adam":
        state = optimizer = OneBitAdam(model.parameters(), lr=peak, **job.settings)
        ddp.register_comm_hook(state, hook)
    else:
        with_adam = job.task == "llama"
        adam = torch.optim.Adam(model.parameters(), lr=peak, betas=(0.9, 0.95))
        optimizer = adam if with_adam else torch.optim.SGD(model.parameters(), lr=peak, momentum=0.9)
        if job.recipe == "ddp":
            pass
        elif job.recipe == "torch-powersgd":
            peer = torch_powersgd.PowerSGDState(None, start_powerSGD_iter=2, **job.settings)
            ddp.register_comm_hook(peer, torch_powersgd.powerSGD_hook)
        else:
            state = compressor(job.recipe, ddp, **job.settings)
            ddp.register_comm_hook(state, hook)
    losses, steps_s, cpus, network = [], [], [], 0.0
    begun = time.perf_counter()
    for step in range(job.steps):
        rate = min(1, (step + 1) / 20) * 0.5 * (1 + np.cos(np.pi * step / job.steps))
        for group in optimizer.param_groups:
            group["lr"] = peak * float(rate)
        start, before = time.perf_counter(), state.traffic.seconds if state else 0.0
        cpu = time.thread_time()
        loss = loss_of(step, ddp)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        after = state.traffic.seconds if state else 0.0
        cpus.append(time.thread_time() - cpu)
        steps_s.append(time.perf_counter() - start - (after - before))
        network += after - before
        losses.append(float(loss.detach()))
    wall = time.perf_counter() - begun
    shared = torch.tensor(losses)
    dist.all_reduce(shared)
    report = state.report() if state else None
    steps, nothing = job.steps, float("nan")
    return Outcome(
        (shared / world).tolist(), final(), report.sent_bytes if report else nothing, dense, float(np.median(steps_s)),
        float(np.median(cpus)), report.compute_s / steps if report else nothing, network / steps, wall / steps,
        report.levels if report else {},
    )  # fmt: skip


def main(todo: str, done: str) -> None:
    """What torchrun starts on each rank."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    out = [asdict(train(Job(**j))) for j in json.loads(Path(todo).read_text())]
    if dist.get_rank() == 0:
        Path(done).write_text(json.dumps(out))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
