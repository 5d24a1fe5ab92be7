"""Norms that take back by how much quantization moved the mean of their outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .calibrate import call
from .network import chain

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .tune import Tuning


def shift_norms(tuning: Tuning, samples: int = 16) -> list[str]:
    """b ← b − E[y − y₀] for the bias of every norm that stands behind a matrix of its block, in the order in which they run.

    y, y₀: (n_tokens, n), what the norm of the coded and of the original model gives; norms before it are corrected already.
    Gives the names of the biases; none where norms have none (RMSNorm), or where inputs set aside say that it did not help.
    The squared deviation falls by μ² / (μ² + σ²) of it, and nothing is stored that was not before.
    Source: Yan et al. 2026, D²Quant (2602.02546), deviation-aware correction. Differs: every channel, not those whose mean
    stands out; a norm without a bias is not given one.
    """
    biases = {id(p): name for name, p in tuning.gains.items()}
    modules = dict(tuning.coded.model.named_modules())
    found = [
        (path, biases[id(modules[path].bias)]) for path in _behind_matrices(tuning) if _bias_of(modules[path]) in biases
    ]
    before, start = tuning.judge(), {name: tuning.gains[name].detach().clone() for _, name in found}
    for i, (path, name) in enumerate(found):
        tuning.tick(i, len(found))
        total, n = torch.zeros_like(start[name]), 0
        for sample in tuning.samples[:samples]:
            moved = _output(tuning.coded.model, path, sample) - _output(tuning.original.model, path, sample)
            total += moved.sum(0)
            n += len(moved)
        with torch.no_grad():
            tuning.gains[name].sub_(total / n)
        tuning.keep(name)
    if tuning.judge() < before:
        return [name for _, name in found]
    with torch.no_grad():
        for name, bias in start.items():
            tuning.gains[name].copy_(bias)
            tuning.keep(name)
    return []


def _bias_of(module: nn.Module) -> int:
    """Identity of a norm's bias; that of None for other modules."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    return id(bias if weight is not None and weight.ndim == 1 else None)


def _behind_matrices(tuning: Tuning) -> list[str]:
    """Modules without children that run in a block behind one that has a matrix, in that order."""
    model = tuning.coded.model
    blocks, order, hooks = chain(model), [], []
    for path, module in model.named_modules():
        if not any(module.children()):
            hooks.append(module.register_forward_hook(lambda *_, path=path: order.append(path)))
    try:
        with torch.no_grad():
            call(model, tuning.samples[0])
    finally:
        for h in hooks:
            h.remove()
    coded, out = {m.module for m in tuning.matrices}, []
    for block in blocks[1] if blocks else []:
        inside = [p for p in dict.fromkeys(order) if p.startswith(block + ".")]
        first = next((i for i, p in enumerate(inside) if p in coded), len(inside))
        out += inside[first:]
    return out


def _output(model: Any, path: str, sample: dict[str, Any]) -> Tensor:
    """(n_tokens, n) that a module gives for a sample."""
    seen: list[Tensor] = []
    hook = model.get_submodule(path).register_forward_hook(lambda m, x, y: seen.append(y.reshape(-1, y.shape[-1])))
    try:
        with torch.no_grad():
            call(model, sample)
    finally:
        hook.remove()
    return torch.cat(seen)
