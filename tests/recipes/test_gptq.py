from __future__ import annotations

import math

import pytest
import torch

import laconic
from laconic import Stats

from .layers import Loss, divergence, layer_loss, real_layers


def losses(nearest: bool = False, **settings: int) -> list[Loss]:
    stage = laconic.codec("gptq", **settings).stage
    stats = Stats() if nearest else None
    return [layer_loss(stage, layer, stats) for layer in real_layers()]


def mean(found: list[Loss]) -> float:
    """Geometric mean of the relative errors."""
    return math.exp(sum(math.log(one.error) for one in found) / len(found))


@pytest.mark.parametrize(("bits", "at_most"), [(2, 0.33), (3, 0.30), (4, 0.28)])
def test_feedback_beats_nearest_at_the_same_bits(bits: int, at_most: float) -> None:
    """GPTQ, Alg. 1: the error of trained layers."""
    fed, nearest = losses(bits=bits), losses(bits=bits, nearest=True)
    assert [a.bits for a in fed] == [b.bits for b in nearest]
    assert all(a.error < b.error for a, b in zip(fed, nearest, strict=True))
    assert mean(fed) < at_most * mean(nearest)


def test_the_model_stays_near_where_nearest_does_not() -> None:
    names = [layer.name for layer in real_layers()]
    kl = [
        divergence(dict(zip(names, (one.weight for one in losses(bits=3, nearest=n)), strict=True)))
        for n in (False, True)
    ]
    assert kl[0] < 0.6 * kl[1]


@pytest.mark.parametrize(("bits", "group"), [(2, 64), (3, 32), (4, 128), (8, 0)])
def test_every_bit_is_accounted_for(bits: int, group: int) -> None:
    w = torch.randn(48, 256, generator=torch.Generator().manual_seed(0))
    packet = laconic.codec("gptq", bits=bits, group=group).encode(w)
    by_role = laconic.info(packet).ledger.by_role()
    n_groups = w.numel() // (group or 256)
    assert by_role["codes"] * 8 == bits * w.numel()
    assert by_role["scales"] * 8 == 16 * n_groups + 16, "an exponent of the array"
    assert by_role["zeros"] * 8 == bits * n_groups
    assert by_role["header"] < 500


def test_smaller_groups_cost_bits_and_are_worth_them() -> None:
    small, large = losses(bits=3, group=32), losses(bits=3, group=128)
    assert small[0].bits == pytest.approx(large[0].bits + 19 * (1 / 32 - 1 / 128), abs=0.01)
    assert mean(small) < 0.85 * mean(large)


@pytest.mark.parametrize("bits", [0, 9])
def test_other_rates_are_refused(bits: int) -> None:
    with pytest.raises(laconic.BadConfig, match="1 to 8"):
        laconic.codec("gptq", bits=bits)
