"""Single tokens that stay as they are wherever they lie: attention sinks, found by massive activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from .store import PairStore

if TYPE_CHECKING:
    from torch import Tensor

    from ...core.stage import Stage, Stats
    from .inputs import Inputs
    from .recipe import CacheRecipe
    from .store import Site


class SparingStore:
    """A pair of coded keys and values, and beside it tokens of any sequence in sixteen bits that are read in their place.

    limit: tokens whose peak (`inputs.peaks`) lies above it are spared. Codecs are given the group's mean in their place, so that
    they widen no range. at: for each sequence the positions of its spared tokens, ascending.
    """

    def __init__(self, pair: PairStore, limit: float) -> None:
        self.pair, self.limit = pair, limit
        self.at: list[list[int]] = []
        self.spared: list[list[tuple[Tensor, Tensor]]] = []  # by sequence: key and value (n_heads, d)

    @property
    def n_tokens(self) -> int:
        return self.pair.n_tokens

    @property
    def exact(self) -> int:
        """Groups with NaN or Inf."""
        return self.pair.exact

    @property
    def nbytes(self) -> int:
        """Codes, and of every spared token its position in four bytes, key and value."""
        own = sum(4 + k.nbytes + v.nbytes for tokens in self.spared for k, v in tokens)
        return self.pair.nbytes + own

    @property
    def notes(self) -> tuple[str, ...]:
        n = sum(map(len, self.at))
        return (f"{n} tokens spared",) if n else ()

    def append(
        self, keys: Tensor, values: Tensor, stats: Sequence[Stats | None] | None = None, inputs: Inputs | None = None
    ) -> None:
        """inputs: peaks of the tokens, (n_batch, n_tokens, 1)."""
        from .layer import short

        if not self.at:
            self.at, self.spared = [[] for _ in keys], [[] for _ in keys]
        if inputs is not None:
            massive = inputs.x[:, :, 0].float() > self.limit
            keys, values = keys.clone(), values.clone()
            for b in massive.any(1).nonzero().reshape(-1).tolist():
                some = massive[b].nonzero().reshape(-1)
                others = ~massive[b] if not bool(massive[b].all()) else massive[b]
                for i in some.tolist():
                    self.at[b].append(self.n_tokens + i)
                    self.spared[b].append((short(keys[b, :, i]).clone(), short(values[b, :, i]).clone()))
                for x in (keys, values):
                    x[b][:, some] = x[b][:, others].mean(1, keepdim=True)
        self.pair.append(keys, values, stats)

    def tile(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        keys, values = self.pair.tile(start, stop)
        for b, (places, tokens) in enumerate(zip(self.at, self.spared, strict=True)):
            for i, (k, v) in zip(places, tokens, strict=True):
                if start <= i < stop:
                    keys[b, :, i - start], values[b, :, i - start] = k.to(keys.dtype), v.to(values.dtype)
        return keys, values

    def bounds(self) -> Iterator[tuple[int, int]]:
        yield from self.pair.bounds()

    def select(self, index: Sequence[int]) -> None:
        self.pair.select(index)
        self.at, self.spared = [list(self.at[i]) for i in index], [list(self.spared[i]) for i in index]

    def crop(self, n_tokens: int) -> None:
        self.pair.crop(n_tokens)
        self._keep(0, n_tokens)

    def forget(self, before: int) -> None:
        self.pair.forget(before)
        self._keep(before, self.n_tokens)

    def _keep(self, start: int, stop: int) -> None:
        for b, places in enumerate(self.at):
            kept = [n for n, i in enumerate(places) if start <= i < stop]
            self.at[b], self.spared[b] = [places[n] for n in kept], [self.spared[b][n] for n in kept]


def sparing(limit: float) -> Callable[[CacheRecipe, Site, Stage, Stage, int], SparingStore]:
    """The store of recipes that are told "peaks" and spare tokens above a limit."""
    return partial(_sparing_store, limit)


def _sparing_store(
    limit: float, recipe: CacheRecipe, site: Site, keys: Stage, values: Stage, first: int
) -> SparingStore:
    return SparingStore(PairStore(keys, values, site, recipe.learns, first), limit)
