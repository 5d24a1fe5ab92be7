"""Folders that are stacks of levels: one run, every budget, by prefixes of packets in the order that calibration gave."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from laconic import weights
from laconic.core.errors import BadConfig, BadInput, CorruptStream
from laconic.sources.weights import store
from laconic.sources.weights.compress import compress
from laconic.sources.weights.stack import Cutting, Stacked, cut, levels_within, rank_levels

from .tiny import IDS, tiny_llama


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stack") / "out"
    report = compress(tiny_llama(), out=out, recipe="bitstack", bits=9.0, calibration=IDS)
    assert 8.7 < report.bits < 9.0 + 8 * 2048 / report.n_parameters
    return out


def weight_bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.glob("*.safetensors"))


def kl(model: torch.nn.Module) -> float:
    import transformers

    original = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama(), dtype=torch.float32).eval()
    with torch.no_grad():
        p, q = (m(IDS).logits.log_softmax(-1) for m in (original, model))
    return float((p.exp() * (p - q)).sum(-1).mean())


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    mine, its = a.state_dict(), b.state_dict()
    return mine.keys() == its.keys() and all(torch.equal(mine[k], its[k]) for k in mine)


def test_two_budgets_from_one_folder(coded: Path, tmp_path: Path) -> None:
    """Within the budget, generating, closer with more; and `load` with a budget gives what the cut folder gives."""
    full = weight_bytes(coded)
    losses, sizes = [kl(weights.load(coded))], [full]
    for i, share in enumerate((0.8, 0.6)):
        folder = tmp_path / str(i)
        said = cut(coded, folder, max_bytes=int(share * full))
        assert said.n_bytes == weight_bytes(folder) <= share * full < said.n_bytes + 3000, "less than the largest level"
        model = weights.load(folder, dtype=torch.float32)
        assert same(model, weights.load(coded, max_bytes=int(share * full), dtype=torch.float32))
        assert model.generate(IDS[:1, :4], max_new_tokens=4, do_sample=False).shape == (1, 8)
        losses.append(kl(model))
        sizes.append(said.n_bytes)
    assert losses[0] < losses[1] < losses[2]
    again = cut(tmp_path / "0", tmp_path / "again", max_bytes=sizes[2])
    assert again.n_bytes <= sizes[2], "what was cut may be cut again"


def test_bits_are_those_that_compress_counts(coded: Path, tmp_path: Path) -> None:
    said = cut(coded, tmp_path / "out", bits=6.0)
    n = sum(p.numel() for name, p in weights.load(coded, packed=False).named_parameters() if p.ndim == 2)
    assert said.bits == 8 * weight_bytes(tmp_path / "out") / n and 5.5 < said.bits <= 6.0


def test_a_budget_for_all_gives_the_same_bytes(coded: Path, tmp_path: Path) -> None:
    cut(coded, tmp_path / "out", max_bytes=weight_bytes(coded))
    for p in coded.iterdir():
        assert (tmp_path / "out" / p.name).read_bytes() == p.read_bytes(), p.name
    assert len(list(coded.iterdir())) == len(list((tmp_path / "out").iterdir()))


def test_levels_are_taken_in_the_order_of_the_folder(coded: Path) -> None:
    stacked = Stacked(store.Packed(coded))
    assert (np.sort(stacked.order[: len(stacked.matrices)]) == np.arange(len(stacked.matrices))).all()
    before = dict.fromkeys(stacked.matrices, 0)
    for bits in (5.0, 6.0, 7.5, 9.5):
        levels = stacked.levels(bits)
        assert sum(levels.values()) > sum(before.values())
        before = levels
    assert before == {n: one.n_levels for n, one in stacked.matrices.items()}


def test_several_files_and_kept_matrices(coded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SHARD_BYTES", 20_000)
    many = tmp_path / "many"
    compress(tiny_llama(), out=many, recipe="bitstack", bits=8.0, calibration=IDS, keep=("embed_tokens",))
    assert len(list(many.glob("*.safetensors"))) > 2
    said = cut(many, tmp_path / "out", bits=6.0)
    assert 5.5 < said.bits <= 6.0
    total = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["metadata"]["total_size"]
    assert total < weight_bytes(tmp_path / "out") == said.n_bytes
    assert kl(weights.load(many)) < kl(weights.load(tmp_path / "out"))


def test_a_model_cut_while_it_is_loaded_is_saved_cut(coded: Path, tmp_path: Path) -> None:
    cut(coded, tmp_path / "cut", bits=6.0)
    weights.load(coded, bits=6.0).save_pretrained(tmp_path / "saved")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("cut", "saved"))
    assert all(torch.equal(one[k], other[k]) for k in one if k.endswith("_packet") or k == store.ORDER)
    assert same(weights.load(tmp_path / "saved"), weights.load(tmp_path / "cut"))


def test_a_module_is_cut_as_well(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.ReLU(), torch.nn.Linear(96, 64))
    weights.compress(net, out=tmp_path / "net", recipe="bitstack", bits=12.0, calibration=torch.randn(64, 64))
    one = weights.load(tmp_path / "net", into=torch.nn.Sequential(*(type(m)(*s) for m, s in _layers(net))), bits=9.0)
    cut(tmp_path / "net", tmp_path / "cut", bits=9.0)
    other = weights.load(tmp_path / "cut", into=torch.nn.Sequential(*(type(m)(*s) for m, s in _layers(net))))
    assert same(one, other)


def _layers(net: torch.nn.Sequential) -> list[tuple[torch.nn.Module, tuple[int, ...]]]:
    return [(m, (m.in_features, m.out_features) if isinstance(m, torch.nn.Linear) else ()) for m in net]


def test_what_cannot_be_cut_is_refused(coded: Path, tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="at least"):
        cut(coded, tmp_path / "out", max_bytes=1000)
    for budget in ({}, {"bits": 6.0, "max_bytes": 50_000}):
        with pytest.raises(BadConfig, match="one of them"):
            cut(coded, tmp_path / "out", **budget)
    with pytest.raises(FileExistsError):
        cut(coded, tmp_path, bits=6.0)
    compress(tiny_llama(), out=tmp_path / "gptq", recipe="gptq")
    with pytest.raises(BadInput, match="no stacks of levels"):
        weights.load(tmp_path / "gptq", bits=3.0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", ["short", "another", "negative", "kind"])
def test_an_order_that_does_not_fit_is_named(coded: Path, tmp_path: Path, wrong: str) -> None:
    folder = tmp_path / "damaged"
    cut(coded, folder, bits=6.0)
    held = load_file(folder / "model.safetensors")
    order = held[store.ORDER].clone()
    held[store.ORDER] = {
        "short": order[:-1],
        "another": order.clamp(min=1),
        "negative": order - 1,
        "kind": order.float(),
    }[wrong]
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CorruptStream, match="does not fit"):
        Cutting(store.Packed(folder), 6.0, None)


def test_order_and_prefix() -> None:
    """First levels first, then by what a byte saves; a level that saves little waits with nothing behind it held back."""
    assert rank_levels([[9.0, 8.0, 1.0], [9.0, 4.0, 3.0]], [1, 4]) == [0, 1, 0, 1]
    assert rank_levels([[9.0, 8.0, 7.9, 1.0], [9.0, 8.0, 5.5]], [1, 1]) == [0, 1, 0, 0, 1], "a hull, not single levels"
    order = rank_levels([[9.0, 3.0, 2.0, 1.5], [5.0, 2.0, 0.5]], [10, 20])
    for budget in range(30, 75):
        levels = levels_within(order, [10, 20], budget)
        assert 10 * levels[0] + 20 * levels[1] <= budget
    assert levels == [3, 2]
    with pytest.raises(BadConfig, match="least"):
        levels_within(order, [10, 20], 29)
    with pytest.raises(BadInput, match="losses"):
        rank_levels([[1.0, float("nan")]], [1])
