"""Learned bases: the error they promise, in the metric they promise it."""

import numpy as np
import pytest
import torch

from laconic.core.errors import BadConfig, CorruptStream, NotFitted
from laconic.core.stage import Stats
from laconic.transforms.klt import KLT, LowRank


def _ar1(n_rows, n, rho, seed=0):
    g = torch.Generator().manual_seed(seed)
    e = torch.randn(n_rows, n, generator=g) * (1 - rho**2) ** 0.5
    e[:, 0] /= (1 - rho**2) ** 0.5
    x = torch.empty_like(e)
    x[:, 0] = e[:, 0]
    for i in range(1, n):
        x[:, i] = rho * x[:, i - 1] + e[:, i]
    return x


def _weights(m=96, n=40, seed=0):
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(m, n, generator=g) @ torch.diag(torch.linspace(2, 0.1, n)) @ torch.randn(n, n, generator=g)
    inputs = torch.randn(400, n, generator=g) @ torch.randn(n, n, generator=g) * torch.logspace(-1, 1, n)
    return w, Stats(hessian=inputs.T @ inputs / 400)


def test_klt_decorrelates_and_orders():
    x = _ar1(20000, 32, 0.9)
    y, _ = KLT().fit(x).encode(x)
    second = (y.T @ y / len(y)).numpy()
    off = second - np.diag(np.diag(second))
    assert np.abs(off).max() < 3e-3 * second[0, 0]
    assert (np.diff(np.diag(second)) < 1e-3).all()
    gain = second.diagonal().mean() / np.exp(np.log(second.diagonal()).mean())
    assert abs(gain - (1 - 0.81) ** (-31 / 32)) < 0.15  # coding gain of AR(1): (1 − ρ²)^(−(n−1)/n)


def test_klt_refuses_a_basis_that_is_none():
    x = _ar1(100, 16, 0.5)
    stage = KLT().fit(x)
    for bad in (np.zeros((16, 16)), np.ones((16, 16)), np.full((16, 16), np.nan), np.eye(15)):
        with pytest.raises(CorruptStream):
            stage.with_arrays({"basis": bad}).decode(x, {})


def _loss(d, h):
    return float(torch.trace(d.double() @ h.double() @ d.double().T))


def test_plain_low_rank_is_the_truncated_svd():
    w, _ = _weights()
    stage = LowRank(10).fit(w)
    d = stage.decode(*stage.encode(w)) - w
    tail = torch.linalg.svdvals(w.double())[10:].square().sum()
    assert abs(d.double().square().sum() - tail) < 2e-3 * tail


def test_whitened_is_best_on_the_outputs():
    """SVD-LLM's claim, and the order of the three: whitened < scaled < plain in tr(D H Dᵀ)."""
    w, stats = _weights()
    loss = {}
    for metric in ("plain", "scaled", "whitened"):
        stage = LowRank(10, metric).fit(w, stats)
        loss[metric] = _loss(stage.decode(*stage.encode(w)) - w, stats.hessian)
    root = torch.linalg.cholesky(stats.hessian.double() + 1e-9 * torch.eye(40))
    best = torch.linalg.svdvals(w.double() @ root)[10:].square().sum()
    assert loss["whitened"] < loss["scaled"] < loss["plain"]
    assert best <= loss["whitened"] < 1.05 * best


def test_decoder_needs_no_analysis():
    w, stats = _weights()
    stage = LowRank(5, "whitened").fit(w, stats)
    y, side = stage.encode(w)
    bare = LowRank(5, "whitened").with_arrays({"synthesis": stage.synthesis})
    assert torch.equal(bare.decode(y, side), stage.decode(y, side))
    with pytest.raises(NotFitted):
        bare.encode(w)


def test_refusals():
    w, stats = _weights()
    with pytest.raises(BadConfig, match="at most 40"):
        LowRank(41).fit(w)
    with pytest.raises(BadConfig, match="Hessian"):
        LowRank(3, "whitened").fit(w)
    with pytest.raises(BadConfig):
        LowRank(3, "scaled").fit(w[:, :20], stats)
