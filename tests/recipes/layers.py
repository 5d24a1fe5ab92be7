"""A trained model's matrices with the statistics that a calibration text gives, once per session.

The model is the bundled english-llama-7m, the text the bundled Genesis: its first part calibrates, its last part judges.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import laconic
from laconic import Stats
from laconic.core.stage import Stage

SAMPLES = Path(laconic.__file__).parent / "samples"
N_WINDOWS, LENGTH = 32, 256
BLOCKS = (1, 6)
ROLES = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")


class Layer(NamedTuple):
    """weight: (n_out, n_in); hessian: (n_in, n_in), mean of x xᵀ; fisher: (n_out,), mean squared gradient at the outputs."""

    name: str
    weight: torch.Tensor
    hessian: torch.Tensor
    fisher: torch.Tensor


class English(NamedTuple):
    """The model; windows of tokens (n, 256) to calibrate on, and others to judge by, with the model's log-probabilities."""

    model: Any
    calibration: torch.Tensor
    held_out: torch.Tensor
    reference: torch.Tensor


@cache
def english() -> English:
    """The bundled model and text; skips where transformers is absent."""
    transformers = pytest.importorskip("transformers", reason="the trained model needs transformers")
    folder = SAMPLES / "english-llama-7m"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = (SAMPLES / "genesis.txt").read_text()
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    n = len(ids) // (LENGTH - 1)
    windows = ids[: n * (LENGTH - 1)].reshape(n, LENGTH - 1)
    windows = torch.cat([torch.full((n, 1), model.config.bos_token_id), windows], dim=1)
    held_out = windows[-8:]
    with torch.no_grad():
        reference = model(held_out).logits.log_softmax(-1)
    return English(model, windows[:N_WINDOWS], held_out, reference)


@cache
def statistics() -> dict[str, Layer]:
    """Every matrix of the blocks by name, with its statistics."""
    model, windows, _, _ = english()
    linears = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "layers" in name}
    hessians: dict[str, Any] = dict.fromkeys(linears, 0.0)
    fisher: dict[str, Any] = dict.fromkeys(linears, 0.0)

    def watch(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: torch.Tensor) -> None:
            x = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
            hessians[name] = hessians[name] + x.T @ x

            def seen(gradient: torch.Tensor) -> None:
                fisher[name] = fisher[name] + gradient.reshape(-1, gradient.shape[-1]).square().sum(0)

            output.register_hook(seen)

        return hook

    hooks = [m.register_forward_hook(watch(name)) for name, m in linears.items()]
    generator = torch.Generator().manual_seed(0)
    for batch in windows.split(8):
        logits = model(batch).logits
        p = logits.detach().softmax(-1).reshape(-1, logits.shape[-1])
        drawn = torch.multinomial(p, 1, generator=generator).reshape(-1)
        torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), drawn, reduction="sum").backward()
    model.zero_grad()
    for hook in hooks:
        hook.remove()
    n = windows.numel()
    return {
        name: Layer(name, m.weight.detach().clone(), hessians[name] / n, fisher[name] / n)
        for name, m in linears.items()
    }


def real_layers() -> list[Layer]:
    """Five matrices of an early and of a late block."""
    return [statistics()[name] for name in statistics() if _chosen(name)]


def _chosen(name: str) -> bool:
    parts = name.split(".")
    return int(parts[2]) in BLOCKS and parts[-1] in ROLES


class Loss(NamedTuple):
    """error: tr(Δ H Δᵀ) / tr(W H Wᵀ); bits: of the packet without its header, a weight; weight: decoded."""

    error: float
    bits: float
    weight: torch.Tensor


def layer_loss(stage: Stage, layer: Layer, stats: Stats | None = None) -> Loss:
    """A matrix there and back; by default fitted with its Hessian."""
    codec = laconic.Codec(stage).fit(layer.weight, Stats(hessian=layer.hessian) if stats is None else stats)
    packet = codec.encode(layer.weight)
    back = laconic.decode(packet)
    e = back - layer.weight
    error = float((e @ layer.hessian * e).sum() / (layer.weight @ layer.hessian * layer.weight).sum())
    header = laconic.info(packet).ledger.by_role()["header"]
    return Loss(error, 8 * (len(packet) - header) / layer.weight.numel(), back)


def divergence(weights: Mapping[str, torch.Tensor]) -> float:
    """Mean KL, nats a token, of the model with these matrices from the model as it was, on the held-out text."""
    model, _, held_out, reference = english()
    modules = dict(model.named_modules())
    before = {name: modules[name].weight.data for name in weights}
    with torch.no_grad():
        for name, w in weights.items():
            modules[name].weight.data = w
        now = model(held_out).logits.log_softmax(-1)
        for name, w in before.items():
            modules[name].weight.data = w
    return float((reference.exp() * (reference - now)).sum(-1).mean())
