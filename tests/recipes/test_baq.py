from __future__ import annotations

import math

import pytest
import torch

import laconic
from laconic import Stats
from laconic.core.combine import chain
from laconic.core.stage import Stage
from laconic.entropy.coders import Pack
from laconic.quantize.alphabets import ColumnAlphabets
from laconic.quantize.base import Quantizer
from laconic.quantize.codebooks import Uniform
from laconic.quantize.rounding import Feedback
from laconic.quantize.scales import Along, GroupScale, MinMax, Search

from .layers import layer_loss, real_layers


def gptq(bits: int, order: str, searched: bool) -> Stage:
    find = Search(MinMax(True), 0.6, 1.1, 11, 3.0) if searched else MinMax(True)
    return chain(Quantizer(Uniform(1 << bits, 0.0), GroupScale(Along(), find), Feedback(order=order)), Pack())


def measured(stage: Stage) -> tuple[float, float]:
    """Geometric mean of the layers' relative errors; mean bits a weight, all but the header."""
    found = [layer_loss(stage, layer) for layer in real_layers()]
    sizes = [layer.weight.numel() for layer in real_layers()]
    bits = sum(one.bits * n for one, n in zip(found, sizes, strict=True)) / sum(sizes)
    return math.exp(sum(math.log(one.error) for one in found) / len(found)), bits


@pytest.mark.parametrize(("bits", "at_most"), [(2, 0.80), (3, 0.72), (4, 0.72)])
def test_allocation_beats_gptq_as_the_paper_runs_both(bits: int, at_most: float) -> None:
    """BAQ: ranges from extremes, a row each. The table costs a little more than three hundredths of a bit here."""
    allocated, plain = measured(ColumnAlphabets(float(bits))), measured(gptq(bits, "natural", False))
    assert allocated[0] < at_most * plain[0]
    assert allocated[1] < plain[1] + 0.04


def test_with_searched_ranges_it_wins_at_three_bits_and_loses_at_two() -> None:
    """As the card says."""
    for bits, low, high in ((3, 0.8, 0.95), (2, 1.0, 1.2)):
        allocated, plain = (
            measured(laconic.codec("baq", bits=float(bits)).stage),
            measured(gptq(bits, "descending", True)),
        )
        assert low < allocated[0] / plain[0] < high


def test_the_table_and_the_ranges_are_counted() -> None:
    layer = real_layers()[0]
    packet = laconic.codec("baq", bits=3.0).fit(layer.weight, Stats(hessian=layer.hessian)).encode(layer.weight)
    by_role, (n_out, n_in) = laconic.info(packet).ledger.by_role(), layer.weight.shape
    assert by_role["codebooks"] == n_in
    assert by_role["scales"] + by_role["zeros"] == 2 * 2 * n_out + 4
    assert 2.95 < 8 * by_role["codes"] / layer.weight.numel() < 3.02


def test_fractional_rates() -> None:
    w = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    sizes = [len(laconic.codec("baq", bits=b).encode(w)) for b in (1.0, 1.585, 2.5, 6.0)]
    assert sizes == sorted(sizes)
    for bits in (0.5, 6.5):
        with pytest.raises(laconic.BadConfig, match="1 to 6"):
            laconic.codec("baq", bits=bits)
