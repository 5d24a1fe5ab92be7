"""Every recipe for weights through the walk, on a model of two blocks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from laconic.core.registry import recipes
from laconic.sources.weights import store
from laconic.sources.weights.compress import compress, recipe_of

from . import families


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose rows suit blocks of 256; its matrices have the decaying spectra that trained ones have."""
    shape = {**families.GROUPED, "hidden_size": 256, "intermediate_size": 256, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    model = families.transformers.LlamaForCausalLM(families.transformers.LlamaConfig(**shape))
    folder = tmp_path_factory.mktemp("source") / "model"
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", recipes("weights"))
def test_every_recipe_codes_a_model(name: str, source: Path, tmp_path: Path) -> None:
    ids = torch.randint(0, 256, (8, 32), generator=torch.Generator().manual_seed(1))
    report = compress(source, out=tmp_path / "out", recipe=name, calibration=ids)
    packed = store.Packed(tmp_path / "out")
    assert {r.name for r in report.rows} == set(packed)
    assert not [n for n in report.notes if "coded by" in n], "no matrix of 256 × 256 needs another codec"
    assert report.bits < 13 and recipe_of(name).codec is not None
    blocks = [r for r in report.rows if "layers" in r.name]
    assert sum(r.error for r in blocks) / len(blocks) < 0.7
