"""`laconic eval` from end to end on tiny models."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from laconic.cli.main import app  # noqa: E402
from laconic.core.errors import BadConfig, BadInput  # noqa: E402

SAMPLE = Path(__file__).parents[2] / "src" / "laconic" / "samples" / "english-llama-7m"
SMALL = ("--window", "17", "--windows", "4")


def laconic_eval(*args: str | Path) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, args)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, a text, pairs and questions."""
    where = tmp_path_factory.mktemp("eval")
    for seed, name in enumerate(("reference", "other")):
        torch.manual_seed(seed)
        config = transformers.GPT2Config(vocab_size=4096, n_positions=64, n_embd=16, n_layer=1, n_head=2)
        transformers.GPT2LMHeadModel(config).save_pretrained(where / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(SAMPLE / file, where / name / file)
    (where / "t.txt").write_text("It was the best of times, it was the worst of times. " * 8)
    pair = {"sentence_good": "He is <here>.", "sentence_bad": "He are <here>.", "UID": "verbs<1>"}
    (where / "pairs.jsonl").write_text("\n".join(json.dumps(pair | {"sentence_good": f"It is {i}."}) for i in range(4)))
    item = {
        "context": "Two men came.", "question": "Who forgot?", "ans0": "The old one", "ans1": "The young one",
        "ans2": "Unknown", "label": 2, "context_condition": "ambig", "question_polarity": "neg", "category": "Age",
        "answer_info": {"ans0": ["a", "old"], "ans1": ["b", "young"], "ans2": ["c", "unknown"]},
        "additional_metadata": {"stereotyped_groups": ["old"]},
    }  # fmt: skip
    (where / "choices.jsonl").write_text("\n".join(json.dumps(item | {"question_index": i}) for i in range(3)))
    return where


def test_everything_at_once(folder: Path, tmp_path: Path) -> None:
    said = laconic_eval(
        folder / "other", folder / "reference", "--reference", folder / "reference", "--text", folder, *SMALL,
        "--pairs", folder / "pairs.jsonl", "--choices", folder / "choices.jsonl",
        "--json", tmp_path / "new" / "e.json", "--html", tmp_path / "e.html",
    )  # fmt: skip
    assert said.exit_code == 0, said.output
    found = json.loads((tmp_path / "new" / "e.json").read_text())
    assert [m["text"]["kl"]["value"] > 0 for m in found["models"]] == [True, False]
    assert found["settings"]["window"] == 17 and found["machine"]["cores"] >= 1
    assert found["noise"]["text"]["top1"]["value"] <= 1 and found["models"][0]["n_bytes"] > 0
    assert found["models"][0]["pairs"]["paradigms"]["verbs<1>"]["n_items"] == 4
    kl = f"{found['models'][0]['text']['kl']['value']:.3g}"
    assert kl in said.output and "reference in bfloat16" in said.output and "4 minimal pairs" in said.output
    page = (tmp_path / "e.html").read_text()
    assert kl in page and "<svg" in page and "verbs&lt;1&gt;" in page
    assert not re.findall(r"(?:src|href)\s*=\s*['\"]?(?:https?:)?//", page), "the report needs no other file"


def test_a_report_of_one_model_on_one_window(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("Hello")
    said = laconic_eval(folder / "other", "--reference", folder / "reference", "--text", tmp_path / "one.txt", "-q",
                        "--no-noise", "--html", tmp_path / "e.html", *SMALL)  # fmt: skip
    assert said.exit_code == 0 and said.output == ""
    assert "<svg" in (tmp_path / "e.html").read_text()


def test_a_report_of_models_in_memory(folder: Path, tmp_path: Path) -> None:
    from laconic.bench.eval_report import tables, write_html
    from laconic.sources.weights.contestants import Contestant, enter, tokenizer_of
    from laconic.sources.weights.judge import Settings, evaluate

    loaded = [Contestant(name, enter(folder / name).module) for name in ("reference", "other")]
    words = tokenizer_of(folder / "reference")
    found = evaluate(loaded[0], loaded[1:], {"t": "Hello, world"}, settings=Settings(window=9), tokenizer=words)
    assert found.models[0].n_bytes is None and [row[1] for row in tables(found)[0].rows] == ["", "", ""]
    write_html(tmp_path / "e.html", found)
    assert "reference in bfloat16" in (tmp_path / "e.html").read_text()


def test_bad_input_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"gar\xe7on")
    (tmp_path / "empty.txt").write_bytes(b"")
    reference = ("--reference", folder / "reference")
    text = ("--text", folder / "t.txt")
    for args, error, says in (
        ((folder / "other", *reference, "--text", tmp_path / "latin.txt"), BadInput, "0xe7 at offset 3"),
        ((folder / "other", *reference, "--text", tmp_path / "empty.txt"), BadInput, "empty.txt is empty"),
        ((tmp_path, *reference, *text), BadInput, "no model"),
        ((folder / "other", "--reference", tmp_path / "nowhere", *text), BadInput, "no such model"),
        ((folder / "other", *reference, *text, "--window", "65"), BadConfig, "64 at most"),
        ((folder / "other", *reference, *text, "--device", "abacus"), BadConfig, "device 'abacus' cannot be used"),
        ((folder / "other", *reference, *text, "--json", tmp_path), BadConfig, "is a folder"),
        ((folder / "other", *reference, "--text", folder / "none.txt"), FileNotFoundError, "none.txt"),
    ):
        said = laconic_eval(*args)
        assert said.exit_code == 1 and isinstance(said.exception, error) and says in str(said.exception), said.exception
