"""What a layer of the cache keeps of the tokens behind its window: a pair of coded pasts, or something of a recipe's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .device import past_on
from .past import TILE, Past
from .rope import Rope

if TYPE_CHECKING:
    from torch import Tensor

    from ...core.stage import Stage, Stats
    from .recipe import CacheRecipe


@dataclass(frozen=True)
class Site:
    """A layer's place in the model.

    layer: its number. n_heads: key-value heads. d: values of a key; d_value: of a value. rope: its rotary positions, or None
    where the recipe takes keys as they are. module: the attention module, where the cache knows the model; block: the module
    that holds it and its norm. before: the store of the layer in front, once there is one, for recipes that hear inputs.
    device: where keys and values come and codes stay.
    """

    layer: int
    n_heads: int
    d: int
    d_value: int
    rope: Rope | None = None
    module: Any = None
    block: Any = None
    before: Callable[[], Any] = lambda: None
    device: Any = "cpu"


class Store(Protocol):
    """Coded tokens of one layer, keys and values. Positions count from the first token that was stored, at `first`.

    `append` is told more by name where the recipe asks for it: `inputs` of the layer, `probes` to judge tokens by. A store
    that does not hand out every token has `parts` (see `attention._codes`) and refuses `tile`. One that can be saved has
    `pasts`, which hold all of it but `first` and `shift`, and their `shapes`.
    """

    @property
    def n_tokens(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def append(self, keys: Tensor, values: Tensor, stats: Sequence[Stats | None] | None = None) -> None:
        """(n_batch, n_heads, n_tokens, d) float32, keys as the model hands them over, a multiple of the recipe's group."""

    def tile(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Keys and values of some tokens, float32, keys with RoPE."""

    def bounds(self) -> Iterator[tuple[int, int]]:
        """Tiles that are decoded at once, in order."""

    def select(self, index: Sequence[int]) -> None: ...
    def crop(self, n_tokens: int) -> None: ...
    def forget(self, before: int) -> None: ...


class PairStore:
    """Keys and values, each behind its own codec; keys before or after RoPE. first: position of the first stored token.

    shift: (n_batch,) int64, place in the cache less the rotary position, for sequences that are padded on the left; or None.
    """

    def __init__(self, keys: Stage, values: Stage, site: Site, learns: str = "never", first: int = 0) -> None:
        self.site, self.first = site, first
        self.shift: Tensor | None = None
        self.turn: Any = None  # the kernel's tables for RoPE at reading
        self.keys: Past = past_on(site.device, keys, site.n_heads, site.d, learns)
        self.values: Past = past_on(site.device, values, site.n_heads, site.d_value, learns)

    @property
    def n_tokens(self) -> int:
        return self.keys.n_tokens

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    @property
    def pasts(self) -> tuple[Past, Past]:
        """What a file of the store holds."""
        return self.keys, self.values

    @property
    def shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Heads and values of a vector of each past."""
        return (self.site.n_heads, self.site.d), (self.site.n_heads, self.site.d_value)

    @property
    def exact(self) -> int:
        """Groups (tokens, where codes lie in pages) with NaN or Inf."""
        return self.keys.exact + self.values.exact

    @property
    def broken(self) -> set[int]:
        """Heads that brought them."""
        return self.keys.broken | self.values.broken

    @property
    def paged(self) -> bool:
        """Whether the attention kernel can read both as they lie."""
        return self.keys.paged and self.values.paged

    def attend(self, softmax: Any, columns: Any, at: int, first: int) -> None:
        """Add the pages' shares to a running softmax. at: position of the first stored token; first: the first that is seen."""
        import torch

        from ...kernels.attend import Rope as Turn

        keys, rope = self.keys, self.site.rope
        if rope is not None and self.turn is None:
            frequency = np.array(rope.frequency)
            turn = Turn.of(keys.decoder, frequency, interleaved=rope.interleaved, factor=rope.factor)
            self.turn = keys.turning(turn)
        shares = []
        for b, q in enumerate(softmax.queries):
            seen = columns.seen(b, at + max(keys.first, first), at + self.n_tokens)
            if first > keys.first:
                rest = torch.ones(self.n_tokens - first, dtype=torch.uint8, device=q.device) if seen is None else seen
                seen = torch.cat([rest.new_zeros(first - keys.first), rest])
            begins = at + keys.first - (0 if self.shift is None else int(self.shift[b]))
            turn = None if self.turn is None else self.turn._replace(first=begins)
            shares.append(keys.attend(b, q, self.values, self.n_tokens - keys.first, seen, turn))
        mixed, most, total = (torch.stack(part) for part in zip(*shares, strict=True))
        softmax.merge(most, total, mixed)

    def append(self, keys: Tensor, values: Tensor, stats: Sequence[Stats | None] | None = None) -> None:
        size = TILE if self.paged else keys.shape[-2]  # what is computed on the way is larger than the codes by far
        for k, v in zip(keys.split(size, 2), values.split(size, 2), strict=True):
            if self.site.rope is not None:
                k = self.site.rope.turn(k, self._position(self.n_tokens), back=True)
            self.keys.append(k, stats)
            self.values.append(v, stats)

    def tile(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        keys = self.keys.tile(start, stop)
        if self.site.rope is not None:
            keys = self.site.rope.turn(keys, self._position(start))
        return keys, self.values.tile(start, stop)

    def _position(self, token: int) -> int | Tensor:
        """Rotary position of a stored token, of every sequence its own where they are shifted."""
        return self.first + token - (0 if self.shift is None else self.shift)

    def bounds(self) -> Iterator[tuple[int, int]]:
        yield from self.keys.bounds()

    def select(self, index: Sequence[int]) -> None:
        self.keys.select(index)
        self.values.select(index)
        self.shift = None if self.shift is None else self.shift[list(index)]

    def crop(self, n_tokens: int) -> None:
        self.keys.crop(n_tokens)
        self.values.crop(n_tokens)

    def forget(self, before: int) -> None:
        self.keys.forget(before)
        self.values.forget(before)


def pair_store(recipe: CacheRecipe, site: Site, keys: Stage, values: Stage, first: int) -> PairStore:
    """The store of most recipes."""
    return PairStore(keys, values, site, recipe.learns, first)
