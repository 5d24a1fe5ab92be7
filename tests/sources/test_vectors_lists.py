"""Lists: balanced where asked for, gone on from where they were stopped, and said how far they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from laconic.sources.vectors import lists
from laconic.vectors import Index


def skewed(n: int = 3000, dim: int = 8) -> np.ndarray:
    """Cubes of Gaussian values: many vectors in the middle, few far away."""
    return (np.random.default_rng(0).standard_normal((n, dim)) ** 3).astype(np.float32)


def imbalance(index: Index) -> float:
    """1 where lists are equally long: Σ n² · lists / (Σ n)²."""
    n = np.zeros(index.lists)
    for b in index._blocks:
        n[b.list_] += len(b.numbers)
    return float((n**2).sum() * len(n) / n.sum() ** 2)


def test_balanced_lists_are_of_equal_size_for_what_is_added_later_too(tmp_path: Path) -> None:
    x = skewed()
    plain, even = (
        Index(8, recipe="scalar", bits=4, lists=24).train(x[:2000], balanced=b).add(x[2000:]) for b in (False, True)
    )
    assert imbalance(plain) > 3 and imbalance(even) < 1.6
    even.save(tmp_path / "x")
    back = Index.load(tmp_path / "x").add(x[:1000], np.arange(10_000, 11_000))
    assert imbalance(back) < 1.6 and back.model_hash() == even.model_hash()
    shown = even.search(x[:9], 5, probe=24)[0]
    brute = np.sort(((x[:9, None] - even.reconstruct(even.ids())) ** 2).sum(2), 1)[:, :5]
    np.testing.assert_allclose(shown, brute, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("balanced", [False, True])
def test_a_training_that_was_stopped_goes_on(tmp_path: Path, balanced: bool) -> None:
    x, file = skewed(), tmp_path / "lists"
    whole = lists.learn(x, 12, 0, balanced)
    steps: list[int] = []

    def stop(done: int, total: int, what: str) -> None:
        steps.append(done)
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lists.learn(x, 12, 0, balanced, stop, file)
    kept = file.read_bytes()
    steps.clear()
    again = lists.learn(x, 12, 0, balanced, lambda done, total, what: steps.append(done), file)
    assert steps[0] == 4 and not file.exists()
    np.testing.assert_array_equal(again.centroids, whole.centroids)
    for data in (kept[:100], b"", kept):  # damaged, or of other settings: begun anew
        file.write_bytes(data)
        steps.clear()
        lists.learn(x, 12, 1, balanced, lambda done, total, what: steps.append(done), file)
        assert steps[0] == 0
