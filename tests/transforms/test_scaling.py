"""Norms, means and channel factors."""

import numpy as np
import pytest
import torch

from laconic.core.errors import BadConfig, BadInput, CorruptStream
from laconic.core.stage import Stats
from laconic.transforms.reorder import Reorder
from laconic.transforms.scaling import Center, RemoveMean, Scaling, Smoothing, UnitNorm


def _x(seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(50, 24, generator=g) * torch.logspace(-2, 2, 24) + 3


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_unit_norm(dtype, scale):
    x = _x() * scale
    x[3] = 0
    stage = UnitNorm(dtype)
    y, side = stage.encode(x)
    norms = y.norm(dim=1)
    assert norms[3] == 0
    norms[3] = 1
    torch.testing.assert_close(norms, torch.ones(50), rtol=0, atol=1e-3 if dtype == "float16" else 1e-6)
    torch.testing.assert_close(stage.decode(y, side), x, rtol=1e-6, atol=0)
    rms = UnitNorm(dtype, "rms").encode(x)[0]
    assert abs(rms[4].square().mean() - 1) < 2e-3


def test_unit_norm_refuses_lies():
    stage = UnitNorm()
    y, side = stage.encode(_x())
    bad = side["norms"].copy()
    bad[0] = np.nan
    for lie in (
        {**side, "norms": side["norms"][:4]},
        {**side, "norms": bad},
        {**side, "norms": -side["norms"]},
        {**side, "largest": np.array([np.inf], np.float32)},
        {**side, "largest": np.zeros(0, np.float32)},
    ):
        with pytest.raises(CorruptStream):
            stage.decode(y, lie)
    with pytest.raises(BadInput):
        stage.encode(torch.full((1, 4), 3e38))


def test_means():
    x = _x()
    centred = Center().fit(x).encode(x)[0]
    assert (centred.mean(0).abs() < 2e-3 * x.mean(0).abs() + 1e-3).all()
    rows, _ = RemoveMean().encode(x)
    assert (rows.mean(1).abs() < 1e-2).all()
    y, side = RemoveMean().encode(x)
    with pytest.raises(CorruptStream):
        RemoveMean().decode(y, {**side, "means": side["means"][:2]})
    with pytest.raises(CorruptStream):
        RemoveMean().decode(y, {**side, "largest": np.array([np.nan], np.float32)})


def test_scaling_sizes():
    x = _x()
    for size, measure in (
        ("rms", lambda t: t.square().mean(0).sqrt()),
        ("absmax", lambda t: t.abs().amax(0)),
        ("mean", lambda t: t.abs().mean(0)),
    ):
        torch.testing.assert_close(measure(Scaling(size).fit(x).encode(x)[0]), torch.ones(24), rtol=1e-5, atol=0)
    dead = x.clone()
    dead[:, 2] = 0
    assert torch.equal(Scaling().fit(dead).encode(dead)[0][:, 2], dead[:, 2])


def test_smoothing_is_awq_and_smoothquant():
    x = _x()
    a = torch.logspace(-1, 1, 24)
    stats = Stats(hessian=torch.diag(a * a))
    s = 1 / Smoothing(0.5).fit(x, stats).divisors()
    expected = a.sqrt().numpy()
    np.testing.assert_allclose(s, expected / np.sqrt(expected.max() * expected.min()), rtol=1e-3)
    both = 1 / Smoothing(0.5, 0.5).fit(x, stats).divisors()
    expected = (a.sqrt() / x.abs().amax(0).sqrt()).numpy()
    np.testing.assert_allclose(both, expected / np.sqrt(expected.max() * expected.min()), rtol=1e-3)
    same = Smoothing(0.5).fit(x, Stats(importance=a * a))
    assert np.array_equal(same.divisors(), Smoothing(0.5).fit(x, stats).divisors())
    with pytest.raises(BadConfig, match="Hessian"):
        Smoothing().fit(x)


def test_smoothing_lowers_the_loss_of_a_grid():
    """AWQ's claim in small: with a few strong inputs, rounding W · s to a grid hurts the output less than rounding W."""
    g = torch.Generator().manual_seed(0)
    w, a = torch.randn(64, 64, generator=g), torch.ones(64)
    a[::16] = 20
    stats = Stats(hessian=torch.diag(a * a))

    def loss(y, back):
        step = y.abs().amax(1, keepdim=True) / 3.5
        d = back((y / step).round() * step) - w
        return float((d * d * a * a).sum())

    stage = Smoothing(0.5).fit(w, stats)
    assert loss(stage.encode(w)[0], lambda q: stage.decode(q, {})) < 0.7 * loss(w, lambda q: q)


def test_reorder_sorts():
    x = _x()
    y, _ = Reorder("absmax").fit(x).encode(x)
    size = y.abs().amax(0)
    assert (size[:-1] >= size[1:]).all()
    h = torch.diag(torch.rand(24, generator=torch.Generator().manual_seed(1)))
    behind = Reorder("hessian").fit(x, Stats(hessian=h)).push(Stats(hessian=h)).hessian.diagonal()
    assert (behind[:-1] >= behind[1:]).all()
    with pytest.raises(BadConfig):
        Reorder("hessian").fit(x)
    stage = Reorder().fit(x)
    with pytest.raises(CorruptStream):
        stage.with_arrays({"positions": np.zeros(24, np.uint16)}).decode(y, {})
