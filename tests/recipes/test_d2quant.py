from __future__ import annotations

import math

import pytest
import torch

import laconic
from laconic import Stats
from laconic.core.stage import Stage

from .layers import layer_loss, real_layers


def d2quant(bits: int, rounds: int = 15) -> Stage:
    return laconic.codec("d2quant", bits=bits, rounds=rounds, group=32).stage


def synthetic() -> tuple[torch.Tensor, torch.Tensor]:
    """Columns whose sizes have heavy tails, as neurons that seldom fire give; inputs that are correlated."""
    g = torch.Generator().manual_seed(0)
    w = torch.randn(128, 192, generator=g) * torch.exp(torch.randn(192, generator=g))
    x = torch.randn(1024, 192, generator=g) @ torch.randn(192, 192, generator=g)
    return w, x.T @ x / 1024


def error(stage: Stage) -> tuple[float, int]:
    w, h = synthetic()
    packet = laconic.Codec(stage).fit(w, Stats(hessian=h)).encode(w)
    e = laconic.decode(packet) - w
    return float((e @ h * e).sum() / (w @ h * w).sum()), len(packet)


@pytest.mark.parametrize(("bits", "at_most"), [(2, 0.45), (3, 0.30)])
def test_factors_pay_where_columns_differ(bits: int, at_most: float) -> None:
    """D²Quant, the dual-scale quantizer; the factors are in both packets' or only in one's bytes."""
    ours, without = error(d2quant(bits)), error(d2quant(bits, rounds=0))
    assert ours[0] < at_most * without[0]
    assert abs(ours[1] - without[1]) <= 8
    gptq = error(laconic.codec("gptq", bits=bits, group=32).stage)
    bits_more = 8 * (ours[1] - gptq[1]) / synthetic()[0].numel()
    assert 0.1 < bits_more < 0.2, "16 / 128, and a longer header"
    assert ours[0] < 0.6 * gptq[0] * 4**-bits_more


def test_on_trained_down_projections_they_change_nothing() -> None:
    """As the card says: their columns are of a size."""
    down = [layer for layer in real_layers() if "down_proj" in layer.name]
    for bits in (2, 3):
        ratios = [layer_loss(d2quant(bits, 4), one).error / layer_loss(d2quant(bits, 0), one).error for one in down]
        assert math.prod(ratios) ** (1 / len(ratios)) == pytest.approx(1.0, abs=0.03)


def test_other_rates_are_refused() -> None:
    with pytest.raises(laconic.BadConfig, match="1 to 8"):
        laconic.codec("d2quant", bits=0)
