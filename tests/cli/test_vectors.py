"""`laconic vectors`: there and back, and one line for bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np


def laconic(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "laconic.cli.main", *map(str, args)], capture_output=True, text=True)


def test_build_search_info(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((400, 16)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "q.npy", x[:3])
    built = laconic(
        "vectors", "build", tmp_path / "x.npy", "-o", tmp_path / "i", "--recipe", "klt-levels", "--bits", "4"
    )
    assert built.returncode == 0, built.stderr
    found = [
        json.loads(line)
        for line in laconic("vectors", "search", tmp_path / "i", tmp_path / "q.npy", "-k", "5").stdout.splitlines()
    ]
    assert [f["ids"][0] for f in found] == [0, 1, 2] and len(found[0]["distances"]) == 5
    said = json.loads(laconic("vectors", "info", tmp_path / "i", "--json").stdout)
    assert said["vectors"] == 400 and said["recipe"] == "klt-levels"
    before = sorted(p.name for p in tmp_path.iterdir())
    run = (
        "vectors",
        "build",
        tmp_path / "x.npy",
        "-o",
        tmp_path / "j",
        "--lists",
        "4",
        "--balanced",
        "--recipe",
        "scalar",
    )
    planned = laconic(*run, "--dry-run")
    assert planned.returncode == 0 and "memory_bytes" in planned.stdout and "coding_s" in planned.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert laconic(*run, "--resume").returncode == 0 and (tmp_path / "j").exists()
    (tmp_path / "i").write_bytes((tmp_path / "i").read_bytes()[:-5])
    bad = laconic("vectors", "search", tmp_path / "i", tmp_path / "q.npy")
    assert bad.returncode == 1 and bad.stderr.count("\n") == 1 and "Traceback" not in bad.stderr


def test_bench_recommends_what_reaches_the_recall(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", (rng.standard_normal((1500, 16)) * np.linspace(2, 0.2, 16)).astype(np.float32))
    run = ("vectors", "bench", tmp_path / "x.npy", "--bits", "2,4", "-k", "5", "--json", tmp_path / "b.json")
    done = laconic(*run, "--recall", "0.5", "--plot", tmp_path / "b.png")
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "b.json").read_text())
    ours = [r for r in said["rows"] if r["who"] == "laconic"]
    best = said["recommended"]
    assert best["recall"] >= 0.5 and best["bits"] <= 1.05 * min(r["bits"] for r in ours if r["recall"] >= 0.5)
    assert best["setting"] in done.stdout and (tmp_path / "b.png").read_bytes()[:4] == b"\x89PNG"
    assert max(r["recall"] for r in ours) < 1.0 and "No setting" in laconic(*run, "--recall", "1").stdout
    bad = laconic("vectors", "bench", tmp_path / "x.npy", "--bits", "two")
    assert bad.returncode == 1 and bad.stderr.count("\n") == 1
