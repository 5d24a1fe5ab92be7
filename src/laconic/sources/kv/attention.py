"""Attention that reads codes: transformers' `attn_implementation="laconic"`.

A layer of a compressed cache marks the keys that it hands out. Where attention gets marked keys, it runs over the layer's
sinks, codes and window, tile by tile under a running softmax (Milakov & Gimelshein 2018, 1805.02867), and no more than a tile
is ever decoded; one new token at a time meets pages of codes in a kernel. All other calls go to the implementation that the
model had before.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ...core.errors import BadConfig
from .layer import CompressedLayer, Ends

if TYPE_CHECKING:
    from torch import Tensor

NAME = "laconic"
BEFORE = "_laconic_attention_before"
KERNEL_ROWS = 32  # queries a head that the kernel takes at once; more are a matrix product's affair
_STOCK_ONLY = (
    "position_bias",
)  # of the keywords that change the result, those that a stock implementation alone knows


class Columns:
    """The mask by key positions: added to scores (n_batch, n_heads, rows, d), or None where all is seen.

    added: (n_batch, 1 or n_query_heads, n_new, n_columns) or None. first: column of position 0, negative where the front of
    the history has none. alike: whether all rows of a sequence see the same.
    """

    def __init__(self, added: Tensor | None, first: int, groups: int, n_new: int, n_heads: int) -> None:
        self.added, self.first, self.groups, self.n_new, self.n_heads = added, first, groups, n_new, n_heads
        self.alike = added is None or (n_new == 1 and added.shape[1] == 1)

    def __call__(self, start: int, stop: int) -> Tensor | None:
        if self.added is None:
            return None
        part = self.added[..., self.first + start : self.first + stop]
        rows = self.groups * self.n_new
        if part.shape[1] == 1:
            return part.expand(-1, self.groups, -1, -1).reshape(len(part), 1, rows, -1)
        return part.reshape(len(part), self.n_heads, rows, -1)

    def at(self, positions: Tensor) -> Tensor:
        """For keys of any positions, (n_batch, n_heads, n), −1 where there is none: (n_batch, n_heads, 1 or rows, n)."""
        gone = torch.where(positions < 0, -torch.inf, 0.0)[:, :, None]
        if self.added is None:
            return gone
        whole = self(-self.first, self.added.shape[-1] - self.first)
        column = (positions + self.first).clamp(0, whole.shape[-1] - 1)[:, :, None]
        shape = (*positions.shape[:2], whole.shape[2], positions.shape[2])
        behind = torch.where(positions + self.first < 0, -torch.inf, 0.0)[:, :, None]  # of a sliding window
        return whole.expand(*shape[:3], -1).gather(3, column.expand(shape)) + gone + behind

    def seen(self, b: int, start: int, stop: int) -> Tensor | None:
        """Which positions a sequence sees, uint8, where all its rows see the same and nothing else is added."""
        if self.added is None:
            return None
        row = self.added[min(b, len(self.added) - 1), 0, 0, self.first + start : self.first + stop]
        return (row > -torch.inf).to(torch.uint8)


class Softmax:
    """Σ e^s v and Σ e^s over keys that come in tiles, for queries (n_batch, n_heads, rows, d).

    softcap: c of s → c tanh(s / c), in front of the mask.
    """

    def __init__(self, queries: Tensor, softcap: float | None = None) -> None:
        self.queries, self.softcap = queries, softcap
        self.most = queries.new_full(queries.shape[:3], -torch.inf)
        self.total = queries.new_zeros(queries.shape[:3])
        self.mixed: Tensor | None = None

    def add(self, keys: Tensor, values: Tensor, mask: Tensor | None) -> None:
        """keys, values: (n_batch, n_heads, n_tokens, d) float32. mask: added to the scores, or None."""
        if not keys.shape[2]:
            return
        scores = self.queries @ keys.transpose(2, 3)
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        if mask is not None:
            scores = scores + mask
        self.merge(*_shares(scores, values))

    def merge(self, most: Tensor, total: Tensor, mixed: Tensor) -> None:
        """Take in shares: their largest score, Σ e^(s − largest), and Σ e^(s − largest) v."""
        new = torch.maximum(self.most, most)
        safe = torch.where(new == -torch.inf, 0.0, new)
        a, b = torch.exp(self.most - safe), torch.exp(most - safe)
        self.total = self.total * a + total * b
        self.mixed = mixed * b[..., None] if self.mixed is None else self.mixed * a[..., None] + mixed * b[..., None]
        self.most = new

    def result(self) -> Tensor:
        """Softmax-weighted means of the values; 0 for a query that sees nothing."""
        assert self.mixed is not None
        return self.mixed / self.total.clamp(min=1e-30)[..., None]


def _shares(scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    most = scores.amax(-1)
    weights = torch.exp(scores - torch.where(most == -torch.inf, 0.0, most)[..., None])
    return most, weights.sum(-1), weights @ values


def attend(
    layer: CompressedLayer,
    query: Tensor,
    mask: Tensor | None,
    scaling: float,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
) -> Tensor:
    """Attention of new queries over a layer's whole history, themselves included.

    query: (n_batch, n_query_heads, n_new, d), rotated. mask: (n_batch, 1 or n_query_heads, n_new, n_keys), bool (True: seen) or
    added to the scores; None: each sees everything up to itself. softcap: see `Softmax`. s_aux: (n_query_heads,) scores of
    heads for looking at nothing. Gives (n_batch, n_query_heads, n_new, d_value) float32.
    """
    b, hq, n_new, d = query.shape
    h = layer.site.n_heads
    groups = hq // h
    softmax = Softmax((query.float() * scaling).reshape(b, h, groups * n_new, d), softcap)
    assert layer.window is not None
    n_keys = _visible(layer, n_new)
    added = None if mask is None and n_new == 1 else _added(mask, n_new, n_keys, query.device)
    if added is not None and n_new == 1 and not bool((added < 0).any()):
        added = None
    column = n_keys - layer.n_seen  # of position 0; negative where the front of the history is not visible

    columns = Columns(added, column, groups, n_new, h)

    def ends(e: Ends, start: int) -> None:
        skip = max(0, -(column + start))
        if skip < e.n_tokens:
            keys, values = e.keys[:, :, skip:].float(), e.values[:, :, skip:].float()
            softmax.add(keys, values, columns(start + skip, start + e.n_tokens))

    if layer.sinks is not None:
        ends(layer.sinks, 0)
    if layer.n_coded:
        _codes(layer, softmax, columns, max(0, -column - layer.n_first))
    ends(layer.window, layer.n_seen - layer.window.n_tokens)
    if s_aux is not None:
        nothing = s_aux.float().reshape(1, h, groups, 1).expand(b, -1, -1, n_new).reshape(b, h, -1)
        assert softmax.mixed is not None
        softmax.merge(nothing, torch.ones_like(nothing), torch.zeros_like(softmax.mixed))
    return softmax.result().reshape(b, hq, n_new, -1)


def _visible(layer: CompressedLayer, n_new: int) -> int:
    """Keys that the mask has columns for."""
    return min(layer.n_seen, layer.sliding - 1 + n_new) if layer.sliding else layer.n_seen


def _codes(layer: CompressedLayer, softmax: Softmax, columns: Columns, first: int) -> None:
    """Tokens first … of the store: pages by the kernel where one new token meets them, else tile by tile."""
    store, at = layer.store, layer.n_first
    assert store is not None
    if (parts := getattr(store, "parts", None)) is not None:  # which tokens are read depends on the head or the queries
        for keys, values, positions in parts(softmax.queries, columns.n_new, layer.n_seen - at):
            softmax.add(keys, values, columns.at(torch.where(positions < 0, -1, positions + at)))
        return
    groups = softmax.queries.shape[2]
    if getattr(store, "paged", False) and groups <= KERNEL_ROWS and columns.alike and softmax.softcap is None:
        store.attend(softmax, columns, at, first)  # type: ignore[attr-defined]
        return
    for start, stop in store.bounds():
        start = max(start, first)
        if start < stop:
            softmax.add(*store.tile(start, stop), columns(at + start, at + stop))


def _added(mask: Tensor | None, n_new: int, n_keys: int, device: torch.device) -> Tensor:
    if mask is None:
        seen = torch.ones(n_new, n_keys, dtype=torch.bool, device=device).tril(n_keys - n_new)[None, None]
        return torch.where(seen, 0.0, -torch.inf)
    mask = mask[..., -n_new:, :n_keys]
    return torch.where(mask, 0.0, -torch.inf) if mask.dtype == torch.bool else mask.float()


def laconic_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The attention function: codes where the keys are marked, else the model's own implementation."""
    layer: CompressedLayer | None = getattr(key, "_laconic", None)
    if layer is None:
        return _stock(module, query, key, value, attention_mask, **kwargs)
    layer.handed = False
    layer.observe(query)
    if (answer := getattr(layer, "answer", None)) is not None:  # a layer that only tries what reading would cost
        scaling = kwargs.get("scaling")
        found = answer(query, query.shape[-1] ** -0.5 if scaling is None else scaling)
        return found.to(query.dtype).transpose(1, 2).contiguous(), None
    plain = not any(kwargs.get(k) is not None for k in _STOCK_ONLY) and not kwargs.get("output_attentions")
    if layer.n_seen == key.shape[-2] or not plain:  # a first prompt: nothing is coded yet
        if layer.n_seen != key.shape[-2]:
            key, value = layer.dense(key, value)
        out = _stock(module, query, key, value, attention_mask, **kwargs)
    else:
        scaling = kwargs.get("scaling")
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        found = attend(layer, query, attention_mask, scaling, kwargs.get("softcap"), kwargs.get("s_aux"))
        out = found.to(query.dtype).transpose(1, 2).contiguous(), None
    layer.settle()
    return out


