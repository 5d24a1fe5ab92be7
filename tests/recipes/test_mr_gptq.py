from __future__ import annotations

import math

import pytest
import torch

import laconic
from laconic import Stats
from laconic.core.stage import Stage

from .layers import layer_loss, real_layers


def stage(format: str, rotation: int) -> Stage:
    return laconic.codec("mr-gptq", format=format, rotation=rotation).stage


def laplace_error(format: str, rotation: int) -> float:
    u = torch.rand(2, 256, 1024, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.log(u[0] / u[1]).float()
    back = laconic.decode(laconic.Codec(stage(format, rotation)).encode(x))
    return float((back - x).square().sum() / x.square().sum())


def trained(format: str, rotation: int, stats: Stats | None = None) -> float:
    found = [layer_loss(stage(format, rotation), layer, stats).error for layer in real_layers()]
    return math.exp(sum(map(math.log, found)) / len(found))


def test_rotation_helps_large_groups_with_coarse_scales_and_hurts_small_ones() -> None:
    """MR-GPTQ, analysis of the formats: MXFP4 gains from a rotation where values have heavy tails, NVFP4 loses."""
    assert laplace_error("mxfp4", 32) == pytest.approx(0.0124, abs=2e-4)
    assert laplace_error("mxfp4", 32) < 0.85 * laplace_error("mxfp4", 0)
    assert 1.0 < laplace_error("nvfp4", 16) / laplace_error("nvfp4", 0) < 1.05


@pytest.mark.parametrize(("format", "rotation"), [("mxfp4", 32), ("nvfp4", 16)])
def test_feedback_beats_nearest_on_trained_layers(format: str, rotation: int) -> None:
    assert trained(format, rotation) < 0.33 * trained(format, rotation, Stats())


def test_on_light_tails_the_rotation_changes_little() -> None:
    """As the card says: the trained layers here have no heavy tails."""
    assert 0.94 < trained("mxfp4", 32) / trained("mxfp4", 0) < 1.02
    assert trained("nvfp4", 16) < 0.8 * trained("mxfp4", 32), "for a quarter bit more"


def test_rates() -> None:
    w = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    for format, scale_bits in (("mxfp4", 8 / 32), ("nvfp4", 8 / 16)):
        by_role = laconic.info(laconic.codec("mr-gptq", format=format).encode(w)).ledger.by_role()
        assert by_role["codes"] * 8 == 4 * w.numel()
        assert 0 <= by_role["scales"] * 8 - scale_bits * w.numel() <= 32


def test_other_formats_are_refused_by_name() -> None:
    with pytest.raises(laconic.BadConfig, match="mxfp4"):
        laconic.codec("mr-gptq", format="mxfp5")
