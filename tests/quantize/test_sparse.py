from __future__ import annotations

import numpy as np
import pytest
import torch

from laconic.core.errors import BadConfig, CorruptStream
from laconic.quantize.sparse import SparseLevels, exponential_bounds


@pytest.mark.parametrize("levels", [2, 3, 5, 8])
def test_cells_are_the_lloyd_max_quantizer_of_an_exponential(levels: int) -> None:
    """Every bound is half-way between the centroids on its sides; centroids by integration."""
    edges = [0.0, *exponential_bounds(levels), 60.0]
    x = np.linspace(0, 60, 4_000_001)
    p = np.exp(-x)
    centroids = []
    for low, high in zip(edges, edges[1:], strict=False):
        inside = (x >= low) & (x < high)
        centroids.append((x[inside] * p[inside]).sum() / p[inside].sum())
    middles = [(a + b) / 2 for a, b in zip(centroids, centroids[1:], strict=False)]
    np.testing.assert_allclose(edges[1:-1], middles, atol=2e-4)


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_it_contracts_exactly(levels: int) -> None:
    """‖x − x̂‖² = ‖x‖² − ‖x̂‖², at most (1 − fraction) ‖x‖² for one level of equal values, far less for heavy tails."""
    x = torch.distributions.StudentT(3.0).sample((4000,)).float()
    stage = SparseLevels(0.05, levels)
    y, side = stage.encode(x)
    back = stage.decode(y, side)
    assert int((back != 0).sum()) == 200
    lost = float((x - back).square().sum())
    assert lost == pytest.approx(float(x.square().sum() - back.square().sum()), rel=1e-4)
    assert lost < 0.9 * float(x.square().sum())


def test_more_levels_lose_less() -> None:
    x = torch.distributions.StudentT(3.0).sample((20000,)).float()
    lost = []
    for levels in (1, 2, 4, 8):
        stage = SparseLevels(0.02, levels)
        lost.append(float((x - stage.decode(*stage.encode(x))).square().sum()))
    assert lost == sorted(lost, reverse=True)


def test_settings_and_lies_are_refused() -> None:
    for bad in ({"fraction": 0.0}, {"fraction": 1.5}, {"levels": 0}, {"levels": 9}):
        with pytest.raises(BadConfig):
            SparseLevels(**bad)
    stage = SparseLevels(0.1, 2)
    y, side = stage.encode(torch.randn(20, 30))
    for change in (
        {"head": np.array([60], np.uint8)},
        {"head": np.array([0, 20, 30], np.uint8)},
        {"head": np.array([60, 20, 31], np.uint8)},
        {"magnitudes": np.array([np.nan, 1], np.float32)},
        {"magnitudes": np.array([-1, 1], np.float32)},
        {"magnitudes": np.ones(3, np.float32)},
    ):
        try:
            back = stage.decode(y, {**side, **change})
        except CorruptStream:
            continue
        assert back.shape == (20, 31), "the only lie that cannot be told from the truth here"
