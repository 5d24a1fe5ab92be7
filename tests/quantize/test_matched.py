from __future__ import annotations

import pytest
import torch

from laconic.core.errors import NotFitted
from laconic.quantize.base import Quantizer
from laconic.quantize.centred import CentredSign
from laconic.quantize.codebooks import KMeans, Uniform
from laconic.quantize.matched import Matched
from laconic.quantize.scales import Along, GroupScale


def test_levels_keep_mean_and_spread() -> None:
    """Centroids of a Gaussian at 2 bits have √(1 − .1175) of its deviation; matched ones all of it, for the error they cost."""
    x = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0)) * 2 + 1
    plain, matched = KMeans(4).fit(x), Matched(KMeans(4)).fit(x)
    a, b = (book.lookup(book.nearest(x)) for book in (plain, matched))
    assert float(a.std()) == pytest.approx(2 * (1 - 0.1175) ** 0.5, rel=0.01)
    assert float(b.std()) == pytest.approx(2, rel=0.005) and float(b.mean()) == pytest.approx(1, abs=0.01)
    assert float((x - a).square().mean()) < float((x - b).square().mean()) < 1.1 * float((x - a).square().mean())
    ladder = matched.ladder()
    assert torch.equal(
        torch.from_numpy(ladder.index)[torch.bucketize(x, torch.from_numpy(ladder.thresholds))], matched.nearest(x)
    )
    with pytest.raises(NotFitted):
        Matched().points()


def test_signs_around_the_mean() -> None:
    """A series that drifts: signs around 0 lose the square of the mean, signs around the mean a third of the variance."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(64, 32, generator=g) + 2 * torch.randn(64, 1, generator=g)
    stage = Quantizer(Uniform(2), GroupScale(Along(32), CentredSign()))
    centred = float((x - stage.decode(*stage.encode(x))).square().mean())
    around_zero = float((x - x.sign() * x.abs().mean(1, keepdim=True)).square().mean())
    assert centred == pytest.approx(1 - 2 / torch.pi, rel=0.1)
    assert centred < 0.6 * around_zero
