"""The benchmark of circuits on pictures of its own: learned by the trainer and read back, or learned on the spot."""

import numpy as np
import pytest

from laconic.bench import circuits_train, lossless_circuits
from laconic.entropy.circuits import Tree


def _pictures(n, seed):
    """Bars at random heights, 6 × 6: rows that know of each other."""
    rng = np.random.default_rng(seed)
    x = np.zeros((n, 6, 6), np.uint8)
    x[np.arange(n), rng.integers(0, 6, n)] = rng.integers(200, 220, (n, 1))
    return x


@pytest.fixture
def data(tmp_path, monkeypatch):
    (tmp_path / "mnist").mkdir()
    np.savez(tmp_path / "mnist" / "mnist.npz", x_train=_pictures(300, 0), x_test=_pictures(60, 1))
    monkeypatch.setenv("LACONIC_DATA", str(tmp_path))
    monkeypatch.setenv("LACONIC_CIRCUITS", str(tmp_path / "mnist"))
    return tmp_path


def test_what_the_trainer_wrote_is_what_the_bench_codes_with(data, monkeypatch, capsys):
    named = data / "mnist" / "circuit"
    monkeypatch.setattr("sys.argv", ["x", "--data", str(data / "mnist" / "mnist.npz"), "--out", str(named), "--states", "3",
                                     "--epochs", "4", "--batch", "60", "--holdout", "50", "--prior", "1", "2",
                                     "--search", "9"])  # fmt: skip
    circuits_train.main()
    assert "held out" in capsys.readouterr().out and (data / "mnist" / "circuit-3.npz").exists()
    rows = {r.name: r for r in lossless_circuits.mnist()}
    packet = rows["MNIST test, 3 states, whole packet"]
    assert 0.05 < packet.value < 6 and packet.target == ("<=", 1.2)
    assert rows["MNIST test, 3 states, file of the circuit"].value > 36 * 3 * 259 / 1e6


def test_without_a_file_a_circuit_is_learned(data, monkeypatch):
    monkeypatch.setattr(lossless_circuits, "_STATES", 2)
    monkeypatch.setattr(lossless_circuits, "_SECONDS", 0.5)
    assert [r.name for r in lossless_circuits.mnist()][0] == "MNIST test, 2 states, whole packet"


def test_messages_are_counted(data):
    rows = [r for r in lossless_circuits.messages() if r.target]
    assert [r.holds for r in rows] == [True] * 3 and all(r.value <= 2 for r in rows)


def test_order_of_the_paper_pays_for_smaller_subtrees_only():
    d = 64
    chain = Tree(np.arange(d), np.maximum(np.arange(d) - 1, 0))
    star = Tree(np.arange(d), np.zeros(d, np.int64))
    assert lossless_circuits.light_depth_messages(chain) == 1
    assert lossless_circuits.light_depth_messages(star) == pytest.approx(1 + (d - 2) / d)
