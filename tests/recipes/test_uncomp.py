from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from laconic.core.errors import BadConfig
from laconic.kv import cache
from laconic.recipes.kv.uncomp import uncomp
from laconic.sources.kv.evict import EvictingStore, Eviction, Probes, alike, matrix_entropy
from laconic.sources.kv.store import Site

from .caches import IDS, divergence, llama, predictions

N, D, HEADS = 512, 32, 4


def heads() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys, values (1, 4, 512, 32) and queries (1, 4, 24, 32); two heads see two kinds of keys, two see eight directions.

    Queries of the first look for the rare kind, of which few tokens will do; those of the others mix many tokens.
    """
    g = torch.Generator().manual_seed(0)
    kinds = torch.randn(2, 2, D, generator=g)
    which = (torch.rand(2, N, generator=g) > 0.03).long()
    few = torch.stack([kinds[h][which[h]] for h in range(2)]) + 0.05 * torch.randn(2, N, D, generator=g)
    many = torch.randn(2, N, 8, generator=g) @ torch.randn(2, 8, D, generator=g) * 8**-0.5
    keys = torch.cat([few, many])[None]
    queries = torch.cat([kinds[:, :1].expand(2, 24, D) * 2, torch.randn(2, 24, D, generator=g) * 1.5])[None]
    return keys, torch.randn(1, HEADS, N, D, generator=g), queries


def error(eviction: Eviction) -> tuple[float, EvictingStore]:
    """Relative error of what later queries read, and the store."""
    keys, values, queries = heads()
    store = EvictingStore(eviction, Site(0, HEADS, D, D), 0)
    store.append(keys, values, probes=Probes(queries[:, :, :8].half(), torch.arange(N, N + 8)))
    k, v, at = next(store.parts(queries, 1, N))
    gone = torch.where(at < 0, -torch.inf, 0.0)[:, :, None]
    later = queries[:, :, 8:] * D**-0.5
    want = (later @ keys.transpose(2, 3)).softmax(-1) @ values
    got = (later @ k.transpose(2, 3) + gone).softmax(-1) @ v
    return float((want - got).square().sum() / want.square().sum()), store


def test_a_budget_by_entropy_beats_one_for_all_and_its_reverse_is_worse() -> None:
    keys, _, _ = heads()
    entropy = matrix_entropy(keys[0], torch.zeros(HEADS, 1, N))
    assert entropy[:2].max() < entropy[2:].min()
    split, same, reverse = (error(Eviction(0.25, matrix_entropy, c)) for c in (0.5, 0.0, -0.5))
    assert split[0] < same[0] < reverse[0]
    assert split[1].nbytes == same[1].nbytes == reverse[1].nbytes, "the same bytes for all three"


def test_evicted_tokens_are_freed_and_the_mean_is_the_share() -> None:
    _, store = error(Eviction(0.25, matrix_entropy, 0.5))
    kept = [len(k.at) for k in store.kept[0]]
    assert sorted(kept) == [64, 64, 192, 192]
    assert store.nbytes == sum(kept) * (2 * 2 * D + 4)


def test_what_queries_look_for_stays() -> None:
    keys, values, queries = heads()
    keys[0, :, 100] = 3 * queries[0, :, :8].mean(1)
    store = EvictingStore(Eviction(0.05, alike, pool=1), Site(0, HEADS, D, D), 0)
    store.append(keys, values, probes=Probes(queries[:, :, :8].half(), torch.arange(N, N + 8)))
    assert all(100 in k.at.tolist() for k in store.kept[0])


def test_through_a_model() -> None:
    model = llama()
    whole = cache(model, recipe=replace(uncomp(), evict=Eviction(1.0)))
    assert divergence(model, whole) < 1e-5
    past = cache(model, recipe="uncomp", share=0.4)
    mask = torch.ones(2, IDS.shape[1], dtype=torch.long)
    mask[1, :30] = 0
    lost = divergence(model, past, attention_mask=mask)
    assert 0 < lost < 2 and past.nbytes < 0.7 * whole.nbytes
    past.crop(-40)
    past.reorder_cache(torch.tensor([1, 0, 1]))
    store = past.layers[0].store
    assert all(int(k.at.max()) < store.n_tokens for row in store.kept for k in row) and len(store.kept) == 3


def test_what_needs_every_token_is_refused() -> None:
    model = llama()
    past = cache(model, recipe="uncomp")
    predictions(model, past)
    with pytest.raises(BadConfig, match="evicted"):
        model(input_ids=IDS[:2, :1], past_key_values=past, output_attentions=True)
    with pytest.raises(BadConfig, match="share"):
        uncomp(0.9, 0.5)
    with pytest.raises(BadConfig, match="attention='packed'"):
        cache(model.config, recipe="uncomp")
