"""`laconic eval --kv` from end to end on a tiny model."""

from __future__ import annotations

import json
import random
import re
from importlib.resources import as_file, files
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from laconic.cli.main import app  # noqa: E402
from laconic.core.errors import BadConfig  # noqa: E402

SMALL = ("--window", "48", "--windows", "2", "--batch", "2")


def laconic_eval(*args: str | Path) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, args)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with heads of 32, and two texts."""
    where = tmp_path_factory.mktemp("kv")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=4096, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=256, bos_token_id=0, eos_token_id=1,
        initializer_range=0.3,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(where / "model")
    with as_file(files("laconic") / "samples" / "english-llama-7m") as sample:
        transformers.AutoTokenizer.from_pretrained(sample).save_pretrained(where / "model")
    words = "the best of all times was a time when nobody saw what came after it, and so they went".split()
    (where / "t.txt").write_text(" ".join(random.Random(0).choices(words, k=900)))
    return where


def test_everything_at_once(folder: Path, tmp_path: Path) -> None:
    said = laconic_eval(
        folder / "model", "--kv", "q4_0,q8_0,turboquant:6", "--text", folder / "t.txt", "--window", "200", "--windows", "2",
        "--batch", "2", "--prefill", "180", "--recall", "2", "--json", tmp_path / "new" / "e.json", "--html", tmp_path / "e.html",
    )  # fmt: skip
    assert said.exit_code == 0, said.output
    found = json.loads((tmp_path / "new" / "e.json").read_text())
    assert [c["name"] for c in found["caches"]] == ["q4_0", "q8_0", "turboquant:6"]
    kl = [c["text"]["kl"]["value"] for c in found["caches"]]
    assert kl[0] > kl[1] > 0 and found["caches"][0]["bits"] == 4.5 and 6 < found["caches"][2]["bits"] < 10
    assert found["noise"]["name"] == "bfloat16" and found["settings"]["prefill"] == 180
    assert [r["task"] for r in found["recall"]] == ["continuation", "repeats", "needle", "names"]
    assert len(found["recall"][0]["caches"]) == 3 and found["machine"]["cores"] >= 1
    for shown in (f"{kl[0]:.3g}", "KL by position", "needle: 2 items", "bfloat16"):
        assert shown in said.output
    page = (tmp_path / "e.html").read_text()
    assert "<svg" in page and f"{kl[0]:.3g}" in page and "turboquant:6" in page
    assert not re.findall(r"(?:src|href)\s*=\s*['\"]?(?:https?:)?//", page), "the report needs no other file"


def test_quiet_and_without_tasks(folder: Path) -> None:
    said = laconic_eval(folder / "model", "--kv", "fp8", "--text", folder, "-q", "--no-noise", "--recall", "0", *SMALL)
    assert said.exit_code == 0 and said.output == ""


def test_bad_input_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LACONIC_PEERS", str(tmp_path / "none"))
    model, text = folder / "model", ("--text", folder / "t.txt")
    for args, says in (
        ((model, *text), "--reference is missing"),
        ((model, "--kv", "q4_0", "--reference", model, *text), "its own reference"),
        ((model, model, "--kv", "q4_0", *text), "2 were named"),
        ((model, "--kv", "q9:zero", *text), "'q9:zero'"),
        ((model, "--kv", "q4_0", "--contexts", "many", *text), "--contexts 'many'"),
        ((model, "--kv", "hqq:4", *text, *SMALL), "make peers"),
        ((model, "--kv", "turboqant:4", *text, *SMALL), "turboquant"),
        ((model, "--kv", "q4_0", *text, "--window", "257"), "256 at most"),
    ):
        said = laconic_eval(*args)
        assert said.exit_code == 1 and isinstance(said.exception, BadConfig), said.exception
        assert says in str(said.exception), said.exception
