from __future__ import annotations

from typing import Any

import pytest
import torch

import laconic
from laconic import Stats
from laconic.sources.weights.activations import augmented_nvfp4, nvfp4
from laconic.transforms.rotation import Hadamard

from .layers import english, real_layers


def outliers(n: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs with 16 large channels, ordered by size as the product orders them, and weights."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, n, generator=g)
    x[:, torch.randperm(n, generator=g)[:16]] *= 30
    x = x[:, x.abs().amax(dim=0).argsort(descending=True, stable=True)]
    return x, torch.randn(64, n, generator=g)


def relative(y: torch.Tensor, want: torch.Tensor) -> float:
    return float((y - want).square().sum() / want.square().sum())


def test_residual_channels_take_the_error_of_outlier_channels_away() -> None:
    """ARCQuant: two stages of four bits in the channels that matter. Weights in four bits on both sides."""
    x, w = outliers()
    want = x @ nvfp4(w).T
    plain, one = (augmented_nvfp4(x, w, k) for k in (0, 16))
    assert one.bits == pytest.approx(4.5 * (1 + 16 / 256)) and plain.bits == 4.5
    assert relative(one.y, want) < 0.05 * relative(plain.y, want)
    errors = [relative(augmented_nvfp4(x, w, k).y, want) for k in (0, 16, 64, 256)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02 * errors[0], "two stages everywhere"
    h = Hadamard(None, 16)
    rotated = nvfp4(h.encode(x)[0]) @ nvfp4(h.encode(w)[0]).T
    assert relative(one.y, x @ w.T) < relative(rotated, x @ w.T)


def test_the_number_of_channels_follows_the_outliers() -> None:
    x, w = outliers()
    assert augmented_nvfp4(x, w).n_added == 16
    assert augmented_nvfp4(x / x.abs(), w).n_added == 256, "all alike: all are large"


def test_on_trained_layers_they_help_and_a_rotation_does_not() -> None:
    inputs: dict[str, torch.Tensor] = {}
    model, held_out = english().model, english().held_out
    modules, layers = dict(model.named_modules()), real_layers()

    def keep(name: str) -> Any:
        return lambda _m, given, _out: inputs.update({name: given[0].detach().reshape(-1, given[0].shape[-1])})

    hooks = [modules[one.name].register_forward_hook(keep(one.name)) for one in layers]
    with torch.no_grad():
        model(held_out[:1])
    for hook in hooks:
        hook.remove()
    for one in layers:
        x, w, h = inputs[one.name], one.weight, Hadamard(None, 16)
        want, rotated = x @ w.T, nvfp4(h.encode(x := inputs[one.name])[0]) @ nvfp4(h.encode(w)[0]).T
        plain, added = (relative(augmented_nvfp4(x, w, k).y, want) for k in (0, 64))
        assert added < 0.95 * plain < 0.97 * relative(rotated, want)


def test_stored_weights_are_nvfp4_with_feedback() -> None:
    layer = real_layers()[0]
    packet = laconic.codec("arcquant").fit(layer.weight, Stats(hessian=layer.hessian)).encode(layer.weight)
    by_role = laconic.info(packet).ledger.by_role()
    assert 8 * (by_role["codes"] + by_role["scales"]) == 4.5 * layer.weight.numel() + 32
    e = laconic.decode(packet) - layer.weight
    d = nvfp4(layer.weight) - layer.weight
    assert (e @ layer.hessian * e).sum() < 0.4 * (d @ layer.hessian * d).sum()


def test_misuse_has_a_name() -> None:
    x, w = outliers()
    with pytest.raises(laconic.BadConfig, match="multiple of 16"):
        augmented_nvfp4(x, w, 24)
    with pytest.raises(laconic.BadInput, match="n_tokens"):
        augmented_nvfp4(x, w[:, :100])
