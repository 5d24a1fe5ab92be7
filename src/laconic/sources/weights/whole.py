"""The walk over a module that is no chain of blocks: held in memory whole, heard in one pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from . import distributed
from .calibrate import call
from .capture import Capture, Frequencies, Gradients, Moments
from .network import Network
from .walk import Batch, Fisher, Spool, pull_back


class Whole:
    """What `Walk` does, for any module; all its matrices are one unit, heard with the original weights before it."""

    def __init__(self, net: Network, batches: list[Batch]) -> None:
        self.net, self.batches, self.n_batches = net, batches, len(batches)

    def _parameter(self, module: str, param: str) -> Any:
        return self.net.module(module)._parameters[param]

    def stem(self, spool: Spool, listen: Any = None) -> None:
        """Nothing goes into blocks, for there are none."""

    def moments(self, name: str, spool: Spool, weighted: bool = False, clean: Spool | None = None) -> Moments:
        """Second moments at all matrices of the module."""
        moments = Moments()
        with torch.no_grad(), self.net.loaded("") as model:
            for batch in self.batches:
                moments.new_batch()
                with Capture(self.net.matrices, self._parameter, moments):
                    call(model, batch)
        moments.new_batch()
        distributed.sum_moments(moments)
        return moments

    def fisher(self, folder: Path, n: int, progress: Callable[[str], None] | None = None) -> Fisher:
        """Squared gradients at all matrices' outputs; see `Walk.fisher`."""
        frequencies, gradients, moments = Frequencies(), Gradients(), Moments()
        n_rows = 0

        def hear(m: Any, x: Any, out: Any) -> None:
            frequencies(m, x, out)
            moments(m, x, out)
            if x.is_floating_point():
                gradients(m, x, out)

        with self.net.loaded("") as model:
            for i, batch in enumerate(self.batches[: distributed.portion(n)]):
                moments.new_batch()
                first = next((v for v in batch.values() if isinstance(v, torch.Tensor)), None)
                n_rows += (
                    1 if first is None else first.shape[: first.ndim if not first.is_floating_point() else 1].numel()
                )
                for p in model.parameters():  # so that there is a way back to inputs that are ids
                    p.requires_grad_(True)
                with Capture(self.net.matrices, self._parameter, hear):
                    out = call(model, batch)
                pull_back(out, distributed.place(i))
        rows = {k: g / max(n_rows, 1) for k, g in gradients.total.items()}
        found = Fisher(rows, moments, frequencies.count, torch.zeros(0), gradients.coherence())
        return distributed.mean_fisher(found)
