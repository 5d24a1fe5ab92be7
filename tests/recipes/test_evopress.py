from __future__ import annotations

import numpy as np
import pytest

import laconic
from laconic.recipes.weights.evopress import evopress

from .trials import chosen, held_out, rungs, spent, uniform


def test_evolution_beats_one_rate_and_the_estimate_at_the_same_bits() -> None:
    """EvoPress: at the bits of 3-bit GPTQ, by the whole model's KL."""
    from laconic.allocate import lagrangian

    trial = rungs()
    flat, budget = uniform(trial, 1)
    policy = evopress(generations=3, offspring=6).policy
    assert policy is not None
    bred = chosen(trial, policy(trial, budget))
    start = lagrangian(trial.bits, trial.nats, budget)
    assert spent(trial, bred) <= budget
    assert spent(trial, bred) > 0.99 * budget
    assert trial.loss(bred) <= trial.loss(start) < trial.loss(flat)
    assert trial.loss(bred) < 0.9 * trial.loss(flat)
    assert held_out(trial, bred) < held_out(trial, flat)


def test_a_lower_sum_of_losses_may_be_the_worse_model() -> None:
    """The paper's premise: errors are not monotone, so a sum over layers cannot rank all choices."""
    trial, rng = rungs(), np.random.default_rng(0)
    _, budget = uniform(trial, 1)
    some = [trial.filled(rng.integers(0, 2, len(trial.names)), budget) for _ in range(10)]
    rows = np.arange(len(trial.names))
    sums, true = [trial.nats[rows, c].sum() for c in some], [trial.loss(c, 4) for c in some]
    pairs = [(a, b) for a in range(10) for b in range(a)]
    assert any((sums[a] - sums[b]) * (true[a] - true[b]) < 0 for a, b in pairs)


def test_other_rates_are_refused() -> None:
    with pytest.raises(laconic.BadConfig, match="2 to 6"):
        evopress(7)
