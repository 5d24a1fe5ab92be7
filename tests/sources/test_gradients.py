"""The hook on two real ranks (gloo): one launch runs every scenario, since starting processes is what takes the time."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

import laconic
from laconic.sources.gradients.onebit import OneBitAdam

from .ranks import batch, net, spawn

SETTINGS: dict[str, dict[str, Any]] = {
    "none": {}, "fp16": {}, "powersgd": {"rank": 2}, "ef-levels": {"fraction": 0.1}, "econtrol": {"fraction": 0.2},
    "ef-topk": {"fraction": 0.1}, "ef-factors": {"rank": 4},
    "l-greco": {"every": 10, "window": 3, "level": 0.1},
}  # fmt: skip


def loss(model: nn.Module, step: int, rank: int) -> torch.Tensor:
    x, y = batch(step, rank)
    return (model(x) - y).square().mean()


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def wrapped(ident: str, named: bool = True, model: nn.Module | None = None, **settings: Any) -> tuple[DDP, Any]:
    ddp = DDP(model or net(), bucket_cap_mb=0.003)  # several buckets, rebuilt after the first step
    state = laconic.gradients.compressor(ident, ddp if named else None, smallest=100, **settings)
    ddp.register_comm_hook(state, laconic.gradients.hook)
    return ddp, state


def train(ddp: nn.Module, rank: int, steps: range, optimizer: torch.optim.Optimizer) -> list[float]:
    out = []
    for s in steps:
        optimizer.zero_grad()
        value = loss(ddp, s, rank)
        value.backward()
        optimizer.step()
        out.append(float(value.detach()))
    return out


def every_compressor(rank: int) -> dict[str, Any]:
    out = {}
    for ident, settings in SETTINGS.items():
        ddp, state = wrapped(ident, **settings)
        losses = train(ddp, rank, range(40), torch.optim.SGD(ddp.parameters(), lr=0.05))
        out[ident] = losses, flat(ddp), state.report()
    return out


def plain_ddp(rank: int) -> torch.Tensor:
    ddp = DDP(net(), bucket_cap_mb=0.003)
    train(ddp, rank, range(40), torch.optim.SGD(ddp.parameters(), lr=0.05))
    return flat(ddp)


def resumed(rank: int, named: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """A run that is not stopped, and one whose model, optimizer and state go through a checkpoint into new objects."""
    whole, _ = wrapped("ef-levels", named, fraction=0.05)
    train(whole, rank, range(12), torch.optim.SGD(whole.parameters(), lr=0.05, momentum=0.9))
    first, state = wrapped("ef-levels", named, fraction=0.05)
    optimizer = torch.optim.SGD(first.parameters(), lr=0.05, momentum=0.9)
    train(first, rank, range(5), optimizer)
    file = io.BytesIO()
    torch.save((first.module.state_dict(), optimizer.state_dict(), state), file)
    file.seek(0)
    weights, momenta, state = torch.load(file, weights_only=False)
    model = net(seed=9)
    model.load_state_dict(weights)
    second = DDP(model, bucket_cap_mb=0.003)
    if named:
        state.bind(second)
    second.register_comm_hook(state, laconic.gradients.hook)
    optimizer = torch.optim.SGD(second.parameters(), lr=0.05, momentum=0.9)
    optimizer.load_state_dict(momenta)
    train(second, rank, range(5, 12), optimizer)
    return flat(whole), flat(second)


def not_finite(rank: int, nonfinite: str) -> tuple[Any, ...]:
    """Rank 1 has a NaN in its third gradient."""
    ddp, state = wrapped("ef-levels", nonfinite=nonfinite, fraction=0.05)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05)
    train(ddp, rank, range(2), optimizer)
    before, memory = flat(ddp), {n: m.state.clone() for n, m in state.memories.items()}
    value = loss(ddp, 2, rank)
    optimizer.zero_grad()
    (value * (math.nan if rank == 1 else 1.0)).backward()
    grads = torch.cat([p.grad.flatten() for p in ddp.parameters()])
    optimizer.step()
    unmoved = all(torch.equal(m.state, memory[n]) for n, m in state.memories.items())
    return state.report().skipped, grads, torch.equal(before, flat(ddp)), unmoved


class TwoHeads(nn.Module):
    """Of which `which` alone is used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.a, self.b = nn.Linear(20, 30), nn.Linear(30, 3), nn.Linear(30, 3)
        self.which = "a"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return getattr(self, self.which)(self.body(x).tanh())


