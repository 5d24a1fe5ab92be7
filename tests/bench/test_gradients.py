"""The benchmark of gradients: a training under torchrun, and what its rows are made of."""

from __future__ import annotations

import pytest

from laconic.bench import gradients
from laconic.bench.gradients_train import Job, Outcome, launch
from laconic.core.errors import BadInput, CodecError


def _data() -> bool:
    from laconic.bench.weights_text import data_folder

    try:
        return (data_folder() / "mnist" / "mnist.npz").is_file()
    except BadInput:
        return False


@pytest.mark.skipif(not _data(), reason="the measurement data are not here")
def test_two_ranks_train_under_torchrun() -> None:
    jobs = [Job("mnist", "none", steps=2, batch=1), Job("mnist", "ef-levels", {"fraction": 0.05}, steps=2, batch=1)]
    plain, ours = launch(jobs)
    assert plain.sent_bytes == plain.dense_bytes + 2 * 4
    assert 40 * ours.sent_bytes < ours.dense_bytes and len(ours.losses) == 2
    assert ours.losses[0] == plain.losses[0], "the first loss comes before anything is sent"


def test_a_training_that_fails_is_reported() -> None:
    with pytest.raises(CodecError, match="training on 1 ranks ended with"):
        launch([Job("no-such-task", "none")], 1)


def test_rows_compare_seed_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def outcomes(finals: tuple[float, ...], sent: float) -> list[Outcome]:
        return [Outcome([1.0], f, sent, 100.0, 1.0, 1.0, 0.0, 0.0, 1.0, {"frozen": 7.0}) for f in finals]

    monkeypatch.setattr(gradients, "_plain", lambda task: outcomes((1.0, 2.0, 3.0), 100.0))
    monkeypatch.setattr(gradients, "launch", lambda jobs, n: outcomes((1.01, 2.02, 3.03), 20.0))
    fewer, loss, frozen = gradients.onebit()
    assert fewer.value == 5 and fewer.holds
    assert loss.value == pytest.approx(1.0) and loss.peer_value == pytest.approx(50.0) and not loss.holds
    assert frozen.value == 7
