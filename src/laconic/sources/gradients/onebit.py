"""1-bit Adam: an optimizer that sends signs of its momentum once its variance is frozen."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...core.errors import BadConfig, CorruptStream, ModelMismatch, unknown
from .collective import Gather, Mean, Messages, Scatter, Traffic, Work, run
from .compressor import Report
from .exchange import DTYPES
from .recipe import PLAIN

if TYPE_CHECKING:
    from torch.distributed import GradBucket
    from torch.futures import Future

LEAST = 1e-3  # of a parameter's mean variance: the least that a value's is taken for
TOGETHER = 2  # ranks, for which (n − 1) bits a value, every one's signs to all, are no more than 2 (n − 1) / n
FEWEST = 64  # values that share a magnitude, which takes two bytes


class OneBitAdam(torch.optim.Optimizer):
    """Adam whose workers exchange gradients in full at first, then one bit a value of momentum, both ways.

        warm-up:   g = mean g_i;   m ← β₁ m + (1 − β₁) g;   v ← β₂ v + (1 − β₂) g²;   θ ← θ − lr m̂ / (√v̂ + ε)
        frozen v:  u_i = β₁ u + (1 − β₁) g_i / (√v̂ + ε);   c_i = C(u_i + e_i), e_i ← u_i + e_i − c_i      each worker
                   u = C(mean c_i + ē), ē ← mean c_i + ē − u                                each worker, for its share
                   θ ← θ − lr u

    C gives signs times the mean magnitude of a row of a parameter (of the part of it in a share). v is frozen by its own test:
    after `warmup` steps at least, as soon as ‖v_t‖₁ and ‖v_(t−Δ)‖₁ are within `stable` of each other, Δ = ⌈1/(1 − β₂)⌉; at
    `freeze_at` in any case. From then on each of n ranks sends, twice (n − 1)/n of 1 bit a value and a float16 a row. Two ranks
    send each other c_i and take u = mean c_i: as many bytes, and nothing is coded twice.

    Gradients must be each rank's own: a model without DDP, or `ddp.register_comm_hook(optimizer, laconic.gradients.hook)`, which
    leaves them alone. A parameter without gradient on a rank counts as zero there. A step that is not finite on one rank is
    skipped on all and listed in `report()`. All state lies in `state_dict()`, error memories too: it belongs to one rank.

    plain: the dtype in which gradients travel in the warm-up. The others are torch.optim.AdamW's.

    Raises
    ------
    BadConfig; ModelMismatch for a state of other parameters, another rank or another number of ranks.

    Source: Tang et al. 2021, 1-bit Adam (2102.02888), Alg. 1, and its test for the end of the warm-up. Differs: v̂ keeps its
    correction of bias, as of the last step before it was frozen; the test is of corrected norms, or it would wait for the end of
    the bias instead of a settled v, and looks both ways; magnitudes are by row, not one for all, or signs would throw about the
    rows of tokens that did not occur; and what is coded is u = m / (√v̂ + ε), not m: v being constant, it is as linear, and a
    sign's error is then as large as a step, where that of m, divided by √v̂ behind the code, throws about
    what has little variance (rows of rare tokens). For the same reason v is not less than a thousandth
    of its mean over the parameter. m is not corrected once frozen, its start being long past.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0, *, warmup: int = 1, freeze_at: int | None = None, stable: float = 0.96,
        plain: str = "float32", group: Any = None,
    ) -> None:  # fmt: skip
        if not (lr >= 0 and eps >= 0 and 0 <= betas[0] < 1 and 0 <= betas[1] < 1 and weight_decay >= 0):
            raise BadConfig(
                f"lr {lr}, betas {betas}, eps {eps}, weight decay {weight_decay}; not negative, betas below 1"
            )
        if warmup < 1 or (freeze_at is not None and freeze_at < warmup) or not 0 < stable <= 1:
            raise BadConfig(
                f"warm-up {warmup}, freeze at {freeze_at}, stable {stable}; at least 1, later than that, and up to 1"
            )
        if plain not in PLAIN:
            raise unknown("dtype", plain, list(PLAIN))
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.warmup, self.freeze_at, self.stable, self.plain, self.group = warmup, freeze_at, stable, plain, group
        self.own: dict[str, Any] = {"steps": 0, "frozen": 0, "norms": [], "skipped": [], "m": None, "v": None, "correction": 1.0,
                                    "error": None, "served": None, "place": None, "shapes": self._shapes()}  # fmt: skip
        self._rows = _rows(self.own["shapes"])
        self.traffic, self.compute_s, self.dense_bytes = Traffic(), 0.0, 0.0

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"] if p.requires_grad]

    def _shapes(self) -> list[tuple[int, ...]]:
        return [tuple(p.shape) for p in self._parameters()]

    @property
    def frozen(self) -> bool:
        """Whether v is frozen and momentum travels as signs."""
        return bool(self.own["frozen"])

    def on_bucket(self, bucket: GradBucket) -> Future[Tensor]:
        """The hook's part: gradients stay each rank's own."""
        buffer = bucket.buffer()
        future: Future[Tensor] = torch.futures.Future(devices=[buffer.device] if buffer.is_cuda else None)
        future.set_result(buffer)
        return future

    def report(self) -> Report:
        """What was sent so far; levels hold the step at which v was frozen, 0 if it is not."""
        rank, world = self.own["place"] or (0, 1)
        return Report("onebit-adam", rank, world, self.own["steps"] + len(self.own["skipped"]), tuple(self.own["skipped"]),
                      self.traffic.sent_bytes, self.traffic.handed_bytes, self.dense_bytes, self.compute_s,
                      self.traffic.seconds, {"frozen": float(self.own["frozen"])})  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's own state and memories beside the settings of its groups."""
        return {**super().state_dict(), "onebit": dict(self.own)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state. Raises ModelMismatch where it is of other parameters."""
        own = dict(state_dict["onebit"])
        if list(map(tuple, own["shapes"])) != self._shapes():
            here, there = self._shapes(), list(map(tuple, own["shapes"]))
            at = next(
                (i for i, (a, b) in enumerate(zip(there, here, strict=False)) if a != b), min(len(here), len(there))
            )
            raise ModelMismatch(
                f"the state is of another model: its parameter {at} of {len(there)} does not fit the {len(here)} here"
            )
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "onebit"})
        self.own = own

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; every rank must take it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        start, before = time.perf_counter(), self.traffic.seconds
        work = self.work(*self._place())
        if self.own["place"][1] > 1:
            run(work, self.traffic, self.group)
        else:
            _alone(work)
        self.compute_s += time.perf_counter() - start - (self.traffic.seconds - before)
        return loss

    def _place(self) -> tuple[int, int]:
        import torch.distributed as dist

        found = (dist.get_rank(self.group), dist.get_world_size(self.group)) if dist.is_initialized() else (0, 1)
        if self.own["place"] not in (None, found):
            raise ModelMismatch(f"the state is of rank and ranks {self.own['place']}; here they are {found}")
        self.own["place"] = found
        return found

    @torch.no_grad()
    def work(self, rank: int, world: int) -> Work[None]:
        """One step as a worker of a network (see `collective`)."""
        own, parameters = self.own, self._parameters()
        own["place"] = rank, world
        sizes = [p.numel() for p in parameters]
        g = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).detach().reshape(-1).float() for p in parameters]
        )
        if own["m"] is None:
            own["m"], own["v"] = torch.zeros_like(g), torch.zeros_like(g)
        beta1, beta2 = self.param_groups[0]["betas"]
        self.dense_bytes += 2 * (world - 1) / world * 4 * g.numel()
        step = own["steps"] + len(own["skipped"])
        if not own["frozen"]:
            mean = yield Mean(g.to(DTYPES[self.plain]))
            mean = mean.float()
            if not bool(torch.isfinite(mean).all()):
                own["skipped"].append(step)
                return
            own["m"].lerp_(mean, 1 - beta1)
            own["v"].mul_(beta2).addcmul_(mean, mean, value=1 - beta2)
            own["steps"] += 1
            own["correction"] = 1 - beta2 ** own["steps"]
            self._update(parameters, sizes, own["m"] / (1 - beta1 ** own["steps"]))
            self._test(beta2, sizes, world)
            return
        g = g / own["v"]  # by now √v̂ + ε
        done = yield from self._signs(own["m"].lerp(g, 1 - beta1), rank, world)
        if done is None:
            own["skipped"].append(step)
            return
        own["m"] = done
        own["steps"] += 1
        self._update(parameters, sizes, done)

    def _update(self, parameters: list[Tensor], sizes: list[int], m: Tensor) -> None:
        change = m if self.own["frozen"] else m / self._scale()
        of = {id(p): part for p, part in zip(parameters, change.split(sizes), strict=True)}
        for group in self.param_groups:
            for p in group["params"]:
                if id(p) not in of:
                    continue
                if group["weight_decay"]:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(of[id(p)].reshape(p.shape).to(p.dtype), alpha=-group["lr"])

    def _scale(self) -> Tensor:
        """√v̂ + ε, (n,)."""
        return (self.own["v"] / self.own["correction"]).sqrt_().add_(self.param_groups[0]["eps"])

    def _test(self, beta2: float, sizes: list[int], world: int) -> None:
        """Freeze v once its norm has settled."""
        own, n = self.own, sum(sizes)
        delta = math.ceil(1 / (1 - beta2) - 1e-9)
        own["norms"] = [*own["norms"], float(own["v"].sum(dtype=torch.float64)) / own["correction"]][-delta - 1 :]
        old, new = own["norms"][0], own["norms"][-1]
        settled = len(own["norms"]) > delta and old > 0 and min(new / old, old / new) >= self.stable
        if own["steps"] >= self.warmup and (settled or own["steps"] == self.freeze_at):
            own["frozen"] = own["steps"]
            for part in own["v"].split(sizes):
                part.clamp_(min=float(part.mean()) * LEAST)
            own["v"] = self._scale().clamp_(min=torch.finfo(torch.float32).tiny)
            own["m"] /= own["v"]
            share = _share(n, world)
            own["error"], own["served"] = torch.zeros(n), torch.zeros(share)

    def _signs(self, m: Tensor, rank: int, world: int) -> Work[Tensor | None]:
        """The mean momentum through one bit a value, twice; None on all ranks where one is not finite."""
        own, n = self.own, m.numel()
        target = (m + own["error"]).cpu()
        healthy = bool(torch.isfinite(target).all())
        if world <= TOGETHER:
            pieces = _pieces(self._rows, 0, n)
            packet, decoded = _to_signs(target, pieces, healthy)
            gathered: Messages = yield Gather(packet)
            out = torch.stack([_from_signs(p, n, pieces) for p in gathered.packets]).mean(0)
            if not bool(torch.isfinite(out).all()):
                return None
            own["error"] = (target - decoded).to(m.device)
            return out.to(m.device)
        share = _share(n, world)
        edges = [_pieces(self._rows, min(r * share, n), min((r + 1) * share, n)) for r in range(world)]
        packets, decoded = [], torch.empty(n)
        for r in range(world):
            low, high = min(r * share, n), min((r + 1) * share, n)
            packet, decoded[low:high] = _to_signs(target[low:high], edges[r], healthy)
            packets.append(packet)
        mine = edges[rank]
        low, high = min(rank * share, n), min((rank + 1) * share, n)
        length = _packet_bytes(high - low, len(mine))
        received = yield Scatter(packets, [length] * world)
        mean = torch.zeros(high - low)
        for packet in received:
            mean += _from_signs(packet, high - low, mine)
        mean = mean / world + own["served"][: high - low]
        well = bool(torch.isfinite(mean).all())
        packet, kept = _to_signs(mean, mine, well)
        gathered = yield Gather(packet)
        shares = []
        for r, p in enumerate(gathered.packets):
            shares.append(_from_signs(p, min((r + 1) * share, n) - min(r * share, n), edges[r]))
        out = torch.cat(shares)
        if not bool(torch.isfinite(out).all()):
            return None
        own["error"] = (target - decoded).to(m.device)
        own["served"][: high - low] = mean - kept
        return out.to(m.device)


def _alone(work: Work[None]) -> None:
    """Drive a worker that has no others."""
    reply: Any = None
    while True:
        try:
            request = work.send(reply)
        except StopIteration:
            return
        if isinstance(request, Mean):
            reply = request.buffer
        else:
            reply = Messages([request.message]) if isinstance(request, Gather) else request.messages


def _share(n: int, world: int) -> int:
    """Values that each rank serves; whole bytes of signs, so the last may have fewer."""
    return -(-n // (8 * world)) * 8


def _rows(shapes: list[tuple[int, ...]]) -> np.ndarray:
    """Where the values that share a magnitude begin in the joined vector: a row, or as many as hold `FEWEST`; a vector whole."""
    starts, at = [], 0
    for shape in shapes:
        size = math.prod(shape)
        row = size // max(shape[0], 1) if len(shape) > 1 else size
        step = max(row * -(-FEWEST // max(row, 1)), 1)
        starts.append(np.arange(at, at + size, step))
        at += size
    return np.concatenate([*starts, [at]])


def _pieces(rows: np.ndarray, low: int, high: int) -> np.ndarray:
    """Lengths of the rows' parts between two places of the joined vector."""
    inside = rows[(rows > low) & (rows < high)]
    return np.diff(np.concatenate([[low], inside, [high]])) if high > low else np.zeros(0, np.int64)


def _packet_bytes(n: int, n_pieces: int) -> int:
    return -(-n // 8) + 2 * n_pieces


def _to_signs(x: Tensor, pieces: np.ndarray, healthy: bool) -> tuple[bytes, Tensor]:
    """(mean magnitudes in float16 and signs, what they decode to); NaN magnitudes where the values are not healthy."""
    values = x.numpy()
    scales = np.full(len(pieces), np.nan, np.float16)
    if healthy and len(pieces):
        sums = np.add.reduceat(np.abs(values), np.cumsum(pieces) - pieces)
        scales = np.minimum(sums / pieces, np.finfo(np.float16).max).astype(np.float16)
    each = np.repeat(scales.astype(np.float32), pieces)
    positive = values >= 0
    packet = scales.tobytes() + np.packbits(positive).tobytes()
    return packet, torch.from_numpy(np.where(positive, each, -each))


def _from_signs(packet: bytes, n: int, pieces: np.ndarray) -> Tensor:
    if len(packet) != _packet_bytes(n, len(pieces)):
        raise CorruptStream(f"{len(packet)} bytes of signs; {_packet_bytes(n, len(pieces))} are right for {n} values")
    scales = np.frombuffer(packet, np.float16, len(pieces)).astype(np.float32)
    positive = np.unpackbits(np.frombuffer(packet, np.uint8, offset=2 * len(pieces)), count=n).astype(bool)
    each = np.repeat(scales, pieces)
    return torch.from_numpy(np.where(positive, each, -each))
