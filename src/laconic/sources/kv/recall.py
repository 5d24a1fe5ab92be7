"""Whether a cache still finds what was said long ago: nats and exact tokens of answers that stand in the context."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..weights.estimates import Estimate, Resampled, share
from .decode import MakeCache, decode, uncompressed
from .recall_tasks import Task

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class RecallScore:
    """One cache on one task. bits: true bits per value, mean over decode steps. Intervals: 95 %, items resampled.

    nats: a scored token; exact: share of scored tokens that were the most likely one; change, exact_change: from the
    uncompressed cache, paired by item. within: both figures lie inside the intervals of the uncompressed one's.
    """

    name: str
    bits: float
    nats: Estimate
    exact: Estimate
    change: Estimate
    exact_change: Estimate
    within: bool


@dataclass(frozen=True)
class Recall:
    """One task. without_context: nats a token when the context is taken away; gain: what the context is worth.

    able: the gain is above 0 with its whole interval. A task that is not says nothing of a cache.
    """

    task: str
    n_items: int
    n_scored: int
    n_tokens: int
    without_context: Estimate
    gain: Estimate
    able: bool
    reference: RecallScore
    caches: tuple[RecallScore, ...]

    @property
    def rows(self) -> tuple[RecallScore, ...]:
        """All of them, the uncompressed cache first."""
        return (self.reference, *self.caches)

    def as_json(self) -> dict[str, Any]:
        """Every number."""
        return asdict(self)


def recall(
    model: Any, caches: Mapping[str, MakeCache], tasks: Sequence[Task], batch: int = 8, progress: Progress | None = None
) -> list[Recall]:
    """Judge caches on tasks, token by token behind a prefill, against transformers' DynamicCache.

    caches: name → a function that makes an empty one.
    Raises BadInput: logits that are not finite.
    """
    lanes = {"none": uncompressed(model.config), **caches}
    done, total = 0, len(tasks) * (len(lanes) + 1)
    found = []
    for task in tasks:
        runs = {}
        for name, make in lanes.items():
            if progress:
                progress(done, total, f"{task.name}: {name}")
            runs[name] = _run(model, make, task, batch, name)
            done += 1
        bare = _run(model, lanes["none"], task.without_context(), batch, "no context")
        done += 1
        found.append(_judged(task, runs, bare))
    return found


@dataclass
class _Run:
    """Sums of items: (n_items,) nats and exact answers; (n_steps,) bytes and, for the uncompressed cache, values held."""

    nats: np.ndarray
    exact: np.ndarray
    n_bytes: np.ndarray
    n_values: np.ndarray


def _run(model: Any, make: MakeCache, task: Task, batch: int, name: str) -> _Run:
    import torch
    from torch.nn.functional import cross_entropy

    nats, exact, n_bytes, n_values = [], [], [], []
    for start in range(0, len(task.ids), batch):
        ids = torch.from_numpy(task.ids[start : start + batch])
        steps = decode(model, make(), ids[:, :-1], task.prefill, name, count_values=name == "none")
        logits, targets = steps.logits.cpu(), ids[:, task.prefill + 1 :]
        scored = torch.from_numpy(task.scored[start : start + batch, task.prefill + 1 :])
        nats.append((cross_entropy(logits.transpose(1, 2), targets, reduction="none").double() * scored).sum(1).numpy())
        exact.append(((logits.argmax(-1) == targets) & scored).sum(1).numpy())
        n_bytes.append(steps.n_bytes)
        n_values.append(0 if steps.n_values is None else steps.n_values)
    return _Run(np.concatenate(nats), np.concatenate(exact), sum(n_bytes), sum(n_values))


def _judged(task: Task, runs: Mapping[str, _Run], bare: _Run) -> Recall:
    first = runs["none"]
    n = task.scored.sum(1)
    reference, scores = None, []
    for name, run in runs.items():
        drawn = Resampled.of(
            n=n, nats=run.nats, exact=run.exact, added=run.nats - first.nats, changed=run.exact - first.exact
        )
        nats, exact = drawn.estimate(share("nats", "n")), drawn.estimate(share("exact", "n"))
        within = reference is None or (_inside(nats, reference.nats) and _inside(exact, reference.exact))
        score = RecallScore(
            name, float(8 * np.mean(run.n_bytes / first.n_values)), nats, exact,
            drawn.estimate(share("added", "n")), drawn.estimate(share("changed", "n")), within,
        )  # fmt: skip
        reference = reference or score
        scores.append(score)
    drawn = Resampled.of(n=n, bare=bare.nats, gain=bare.nats - first.nats)
    gain = drawn.estimate(share("gain", "n"))
    return Recall(
        task.name, len(n), int(n.sum()), task.ids.shape[1], drawn.estimate(share("bare", "n")), gain,
        gain.low is not None and gain.low > 0, scores[0], tuple(scores[1:]),
    )  # fmt: skip


def _inside(found: Estimate, reference: Estimate) -> bool:
    """Within the reference's interval; without one (a single item), equal to it."""
    if reference.low is None or reference.high is None:
        return found.value == reference.value
    return reference.low <= found.value <= reference.high
