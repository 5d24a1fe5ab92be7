"""Caches of what keys and values are made from: the layer's inputs are coded, and keys and values computed when they are read.

InputStore      X, the input of the attention module, or its part in the row spaces of the key and value projections
StreamStore     the residual stream in front of the layer's norm, coded as its change since the layer before
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ...core.errors import BadConfig
from .past import CodedPast

if TYPE_CHECKING:
    from torch import Tensor

    from ...core.stage import Stage, Stats
    from .cache import CompressedCache
    from .recipe import CacheRecipe
    from .store import Site


@dataclass(frozen=True)
class Inputs:
    """Inputs of a layer. x: (n_batch, n_tokens, width), sixteen bits. shift: (n_batch,) int64, place in the cache less the
    rotary position, more than 0 where a sequence is padded on the left.
    """

    x: Tensor
    shift: Tensor

    @property
    def n_tokens(self) -> int:
        return self.x.shape[1]

    @property
    def nbytes(self) -> int:
        return self.x.nbytes

    def slice(self, start: int, stop: int | None = None) -> Inputs:
        return Inputs(self.x[:, start:stop].clone(), self.shift)

    def select(self, index: Tensor) -> Inputs:
        return Inputs(self.x[index], self.shift[index])

    def cat(self, more: Inputs) -> Inputs:
        return Inputs(torch.cat([self.x, more.x], 1), more.shift)


# --- hearing them


def listen(cache: CompressedCache, modules: dict[int, Any], blocks: dict[int, Any], what: str) -> None:
    """Have every layer of a cache told its inputs while the cache lives. what: as `CacheRecipe.inputs`."""
    from dataclasses import replace

    own, handles = weakref.ref(cache), []
    last: Any = None
    for layer in cache.compressed:
        n = layer.number
        if n not in modules or n not in blocks:
            raise BadConfig(f"layer {n} has no attention module that names its number; a recipe that is told inputs needs one "
                            "in each")  # fmt: skip
        before = partial(_store_of, None if last is None else weakref.ref(last))
        layer.plan = replace(layer.plan, block=blocks[n], before=before)
        hook = partial(_hear, own, n, what)
        heard = modules[n] if what == "attention" else blocks[n]
        handles.append(heard.register_forward_pre_hook(hook, with_kwargs=True))
        last = layer
    weakref.finalize(cache, _stop, handles)


def _store_of(layer: weakref.ref[Any] | None) -> Any:
    there = None if layer is None else layer()
    return None if there is None else there.store


def _stop(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()


def _hear(
    own: weakref.ref[CompressedCache],
    number: int,
    what: str,
    module: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    from .layer import short

    cache = own()
    if cache is None or kwargs.get("past_key_values") is not cache:
        return
    x = args[0] if args else kwargs["hidden_states"]
    x = peaks(x) if what == "peaks" else x
    layer, positions = cache.layers[number], kwargs.get("position_ids")
    shift = torch.zeros(len(x), dtype=torch.int64)
    if positions is not None and positions.ndim == 2:
        shift = (layer.n_seen + x.shape[1] - 1 - positions[:, -1]).expand(len(x))
    layer.heard = Inputs(short(x), shift)


def peaks(x: Tensor) -> Tensor:
    """Greatest over median magnitude of each token: (n_batch, n_tokens, width) -> (n_batch, n_tokens, 1).

    Massive activations (Sun et al. 2024, 2402.17762) lie some thousand times above the median, others some ten times.
    """
    size = x.float().abs()
    return (size.amax(-1, keepdim=True) / size.median(-1, keepdim=True).values.clamp(min=1e-12)).clamp(max=65504.0)


# --- keys and values from them


@dataclass(frozen=True)
class _Maker:
    """Keys and values of a layer, made by its own attention module. Raises BadConfig for one without plain projections."""

    site: Site

    def __post_init__(self) -> None:
        if not (hasattr(self.site.module, "k_proj") and hasattr(self.site.module, "v_proj")):
            raise BadConfig(
                f"{type(self.site.module).__name__} has no k_proj and v_proj to compute keys and values with"
            )

    def keys(self, x: Tensor, shift: Tensor, start: int) -> Tensor:
        """x W_k, normed where the model does so, and rotated: (n_batch, n, width) -> (n_batch, n_heads, n, d) float32."""
        module, rope = self.site.module, self.site.rope
        return self._turned(_through(module.k_proj, x), shift, start, getattr(module, "k_norm", None), rope)

    def _turned(self, k: Tensor, shift: Tensor, start: int, norm: Any, rope: Any) -> Tensor:
        k = k.unflatten(-1, (self.site.n_heads, self.site.d))
        k = (k if norm is None else _through(norm, k)).transpose(1, 2)
        if rope is None:
            return k
        return torch.stack([rope.turn(k[b], start - int(s)) for b, s in enumerate(shift)])

    def values(self, x: Tensor) -> Tensor:
        """x W_v: (n_batch, n_heads, n, d_value) float32."""
        v = _through(self.site.module.v_proj, x)
        return v.unflatten(-1, (self.site.n_heads, self.site.d_value)).transpose(1, 2)


def _through(module: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return module(x.to(module.weight.dtype)).float()


def _subspace(weight: Tensor) -> Tensor:
    """U of W = V Σ Uᵀ, (width, rank): x U is all that W sees of x."""
    return torch.linalg.svd(weight.detach().float(), full_matrices=False).Vh.T.contiguous()


class _Inputs:
    """What both stores share: pasts of vectors that belong to no head, coded as one."""

    def __init__(self, site: Site, first: int, pasts: Sequence[CodedPast]) -> None:
        self.site, self.first, self.pasts = site, first, pasts
        self.make = _Maker(site)
        self.shift = torch.zeros(1, dtype=torch.int64)

    @property
    def n_tokens(self) -> int:
        return self.pasts[0].n_tokens

    @property
    def nbytes(self) -> int:
        return sum(p.nbytes for p in self.pasts)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Heads, that is 1, and values of a vector of each past."""
        return [(1, self.site.module.k_proj.weight.shape[1])] * len(self.pasts)

    @property
    def exact(self) -> int:
        """Groups with NaN or Inf, kept in sixteen bits."""
        return sum(p.exact for p in self.pasts)

    def bounds(self) -> Iterator[tuple[int, int]]:
        yield from self.pasts[0].bounds()

    def select(self, index: Sequence[int]) -> None:
        for past in self.pasts:
            past.select(index)
        self.shift = self.shift[list(index)]

    def crop(self, n_tokens: int) -> None:
        for past in self.pasts:
            past.crop(n_tokens)

    def forget(self, before: int) -> None:
        for past in self.pasts:
            past.forget(before)


