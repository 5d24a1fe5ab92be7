from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

import laconic
from laconic import Stats
from laconic.core.combine import chain
from laconic.recipes.weights.gptq import gptq
from laconic.recipes.weights.rsq import rsq
from laconic.transforms.rotation import Hadamard

from .layers import SAMPLES, divergence, english, real_layers


@cache
def weighted_hessians(n: int = 16) -> dict[str, torch.Tensor]:
    """H = Σ r_t x_t x_tᵀ of every matrix, r the attention received, mapped to 1 … 3 and to mean 1."""
    transformers = pytest.importorskip("transformers", reason="attention is read from the trained model")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        SAMPLES / "english-llama-7m", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    names = [layer.name for layer in real_layers()]
    modules, inputs, windows = dict(model.named_modules()), {}, english().calibration[:n]
    hessians: dict[str, Any] = dict.fromkeys(names, 0.0)
    for name in names:
        modules[name].register_forward_hook(lambda _m, given, _out, name=name: inputs.update({name: given[0]}))
    with torch.no_grad():
        for batch in windows.split(8):
            attentions = model(batch, output_attentions=True).attentions
            for name in names:
                received = attentions[int(name.split(".")[2])].sum((1, 2))
                low, high = received.amin(1, keepdim=True), received.amax(1, keepdim=True)
                r = 1 + 2 * (received - low) / (high - low)
                x = inputs[name].reshape(-1, inputs[name].shape[-1])
                hessians[name] = hessians[name] + x.T @ (x * (r / r.mean()).reshape(-1, 1)) / windows.numel()
    return hessians


def kl(stage: laconic.core.stage.Stage, hessians: dict[str, torch.Tensor]) -> float:
    coded = {}
    for layer in real_layers():
        codec = laconic.Codec(stage).fit(layer.weight, Stats(hessian=hessians[layer.name]))
        coded[layer.name] = laconic.decode(codec.encode(layer.weight))
    return divergence(coded)


def test_the_rotation_helps_and_the_weights_change_little() -> None:
    """RSQ: the rotation's gain is seen here; that of attention is not, at this size."""
    uniform = {layer.name: layer.hessian for layer in real_layers()}
    turned = chain(Hadamard(0), gptq(2))
    plain, rotated, scaled = kl(gptq(2), uniform), kl(turned, uniform), kl(rsq(2).codec, weighted_hessians())
    assert rotated < 0.97 * plain
    assert scaled < 0.97 * plain
    assert scaled / rotated == pytest.approx(1.0, abs=0.1)


def test_it_asks_for_attention_and_keeps_to_gptqs_rates() -> None:
    recipe = rsq(3)
    assert recipe.statistics.tokens == "attention"
    w = torch.randn(32, 256, generator=torch.Generator().manual_seed(0))
    sizes = [len(laconic.Codec(c).encode(w)) for c in (recipe.codec, recipe.at(3.0), chain(Hadamard(0), gptq(3)))]
    assert len(set(sizes)) == 1
    assert recipe.rates == tuple(float(b) for b in range(1, 9))


def test_other_rates_are_refused() -> None:
    with pytest.raises(laconic.BadConfig, match="1 to 8"):
        rsq(0)
