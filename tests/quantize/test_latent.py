from __future__ import annotations

import numpy as np
import pytest
import torch

from laconic import Codec, decode
from laconic.core.combine import chain
from laconic.core.errors import BadConfig, BadInput, CorruptStream
from laconic.entropy.coders import Adaptive, Pack
from laconic.quantize.base import Quantizer
from laconic.quantize.latent import FSQ, LFQ

Z = 2 * torch.randn(4000, 8, generator=torch.Generator().manual_seed(0))


def test_every_level_is_used_and_the_bound_is_the_papers() -> None:
    """Mentzer et al. 2023, appendix A.1: L levels for odd and even L, none outside."""
    book = FSQ((8, 5, 6, 3))
    y = book.bound(10 * Z)
    index = book.nearest(y)
    for k, n in enumerate((8, 5, 6, 3) * 2):
        assert sorted(index[:, k].unique().tolist()) == list(range(n))
    levels = book.lookup(index)
    assert levels.min() == -1.0 and levels.max() == 1.0
    torch.testing.assert_close(book.lookup(book.nearest(levels)), levels)
    assert float((levels - y).abs().max()) <= 0.5 * 1.01, "half a step of 3 levels"


def test_rounding_is_to_the_nearest_level() -> None:
    book = FSQ((5, 4))
    grids = [np.arange(-2, 3) / 2, np.arange(-2, 2) / 2]
    x = torch.linspace(-1.3, 1.3, 262).reshape(-1, 2)
    for k, grid in enumerate(grids):
        expected = np.abs(x[:, k : k + 1].numpy() - grid).min(1)
        np.testing.assert_allclose((x - book.lookup(book.nearest(x))).abs()[:, k].numpy(), expected, atol=1e-6)


def test_bound_is_monotone_and_differentiable() -> None:
    z = torch.linspace(-6, 6, 400)[:, None].repeat(1, 4).requires_grad_()
    y = FSQ().bound(z)
    assert (y[1:] > y[:-1] - 1e-6).all()
    y.sum().backward()
    assert (z.grad > 0).any() and torch.isfinite(z.grad).all()


def test_dimensions_stay_apart_however_many() -> None:
    book = FSQ((8,) * 64)
    x = book.bound(torch.randn(20, 64, generator=torch.Generator().manual_seed(1)))
    assert book.alphabet == 8 and book.nearest(x).shape == (20, 64), "8^64 is no integer of any machine"
    for coder, most in ((Pack(), 3.0), (Adaptive(), 3.2)):
        packet = Codec(chain(Quantizer(book), coder)).encode(x)
        assert torch.equal(decode(packet), book.lookup(book.nearest(x)))
        assert 8 * (len(packet) - 700) / x.numel() < most


def test_lfq_is_the_sign() -> None:
    book = LFQ(0.5)
    back = book.lookup(book.nearest(Z))
    assert torch.equal(back, torch.where(Z > 0, 0.5, -0.5)) and book.alphabet == 2
    best = LFQ((2 / torch.pi) ** 0.5)
    x = torch.randn(1 << 16, generator=torch.Generator().manual_seed(2))
    assert float((best.lookup(best.nearest(x)) - x).square().mean()) == pytest.approx(0.3634, rel=0.02)


def test_refusals() -> None:
    with pytest.raises(BadConfig, match="levels"):
        FSQ(())
    with pytest.raises(BadConfig, match="levels"):
        FSQ((8, 1))
    with pytest.raises(BadConfig, match="magnitude"):
        LFQ(0.0)
    with pytest.raises(BadInput, match="multiple"):
        FSQ().nearest(Z[:, :6])
    for bad in ([[0, 5, 0, 0]], [[8, 0, 0, 0]], [[-1, 0, 0, 0]], [[0, 0, 0]]):
        with pytest.raises(CorruptStream):
            FSQ().lookup(torch.tensor(bad))
    with pytest.raises(CorruptStream):
        LFQ().lookup(torch.tensor([2]))
