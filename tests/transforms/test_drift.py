"""What becomes of the drift of inputs behind transforms: an error in W (x_f − x) is the same before and behind them."""

from __future__ import annotations

import pytest
import torch

from laconic.core.stage import Stage, Stats
from laconic.transforms.klt import LowRank
from laconic.transforms.reorder import Permutation
from laconic.transforms.rotation import Hadamard, RandomRotation
from laconic.transforms.scaling import Scaling


@pytest.mark.parametrize(
    "stage", [Hadamard(3), RandomRotation(1), Permutation(), Scaling(), LowRank(12)], ids=lambda s: type(s).__name__
)
def test_products_with_weights_stay(stage: Stage) -> None:
    g = torch.Generator().manual_seed(0)
    w, d = torch.randn(20, 12, generator=g), torch.randn(12, 12, generator=g)
    a = torch.randn(50, 12, generator=g)
    stats = Stats(hessian=a.T @ a, drift=d)
    fitted = stage.fit(w, stats)
    y, _ = fitted.encode(w)
    behind = fitted.push(stats)
    torch.testing.assert_close(y @ behind.drift @ y.T, w @ d @ w.T, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(y @ behind.hessian @ y.T, w @ stats.hessian @ w.T, rtol=1e-3, atol=1e-2)
