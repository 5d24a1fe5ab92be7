from __future__ import annotations

import torch

from laconic import Stats
from laconic.recipes.weights.lord import lord
from laconic.recipes.weights.saes_svd import saes_svd

from .drifting import walked
from .layers import real_layers


def test_without_beta_it_is_whitened_low_rank() -> None:
    layer = real_layers()[0]
    stats = Stats(hessian=layer.hessian, drift=layer.hessian * 0.1)
    fitted = [c.fit(layer.weight, stats) for c in (saes_svd(beta=0.0).codec, lord().codec)]
    decoded = [c.decode(*c.encode(layer.weight)) for c in fitted]
    assert torch.equal(*decoded)


def test_less_error_is_left_against_the_original_outputs_and_more_so_with_depth() -> None:
    """Three blocks of the bundled model, each compressed on what the ones before give it."""
    losses = {beta: walked(lambda name, b=beta: saes_svd(10.0, b).codec, True, 3)[1] for beta in (0.0, 0.5, None)}
    local, half, chosen = losses[0.0], losses[0.5], losses[None]
    assert abs(half[0] / local[0] - 1) < 0.01, "the first block's inputs are the original's, all but within it"
    assert chosen[2] < 0.9 * local[2]
    assert half[2] < 0.8 * local[2]
    assert half[2] / local[2] < half[0] / local[0]


def test_it_asks_for_the_drift() -> None:
    assert saes_svd().statistics.drift
