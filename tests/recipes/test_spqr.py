from __future__ import annotations

import math

import pytest
import torch

import laconic
from laconic import Stats
from laconic.core.combine import chain, partition
from laconic.core.stage import Stage
from laconic.quantize.rules import Largest

from .layers import layer_loss, real_layers


def layer(n: int = 192, rows: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """Heavy-tailed weights; inputs with a power-law spectrum and a few large channels."""
    g = torch.Generator().manual_seed(0)
    chi = torch.randn(5, rows, n, generator=g).square().sum(dim=0)
    w = torch.randn(rows, n, generator=g) / (chi / 5).sqrt()
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=g))
    x = torch.randn(2048, n, generator=g) @ (q * torch.arange(1, n + 1) ** -0.5).T
    x[:, torch.randperm(n, generator=g)[:3]] *= 30
    return w, x.T @ x / 2048


W, H = layer()


def loss(stage: Stage) -> tuple[float, float]:
    """Relative error of the layer's output, and bits a weight."""
    packet = laconic.Codec(stage).fit(W, Stats(hessian=H)).encode(W)
    e = laconic.decode(packet) - W
    return float((e @ H * e).sum() / (W @ H * W).sum()), 8 * len(packet) / W.numel()


def spqr(**settings: float) -> Stage:
    return laconic.codec("spqr", **settings).stage


def by_magnitude() -> Stage:
    stage = spqr()
    return partition(Largest(0.01), *(chain(c) for c in stage.codecs))


def test_outliers_by_sensitivity_beat_outliers_by_magnitude() -> None:
    """SpQR, section 3: what must stay exact is what hurts, not what is large."""
    none, magnitude, sensitivity = loss(spqr(outliers=0.0)), loss(by_magnitude()), loss(spqr())
    assert sensitivity[0] < magnitude[0] / 3
    assert magnitude[0] > 0.5 * none[0]
    assert sensitivity[1] - none[1] < 0.01 * (16 + 10), "16 bits and about log2(e / .01) = 8.1 for the position"


def test_outliers_are_worth_their_bits() -> None:
    three, four = loss(spqr()), loss(spqr(bits=4, outliers=0.0))
    assert three[1] < four[1] - 0.5 and three[0] < 1.1 * four[0]


def trained(stage: Stage) -> tuple[float, float]:
    """Geometric mean of the relative errors of trained layers, and their mean bits a weight."""
    found = [layer_loss(stage, layer) for layer in real_layers()]
    sizes = [layer.weight.numel() for layer in real_layers()]
    bits = sum(one.bits * n for one, n in zip(found, sizes, strict=True)) / sum(sizes)
    return math.exp(sum(math.log(one.error) for one in found) / len(found)), bits


def test_trained_layers_gain_from_bilevel_scales_more_than_from_outliers() -> None:
    """english-llama-7m has light tails: groups of 16 with cheap scales beat GPTQ's of 32 at its rate; outliers take off 7 %,
    by sensitivity no more than by magnitude, and do not pay for their .24 bits. The paper's order is not seen here."""
    ours, without, magnitude = trained(spqr()), trained(spqr(outliers=0.0)), trained(by_magnitude())
    gptq = trained(laconic.codec("gptq", bits=3, group=32).stage)
    assert without[0] < 0.85 * gptq[0] and without[1] < gptq[1] + 0.05
    assert ours[0] < 0.97 * without[0]
    assert ours[0] * 4 ** (ours[1] - without[1]) > without[0]
    assert 0.98 < ours[0] / magnitude[0] < 1.15


def test_ledger() -> None:
    packet = laconic.codec("spqr").fit(W, Stats(hessian=H)).encode(W)
    by_role = {k: 8 * v / W.numel() for k, v in laconic.info(packet).ledger.by_role().items()}
    assert by_role["codes"] == pytest.approx(3 + 0.16, abs=0.01)
    assert by_role["scales"] + by_role["zeros"] == pytest.approx(2 * (3 + 2) / 16, abs=0.01)
    assert by_role["indices"] == pytest.approx(0.083, abs=0.01)


def test_outliers_are_nearly_exact() -> None:
    stage = laconic.Codec(spqr()).fit(W, Stats(hessian=H)).stage
    at = stage.rule.positions(W)
    back = laconic.decode(laconic.Codec(stage).encode(W))
    torch.testing.assert_close(back.reshape(-1)[at], W.reshape(-1)[at], rtol=2**-11, atol=0)


@pytest.mark.parametrize("bits", [0, 9])
def test_other_rates_are_refused(bits: int) -> None:
    with pytest.raises(laconic.BadConfig):
        laconic.codec("spqr", bits=bits)
