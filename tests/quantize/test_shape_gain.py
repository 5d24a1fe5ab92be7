from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic import BadConfig, BadInput, CorruptStream, NotFitted
from laconic.core.stage import Symbols
from laconic.kernels.pyramid import counts
from laconic.quantize.pyramid import Pyramid
from laconic.quantize.shape_gain import ShapeGain, ShapeGainCode


def sphere(rows: int = 256, n: int = 256, seed: int = 0) -> torch.Tensor:
    x = torch.randn(rows, n, generator=torch.Generator().manual_seed(seed))
    return x / x.square().mean(1, keepdim=True).sqrt()


def error(book: ShapeGain, x: torch.Tensor) -> float:
    return float((book.lookup(book.nearest(x)) - x).square().mean())


def test_gains_are_quantiles_of_the_groups_lengths() -> None:
    """On Gaussian rows every gain is met about equally often: the law is the right one."""
    x = sphere(2000)
    book = ShapeGain(16, 40, 3).fit(x)
    lengths = x.reshape(-1, 16).norm(dim=1).numpy()
    want = np.quantile(lengths, (np.arange(8) + 0.5) / 8)
    np.testing.assert_allclose(book.gains, want, rtol=0.01)


@pytest.mark.parametrize(
    ("length", "pulses", "gain_bits", "lloyd_max"), [(16, 10, 3, 0.1175), (16, 23, 3, 0.03454), (16, 48, 4, 0.009501)]
)
def test_below_the_best_scalar_at_the_same_whole_rate(
    length: int, pulses: int, gain_bits: int, lloyd_max: float
) -> None:
    bits = ((counts(length, pulses)[-1][-1] - 1).bit_length() + gain_bits) / length
    x = sphere()
    assert bits <= round(bits) and round(bits) - bits < 0.07
    assert error(ShapeGain(length, pulses, gain_bits).fit(x), x) < 0.97 * lloyd_max


def test_the_gain_is_worth_its_bits() -> None:
    """Against the shape alone, its gain being the row's: at 3 bits a value both."""
    x = sphere()
    shape = Pyramid(16, 28)
    alone = float((shape.lookup(shape.nearest(x)) - x).square().mean())
    assert error(ShapeGain(16, 23, 3).fit(x), x) < 0.7 * alone


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 24), st.integers(1, 30), st.integers(1, 8), st.integers(0, 9), st.integers(0, 99))
def test_code_is_exact(length: int, pulses: int, gain_bits: int, n_groups: int, seed: int) -> None:
    """Numbers beyond machine words included."""
    x = sphere(n_groups, 2 * length, seed) if n_groups else torch.zeros(0, 2 * length)
    book = ShapeGain(length, pulses, gain_bits, 2 * length)
    symbols = Symbols(book.nearest(x).numpy().astype(np.uint16), book.alphabet)
    code = ShapeGainCode(length, pulses, gain_bits)
    data, side = code.encode(symbols)
    group_bits = (counts(length, pulses)[-1][-1] - 1).bit_length()
    assert len(data) == -(-2 * n_groups * group_bits // 8) - (-2 * n_groups * gain_bits // 8)
    back = code.decode(data, side)
    assert back.alphabet == symbols.alphabet and np.array_equal(back.index, symbols.index)


def test_zeros_stay_small() -> None:
    x = torch.zeros(4, 32)
    book = ShapeGain(16, 10, 8).fit(sphere(4, 32))
    assert float(book.lookup(book.nearest(x)).square().mean()) <= book.gains[0] ** 2 / 16 + 1e-6


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(BadConfig):
        ShapeGain(16, 10, 9)
    with pytest.raises(BadInput, match="groups of 16"):
        ShapeGain(16, 10, 3).fit(torch.ones(4, 40))
    with pytest.raises(NotFitted):
        ShapeGain(16, 10, 3).nearest(torch.ones(4, 32))
    book = ShapeGain(16, 10, 3).fit(sphere(4, 32))
    with pytest.raises(CorruptStream, match="add up"):
        book.lookup(torch.zeros(1, 16, dtype=torch.int64))
    with pytest.raises(BadConfig, match="rows of 8"):
        ShapeGain(16, 10, 3, row_length=8)
    code = ShapeGainCode(16, 10, 3)
    data, side = code.encode(Symbols(book.nearest(sphere(4, 32)).numpy().astype(np.uint16), book.alphabet))
    for bad in (data[:-1], data + b"\0", b""):
        with pytest.raises(CorruptStream):
            code.decode(bad, side)