class InputStore(_Inputs):
    """X of one layer. Where keys and values together are wider than X, X itself is coded, one vector for both; under grouped
    queries they are not, and X U_k and X U_v are coded, U the row space of a projection, each as wide as what it becomes.
    """

    def __init__(self, keys: Stage, values: Stage, site: Site, learns: str, first: int) -> None:
        self.spaces = self._spaces(site)
        pasts = [CodedPast(c, learns) for c in (keys, values)[: len(self.spaces)]]
        super().__init__(site, first, pasts)

    @staticmethod
    def _spaces(site: Site) -> list[Tensor | None]:
        k, v = (getattr(site.module, n, None) for n in ("k_proj", "v_proj"))
        if k is None or v is None or k.weight.shape[1] < k.weight.shape[0] + v.weight.shape[0]:
            return [None]
        return [_subspace(k.weight), _subspace(v.weight)]

    @property
    def shapes(self) -> list[tuple[int, int]]:
        whole = super().shapes
        return [w if s is None else (1, s.shape[1]) for s, w in zip(self.spaces, whole, strict=True)]

    def append(
        self, keys: Tensor, values: Tensor, stats: Sequence[Stats | None] | None = None, *, inputs: Inputs
    ) -> None:
        self.shift = inputs.shift
        x = inputs.x.float()[:, None]
        for space, past in zip(self.spaces, self.pasts, strict=True):
            past.append(x if space is None else x @ space, None)

    def tile(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        found = [p.tile(start, stop)[:, 0] for p in self.pasts]
        x = [f if s is None else f @ s.T for f, s in zip(found, self.spaces, strict=True)]
        return self.make.keys(x[0], self.shift, self.first + start), self.make.values(x[-1])


class StreamStore(_Inputs):
    """The residual stream in front of one layer's norm, as its change since the layer before, in closed loop: what is coded is
    x_i − x̂_{i−1}, so that errors do not add up. What is decoded is kept until the layer behind has asked for it.
    """

    def __init__(self, codec: Stage, site: Site, learns: str, first: int) -> None:
        super().__init__(site, first, [CodedPast(codec, learns)])
        if not hasattr(site.block, "input_layernorm"):
            raise BadConfig(
                f"{type(site.block).__name__} has no input_layernorm; the stream cannot become its layer's input"
            )
        self.left: dict[tuple[int, int], Tensor] = {}
        self.followed = False  # whether there is a layer behind

    def append(
        self, keys: Tensor, values: Tensor, stats: Sequence[Stats | None] | None = None, *, inputs: Inputs
    ) -> None:
        self.shift, self.left = inputs.shift, {}
        x, before = inputs.x.float(), self.site.before()
        if before is not None:
            x = x - before.stream(self.n_tokens, self.n_tokens + x.shape[1])
        self.pasts[0].append(x[:, None], None)

    def stream(self, start: int, stop: int) -> Tensor:
        """x̂ (n_batch, n, width) of some tokens, for the layer behind; handed over once where it is there already."""
        self.followed = True
        there = self.left.pop((start, stop), None)
        return self._stream(start, stop) if there is None else there

    def _stream(self, start: int, stop: int) -> Tensor:
        before, change = self.site.before(), self.pasts[0].tile(start, stop)[:, 0]
        return change if before is None else before.stream(start, stop) + change

    def tile(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        stream = self._stream(start, stop)
        if self.followed:
            self.left[start, stop] = stream
        x = _through(self.site.block.input_layernorm, stream)
        return self.make.keys(x, self.shift, self.first + start), self.make.values(x)

    def select(self, index: Sequence[int]) -> None:
        super().select(index)
        self.left = {}

    def crop(self, n_tokens: int) -> None:
        super().crop(n_tokens)
        self.left = {}


def input_store(recipe: CacheRecipe, site: Site, keys: Stage, values: Stage, first: int) -> InputStore:
    """Of XQuant: X, or X U_k behind the keys' codec and X U_v behind the values'."""
    return InputStore(keys, values, site, recipe.learns, first)


def stream_store(recipe: CacheRecipe, site: Site, keys: Stage, values: Stage, first: int) -> StreamStore:
    """Of XQuant-CL: the first three layers behind the values' codec, the changes of the others behind the keys'."""
    return StreamStore(values if site.layer < BASE_LAYERS else keys, site, recipe.learns, first)


BASE_LAYERS = 3
