"""Norms behind attention get their means back: for nothing where they have a bias, and not at all where they have none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from laconic.core.packet import codec
from laconic.sources.weights.compress import compress
from laconic.sources.weights.recipe import Tune, WeightRecipe
from laconic.sources.weights.store import Packed
from laconic.sources.weights.tune_shift import _output, shift_norms

from . import families


def run(family: str, tmp_path: Path, offset: float, after: Any) -> Any:
    source = families.folder(family, tmp_path / "model")
    if offset:  # embeddings with a mean in common, which rounding moves
        model = families.transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name.endswith("wte.weight"):
                    p += offset
        model.save_pretrained(source)
    recipe = WeightRecipe(lambda rate: codec("gptq", bits=2, group=32).stage, (2.0,), nominal=2.0, tune=Tune(after))
    ids = torch.randint(0, 256, (32, 32), generator=torch.Generator().manual_seed(1))
    return compress(source, out=tmp_path / "out", recipe=recipe, calibration=ids, threads=1)


def test_means_are_taken_back(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def tune(tuning: Any) -> None:
        def mean(path: str) -> float:
            moved = [
                _output(tuning.coded.model, path, s) - _output(tuning.original.model, path, s)
                for s in tuning.samples[:16]
            ]
            return float(torch.cat(moved).mean(0).norm())

        paths = [f"transformer.h.{b}.ln_2" for b in range(2)]
        seen["before"], seen["loss"] = [mean(p) for p in paths], tuning.judge()
        seen["names"] = shift_norms(tuning)
        seen["after"], seen["loss after"] = [mean(p) for p in paths], tuning.judge()

    run("gpt2", tmp_path, 0.05, tune)
    assert seen["loss after"] < seen["loss"]
    assert seen["names"] == [f"transformer.h.{b}.ln_2.bias" for b in range(2)], "ln_1 is before attention"
    assert max(b / a for a, b in zip(seen["before"], seen["after"], strict=True)) < 1e-3
    packed = Packed(tmp_path / "out")
    assert packed.source["transformer.h.0.ln_2.bias"].abs().max() > 0, "written"


def test_a_norm_without_bias_is_left_alone(tmp_path: Path) -> None:
    said: list[list[str]] = []
    run("llama", tmp_path, 0.0, lambda tuning: said.append(shift_norms(tuning)))
    assert said == [[]]


def test_what_does_not_help_is_not_kept(tmp_path: Path) -> None:
    def tune(tuning: Any) -> None:
        before = {k: p.detach().clone() for k, p in tuning.gains.items()}
        losses = iter([0.0, 1.0])
        tuning.judge = lambda: next(losses)
        assert shift_norms(tuning) == []
        assert all(torch.equal(p, before[k]) for k, p in tuning.gains.items())
        del tuning.judge

    run("gpt2", tmp_path, 0.0, tune)
