from __future__ import annotations

import torch

import laconic
from laconic.kv import cache
from laconic.recipes.kv.staircase_kv import staircase_kv
from laconic.sources.kv.staircase import staircase_store
from laconic.sources.kv.store import PairStore, Site

from .caches import divergence, llama


def vectors(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 4, n, 64, generator=torch.Generator().manual_seed(seed))


def store() -> PairStore:
    recipe = staircase_kv()
    return staircase_store(recipe, Site(0, 4, 64, 64), recipe.keys(2.0), recipe.values(2.0), 0)


def test_ageing_segment_by_segment_is_coding_all_at_once() -> None:
    """A store that took its tokens in steps holds what the codec of a packet gives for all of them."""
    k, v = vectors(160), vectors(160, 1)
    grown = store()
    for start, stop in ((0, 32), (32, 128), (128, 160)):
        grown.append(k[:, :, start:stop], v[:, :, start:stop])
    for x, codec, part in ((k, staircase_kv().keys(2.0), 0), (v, staircase_kv().values(2.0), 1)):
        for b in range(2):
            want = codec.decode(*codec.encode(x[b]))
            got = torch.cat([grown.tile(s, t)[part][b] for s, t in grown.bounds()], 1)
            assert torch.allclose(got, want, atol=2e-3)  # float16 ranges have one exponent a segment there
    assert [len(r.coded[0].payload) * 8 // (4 * 32 * 64) for r in grown.keys.runs] == [2, 2, 2, 4, 8]


def test_bytes_fall_with_age() -> None:
    s = store()
    s.append(vectors(32), vectors(32))
    first = s.nbytes
    s.append(vectors(32), vectors(32))
    assert first * 8 / (2 * 2 * 4 * 32 * 64) > 8
    assert s.nbytes - first < 0.7 * first, "the new segment takes 8 bits, the old one gives 4 back"


def test_beams_and_crops() -> None:
    s = store()
    s.append(vectors(96), vectors(96))
    s.select([0, 0, 1])
    before = s.nbytes
    s.append(vectors(32)[[0, 0, 1]], vectors(32)[[0, 0, 1]])
    assert s.nbytes < before + 3 * 2 * 4 * 32 * (64 + 4), "shared segments are let go of once and stay shared"
    assert len({id(c) for c in s.keys.runs[0].coded}) == 2
    s.crop(70)
    assert s.n_tokens == 70 and s.tile(64, 70)[0].shape == (3, 4, 6, 64)
    s.append(vectors(32)[[0, 0, 1]], vectors(32)[[0, 0, 1]])
    assert s.n_tokens == 102 and bool(torch.isfinite(s.tile(0, 102)[0]).all())


def test_nan_in_a_segment() -> None:
    s, x = store(), vectors(32)
    x[0, 1, 3, 2] = torch.nan
    for _ in range(3):
        s.append(x, vectors(32))
    assert s.exact == 3 and bool(torch.isnan(s.tile(0, 96)[0]).any())


def test_through_a_model() -> None:
    """Two segments at 8 and 4 bits over a floor of 2 lose less than the floor alone; a higher floor less still."""
    model = llama()
    kl = [divergence(model, cache(model, recipe=r)) for r in (staircase_kv(2, ()), staircase_kv(2), staircase_kv(4))]
    assert kl[2] < kl[1] < kl[0]
    assert laconic.codec("staircase-kv", floor=4).stage != laconic.codec("staircase-kv").stage
