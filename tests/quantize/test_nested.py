from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from laconic.core.errors import BadConfig, BadInput, CorruptStream
from laconic.quantize.nested import NestedCodes, coarser, packed, unpacked


def x(n: int = 128) -> torch.Tensor:
    return torch.randn(2, n, 16, generator=torch.Generator().manual_seed(0)) + 3


def test_bit_planes() -> None:
    index = np.random.default_rng(0).integers(0, 32, 37).astype(np.uint8)
    assert len(packed(index, 5)) == 5 * 5
    assert np.array_equal(unpacked(packed(index, 5), 5, 37), index)
    assert np.array_equal(unpacked(coarser(packed(index, 5), 5, 2), 2, 37), index >> 3)


@pytest.mark.parametrize("by", ["channel", "token"])
def test_dropping_planes_is_coding_anew(by: str) -> None:
    """8 bits, then 4, then 2 are the bytes of 2 bits at once: nothing is rounded twice."""
    fine = NestedCodes((8,), 32, by, 8)
    payload, side = fine.encode(x(32))
    for bits in (4, 2):
        anew, same = replace(fine, steps=(bits,)).encode(x(32))
        assert coarser(payload, 8, bits) == anew and all(np.array_equal(same[k], side[k]) for k in side)
    assert coarser(coarser(payload, 8, 4), 4, 2) == coarser(payload, 8, 2)


def test_bits_by_age() -> None:
    stage = NestedCodes((8, 4, 2), 32, "channel")
    assert stage.widths(4) == [2, 2, 4, 8] and stage.widths(1) == [8]
    y, side = stage.encode(x())
    assert len(y) == 2 * 32 * 16 // 8 * (2 + 2 + 4 + 8)
    error = (x() - stage.decode(y, side)).square().mean((0, 2)).reshape(4, 32).mean(1)
    assert error[3] < error[2] / 100 and error[2] < error[1] / 8
    assert error[0] == pytest.approx(float(error[1]), rel=0.3)


def test_levels_lie_between_the_middles_of_cells_and_the_ends() -> None:
    """At one bit over [0, 1]: ¼ and ¾ are the middles, 0 and 1 the ends, ⅛ and ⅞ the levels."""
    ramp = torch.linspace(0, 1, 65)[:64, None] * torch.ones(64)
    ramp[-1] = 1.0
    stage = NestedCodes((1,), 64, "channel")
    back = stage.decode(*stage.encode(ramp))
    assert sorted(set(back.flatten().tolist())) == pytest.approx([1 / 8, 7 / 8])
    fine = NestedCodes((8,), 64, "channel")
    assert float((ramp - fine.decode(*fine.encode(ramp))).abs().max()) < 0.003


def test_lies_and_settings() -> None:
    stage = NestedCodes()
    y, side = stage.encode(x())
    for payload, bad in (
        (y[:-1], {}),
        (y + b"\0", {}),
        (y, {"outer": np.array([2, 100, 16])}),
        (y, {"outer": np.array([2, 1 << 40, 16])}),
        (y, {"low": side["low"][:1]}),
        (y, {"range": -side["range"]}),
        (y, {"exponents": np.array([0, 900], np.int16)}),
    ):
        with pytest.raises(CorruptStream):
            stage.decode(payload, {**side, **bad})
    with pytest.raises(BadInput, match="32"):
        stage.encode(x(100))
    for settings in ({"steps": ()}, {"steps": (2, 4)}, {"steps": (9,)}, {"segment": 0}, {"by": "head"}):
        with pytest.raises(BadConfig):
            NestedCodes(**settings)
