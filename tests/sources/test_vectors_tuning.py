"""Tuning a product code and its queries: held-out queries find more, codes stay, files keep what was learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from laconic.core.errors import BadConfig, BadInput, CorruptStream
from laconic.vectors import Index

DIM = 32


def pairs(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Clustered vectors, and queries that are turned, noisy views of them."""
    rng = np.random.default_rng(3)
    centres = np.random.default_rng(0).standard_normal((40, DIM))
    x = centres[rng.integers(0, 40, n)] + rng.standard_normal((n, DIM))
    turn = np.eye(DIM) + np.random.default_rng(1).standard_normal((DIM, DIM)) / DIM**0.5
    return x.astype(np.float32), (x @ turn + rng.standard_normal((n, DIM))).astype(np.float32)


X, Q = pairs(1400)
SOME, OTHERS = np.arange(1000), np.arange(1000, 1400)


def made(recipe: str = "jpq", metric: str = "l2", **settings: object) -> Index:
    given: dict = {"bits": 0.5, "index_bits": 4, **settings}
    return Index(DIM, metric, recipe, **given).train(X).add(X)


def found(index: Index) -> float:
    """Share of the other queries that find theirs among ten."""
    return float((index.search(Q[OTHERS], 10)[1] == OTHERS[:, None]).any(1).mean())


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_held_out_queries_find_more(metric: str) -> None:
    plain, index = made("pq", metric), made(metric=metric)
    codes, before, product = index.code_bytes, found(index), found(plain)
    index.tune(Q[SOME], SOME, epochs=4, rate=4.0)
    assert found(index) > max(before, product) + 0.1 and index.code_bytes == codes
    every = index.reconstruct(index.ids())
    q = index._queries(Q[:9])
    cost = {"l2": ((q[:, None] - every) ** 2).sum(2), "ip": -(q @ every.T)}.get(metric)
    cost = -(q @ every.T) / np.linalg.norm(every, axis=1) if cost is None else cost
    np.testing.assert_allclose(np.abs(index.search(Q[:9], 5)[0]), np.abs(np.sort(cost, 1)[:, :5]), rtol=1e-3, atol=1e-3)


def test_live_negatives_points_and_queries_each_count() -> None:
    """Queries alone gain less than queries and points; the start is kept where nothing is learned."""
    both, none = made(), made()
    before = both.reconstruct([0, 1])
    both.tune(Q[SOME], SOME, epochs=4, rate=4.0)
    assert not np.allclose(both.reconstruct([0, 1]), before)
    points = both.reconstruct(both.ids())
    mapped, both.query_map = both.query_map, None
    unmapped = found(both)
    both.query_map = mapped
    assert mapped is not None and unmapped < found(both)
    none.tune(Q[SOME], SOME, epochs=0)
    np.testing.assert_allclose(none.reconstruct([0, 1]), before, rtol=1e-3, atol=1e-3)
    assert points.shape == X.shape


def test_lists_removed_vectors_and_files(tmp_path: Path) -> None:
    index = made(lists=4, bits=1.0, index_bits=8)
    index.remove([7])
    index.tune(Q[8:200], np.arange(8, 200), epochs=1, rate=0.5)
    shown = index.search(Q[:20], 5, probe=4)
    index.save(tmp_path / "x")
    back = Index.load(tmp_path / "x")
    for a, b in zip(back.search(Q[:20], 5, probe=4), shown, strict=True):
        np.testing.assert_array_equal(a, b)
    assert back.model_hash() == index.model_hash() and back.model_bytes == index.model_bytes
    assert index.query_map is not None
    index.query_map = index.query_map[:-1]
    index.save(tmp_path / "x")
    with pytest.raises(CorruptStream, match="map of queries"):
        Index.load(tmp_path / "x")


def test_an_encoder_of_ones_own_is_trained_in_place() -> None:
    import torch

    class Words(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(DIM, DIM)
            torch.nn.init.eye_(self.linear.weight)
            torch.nn.init.zeros_(self.linear.bias)

        def forward(self, some: list[str]) -> torch.Tensor:
            return self.linear(torch.from_numpy(np.stack([Q[int(s)] for s in some])))

    index, encoder = made(), Words()
    index.tune([str(i) for i in SOME], SOME, encoder=encoder, epochs=3, rate=4.0)
    assert index.query_map is None and not torch.equal(encoder.linear.weight, torch.eye(DIM))
    with torch.no_grad():
        mine = encoder([str(i) for i in OTHERS]).numpy()
    assert (index.search(mine, 10)[1] == OTHERS[:, None]).any(1).mean() > found(made()) + 0.03


def test_what_it_does_not_take() -> None:
    with pytest.raises(BadConfig, match="no product code"):
        Index(DIM, recipe="klt-levels").train(X).add(X).tune(Q, np.arange(len(Q)))
    index = made()
    with pytest.raises(BadInput, match="id 5000"):
        index.tune(Q[:30], np.append(np.arange(29), 5000))
    with pytest.raises(BadInput, match="20 and 2"):
        index.tune(Q[:5], np.arange(5))
    with pytest.raises(BadConfig, match="epochs"):
        index.tune(Q[:30], np.arange(30), epochs=-1)
    with pytest.raises(BadInput, match="positives"):
        index.tune(Q[:30], np.arange(29))
