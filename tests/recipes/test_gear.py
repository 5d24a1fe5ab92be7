from __future__ import annotations

import pytest
import torch

import laconic
from laconic.kv import cache
from laconic.recipes.kv.gear import gear

from .caches import divergence, llama


def pair(shared: float) -> torch.Tensor:
    """(2, 4, 512, 64): noise, with a few outliers, and on top what all channels share, which scales of 2 bits round away."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 512, 64, generator=g)
    x[torch.rand(x.shape, generator=g) > 0.99] *= 6
    common = torch.randn(2, 1, 512, 1, generator=g) * torch.randn(2, 4, 1, 64, generator=g)
    return x + shared * common


def lost(x: torch.Tensor, **settings: float) -> tuple[float, float]:
    """(error, bits a value)."""
    packet = laconic.codec("gear", window=0, **settings).encode(x)
    return float((x - laconic.decode(packet)).square().mean()), laconic.info(packet).bits_per_element


def test_outliers_beside_a_finer_range() -> None:
    """Some 3 % beside 2 bits: a third of the error or more, for half a bit, where a third bit takes 1 and more than half."""
    (plain, low), (sparse, high) = lost(pair(0), rank=0.0, outliers=0.0), lost(pair(0), rank=0.0)
    assert sparse < 0.66 * plain and high - low < 0.55


def test_low_rank_of_the_error() -> None:
    """It is always the best of its rank, so it takes error away; how much for its bits is up to the spectrum of the error."""
    (without, low), (with_rank, high) = lost(pair(2), rank=0.0), lost(pair(2))
    assert with_rank < without and 0.3 < high - low < 0.55
    x = pair(2)
    codec = gear().keys(2.0)
    payload, side = codec.encode(x[0])
    assert tuple(side["1"]["1"]["shape"]) == (5, 1, 512, 256), "⌊.5 · 512 · 256 / (16 · 768)⌋ = 5"


def test_through_a_model() -> None:
    model = llama()
    kl = [
        divergence(model, cache(model, recipe=gear(2, **s)))
        for s in ({}, {"rank": 0.0}, {"rank": 0.0, "outliers": 0.0})
    ]
    assert kl[0] < kl[2] and kl[1] < kl[2]
    for bad in ({"rank": -1.0}, {"outliers": 0.9}):
        with pytest.raises(laconic.BadConfig):
            laconic.codec("gear", **bad)
