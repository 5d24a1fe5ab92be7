"""The command line's habits for bytes: zstd's flags, pipes and exit codes."""

import subprocess
import sys

import pytest

from laconic.cli.lossless import rewritten

MAIN = [sys.executable, "-c", "from laconic.cli.main import main; main()"]
TEXT = b"nothing is written that was not measured; " * 50


def _run(*arguments, data=None, cwd=None):
    return subprocess.run([*MAIN, *map(str, arguments)], input=data, capture_output=True, cwd=cwd)


def test_arguments():
    assert rewritten(["laconic", "compress", "-9", "-T2", "a", "--", "-3"])[2:] == [
        "--level=9", "--threads=2", "a", "--", "-3"]  # fmt: skip
    assert rewritten(["laconic", "info", "-9"]) == ["laconic", "info", "-9"]


def test_there_and_back(tmp_path):
    a, b = tmp_path / "a.txt", tmp_path / "b.txt"
    a.write_bytes(TEXT), b.write_bytes(TEXT[::-1])
    assert _run("compress", "-1", "-q", a, b).returncode == 0
    assert a.exists() and (tmp_path / "b.txt.lac").exists()
    assert _run("compress", "-1", "-q", a).returncode == 1  # exists
    listed = _run("compress", "-l", tmp_path / "a.txt.lac").stdout
    assert b"level 1" in listed and b"2,100 bytes" in listed
    a.unlink()
    assert _run("decompress", "-q", tmp_path / "a.txt.lac").returncode == 0
    assert a.read_bytes() == TEXT
    assert _run("compress", "-d", "-c", tmp_path / "b.txt.lac").stdout == TEXT[::-1]
    damaged = (tmp_path / "a.txt.lac").read_bytes()[:-1]
    (tmp_path / "a.txt.lac").write_bytes(damaged)
    said = _run("compress", "-t", tmp_path / "a.txt.lac", tmp_path / "b.txt.lac")
    assert said.returncode == 1 and b"a.txt.lac: the stream ends" in said.stderr


@pytest.mark.parametrize("flag", ["-1", "-3"])
def test_pipes(flag):
    coded = _run("compress", flag, "-c", "-q", data=TEXT).stdout
    assert len(coded) < len(TEXT) // 4
    assert _run("decompress", "-", "-q", data=coded).stdout == TEXT
    cut = _run("decompress", "-", "-q", data=coded[:-3])
    assert cut.returncode == 1 and len(cut.stderr.splitlines()) == 1