def unused_parameters(rank: int) -> tuple[bool, bool, torch.Tensor]:
    """Head b has no gradient for some steps: its memory must wait; then rank 1 alone uses it."""
    model = TwoHeads()
    ddp = DDP(model, find_unused_parameters=True)
    state = laconic.gradients.compressor("ef-levels", ddp, smallest=50, fraction=0.1)
    ddp.register_comm_hook(state, laconic.gradients.hook)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05)
    model.which = "b"
    train(ddp, rank, range(2), optimizer)
    kept = state.memories["b.weight"].state.clone()
    model.which = "a"
    train(ddp, rank, range(2, 5), optimizer)
    waited = torch.equal(kept, state.memories["b.weight"].state) and bool(kept.any())
    model.which = "b" if rank else "a"
    train(ddp, rank, range(5, 7), optimizer)
    return waited, torch.equal(kept, state.memories["b.weight"].state), flat(ddp)


def added_late(rank: int) -> tuple[bool, list[str], torch.Tensor]:
    """A layer more, wrapped again, with the same state."""
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 3))
    torch.manual_seed(1)
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    ddp, state = wrapped("ef-levels", model=model, fraction=0.1)
    train(ddp, rank, range(3), torch.optim.SGD(ddp.parameters(), lr=0.05))
    kept = state.memories["0.weight"].state.clone()
    late = nn.Linear(3, 40)
    torch.manual_seed(2)
    nn.init.normal_(late.weight), nn.init.zeros_(late.bias)
    model.extend([late, nn.Linear(40, 3)])
    for p in model[-1].parameters():
        nn.init.constant_(p, 0.1)
    ddp = DDP(model, bucket_cap_mb=0.003)
    state.bind(ddp)
    same = torch.equal(kept, state.memories["0.weight"].state)
    ddp.register_comm_hook(state, laconic.gradients.hook)
    train(ddp, rank, range(3, 6), torch.optim.SGD(ddp.parameters(), lr=0.02))
    return same, sorted(state.memories), flat(ddp)


def accumulated(rank: int) -> tuple[int, float]:
    """Four backward passes, the first three without exchange."""
    ddp, state = wrapped("none")
    for s in range(4):
        if s < 3:
            with ddp.no_sync():
                loss(ddp, s, rank).backward()
        else:
            loss(ddp, s, rank).backward()
    got = torch.cat([p.grad.flatten() for p in ddp.parameters()])
    other = net()
    for s in range(4):
        for r in range(2):
            (loss(other, s, r) / 2).backward()
    want = torch.cat([p.grad.flatten() for p in other.parameters()])
    return state.report().n_steps, float((got - want).abs().max() / want.abs().max())


def half_precision(rank: int, dtype: torch.dtype) -> tuple[torch.dtype, torch.dtype, float, float]:
    ddp, state = wrapped("ef-levels", model=net().to(dtype), fraction=0.1)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05)
    out = []
    for s in range(40):
        x, y = batch(s, rank)
        optimizer.zero_grad()
        value = (ddp(x.to(dtype)).float() - y).square().mean()
        value.backward()
        optimizer.step()
        out.append(float(value.detach()))
    kept = next(iter(state.memories.values())).state.dtype
    return next(ddp.parameters()).grad.dtype, kept, sum(out[:5]) / 5, sum(out[-5:]) / 5


def another_rank(rank: int) -> str:
    _, state = wrapped("ef-levels")
    state.place = (1 - rank, 2)
    try:
        ddp = DDP(net())
        ddp.register_comm_hook(state, laconic.gradients.hook)
        loss(ddp, 0, rank).backward()
    except (laconic.ModelMismatch, RuntimeError) as e:
        return str(e)
    return ""


def onebit(rank: int, hooked: bool) -> tuple[list[float], torch.Tensor, Any]:
    model = net()
    optimizer = OneBitAdam(model.parameters(), lr=0.01, betas=(0.9, 0.9), warmup=12)
    ddp = DDP(model) if hooked else model
    if hooked:
        ddp.register_comm_hook(optimizer, laconic.gradients.hook)
    return train(ddp, rank, range(80), optimizer), flat(model), optimizer.report()


