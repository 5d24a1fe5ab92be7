"""The bundled model compressed block by block, each block seeing the inputs that the compressed ones before it give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import laconic
from laconic import Stats
from laconic.core.stage import Stage

from .layers import english

N_WINDOWS = 8


class _Enough(Exception):
    pass


def _inputs(model: Any, windows: torch.Tensor, linears: dict[str, Any], last: Any) -> dict[str, torch.Tensor]:
    """Inputs of the matrices, (n_tokens, n_in); the model is run as far as the module `last`."""
    seen: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Any:
        return lambda module, inputs: seen.__setitem__(name, inputs[0].reshape(-1, inputs[0].shape[-1]))

    def stop(module: Any, inputs: Any, output: Any) -> None:
        raise _Enough

    hooks = [m.register_forward_pre_hook(watch(name)) for name, m in linears.items()]
    hooks.append(last.register_forward_hook(stop))
    try:
        with torch.no_grad():
            model(windows)
    except _Enough:
        pass
    for hook in hooks:
        hook.remove()
    return seen


def walked(
    stage: Callable[[str], Stage], drift: bool, n_blocks: int = 8
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Decoded matrices by name, and for every block tr of the outputs' error, relative, against the original model's.

    stage: codec of a matrix by name. drift: whether the codecs are told the drift.
    """
    model, calibration, _, _ = english()
    windows = calibration[:N_WINDOWS]
    blocks = list(model.model.layers)[:n_blocks]
    names = {id(m): name for name, m in model.named_modules()}
    linears = [{names[id(m)]: m for m in b.modules() if isinstance(m, torch.nn.Linear)} for b in blocks]
    clean = _inputs(model, windows, {k: m for group in linears for k, m in group.items()}, blocks[-1])
    originals = {k: m.weight.data for group in linears for k, m in group.items()}
    decoded, losses = {}, []
    try:
        for block, group in zip(blocks, linears, strict=True):
            now, lost, power = _inputs(model, windows, group, block), 0.0, 0.0
            for name, module in group.items():
                x, w = now[name], originals[name]
                h, d = x.T @ x / len(x), (clean[name] - x).T @ x / len(x)
                codec = laconic.Codec(stage(name)).fit(w, Stats(hessian=h, drift=d if drift else None))
                module.weight.data = decoded[name] = laconic.decode(codec.encode(w))
                want = clean[name] @ w.T
                lost += float((x @ decoded[name].T - want).square().sum())
                power += float(want.square().sum())
            losses.append(lost / power)
    finally:
        for name, w in originals.items():
            model.get_submodule(name).weight.data = w
    return decoded, losses
