"""Bases of heads trained so that any number of their first coordinates serves the model, and the ranks that each head gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...allocate import greedy
from ...core.errors import BadConfig
from .budgets import _kl, _Probe

if TYPE_CHECKING:
    from torch import Tensor

    from ...core.stage import Stage
    from .recipe import CacheRecipe

SCHEDULE = (1, 2, 3, 4, 5, 6, 7, 8)  # eighths of d that a step may leave
RUNGS = (1, 2, 3, 4, 6, 8)  # those that the search tries
Codecs = dict[int, tuple["Stage", "Stage"]]


@dataclass(frozen=True)
class Matryoshka:
    """How bases are trained: steps, tokens of each, Adam's rate; sequences on which ranks are judged."""

    steps: int = 200
    length: int = 256
    rate: float = 1e-4
    judged: int = 2

    def __post_init__(self) -> None:
        if self.steps < 0 or self.length < 16 or self.rate <= 0 or self.judged < 1:
            raise BadConfig(f"{self.steps} steps of {self.length} tokens at {self.rate}, {self.judged} sequences to judge by; "
                            "0, 16, above 0 and 1 are the least")  # fmt: skip

    def __call__(
        self, model: Any, batches: Sequence[Tensor], recipe: CacheRecipe, codecs: Codecs,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Codecs:  # fmt: skip
        """Codecs `chain(HeadBasis, HeadRanks)` of every layer, their bases trained and their ranks searched."""
        bases = {n: [_Basis.of(c) for c in pair] for n, pair in codecs.items()}
        with torch.inference_mode(False):
            self._train(model, batches, recipe, bases, progress)
        ranks = self._searched(model, batches, recipe, bases, codecs)
        return {
            n: tuple(b.put_back(c, r) for b, c, r in zip(bases[n], codecs[n], ranks[n], strict=True))  # type: ignore[misc]
            for n in codecs
        }

    def _train(
        self, model: Any, batches: Sequence[Tensor], recipe: CacheRecipe, bases: dict[int, list[_Basis]],
        progress: Callable[[int, int, str], None] | None,
    ) -> None:  # fmt: skip
        rng = np.random.default_rng(0)
        turns = [b.turn.requires_grad_() for pair in bases.values() for b in pair]
        optimizer = torch.optim.Adam(turns, self.rate)
        frozen = [p for p in model.parameters() if p.requires_grad]
        for p in frozen:
            p.requires_grad_(False)
        try:
            for step in range(self.steps):
                ids = _piece(batches, step, self.length)
                want = _predicted(model, ids, recipe, {}, {})
                ranks = {n: [_drawn(rng, *b.size) for b in pair] for n, pair in bases.items()}
                loss = _loss(want, _run(model, ids, recipe, bases, ranks))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if progress:
                    progress(step + 1, self.steps, "bases")
        finally:
            for p in frozen:
                p.requires_grad_()
            for b in (b for pair in bases.values() for b in pair):
                b.settle()

    def _searched(
        self, model: Any, batches: Sequence[Tensor], recipe: CacheRecipe, bases: dict[int, list[_Basis]], codecs: Codecs
    ) -> dict[int, list[np.ndarray]]:
        """Ranks of every head by what the model loses when that head alone is cut, least loss a coordinate first."""
        some = [_piece(batches, i, self.length) for i in range(self.judged)]
        first = [_predicted(model, ids, recipe, {}, {}) for ids in some]
        sites = [(n, s, h) for n, pair in bases.items() for s, b in enumerate(pair) for h in range(b.size[0])]
        d = next(iter(bases.values()))[0].size[1]
        rungs = np.array([d * e // 8 for e in RUNGS])
        losses = np.zeros((len(sites), len(rungs)))
        for i, (n, s, h) in enumerate(sites):
            for j, r in enumerate(rungs[:-1]):
                ranks = {n: [np.full(b.size[0], d) for b in bases[n]]}
                ranks[n][s][h] = r
                alone = {n: bases[n]}
                losses[i, j] = np.mean([_kl(p, _predicted(model, ids, recipe, alone, ranks))
                                        for p, ids in zip(first, some, strict=True)])  # fmt: skip
        losses = np.minimum.accumulate(losses, axis=1)
        total = sum(int(c.children()["1"].ranks.sum()) for pair in codecs.values() for c in pair)  # type: ignore[attr-defined]
        choice = greedy(
            np.broadcast_to(rungs.astype(np.float64), losses.shape), losses, max(total, int(rungs[0]) * len(sites))
        )
        found = {n: [np.zeros(b.size[0], np.int64) for b in pair] for n, pair in bases.items()}
        for (n, s, h), c in zip(sites, choice, strict=True):
            found[n][s][h] = rungs[c]
        return found


class _Basis:
    """An orthogonal basis of each head, U = U_0 (I − A)⁻¹ (I + A) with A = T − Tᵀ (Cayley).

    mean: (n_heads, 1, d). start: U_0, (n_heads, d, d).
    """

    def __init__(self, mean: Tensor, start: Tensor) -> None:
        self.mean, self.start = mean, start
        self.turn = torch.zeros_like(start)

    @classmethod
    def of(cls, codec: Stage) -> _Basis:
        basis: Any = codec.children()["0"]
        rows = torch.from_numpy(basis.synthesis.astype(np.float32))
        q, r = torch.linalg.qr(rows.transpose(1, 2))
        return cls(
            torch.from_numpy(basis.mean.astype(np.float32))[:, None], q * r.diagonal(dim1=1, dim2=2).sign()[:, None]
        )

    @property
    def size(self) -> tuple[int, int]:
        return self.start.shape[0], self.start.shape[1]

    def matrix(self) -> Tensor:
        """(n_heads, d, d), a column a direction."""
        a = self.turn - self.turn.transpose(1, 2)
        eye = torch.eye(a.shape[1])
        return self.start @ torch.linalg.solve(eye - a, eye + a)

    def project(self, x: Tensor, ranks: np.ndarray) -> Tensor:
        """x (n_batch, n_heads, n, d) with the first coordinates of each head only."""
        u = self.matrix()
        kept = torch.arange(u.shape[1])[None] < torch.from_numpy(np.asarray(ranks, np.int64))[:, None]
        y = (x - self.mean) @ u
        return (y * kept[None, :, None]) @ u.transpose(1, 2) + self.mean

    def settle(self) -> None:
        """Take what was learned for the start."""
        self.start, self.turn = self.matrix().detach(), torch.zeros_like(self.start)

    def put_back(self, codec: Any, ranks: np.ndarray) -> Stage:
        """The codec with this basis and these ranks."""
        basis, codes = codec.children().values()
        rows = self.start.transpose(1, 2).numpy()
        return codec.replace(stages=(basis.replace(synthesis=rows), codes.replace(ranks=ranks)))


class _Nested(_Probe):
    """A layer whose coded keys and values are what is left of them in the first coordinates."""

    bases: list[_Basis] | None = None
    ranks: list[np.ndarray] | None = None

    def read(self) -> tuple[Tensor, Tensor]:
        keys, values = self.exact
        if self.bases is None or self.ranks is None:
            return keys, values
        rope = self.site.rope
        before = keys if rope is None else rope.turn(keys, 0, back=True)
        keys = self.bases[0].project(before, self.ranks[0])
        return (keys if rope is None else rope.turn(keys, 0)), self.bases[1].project(values, self.ranks[1])


def _run(
    model: Any, ids: Tensor, recipe: CacheRecipe, bases: dict[int, list[_Basis]], ranks: dict[int, list[np.ndarray]]
) -> Tensor:
    """Log-probabilities (n, n_vocabulary) of the second half of a sequence."""
    from .cache import listening

    layers = listening(model, recipe, _Nested)
    for layer in layers.compressed:
        layer.bases, layer.ranks = bases.get(layer.number), ranks.get(layer.number)  # type: ignore[attr-defined]
    out = model(
        input_ids=ids.to(model.device), past_key_values=layers, use_cache=True, logits_to_keep=ids.shape[1] // 2
    )
    return out.logits[0].float().log_softmax(-1)


def _predicted(
    model: Any, ids: Tensor, recipe: CacheRecipe, bases: dict[int, list[_Basis]], ranks: dict[int, list[np.ndarray]]
) -> Tensor:
    with torch.no_grad():
        return _run(model, ids, recipe, bases, ranks)


def _loss(want: Tensor, found: Tensor) -> Tensor:
    return (want.exp() * (want - found)).sum(-1).mean()


def _drawn(rng: np.random.Generator, n_heads: int, d: int) -> np.ndarray:
    return d * rng.choice(SCHEDULE, n_heads) // 8


def _piece(batches: Sequence[Tensor], step: int, length: int) -> Tensor:
    """Tokens (1, length or fewer) of calibration, another piece at each step."""
    ids = batches[step % len(batches)]
    n = max(1, ids.shape[1] // length)
    at = step // len(batches) % n * length
    return ids[:1, at : at + length]
