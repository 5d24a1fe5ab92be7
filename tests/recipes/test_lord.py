from __future__ import annotations

import numpy as np
import pytest

import laconic
from laconic import Stats
from laconic.core.combine import chain
from laconic.core.stage import Stage
from laconic.recipes.weights.lord import lord
from laconic.transforms.klt import LowRank

from .layers import divergence, layer_loss, real_layers


def low_rank(stage: Stage, shape: tuple[int, ...], metric: str) -> Stage:
    """The same rank and precision by another decomposition."""
    return chain(LowRank(stage.rank(*shape), metric), stage.left)


def test_outputs_components_equal_whitening_beat_scaling_beat_plain() -> None:
    """AFM ≡ SVD-LLM < ASVD < SVD, at the same bits."""
    stage, scaled, plain = lord(bits=10.0).codec, [], []
    for layer in real_layers():
        mine = layer_loss(stage, layer)
        others = {m: layer_loss(low_rank(stage, layer.weight.shape, m), layer) for m in ("whitened", "scaled")}
        svd = layer_loss(stage, layer, Stats())
        assert mine.bits == pytest.approx(svd.bits, abs=0.01)
        assert mine.error == pytest.approx(others["whitened"].error, rel=0.01)
        assert mine.error < others["scaled"].error < svd.error
        scaled.append(np.log(mine.error / others["scaled"].error))
        plain.append(np.log(mine.error / svd.error))
    assert np.exp(np.mean(scaled)) < 0.55
    assert np.exp(np.mean(plain)) < 0.4


def test_the_model_keeps_more_of_itself() -> None:
    stage, layers = lord(bits=12.0).codec, real_layers()
    outputs = divergence({x.name: layer_loss(stage, x).weight for x in layers})
    plain = divergence({x.name: layer_loss(stage, x, Stats()).weight for x in layers})
    assert outputs < 0.85 * plain


def test_quantized_factors_hold_more_rank_at_the_same_bits() -> None:
    layer = real_layers()[3]
    half, four = (layer_loss(lord(bits=2.0, factor_bits=b).codec, layer) for b in (16, 4))
    assert four.bits < 2.15 and four.error < 0.1 * half.error


def test_other_factors_are_refused() -> None:
    with pytest.raises(laconic.BadConfig, match="16, or 2 to 8"):
        lord(factor_bits=12)
