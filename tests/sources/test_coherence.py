"""Gradients that the positions of a convolution share, and what they make of its Hessian."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from laconic.sources.weights.capture import Capture, Gradients, Moments
from laconic.sources.weights.network import matrices


def _heard(conv: nn.Module, x: torch.Tensor, pull: Any) -> tuple[str, Moments, Gradients]:
    """Moments and gradients of a convolution, whose output `pull` turns into a loss."""
    (m,) = matrices(nn.Sequential(conv))
    moments, gradients = Moments(), Gradients()
    moments.new_batch()

    def hear(*said: Any) -> None:
        moments(*said)
        gradients(*said)

    with Capture([m], lambda module, param: conv.weight, hear):
        out = conv(x)
    pull(out).backward()
    return m.name, moments, gradients


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


CONVOLUTIONS = [
    nn.Conv2d(16, 12, 3, padding=1, bias=False),
    nn.Conv2d(128, 128, 3, padding=1, groups=128, bias=False),
    nn.Conv1d(24, 32, 3, stride=2, bias=False),
]


@pytest.mark.parametrize("conv", CONVOLUTIONS, ids=["dense", "depthwise", "one dimension"])
def test_a_mean_over_positions_is_coherent_and_the_loss_is_that_of_mean_inputs(conv: nn.Module) -> None:
    """Behind a mean over positions an error costs what it does to the mean of the patches, whatever the positions do."""
    flat = isinstance(conv, nn.Conv1d)
    x = 0.3 + _random(*((400, 24, 9) if flat else (400, conv.in_channels, 5, 5))).relu()
    name, moments, gradients = _heard(conv, x, lambda out: (out.flatten(2).mean(2) * _random(*out.shape[:2])).sum())
    assert gradients.coherence()[name] == pytest.approx(1.0, abs=1e-4)
    error = 0.1 * _random(*conv.weight.shape, seed=1)
    moved = nn.functional.conv1d if flat else nn.functional.conv2d
    out = moved(x, error, stride=conv.stride, padding=conv.padding, groups=conv.groups).flatten(2)
    n = out.shape[2]
    # Gradients of unit variance at the mean are 1 / n at a position: Σ over positions squared, then its mean.
    true = float(out.mean(2).square().sum(1).mean())
    rows = float(gradients.total[name].mean()) / len(x)

    def told(coherence: float) -> float:
        h = moments.hessian(name, coherence)
        assert h is not None
        e = error.flatten(1)
        return rows * float(((e @ h) * e).sum())

    assert told(gradients.coherence()[name]) == pytest.approx(true, rel=0.25)
    assert told(0.0) < 0.5 * true
    assert rows == pytest.approx(1 / n, rel=0.1)


def test_gradients_that_know_nothing_of_each_other_leave_the_hessian_as_it_is() -> None:
    conv = CONVOLUTIONS[0]
    name, moments, gradients = _heard(conv, _random(200, 16, 5, 5), lambda out: (out * _random(*out.shape)).sum())
    assert gradients.coherence()[name] < 0.01
    plain, told = moments.hessian(name), moments.hessian(name, gradients.coherence()[name])
    assert plain is not None and told is not None
    torch.testing.assert_close(told, plain, rtol=0.05, atol=0.05 * float(plain.diagonal().mean()))


def test_a_linear_layer_has_no_positions() -> None:
    layer = nn.Linear(32, 64, bias=False)
    name, moments, gradients = _heard(layer, _random(8, 10, 32), lambda out: out.mean(1).sum())
    assert name not in gradients.coherence() and name not in moments.pooled
    plain, told = moments.hessian(name), moments.hessian(name, 0.5)
    assert plain is not None and told is not None
    assert torch.equal(plain, told)


def test_moments_of_two_batches_are_those_of_both() -> None:
    conv = CONVOLUTIONS[0]
    x = _random(64, 16, 5, 5).relu()
    name, once, _ = _heard(conv, x, lambda out: out.sum())
    (m,) = matrices(nn.Sequential(conv))
    twice = Moments()
    for part in x.split(32):
        twice.new_batch()
        with Capture([m], lambda module, param: conv.weight, twice):
            conv(part)
    assert twice.n_pooled == once.n_pooled
    a, b = once.hessian(name, 0.7), twice.hessian(name, 0.7)
    assert a is not None and b is not None
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
