from __future__ import annotations

import pytest
import torch

import laconic
from laconic import Stats
from laconic.quantize.codebooks import Uniform
from laconic.quantize.dual import DualScale
from laconic.quantize.scales import AbsMax, Along, GroupScale

BOOK, SCALE = Uniform(4), GroupScale(Along(16), AbsMax())


def data() -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randn(40, 48, generator=g) * torch.exp(torch.randn(48, generator=g))


def plain_error(stage: DualScale, x: torch.Tensor) -> float:
    s = torch.from_numpy(stage.divisors())
    return float((stage._quantized(x / s, None) * s - x).square().sum())


def test_more_rounds_are_never_worse_and_help() -> None:
    x = data()
    errors = [plain_error(DualScale(BOOK, SCALE, r).fit(x), x) for r in (0, 1, 4, 15)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.85 * errors[0]


def test_absorbed_factors_keep_the_product() -> None:
    """x Wᵀ = (x · s)(W / s)ᵀ: the rows of the matrix before it can carry the factors."""
    x = data()
    stage = DualScale(BOOK, SCALE).fit(x)
    y, _ = stage.encode(x)
    up, inputs = torch.randn(48, 20, generator=torch.Generator().manual_seed(1)), torch.randn(7, 20)
    s = torch.from_numpy(stage.divisors())
    torch.testing.assert_close(inputs @ up.T @ x.T, inputs @ (up * s[:, None]).T @ y.T, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("importance", [None, torch.rand(48), torch.rand(40, 48)])
def test_weights_and_statistics_follow(importance: torch.Tensor | None) -> None:
    x = data()
    stats = Stats(hessian=torch.eye(48), importance=importance)
    stage = DualScale(BOOK, SCALE).fit(x, stats)
    s = torch.from_numpy(stage.divisors())
    assert torch.equal(stage.push(stats).hessian, torch.diag(s * s))
    torch.testing.assert_close(stage.decode(*stage.encode(x)), x)


def test_zeros_have_factors_of_one() -> None:
    assert (DualScale(BOOK, SCALE).fit(torch.zeros(4, 16)).divisors() == 1).all()
    with pytest.raises(laconic.NotFitted):
        DualScale(BOOK, SCALE).divisors()
