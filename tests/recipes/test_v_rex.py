from __future__ import annotations

import numpy as np
import torch

from laconic.kv import cache
from laconic.sources.kv.retrieve import BlockStore, ClusterStore, Retrieval
from laconic.sources.kv.store import Site

from .caches import IDS, divergence, llama

N, D = 1024, 64


def frames() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys and values (1, 2, 1024, 64): 32 frames of 32 places, each place much the same from frame to frame; 4 queries."""
    g = torch.Generator().manual_seed(0)
    places = torch.randn(2, 32, D, generator=g)
    keys = (places[:, None] + 0.25 * torch.randn(2, 32, 32, D, generator=g)).flatten(1, 2)[None]
    queries = places[None, :, [3, 3, 17, 17]] * 0.12
    return keys, torch.randn(1, 2, N, D, generator=g), queries


def mass(queries: torch.Tensor, keys: torch.Tensor, at: torch.Tensor) -> float:
    """Part of the attention that lies on the tokens read."""
    weights = (queries @ keys.transpose(2, 3)).softmax(-1)
    read = torch.zeros(2, N, dtype=torch.bool)
    for h in range(2):
        read[h, at[0, h][at[0, h] >= 0]] = True
    return float((weights * read[None, :, None]).sum(-1).mean())


def clusters(share: float = 0.8) -> ClusterStore:
    keys, values, _ = frames()
    store = ClusterStore(Retrieval(mass=share), Site(0, 2, D, D), 0)
    store.append(keys, values)
    return store


def test_clusters_catch_more_attention_than_blocks_at_equal_tokens() -> None:
    keys, values, queries = frames()
    store = clusters()
    _, _, at = next(store.parts(queries, 4, N))
    n = int((at >= 0).sum()) // 2
    blocks = BlockStore(Retrieval(64, -(-n // 64)), Site(0, 2, D, D), 0)
    blocks.append(keys, values)
    _, _, other = next(blocks.parts(queries, 4, N))
    assert int((other >= 0).sum()) >= int((at >= 0).sum())
    assert n < 0.4 * N and mass(queries, keys, at) > 0.75
    assert mass(queries, keys, other) < 0.7 * mass(queries, keys, at)


def test_like_keys_meet_and_what_finds_them_is_small() -> None:
    store = clusters()
    found = [len(c.members) for c in store.clusters[0]]
    assert max(found) < N // 4
    assert sorted(sum(store.clusters[0][0].members, [])) == list(range(N))
    assert store.memory_bytes < 0.4 * store.rows.nbytes


def test_how_much_is_read_follows_the_query() -> None:
    """A query that prefers one place reads few tokens, one that prefers none reads most of them."""
    _, _, queries = frames()
    store = clusters()
    n = [int((next(store.parts(queries * s, 4, N))[2] >= 0).sum()) for s in (0.0, 1.0, 3.0)]
    assert n[0] > 0.7 * 2 * N > 2 * n[1] > 2 * n[2] > 0
    more = [int((next(clusters(m).parts(queries, 4, N))[2] >= 0).sum()) for m in (0.5, 0.8, 1.0)]
    assert more[0] < more[1] < more[2] == 2 * N


def test_tokens_are_read_as_they_were() -> None:
    keys, values, queries = frames()
    k, v, at = next(clusters().parts(queries, 4, N))
    for h in range(2):
        there = at[0, h] >= 0
        assert torch.allclose(k[0, h, there], keys[0, h, at[0, h, there]], atol=1e-2)
        assert torch.allclose(v[0, h, there], values[0, h, at[0, h, there]], atol=1e-2)
        assert np.all(np.diff(at[0, h, there]) > 0)


def test_through_a_model_everything_read_is_exact() -> None:
    model = llama()
    mask = torch.ones(2, IDS.shape[1], dtype=torch.long)
    mask[1, :30] = 0
    past = cache(model, recipe="v-rex", mass=1.0, window=32)
    assert divergence(model, past, attention_mask=mask) < 1e-4
    past.crop(-60)
    past.reorder_cache(torch.tensor([1, 0, 0]))
    store = past.layers[0].store
    assert len(store.clusters) == 3 and max(sum(store.clusters[0][0].members, [])) < store.n_tokens
