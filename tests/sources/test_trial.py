from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import laconic
from laconic.allocate import integer_programme
from laconic.core.packet import codec
from laconic.sources.weights.recipe import WeightRecipe

from .tiny import IDS, tiny_llama


def at(rate: float) -> Any:
    return codec("gptq", bits=int(rate), group=32).stage


def made(work: Path, batches: Any = None, recipe: WeightRecipe | None = None) -> Any:
    from laconic.sources.weights import calibrate
    from laconic.sources.weights.compress import Job, Run
    from laconic.sources.weights.network import FolderSource, Network, skeleton

    net = Network(skeleton(tiny_llama()), FolderSource(tiny_llama()))
    recipe = recipe or WeightRecipe(at, (2.0, 4.0, 8.0), nominal=4.0)
    job = Job("custom", {}, 4.0, ())
    batches = calibrate.batches(IDS) if batches is None else batches
    return Run(net, batches, recipe, job, work, tiny_llama(), 1, None, "test")


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from laconic.sources.weights.trial import Trial

    work = tmp_path_factory.mktemp("run")
    run = made(work)
    run.fisher = run.walk.fisher(work / "fisher", 4)
    with Trial(run, n_samples=6) as it:
        yield it
    assert not it.folder.exists()


def test_the_original_diverges_by_nothing_and_more_bits_by_less(trial: Any) -> None:
    n = len(trial.names)
    losses = [trial.loss([k] * n) for k in (-1, 2, 1, 0)]
    assert losses[0] < 1e-5
    assert losses == sorted(losses)
    assert trial.loss([-1] * n) == losses[0], "what was tried before is gone"


def test_bits_are_those_of_packets_and_estimates_fall(trial: Any) -> None:
    per_weight = trial.bits / np.array([m.n_elements for m in trial.matrices])[:, None]
    assert (per_weight > [2, 4, 8]).all()
    assert (np.diff(trial.bits, axis=1) > 0).all()
    assert (np.diff(trial.nats, axis=1) < 0).all()
    w, back = trial.candidate(3, -1), trial.candidate(3, 0)
    assert trial.squares[3, 0] == pytest.approx(float((back - w).square().sum()), rel=1e-5)


def test_the_estimate_is_near_the_true_loss_of_one_matrix(trial: Any) -> None:
    ratios = [trial.alone(i, 1) / trial.nats[i, 1] for i in range(1, len(trial.names))]
    assert 0.3 < np.exp(np.mean(np.log(ratios))) < 3


def test_row_scores_know_the_rows_that_matter(trial: Any) -> None:
    from laconic.sources.weights.scores import row_scores

    scores = row_scores(trial, 0)
    assert {k: tuple(v.shape) for k, v in scores.items()} == {m.name: (m.shape[0],) for m in trial.matrices}
    looked_up = torch.zeros(96, dtype=torch.bool)
    for sample in trial.samples:
        looked_up[sample["input_ids"]] = True
    embedding = scores[trial.names[0]]
    assert (embedding[~looked_up] == 0).all()
    assert float((embedding[looked_up] > 0).float().mean()) > 0.9


def test_a_policy_steers_a_whole_run(tmp_path: Path) -> None:
    from laconic.sources.weights.compress import compress

    def policy(trial: Any, budget: float) -> list[float]:
        return trial.rates_of(trial.filled(integer_programme(trial.bits, trial.nats, budget), budget))

    recipe = WeightRecipe(at, (2.0, 3.0, 4.0, 5.0), nominal=4.0, policy=policy)
    report = compress(tiny_llama(), out=tmp_path / "out", recipe=recipe, bits=4.6, calibration=IDS, threads=1)
    assert report.bits <= 4.65
    assert len({row.rate for row in report.rows}) > 1


def test_without_a_text_it_says_what_is_missing(tmp_path: Path) -> None:
    from laconic.sources.weights.trial import Trial

    with pytest.raises(laconic.BadInput, match="calibration text"):
        Trial(made(tmp_path, []))
