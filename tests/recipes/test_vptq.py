from __future__ import annotations

import numpy as np
import pytest

import laconic
from laconic import Stats

from .layers import Loss, layer_loss, real_layers


def equivalent(loss: Loss, bits: float = 2.0) -> float:
    """The error that the codec would have at `bits`, a bit being a factor of 4."""
    return loss.error * 4.0 ** (loss.bits - bits)


def test_beats_gptq_at_two_bits_where_the_matrix_affords_a_codebook() -> None:
    vptq, gptq = laconic.codec("vptq").stage, laconic.codec("gptq", bits=2, group=0).stage
    wide, square = [], []
    for layer in real_layers():
        ratio = equivalent(layer_loss(vptq, layer)) / equivalent(layer_loss(gptq, layer))
        (wide if layer.weight.numel() > 1 << 16 else square).append(ratio)
    assert np.exp(np.mean(np.log(wide))) < 0.85
    assert 0.8 < np.exp(np.mean(np.log(square))) < 1.15, "not reproduced with 16 points: the card says so"


def test_feedback_and_the_hessians_weights_both_help() -> None:
    layer, stage = real_layers()[4], laconic.codec("vptq").stage
    full = layer_loss(stage, layer)
    plain = layer_loss(stage, layer, Stats())
    weighted = layer_loss(stage, layer, Stats(importance=layer.hessian.diagonal()))
    assert full.error < 0.5 * weighted.error
    assert weighted.error < plain.error


def test_tables_are_counted() -> None:
    layer = real_layers()[3]
    packet = laconic.codec("vptq").fit(layer.weight, Stats(hessian=layer.hessian)).encode(layer.weight)
    by_role = {k: 8 * v / layer.weight.numel() for k, v in laconic.info(packet).ledger.by_role().items()}
    assert by_role["codes"] == pytest.approx(2.0, abs=0.01)
    assert by_role["codebooks"] == pytest.approx(16 * 4 * 256 / layer.weight.numel(), abs=1e-3)


def test_the_residual_stage_reaches_rates_that_one_table_does_not_afford() -> None:
    layer = real_layers()[3]
    one, two = (layer_loss(laconic.codec("vptq", bits=4.0, stages=k).stage, layer) for k in (1, 2))
    assert two.error < 2 * one.error and two.bits < 4.3
