from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from laconic.core.packet import codec
from laconic.sources.weights.recipe import WeightRecipe

from .tiny import IDS, tiny_llama


@pytest.fixture
def folder() -> Path:
    return tiny_llama()


def compress(folder: Path, out: Path, tune: Any) -> Any:
    from laconic.sources.weights.compress import compress

    recipe = WeightRecipe(lambda rate: codec("gptq", bits=2, group=32).stage, (2.0,), nominal=2.0, tune=tune)
    return compress(folder, out=out, recipe=recipe, calibration=IDS, threads=1)


def test_gains_lower_the_divergence_and_cost_nothing(folder: Path, tmp_path: Path) -> None:
    from laconic.sources.weights.store import Packed
    from laconic.sources.weights.tune import tune_gains

    seen: list[float] = []

    def tune(tuning: Any) -> None:
        seen.append(tuning.judge())
        tune_gains(tuning, steps=25, rate=0.02)
        seen.append(tuning.judge())

    plain, tuned = compress(folder, tmp_path / "plain", None), compress(folder, tmp_path / "tuned", tune)
    assert seen[1] < seen[0]
    assert tuned.weight_bytes == plain.weight_bytes
    assert tuned.notes[0].startswith(f"tuned: KL {seen[0]:.4f} to {seen[1]:.4f}")
    a, b = Packed(tmp_path / "plain"), Packed(tmp_path / "tuned")
    assert all(a[name] == b[name] for name in a)
    changed = [k for k in a.kept if not torch.equal(a.source[k], b.source[k])]
    assert changed
    assert all(a.source[k].ndim == 1 and a.source[k].dtype == b.source[k].dtype for k in changed)


def test_moved_codes_are_in_the_packets_that_are_written(folder: Path, tmp_path: Path) -> None:
    from laconic.sources.weights.store import Packed

    said: dict[str, torch.Tensor] = {}

    def tune(tuning: Any) -> None:
        m = tuning.matrices[1]
        codes = tuning.codes(m)
        tuning.put(m, codes.packet((codes.index + 1) % 4))
        said[m.name] = tuning.coded.parameter(m).clone()

    compress(folder, tmp_path / "moved", tune)
    written = Packed(tmp_path / "moved")
    for name, weight in said.items():
        assert torch.equal(written.decode(name), weight)


def test_a_model_beyond_the_limit_stays_as_coded(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from laconic.sources.weights import tune

    monkeypatch.setattr(tune, "LIMIT_BYTES", 1 << 10)

    def never(tuning: Any) -> None:
        raise AssertionError("it was tuned")

    report = compress(folder, tmp_path / "large", never)
    assert report.notes[0].startswith("not tuned: that takes up to")
