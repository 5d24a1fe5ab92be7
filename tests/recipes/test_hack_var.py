from __future__ import annotations

import torch

from laconic.kv import cache
from laconic.recipes.kv.hack_var import hack_var
from laconic.sources.kv.evict import EvictingStore, Eviction, Probes, column_variance
from laconic.sources.kv.store import Site

from .caches import divergence, llama

N, D, PROBES = 384, 32, 32


def heads() -> tuple[torch.Tensor, torch.Tensor, Probes, torch.Tensor]:
    """Head 0: all queries look at the same eight tokens. Head 1: at what lies just before them."""
    g = torch.Generator().manual_seed(0)
    keys = 0.3 * torch.randn(1, 2, N, D, generator=g)
    one = torch.randn(D, generator=g)
    keys[0, 0, torch.randperm(N, generator=g)[:8]] += one
    phase = torch.arange(N + PROBES)[:, None] * torch.logspace(-2.2, 0, D // 2)
    place = torch.cat([phase.cos(), phase.sin()], 1)
    keys[0, 1] = place[:N]
    at = torch.linspace(8, N - 1, PROBES).round().long()
    late = torch.arange(N, N + PROBES)
    queries = torch.stack([one.expand(PROBES, D) * 3, place[at] * 6])[None]
    later = torch.stack([one.expand(PROBES, D) * 3, place[late] * 6])[None]
    return keys, torch.randn(1, 2, N, D, generator=g), Probes(queries.half(), at), later


def error(eviction: Eviction) -> tuple[float, list[int]]:
    keys, values, probes, later = heads()
    store = EvictingStore(eviction, Site(0, 2, D, D), 0)
    store.append(keys, values, probes=probes)
    k, v, at = next(store.parts(later, 1, N))
    gone = torch.where(at < 0, -torch.inf, 0.0)[:, :, None]
    want = (later @ keys.transpose(2, 3) * D**-0.5).softmax(-1) @ values
    got = (later @ k.transpose(2, 3) * D**-0.5 + gone).softmax(-1) @ v
    return float((want - got).square().sum() / want.square().sum()), [len(x.at) for x in store.kept[0]]


def test_classes_come_from_the_variance_of_columns() -> None:
    keys, _, probes, _ = heads()
    e = Eviction(probes=PROBES)
    weights = e.weights(keys[0], torch.arange(N).expand(2, N), probes, 0, D**-0.5)
    contextual, structural = column_variance(keys[0], weights).tolist()
    assert structural > 3 * contextual


def test_structural_heads_get_more_and_the_swap_is_worse() -> None:
    settings = {"worth": column_variance, "probes": PROBES, "spread": True, "recent": 0.5, "pool": 1}
    split, kept = error(Eviction(0.2, contrast=0.5, **settings))
    swapped, reverse = error(Eviction(0.2, contrast=-0.5, **settings))
    assert kept == reverse[::-1] and kept[0] < kept[1]
    assert split < 0.5 * swapped


def test_latest_tokens_of_structural_heads_stay() -> None:
    keys, values, probes, _ = heads()
    store = EvictingStore(Eviction(0.2, column_variance, 0.5, PROBES, True, recent=0.5), Site(0, 2, D, D), 0)
    store.append(keys, values, probes=probes)
    n = len(store.kept[0][1].at)
    assert set(range(N - n // 2, N)) <= set(store.kept[0][1].at.tolist())


def test_through_a_model() -> None:
    model = llama()
    past = cache(model, recipe=hack_var(0.5))
    assert divergence(model, past) < 2
    layer = past.layers[0]
    assert layer.probes.queries.shape[2] == 32 and layer.nbytes >= layer.probes.nbytes + layer.store.nbytes
