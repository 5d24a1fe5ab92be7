from __future__ import annotations

import pytest
import torch

import laconic
from laconic.recipes.weights.hawq import hawq
from laconic.sources.weights.scores import hessian_traces, task_loss

from .trials import chosen, held_out, rungs, spent, uniform


def test_curvature_beats_one_rate_at_the_same_bits() -> None:
    """HAWQ-V3, eq. 5, at the bits of one rate for all."""
    trial = rungs()
    flat, budget = uniform(trial, 1)
    policy = hawq(probes=4).policy
    assert policy is not None
    choice = chosen(trial, policy(trial, budget))
    assert 0.99 * budget < spent(trial, choice) <= budget
    assert trial.loss(choice) < 0.7 * trial.loss(flat)
    assert held_out(trial, choice) < held_out(trial, flat)


def test_traces_agree_with_second_differences() -> None:
    """vᵀ H v of the embeddings, by Hutchinson's way and by differences of the loss along sign vectors."""
    trial = rungs()
    m, n = trial.matrices[0], 3
    traces = hessian_traces(trial, probes=4, n_samples=1)
    whole, generator = trial.original(), torch.Generator().manual_seed(1)
    p, step, found = whole.parameter(m), 0.02, []
    with torch.no_grad():
        before = p.clone()
        middle = float(task_loss(whole, trial.samples[0], generator).double())
        for _ in range(n):
            v = torch.randint(0, 2, p.shape, generator=generator) * 2.0 - 1
            sides = [
                float(task_loss(whole, trial.samples[0], generator))
                for s in (step, -step)
                if p.copy_(before + s * v) is not None
            ]
            found.append((sum(sides) - 2 * middle) / step**2)
        p.copy_(before)
    assert traces[0] == pytest.approx(sum(found) / n, rel=0.5)


@pytest.mark.parametrize("bits", [1, 9])
def test_other_rates_are_refused(bits: int) -> None:
    with pytest.raises(laconic.BadConfig, match="2 to 8"):
        hawq(bits)
