from __future__ import annotations

import pytest
import torch

import laconic
from laconic.core.combine import chain
from laconic.core.stage import Stats
from laconic.entropy.coders import Pack
from laconic.kv import cache
from laconic.quantize.base import Quantizer
from laconic.quantize.codebooks import Uniform
from laconic.quantize.scales import Along, GroupScale, MinMax
from laconic.recipes.kv.zipcache import zipcache
from laconic.transforms.channels import JoinHeads

from .caches import divergence, llama


def values(n: int = 256) -> torch.Tensor:
    """(4, n, 32) with channels of unlike size."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4, n, 32, generator=g)
    x[:, :, ::7] *= 15
    return x


def error(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x - y).square().sum() / x.square().sum())


def test_channels_scaled_apart_let_tokens_share_a_scale() -> None:
    """2 bits, one scale and zero a token: relative to each channel's size a fifth of the error, for .06 bits a value."""
    size = values().square().mean((1,), keepdim=True).sqrt()
    codes = Quantizer(Uniform(4, 0.0), GroupScale(Along(0, -1), MinMax())), Pack()
    plain, apart = chain(JoinHeads(), *codes), zipcache(2.0).values(2.0)
    lost = [error(values() / size, c.decode(*c.encode(values())) / size) for c in (plain, apart)]
    assert lost[1] < 0.2 * lost[0]


def test_salient_tokens_are_coded_finer() -> None:
    x = values()
    worth = torch.zeros(1, 256, 1)
    worth[:, 10::4] = 1
    codec = zipcache(2.5).keys(2.5).fit(x, Stats(importance=worth))
    back = codec.decode(*codec.encode(x))
    salient = worth[0, :, 0] > 0
    assert error(x[:, salient], back[:, salient]) < 0.1 * error(x[:, ~salient], back[:, ~salient])


@pytest.mark.parametrize("score", ["normalized", "accumulated"])
def test_through_a_model(score: str) -> None:
    model = llama()
    kl, bits = {}, {}
    for rate in (2.0, 3.0, 4.0):
        past = cache(model, recipe="zipcache", bits=rate, salience=score)
        kl[rate], bits[rate] = divergence(model, past), past.bits_per_value
    assert kl[4.0] < kl[3.0] < kl[2.0] and bits[2.0] < bits[3.0] < bits[4.0]
    probes = past.compressed[0].probes
    assert probes.queries.shape[2] == 8 and probes.at[-1] == past.get_seq_length() - 1


def test_settings() -> None:
    with pytest.raises(laconic.BadConfig, match="between"):
        zipcache(5.0).keys(5.0)
    with pytest.raises(laconic.BadConfig, match="normalized"):
        zipcache(salience="normalised")
    with pytest.raises(laconic.BadConfig):
        zipcache(low=4, high=4)
    with pytest.raises(laconic.BadConfig, match="queries"):
        cache(llama().config, recipe="zipcache")
