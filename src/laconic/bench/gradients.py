"""Gradients in fewer bytes, measured on real ranks: bytes on the wire, loss beside DDP's, what it costs to compute, when it pays.

Every training runs on gloo ranks of one thread under torchrun. A loss is of held-out data at the end; differences are means over
three seeds, each against the same seed uncompressed. The spread of the seeds is the half range of the uncompressed losses.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .gradients_simulated import Digits, quadratics
from .gradients_train import Job, Outcome, launch
from .rows import Measurement, Row

SEEDS = (0, 1, 2)
TASKS: dict[str, dict[str, int]] = {"llama": {}, "mnist": {"steps": 1500, "batch": 1}}
COMPOSED = {"llama": ("ef-factors", {"rank": 8}), "mnist": ("ef-levels", {"fraction": 0.05})}
# By its own test v is frozen near step 70, for 6 times fewer bytes and a loss 1 % above Adam's; later costs bytes, not loss.
ONEBIT = {"betas": (0.9, 0.95), "warmup": 100, "freeze_at": 100, "plain": "float16"}
NAMESPACE = "laconic-gradients"
INSIDE = ("ip", "netns", "exec", NAMESPACE)
CURVES: dict[str, dict[str, Any]] = {}  # filled as trainings end, written by `write_curves`


def _name(job: Job) -> str:
    said = ", ".join(f"{k}={v}" for k, v in job.settings.items())
    return f"{job.task}: {job.recipe}" + (f" ({said})" if said else "") + f", seed {job.seed}"


def run(jobs: Sequence[Job], n_ranks: int = 2) -> list[Outcome]:
    """`launch`, and the curves kept."""
    outcomes = launch(jobs, n_ranks)
    for job, o in zip(jobs, outcomes, strict=True):
        CURVES[_name(job)] = {"losses": o.losses, "final": o.final, "dense_bytes": o.dense_bytes, "levels": o.levels,
                              "sent_bytes": o.sent_bytes if np.isfinite(o.sent_bytes) else o.dense_bytes}  # fmt: skip
    return outcomes


def write_curves(path: Path) -> None:
    """Loss by step of every training that was run, and the bytes of a rank in all (by step they are as good as constant)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(CURVES, indent=1))


@cache
def _plain(task: str) -> tuple[Outcome, ...]:
    return tuple(run([Job(task, "ddp", seed=s, **TASKS[task]) for s in SEEDS]))


def _against(task: str, recipe: str, settings: dict[str, Any]) -> tuple[float, float, list[Outcome]]:
    """(times fewer bytes, mean loss difference in per cent of the uncompressed loss, outcomes)."""
    ours = run([Job(task, recipe, dict(settings), s, **TASKS[task]) for s in SEEDS])
    differences = [100 * (o.final / p.final - 1) for o, p in zip(ours, _plain(task), strict=True)]
    return float(np.mean([o.dense_bytes / o.sent_bytes for o in ours])), float(np.mean(differences)), ours


def _spread(task: str) -> float:
    """Half the range of the uncompressed runs' losses, in per cent."""
    finals = [o.final for o in _plain(task)]
    return 50 * (max(finals) - min(finals)) / float(np.mean(finals))


def onebit() -> Iterator[Row]:
    """1-bit Adam over whole runs, warm-up included."""
    fewer, difference, ours = _against("llama", "onebit-adam", ONEBIT)
    yield Row("llama, 1-bit Adam, whole run: bytes", fewer, "× fewer", "Adam, float32", 1.0, (">=", 4.0))
    yield Row("llama, 1-bit Adam: loss above Adam's", difference, "%", "seeds, ±", _spread("llama"), ("<=", 0.5))
    frozen = float(np.mean([o.levels["frozen"] for o in ours]))
    yield Row("llama, 1-bit Adam: variance frozen at step", frozen, f"of {len(ours[0].losses)}")


