"""The command line keeps zstd's habits."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


def laconic(*args: str | Path, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "laconic.cli.main", *map(str, args)]
    return subprocess.run(command, input=stdin, capture_output=True)


def test_there_and_back(tmp_path: Path) -> None:
    source = tmp_path / "t.txt"
    source.write_bytes(b"so it goes, so it went. " * 40)
    assert laconic("compress", source).returncode == 0
    assert source.exists()
    source.rename(tmp_path / "old.txt")
    assert laconic("decompress", f"{source}.lac").returncode == 0
    assert source.read_bytes() == (tmp_path / "old.txt").read_bytes()


def test_pipes(tmp_path: Path) -> None:
    text = b"a pipe is a pipe is a pipe\n" * 30
    packed = laconic("compress", "-", stdin=text)
    assert packed.returncode == 0 and len(packed.stdout) < len(text) / 3
    back = laconic("decompress", "-", stdin=packed.stdout)
    assert back.stdout == text
    (tmp_path / "t").write_bytes(text)
    again = laconic("compress", "-c", tmp_path / "t")
    assert laconic("decompress", "-", stdin=again.stdout).stdout == text
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("compress", "no-such-file"), "no such file"),
        (("decompress", "no-such-file.lac"), "no such file"),
        (("compress", "{t}", "--recipe", "turboqant"), "turboquant"),
        (("compress", "{t}", "--bits", "3"), "without loss"),
        (("compress", "{t}", "--bits", "-1"), "bits -1"),
        (("compress", "{t}", "-o", "/no/such/folder/x"), "no such folder"),
        (("decompress", "{t}"), "not a laconic file"),
        (("info", "{t}"), "not a laconic file"),
        (("verify", "{t}"), "not a laconic file"),
        (("recipes", "--domain", "wieghts"), "weights"),
    ],
)
def test_bad_input_is_one_line_and_exit_1(tmp_path: Path, args: tuple[str, ...], says: str) -> None:
    (tmp_path / "t").write_bytes(b"plain text")
    run = laconic(*(a.format(t=tmp_path / "t") for a in args))
    lines = run.stderr.decode().strip().splitlines()
    assert run.returncode == 1
    assert len(lines) == 1 and lines[0].startswith("laconic: ") and says in lines[0]
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_refuses_to_overwrite(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"x")
    (tmp_path / "t.lac").write_bytes(b"mine")
    run = laconic("compress", tmp_path / "t")
    assert run.returncode == 1 and b"-f overwrites" in run.stderr
    assert (tmp_path / "t.lac").read_bytes() == b"mine"
    assert laconic("compress", "-f", tmp_path / "t").returncode == 0


def test_rm_removes_the_input_only_when_whole(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"x")
    assert laconic("compress", "--rm", tmp_path / "t").returncode == 0
    assert [p.name for p in tmp_path.iterdir()] == ["t.lac"]
    (tmp_path / "t.lac").write_bytes(b"junk")
    assert laconic("decompress", "--rm", tmp_path / "t.lac").returncode == 1
    assert (tmp_path / "t.lac").exists()


def test_never_writes_bytes_to_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"x")
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "laconic.cli.main", "compress", "-c", str(tmp_path / "t")]
    run = subprocess.run(command, stdout=slave, stderr=subprocess.PIPE)
    os.close(slave)
    os.close(master)
    assert run.returncode == 1 and b"terminal" in run.stderr


def test_no_progress_and_no_colours_into_a_pipe(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((64, 128)))
    run = laconic("compress", tmp_path / "x.npy")
    assert run.stdout == b"" and b"\x1b" not in run.stderr
    assert laconic("compress", "-q", "-f", tmp_path / "x.npy").stderr == b""


def test_says_what_it_picked(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((64, 128)))
    dry = laconic("compress", "--dry-run", tmp_path / "x.npy").stdout.decode()
    assert "ectcq 4 bits" in dry
    assert "ectcq 4 bits" in laconic("compress", tmp_path / "x.npy").stderr.decode()


def test_info_prints_every_byte(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((64, 128)))
    laconic("compress", tmp_path / "x.npy", "--recipe", "turboquant")
    said = json.loads(laconic("info", "--json", tmp_path / "x.npy.lac").stdout)
    assert sum(said["ledger"].values()) == said["bytes"] == (tmp_path / "x.npy.lac").stat().st_size
    assert {"codes", "norms"} <= set(said["ledger"])
    table = laconic("info", tmp_path / "x.npy.lac").stdout.decode()
    assert "norms" in table and "turboquant" in table


def test_verify(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"whole " * 50)
    laconic("compress", tmp_path / "t")
    assert laconic("verify", tmp_path / "t.lac").returncode == 0
    data = bytearray((tmp_path / "t.lac").read_bytes())
    data[-20] ^= 1
    (tmp_path / "t.lac").write_bytes(data)
    assert laconic("verify", tmp_path / "t.lac").returncode == 1


def test_recipes_lists_the_registry() -> None:
    out = laconic("recipes", "--domain", "vectors").stdout.decode()
    assert "turboquant" in out and "gptq" not in out
