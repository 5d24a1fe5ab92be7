"""Runs of the weights' room on the bundled english-llama-7m, for systems that try out rates or tune."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from laconic.core.packet import codec
from laconic.sources.weights.recipe import WeightRecipe

from .layers import SAMPLES, divergence, english

ATTENTION = ("mlp",)  # what the shared trial keeps: embeddings and 32 small matrices are left


def run(recipe: WeightRecipe, n_windows: int, length: int, keep: tuple[str, ...] = (), bits: float | None = 3.0) -> Any:
    """A run whose statistics are gathered, before it plans; matrices in `keep` stay as they are."""
    pytest.importorskip("transformers", reason="the trained model needs transformers")
    from laconic.sources.weights import calibrate
    from laconic.sources.weights.compress import Job, Run
    from laconic.sources.weights.network import FolderSource, Network, skeleton

    folder = SAMPLES / "english-llama-7m"
    net = Network(skeleton(folder), FolderSource(folder), keep)
    batches = calibrate.batches(english().calibration[:n_windows, :length].contiguous())
    work = Path(tempfile.mkdtemp(prefix="laconic-"))
    atexit.register(shutil.rmtree, work, ignore_errors=True)
    made = Run(net, batches, recipe, Job("custom", {}, bits, keep), work, folder, 1, None, "test")
    assert made.walk is not None
    if bits is not None:
        made.fisher = made.walk.fisher(work / "fisher", 4)
    return made


def gptq_rungs(*rates: float) -> WeightRecipe:
    """GPTQ in groups of 64 at these rates."""
    return WeightRecipe(lambda rate: codec("gptq", bits=int(rate)).stage, rates, nominal=rates[0])


@cache
def rungs() -> Any:
    """A trial of the attention of all blocks on GPTQ at 2, 3 and 4 bits."""
    from laconic.sources.weights.trial import Trial

    return Trial(run(gptq_rungs(2.0, 3.0, 4.0), 16, 128, ATTENTION), n_samples=8)


def uniform(trial: Any, level: int) -> tuple[np.ndarray, float]:
    """(choice of one rate for all, its bits)."""
    return np.full(len(trial.names), level), float(trial.bits[:, level].sum())


def chosen(trial: Any, rates: list[float]) -> np.ndarray:
    """Numbers of the rates that a policy gave."""
    return np.array([trial.level(r) for r in rates])


def spent(trial: Any, choice: np.ndarray) -> float:
    """Bits of a choice."""
    return float(trial.bits[np.arange(len(choice)), choice].sum())


def held_out(trial: Any, choice: np.ndarray) -> float:
    """KL of a choice on text that no policy saw."""
    weights = {
        n.removesuffix(".weight"): trial.candidate(i, int(k))
        for i, (n, k) in enumerate(zip(trial.names, choice, strict=True))
    }
    return divergence(weights)


def coded(recipe: WeightRecipe, n_windows: int, length: int, keep: tuple[str, ...] = ATTENTION) -> Any:
    """A run whose matrices are coded at the recipe's nominal rate."""
    made = run(recipe, n_windows, length, keep, None)
    made.open(False)
    made.run()
    return made


def tuning(recipe: WeightRecipe, n_windows: int, length: int, keep: tuple[str, ...] = ATTENTION) -> Any:
    """A model coded at the recipe's nominal rate, ready to be tuned."""
    from laconic.sources.weights.tune import Tuning

    return Tuning(coded(recipe, n_windows, length, keep))


def coded_held_out(tuned: Any) -> float:
    """KL of the coded model on text that tuned nothing."""
    weights = {m.name.removesuffix(".weight"): tuned.coded.parameter(m).detach().clone() for m in tuned.matrices}
    return divergence(weights)
