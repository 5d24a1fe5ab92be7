from __future__ import annotations

import math

import pytest
import torch

import laconic
from laconic.core.combine import chain
from laconic.recipes.gradients.ef_topk import ef_topk

G = torch.Generator().manual_seed(0)


def gradients(steps: int, shape: tuple[int, ...] = (2000,)) -> torch.Tensor:
    """A direction that stays, and noise."""
    return torch.randn(shape, generator=G) + torch.randn(steps, *shape, generator=G)


def test_sums_of_decoded_follow_sums_of_gradients() -> None:
    """Stich et al. 2018: the memory is bounded, so what is owed does not grow with the steps."""
    g = gradients(400)
    back = laconic.decode(laconic.codec("ef-topk", fraction=0.05).encode(g))
    owed = (g.cumsum(0) - back.cumsum(0)).norm(dim=1)
    assert float(owed[-100:].mean()) < 1.3 * float(owed[100:200].mean())
    relative = owed / g.cumsum(0).norm(dim=1)
    assert float(relative[-1]) < 0.07 < 0.8 < float(relative[0])


def test_without_memory_they_do_not() -> None:
    g = gradients(200)
    with_memory = laconic.codec("ef-topk", fraction=0.05)
    without = laconic.Codec(chain(*ef_topk(0.05).at(0.05).stages))
    drift = [
        float((g.sum(0) - d).norm() / g.sum(0).norm())
        for d in (
            laconic.decode(with_memory.encode(g)).sum(0),
            sum(laconic.decode(without.encode(step)) for step in g),
        )
    ]
    assert drift[0] < 0.15 < 0.4 < drift[1]


@pytest.mark.parametrize("fraction", [0.001, 0.01, 0.1])
def test_rate_is_near_the_entropy_of_the_positions(fraction: float) -> None:
    n, steps = 50000, 4
    g = torch.randn(steps, n, generator=G)
    packet = laconic.codec("ef-topk", fraction=fraction).encode(g)
    k = math.ceil(fraction * n)
    positions = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)
    assert 8 * len(packet) < steps * (1.06 * positions + 16.5 * k + 8 * 120) + 8 * 600


def test_what_is_kept_is_kept_to_half_precision() -> None:
    g = torch.randn(1, 3, 500, generator=G)
    back = laconic.decode(laconic.codec("ef-topk", fraction=0.1).encode(g))
    kept = back != 0
    assert int(kept.sum()) == 150
    assert float(g[kept].abs().min()) >= float(g[~kept].abs().max())
    torch.testing.assert_close(back[kept], g[kept], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 3, 11), (5, 2, 3, 4)])
def test_small_shapes(shape: tuple[int, ...]) -> None:
    g = torch.randn(shape, generator=G)
    back = laconic.decode(laconic.codec("ef-topk", fraction=1.0).encode(g))
    torch.testing.assert_close(back, g, rtol=1e-3, atol=2e-3)
