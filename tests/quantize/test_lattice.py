from __future__ import annotations

import pytest
import torch

from laconic import Codec, Stats, decode
from laconic.core.combine import chain
from laconic.core.errors import BadConfig, BadInput, CorruptStream, NotFitted
from laconic.entropy.coders import Pack
from laconic.quantize.base import Codebook, Quantizer
from laconic.quantize.lattice import E8, E8Ball
from laconic.quantize.rounding import Feedback
from laconic.quantize.scales import Along, Float, GroupScale, Rms

GAUSS = torch.randn(2048, 64, generator=torch.Generator().manual_seed(0))
ROWS = GroupScale(Along(), Rms(), Float())


def mse(book: Codebook) -> float:
    return float((book.lookup(book.nearest(GAUSS)) - GAUSS).square().mean())


@pytest.mark.parametrize(
    ("book", "error"), [(E8(levels=4), 0.1045), (E8(levels=8), 0.0292), (E8(levels=16), 0.0082), (E8Ball(), 0.0918)]
)
def test_gaussian_error_is_what_the_card_says(book: Codebook, error: float) -> None:
    fitted = book.fit(GAUSS)
    assert mse(fitted) == pytest.approx(error, rel=0.02)
    index = fitted.nearest(GAUSS)
    assert index.shape == (2048, 64 // fitted.dim) and 0 <= int(index.min()) <= int(index.max()) < fitted.alphabet


@pytest.mark.parametrize("book", [E8(levels=5), E8Ball()])
def test_points_of_the_code_stay_and_the_step_scales(book: Codebook) -> None:
    a, b = book.replace(step=0.5), book.replace(step=2.0)
    index = a.nearest(GAUSS)
    assert torch.equal(a.nearest(a.lookup(index)), index)
    assert torch.equal(b.nearest(4 * GAUSS), index) and torch.equal(b.lookup(index), 4 * a.lookup(index))
    assert book.replace(step=0.7).fit(GAUSS).step == 0.7, "a given step is kept"
    low, high = a.span()
    assert low <= float(a.lookup(index).min()) and float(a.lookup(index).max()) <= high


def test_importance_chooses_the_step() -> None:
    x = GAUSS.clone()
    x[:, 32:] *= 8
    heavy = torch.ones(64)
    heavy[:32] = 1000
    assert E8().fit(x, heavy).step < E8().fit(x).step


@pytest.mark.parametrize("book", [E8(levels=3), E8(), E8Ball()])
def test_in_a_codec(book: Codebook) -> None:
    x = 7 * GAUSS.reshape(32, 64, 64)
    codec = Codec(chain(Quantizer(book, ROWS), Pack())).fit(x)
    packet = codec.encode(x)
    assert torch.equal(decode(packet), codec.decode(packet))
    assert float((decode(packet) - x).square().mean()) / 49 < 0.2
    assert 8 * len(packet) / x.numel() < {3: 1.595, 4: 2.0, 1 << 16: 2.0}[book.alphabet] + 16 / 64 + 0.02


@pytest.mark.parametrize("book", [E8(), E8Ball()])
def test_error_feedback_goes_by_blocks_of_eight(book: Codebook) -> None:
    inputs = torch.randn(4096, 64, generator=torch.Generator().manual_seed(1)).cumsum(1)
    h = inputs.T @ inputs / len(inputs)
    losses = []
    for rounding in (Feedback(), Feedback(order="descending")):
        stage = Quantizer(book, ROWS, rounding).fit(GAUSS, Stats(hessian=h))
        e = stage.decode(*stage.encode(GAUSS)) - GAUSS
        losses.append(float((e @ h * e).sum()))
    stage = Quantizer(book, ROWS).fit(GAUSS)
    e = stage.decode(*stage.encode(GAUSS)) - GAUSS
    assert max(losses) < 0.5 * float((e @ h * e).sum())


def test_zeros_extremes_and_refusals() -> None:
    for book in (E8(), E8Ball()):
        for size in (0.0, 1e-30, 1e5):
            fitted = book.fit(GAUSS * size)
            assert torch.isfinite(fitted.lookup(fitted.nearest(GAUSS))).all()
        with pytest.raises(BadInput, match="scale"):
            book.fit(GAUSS * 1e30)
        with pytest.raises(BadConfig, match="divide"):
            book.replace(step=1.0).nearest(GAUSS[:, :12])
        with pytest.raises(NotFitted):
            book.nearest(GAUSS)
        with pytest.raises(BadConfig, match="step"):
            book.replace(step=0.0)
    with pytest.raises(BadConfig, match="levels"):
        E8(levels=1)
    with pytest.raises(CorruptStream):
        E8(step=1.0).lookup(torch.full((1, 8), 4))
    with pytest.raises(CorruptStream):
        E8(step=1.0).lookup(torch.zeros(1, 7, dtype=torch.int64))
    with pytest.raises(CorruptStream):
        E8Ball(step=1.0).lookup(torch.tensor([1 << 16]))
