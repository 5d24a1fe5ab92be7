from __future__ import annotations

import math

import numpy as np
import pytest

import laconic
from laconic.core.combine import chain
from laconic.quantize.base import Nearest
from laconic.recipes.weights.adaquant_ip import adaquant_ip

from .layers import layer_loss, real_layers
from .trials import chosen, rungs, spent, uniform


@pytest.mark.parametrize("bits", [2, 3])
def test_layers_lose_less_than_by_nearest(bits: int) -> None:
    """AdaQuant, eq. 2: outputs of trained layers after 100 iterations, at the same bits."""
    quantizer, pack = adaquant_ip(bits).codec.stages
    layers = [layer for layer in real_layers() if layer.weight.numel() <= 1 << 16]
    tuned = [layer_loss(chain(quantizer, pack), layer) for layer in layers]
    nearest = [layer_loss(chain(quantizer.replace(rounding=Nearest()), pack), layer) for layer in layers]
    assert [a.bits for a in tuned] == [b.bits for b in nearest]
    assert all(a.error < b.error for a, b in zip(tuned, nearest, strict=True))
    gains = [math.log(a.error / b.error) for a, b in zip(tuned, nearest, strict=True)]
    assert math.exp(sum(gains) / len(gains)) < 0.7


def test_the_programme_beats_one_rate_and_losses_nearly_add_up() -> None:
    trial = rungs()
    flat, budget = uniform(trial, 1)
    policy = adaquant_ip(samples=1).policy
    assert policy is not None
    choice = chosen(trial, policy(trial, budget))
    assert 0.99 * budget < spent(trial, choice) <= budget
    assert trial.loss(choice) < 0.9 * trial.loss(flat)
    alone = np.array([trial.alone(i, int(k), 1) for i, k in enumerate(choice)])
    assert trial.loss(choice, 1) == pytest.approx(alone.sum(), rel=0.5)


def test_other_rates_are_refused() -> None:
    with pytest.raises(laconic.BadConfig, match="5 bits"):
        adaquant_ip(5)
