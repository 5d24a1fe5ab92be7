from __future__ import annotations

import pytest
import torch

import laconic
from laconic.kv import cache
from laconic.recipes.kv.mustafar import mustafar

from .caches import divergence, llama


def pair() -> torch.Tensor:
    """(2, 4, 320, 64) with channels of unlike size."""
    g = torch.Generator().manual_seed(0)
    return torch.randn(2, 4, 320, 64, generator=g) * torch.linspace(0.5, 2.0, 64)


def error(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x - y).square().sum() / x.square().sum())


def test_the_largest_of_each_token_against_channels_dropped_whole() -> None:
    """Mustafar against structured pruning (ThinK's): at 50 and 70 % dropped less than half and two thirds of its error."""
    for bits, least in ((9.0, 0.3), (5.8, 0.55)):
        back = laconic.decode(laconic.codec("mustafar", bits=bits, window=0).encode(pair()))
        kept = round((bits - 1) / 16 * 64)
        assert bool(((back != 0).sum(-1) == kept).all())
        weak = pair().square().sum(-2).argsort(-1)[..., : 64 - kept]
        structured = pair().scatter(-1, weak[..., None, :].expand(-1, -1, 320, -1), 0.0)
        assert error(pair(), back) < least * error(pair(), structured)


def test_the_bitmap_counts() -> None:
    said = laconic.info(laconic.codec("mustafar", window=0).encode(pair()))
    by_role = said.ledger.by_role()
    assert by_role["indices"] * 8 == pair().numel()
    assert by_role["codes"] * 8 == 16 * round(0.3 * 64) / 64 * pair().numel()
    assert said.bits_per_element == pytest.approx(16 * 19 / 64 + 1, abs=0.05)


def test_kept_values_may_be_quantized() -> None:
    """8 bits for the kept values at the same share: less than two thirds of the bytes, hardly more error."""
    exact = laconic.codec("mustafar", bits=5.8, window=0).encode(pair())
    coded = laconic.codec("mustafar", bits=3.4, kept_bits=8, window=0).encode(pair())
    assert len(coded) < 0.75 * len(exact)
    assert error(pair(), laconic.decode(coded)) < 1.01 * error(pair(), laconic.decode(exact))


def test_through_a_model_and_settings() -> None:
    model = llama()
    kl = [divergence(model, cache(model, recipe="mustafar", bits=b)) for b in (4.0, 9.0)]
    assert kl[1] < 0.5 * kl[0]
    for bits in (1.0, 17.5):
        with pytest.raises(laconic.BadConfig):
            mustafar().keys(bits)
    with pytest.raises(laconic.BadConfig):
        mustafar(kept_bits=5)
