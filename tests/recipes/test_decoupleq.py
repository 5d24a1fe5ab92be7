from __future__ import annotations

import math

import pytest
import torch

import laconic
from laconic import Stats
from laconic.core.combine import chain
from laconic.core.stage import Stage
from laconic.entropy.coders import Pack
from laconic.quantize.base import Quantizer
from laconic.quantize.codebooks import Uniform
from laconic.quantize.rounding import Feedback
from laconic.quantize.scales import Along, GroupScale, MinMax

from .layers import Loss, layer_loss, real_layers


def losses(stage: Stage) -> list[Loss]:
    return [layer_loss(stage, layer) for layer in real_layers()]


def mean(found: list[Loss]) -> float:
    return math.exp(sum(math.log(one.error) for one in found) / len(found))


def decoupleq(**settings: int) -> Stage:
    return laconic.codec("decoupleq", **settings).stage


@pytest.mark.parametrize(("bits", "at_most"), [(2, 0.44), (3, 0.60)])
def test_it_beats_gptq_on_the_range_of_the_extremes(bits: int, at_most: float) -> None:
    """decoupleQ at 2 and 3 bits, one step and offset a row, the same bits."""
    scale = GroupScale(Along(), MinMax(True))
    plain = losses(chain(Quantizer(Uniform(1 << bits, 0.0), scale, Feedback()), Pack()))
    ours = losses(decoupleq(bits=bits, group=0))
    assert [a.bits for a in ours] == [b.bits for b in plain]
    assert all(a.error < b.error for a, b in zip(ours, plain, strict=True))
    assert mean(ours) < at_most * mean(plain)


def test_the_alternation_never_loses_and_gains_at_two_bits() -> None:
    by_rounds = [losses(decoupleq(bits=2, rounds=r)) for r in (0, 1, 2, 4)]
    for before, after in zip(by_rounds, by_rounds[1:], strict=False):
        assert all(b.error <= a.error * (1 + 1e-6) for a, b in zip(before, after, strict=True))
    assert mean(by_rounds[-1]) < 0.87 * mean(by_rounds[0])


def test_rate() -> None:
    w = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    packet = laconic.codec("decoupleq").fit(w, Stats(hessian=torch.eye(256))).encode(w)
    by_role = laconic.info(packet).ledger.by_role()
    assert by_role["codes"] * 8 == 2 * w.numel()
    assert by_role["zeros"] * 8 == 16 * w.numel() // 64
    assert by_role["scales"] * 8 == 16 * w.numel() // 64 + 32


def test_other_rates_are_refused() -> None:
    with pytest.raises(laconic.BadConfig, match="1 to 8"):
        laconic.codec("decoupleq", bits=9)
