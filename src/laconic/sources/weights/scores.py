"""How important matrices, rows and blocks are, read off the original model of a `Trial`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from ...core.errors import BadInput
from .calibrate import call
from .trial import flat_output

if TYPE_CHECKING:
    from torch import Tensor

    from .trial import Loaded, Trial


def task_loss(whole: Loaded, sample: dict[str, Any], generator: torch.Generator) -> Tensor:
    """Minus the log-likelihood in nats a token: of the next tokens of a text; else of what the model itself would draw.

    A model that gives no logits is taken for the mean of a Gaussian of variance 1.
    """
    out = call(whole.model, sample)
    flat = flat_output(out)
    if getattr(out, "logits", None) is None:
        return 0.5 * (flat - flat.detach() - torch.randn(flat.shape, generator=generator)).square().sum(-1).mean()
    ids = sample.get("input_ids")
    if ids is not None and ids.numel() == len(flat) and ids.shape[-1] > 1:
        return F.cross_entropy(out.logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
    drawn = torch.multinomial(flat.detach().softmax(-1), 1, generator=generator)[:, 0]
    return F.cross_entropy(flat, drawn)


def hessian_traces(trial: Trial, probes: int = 8, n_samples: int = 2, seed: int = 0) -> list[float]:
    """Trace of each matrix' block of the Hessian of the task loss: the mean of vᵀ H v over signs v (Hutchinson).

    One vector spans all matrices, so a probe costs two passes back for all of them; what the matrices have in common has
    mean 0 in it. Negative means, which are noise, become 0. probes: for every sample.
    Source: Dong et al. 2020, HAWQ-V2 (1911.03852), eq. 6. Differs: one vector for all layers at once.
    """
    whole, generator = trial.original(), torch.Generator().manual_seed(seed)
    params = list({id(p): p for p in map(whole.parameter, trial.matrices)}.values())
    at = {id(p): i for i, p in enumerate(params)}
    totals = [0.0] * len(trial.matrices)
    samples = trial.samples[:n_samples]
    with _learning(params):
        for sample in samples:
            loss = task_loss(whole, sample, generator)
            gradients = torch.autograd.grad(loss, params, create_graph=True)
            for probe in range(probes):
                signs = [torch.randint(0, 2, p.shape, generator=generator).float() * 2 - 1 for p in params]
                inner = sum(((g * v).sum() for g, v in zip(gradients, signs, strict=True)), torch.zeros(()))
                curved = torch.autograd.grad(inner, params, retain_graph=probe + 1 < probes)
                for i, m in enumerate(trial.matrices):
                    j = at[id(whole.parameter(m))]
                    totals[i] += float(m.take(signs[j] * curved[j]).sum())
    return [max(t / (probes * len(samples)), 0.0) for t in totals]


def row_scores(trial: Trial, level: int = 0) -> dict[str, Tensor]:
    """Per row of every matrix (n_out,): Σ_samples |g·δ + ½ (g·δ)²|, what coding the row at a rate would do to the loss.

    g: the row's gradient of the task loss of one sample; δ: what rate `level` does to the row.
    Source: Zheng et al. 2024, MixLLM (2412.14590), global salience of output features.
    """
    whole, generator = trial.original(), torch.Generator().manual_seed(0)
    params = list({id(p): p for p in map(whole.parameter, trial.matrices)}.values())
    scores = {m.name: torch.zeros(m.shape[0]) for m in trial.matrices}
    delta = [trial.candidate(i, level) - trial.candidate(i, -1) for i in range(len(trial.matrices))]
    with _learning(params):
        for sample in trial.samples:
            task_loss(whole, sample, generator).backward()
            for m, d in zip(trial.matrices, delta, strict=True):
                gradient = whole.parameter(m).grad
                if gradient is not None:
                    moved = (m.take(gradient) * d).sum(1)
                    scores[m.name] += (moved + 0.5 * moved.square()).abs()
            for p in params:
                p.grad = None
    return scores


def input_output_cosine(trial: Trial) -> list[float]:
    """Of every block: the mean cosine of hidden states before and behind it, over the tokens of all samples."""
    whole = trial.original()
    modules = dict(whole.model.named_modules())
    found = {name: [0.0, 0] for name in trial.block_names}

    def listen(name: str) -> Any:
        def hook(module: Any, args: Any, kwargs: Any, out: Any) -> None:
            x = next(a for a in [*args, *kwargs.values()] if isinstance(a, torch.Tensor) and a.is_floating_point())
            y = out[0] if isinstance(out, tuple) else out
            cosine = F.cosine_similarity(x.float(), y.float(), dim=-1)
            found[name][0] += float(cosine.sum())
            found[name][1] += cosine.numel()

        return hook

    hooks = [modules[n].register_forward_hook(listen(n), with_kwargs=True) for n in trial.block_names]
    try:
        with torch.no_grad():
            for sample in trial.samples:
                whole.output(sample)
    finally:
        for h in hooks:
            h.remove()
    if not found:
        raise BadInput("the model is not one chain of blocks, which this score compares")
    return [total / max(n, 1) for total, n in found.values()]


def large_weights(trial: Trial) -> list[float]:
    """Of every block: the share of its weights that lie more than a standard deviation above their mean."""
    shares = []
    for numbers in trial.blocks:
        w = torch.cat([trial.candidate(i, -1).reshape(-1) for i in numbers])
        shares.append(float(((w - w.mean()) > w.std()).float().mean()))
    return shares


@contextmanager
def _learning(params: list[torch.nn.Parameter]) -> Iterator[None]:
    """Inside, the parameters collect gradients."""
    for p in params:
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p in params:
            p.requires_grad_(False)
            p.grad = None
