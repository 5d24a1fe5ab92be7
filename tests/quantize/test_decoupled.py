from __future__ import annotations

import pytest
import torch

import laconic
from laconic import Stats
from laconic.quantize.base import Quantizer
from laconic.quantize.codebooks import Uniform
from laconic.quantize.decoupled import Decoupled, _Alternation
from laconic.quantize.rounding import Feedback
from laconic.quantize.scales import Along, GroupScale, LeastSquares, MinMax, TwoLevel


def layer(rows: int = 12, n: int = 70) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(400, n, generator=g) @ torch.randn(n, n, generator=g)
    return torch.randn(rows, n, generator=g), x.T @ x / 400


W, H = layer()
SCALE = GroupScale(Along(32), MinMax(True))


def test_the_closed_form_is_the_minimum() -> None:
    """Moving any step or offset from the solution raises the loss."""
    turn = _Alternation(Decoupled(Uniform(4, 0.0), SCALE, Feedback()).fit(W, Stats(hessian=H)), W)
    start = turn._rounded(*turn._seen(SCALE.measure(W, Uniform(4, 0.0))))
    step, offset = turn._solve(start.index)
    best = turn._state(step, offset, start.index).loss
    for g in range(turn.n_groups):
        for sign in (-0.01, 0.01):
            moved = torch.zeros_like(step)
            moved[:, g] = sign
            assert (turn._state(step + moved, offset, start.index).loss > best * (1 - 1e-9)).all()
            assert (turn._state(step, offset + moved, start.index).loss > best * (1 - 1e-9)).all()


@pytest.mark.parametrize("shape", [(70,), (2, 6, 70), (12, 70)])
def test_loss_falls_and_shapes_are_kept(shape: tuple[int, ...]) -> None:
    w, stats = W[0] if len(shape) == 1 else W.reshape(shape), Stats(hessian=H)
    losses = []
    for stage in (Quantizer(Uniform(4, 0.0), SCALE, Feedback()), Decoupled(Uniform(4, 0.0), SCALE, Feedback())):
        fitted = stage.fit(w, stats)
        back = fitted.decode(*fitted.encode(w))
        assert back.shape == shape
        e = (back - w).reshape(-1, 70)
        losses.append(float((e @ H * e).sum()))
    assert losses[1] < 0.95 * losses[0]


def test_constant_and_dead_data() -> None:
    h = H.clone()
    h[5] = h[:, 5] = 0
    for w in (torch.zeros(3, 70), torch.full((3, 70), 2.0), W[:3] * 1e-30, W[:3] * 1e30):
        stage = Decoupled(Uniform(4, 0.0), SCALE, Feedback()).fit(w, Stats(hessian=h))
        assert torch.isfinite(stage.decode(*stage.encode(w))).all()


def test_scales_it_cannot_solve_for_are_refused() -> None:
    for scale in (GroupScale(Along(16), store=TwoLevel()), GroupScale(Along(16), LeastSquares())):
        with pytest.raises(laconic.BadConfig, match="solved for"):
            Decoupled(Uniform(4, 0.0), scale)
