from __future__ import annotations

import numpy as np
import pytest
import torch

from laconic import BadConfig, BadInput, NotFitted
from laconic.core.stage import Stats
from laconic.quantize.factors import Factors
from laconic.recipes.weights.lord import lord


def stage(bits: float = 6.0, beta: float | None = 0.0) -> Factors:
    return lord(bits=4.0).codec.replace(bits=bits, beta=beta)


def problem(m: int = 60, n: int = 90, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights, inputs as they are (tokens, n), and inputs as they were."""
    g = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=g))
    clean = torch.randn(3000, n, generator=g) @ (q * torch.arange(1, n + 1) ** -0.7).T
    now = clean + 0.3 * clean.std() * torch.randn(3000, n, generator=g) + 0.1 * clean.roll(1, 1)
    return torch.randn(m, n, generator=g), now, clean


def statistics(now: torch.Tensor, clean: torch.Tensor) -> Stats:
    return Stats(hessian=now.T @ now / len(now), drift=(clean - now).T @ now / len(now))


def coded(codec: Factors, w: torch.Tensor, stats: Stats | None) -> torch.Tensor:
    fitted = codec.fit(w, stats)
    return fitted.decode(*fitted.encode(w))


def test_rank_follows_from_the_rate() -> None:
    assert stage(8.0).rank(256, 256) == 64
    assert stage(16.0).rank(256, 768) == 192
    with pytest.raises(BadConfig, match="no rank"):
        stage(0.1).rank(60, 90)


def test_it_is_the_best_of_its_rank_under_the_hessian() -> None:
    """Against the whitened singular value decomposition in double precision."""
    w, now, _ = problem()
    h = now.T @ now / len(now)
    root = torch.linalg.cholesky(h.double())
    s = torch.linalg.svdvals(w.double() @ root)
    r = stage().rank(*w.shape)
    e = coded(stage(), w, Stats(hessian=h)).double() - w
    assert float((e @ h.double() * e).sum()) == pytest.approx(float(s[r:].square().sum()), rel=2e-3)


def test_without_a_hessian_it_is_the_singular_value_decomposition() -> None:
    w, _, _ = problem()
    e = coded(stage(), w, None) - w
    want = torch.linalg.svdvals(w)[stage().rank(*w.shape) :].square().sum()
    assert float(e.square().sum()) == pytest.approx(float(want), rel=1e-3)
    tall = coded(stage(), w.T.contiguous(), None) - w.T
    assert float(tall.square().sum()) == pytest.approx(float(want), rel=1e-3)


def test_with_the_drift_it_is_the_best_for_the_original_outputs() -> None:
    """β = 1: the normal equations of min ‖M X − W X_f‖ over matrices of rank r, solved independently."""
    w, now, clean = problem()
    codec, want = stage(beta=1.0), clean @ w.T
    loss = float((now @ coded(codec, w, statistics(now, clean)).T - want).square().sum())
    fit = torch.linalg.lstsq(now.double(), want.double()).solution  # full rank, then the best of rank r for its outputs
    outputs = now.double() @ fit
    u, s, vh = torch.linalg.svd(outputs, full_matrices=False)
    r = codec.rank(*w.shape)
    best = float(((u[:, :r] * s[:r]) @ vh[:r] - want).square().sum())
    assert best <= loss < 1.01 * best
    plain = float((now @ coded(stage(), w, statistics(now, clean)).T - want).square().sum())
    assert loss < 0.97 * plain


def test_beta_of_aces_holds_the_largest_part_of_the_energy() -> None:
    w, now, clean = problem()
    stats = statistics(now, clean)
    codec = stage(beta=None)
    beta = codec.chosen_beta(w, stats)
    h, d = stats.hessian.double(), stats.drift.double()
    h = h + codec.damping * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
    values, vectors = torch.linalg.eigh(h)
    root = vectors @ torch.diag(values**-0.5) @ vectors.T

    def part(b: float) -> float:
        s = torch.linalg.svdvals(w.double() @ (h + b * d) @ root).square()
        return float(s[: codec.rank(*w.shape)].sum() / s.sum())

    assert part(beta) == pytest.approx(max(part(float(b)) for b in np.linspace(0, 0.5, 11)))


def test_no_drift_means_beta_does_not_matter() -> None:
    w, now, _ = problem()
    stats = Stats(hessian=now.T @ now / len(now))
    assert torch.equal(coded(stage(beta=None), w, stats), coded(stage(), w, stats))


def test_what_cannot_be_is_refused() -> None:
    w, now, _ = problem()
    with pytest.raises(NotFitted):
        stage().encode(w)
    with pytest.raises(BadInput, match="matrix"):
        stage().fit(torch.ones(3, 4, 5))
    with pytest.raises(BadInput, match="drift"):
        stage().fit(w, Stats(hessian=now.T @ now, drift=torch.ones(3, 3)))
    with pytest.raises(BadConfig, match="beta"):
        stage(beta=2.0)
