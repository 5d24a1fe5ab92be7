from __future__ import annotations

import numpy as np
import pytest
import torch

import laconic
from laconic.core.errors import CorruptStream
from laconic.quantize.base import Quantizer
from laconic.quantize.codebooks import Uniform
from laconic.quantize.kquant_signed import SignedBlock
from laconic.quantize.scales import AbsMax, Along, Float, GroupScale


def data(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) ** 3


def error(scale: object, x: torch.Tensor, levels: int = 8) -> float:
    stage = Quantizer(Uniform(levels, float(levels // 2)), scale)  # type: ignore[arg-type]
    back = stage.decode(*stage.encode(x))
    assert back.shape == x.shape
    return float((back - x).square().sum() / x.square().sum())


@pytest.mark.parametrize("n", [16, 100, 256, 300, 512])
def test_rows_of_any_length_beat_extremes_in_half_floats(n: int) -> None:
    x = data(40, n)
    assert error(SignedBlock(), x) < 0.75 * error(GroupScale(Along(16), AbsMax(), Float()), x)


def test_steps_of_either_sign_are_used() -> None:
    x = data(8, 256)
    side = SignedBlock().measure(x, Uniform(8, 4.0))
    step = SignedBlock().expand(side, (8, 256)).step
    assert (step < 0).any() and (step > 0).any()


def test_decoding_is_d_times_s_times_q() -> None:
    x = data(1, 256)
    scale, book = SignedBlock(), Uniform(8, 4.0)
    stage = Quantizer(book, scale)
    y, side = stage.encode(x)
    grid = scale.expand(side, (1, 256))
    d = side["d"].astype(np.float64)[0, 0] * 2.0 ** int(side["exponent"][0])
    s = grid.step.reshape(16, 16)[:, 0].double().numpy() / d
    np.testing.assert_allclose(s, np.rint(s), atol=1e-3)
    assert np.abs(s).max() <= 32
    want = d * np.rint(s).repeat(16) * (y.index[0].astype(np.float64) - 4)
    np.testing.assert_allclose(stage.decode(y, side)[0].numpy(), want, rtol=1e-5)


def test_damage_has_a_name() -> None:
    side = SignedBlock().measure(data(2, 256), Uniform(8, 4.0))
    for bad in (
        side | {"scale": side["scale"][:-1]},
        side | {"d": side["d"] * np.float16("nan")},
        side | {"d": side["d"][:1]},
    ):
        with pytest.raises(CorruptStream):
            SignedBlock().expand(bad, (2, 256))
    with pytest.raises(laconic.BadConfig):
        SignedBlock(bits=9)
