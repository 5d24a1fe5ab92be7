from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from laconic import Codec, decode, info
from laconic.core.combine import chain
from laconic.core.errors import BadConfig, BadInput, CorruptStream
from laconic.core.stage import Symbols
from laconic.entropy.coders import Adaptive
from laconic.quantize.base import Quantizer
from laconic.quantize.pyramid import Pyramid, PyramidCode
from laconic.quantize.scales import Along, Float, GroupScale, Rms

GAUSS = torch.randn(2048, 64, generator=torch.Generator().manual_seed(0))


def codec(length: int = 16, pulses: int = 12) -> Codec:
    scale = GroupScale(Along(length), Rms(), Float())
    return Codec(chain(Quantizer(Pyramid(length, pulses), scale), PyramidCode(length, pulses)))


def test_direction_at_two_bits() -> None:
    """Published probe: .0825 at about 2 bits with exact gains, against .1175 of Lloyd–Max."""
    d = Pyramid().lookup(Pyramid().nearest(GAUSS)).reshape(-1, 16)
    torch.testing.assert_close(d.square().mean(1), torch.ones(len(d)))
    x = GAUSS.reshape(-1, 16)
    gain = (x * d).mean(1, keepdim=True)
    assert float((x - gain * d).square().mean()) == pytest.approx(0.0828, rel=0.01)
    assert PyramidCode().group_bits == 32


@pytest.mark.parametrize(("length", "pulses"), [(16, 12), (8, 3), (32, 24), (64, 40), (2, 1)])
def test_rate_is_the_enumeration_rounded_up(length: int, pulses: int) -> None:
    x = GAUSS[:40]
    packet = codec(length, pulses).encode(x)
    assert decode(packet).shape == x.shape
    ways = sum(2**i * math.comb(length, i) * math.comb(pulses - 1, i - 1) for i in range(1, min(length, pulses) + 1))
    roles = info(packet).ledger.by_role()
    assert roles["codes"] == -(-(x.numel() // length) * math.ceil(math.log2(ways)) // 8)
    assert roles["scales"] == pytest.approx(2 * x.numel() // length, abs=4), "a float16 gain a group"


def test_symbols_may_be_entropy_coded_instead() -> None:
    stage = Quantizer(Pyramid(), GroupScale(Along(16), Rms(), Float()))
    packet = Codec(chain(stage, Adaptive())).encode(GAUSS)
    assert torch.equal(decode(packet), decode(codec().encode(GAUSS)))


@pytest.mark.parametrize(("length", "pulses"), [(16, 12), (40, 40)])
def test_code_inverts_and_refuses_lies(length: int, pulses: int) -> None:
    book, code = Pyramid(length, pulses), PyramidCode(length, pulses)
    index = book.nearest(torch.randn(3, 5, 2 * length, generator=torch.Generator().manual_seed(1)))
    symbols = Symbols(index.numpy().astype(np.uint8), book.alphabet)
    data, side = code.encode(symbols)
    back = code.decode(data, side)
    assert np.array_equal(back.index, symbols.index) and back.alphabet == symbols.alphabet
    shape = side["shape"]
    lies = [
        (data + b"\0", shape),
        (data[:-1], shape),
        (b"\xff" * len(data), shape),
        (data, shape * 0),
        (data, shape + np.uint64(1)),
        (data, shape[None]),
        (data, np.array([1 << 60, 1 << 60, length], np.uint64)),
        (data, shape[:0]),
    ]
    for lie, said in lies:
        with pytest.raises(CorruptStream):
            code.decode(lie, {"shape": said})


def test_lookup_refuses_points_off_the_pyramid() -> None:
    book = Pyramid(4, 2)
    assert torch.isfinite(book.lookup(torch.tensor([[3, 1, 2, 2]]))).all()
    for bad in ([[2, 2, 2, 2]], [[4, 4, 2, 2]], [[5, 2, 2, 2]], [[2, 2, 0]], [[-1, 2, 2, 3]]):
        with pytest.raises(CorruptStream):
            book.lookup(torch.tensor(bad))


def test_settings_and_inputs() -> None:
    for make in (lambda: Pyramid(1), lambda: Pyramid(16, 0), lambda: PyramidCode(300), lambda: PyramidCode(16, 128)):
        with pytest.raises(BadConfig, match="pulses"):
            make()
    with pytest.raises(BadConfig, match="divide"):
        Pyramid().nearest(GAUSS[:, :20])
    with pytest.raises(BadInput, match="alphabet"):
        PyramidCode().encode(Symbols(np.zeros((2, 16), np.uint8), 3))
    zero = Pyramid().lookup(Pyramid().nearest(torch.zeros(2, 16)))
    assert torch.isfinite(zero).all()
