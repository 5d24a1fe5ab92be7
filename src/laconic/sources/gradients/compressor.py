"""The state of a communication hook: what one rank remembers, sends and reports."""

from __future__ import annotations

import inspect
import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ...core import registry
from ...core.errors import BadConfig, ModelMismatch, unknown
from ...quantize.lowrank import LowRankCode
from ...transforms.cast import Half
from .collective import Traffic, Work, run
from .exchange import (
    add_codes,
    add_numbers,
    aim,
    exchange_codes,
    exchange_factors,
    exchange_plain,
    exchange_whole,
    matrix,
)
from .memory import Memory, Names, check_shapes
from .plan import choose
from .recipe import GradientRecipe

if TYPE_CHECKING:
    from torch.distributed import GradBucket
    from torch.futures import Future

NONFINITE = ("zero", "pass")


def _plain(dtype: str) -> GradientRecipe:
    return GradientRecipe(lambda _: Half(), 1.0, None, "plain", plain=dtype)


def _powersgd(rank: int = 4, plain: str = "float32") -> GradientRecipe:
    return GradientRecipe(lambda r: LowRankCode(), float(rank), travels="factors", plain=plain)


# What is no published compressor of its own, to compare with: nothing, halves, and one rank everywhere.
BASELINES = {"none": lambda: _plain("float32"), "fp16": lambda: _plain("float16"), "powersgd": _powersgd}


class Report(NamedTuple):
    """Of one rank, from the first step on. Bytes as in `collective`.

    skipped: steps whose gradients were not finite on some rank. dense_bytes: what uncompressed float32 would have sent.
    compute_s, network_s: seconds in the hook, without and within collectives.
    """

    recipe: str
    rank: int
    world: int
    n_steps: int
    skipped: tuple[int, ...]
    sent_bytes: float
    handed_bytes: int
    dense_bytes: float
    compute_s: float
    network_s: float
    levels: dict[str, float]

    @property
    def times_fewer(self) -> float:
        """Bytes of float32 over bytes sent."""
        return self.dense_bytes / self.sent_bytes if self.sent_bytes else math.inf