def composition() -> Iterator[Row]:
    """The best composition for each network: low rank in a few bits with Adam, few values of few magnitudes with momentum."""
    for task, (recipe, settings) in COMPOSED.items():
        fewer, difference, _ = _against(task, recipe, settings)
        yield Row(f"{task}, {recipe}: bytes", fewer, "× fewer", "DDP, float32", 1.0, (">=", 50.0))
        yield Row(f"{task}, {recipe}: loss above DDP's", difference, "%", "seeds, ±", _spread(task), ("<=", 1.0))


def l_greco() -> Iterator[Row]:
    """Planned levels beside one level, over PowerSGD at .9 of its summed error and over top-k at the same."""
    for family, peer, error in (("low-rank", "PowerSGD rank 4", 0.9), ("top-k", "top-k .02", 1.0)):
        uniform, loss, one = _against("llama", "l-greco", {"family": family, "plan": False})
        fewer, planned, many = _against("llama", "l-greco", {"family": family, "every": 60, "error": error})
        ratio = float(np.mean([a.sent_bytes / b.sent_bytes for a, b in zip(one, many, strict=True)]))
        yield Row(f"llama, L-GreCo over {family}: bytes", fewer, "× fewer", peer, uniform)
        yield Row(f"llama, L-GreCo over {family}: bytes of {peer} over its", ratio, "×", "", None, (">=", 1.3))
        apart = float(np.mean([100 * (b.final / a.final - 1) for a, b in zip(one, many, strict=True)]))
        yield Row(f"llama, L-GreCo over {family}: loss above {peer}'s", apart, "%", "seeds, ±", _spread("llama"),
                  ("<=", _spread("llama")))  # fmt: skip
        yield Row(f"llama, L-GreCo over {family}: loss above DDP's", planned, "%", peer, loss)


def torch_powersgd() -> Iterator[Row]:
    """PyTorch's own hook beside ours at the same rank: the same losses to within the seeds."""
    theirs = run([Job("llama", "torch-powersgd", {"matrix_approximation_rank": 4}, s) for s in SEEDS])
    ours = run([Job("llama", "powersgd", {"rank": 4}, s) for s in SEEDS])
    yield Row("llama, PowerSGD rank 4: final loss", float(np.mean([o.final for o in ours])), "nats", "PyTorch's hook",
              float(np.mean([o.final for o in theirs])))  # fmt: skip


def control() -> Iterator[Row]:
    """The published comparison: heterogeneous workers, without noise and with it, the same compressor and step for all."""
    for noise in (0.0, 1.0):
        lost = {rule: quadratics(rule, noise, 0.03) for rule in ("EF", "EF21", "EControl")}
        for rule in ("EF", "EF21"):
            target = (">=", 2.0) if noise or rule == "EF" else None
            yield Row(f"quadratics, noise {noise:g}: excess loss of {rule} over EControl's", lost[rule] / lost["EControl"], "×",
                      "EControl", lost["EControl"], target)  # fmt: skip
    digits = Digits()
    optimum = digits.optimum()
    for batch, rule in ((0, "EF"), (8, "EF21")):
        ours, theirs = (
            digits.train(r, batch, 0.2, fraction=0.01, **({"eta": 0.03} if r == "EControl" else {})) - optimum
            for r in ("EControl", rule)
        )
        said = f"batches of {batch}" if batch else "full batches"
        yield Row(
            f"MNIST by label, {said}: excess loss of {rule} over EControl's",
            theirs / ours,
            "×",
            "EControl",
            ours,
            (">=", 2.0),
        )


