"""`laconic compress`, `info` and `verify` on the folder of a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from laconic.cli.main import app
from laconic.core.errors import BadConfig, CodecError

from ..sources import families


def _run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.folder("llama", tmp_path_factory.mktemp("cli") / "model")


def test_a_folder_becomes_a_folder(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "106,496 parameters" in _run("compress", source, "-o", out, "--recipe", "gptq", "--bits", "5", "--dry-run")
    assert not out.exists()
    _run("compress", source, "-o", out, "--recipe", "gptq", "--bits", "5", "-q", "--json", tmp_path / "said.json")
    said = json.loads((tmp_path / "said.json").read_text())
    assert abs(said["bits"] - 5) < 0.2 and len(said["matrices"]) == 16
    listed = json.loads(_run("info", out, "--json"))
    assert listed["recipe"] == "gptq" and len(listed["matrices"]) == 16
    assert sum(m["bytes"] for m in listed["matrices"]) + listed["ledger"]["kept tensors"] == sum(
        listed["ledger"].values()
    )
    assert "up_proj" in _run("info", out)
    _run("verify", out)
    with pytest.raises(FileExistsError):
        _run("compress", source, "-o", out, "--recipe", "gptq", "--bits", "5")


def test_a_stack_is_cut(source: Path, tmp_path: Path) -> None:
    """No calibration and no original are asked for, and the ledger names the order of the levels."""
    out, size = tmp_path / "out", lambda folder: sum(p.stat().st_size for p in folder.glob("*.safetensors"))
    _run("compress", source, "-o", out, "--recipe", "bitstack", "--bits", "8", "-q")
    listed = json.loads(_run("info", out, "--json"))
    assert listed["ledger"]["indices"] > 0
    said = _run("cut", out, "-o", tmp_path / "smaller", "--bits", "6")
    assert "bits a parameter" in said and size(tmp_path / "smaller") < size(out)
    _run("cut", out, "-o", tmp_path / "bytes", "--max-bytes", size(tmp_path / "smaller"), "-q")
    assert size(tmp_path / "bytes") == size(tmp_path / "smaller")
    _run("verify", tmp_path / "smaller")
    with pytest.raises(FileExistsError):
        _run("cut", out, "-o", tmp_path / "smaller", "--bits", "6")
    with pytest.raises(BadConfig, match="one of them"):
        _run("cut", out, "-o", tmp_path / "other")


def test_a_folder_still_becomes_one_file_where_that_is_asked_for(source: Path, tmp_path: Path) -> None:
    _run("compress", source, "-o", tmp_path / "model.lac", "--recipe", "lossless", "-q")
    assert (tmp_path / "model.lac").is_file()


def test_words_for_models_on_something_else(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(BadConfig, match="--resume is for the folder of a model"):
        _run("compress", tmp_path / "a.txt", "--resume")
    with pytest.raises(CodecError, match="no such file or folder"):
        _run("compress", tmp_path / "nothing", "-o", tmp_path / "out")
