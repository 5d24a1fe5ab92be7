from __future__ import annotations

import numpy as np
import pytest
import torch

from laconic.core.errors import BadConfig, BadInput, CorruptStream
from laconic.quantize.lowrank import LowRankCode


def test_what_has_low_rank_comes_back() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 96, 4, generator=g) @ torch.randn(3, 4, 128, generator=g)
    stage = LowRankCode(16 * 4 * (96 + 128) / (96 * 128) + 1e-6)
    assert stage.rank(96, 128) == 4
    y, side = stage.encode(x)
    assert len(y) == 2 * 3 * 4 * (96 + 128)
    assert float((x - stage.decode(y, side)).norm() / x.norm()) < 2e-3
    assert stage.encode(x.clone())[0] == y


def test_rank_from_the_rate() -> None:
    assert LowRankCode(0.5).rank(736, 128) == 3 and LowRankCode(0.5).rank(64, 128) == 1, (
        "short matrices have rank 1 at the least"
    )
    x = torch.randn(8, 4)
    assert LowRankCode(16.0).decode(*LowRankCode(16.0).encode(x)).shape == x.shape


def test_lies_and_settings() -> None:
    stage = LowRankCode()
    y, side = stage.encode(torch.randn(2, 64, 32))
    for bad in (
        {"shape": side["shape"] * 2},
        {"shape": np.array([1 << 40, 2, 64, 32])},
        {"shape": side["shape"] * 0},
        {"shape": side["shape"][:2]},
        {"exponents": np.array([999, 0], np.int16)},
        {"exponents": np.array([0], np.int16)},
    ):
        with pytest.raises(CorruptStream):
            stage.decode(y, {**side, **bad})
    with pytest.raises(BadInput):
        stage.encode(torch.ones(4))
    with pytest.raises(BadConfig):
        LowRankCode(0.0)
