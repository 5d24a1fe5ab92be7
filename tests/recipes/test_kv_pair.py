from __future__ import annotations

import pytest
import torch

import laconic
from laconic.core.combine import chain
from laconic.entropy.coders import Pack
from laconic.quantize.base import Quantizer
from laconic.quantize.codebooks import Uniform
from laconic.quantize.scales import Along, GroupScale, MinMax


def cache(tokens: int = 160) -> torch.Tensor:
    """(2, 4, tokens, 64); keys with a few channels that are large at all tokens, as those of language models have."""
    g = torch.Generator().manual_seed(0)
    kv = torch.randn(2, 4, tokens, 64, generator=g)
    kv[0, :, :, ::13] = 8 * kv[0, :, :1, ::13] + 2 * kv[0, :, :, ::13]
    return kv


def relative(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x - y).square().sum() / x.square().sum())


def test_keys_by_channel_values_by_token() -> None:
    """KIVI: at 2 bits keys want their scales by channel; for values it matters little."""
    kv = cache()
    back = laconic.decode(laconic.codec("kv-pair", window=0).encode(kv))

    def alone(x: torch.Tensor, axis: int) -> float:
        scale = GroupScale(Along(32, axis), MinMax())
        return relative(x, laconic.decode(laconic.Codec(chain(Quantizer(Uniform(4, 0.0), scale), Pack())).encode(x)))

    keys, values = relative(kv[0], back[0]), relative(kv[1], back[1])
    assert keys == pytest.approx(alone(kv[0], -2)) and values == pytest.approx(alone(kv[1], -1))
    assert keys < 0.5 * alone(kv[0], -1)
    assert abs(values / alone(kv[1], -2) - 1) < 0.1


def test_the_window_is_half_precision() -> None:
    kv = cache()
    back = laconic.decode(laconic.codec("kv-pair", window=40).encode(kv))
    keys = kv.shape[2] - (kv.shape[2] - 40) // 32 * 32
    assert torch.equal(back[0, :, -keys:], kv[0, :, -keys:].half().float())
    assert torch.equal(back[1, :, -40:], kv[1, :, -40:].half().float())
    assert not torch.equal(back[0, :, -keys - 1], kv[0, :, -keys - 1].half().float())
    assert not torch.equal(back[1, :, -41], kv[1, :, -41].half().float())


@pytest.mark.parametrize("tokens", [1, 5, 32, 33, 63, 64, 65])
def test_short_caches(tokens: int) -> None:
    kv = cache(tokens)
    back = laconic.decode(laconic.codec("kv-pair").encode(kv))
    assert back.shape == kv.shape
    assert relative(kv, back) < (1e-6 if tokens <= 32 else 0.2)


def test_rate() -> None:
    kv = cache(32 * 20)
    by_role = laconic.info(laconic.codec("kv-pair", window=0).encode(kv)).ledger.by_role()
    assert by_role["codes"] * 8 == 2 * kv.numel()
    assert (by_role["scales"] + by_role["zeros"]) * 8 == pytest.approx(kv.numel(), rel=0.01), (
        "32 bits for every 32 values"
    )


def test_what_is_no_pair_is_refused() -> None:
    with pytest.raises(laconic.BadInput, match="even"):
        laconic.codec("kv-pair").encode(torch.ones(3, 4, 8, 8))
    for settings in ({"bits": 0}, {"bits": 9}, {"group": 0}, {"window": -1}):
        with pytest.raises(laconic.BadConfig):
            laconic.codec("kv-pair", **settings)
