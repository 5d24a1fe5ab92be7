from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

import laconic
from laconic.core.combine import chain
from laconic.quantize.base import Nearest
from laconic.recipes.weights.discquant import discquant
from laconic.sources.weights.recipe import WeightRecipe

from .trials import coded_held_out, tuning

ATTENTION = ("embed", "mlp")


def nearest() -> WeightRecipe:
    """The same 2-bit grid, rounded to nearest."""
    quantizer, pack = discquant(2).codec.stages
    return WeightRecipe(lambda rate: chain(quantizer.replace(rounding=Nearest()), pack), (2.0,), nominal=2.0)


@cache
def rounded() -> Any:
    """(nearest, after DiscQuant on its grid, share decided, tuning): KL on held-out text."""
    from laconic.sources.weights.tune_codes import round_by_divergence

    tuned = tuning(nearest(), 32, 128, ATTENTION)
    before, sizes = coded_held_out(tuned), {k: len(p) for k, p in tuned.packets.items()}
    decided = round_by_divergence(tuned, 40, 2, anchor=0.0)
    return before, coded_held_out(tuned), decided, tuned, sizes


def test_rounding_by_divergence_beats_nearest_on_the_same_grid() -> None:
    """DiscQuant, algorithm 1: attention of all blocks at 2 bits after 40 short steps; most weights decide themselves."""
    before, after, decided, _, _ = rounded()
    assert after < 0.95 * before
    assert decided > 0.5


def test_codes_stay_between_the_neighbours_and_packets_keep_their_size() -> None:
    _, _, _, tuned, sizes = rounded()
    for m in tuned.matrices[:4]:
        codes = tuned.codes(m)
        w, grid = tuned.original_weight(m), codes.grid
        inside = (w > grid.denormalize(torch.tensor(0.0))) & (w < grid.denormalize(torch.tensor(3.0)))
        moved = ((codes.weight() - w).abs() / grid.step)[inside]
        assert float(moved.max()) <= 1 + 1e-4
        assert torch.equal(codes.weight(), tuned.coded.parameter(m))
        assert len(tuned.packets[m.name]) == sizes[m.name]


def test_from_gptqs_codes_it_goes_below_gptq() -> None:
    """The recipe as it is, with few short steps: never worse on samples set aside, and the bits are GPTQ's."""
    tuned = tuning(discquant(2), 32, 128, ATTENTION)
    before, sizes = tuned.judge(), {k: len(p) for k, p in tuned.packets.items()}
    tune = discquant(2, steps=12).tune
    assert tune is not None
    tune(tuned)
    assert tuned.judge() < before < rounded()[3].judge()
    assert {k: len(p) for k, p in tuned.packets.items()} == sizes


def test_other_rates_are_refused() -> None:
    with pytest.raises(laconic.BadConfig, match="2 to 8"):
        discquant(1)
