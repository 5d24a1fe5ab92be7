"""Tokens that are dropped, head by head: scores by the attention of probe queries, budgets by what heads are like."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import avg_pool1d

from ...core.errors import BadConfig

if TYPE_CHECKING:
    from torch import Tensor

    from ...core.stage import Stage, Stats
    from .recipe import CacheRecipe
    from .store import Site

Worth = Callable[["Tensor", "Tensor"], "Tensor"]


@dataclass(frozen=True)
class Probes:
    """Queries that judge tokens. queries: (n_batch, n_query_heads, n, d), sixteen bits, rotated; at: (n,) their positions."""

    queries: Tensor
    at: Tensor

    @property
    def nbytes(self) -> int:
        return self.queries.nbytes + self.at.nbytes

    def select(self, index: Tensor) -> Probes:
        return Probes(self.queries[index], self.at)

    def crop(self, n_tokens: int) -> Probes:
        kept = self.at < n_tokens
        return Probes(self.queries[:, :, kept], self.at[kept])

    def cat(self, more: Probes) -> Probes:
        """These and then those."""
        return Probes(torch.cat([self.queries, more.queries], 2), torch.cat([self.at, more.at]))


def matrix_entropy(keys: Tensor, weights: Tensor) -> Tensor:
    """Truncated matrix entropy of each head's keys: −Σ_{i ≤ d/4} λ_i ln λ_i / ln d over the greatest eigenvalues λ of the
    covariance of the normalised, centred keys, of trace 1. keys: (n_heads, n, d) -> (n_heads,).

    Source: Xiong et al. 2024, UNComp (2410.03090), section 3.1.
    """
    x = keys - keys.mean(1, keepdim=True)
    x = x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    c = x.transpose(1, 2) @ x
    values = torch.linalg.eigvalsh(c / c.diagonal(dim1=1, dim2=2).sum(1).clamp(min=1e-12)[:, None, None])
    d = keys.shape[-1]
    top = values[:, -max(1, d // 4) :].clamp(min=1e-12)
    return -(top * top.log()).sum(1) / math.log(d)


def column_variance(keys: Tensor, weights: Tensor) -> Tensor:
    """How much the weight of a token changes with the query, relative to its mean. weights: (n_heads, n_probes, n) -> (n_heads,).

    Heads whose queries all look at the same few tokens have little of it, heads that look along diagonals much. The plain mean
    of variances, without the relation, is led by how peaked a head is instead.
    Source: Qin et al. 2025, HACK (2504.09261), section 3.
    """
    return (weights.var(1) / weights.mean(1).clamp(min=1e-12)).sum(1)


def alike(keys: Tensor, weights: Tensor) -> Tensor:
    """The same for every head."""
    return torch.zeros(len(keys))


@dataclass(frozen=True)
class Eviction:
    """Which tokens each head keeps of those that left the window.

    share: kept of them, mean over heads. worth: (keys (n_heads, n, d), weights (n_heads, rows, n)) -> (n_heads,); the upper half
    of the heads keeps share · (1 + contrast), the lower share · (1 − contrast), settled once, by the first tokens that come.
    probes: queries that judge, the latest, or with `spread` those evenly over a prompt. pool: tokens over which scores are
    averaged. recent: part of the budget of the upper heads that goes to their latest tokens in any case.
    """

    share: float = 0.5
    worth: Worth = alike
    contrast: float = 0.0
    probes: int = 8
    spread: bool = False
    pool: int = 5
    recent: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or not abs(self.contrast) < 1 or self.share * (1 + abs(self.contrast)) > 1:
            raise BadConfig(f"a share of {self.share} ± {abs(self.contrast):.0%} of it; above 0 and at most 1 is right")
        if self.probes < 1 or self.pool < 1 or self.pool % 2 == 0 or not 0 <= self.recent < 1:
            raise BadConfig(
                f"probes {self.probes}, pool {self.pool}, recent {self.recent}; 1 or more, odd, and 0 to below 1"
            )

    def noted(self, before: Probes | None, query: Tensor, n_seen: int) -> Probes:
        """The probes behind new queries (n_batch, n_query_heads, n_new, d), the last of them at n_seen − 1."""
        n = query.shape[2]
        at = torch.arange(n_seen - n, n_seen)
        if self.spread and n > self.probes:
            some = torch.linspace(0, n - 1, self.probes).round().long()
        else:
            some = torch.arange(max(0, n - self.probes), n)
        new = Probes(query[:, :, some].clone(), at[some])
        missing = self.probes - len(some)
        if before is None or missing <= 0 or len(before.queries) != len(query):
            return new
        return Probes(before.queries[:, :, -missing:], before.at[-missing:]).cat(new)

    def weights(self, keys: Tensor, at: Tensor, probes: Probes, b: int, scaling: float) -> Tensor:
        """Attention of the probes of sequence b over one head's share of tokens after another.

        keys: (n_heads, n, d) float32, at: (n_heads, n) positions -> (n_heads, rows, n); a row that sees nothing is 0.
        """
        h = len(keys)
        q = probes.queries[b].float().reshape(h, -1, len(probes.at), keys.shape[-1])
        scores = q @ keys[:, None].transpose(2, 3) * scaling
        seen = probes.at[None, None, :, None] >= at[:, None, None]
        found = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        return torch.nan_to_num(found).flatten(1, 2)

    def scores(self, weights: Tensor) -> Tensor:
        """(n_heads, rows, n) -> (n_heads, n): the sum over queries, averaged over neighbours."""
        return avg_pool1d(weights.sum(1)[:, None], self.pool, 1, self.pool // 2, count_include_pad=False)[:, 0]

    def shares(self, worth: Tensor) -> Tensor:
        """(n_heads,) shares, `share` in the mean."""
        order = worth.argsort(stable=True).argsort(stable=True)
        n = len(worth)
        side = torch.sign(2 * order.double() - (n - 1))
        return self.share * (1 + self.contrast * side)


@dataclass(frozen=True)
class Kept:
    """What one head keeps of one sequence: keys (n, d) and values (n, d_value), sixteen bits, at: (n,) int32, ascending."""

    keys: Tensor
    values: Tensor
    at: Tensor

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes + self.at.nbytes

    def take(self, index: Tensor) -> Kept:
        return Kept(self.keys[index], self.values[index], self.at[index])


class EvictingStore:
    """Keys and values of the tokens that each head keeps; the others' memory is given back.

    Whenever tokens leave the window, they and those kept so far are judged anew by the probes of that moment.
    """

    def __init__(self, eviction: Eviction, site: Site, first: int) -> None:
        self.eviction, self.site, self.first = eviction, site, first
        self.kept: list[list[Kept]] = []
        self.shares: list[Tensor] = []
        self.n_tokens = 0

    @property
    def nbytes(self) -> int:
        return sum(k.nbytes for k in {id(k): k for heads in self.kept for k in heads}.values())

    def append(
        self, keys: Tensor, values: Tensor, stats: Sequence[Stats | None] | None = None, *, probes: Probes
    ) -> None:
        from .layer import short

        scaling = getattr(self.site.module, "scaling", None) or self.site.d**-0.5
        at = torch.arange(self.n_tokens, self.n_tokens + keys.shape[2], dtype=torch.int32)
        self.n_tokens += keys.shape[2]
        keys, values = short(keys), short(values)
        if not self.kept:
            self.kept = [[] for _ in keys]
        for b, before in enumerate(self.kept):
            new = [Kept(k, v, at) for k, v in zip(keys[b], values[b], strict=True)]
            heads = [_joined(*pair) for pair in zip(before, new, strict=True)] if before else new
            if len(self.shares) <= b:
                seen = self.eviction.weights(keys[b].float(), self._places(heads), probes, b, scaling)
                self.shares.append(self.eviction.shares(self.eviction.worth(keys[b].float(), seen)))
            self.kept[b] = [self._judged(k, h, b, probes, scaling) for h, k in enumerate(heads)]

    def _places(self, heads: list[Kept]) -> Tensor:
        return torch.stack([k.at for k in heads]) + self.first

    def _judged(self, head: Kept, h: int, b: int, probes: Probes, scaling: float) -> Kept:
        """The best of one head's tokens, as many as its budget has room for."""
        share = float(self.shares[b][h])
        n = max(1, round(share * self.n_tokens))
        if n >= len(head.at):
            return head
        groups = probes.queries.shape[1] // self.site.n_heads
        own = Probes(probes.queries[b : b + 1, h * groups : (h + 1) * groups], probes.at)
        weights = self.eviction.weights(head.keys[None].float(), head.at[None] + self.first, own, 0, scaling)
        score = self.eviction.scores(weights)[0].nan_to_num(0.0)
        upper = share >= self.eviction.share
        latest = round(self.eviction.recent * n) if upper else 0
        if latest:
            score[-latest:] = torch.inf
        return head.take(score.topk(n).indices.sort().values)

    def parts(self, queries: Tensor, n_new: int, end: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """What is kept, filled up to the longest head: keys, values (n_batch, n_heads, n, d), positions with −1 for filling."""
        n = max(len(k.at) for heads in self.kept for k in heads)
        b, h = len(self.kept), self.site.n_heads
        keys, values = torch.zeros(b, h, n, self.site.d), torch.zeros(b, h, n, self.site.d_value)
        at = torch.full((b, h, n), -1)
        for i, heads in enumerate(self.kept):
            for j, k in enumerate(heads):
                m = len(k.at)
                keys[i, j, :m], values[i, j, :m], at[i, j, :m] = k.keys.float(), k.values.float(), k.at.long()
        yield keys, values, at

    def tile(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Never whole. Raises BadConfig."""
        raise BadConfig("tokens were evicted head by head; only laconic's own attention reads such a cache, which returns no "
                        "attention weights and knows no soft cap")  # fmt: skip

    def bounds(self) -> Iterator[tuple[int, int]]:
        yield 0, self.n_tokens

    def select(self, index: Sequence[int]) -> None:
        self.kept = [self.kept[i] for i in index]
        self.shares = [self.shares[i] for i in index]

    def crop(self, n_tokens: int) -> None:
        self._keep(lambda at: at < n_tokens)
        self.n_tokens = min(self.n_tokens, n_tokens)

    def forget(self, before: int) -> None:
        self._keep(lambda at: at >= before)

    def _keep(self, which: Callable[[Tensor], Tensor]) -> None:
        self.kept = [[k.take(which(k.at)) for k in heads] for heads in self.kept]


def _joined(a: Kept, b: Kept) -> Kept:
    return Kept(*(torch.cat(pair) for pair in ((a.keys, b.keys), (a.values, b.values), (a.at, b.at))))


def evicting_store(recipe: CacheRecipe, site: Site, keys: Stage, values: Stage, first: int) -> EvictingStore:
    """Of recipes with `evict`. Kept tokens stay in sixteen bits."""
    if recipe.evict is None:
        raise BadConfig("a recipe that evicts says how; set `evict`")
    return EvictingStore(recipe.evict, site, first)
