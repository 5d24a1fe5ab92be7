from __future__ import annotations

import pytest
import torch

import laconic
from laconic.core.stage import Stats
from laconic.kv import cache, fit
from laconic.recipes.kv.kvquant import kvquant

from .caches import IDS, divergence, llama


def pair(tokens: int = 1024, seed: int = 0) -> torch.Tensor:
    """(2, 4, tokens, 64): keys whose channels have their own place and size, both with heavy tails, as before RoPE."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 4, tokens, 64, generator=g)
    x = x / (torch.randn(2, 4, tokens, 64, 4, generator=g).square().mean(-1)).sqrt()  # Student's t of 4 degrees
    of_channels = torch.Generator().manual_seed(99)
    x[0] = x[0] * torch.rand(4, 1, 64, generator=of_channels).exp() + 5 * torch.randn(4, 1, 64, generator=of_channels)
    return x


def error(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x - y).square().sum() / (x - x.mean(-2, keepdim=True)).square().sum())


def test_three_bits_and_one_per_cent_against_uniform_codes() -> None:
    """Less error than min–max codes of half a bit a value more, as ranges without outliers are short and levels learned."""
    packets = [laconic.codec(n, bits=3, window=0).fit(pair(seed=1)).encode(pair()) for n in ("kvquant", "kv-pair")]
    rates = [laconic.info(p).bits_per_element for p in packets]
    errors = [error(pair(), laconic.decode(p)) for p in packets]
    assert rates[0] < rates[1] - 0.4
    assert errors[0] < errors[1]


def test_outliers_are_kept_and_counted() -> None:
    packet = laconic.codec("kvquant", bits=3, window=0).fit(pair(seed=1)).encode(pair())
    roles = laconic.info(packet).ledger.by_role()
    n_out = 8 * roles["indices"] / pair().numel()
    assert 0.05 < n_out < 0.2, "some nine bits for the place of every hundredth value"
    largest = pair()[1].abs().flatten().topk(20).indices
    back = laconic.decode(packet)[1].flatten()[largest]
    assert torch.allclose(back, pair()[1].flatten()[largest], rtol=1e-3)


def test_levels_follow_the_queries() -> None:
    """Channels that queries meet hard are coded finer than if all counted the same."""
    x, power = pair()[0], torch.ones(4, 64)
    power[:, :8] = 1e4
    x[:, :, :8] = x[:, :, :8].sign() * x[:, :, :8].abs().sqrt()  # another law there
    codec = kvquant(2, matched=False).keys(2.0)
    both = [codec.fit(x, Stats(hessian=h)) for h in (torch.diag_embed(power), torch.diag_embed(torch.ones(4, 64)))]
    met, alike = ((x - c.decode(*c.encode(x)))[..., :8].square().mean() for c in both)
    assert met < alike


def test_through_a_model() -> None:
    model = llama()
    kl = {}
    for bits in (2, 4):
        past = cache(model, recipe=fit(model, recipe="kvquant", bits=bits, calibration=IDS[2:]))
        kl[bits] = divergence(model, past)
        assert past.compressed[0].sinks.n_tokens == 1, "the first token stays as it is"
    assert kl[4] < 0.3 * kl[2]
    with pytest.raises(laconic.BadConfig):
        kvquant(2, outliers=0.7).keys(2.0)