def overhead() -> Iterator[Row]:
    """Processor time that a compressor adds to a step of 2,048 tokens a rank, and the bandwidth below which that pays."""
    for_all: dict[str, Any] = {"steps": 14, "batch": 16, "tokens": 128}
    ways = (*COMPOSED.values(), ("powersgd", {"rank": 4}), ("econtrol", {}))
    jobs = [Job("llama", r, dict(s), **for_all) for way in ways for r, s in (("ddp", {}), way)]
    outcomes = launch([*jobs, jobs[0]])
    plain = [o.cpu_s for o in outcomes[::2]]
    for i, (job, o) in enumerate(zip(jobs[1::2], outcomes[1::2], strict=True)):
        plain_s = (plain[i] + plain[i + 1]) / 2  # of the runs without a compressor before and behind
        share = 100 * (o.cpu_s / plain_s - 1)
        target = ("<=", 10.0) if job.recipe.startswith("ef-") else None
        yield Row(f"llama, {job.recipe}: processor time of a step", share, "% more", "DDP, ms", 1e3 * plain_s, target)
        saved = 8 * (o.dense_bytes - o.sent_bytes) / job.steps
        pays = saved / max(o.cpu_s - plain_s, 1e-4) / 1e6
        yield Row(f"llama, {job.recipe}: pays below (computed, no overlap)", pays, "Mbit/s")


def wire() -> Iterator[Row]:
    """Bytes that left the ranks by the kernel's count, over those in the report; steps on slow links. In a network namespace."""
    if shutil.which("ip") is None or shutil.which("tc") is None or os.geteuid():
        return
    jobs = [Job("llama", r, dict(s), steps=12) for r, s in (("none", {}), ("ef-factors", {}))]
    for job in jobs:
        with _namespace(None):
            sent, counted = [_sent()], []
            for steps in (4, 24):
                one = Job(**{**vars(job), "settings": dict(job.settings), "steps": steps})
                counted.append(2 * launch([one], prefix=INSIDE)[0].sent_bytes)  # of both ranks
                sent.append(_sent())
            # What is not in a step (meeting, broadcast of weights, the mean of losses) is the same in both, and cancels.
            on_wire = (sent[2] - sent[1]) - (sent[1] - sent[0])
        yield Row(f"llama, {job.recipe}: bytes on the wire over bytes in the report", on_wire / (counted[1] - counted[0]), "×",
                  "report, kB a step", (counted[1] - counted[0]) / 40e3, ("<=", 1.15))  # fmt: skip
    for rate in (10, 100, 1000):
        with _namespace(rate):
            plain, ours = launch(jobs, prefix=INSIDE)
        yield Row(
            f"llama, ef-factors, link of {rate} Mbit/s: step",
            1e3 * ours.wall_s,
            "ms",
            "DDP's bytes, ms",
            1e3 * plain.wall_s,
        )


@contextmanager
def _namespace(rate_mbit: int | None) -> Iterator[None]:
    """A network namespace whose loopback is limited."""

    def call(*words: str) -> None:
        subprocess.run(words, check=True, capture_output=True)

    call("ip", "netns", "add", NAMESPACE)
    try:
        call(*INSIDE, "ip", "link", "set", "lo", "up")
        if rate_mbit is not None:
            # An unsegmented loopback packet has up to 64 kB, which the bucket must hold.
            call(
                *INSIDE,
                "tc",
                "qdisc",
                "add",
                "dev",
                "lo",
                "root",
                "tbf",
                "rate",
                f"{rate_mbit}mbit",
                "burst",
                "256kb",
                "latency",
                "1s",
            )
        yield
    finally:
        call("ip", "netns", "del", NAMESPACE)


def _sent() -> int:
    said = subprocess.run(
        ["ip", "netns", "exec", NAMESPACE, "cat", "/proc/net/dev"], check=True, capture_output=True, text=True
    ).stdout
    line = next(line for line in said.splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


SUITE = (
    Measurement("control: EControl beside EF and EF21", control),
    Measurement("composition: ef-factors and ef-levels beside DDP", composition),
    Measurement("onebit: 1-bit Adam beside Adam", onebit),
    Measurement("l-greco: planned levels beside one level", l_greco),
    Measurement("powersgd beside PyTorch's", torch_powersgd),
    Measurement("overhead", overhead),
    Measurement("wire: what the kernel counts, and slow links", wire),
)
