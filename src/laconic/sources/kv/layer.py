"""The cache of one attention layer: sinks | coded groups | window, appended to, read, cropped, reordered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import CacheLayerMixin

from ...core.errors import BadConfig, BadInput
from ...core.stage import Stats
from . import scores
from .metric import query_metric
from .store import Site, Store, pair_store

if TYPE_CHECKING:
    from torch import Tensor

    from ...core.stage import Stage
    from .evict import Probes
    from .inputs import Inputs
    from .recipe import CacheRecipe


@dataclass(frozen=True)
class Plan:
    """What a layer is to do: the recipe, and its codecs; None where they learn from the first prompt (`learn`).

    learn: (keys before or after RoPE as the recipe has it, values, metric of the queries or None) -> the codecs, fitted.
    packed: whether attention is computed by laconic's function (`attention.py`), asked at every call.
    fresh: the recipe's codecs before they have learned anything.
    """

    recipe: CacheRecipe
    codecs: tuple[Stage, Stage] | None
    learn: Callable[[Tensor, Tensor, Tensor | None], tuple[Stage, Stage]] | None
    packed: Callable[[], bool] = lambda: False
    rope: Any = None
    module: Any = None
    block: Any = None
    before: Callable[[], Any] = lambda: None
    fresh: Callable[[], tuple[Stage, Stage]] | None = None


@dataclass
class Ends:
    """Tokens that are not coded, (n_batch, n_heads, n_tokens, d) each: keys as the model handed them over, and values.

    inputs: the layer's inputs that they came from, for recipes that code those.
    """

    keys: Tensor
    values: Tensor
    inputs: Inputs | None = None

    @property
    def n_tokens(self) -> int:
        return self.keys.shape[-2]

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes + (0 if self.inputs is None else self.inputs.nbytes)

    def slice(self, start: int, stop: int | None = None) -> Ends:
        """Some of the tokens, copied, so that the others can be let go of."""
        inputs = None if self.inputs is None else self.inputs.slice(start, stop)
        return Ends(self.keys[:, :, start:stop].clone(), self.values[:, :, start:stop].clone(), inputs)

    def select(self, index: Tensor) -> Ends:
        return Ends(self.keys[index], self.values[index], None if self.inputs is None else self.inputs.select(index))

    def cat(self, more: Ends) -> Ends:
        """These tokens and then those."""
        inputs = more.inputs if self.inputs is None or more.inputs is None else self.inputs.cat(more.inputs)
        return Ends(torch.cat([self.keys, more.keys], 2), torch.cat([self.values, more.values], 2), inputs)


def short(x: Tensor) -> Tensor:
    """As it is kept uncompressed: sixteen bits; float16 for float32, or bfloat16 where that would overflow."""
    x = x.detach()
    if x.dtype in (torch.float16, torch.bfloat16):
        return x
    beyond = (x.abs() > 65504) & x.isfinite()
    return x.to(torch.bfloat16 if bool(beyond.any()) else torch.float16)


def _own(x: Tensor) -> Tensor:
    """The same, but no view of something larger, which it would keep alive."""
    return x if x.untyped_storage().nbytes() == x.nbytes else x.clone(memory_format=torch.contiguous_format)


class CompressedLayer(CacheLayerMixin):
    """A cache layer after transformers' protocol. Positions count from 0; a token is coded once and never again.

    `update` returns the whole history decoded where a stock attention function reads it; where laconic's does, only what
    is new, and the function reads the codes.
    """

    is_sliding = False
    is_croppable = True
    supports_early_init = False

    def __init__(self, number: int, plan: Plan, sliding: int = 0) -> None:
        super().__init__()
        self.number, self.plan, self.sliding = number, plan, sliding
        self.sinks: Ends | None = None
        self.window: Ends | None = None
        self.store: Store | None = None
        self.learned: tuple[Stage, Stage] | None = None  # from this cache's own prompt
        self.queries: Tensor | None = None  # the latest, for recipes that look at them
        self.probes: Probes | None = None  # queries by which tokens are kept or evicted
        self.heard: Inputs | None = None  # of the tokens that come next
        self.shift: Tensor | None = None  # place in the cache less the rotary position, (n_batch,), where it is not 0
        self.n_seen = 0
        self.handed = False  # keys were marked and attention has not come for them yet

    # --- transformers' protocol

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Takes shapes and dtype from the first keys and values."""
        self.dtype, self.device = key_states.dtype, key_states.device
        recipe = self.plan.recipe
        if self.device.type != "cpu" and (recipe.store or recipe.evict or recipe.salient):
            raise BadConfig(f"keys on {self.device}; this recipe's caches are for models on the CPU so far")
        self.site = Site(self.number, key_states.shape[1], key_states.shape[-1], value_states.shape[-1],
                         self.plan.rope, self.plan.module, self.plan.block, self.plan.before, self.device)  # fmt: skip
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take in (n_batch, n_heads, n_new, d); give what attention is to see."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._fits(key_states, value_states)
        self.settle()
        self._take(key_states, value_states)
        if self.plan.packed():
            if self.handed:
                raise BadConfig("this model changes keys between cache and attention; pass attention='dense'")
            key_states._laconic, self.handed = self, True  # type: ignore[attr-defined]
            return key_states, value_states
        whole = self.dense(key_states, value_states)
        self.settle()
        return whole

    def _fits(self, keys: Tensor, values: Tensor) -> None:
        """Raise BadInput for keys and values that cannot follow those that are there."""
        if self.window is None:
            return
        if keys.device != self.window.keys.device:
            raise BadInput(f"keys on {keys.device}; the cache of layer {self.number} is on {self.window.keys.device}, where "
                           "it was begun or loaded")  # fmt: skip
        for name, new, there in (("keys", keys, self.window.keys), ("values", values, self.window.values)):
            if new.shape[:2] != there.shape[:2] or new.shape[3] != there.shape[3]:
                raise BadInput(
                    f"layer {self.number} got {name} {tuple(new.shape)}, its cache holds {tuple(there.shape)}; the same but "
                    "for tokens is right, so reset the cache for another batch"
                )

    def get_seq_length(self) -> int:
        return self.n_seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.n_seen + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def place(self, shift: Tensor) -> None:
        """Told before tokens come: place in the cache less rotary position, (n_batch,). Holds from the first coded token on."""
        if self.store is None:
            self.shift = shift if bool((shift != 0).any()) else None

    def reset(self) -> None:
        """Forget every token; codecs that were learned from a prompt are learned anew."""
        self.sinks = self.window = self.store = self.queries = self.probes = self.heard = self.shift = None
        self.n_seen, self.learned, self.is_initialized, self.handed = 0, None, False, False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.window is not None:
            self.batch_select_indices(torch.arange(len(self.window.keys)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.window is None:
            return
        self.window = self.window.select(indices)
        if self.sinks is not None:
            self.sinks = self.sinks.select(indices)
        if self.store is not None:
            self.store.select([int(i) for i in indices])
        if self.probes is not None:
            self.probes = self.probes.select(indices)
        if self.queries is not None:
            self.queries = self.queries[indices]
        if self.shift is not None:
            self.shift = self.shift[indices]

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens, given as a negative number; a coded group that is cut keeps its codes."""
        if tokens_to_remove > 0:
            raise BadConfig(f"crop({tokens_to_remove}); the number of tokens to remove, negative, is right")
        if tokens_to_remove == 0 or self.window is None:
            return
        self.settle()
        left = max(0, self.n_seen + tokens_to_remove)
        if left == 0:
            return self.reset()
        first = self.n_first
        if left >= self.n_seen - self.window.n_tokens:
            self.window = self.window.slice(0, left - (self.n_seen - self.window.n_tokens))
        else:
            self.window = self.window.slice(0, 0)
            if self.store is not None:
                self.store.crop(max(0, left - first))
            if self.sinks is not None and left < first:
                self.sinks = self.sinks.slice(0, left)
        if self.probes is not None:
            self.probes = self.probes.crop(left)
        self.n_seen = left

    # --- reading

    @property
    def n_first(self) -> int:
        """Tokens that are kept as sinks."""
        return 0 if self.sinks is None else self.sinks.n_tokens

    @property
    def n_coded(self) -> int:
        """Tokens behind codecs."""
        return 0 if self.store is None else self.store.n_tokens

    @property
    def own_bytes(self) -> int:
        """Of what codecs learned from this cache's own prompt."""
        return sum(a.nbytes for c in self.learned or () for _, a in c.arrays().values() if a is not None)

    @property
    def nbytes(self) -> int:
        """Everything that the layer holds."""
        parts = (self.sinks, self.window, self.store, self.probes)
        return (
            self.own_bytes
            + sum(p.nbytes for p in parts if p is not None)
            + (0 if self.queries is None else self.queries.nbytes)
        )

    def dense(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """The whole history, decoded; the newest tokens as they were handed over."""
        n = key_states.shape[-2]
        tiles = [(e.keys, e.values) for e in (self.sinks,) if e is not None]
        if self.store is not None:
            tiles += [self.store.tile(a, b) for a, b in self.store.bounds()]
        assert self.window is not None
        tiles += [(self.window.keys[:, :, :-n], self.window.values[:, :, :-n]), (key_states, value_states)]
        keys, values = (torch.cat([t.to(self.dtype) for t in part], 2) for part in zip(*tiles, strict=True))
        return keys, values

    def _take(self, keys: Tensor, values: Tensor) -> None:
        new = Ends(_own(short(keys)), _own(short(values)), self._inputs(keys.shape[-2]))
        self.window = new if self.window is None else self.window.cat(new)
        self.n_seen += keys.shape[-2]

    # --- coding

    def settle(self) -> None:
        """Code what has left the window, in whole groups."""
        if self.window is None:
            return
        recipe = self.plan.recipe
        if self.n_first < recipe.sinks and self.n_coded == 0 and self.window.n_tokens:
            n = min(recipe.sinks - self.n_first, self.window.n_tokens)
            head = self.window.slice(0, n)
            head.inputs = None
            self.sinks = head if self.sinks is None else self.sinks.cat(head)
            self.window = self.window.slice(n)
        n = (self.window.n_tokens - recipe.window) // recipe.group * recipe.group
        if n <= 0:
            return
        keys, values = self.window.keys[:, :, :n].float(), self.window.values[:, :, :n].float()
        if self.store is None:
            self.store = self._store(keys, values)
            if self.store is None:  # too little to learn from: the window grows on
                return
        self.store.append(keys, values, self._stats(n), **self._told(n))
        self.window = self.window.slice(n)

    def _store(self, keys: Tensor, values: Tensor) -> Store | None:
        codecs = self.plan.codecs
        if codecs is None:
            assert self.plan.learn is not None
            if keys.shape[-2] < LEARN_FROM:
                return None
            start = self.n_first if self.shift is None else self.n_first - self.shift
            before = keys if self.site.rope is None else self.site.rope.turn(keys, start, back=True)
            metric = None
            if self.queries is not None:
                metric = query_metric(self.queries.float(), self.site.n_heads, self.site.rope).cpu()
            # What is not finite is learned from as 0: it would spoil every statistic of its head.
            step = -(-keys.shape[-2] // LEARN_MOST)
            finite = (t.masked_fill(~t.isfinite(), 0.0).cpu() for t in (before[:, :, ::step], values[:, :, ::step]))
            self.learned = codecs = self.plan.learn(*finite, metric)
        return self.made(codecs)

    def empty_store(self) -> Store:
        """A store for codes that come from elsewhere. Raises BadConfig where codecs are learned from the prompt."""
        if self.plan.codecs is None:
            raise BadConfig("the codecs learn from a prompt; fit them to calibration text before prompts are shared")
        return self.made(self.plan.codecs)

    def made(self, codecs: tuple[Stage, Stage]) -> Store:
        """An empty store behind codecs that have learned what they need."""
        made = (self.plan.recipe.store or pair_store)(self.plan.recipe, self.site, *codecs, self.n_first)
        if self.shift is not None and hasattr(made, "shift"):
            made.shift = self.shift
        return made

    def observe(self, query: Tensor) -> None:
        """Queries as attention got them, (n_batch, n_query_heads, n_new, d): kept where the recipe looks at them."""
        recipe = self.plan.recipe
        if recipe.evict is not None:
            self.probes = recipe.evict.noted(self.probes, short(query), self.n_seen)
        elif recipe.salient:
            self.probes = scores.noted(self.probes, short(query), self.n_seen)
        wanted = recipe.metric and self.plan.codecs is None and self.store is None
        if not wanted:
            self.queries = None
            return
        new = short(query)
        both = new if self.queries is None or len(self.queries) != len(new) else torch.cat([self.queries, new], 2)
        self.queries = both[:, :, -PROBES:].clone()

    def notes(self) -> tuple[str, ...]:
        """What a reader of the report should know."""
        said = []
        if self.own_bytes:
            said.append(f"{self.own_bytes:,} bytes learned from the prompt")
        if exact := getattr(self.store, "exact", 0):
            heads = ", ".join(f"head {h}" for h in sorted(getattr(self.store, "broken", ())))
            said.append(f"{exact} with NaN or Inf" + (f" in {heads}" if heads else ""))
        said += getattr(self.store, "notes", ())
        return tuple(said)

    def _inputs(self, n_new: int) -> Inputs | None:
        """The layer's inputs of the newest tokens, where the recipe wants them."""
        if self.plan.recipe.inputs == "none":
            return None
        heard, self.heard = self.heard, None
        if heard is None or heard.n_tokens != n_new:
            got = 0 if heard is None else heard.n_tokens
            raise BadConfig(f"layer {self.number} took {n_new} tokens but its input was heard for {got}; use the cache that "
                            "laconic.kv.cache gave, no copy, with the model it was made for")  # fmt: skip
        return heard

    def _told(self, n_tokens: int) -> dict[str, Any]:
        """What the store is told of tokens that leave the window, beyond keys and values."""
        told: dict[str, Any] = {}
        if self.window is not None and self.window.inputs is not None:
            told["inputs"] = self.window.inputs.slice(0, n_tokens)
        if self.probes is not None and self.plan.recipe.evict is not None:
            told["probes"] = self.probes
        return told

    def _stats(self, n_tokens: int) -> Sequence[Any] | None:
        """What the codecs are told about the tokens that leave the window: how salient they are, where the recipe asks."""
        if not self.plan.recipe.salient or self.probes is None or self.window is None:
            return None
        start, module = self.n_first + self.n_coded, self.site.module
        keys = [(0, self.sinks.keys.float())] if self.sinks is not None else []
        if self.store is not None:
            keys += [(self.n_first + a, self.store.tile(a, b)[0]) for a, b in self.store.bounds()]
        keys.append((start, self.window.keys.float()))
        scaling = getattr(module, "scaling", self.site.d**-0.5)
        found = scores.received(self.probes, keys, start, start + n_tokens, scaling, self.plan.recipe.salient)
        self.probes = scores.latest(self.probes)
        return [Stats(importance=row[None, :, None]) for row in found]


PROBES = 256  # queries that are kept to look at
LEARN_FROM = 256  # tokens; a basis learned from fewer costs more than it gains
LEARN_MOST = 8192  # tokens of a prompt, evenly spread


class CompressedSlidingLayer(CompressedLayer):
    """A layer that sees the last `sliding` tokens alone: pages and groups that lie behind them are let go of."""

    is_sliding = True

    def __init__(self, number: int, plan: Plan, sliding: int) -> None:
        super().__init__(number, plan, sliding)
        self.record_past = False

    def activate_past_recording(self) -> None:
        """From now on, tokens that have left the sliding window are let go of by `crop` alone."""
        self.record_past = True

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        first = max(self.n_seen - self.sliding + 1, 0)
        return self.n_seen - first + query_length, first

    def get_max_length(self) -> int:
        return self.sliding

    def dense(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = super().dense(key_states, value_states)
        visible = self.sliding - 1 + key_states.shape[-2]
        return keys[:, :, -visible:], values[:, :, -visible:]

    def settle(self) -> None:
        super().settle()
        if not self.record_past:
            self._forget()

    def _forget(self) -> None:
        if self.store is not None:
            self.store.forget(self.n_seen - self.sliding + 1 - self.n_first)

    def crop(self, tokens_to_remove: int) -> None:
        if self.n_seen >= self.sliding and tokens_to_remove < 0 and not self.record_past:
            raise BadInput("tokens behind a full sliding window are gone; call activate_past_recording before crop")
        super().crop(tokens_to_remove)
        self._forget()
