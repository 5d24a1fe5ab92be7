from __future__ import annotations

import torch

from laconic.recipes.kv.kv_pair import kv_pair
from laconic.sources.kv.exact import SparingStore
from laconic.sources.kv.inputs import Inputs, peaks
from laconic.sources.kv.store import PairStore, Site


def vectors(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 2, 64, 32, generator=torch.Generator().manual_seed(seed))


def spared(where: dict[int, list[int]]) -> SparingStore:
    """A store that took 64 tokens, some of them with massive inputs and keys that are large."""
    recipe = kv_pair(2)
    store = SparingStore(PairStore(recipe.keys(2), recipe.values(2), Site(0, 2, 32, 32)), 100.0)
    x, k = torch.full((2, 64, 1), 5.0), vectors()
    for b, places in where.items():
        x[b, places] = 1e3
        k[b, :, places] *= 50
    store.append(k, vectors(1), inputs=Inputs(x, torch.zeros(2, dtype=torch.int64)))
    return store


def test_peaks_tell_massive_activations() -> None:
    x = torch.randn(1, 10, 64, generator=torch.Generator().manual_seed(0))
    x[0, 3, 17] = 2000
    assert int(peaks(x)[0, :, 0].argmax()) == 3 and float(peaks(x)[0, 3, 0]) > 1000
    assert float(peaks(x)[0, 4:].amax()) < 10
    assert bool(torch.isfinite(peaks(torch.zeros(1, 2, 4))).all())


def test_spared_tokens_are_exact_and_widen_no_range() -> None:
    store, plain = spared({0: [4, 40], 1: [9]}), spared({})
    k, _ = store.tile(0, 64)
    want = vectors()
    for b, i in ((0, 4), (0, 40), (1, 9)):
        assert torch.allclose(k[b, :, i], 50 * want[b, :, i], rtol=1e-3)
    others = torch.ones(64, dtype=torch.bool)
    others[[4, 9, 40]] = False
    error, usual = ((x.tile(0, 64)[0] - want)[:, :, others].square().mean() for x in (store, plain))
    assert error < 1.05 * usual
    assert store.nbytes == plain.nbytes + 3 * (4 + 2 * 2 * 2 * 32)


def test_beams_crops_and_sliding() -> None:
    store = spared({0: [4, 40], 1: [9]})
    assert torch.equal(store.tile(35, 45)[0], store.tile(0, 64)[0][:, :, 35:45])
    store.select([1, 0, 0])
    assert store.at == [[9], [4, 40], [4, 40]]
    store.crop(30)
    assert store.at == [[9], [4], [4]] and store.n_tokens == 30
    store.forget(5)
    assert store.at == [[9], [], []]


def test_all_tokens_massive() -> None:
    store = spared({0: list(range(64))})
    assert torch.allclose(store.tile(0, 64)[0][0], 50 * vectors()[0], rtol=1e-3)
