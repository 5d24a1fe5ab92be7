from __future__ import annotations

import pytest
import torch

from laconic.core.errors import BadConfig, BadInput
from laconic.core.stage import Stats
from laconic.kv import cache, fit
from laconic.recipes.kv.cskv import cskv
from laconic.transforms.heads import HeadBasis
from laconic.transforms.joint import JointLatents
from laconic.transforms.klt import LowRank

from .caches import IDS, divergence, llama

HEADS, D, WIDTH = 4, 16, 64


def layer() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs (2048, 64) that lie near 20 directions, a projection (64, 64) with a decaying spectrum, keys (4, 2048, 16)."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2048, 20, generator=g) @ torch.randn(20, WIDTH, generator=g) + 0.2 * torch.randn(
        2048, WIDTH, generator=g
    )
    x = x * torch.linspace(0.2, 3, WIDTH)
    u, _, v = torch.linalg.svd(torch.randn(WIDTH, WIDTH, generator=g))
    w = u * torch.logspace(0.5, -1, WIDTH) @ v
    return x, w, (x @ w.T).unflatten(1, (HEADS, D)).transpose(0, 1).contiguous()


def lost(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x - y).square().sum() / x.square().sum())


def test_the_layer_loss_beats_asvd_and_plain_svd_of_the_projection() -> None:
    """At a quarter of the channels: svd of W, then W in the metric of its inputs (ASVD), then the loss on keys itself."""
    x, w, keys = layer()
    tuned = JointLatents(0.25).fit(keys)
    y, side = tuned.encode(keys)
    assert y.shape == (1, 2048, 16)
    hessian = Stats(hessian=x.T @ x / len(x))

    def of_weights(metric: str) -> float:
        low = LowRank(16, metric).fit(w, hessian)
        z, s = low.encode(w)
        return lost(keys, (x @ low.decode(z, s).T).unflatten(1, (HEADS, D)).transpose(0, 1))

    plain, scaled, best = of_weights("plain"), of_weights("scaled"), lost(keys, tuned.decode(y, side))
    assert best < 0.7 * scaled and scaled < plain


def test_heads_share_latents() -> None:
    """The same number of coordinates for all heads together loses less than a quarter for each."""
    _, _, keys = layer()
    joint, alone = JointLatents(0.25).fit(keys), HeadBasis(D // 4).fit(keys)
    assert lost(keys, joint.decode(*joint.encode(keys))) < 0.6 * lost(keys, alone.decode(*alone.encode(keys)))


def test_batches_and_shapes() -> None:
    _, _, keys = layer()
    both = torch.stack([keys, keys.flip(1)])
    stage = JointLatents(1.0).fit(both)
    back = stage.decode(*stage.encode(both))
    assert back.shape == both.shape and lost(both, back) < 1e-5
    with pytest.raises(BadInput):
        stage.encode(torch.ones(3, 4))
    with pytest.raises(BadConfig):
        JointLatents(0.0)


def test_through_a_model_with_quantized_latents() -> None:
    """4-bit latents: at the bytes of plain ones they keep four times the rank, and lose less."""
    model = llama()
    recipes = {16: cskv(4.0), 4: cskv(4.0, latent_bits=4)}
    caches = {b: cache(model, recipe=fit(model, recipe=r, calibration=IDS[2:])) for b, r in recipes.items()}
    kl = {b: divergence(model, c) for b, c in caches.items()}
    assert kl[4] < kl[16]
    held = {b: sum(x.store.nbytes for x in c.compressed) for b, c in caches.items()}
    assert held[4] < 1.3 * held[16]


def test_settings() -> None:
    for bad in ({"latent_bits": 5}, {"keys": 2.0}, {"keys": 0.0}):
        with pytest.raises(BadConfig):
            cskv(**bad)
