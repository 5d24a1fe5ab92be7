"""The walk: block by block through a model, each fed with what the coded blocks before it give.

    stem ─▶ hidden states (on disk) ─▶ block 0: capture H, code, run again as coded ─▶ hidden states ─▶ block 1 ─▶ … ─▶ head

At any time one block has its weights, and one batch its activations; hidden states lie in a spool on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...core.errors import BadInput
from . import distributed
from .calibrate import call
from .capture import AttentionReceived, Capture, Frequencies, Gradients, Inputs, Moments
from .network import Matrix, Network

if TYPE_CHECKING:
    from torch import Tensor

Batch = dict[str, Any]


class _Stop(Exception):
    """Raised inside a forward pass that has given what was wanted."""


class Spool:
    """Hidden states on disk, a float32 .npy file a batch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, i: int, x: Tensor) -> None:
        """Keep batch i."""
        np.save(self.folder / f"{i:06d}.npy", x.detach().to(torch.float32).contiguous().numpy())

    def get(self, i: int) -> Tensor:
        """Batch i, a copy."""
        return torch.from_numpy(np.load(self.folder / f"{i:06d}.npy"))


@dataclass
class Calls:
    """How the chain calls its blocks: everything but the hidden states, the same for all batches.

    where: position or keyword of the hidden states.
    """

    args: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    kwargs: dict[str, dict[str, Any]] = field(default_factory=dict)
    where: dict[str, int | str] = field(default_factory=dict)

    def run(self, name: str, block: Any, hidden: Tensor) -> Tensor:
        """The block's output for these hidden states."""
        args, kwargs, where = list(self.args[name]), dict(self.kwargs[name]), self.where[name]
        if isinstance(where, int):
            args[where] = hidden
        else:
            kwargs[where] = hidden
        return _hidden(block(*args, **kwargs))


