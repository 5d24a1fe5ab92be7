from __future__ import annotations

import numpy as np
import pytest
import torch

from laconic.core.errors import CorruptStream
from laconic.core.stage import Symbols
from laconic.quantize.sketch import SignSketch


def test_inner_products_have_no_bias_over_seeds() -> None:
    g = torch.Generator().manual_seed(0)
    r, y = torch.randn(1, 32, generator=g) * 7, torch.randn(32, generator=g)
    estimates = [float(SignSketch(seed).decode(*SignSketch(seed).encode(r)) @ y) for seed in range(1500)]
    spread = np.std(estimates) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates) - float(r[0] @ y)) < 4 * spread + 1e-2
    assert np.std(estimates) < 1.3 * float(r.norm() * y.norm()) / np.sqrt(32) * np.sqrt(np.pi / 2)


def test_zero_rows_and_lies() -> None:
    x = torch.zeros(3, 8)
    y, side = SignSketch().encode(x)
    assert torch.equal(SignSketch().decode(y, side), x)
    with pytest.raises(CorruptStream):
        SignSketch().decode(Symbols(y.index[:2], 2), side)
    with pytest.raises(CorruptStream):
        SignSketch().decode(y, {**side, "norms": np.full(3, np.inf, np.float16)})