def onebit_resumed(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    settings: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.9), "freeze_at": 15}
    whole = net()
    train(whole, rank, range(30), OneBitAdam(whole.parameters(), **settings))
    first = net()
    optimizer = OneBitAdam(first.parameters(), **settings)
    train(first, rank, range(20), optimizer)
    file = io.BytesIO()
    torch.save((first.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=False)
    second = net(seed=5)
    second.load_state_dict(weights)
    optimizer = OneBitAdam(second.parameters(), **settings)
    optimizer.load_state_dict(state)
    train(second, rank, range(20, 30), optimizer)
    return flat(whole), flat(second)


def everything(rank: int, n: int) -> dict[str, Any]:
    return {
        "compressors": every_compressor(rank), "ddp": plain_ddp(rank), "accumulated": accumulated(rank), "late": added_late(rank),
        "resumed": resumed(rank, True), "unnamed": resumed(rank, False), "another": another_rank(rank),
        "zero": not_finite(rank, "zero"), "pass": not_finite(rank, "pass"), "unused": unused_parameters(rank),
        "bf16": half_precision(rank, torch.bfloat16), "onebit": onebit(rank, True), "onebit-bare": onebit(rank, False),
        "onebit-resumed": onebit_resumed(rank),
    }  # fmt: skip


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return spawn(everything, 2)


@pytest.mark.parametrize("ident", SETTINGS)
def test_ranks_stay_equal_and_the_loss_falls(ranks: list[dict[str, Any]], ident: str) -> None:
    (losses, weights, report), (_, other, _) = (r["compressors"][ident] for r in ranks)
    assert torch.equal(weights, other)
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert report.n_steps == 40 and report.skipped == () and report.world == 2


def test_nothing_compressed_is_ddp(ranks: list[dict[str, Any]]) -> None:
    torch.testing.assert_close(ranks[0]["compressors"]["none"][1], ranks[0]["ddp"], rtol=1e-5, atol=1e-6)


def test_bytes_are_what_the_messages_are(ranks: list[dict[str, Any]]) -> None:
    n = sum(p.numel() for p in net().parameters())
    reports = {ident: ranks[0]["compressors"][ident][2] for ident in SETTINGS}
    assert reports["none"].sent_bytes == 40 * 4 * (n + 1)  # one value more says whether all is well
    assert reports["fp16"].sent_bytes == 40 * 2 * (n + 1)
    shapes = [p.shape for p in net().parameters() if p.ndim == 2]
    plain = sum(p.numel() for p in net().parameters() if p.ndim == 1) + 1
    assert reports["powersgd"].sent_bytes == 40 * 4 * (plain + sum(2 * (a + b) for a, b in shapes))
    assert 15 < reports["ef-levels"].times_fewer < 40
    assert set(reports["l-greco"].levels) == {"0.weight", "2.weight", "4.weight"}


@pytest.mark.parametrize("case", ["resumed", "unnamed", "onebit-resumed"])
def test_a_resumed_run_is_the_run(ranks: list[dict[str, Any]], case: str) -> None:
    for r in ranks:
        assert torch.equal(*r[case])


def test_a_gradient_that_is_not_finite_is_skipped_on_all_ranks(ranks: list[dict[str, Any]]) -> None:
    for r in ranks:
        skipped, grads, stayed, unmoved = r["zero"]
        assert skipped == (2,) and not grads.any() and stayed and unmoved
        skipped, grads, stayed, unmoved = r["pass"]
        assert skipped == (2,) and bool(grads.isnan().all()) and unmoved


def test_memory_of_a_parameter_without_gradient_waits(ranks: list[dict[str, Any]]) -> None:
    (waited, still, weights), (waited1, still1, weights1) = (r["unused"] for r in ranks)
    assert waited and waited1
    assert still and not still1, "where the head was used at last, its memory moves; on the other rank it waits"
    assert torch.equal(weights, weights1)


def test_parameters_added_late(ranks: list[dict[str, Any]]) -> None:
    same, names, weights = ranks[0]["late"]
    assert same and {"0.weight", "2.weight", "3.weight", "4.weight"} >= set(names) and "3.weight" in names
    assert torch.equal(weights, ranks[1]["late"][2])


def test_gradients_are_accumulated_before_they_are_sent(ranks: list[dict[str, Any]]) -> None:
    n_steps, error = ranks[0]["accumulated"]
    assert n_steps == 1 and error < 1e-5


def test_half_precision_has_memory_in_float32(ranks: list[dict[str, Any]]) -> None:
    dtype, kept, first, last = ranks[0]["bf16"]
    assert dtype == torch.bfloat16 and kept == torch.float32 and last < 0.6 * first


def test_a_state_of_another_rank_is_refused(ranks: list[dict[str, Any]]) -> None:
    assert "the state is of rank 1 of 2; this is rank 0 of 2" in ranks[0]["another"]


def test_onebit_adam_freezes_by_itself_and_sends_signs(ranks: list[dict[str, Any]]) -> None:
    losses, weights, report = ranks[0]["onebit"]
    assert torch.equal(weights, ranks[1]["onebit"][1])
    torch.testing.assert_close(weights, ranks[0]["onebit-bare"][1])
    frozen = int(report.levels["frozen"])
    assert 12 <= frozen < 60 and sum(losses[-5:]) < 0.3 * sum(losses[:5])
    n, rows = sum(x.numel() for x in net().parameters()), 48 + 48 + 3 + 3  # at most, biases whole
    signs = n / 8 + 2 * rows + 8  # of all values to the other rank, and magnitudes
    assert 4 * n * frozen < report.sent_bytes < 4 * n * frozen + (80 - frozen) * signs


def test_alone_nothing_is_sent_and_nothing_lost() -> None:
    """World size 1, in this process."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        ddp, state = wrapped("ef-levels", fraction=0.01)
        loss(ddp, 0, 0).backward()
        other = net()
        loss(other, 0, 0).backward()
        for a, b in zip(ddp.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)
        assert state.report().sent_bytes == 0 and state.report().n_steps == 1
    finally:
        dist.destroy_process_group()
