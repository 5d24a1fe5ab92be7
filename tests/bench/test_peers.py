"""Peers of the weights benchmark: everything that needs no peer."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from laconic.bench import peers
from laconic.bench.peers.front import Point, kl_at, pareto_front
from laconic.bench.peers.scripts import common, llama_cpp
from laconic.bench.weights_text import SOURCES, calibration_text
from laconic.core.errors import BadConfig, BadInput, CodecError


def test_front_drops_what_is_beaten() -> None:
    a, b, c, d = Point(2, 0.4, "a"), Point(2.5, 0.5, "b"), Point(3, 0.1, "c"), Point(2, 0.6, "d")
    assert pareto_front([c, b, d, a]) == [a, c]


def test_log_kl_is_linear_between_points() -> None:
    points = [Point(2, 1.0), Point(3, 0.01), Point(2.5, 0.9)]
    assert kl_at(points, 2) == 1.0
    assert kl_at(points, 3) == 0.01
    between = kl_at(points, 2.75)  # half way, in log KL, from (2.5, 0.9) to (3, 0.01)
    assert between is not None and math.isclose(between, math.sqrt(0.9 * 0.01))
    assert kl_at(points, 1.99) is None and kl_at(points, 3.01) is None and kl_at([], 2) is None


def test_kl_of_zero_is_refused() -> None:
    with pytest.raises(BadInput, match="positive"):
        kl_at([Point(2, 0.5), Point(3, 0.0, "exact")], 2.5)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a one-layer Llama's tensors, as far as the scripts read it without a peer."""
    rng = np.random.default_rng(0)
    where = tmp_path / "model"
    where.mkdir()
    shapes = {"model.embed_tokens.weight": (32, 64), "model.norm.weight": (64,),
              "model.layers.0.self_attn.q_proj.weight": (64, 64), "model.layers.0.self_attn.k_proj.weight": (32, 64)}  # fmt: skip
    tensors = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    save_file(tensors, where / "model.safetensors")
    (where / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": "bfloat16"}))
    return where


def test_absent_environment_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path) -> None:
    monkeypatch.setenv("LACONIC_PEERS", str(tmp_path / "none"))
    text = tmp_path / "text.txt"
    text.write_text("x")
    peer = peers.PEERS["hqq"]
    with pytest.raises(BadConfig, match="make peers"):
        peers.run(peer, next(iter(peer.settings)), model, text, tmp_path / "out")
    with pytest.raises(BadConfig, match="4 bits g64"):
        peers.run(peer, "4 bit g64", model, text, tmp_path / "out")


SCRIPT = """
import numpy as np
from . import common

def quantize(job):
    rest = {n: v for n, v in common.read_tensors(job.model_dir) if not common.is_embedding(n)}
    return {**rest, "bytes": np.array(1000)}

common.with_embedding(common.read_job(), quantize)
"""


def _fake_peer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> peers.Peer:
    scripts = tmp_path / "peers" / "scripts"
    scripts.mkdir(parents=True)
    (scripts / "__init__.py").touch()
    (scripts / "common.py").write_text(Path(common.__file__).read_text())
    (scripts / "fake.py").write_text(script)
    python = tmp_path / "environments" / "fake" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(peers, "SCRIPTS", scripts)
    monkeypatch.setenv("LACONIC_PEERS", str(tmp_path / "environments"))
    return peers.Peer(
        "fake", "fake", "fake", {"emb int8": {"embedding": {"bits": 8, "group": 64}}, "plain": {"embedding": None}}
    )


def test_run_counts_bytes_writes_the_folder_and_remembers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("x")
    peer = _fake_peer(monkeypatch, tmp_path, SCRIPT)
    plain = peers.run(peer, "plain", model, text, tmp_path / "out")
    assert plain.n_parameters == 32 * 64 + 64 + 64 * 64 + 32 * 64
    assert plain.true_bytes == 1000 + 2 * 32 * 64
    assert plain.bits == 8 * plain.true_bytes / plain.n_parameters
    assert json.loads((Path(plain.folder) / "config.json").read_text())["dtype"] == "float32"
    coded = peers.run(peer, "emb int8", model, text, tmp_path / "out")
    assert coded.true_bytes == 1000 + 32 * 64 + 2 * 32
    a, b = load_file(Path(coded.folder) / "model.safetensors"), load_file(model / "model.safetensors")
    assert a.keys() == b.keys()
    assert 0 < np.abs(a["model.embed_tokens.weight"] - b["model.embed_tokens.weight"]).max() < 0.03
    Path(peers.SCRIPTS / "fake.py").touch()
    python = peers.interpreter(peer)
    python.write_text("#!/bin/sh\nexit 3\n")
    assert peers.run(peer, "plain", model, text, tmp_path / "out") == plain


def test_a_script_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("x")
    peer = _fake_peer(monkeypatch, tmp_path, "raise SystemExit('no such tool')")
    with pytest.raises(CodecError, match="fake plain ended with 1: no such tool"):
        peers.run(peer, "plain", model, text, tmp_path / "out")


def test_windows_are_spread_and_do_not_overlap() -> None:
    windows = common.spread_windows(range(1000), 4, 100)
    assert [w[0] for w in windows] == [0, 300, 600, 900]
    assert windows[-1][-1] == 999
    assert len(common.spread_windows(range(250), 4, 100)) == 2
    with pytest.raises(ValueError, match="less than one window"):
        common.spread_windows(range(99), 4, 100)


@pytest.mark.parametrize(("bits", "most"), [(8, 1e-4), (4, 0.02)])
def test_embedding_rounding(bits: int, most: float) -> None:
    x = np.random.default_rng(0).standard_normal((16, 128)).astype(np.float32)
    y, n_bytes = common.embedding(x, {"bits": bits, "group": 32})
    assert n_bytes == x.size * bits // 8 + 2 * x.size // 32
    assert ((x - y) ** 2).mean() < most
    assert len(np.unique(y.reshape(-1, 32)[0])) <= 2**bits


def test_rotary_rows_go_to_pairs_and_back() -> None:
    w = np.arange(8.0)[:, None] * np.ones((1, 3))
    paired = llama_cpp.interleave(w, 2)  # two heads of four: (0, 2), (1, 3) become neighbours
    assert paired[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert np.array_equal(llama_cpp.split_halves(paired, 2), w)


def test_tensors_are_read_at_every_width(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    kinds = {"bf16": x, "f16": x.half(), "f32": x.float()}
    save_torch(kinds, str(tmp_path / "a.safetensors"))
    seen = dict(common.read_tensors(tmp_path))
    assert seen.keys() == kinds.keys()
    for name, values in seen.items():
        assert np.array_equal(values, kinds[name].float().numpy()), name


def test_calibration_text_stays_out_of_the_held_out_end(tmp_path: Path) -> None:
    import zipfile

    for source in SOURCES:
        path = tmp_path / source.path
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = b"c" * 2000 + b"h" * source.held_out
        if path.suffix == ".zip":
            with zipfile.ZipFile(path, "w") as z:
                z.writestr(path.stem, raw)
        else:
            path.write_bytes(raw)
    text = calibration_text(1000, tmp_path)
    assert text.count("c") == 1000 * len(SOURCES) and "h" not in text
    with pytest.raises(BadInput, match="3,000 were asked for"):
        calibration_text(3000, tmp_path)
    with pytest.raises(BadInput, match="LACONIC_DATA"):
        calibration_text(1000, tmp_path / "nowhere")
