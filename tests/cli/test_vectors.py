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
    (tmp_path / "i").write_bytes((tmp_path / "i").read_bytes()[:-5])
    bad = laconic("vectors", "search", tmp_path / "i", tmp_path / "q.npy")
    assert bad.returncode == 1 and bad.stderr.count("\n") == 1 and "Traceback" not in bad.stderr
