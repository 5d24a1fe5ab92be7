"""A store whose codes grow coarser with age: low bit planes of a segment are let go of when newer segments come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...quantize.nested import coarser
from .past import CodedPast, Share
from .store import PairStore

if TYPE_CHECKING:
    from torch import Tensor

    from ...core.stage import Stage, Stats
    from .recipe import CacheRecipe
    from .store import Site


class StaircasePast(CodedPast):
    """Keys or values of one layer behind `NestedCodes`, one run a segment. Planes that are gone do not come back by a crop."""

    def __init__(self, codec: Any) -> None:
        super().__init__(replace(codec, steps=codec.steps[:1]))
        self.staircase = codec

    def append(self, x: Tensor, stats: Sequence[Stats | None] | None = None) -> None:
        """x: (n_batch, n_heads, n_tokens, d) float32, whole segments."""
        size = self.staircase.segment
        for start in range(0, x.shape[-2], size):
            super().append(x[:, :, start : start + size])
        for i, bits in enumerate(self.staircase.widths(len(self.runs))):
            aged = {id(c): self._aged(c, bits) for c in self.runs[i].coded}
            self.runs[i] = replace(self.runs[i], coded=tuple(aged[id(c)] for c in self.runs[i].coded))

    def _aged(self, c: Share, bits: int) -> Share:
        """The same share at `bits` bits, where it has more."""
        has = (c.codec or self.codec).steps[0]  # type: ignore[attr-defined]
        if c.exact or bits >= has:
            return c
        return c._replace(payload=coarser(c.payload, has, bits), codec=replace(self.staircase, steps=(bits,)))


def staircase_store(recipe: CacheRecipe, site: Site, keys: Stage, values: Stage, first: int) -> PairStore:
    """Keys and values that age together."""
    store = PairStore(keys, values, site, recipe.learns, first)
    store.keys, store.values = StaircasePast(keys), StaircasePast(values)
    return store
