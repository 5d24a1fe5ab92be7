from __future__ import annotations

import numpy as np
import pytest
import torch

import laconic
from laconic.core.combine import chain
from laconic.core.stage import Stage
from laconic.entropy.coders import Pack
from laconic.quantize.codebooks import LloydMax
from laconic.transforms.rotation import Hadamard

from .layers import layer_loss, real_layers


def pvq(bits: float) -> Stage:
    return laconic.codec("pvq-llm", bits=bits).stage


def compared(bits: int, other: Stage) -> float:
    """PVQ's error over the other's at the same bits, geometric mean over the layers."""
    ratios = []
    for layer in real_layers():
        mine, its = layer_loss(pvq(bits), layer), layer_loss(other, layer)
        assert mine.bits < its.bits + 1e-3
        ratios.append(mine.error / its.error)
    return float(np.exp(np.mean(np.log(ratios))))


@pytest.mark.parametrize(("bits", "most"), [(2, 0.92), (4, 0.82)])
def test_beats_rotated_gptq_on_a_trained_model(bits: int, most: float) -> None:
    gptq = laconic.codec("gptq", bits=bits, group=0).stage
    assert compared(bits, chain(Hadamard(0), *gptq.stages)) < most


def test_beats_gaussian_scalar_levels_from_three_bits_on() -> None:
    turn, quantizer, _ = pvq(4.0).stages
    assert compared(4, chain(turn, quantizer.replace(codebook=LloydMax(16)), Pack())) < 0.95


@pytest.mark.parametrize("bits", [1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0])
def test_any_rate_is_kept(bits: float) -> None:
    x = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    packet = laconic.codec("pvq-llm", bits=bits).fit(x).encode(x)
    by_role = laconic.info(packet).ledger.by_role()
    assert bits - 0.16 < 8 * by_role["codes"] / x.numel() <= bits + 0.001
    assert by_role["scales"] <= 2 * 64 + 8
    assert "codebooks" not in by_role


def test_other_rates_are_refused() -> None:
    for bits in (0.5, 7.0):
        with pytest.raises(laconic.BadConfig, match="1 to 6"):
            laconic.codec("pvq-llm", bits=bits)