def _hidden(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


class Walk:
    """Passes over a network whose blocks form a chain; see the module.

    n_batches: batches of this process; under torchrun each process has its share.
    """

    def __init__(self, net: Network, batches: list[Batch]) -> None:
        if not net.blocks:
            raise BadInput("the model is not one chain of blocks")
        self.net, self.batches = net, batches
        self.n_batches = len(batches)
        self._calls: Calls | None = None

    @property
    def calls(self) -> Calls:
        """How blocks are called, overheard on the first batch."""
        if self._calls is None:
            self._calls = self._overhear()
        return self._calls

    def _overhear(self) -> Calls:
        calls, names = Calls(), self.net.blocks

        def record(name: str) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                tensors = [(i, a) for i, a in enumerate(args)] + list(kwargs.items())
                at, x = next((k, a) for k, a in tensors if isinstance(a, torch.Tensor) and a.is_floating_point())
                calls.args[name] = tuple(None if a is x else a for a in args)
                kept = {k: None if a is x else a for k, a in kwargs.items()}
                calls.kwargs[name] = {k: False if k == "use_cache" else a for k, a in kept.items()}
                for cache in ("past_key_values", "past_key_value", "cache_params", "layer_past"):
                    if cache in calls.kwargs[name]:
                        calls.kwargs[name][cache] = None
                calls.where[name] = at
                if name == names[-1]:
                    raise _Stop  # the head behind the chain is of no interest here
                return x

            return forward

        with torch.no_grad(), self.net.bypassed({n: record(n) for n in names}):
            _run(self.net.model, self.batches[0])
        return calls

    def stem(self, spool: Spool, listen: Any = None) -> None:
        """What goes into block 0, into the spool; `listen` hears the products in the stem."""
        first = self.net.blocks[0]

        def catch(i: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                spool.put(i, next(a for a in [*args, *kwargs.values()] if _floating(a)))
                raise _Stop

            return forward

        for i, batch in enumerate(self.batches):
            with torch.no_grad(), self.net.bypassed({first: catch(i)}), ExitStack() as stack:
                if listen is not None:
                    stack.enter_context(_LazyCapture(self.net, listen))
                _run(self.net.model, batch)

    def head(self, batch: Batch, hidden: Tensor, listen: Any = None) -> Any:
        """What the model gives when the chain ends in these hidden states."""
        names = self.net.blocks
        forwards: dict[str, Any] = {
            n: lambda *a, **k: next(t for t in [*a, *k.values()] if _floating(t)) for n in names
        }
        forwards[names[-1]] = lambda *a, **k: hidden
        with self.net.bypassed(forwards), ExitStack() as stack:
            if listen is not None:
                stack.enter_context(_LazyCapture(self.net, listen))
            return call(self.net.model, batch)

    def moments(self, name: str, spool: Spool, weighted: bool = False, clean: Spool | None = None) -> Moments:
        """Second moments at the matrices of a block; `clean`: also the drift from what the original blocks gave."""
        moments = Moments()
        with torch.no_grad(), self.net.loaded(name) as block:
            for i in range(self.n_batches):
                hidden, weights = spool.get(i), None
                if weighted:
                    weights = self._attention(name, block, hidden)
                moments.new_batch(weights)
                if clean is not None:
                    inputs = Inputs()
                    with Capture(self.net.below(name), self._parameter, inputs):
                        self.calls.run(name, block, clean.get(i))
                    moments.clean = inputs.seen
                with Capture(self.net.below(name), self._parameter, moments):
                    self.calls.run(name, block, hidden)
        moments.new_batch()
        distributed.sum_moments(moments)
        return moments

    def _attention(self, name: str, block: Any, hidden: Tensor) -> Tensor | None:
        """Weights (n_tokens,) with mean 1 from the attention that tokens receive, mapped to 1 … 3 (RSQ)."""
        ear = AttentionReceived()
        with ear.mode():
            self.calls.run(name, block, hidden)
        if ear.received is None:
            return None
        r = ear.received
        low, high = r.min(-1, keepdim=True).values, r.max(-1, keepdim=True).values
        w = 1 + 2 * (r - low) / (high - low).clamp(min=1e-12)
        return (w / w.mean()).reshape(-1)

    def _parameter(self, module: str, param: str) -> Any:
        return self.net.module(module)._parameters[param]

    def forward(self, name: str, spool: Spool, out: Spool) -> None:
        """Run a block over the spool as it is now (coded, if it has been) into another."""
        with torch.no_grad(), self.net.loaded(name) as block:
            for i in range(self.n_batches):
                out.put(i, self.calls.run(name, block, spool.get(i)))

    def fisher(self, folder: Path, n: int, progress: Callable[[str], None] | None = None) -> Fisher:
        """Squared gradients of the log-likelihood at every matrix' outputs: one pass forward, one back, block by block.

        The labels are drawn from the model itself, so these are moments of the Fisher information, not of the data's loss.
        n: batches to use. For a model whose output is no `logits`, the squared norm of the output takes the likelihood's
        place.
        """
        names, n = self.net.blocks, min(distributed.portion(n), self.n_batches)
        frequencies, gradients, moments = Frequencies(), Gradients(), Moments()
        spools = [Spool(folder / f"in-{b:04d}") for b in range(len(names) + 1)]
        self.stem(spools[0], frequencies)
        for b, name in enumerate(names):
            if progress:
                progress(f"forward, {name}")
            with torch.no_grad(), self.net.loaded(name) as block:
                for i in range(n):
                    moments.new_batch()
                    with Capture(self.net.below(name), self._parameter, moments):
                        spools[b + 1].put(i, self.calls.run(name, block, spools[b].get(i)))
        grads = Spool(folder / "gradients")
        n_tokens = 0

        def hear(m: Matrix, x: Tensor, out: Tensor) -> None:
            moments(m, x, out)
            if m.role == "matrix" or x.is_floating_point():
                gradients(m, x, out)

        for i in range(n):
            hidden = spools[-1].get(i).requires_grad_(True)
            moments.new_batch()
            pull_back(self.head(self.batches[i], hidden, hear), distributed.place(i))
            n_tokens += hidden.shape[:-1].numel()
            assert hidden.grad is not None
            grads.put(i, hidden.grad)
        moments.new_batch()
        for b, name in reversed(list(enumerate(names))):
            if progress:
                progress(f"backward, {name}")
            with self.net.loaded(name) as block:
                for i in range(n):
                    hidden = spools[b].get(i).requires_grad_(True)
                    with Capture(self.net.below(name), self._parameter, gradients):
                        out = self.calls.run(name, block, hidden)
                    out.backward(grads.get(i))
                    assert hidden.grad is not None
                    grads.put(i, hidden.grad)
        looked_up = sum(_column_power(grads.get(i)) for i in range(n)) / max(n_tokens, 1)
        rows = {k: g / n_tokens for k, g in gradients.total.items()}
        found = Fisher(rows, moments, frequencies.count, torch.as_tensor(looked_up), gradients.coherence())
        return distributed.mean_fisher(found)


@dataclass
class Fisher:
    """What one pass back gave.

    rows: (n_out,) of every matrix, mean over tokens of the squared gradient at its outputs. moments: of the original
    model's inputs. frequencies: (n_rows,) how often an embedding's rows were looked up. looked_up: (n_hidden,) squared
    gradient at the chain's entry, where embeddings are added. coherence: of the gradients at a convolution's positions.
    """

    rows: dict[str, Tensor]
    moments: Moments
    frequencies: dict[str, Tensor]
    looked_up: Tensor
    coherence: dict[str, float]


class _LazyCapture(Capture):
    """A capture of matrices outside the chain, whose parameters come only while their module runs."""

    def __init__(self, net: Network, listen: Any) -> None:
        super().__init__([], lambda m, p: None, listen)
        self._net, self._outside = net, net.outside()
        # A tied parameter is listed under one module and used by another: listen at both.
        self._uses = [(m, n.rpartition(".")[0]) for m in self._outside
                      for n, p in net._absent.items() if p is not None and id(p) == id(net._absent[_key(m)])]  # fmt: skip

    def _find(self, weight: Tensor) -> Matrix | None:
        if weight.device.type == "meta":
            return None
        for m, module in self._uses:
            p = self._net.module(module)._parameters.get(m.param)
            if p is not None and p.device.type != "meta" and p.data_ptr() == weight.data_ptr():
                return m
        return None


def _key(m: Matrix) -> str:
    return f"{m.module}.{m.param}" if m.module else m.param


def _floating(a: Any) -> bool:
    return isinstance(a, torch.Tensor) and a.is_floating_point()


def _column_power(g: Tensor) -> Tensor:
    return g.reshape(-1, g.shape[-1]).square().sum(0)


def pull_back(out: Any, seed: int) -> None:
    """Run back from minus the log-likelihood, summed over tokens, of labels drawn from the model's own prediction.

    At the logits its gradient is softmax − one-hot, which takes the place of the prediction: nothing else of their size lives.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = getattr(out, "logits", None)
    if logits is None:
        hidden = out.last_hidden_state if hasattr(out, "last_hidden_state") else _hidden(out)
        hidden.backward(0.5 * torch.randn(hidden.shape, generator=generator))
        return
    flat = logits.reshape(-1, logits.shape[-1])
    gradient = flat.detach().softmax(-1)
    drawn = torch.multinomial(gradient, 1, generator=generator)
    flat.backward(gradient.scatter_add_(1, drawn, torch.full(drawn.shape, -1.0)))


def _run(model: Any, batch: Batch) -> None:
    try:
        call(model, batch)
    except _Stop:
        pass
