from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from laconic.core.errors import BadConfig
from laconic.kv import cache
from laconic.recipes.kv.rekv import rekv
from laconic.sources.kv.retrieve import BlockStore, Retrieval
from laconic.sources.kv.rope import Rope
from laconic.sources.kv.store import Site

from .caches import IDS, divergence, llama

N, D, BLOCK = 1024, 32, 64
ROPE = Rope(tuple((100.0 ** (-torch.arange(D // 2).double() / (D // 2))).tolist()))


def scenes() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys before RoPE and values (1, 2, 1024, 32) of 16 scenes of 64 tokens, each with a direction; queries about scene 5."""
    g = torch.Generator().manual_seed(0)
    about = torch.randn(16, 2, D, generator=g)
    keys = about.repeat_interleave(BLOCK, 0).transpose(0, 1)[None] + torch.randn(1, 2, N, D, generator=g)
    queries = about[5][None, :, None] + 0.5 * torch.randn(1, 2, 8, D, generator=g)
    return keys, torch.randn(1, 2, N, D, generator=g), queries


def read(retrieval: Retrieval, rope: Rope | None = None) -> tuple[BlockStore, tuple[torch.Tensor, ...]]:
    keys, values, queries = scenes()
    store = BlockStore(retrieval, Site(0, 2, D, D, rope), 0)
    for start in range(0, N, 256):
        part = keys[:, :, start : start + 256]
        store.append(part if rope is None else rope.turn(part, start), values[:, :, start : start + 256])
    q = queries if rope is None else rope.turn(queries, N)
    return store, next(store.parts(q, 8, N + 8))


@pytest.mark.parametrize("rope", [None, ROPE])
def test_the_block_that_is_asked_for_is_read(rope: Rope | None) -> None:
    store, (_, values, at) = read(Retrieval(BLOCK, 1), rope)
    assert at[0, 0].tolist() == list(range(5 * BLOCK, 6 * BLOCK))
    assert torch.allclose(values, scenes()[1][:, :, 5 * BLOCK : 6 * BLOCK], atol=1e-2)
    assert (store.loaded, store.asked) == (2 * BLOCK, 2 * N)


def test_retrieved_blocks_beat_the_latest_at_equal_tokens() -> None:
    """Attention of the queries over everything, against over 2 blocks found by their mean, and over the last 2."""
    keys, values, queries = scenes()
    _, (k, v, _) = read(Retrieval(BLOCK, 2))

    def attended(k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return (queries @ k.transpose(2, 3) * 0.5).softmax(-1) @ v

    want = attended(keys, values)
    found, latest = (attended(*p) for p in ((k, v), (keys[:, :, -128:], values[:, :, -128:])))
    assert (found - want).square().sum() < 0.2 * (latest - want).square().sum()


def test_what_is_read_moves_in_front_of_the_window() -> None:
    keys, _, _ = scenes()
    part = keys[:, :, 5 * BLOCK : 6 * BLOCK]
    _, (moved, _, _) = read(Retrieval(BLOCK, 1), ROPE)
    _, (stays, _, _) = read(Retrieval(BLOCK, 1, reindex=False), ROPE)
    assert torch.allclose(moved, ROPE.turn(part, N - BLOCK), atol=2e-2)
    assert torch.allclose(stays, ROPE.turn(part, 5 * BLOCK), atol=2e-2)


def test_through_a_model_everything_read_is_exact() -> None:
    model = llama()
    mask = torch.ones(2, IDS.shape[1], dtype=torch.long)
    mask[1, :30] = 0
    whole = rekv(n_blocks=8, block=32, window=32, reindex=False)
    past = cache(model, recipe=whole)
    assert divergence(model, past, attention_mask=mask) < 1e-4
    few = cache(model, recipe=replace(whole, retrieve=Retrieval(32, 2, False)))
    assert 1e-4 < divergence(model, few, attention_mask=mask)
    assert "read" in few.report().layers[0].notes[0] and few.layers[0].store.loaded < few.layers[0].store.asked
    n = past.layers[0].store.n_tokens
    past.crop(-100)
    past.reorder_cache(torch.tensor([1, 0]))
    store = past.layers[0].store
    assert store.n_tokens == IDS.shape[1] - 100 - store.first < n
    assert store.tile(0, store.n_tokens)[0].shape[2] == store.n_tokens


def test_bytes_are_counted_on_disk_and_in_memory() -> None:
    store, _ = read(Retrieval(BLOCK, 1))
    assert store.rows.nbytes == 2 * 2 * N * 2 * D and store.memory_bytes == N // BLOCK * 2 * D * 2
    assert store.nbytes == store.rows.nbytes + store.memory_bytes
    with pytest.raises(BadConfig, match="blocks"):
        Retrieval(0)
    with pytest.raises(BadConfig, match="multiple"):
        store.append(*(torch.ones(1, 2, 10, D),) * 2)