def _stock(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """What the model would compute by itself. Its plain implementation, by convention `eager_attention_forward` in the file of
    the module, adds masks to scores; ours are those of sdpa, which says what is seen, or nothing where all is.
    """
    name = getattr(module.config, BEFORE, None) or "sdpa"
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if eager is not None and (name == "eager" or kwargs.get("output_attentions")):
        n_new, n_keys = query.shape[2], key.shape[2]
        if mask is None and n_new > 1:
            mask = torch.ones(n_new, n_keys, dtype=torch.bool, device=query.device).tril(n_keys - n_new)[None, None]
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.where(mask, 0.0, torch.finfo(query.dtype).min).to(query.dtype)
        return eager(module, query, key, value, mask, **kwargs)
    return ALL_ATTENTION_FUNCTIONS["sdpa" if name == "eager" else name](module, query, key, value, mask, **kwargs)


def is_packed(config: Any) -> bool:
    """Whether the model runs laconic's attention now."""
    return getattr(config, "_attn_implementation", None) == NAME


def attach(model: Any) -> None:
    """Give a model laconic's attention function. Without a compressed cache it computes what it did before."""
    config = model.config.get_text_config(decoder=True)
    before = config._attn_implementation
    if before == NAME:
        return
    AttentionInterface.register(NAME, laconic_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    if not is_packed(config):
        raise BadConfig(f"{type(model).__name__} keeps its own attention; pass attention='dense'")
    setattr(config, BEFORE, before)


def detach(model: Any) -> None:
    """Undo `attach`."""
    config = model.config.get_text_config(decoder=True)
    if config._attn_implementation == NAME:
        model.set_attn_implementation(getattr(config, BEFORE, "sdpa"))
