"""The entropy-coded trellis at one step for every array."""

from __future__ import annotations

import pytest
import torch

from laconic.core.errors import NotFitted
from laconic.quantize.fixed_step import FixedStep


def test_one_step_for_all() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(600, 8, generator=g) * torch.linspace(0.2, 2, 8)
    stage = FixedStep(bits=2.0, axes=(-1,), states=8).fit(x)
    sizes, errors = [], []
    for part in (x[:300], x[300:] * 2):
        data, side = stage.encode(part)
        sizes.append(8 * len(data) / part.numel())
        errors.append(float((stage.decode(data, side) - part).square().mean()))
    assert abs(sizes[0] - 2) < 0.5 and sizes[1] > sizes[0] + 0.5
    assert 0.8 < errors[1] / errors[0] < 1.6  # twice the values, about the same error
    with pytest.raises(NotFitted):
        FixedStep(bits=2.0).encode(x)
