from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

import laconic
from laconic.recipes.weights.pv_tuning import pv_tuning

from .trials import coded, coded_held_out

ATTENTION = ("embed", "mlp")


@cache
def gptq() -> Any:
    """Attention at 2 bits as GPTQ codes it; tuning reads it and writes nothing back before `commit`."""
    return coded(pv_tuning(2), 32, 128, ATTENTION)


def after(discrete: bool | None, steps: int = 20) -> tuple[float, float, Any]:
    """KL (on samples set aside, on held-out text) of attention at 2 bits: as coded (None), after P, after P and V."""
    from laconic.sources.weights.tune import Tuning
    from laconic.sources.weights.tune_pv import alternate

    tuned = Tuning(gptq())
    moves = 0 if discrete is None else alternate(tuned, steps, 2, discrete=discrete)
    assert (moves > 0) == bool(discrete)
    return tuned.judge(), coded_held_out(tuned), tuned


def test_codes_and_scales_beat_scales_alone_and_these_what_was_coded() -> None:
    """PV-Tuning's order: PV, P, none; and the packets keep their size."""
    none, p, pv = after(None), after(False), after(True)
    assert pv[0] < p[0] < 0.9 * none[0]
    assert pv[1] < p[1] < none[1]
    sizes = [{k: len(b) for k, b in tuned.packets.items()} for _, _, tuned in (none, pv)]
    assert sizes[0] == sizes[1]
    m = pv[2].matrices[0]
    same = (pv[2].codes(m).index == none[2].codes(m).index).float().mean()
    assert 0.9 < float(same) < 1
    assert torch.equal(pv[2].codes(m).weight(), pv[2].coded.parameter(m))


def test_what_does_not_help_is_not_kept() -> None:
    from laconic.sources.weights.tune import Tuning
    from laconic.sources.weights.tune_pv import alternate

    tuned = Tuning(gptq(), n_samples=16)
    before, packets = tuned.judge(), dict(tuned.packets)
    alternate(tuned, 2, 1, rate=3.0, gain_rate=3.0)
    assert tuned.packets == packets
    assert tuned.judge() == before


def test_other_rates_are_refused() -> None:
    with pytest.raises(laconic.BadConfig, match="2 to 8"):
        pv_tuning(1)
