from __future__ import annotations

import numpy as np
import pytest
import torch

import laconic
from laconic import Stats
from laconic.allocate import integer_programme
from laconic.core.combine import chain
from laconic.core.stage import Stage
from laconic.entropy.coders import Pack
from laconic.quantize.base import Quantizer
from laconic.quantize.vector import VQ
from laconic.recipes.weights.q_palette import q_palette

from .layers import divergence, layer_loss, real_layers


def gaussian_error(stage: Stage) -> float:
    x = torch.randn(128, 512, generator=torch.Generator().manual_seed(0))
    codec = laconic.Codec(stage).fit(x)
    return float((codec.decode(codec.encode(x)) - x).square().mean())


def swapped(stage: Stage, book: object) -> Stage:
    """The same codec with another codebook."""
    turn, quantizer, pack = stage.stages
    return chain(turn, quantizer.replace(codebook=book), pack)


def test_two_bits_trellis_beats_vectors_beat_scalars() -> None:
    """The authors' table of distortions: .071, .109, .1175."""
    recipe = q_palette()
    scalar = recipe.at(6.0).stages[1].codebook.replace(levels=4)
    trellis = gaussian_error(recipe.at(2.0))
    vectors = gaussian_error(chain(Quantizer(VQ(index_bits=4, dim=2)), Pack()))
    assert trellis < 0.073 and 0.105 < vectors < 0.112
    assert gaussian_error(swapped(recipe.at(2.0), scalar)) == pytest.approx(0.1175, abs=0.002)


def test_every_rung_costs_its_rate_and_less_error_than_the_one_below() -> None:
    recipe = q_palette(states=256)
    x = torch.randn(64, 512, generator=torch.Generator().manual_seed(1))
    last = 1.0
    for rate in recipe.rates:
        packet = laconic.Codec(recipe.at(rate)).fit(x).encode(x)
        error = float((laconic.decode(packet) - x).square().mean())
        by_role = laconic.info(packet).ledger.by_role()
        assert 8 * by_role["codes"] / x.numel() == pytest.approx(rate, abs=0.02)
        assert error < last / 1.2
        last = error


def test_trellis_halves_the_error_of_scalars_on_a_trained_layer() -> None:
    layer, recipe = real_layers()[3], q_palette(states=1024)
    scalar = recipe.at(6.0).stages[1].codebook.replace(levels=4)
    trellis, other = layer_loss(recipe.at(2.0), layer), layer_loss(swapped(recipe.at(2.0), scalar), layer)
    assert trellis.bits == other.bits
    assert trellis.error < 0.65 * other.error


def test_fractional_rates_beat_whole_ones_beat_one_for_all() -> None:
    """At equal memory: predicted loss Σ a_l D(b_l). With ten matrices KL tells only one rate for all from the others."""
    recipe, layers = q_palette(states=256), real_layers()
    sensitivity = [float((x.weight @ x.hessian * x.weight).sum(1) @ x.fisher) for x in layers]
    sizes = np.array([x.weight.numel() for x in layers])
    rates = np.array([r for r in recipe.rates if 1.5 <= r <= 5])
    loss = np.outer(sensitivity, 4.0**-rates)
    budget = 2.5 * sizes.sum()

    def chosen(allowed: np.ndarray) -> tuple[float, float]:
        table = np.where(allowed, loss, np.inf)
        choice = integer_programme(np.outer(sizes, rates), table, budget)
        stages = [recipe.at(float(rates[c])) for c in choice]
        decoded = {
            x.name: layer_loss(s, x, Stats(hessian=x.hessian)).weight for s, x in zip(stages, layers, strict=True)
        }
        return float(loss[np.arange(len(layers)), choice].sum()), divergence(decoded)

    fractional, whole, same = chosen(rates > 0), chosen(rates % 1 == 0), chosen(rates == 2.5)
    assert fractional[0] < whole[0] < same[0]
    assert max(fractional[1], whole[1]) < 0.93 * same[1]


def test_rates_off_the_palette_are_refused() -> None:
    with pytest.raises(laconic.BadConfig, match="palette"):
        q_palette(bits=2.1)
