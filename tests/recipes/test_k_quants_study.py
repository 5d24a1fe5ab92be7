from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import laconic
from laconic.recipes.weights.k_quants_study import k_quants_study

from .layers import layer_loss, real_layers

RATE = {2: 2.625, 3: 3.4375, 4: 4.5, 5: 5.5, 6: 6.5625}


def normal() -> torch.Tensor:
    return torch.randn(32, 2048, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", [3, 6])
def test_signed_types_have_the_rate_of_their_blocks(bits: int) -> None:
    x = normal()
    packet = laconic.codec("k-quants-study", bits=bits).encode(x)
    by_role = laconic.info(packet).ledger.by_role()
    assert 8 * (by_role["codes"] + by_role["scales"]) == RATE[bits] * x.numel() + 16
    assert float((laconic.decode(packet) - x).square().mean()) < {3: 0.026, 6: 0.0004}[bits]


def test_error_falls_with_every_type() -> None:
    """The study: from 2 to 6 bits, better at every step, with less to gain each time."""
    errors = []
    for bits in RATE:
        found = [layer_loss(k_quants_study(bits).codec, layer).error for layer in real_layers()]
        errors.append(math.exp(sum(map(math.log, found)) / len(found)))
    assert all(b < a / 2.4 for a, b in zip(errors, errors[1:], strict=False))
    gains = -np.diff(errors)
    assert (np.diff(gains) < 0).all()


def test_the_budget_picks_the_largest_mix_that_fits() -> None:
    names = [
        f"model.layers.{b}.{role}" for b in range(8) for role in ("self_attn.v_proj", "mlp.up_proj", "mlp.down_proj")
    ]
    trial = SimpleNamespace(
        names=names, blocks=[[3 * b, 3 * b + 1, 3 * b + 2] for b in range(8)],
        bits=np.array([[1000 * RATE[b] for b in RATE]] * 24),
    )  # fmt: skip
    policy = k_quants_study().policy
    assert policy is not None
    assert set(policy(trial, 24 * 4501.0)) == {4.0}
    medium = policy(trial, 24 * 5400.0)
    raised = {names[i] for i, rate in enumerate(medium) if rate == 6.0}
    assert raised == {n for n in names if n.split(".")[2] in "0367" and "up" not in n}
    assert set(policy(trial, 1e9)) == {6.0}
    with pytest.raises(laconic.BadConfig, match="Q2_K"):
        policy(trial, 24 * 2000.0)


def test_other_rates_are_refused() -> None:
    with pytest.raises(laconic.BadConfig, match="2, 3, 4, 5 and 6"):
        k_quants_study(7)
