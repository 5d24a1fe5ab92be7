from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.core.combine import Rule
from laconic.core.errors import BadConfig, BadInput, CorruptStream
from laconic.core.stage import Stats
from laconic.quantize.codebooks import Uniform
from laconic.quantize.rules import Halves, Largest, MostSensitive, Tail
from laconic.quantize.scales import Along, GroupScale, MinMax


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


RULES: list[Rule] = [
    Halves(0), Halves(-1), Tail(3, 2, -1), Tail(0, 1, 0), Tail(50, 4, 1),
    Largest(0.0), Largest(0.1), Largest(0.5), MostSensitive(0.1),
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=str)
@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=3))
def test_join_inverts_split(rule: Rule, shape: list[int]) -> None:
    x = normal(*shape)
    try:
        shares, side = rule.fit(x).split(x)
    except BadInput:
        axis = getattr(rule, "axis", 0)
        assert not -len(shape) <= axis < len(shape) or shape[axis] % 2
        return
    assert sum(s.numel() for s in shares) in (x.numel(), x.numel() + shares[1].numel())
    assert torch.equal(rule.join(shares, side), x)
    assert set(side) == set(rule.side)
    assert all(v.dtype == rule.side[k].dtype for k, v in side.items())


def test_tail_keeps_the_window_and_whole_groups() -> None:
    x = torch.arange(40).float().reshape(1, 20, 2)
    (past, window), _ = Tail(5, 4, -2).split(x)
    assert past.shape == (1, 12, 2) and window.shape == (1, 8, 2), "15 tokens are past, of which 12 fill groups"
    (past, window), _ = Tail(32, 4, -2).split(x)
    assert past.shape == (1, 0, 2) and window.shape == (1, 20, 2)


def test_statistics_are_cut_with_the_values() -> None:
    x = normal(4, 6)
    stats = Stats(hessian=normal(6, 6), importance=torch.arange(6.0), mask=normal(4, 6) > 0)
    top, bottom = Halves(0).push(x, stats)
    assert torch.equal(top.hessian, stats.hessian) and torch.equal(bottom.importance, stats.importance)
    assert torch.equal(torch.cat([top.mask, bottom.mask]), stats.mask)
    left, right = Tail(2, 1, -1).push(x, stats)
    assert torch.equal(left.hessian, stats.hessian[:4, :4]) and torch.equal(right.hessian, stats.hessian[4:, 4:])
    assert right.importance.tolist() == [4, 5]
    assert torch.equal(right.mask, stats.mask[:, 4:])


def test_largest_takes_the_largest() -> None:
    x = torch.tensor([[1.0, -9, 2, 3], [8, 0, -1, 7]])
    (rest, values), side = Largest(0.25).split(x)
    assert values.tolist() == [-9, 8] and rest.tolist() == [[1, 0, 2, 3], [0, 0, -1, 7]]
    stats, none = Largest(0.25).push(x, Stats(importance=torch.full((4,), 2.0)))
    assert none is None
    assert stats.importance.tolist() == [[2, 0, 2, 2], [0, 2, 2, 2]]
    assert stats.mask.tolist() == [[False, True, False, False], [True, False, False, False]]


def test_positions_cost_what_the_entropy_says() -> None:
    x = normal(512, 512)
    for fraction in (0.001, 0.01, 0.1):
        _, side = Largest(fraction).split(x)
        bits = 8 * sum(v.nbytes for v in side.values()) / x.numel()
        entropy = -fraction * math.log2(fraction) - (1 - fraction) * math.log2(1 - fraction)
        assert bits < 1.05 * entropy + 64 / x.numel()


def test_most_sensitive_is_the_score_of_the_paper() -> None:
    x, a = normal(6, 8), normal(32, 8, seed=1)
    h = a.T @ a / 32
    book, scale = Uniform(4, 0.0), GroupScale(Along(4), MinMax())
    rule = MostSensitive(0.1, book, scale).fit(x, Stats(hessian=h))
    grid = scale.expand(scale.measure(x, book), (6, 8))
    error = x - grid.denormalize(book.lookup(book.nearest(grid.normalize(x))))
    inverse = torch.linalg.inv(h.double() + 0.01 * h.double().diagonal().mean() * torch.eye(8))
    torch.testing.assert_close(rule.score(x), error.double() ** 2 / (2 * inverse.diagonal()), rtol=1e-4, atol=1e-9)
    assert torch.equal(MostSensitive(0.1, book, scale).score(x), error.double() ** 2), "without a Hessian, H = 1"
    with pytest.raises(BadInput, match="fitted to rows of 8"):
        rule.split(normal(6, 4))


@pytest.mark.parametrize(
    ("rule", "shares"),
    [
        (Halves(0), (torch.zeros(2, 3), torch.zeros(2, 4))),
        (Halves(0), (torch.zeros(2, 3), torch.zeros(2))),
        (Tail(3, 1, -2), (torch.zeros(3), torch.zeros(3))),
        (Largest(0.1), (torch.zeros(3), torch.zeros(2, 2))),
        (Largest(0.1), (torch.zeros(3), torch.zeros(4))),
        (Largest(0.1), (torch.zeros(3, 4), torch.zeros(2))),
    ],
)
def test_shares_that_do_not_fit_are_refused(rule: Rule, shares: tuple[torch.Tensor, torch.Tensor]) -> None:
    x = normal(4, 30)
    side = rule.split(x)[1]
    with pytest.raises(CorruptStream):
        rule.join(shares, side)


def test_what_cannot_work_is_refused() -> None:
    for build in (lambda: Tail(-1), lambda: Tail(1, 0), lambda: Largest(0.9), lambda: MostSensitive(-0.1)):
        with pytest.raises(BadConfig):
            build()
    with pytest.raises(BadInput, match="even"):
        Halves(0).split(normal(3, 2))
    with pytest.raises(BadInput, match="axis -2"):
        Tail().split(normal(7))
