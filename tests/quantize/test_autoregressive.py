"""Levels under laws that the levels before them predict: rate, error, what is learned, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from laconic.core.errors import BadConfig, BadInput, CorruptStream, NotFitted, decode_budget
from laconic.core.stage import Stage
from laconic.quantize.autoregressive import Autoregressive, ranges


def rows(n: int = 1500, d: int = 24, seed: int = 0) -> torch.Tensor:
    """Never negative, correlated, and large together."""
    rng = np.random.default_rng(seed)
    near = np.linalg.cholesky(0.8 ** np.abs(np.subtract.outer(np.arange(d), np.arange(d))))
    x = rng.standard_normal((n, d)) @ near.T * np.exp(0.7 * rng.standard_normal((n, 1)))
    return torch.from_numpy(np.maximum(x, 0).astype(np.float32))


def tried(stage: Stage, x: torch.Tensor) -> tuple[float, float]:
    """Bits a value, squared error over the variance."""
    data, side = stage.encode(x)
    with decode_budget(1 << 28):
        y = stage.decode(data, side)
    return 8 * len(data) / x.numel(), float((x - y).square().mean() / x.var())


@pytest.mark.parametrize("bits", [0.5, 1.0, 2.0, 4.0])
def test_the_rate_holds_on_other_vectors(bits: float) -> None:
    stage = Autoregressive(bits=bits).fit(rows(6000))
    rate, error = tried(stage, rows(3000, seed=1))
    assert rate == pytest.approx(bits, rel=0.08) and error < 4.0**-bits


def test_laws_know_more_than_columns_do() -> None:
    """Against laws learned from vectors whose coordinates were drawn apart."""
    x, y = rows(4000), rows(seed=1)
    rng = np.random.default_rng(2)
    apart = torch.from_numpy(np.stack([rng.permutation(c) for c in x.numpy().T], 1))
    stage, alone = (Autoregressive(bits=None, step=0.25).fit(z) for z in (x, apart))
    assert tried(stage, y)[0] < 0.9 * tried(alone, y)[0]


def test_levels_lie_where_values_were() -> None:
    """What is added to levels takes error away."""
    x, y = rows(4000), rows(seed=1)
    stage = Autoregressive(bits=1.0).fit(x)
    assert tried(stage, y)[1] < 0.99 * tried(stage.replace(shift=np.zeros((2, 16))), y)[1]


@pytest.mark.parametrize("x", [torch.zeros(3, 5), torch.ones(70, 4), torch.full((1, 3), 1e38), torch.zeros(2, 0, 4) + 1,
                               torch.arange(12.0).reshape(3, 4) * 1e-38])  # fmt: skip
def test_odd_arrays(x: torch.Tensor) -> None:
    stage = Autoregressive(bits=4.0).fit(x if x.numel() else torch.ones(2, 4))
    data, side = stage.encode(x)
    with decode_budget(1 << 24):
        y = stage.decode(data, side)
    assert y.shape == x.shape and torch.isfinite(y).all()
    assert (y - x).abs().max() <= 0.51 * x.abs().max() if x.numel() else not data


def test_values_far_beyond_what_was_learned_come_back_coarser() -> None:
    stage = Autoregressive(bits=3.0).fit(rows())
    x = torch.full((2, 24), 3e38)
    data, side = stage.encode(x)
    assert side["coarser"][0] > 50
    with decode_budget(1 << 24):
        assert torch.allclose(stage.decode(data, side), x, rtol=1e-3)


def test_a_range_too_wide_stays_where_values_are() -> None:
    q = np.random.default_rng(0).normal(0, 80, (2000, 1)).round()
    q[0] = 9000
    low, high = ranges(q)
    assert ((low <= q[1:]) & (q[1:] <= high)).all() and high - low == 4095


def test_bad_settings_and_input_are_named() -> None:
    for settings in ({"bits": 0.0}, {"bits": None}, {"step": -1.0}, {"lam": 2.0}):
        with pytest.raises(BadConfig):
            Autoregressive(**settings)  # type: ignore[arg-type]
    with pytest.raises(NotFitted):
        Autoregressive().encode(rows(2))
    stage = Autoregressive().fit(rows(100))
    with pytest.raises(BadInput, match="laws of 24"):
        stage.encode(torch.zeros(3, 5))
    bad = rows(3)
    bad[1, 2] = torch.nan
    with pytest.raises(BadInput, match="vector 1"):
        stage.encode(bad)


@pytest.mark.parametrize("what", ["law", "offsets", "model", "delta", "least", "least integer"])
def test_damaged_laws_are_refused(what: str) -> None:
    stage = Autoregressive().fit(rows(200))
    data, side = stage.encode(rows(10))
    assert stage.law is not None and stage.offsets is not None
    broken = {
        "law": {"law": stage.law[:, ::-1]},
        "offsets": {"offsets": stage.offsets[:, :5]},
        "model": {"model": np.zeros((24, 23))},
        "delta": {"delta": np.array([np.nan])},
        "least integer": {"offsets": np.where(np.arange(6)[:, None] == 4, -(2**63), stage.offsets)},
        "least": {"offsets": np.where(np.arange(6)[:, None] == 3, 0, stage.offsets)},
    }[what]
    with pytest.raises(CorruptStream, match="laws|a step of"), decode_budget(1 << 24):
        stage.replace(**broken).decode(data, side)


def test_decoding_keeps_to_what_packets_may_use() -> None:
    """16 bytes a value, however many there are."""
    x = rows(12_000)
    stage = Autoregressive(bits=2.0).fit(x[:3000])
    data, side = stage.encode(x)
    with decode_budget(16 * x.numel()):
        assert stage.decode(data, side).shape == x.shape
