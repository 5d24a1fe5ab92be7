"""Tuning at the end of a run: the coded model beside the original, both whole in memory, drawn together by their KL.

    packets ─▶ coded model ─ KL(original ‖ coded) on calibration inputs ─▶ gradients ─▶ gains, codes, scales ─▶ packets

What is kept as it was (gains of norms, biases) may be tuned for nothing, as it is stored in any case; codes stay on the grid
that their packets describe, so the size stays as well.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from ...core.errors import BadInput
from ...core.packet import decode
from ...core.reopen import reopen
from ...quantize.codes import Codes, codes_of
from . import store
from .calibrate import call
from .trial import Loaded, divergence, flat_output, samples_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .compress import Run
    from .network import Matrix

LIMIT_BYTES = 500 << 20
SAMPLES = 256
OUTPUTS = 32  # of a sample at least, where one input gives fewer: pictures come in groups, windows of a text alone
JUDGE_EVERY = 8  # one sample of eight tunes nothing but tells whether tuning helped


class Tuning:
    """What a recipe's `tune` is given.

    original, coded: whole models. matrices: those that were coded. `put` and `keep` say what is to be written.
    """

    def __init__(self, run: Run, n_samples: int = SAMPLES) -> None:
        if not run.batches:
            raise BadInput(f"recipe {run.job.recipe!r} tunes on the model: it needs a calibration text")
        self._run = run
        run.net.overlay.clear()
        self.original = Loaded(run.net)
        self.coded = Loaded(run.net)
        self.matrices: list[Matrix] = [m for _, ms in run.units for m in ms]
        self.packets: dict[str, bytes] = {}
        for u in range(len(run.units)):
            self.packets.update(store.load_unit(run.work, u))
        for m in self.matrices:
            self.coded.put(m, decode(self.packets[m.name], codecs=run.codecs))
        single = samples_of(run.batches, n_samples)
        with torch.no_grad():
            n_outputs = len(self.original.output(single[0]))
        every = samples_of(run.batches, n_samples, max(1, min(OUTPUTS // n_outputs, len(single) // (2 * JUDGE_EVERY))))
        aside = set(range(0, len(every), JUDGE_EVERY)) if len(every) >= JUDGE_EVERY else set()
        self.samples = [s for i, s in enumerate(every) if i not in aside]
        self._aside = [s for i, s in enumerate(every) if i in aside] or every
        self._kept: dict[str, Tensor] = {}
        self._order = torch.randperm(len(self.samples), generator=torch.Generator().manual_seed(0)).tolist()

    def tick(self, done: int, total: int) -> None:
        """Report progress."""
        if self._run.progress:
            self._run.progress(done, total, "tuning")

    def codes(self, m: Matrix) -> Codes | None:
        """The codes of a matrix that may be moved on their grid."""
        return codes_of(reopen(self.packets[m.name], self._run.codecs))

    def original_weight(self, m: Matrix) -> Tensor:
        """The original matrix."""
        return self._run.weight(m)

    @cached_property
    def gains(self) -> dict[str, nn.Parameter]:
        """The vectors of the coded model that are kept as they are: gains, biases."""
        replaced = self._run.replaced()
        return {k: p for k, p in self.coded.named().items() if k not in replaced and p.ndim == 1}

    # ---- the loss

    def _loss(self, sample: dict[str, Any]) -> Tensor:
        with torch.no_grad():
            reference = flat_output(call(self.original.model, sample))
        out = call(self.coded.model, sample)
        return divergence(reference, flat_output(out), getattr(out, "logits", None) is not None)

    def gradients(self, step: int, n: int) -> float:
        """Mean KL over the n samples whose turn it is in this step; its gradients into all that has `requires_grad`."""
        total = 0.0
        for i in range(n):
            loss = self._loss(self.samples[self._order[(step * n + i) % len(self._order)]]) / n
            loss.backward()
            total += float(loss.detach())
        return total

    def judge(self, n: int = 16) -> float:
        """Mean KL in nats a token over samples that tune nothing (the tuning ones where there are fewer than eight)."""
        with torch.no_grad():
            losses = [float(self._loss(s)) for s in self._aside[:n]]
        return sum(losses) / len(losses)

    # ---- what is written

    def put(self, m: Matrix, packet: bytes) -> None:
        """Another packet for a matrix."""
        self.packets[m.name] = packet
        self.coded.put(m, decode(packet, codecs=self._run.codecs))

    def keep(self, name: str) -> None:
        """Write a vector of `gains` as the coded model has it now, in its own dtype."""
        stored = self._run.net.source[name]
        self._kept[name] = self.gains[name].detach().to(stored.dtype).reshape(stored.shape)
        with torch.no_grad():
            self.gains[name].copy_(self._kept[name])

    def commit(self) -> Mapping[str, Any]:
        """Packets into the work folder; gives the source with the kept tensors in it."""
        for u, (_, ms) in enumerate(self._run.units):
            store.save_unit(self._run.work, u, {m.name: self.packets[m.name] for m in ms})
        return ChainMap(self._kept, self._run.net.source)  # type: ignore[arg-type]  # nothing is written to it


def state_bytes(run: Run) -> int:
    """Memory that tuning needs at most: both models, gradients, two moments and two bounds for every weight."""
    return 4 * 7 * sum(m.n_elements for m in run.net.every)


def tune_gains(tuning: Tuning, steps: int = 100, rate: float = 0.01, n: int = 2) -> None:
    """Gains of norms and biases by Adam on the KL, the rate falling to 0; kept if samples set aside say that it helped."""
    params = tuning.gains
    if not params:
        return
    before, start = tuning.judge(), {k: p.detach().clone() for k, p in params.items()}
    for p in params.values():
        p.requires_grad_(True)
    adam = torch.optim.Adam(params.values(), lr=rate, betas=(0.9, 0.95))
    for step in range(steps):
        tuning.tick(step, steps)
        for group in adam.param_groups:
            group["lr"] = rate * (1 - step / steps)
        adam.zero_grad()
        tuning.gradients(step, n)
        adam.step()
    for p in params.values():
        p.requires_grad_(False)
        p.grad = None
    for name in params:
        tuning.keep(name)
    if tuning.judge() >= before:
        with torch.no_grad():
            for name, p in params.items():
                p.copy_(start[name])
                tuning.keep(name)