class Compressor:
    """State for `hook`; made by `compressor`. Pickles without its process group and its parameters: it belongs to one rank.

    The exchange happens at the last bucket of a backward pass, when all gradients are known: one message a step, and a step
    that is not finite on one rank is skipped whole on all. Futures of earlier buckets wait for it.
    """

    def __init__(
        self, recipe_id: str, settings: dict[str, Any], seed: int, warmup: int, smallest: int | None, nonfinite: str
    ) -> None:
        if nonfinite not in NONFINITE:
            raise unknown("way with gradients that are not finite", nonfinite, list(NONFINITE))
        if warmup < 0:
            raise BadConfig(f"a warm-up of {warmup} steps; 0 or more are right")
        self.recipe_id, self.settings = recipe_id, settings
        self.seed, self.warmup, self.nonfinite = seed, warmup, nonfinite
        self.smallest = smallest
        self.memories: dict[str, Memory] = {}
        self.levels: dict[str, float] = {}
        self.traffic = Traffic()
        self.n_steps, self.skipped = 0, []  # type: tuple[int, list[int]]
        self.dense_bytes, self.compute_s = 0.0, 0.0
        self.place: tuple[int, int] | None = None  # rank and number of ranks
        self._transient()

    def _transient(self) -> None:
        self.group: Any = None
        recipe = recipe_of(self.recipe_id, self.settings)
        self.recipe = recipe if self.smallest is None else replace(recipe, smallest=self.smallest)
        self.control = self.recipe.control(self.recipe.at(self.recipe.level)) if self.recipe.control else None
        self.names = Names()
        self.waiting: list[tuple[GradBucket, Future[Tensor]]] = []
        self.restored = bool(self.memories)

    def __getstate__(self) -> dict[str, Any]:
        gone = ("group", "recipe", "control", "names", "waiting", "restored")
        return {k: v for k, v in self.__dict__.items() if k not in gone}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._transient()

    def bind(self, model: nn.Module, group: Any = None) -> Compressor:
        """Know the model's names for its parameters; after a restart, before the first step.

        Raises
        ------
        ModelMismatch: the state remembers a parameter that this model does not have, or has in another shape.
        """
        check_shapes(self.memories, self.names.learn(model), whole=True)
        self.group = group if group is not None else self.group
        return self

    def report(self) -> Report:
        """What was sent so far, and what it cost."""
        rank, world = self.place or (0, 1)
        t = self.traffic
        return Report(self.recipe_id, rank, world, self.n_steps, tuple(self.skipped), t.sent_bytes, t.handed_bytes,
                      self.dense_bytes, self.compute_s, t.seconds, dict(self.levels))  # fmt: skip

    def on_bucket(self, bucket: GradBucket) -> Future[Tensor]:
        """What DDP calls."""
        buffer = bucket.buffer()
        future: Future[Tensor] = torch.futures.Future(devices=[buffer.device] if buffer.is_cuda else None)
        self.waiting.append((bucket, future))
        if bucket.is_last():
            waiting, self.waiting = self.waiting, []
            self._settle_in()
            start, before = time.perf_counter(), self.traffic.seconds
            items = {
                self.names.of(p): g for b, _ in waiting for p, g in zip(b.parameters(), b.gradients(), strict=True)
            }
            if self.place and self.place[1] > 1:
                means = run(self.step(items), self.traffic, self.group)
                for name, g in items.items():
                    g.copy_(means[name])
            else:
                self.n_steps += 1
            self.compute_s += time.perf_counter() - start - (self.traffic.seconds - before)
            for b, f in waiting:
                f.set_result(b.buffer())
        return future

    def _settle_in(self) -> None:
        import torch.distributed as dist

        place = dist.get_rank(self.group), dist.get_world_size(self.group)
        if self.place is not None and self.place != place:
            raise ModelMismatch(
                f"the state is of rank {self.place[0]} of {self.place[1]}; this is rank {place[0]} of {place[1]}"
            )
        self.place = place

    def step(self, gradients: dict[str, Tensor]) -> Work[dict[str, Tensor]]:
        """One exchange: this rank's gradients by name -> the mean to apply, as float32. All ranks have the same names.

        A gradient that is zero throughout sends nothing and leaves its memory as it is (a parameter without gradient).
        """
        assert self.place is not None
        self._check(gradients)
        world = self.place[1]
        recipe = self.recipe
        coded = recipe.travels in ("codes", "whole") or recipe.factors is not None  # and codes are made on the CPU
        x = {name: (g.detach().cpu() if coded else g.detach()).float() for name, g in gradients.items()}
        ranges = {n: torch.stack(torch.aminmax(v)).tolist() if v.numel() else [0.0, 0.0] for n, v in x.items()}
        healthy = all(math.isfinite(low) and math.isfinite(high) for low, high in ranges.values())
        plain = [n for n, v in x.items() if self._is_plain(v)]
        self.dense_bytes += 2 * (world - 1) / world * 4 * sum(v.numel() for v in x.values())
        step, self.n_steps = self.n_steps, self.n_steps + 1
        means = yield from exchange_plain([x[n] for n in plain], self.recipe.plain, healthy)
        if means is None:
            self.skipped.append(step)
            fill = 0.0 if self.nonfinite == "zero" else math.nan
            return {name: torch.full_like(v, fill) for name, v in x.items()}
        out = dict(zip(plain, means, strict=True))
        names = [n for n in x if n not in out]
        if not names:
            return out
        yield from self._replan(step, {n: x[n] for n in names})
        memories = [self._memory(n, x[n]) for n in names]
        idle = [ranges[n] == [0.0, 0.0] for n in names]
        targets = [aim(self.control, m, x[n]) for n, m in zip(names, memories, strict=True)]
        levels = [self.levels.get(n, self.recipe.level) for n in names]
        if self.recipe.travels == "factors":
            said = [torch.zeros_like(t) if i else t for t, i in zip(targets, idle, strict=True)]
            ranks = [int(level) for level in levels]
            codec = self.recipe.factors
            add = add_numbers(self.recipe.plain) if codec is None else add_codes(codec, self.place[0])
            sent = yield from exchange_factors(said, memories, ranks, names, self.seed, add, codec is not None)
        else:
            heard = [None if i else t for t, i in zip(targets, idle, strict=True)]
            codecs = [self.recipe.at(level) for level in levels]
            if self.recipe.travels == "whole":
                sent = yield from exchange_whole(heard, [x[n].shape for n in names], codecs[0], self.place[0])
            else:
                sent = yield from exchange_codes(heard, codecs, self.place[0])
        for name, memory, target, (own, mean), i in zip(names, memories, targets, sent, idle, strict=True):
            if self.control is not None and own is not None and not i:
                memory.state = self.control.settle(memory.state, x[name], target, own)
            if mean is None:
                mean = torch.zeros_like(x[name])
            if self.control is not None:
                mean, memory.seen = self.control.follow(memory.seen, mean)
            out[name] = mean
        return out

    def _check(self, gradients: dict[str, Tensor]) -> None:
        shapes = {name: tuple(g.shape) for name, g in gradients.items()}
        check_shapes(self.memories, shapes, whole=self.restored and not self.names.of_model)
        self.restored = False

    def _is_plain(self, x: Tensor) -> bool:
        recipe = self.recipe
        if recipe.travels == "plain" or self.n_steps < self.warmup or x.ndim < 2 or x.numel() < recipe.smallest:
            return True
        m, n = matrix(x.shape)
        return recipe.travels == "factors" and recipe.level * (m + n) >= m * n

    def _memory(self, name: str, x: Tensor) -> Memory:
        if name not in self.memories:
            self.memories[name] = Memory(tuple(x.shape))
        return self.memories[name]

    def _replan(self, step: int, x: dict[str, Tensor]) -> Work[None]:
        plan, t = self.recipe.plan, step - self.warmup
        if plan is None:
            return
        due = plan.window - 1 if t < plan.window else -(-t // plan.every) * plan.every  # of the next plan
        if due - t >= plan.window:
            return
        for name, v in x.items():
            memory = self._memory(name, v)
            memory.total = v.clone() if memory.total is None else memory.total.add_(v)
        if t == due:
            names, totals = list(x), [self.memories[n].total for n in x]
            levels = yield from choose(totals, self.recipe)  # type: ignore[arg-type]
            self.levels = dict(zip(names, levels, strict=True))
            for name in names:
                self.memories[name].total = None


def recipe_of(recipe_id: str, settings: dict[str, Any]) -> GradientRecipe:
    """The recipe of an id of domain "gradients", or of a baseline. Raises BadConfig."""
    known_ids = [*registry.recipes("gradients"), *BASELINES]
    if recipe_id not in known_ids:
        raise unknown("compressor of gradients", recipe_id, known_ids)
    build = BASELINES.get(recipe_id) or registry.load(registry.recipe(recipe_id).target)
    known = list(inspect.signature(build).parameters)
    for setting in settings:
        if setting not in known:
            raise BadConfig(f"compressor {recipe_id!r}: {unknown('setting', setting, known)}")
    recipe: GradientRecipe = build(**settings)
    return recipe


def compressor(
    recipe_id: str, model: nn.Module | None = None, *, seed: int = 0, warmup: int = 0, smallest: int | None = None,
    nonfinite: str = "zero", group: Any = None, **settings: Any,
) -> Compressor:  # fmt: skip
    """The state of `hook`: `ddp.register_comm_hook(compressor("ef-levels", ddp), hook)`.

    recipe_id: `laconic.recipes("gradients")`, or "none", "fp16", "powersgd" to compare with. settings: the recipe's.
    model: gives parameters their names, so that a checkpoint finds them whatever their order; without it they are numbered.
    seed: of what all ranks draw alike; the same on all ranks. warmup: steps that are sent as they are.
    smallest: parameters of fewer values travel as they are; None: as the recipe says.
    nonfinite: gradients with NaN or Inf on some rank are set to "zero" on all, or to NaN ("pass", what a GradScaler wants, which
        then skips the step on all ranks and lowers its scale); memories stay as they are, and `report` says which steps.
    group: the process group, the default one if None. With one rank nothing is sent, so nothing is lost.

    Raises
    ------
    BadConfig: an unknown id, an unknown setting, a value that cannot work.
    """
    recipe = recipe_of(recipe_id, settings)
    if recipe.optimizer:
        raise BadConfig(
            f"{recipe_id!r} sends momentum, not gradients: use laconic.gradients.{recipe.optimizer}(parameters, …)"
        )
    made = Compressor(recipe_id, settings, seed, warmup, smallest, nonfinite)
    made.group = group
    return made.bind(model) if model is not None else made
