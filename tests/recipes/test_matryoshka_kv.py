from __future__ import annotations

import numpy as np
import pytest
import torch

from laconic.core.combine import chain
from laconic.core.errors import BadConfig, CodecError
from laconic.kv import cache, fit
from laconic.quantize.ranks import HeadRanks
from laconic.recipes.kv.matryoshka_kv import matryoshka_kv
from laconic.sources.kv.matryoshka import _Basis, _drawn
from laconic.transforms.heads import HeadBasis

from .caches import IDS, divergence, llama


def test_trained_bases_and_searched_ranks_beat_principal_components() -> None:
    """Random tokens, a random model: directions of large variance are not those that its predictions hang on."""
    model = llama()
    pca = fit(model, recipe=matryoshka_kv(4.0, steps=0), calibration=IDS[2:])
    plain = {n: tuple(c.replace(stages=(c.stages[0], c.stages[1].replace(ranks=[4, 4]))) for c in pair)
             for n, pair in pca.codecs.items()}  # fmt: skip
    import dataclasses

    even = dataclasses.replace(pca, codecs=plain)
    trained = fit(model, recipe=matryoshka_kv(4.0, steps=80), calibration=IDS[2:])
    caches = [cache(model, recipe=f) for f in (even, pca, trained)]
    kl = [divergence(model, c) for c in caches]
    held = [sum(x.store.nbytes for x in c.compressed) for c in caches]
    assert held[2] <= 1.02 * held[0]
    assert kl[2] < 0.9 * kl[0] and kl[2] < kl[1]


def test_bases_stay_orthogonal_and_any_rank_is_a_prefix() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, 256, 16, generator=g) @ torch.randn(16, 16, generator=g)
    basis = _Basis.of(chain(HeadBasis(), HeadRanks(0.5)).fit(x))
    basis.turn = 0.3 * torch.randn(2, 16, 16, generator=g)
    u = basis.matrix()
    assert torch.allclose(u.transpose(1, 2) @ u, torch.eye(16).expand(2, 16, 16), atol=1e-5)
    lost = [float((x - basis.project(x, np.array([r, r]))).square().sum()) for r in (0, 4, 8, 16)]
    assert lost == sorted(lost, reverse=True) and lost[-1] < 1e-3
    assert set(_drawn(np.random.default_rng(0), 1000, 16)) == {2, 4, 6, 8, 10, 12, 14, 16}


def test_ranks_go_where_the_variance_is() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 64, 8, generator=g) * torch.tensor([4.0, 1.0])[:, None, None]
    x = x * torch.linspace(1, 0.3, 8)
    stage = HeadRanks(0.5).fit(x)
    assert stage.ranks.tolist() == [7, 1] or stage.ranks.sum() == 8 and stage.ranks[0] > 5
    data, side = stage.encode(x)
    assert len(data) == 2 * 64 * 8
    back = stage.decode(data, side)
    n = int(stage.ranks[0])
    assert torch.allclose(back[0, :, :n], x[0, :, :n], rtol=1e-3) and float(back[0, :, n:].abs().sum()) == 0
    assert torch.isfinite(stage.decode(*stage.encode(x * 1e6))).all()
    for bad in (data[:-2], data + b"\x00\x00"):
        with pytest.raises(CodecError):
            stage.decode(bad, side)
    with pytest.raises(CodecError):
        stage.decode(data, {**side, "axes": np.array([3, 64, 8])})
    with pytest.raises(BadConfig):
        HeadRanks(0.0)
