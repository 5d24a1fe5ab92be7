from __future__ import annotations

import pytest
import torch

import laconic
from laconic import Stats
from laconic.quantize.base import Nearest, Quantizer
from laconic.quantize.codebooks import Uniform
from laconic.quantize.reconstruct import Reconstruct
from laconic.quantize.scales import AbsMax, Along, GroupScale

W = torch.randn(24, 64, generator=torch.Generator().manual_seed(0))
X = torch.randn(256, 64, generator=torch.Generator().manual_seed(1)) @ (torch.eye(64) + 0.3)
H = X.T @ X / 256


def error(rounding: laconic.quantize.base.Rounding, hessian: torch.Tensor | None = H) -> float:
    stage = Quantizer(Uniform(7), GroupScale(Along(32), AbsMax()), rounding).fit(W, Stats(hessian=hessian))
    e = stage.decode(*stage.encode(W)) - W
    return float((e @ H * e).sum())


def test_outputs_come_nearer_than_by_nearest_and_more_steps_help() -> None:
    assert error(Reconstruct(100)) < 0.7 * error(Nearest())
    assert error(Reconstruct(100)) < error(Reconstruct(5)) < error(Nearest())


def test_no_row_is_worse_than_nearest() -> None:
    """The first step is nearest, and every row keeps its best."""
    assert error(Reconstruct(1, 10.0)) <= error(Nearest())


def test_without_statistics_it_is_nearest() -> None:
    assert error(Reconstruct(), None) == error(Nearest(), None)


@pytest.mark.parametrize("settings", [{"steps": 0}, {"rate": 0.0}, {"rate": 11.0}])
def test_settings_that_cannot_work_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(laconic.BadConfig):
        Reconstruct(**settings)  # type: ignore[arg-type]
