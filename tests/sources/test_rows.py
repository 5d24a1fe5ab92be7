"""MixLLM through the walk: one threshold for the rows of all matrices, under a budget that is met."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from laconic.core.errors import BadConfig, BadInput
from laconic.core.packet import Codec
from laconic.recipes.weights.mixllm import mixllm
from laconic.sources.weights.compress import compress
from laconic.sources.weights.trial import Trial

from .test_trial import made
from .tiny import IDS, tiny_llama


def test_rows_of_all_matrices_lie_above_one_threshold(tmp_path: Path) -> None:
    run = made(tmp_path, recipe=mixllm(4, 8))
    run.fisher = run.walk.fisher(tmp_path / "fisher", 4)
    inside, outside, high, budget = [], [], 0, 5.5 * sum(m.n_elements for m in run.net.matrices)
    with Trial(run) as trial:
        rates = run.recipe.policy(trial, budget)
        for i, (m, rate) in enumerate(zip(trial.matrices, rates, strict=True)):
            w, stats = trial.candidate(i, -1), trial.statistics(i)
            scores = np.sort(run.recipe.codec.rule.scores(w, stats).numpy() / m.shape[1])
            n = int(Codec(run.recipe.at(rate)).fit(w, stats).stage.rule.chosen.sum())
            high += n * m.shape[1]
            inside += scores[len(scores) - n :].tolist()
            outside += scores[: len(scores) - n].tolist()
    assert len({round(r, 3) for r in rates}) > 3, "not the same share everywhere"
    assert min(inside) > 0.99 * max(outside), "a share is held to a thousandth"
    assert 0.1 < high / sum(m.n_elements for m in trial.matrices) < 0.5


@pytest.mark.parametrize("bits", [2.9, 4.2, 5.5, 7.0])
def test_the_budget_is_met(bits: float, tmp_path: Path) -> None:
    report = compress(tiny_llama(), out=tmp_path / "out", recipe="mixllm", bits=bits, calibration=IDS)
    assert abs(report.bits - bits) < 8 * 2048 / report.n_parameters


def test_what_it_needs_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="calibration"):
        compress(tiny_llama(), out=tmp_path / "out", recipe="mixllm", bits=5.0)
    with pytest.raises(BadConfig, match="are right"):
        compress(tiny_llama(), out=tmp_path / "other", recipe="mixllm", bits=12.0, calibration=IDS)
