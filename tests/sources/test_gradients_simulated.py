"""Compressors on simulated ranks: what needs no network."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

import laconic
from laconic.sources.gradients.collective import Gather, Mean, Traffic, run_together
from laconic.sources.gradients.compressor import BASELINES, recipe_of
from laconic.sources.gradients.onebit import OneBitAdam
from laconic.sources.gradients.simulate import simulate

IDS = [i for i in (*BASELINES, *laconic.recipes("gradients")) if not recipe_of(i, {}).optimizer]


def gradients(step: int, n: int, shape: tuple[int, ...] = (40, 50)) -> list[dict[str, torch.Tensor]]:
    """A direction that stays and noise, for each rank."""
    stays = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    g = torch.Generator().manual_seed(100 + step)
    return [{"w": stays + torch.randn(shape, generator=g), "b": torch.randn(7, generator=g)} for _ in range(n)]


@pytest.mark.parametrize("ident", IDS)
def test_sums_follow_sums_of_means(ident: str) -> None:
    workers = simulate(ident, 4)
    sent = want = torch.zeros(40, 50)
    for step in range(40):
        of = gradients(step, 4)
        sent = sent + workers.exchange(of)["w"]
        want = want + torch.stack([g["w"] for g in of]).mean(0)
    assert float((sent - want).norm() / want.norm()) < 0.6
    assert workers.reports[0].n_steps == 40


@pytest.mark.parametrize("ident", IDS)
def test_all_ranks_get_the_same(ident: str) -> None:
    workers = simulate(ident, 3)
    for step in range(3):
        works = [c.step(g) for c, g in zip(workers.ranks, gradients(step, 3), strict=True)]
        a, b, c = run_together(works, [r.traffic for r in workers.ranks])
        assert torch.equal(a["w"], b["w"]) and torch.equal(b["w"], c["w"]) and torch.equal(a["b"], c["b"])


@pytest.mark.parametrize("ident", IDS)
def test_a_pickled_state_goes_on_as_if_nothing_had_been(ident: str) -> None:
    one, two = simulate(ident, 2), simulate(ident, 2)
    for step in range(3):
        one.exchange(gradients(step, 2)), two.exchange(gradients(step, 2))
    two.ranks = [pickle.loads(pickle.dumps(c)) for c in two.ranks]
    for step in range(3, 6):
        assert torch.equal(one.exchange(gradients(step, 2))["w"], two.exchange(gradients(step, 2))["w"])
    assert one.reports[0].sent_bytes == two.reports[0].sent_bytes


def test_a_state_of_another_model_is_refused_by_name() -> None:
    workers = simulate("ef-levels", 2)
    workers.exchange(gradients(0, 2))
    state = pickle.loads(pickle.dumps(workers.ranks[0]))
    with pytest.raises(laconic.ModelMismatch, match=r"'w' of shape \(40, 50\), which is not among 'weight', 'bias'"):
        state.bind(nn.Linear(50, 40))
    other = nn.Module()
    other.w = nn.Parameter(torch.zeros(40, 51))
    with pytest.raises(laconic.ModelMismatch, match=r"'w' of shape \(40, 50\), which here is \(40, 51\)"):
        state.bind(other)
    with pytest.raises(laconic.ModelMismatch, match=r"'w' of shape \(40, 50\), which here is \(50, 40\)"):
        next(state.step({"w": torch.zeros(50, 40)}))


def test_settings_are_refused_by_name() -> None:
    for ident, settings, said in (
        ("ef-level", {}, "ef-levels"), ("turboquant", {}, "unknown compressor"), ("onebit-adam", {}, "OneBitAdam"),
        ("ef-levels", {"fractoin": 0.1}, "fraction"), ("ef-levels", {"nonfinite": "ignore"}, "zero"),
        ("ef-levels", {"warmup": -1}, "0 or more"),
        ("l-greco", {"family": "low-ranks"}, "low-rank"), ("l-greco", {"window": 60}, "window"),
    ):  # fmt: skip
        with pytest.raises(laconic.BadConfig, match=said):
            laconic.gradients.compressor(ident, **settings)


def test_a_warm_up_is_sent_as_it_is() -> None:
    workers = simulate("ef-levels", 2, warmup=2, plain="float32")
    for step in range(3):
        of = gradients(step, 2)
        exact = torch.equal(workers.exchange(of)["w"], (of[0]["w"] + of[1]["w"]) / 2)
        assert exact == (step < 2)


def test_one_rank_that_is_not_finite_stops_all() -> None:
    workers = simulate("ef-levels", 3)
    workers.exchange(gradients(0, 3))
    kept = [c.memories["w"].state.clone() for c in workers.ranks]
    of = gradients(1, 3)
    of[1]["w"][3, 4] = float("inf")
    assert not workers.exchange(of)["w"].any()
    assert all(torch.equal(c.memories["w"].state, k) for c, k in zip(workers.ranks, kept, strict=True))
    assert [r.skipped for r in workers.reports] == [(1,)] * 3


def test_bytes_of_a_ring() -> None:
    """Each of n ranks sends 2 (n − 1)/n of what is reduced, n − 1 times what is gathered with its length."""

    def work(length: int):  # type: ignore[no-untyped-def]
        yield Mean(torch.zeros(100))
        yield Gather(b"x" * length)
        return None

    traffic = [Traffic() for _ in range(4)]
    run_together([work(n) for n in (10, 20, 5, 0)], traffic)
    assert [t.sent_bytes for t in traffic] == [2 * 3 / 4 * 400 + 3 * 28] * 4
    assert [t.handed_bytes for t in traffic] == [410, 420, 405, 400]


@pytest.mark.parametrize("ranks", [2, 3])
def test_onebit_adam_is_adam_until_it_freezes(ranks: int) -> None:
    """And both ways of sending lose nothing in the long run: sums of momentum agree."""
    torch.manual_seed(0)
    start = torch.randn(30, 11)
    a, b = nn.Parameter(start.clone()), [nn.Parameter(start.clone()) for _ in range(ranks)]
    adam = torch.optim.Adam([a], lr=0.01, betas=(0.9, 0.99))
    ours = [OneBitAdam([p], lr=0.01, betas=(0.9, 0.99), freeze_at=8) for p in b]
    for step in range(100):
        g = [torch.randn(30, 11, generator=torch.Generator().manual_seed(9 * step + r)) + start for r in range(ranks)]
        a.grad = torch.stack(g).mean(0)
        adam.step()
        for p, v in zip(b, g, strict=True):
            p.grad = v
        run_together([o.work(r, ranks) for r, o in enumerate(ours)], [o.traffic for o in ours])
        assert all(torch.equal(b[0], p) for p in b)
        if step < 8:
            torch.testing.assert_close(b[0], a, rtol=1e-4, atol=1e-5)
    assert all(o.frozen for o in ours) and ours[0].report().levels == {"frozen": 8.0}
    assert float((a - b[0]).detach().norm() / (a - start).detach().norm()) < 0.2, "signs without memory are at .4"


@pytest.mark.parametrize("ranks", [2, 3])
def test_rows_without_gradient_stay_where_they_are(ranks: int) -> None:
    """The rows of tokens that did not occur, which one magnitude for all would throw about."""
    ours = [OneBitAdam([nn.Parameter(torch.zeros(40, 64))], freeze_at=2) for _ in range(ranks)]
    for step in range(6):
        for r, o in enumerate(ours):
            g = torch.randn(40, 64, generator=torch.Generator().manual_seed(9 * step + r))
            g[10:20] = 0
            o.param_groups[0]["params"][0].grad = g
        run_together([o.work(r, ranks) for r, o in enumerate(ours)], [o.traffic for o in ours])
    found = ours[0].param_groups[0]["params"][0].detach()
    assert ours[0].frozen and not found[10:20].any() and found[:10].all() and found[20:].all()


def test_onebit_adam_skips_together_and_refuses_other_parameters() -> None:
    ours = [OneBitAdam([nn.Parameter(torch.ones(20, 3))], freeze_at=1) for _ in range(2)]

    def step(value: float) -> torch.Tensor:
        for i, o in enumerate(ours):
            o.param_groups[0]["params"][0].grad = torch.full((20, 3), value if i else 1.0)
        run_together([o.work(r, 2) for r, o in enumerate(ours)], [o.traffic for o in ours])
        return ours[0].param_groups[0]["params"][0].detach().clone()

    before = step(float("nan"))
    assert torch.equal(before, torch.ones(20, 3)) and not ours[0].frozen, "in warm-up"
    before = step(1.0)
    assert ours[0].frozen
    assert torch.equal(step(float("inf")), before), "and when frozen"
    assert not torch.equal(step(1.0), before)
    assert ours[0].report().skipped == (0, 2) == ours[1].report().skipped
    other = OneBitAdam([nn.Parameter(torch.ones(20, 4))])
    with pytest.raises(laconic.ModelMismatch, match="parameter 0"):
        other.load_state_dict(ours[0].state_dict())


def test_a_rank_that_shrinks_keeps_the_longest_columns() -> None:
    from laconic.sources.gradients.exchange import _start
    from laconic.sources.gradients.memory import Memory

    m, memory = torch.zeros(5, 4), Memory((5, 4))
    memory.factor = torch.eye(4)[:, :3] * torch.tensor([1.0, 5.0, 3.0])
    assert torch.equal(_start(m, 2, memory, "w", 0), memory.factor[:, 1:])
    assert torch.equal(_start(m, 3, memory, "w", 0), memory.factor)
    assert torch.equal(_start(m, 4, memory, "w", 0)[:, :3], memory.factor)
