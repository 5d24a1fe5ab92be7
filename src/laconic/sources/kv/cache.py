"""`laconic.kv.cache`: a transformers cache that is compressed, and says what it holds."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionLayer,
)

from ...core import registry
from ...core.errors import BadConfig, unknown
from ...core.stage import Stage
from . import attention as _reading
from . import inputs as _inputs
from .fit import Fitted, fingerprint, fit, learn
from .layer import CompressedLayer, CompressedSlidingLayer, Plan
from .recipe import CacheRecipe
from .rope import Rope, rope_of, ropes_of

__all__ = ["CacheReport", "CompressedCache", "LayerReport", "cache", "recipe_of"]

Calibration = str | PathLike[str] | Sequence[str | PathLike[str]] | Tensor


class CompressedHybridLayer(LinearAttentionLayer, CompressedLayer):
    """A layer with a recurrent state, which stays as it is, and attention, whose keys and values are compressed."""

    def __init__(self, number: int, plan: Plan, number_of_states: int = 1) -> None:
        CompressedLayer.__init__(self, number, plan)
        LinearAttentionLayer.__init__(self, number_of_states)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Of attention where keys and values come together, else of the recurrent state."""
        if len(args) == 2 and not kwargs:
            CompressedLayer.lazy_initialization(self, *args)
        else:
            LinearAttentionLayer.lazy_initialization(self, *args, **kwargs)

    def reset(self) -> None:
        LinearAttentionLayer.reset(self)
        CompressedLayer.reset(self)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        LinearAttentionLayer.reorder_cache(self, beam_idx)
        CompressedLayer.reorder_cache(self, beam_idx)

    def crop(self, tokens_to_remove: int) -> None:
        LinearAttentionLayer.crop(self, tokens_to_remove)
        CompressedLayer.crop(self, tokens_to_remove)


@dataclass(frozen=True)
class Origin:
    """What a cache was made from. settings: of the recipe; rate: of what is coded; model: see `fit.fingerprint`."""

    recipe: CacheRecipe
    settings: dict[str, Any]
    rate: float
    model: str


@dataclass(frozen=True)
class LayerReport:
    """Bytes of one layer. tokens: seen; coded: behind codecs. notes: what a reader should know."""

    layer: int
    tokens: int
    coded: int
    nbytes: int
    bits_per_value: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CacheReport:
    """What a cache holds. shared_nbytes: what its codecs learned from calibration, one for all caches of a model."""

    recipe: str
    nbytes: int
    shared_nbytes: int
    bits_per_value: float
    layers: tuple[LayerReport, ...]

    def __str__(self) -> str:
        shared = f", and {self.shared_nbytes:,} of codecs for all caches of the model" if self.shared_nbytes else ""
        lines = [f"{self.recipe}: {self.nbytes:,} bytes, {self.bits_per_value:.2f} bits a value{shared}"]
        lines.append(f"{'layer':>5} {'tokens':>9} {'coded':>9} {'bytes':>13} {'bits a value':>12}")
        for x in self.layers:
            notes = "".join(f"  {n}" for n in x.notes)
            lines.append(f"{x.layer:>5} {x.tokens:>9,} {x.coded:>9,} {x.nbytes:>13,} {x.bits_per_value:>12.2f}{notes}")
        return "\n".join(lines)


class CompressedCache(Cache):
    """`past_key_values` for `generate` and `forward`; made by `cache`."""

    def __init__(self, layers: list[Any], recipe: str, fitted: Fitted | None, origin: Origin) -> None:
        super().__init__(layers=layers)
        self.recipe, self.fitted, self.origin = recipe, fitted, origin

    @property
    def compressed(self) -> list[CompressedLayer]:
        """The layers that are compressed; recurrent states and others stay as they are."""
        return [layer for layer in self.layers if isinstance(layer, CompressedLayer)]

    @property
    def is_linear(self) -> list[bool]:
        """Which layers have a recurrent state and no attention."""
        kinds = zip(super().is_linear, self.layers, strict=True)
        return [linear and not isinstance(layer, CompressedLayer) for linear, layer in kinds]

    @property
    def nbytes(self) -> int:
        """Every byte of keys and values that is held: codes, side information, sinks, windows, unused parts of pages."""
        return sum(layer.nbytes for layer in self.compressed)

    @property
    def shared_nbytes(self) -> int:
        """Bytes of what the codecs learned from calibration: the model's, not this cache's."""
        return 0 if self.fitted is None else self.fitted.nbytes

    @property
    def n_values(self) -> int:
        """Keys and values that attention may see, of all sequences and layers."""
        return sum(_values(layer) for layer in self.compressed)

    @property
    def bits_per_value(self) -> float:
        """8 · nbytes over `n_values`."""
        return 8 * self.nbytes / max(self.n_values, 1)

    def save(self, path: str | PathLike[str]) -> int:
        """Write the cache to a file that `laconic.kv.load` reads; bytes on disk. Raises BadConfig where it has no such form."""
        from .saving import save

        return save(self, path)

    def to_bytes(self) -> bytes:
        """The bytes of that file."""
        from .saving import to_bytes

        return to_bytes(self)

    def report(self) -> CacheReport:
        """Layer by layer."""
        rows = tuple(
            LayerReport(x.number, x.n_seen, x.n_coded, x.nbytes, 8 * x.nbytes / max(_values(x), 1), x.notes())
            for x in self.compressed
        )
        return CacheReport(self.recipe, self.nbytes, self.shared_nbytes, self.bits_per_value, rows)


def _values(layer: CompressedLayer) -> int:
    if layer.window is None:
        return 0
    n = min(layer.n_seen, layer.sliding - 1) if layer.sliding else layer.n_seen
    return len(layer.window.keys) * layer.site.n_heads * n * (layer.site.d + layer.site.d_value)


def cache(
    model_or_config: Any,
    *,
    recipe: str | CacheRecipe | Fitted = "auto",
    bits: float | None = None,
    context: int | None = None,
    calibration: Calibration | None = None,
    tokenizer: Any = None,
    attention: str = "packed",
    window: int | None = None,
    sinks: int | None = None,
    **settings: Any,
) -> CompressedCache:
    """An empty compressed cache for a model.

    recipe: an id of `laconic.recipes("kv")`, with or without its "-cache", a `CacheRecipe`, or what `laconic.kv.fit` gave.
    bits: of a value that is coded; with `context`, of all values at that length, windows and sinks included.
    calibration: text, files or token ids (n, n_tokens) that codecs learn from; without it they learn from the first prompt, and
        then what they learned counts.
    attention: "packed" gives the model laconic's attention, which reads codes; "dense" decodes the history for the model's own.
        With a configuration in place of a model it is dense.
    window, sinks, settings: of the recipe.

    Raises
    ------
    BadConfig: an unknown id or setting, or a model that the recipe cannot serve.
    """
    model = model_or_config if isinstance(model_or_config, torch.nn.Module) else None
    if attention not in ("packed", "dense"):
        raise unknown("attention", attention, ["packed", "dense"])
    if calibration is not None:
        if model is None:
            raise BadConfig("calibration runs the model; give the model, not its configuration")
        recipe = fit(model, recipe=recipe, bits=bits, calibration=calibration, tokenizer=tokenizer, context=context,
                     window=window, sinks=sinks, **settings)  # fmt: skip
        bits = context = window = sinks = None
        settings = {}
    fitted = recipe if isinstance(recipe, Fitted) else None
    if fitted is not None and (settings or any(v is not None for v in (bits, context, window, sinks))):
        raise BadConfig("bits, context, window, sinks and settings were chosen when the recipe was fitted")
    name, chosen, rate = _chosen(recipe, bits, context, window, sinks, settings)
    outer = model.config if model is not None else model_or_config
    config = outer.get_text_config(decoder=True)
    packed = attention == "packed" and model is not None
    if getattr(outer, "is_encoder_decoder", False):
        raise BadConfig(
            f"model type {outer.model_type!r} has an encoder, whose keys are not a history; decoders alone are right"
        )
    if packed:
        _reading.attach(model)
    elif chosen.evict is not None or chosen.retrieve is not None or chosen.salient is not None:
        raise BadConfig(f"recipe {name!r} looks at queries; give the model, and attention='packed'")
    if chosen.inputs != "none" and model is None:
        raise BadConfig(f"recipe {name!r} codes the inputs of layers; give the model, not its configuration")
    if fitted is not None:
        fitted.check(config)
    modules = _modules(model) if model is not None else {}
    layers: list[Any] = []
    ropes = _ropes(model, config, chosen)
    for number, stock in enumerate(DynamicCache(config=outer).layers):
        plan = _plan(chosen, rate, fitted, number, config if packed else None, ropes[number], modules.get(number))
        layers.append(_layer(stock, number, plan))
    if not any(isinstance(x, CompressedLayer) for x in layers):
        raise BadConfig(f"model type {config.model_type!r} has no attention layer whose cache grows")
    made = CompressedCache(layers, name, fitted, Origin(chosen, settings, rate, fingerprint(config)))
    if chosen.inputs != "none":
        _inputs.listen(made, modules, _blocks(model, modules), chosen.inputs)
    if model is not None and any(r is not None for r in ropes.values()):
        heard = model.register_forward_pre_hook(partial(_placed, weakref.ref(made)), with_kwargs=True)
        weakref.finalize(made, heard.remove)
    return made


def _placed(own: weakref.ref[CompressedCache], model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Tell a cache which rotary positions come next, where the caller of the model says."""
    cache, positions = own(), kwargs.get("position_ids")
    if cache is None or kwargs.get("past_key_values") is not cache or positions is None or positions.ndim != 2:
        return
    new = next(
        (t for t in (*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if t is not None), positions
    )
    for layer in cache.compressed:
        layer.place((layer.n_seen + positions.shape[1] - 1 - positions[:, -1]).expand(len(new)).cpu())


def listening(model: Any, recipe: CacheRecipe, kind: type[CompressedLayer]) -> CompressedCache:
    """A cache of layers of another kind, one for each that would be compressed, for a model with laconic's attention."""
    layers = []
    ropes = _ropes(model, model.config.get_text_config(decoder=True), recipe)
    for number, stock in enumerate(DynamicCache(config=model.config).layers):
        ours = _layer(stock, number, Plan(recipe, None, None, lambda: True, ropes[number]))
        layers.append(kind(number, ours.plan, ours.sliding) if isinstance(ours, CompressedLayer) else ours)
    return CompressedCache(layers, "", None, Origin(recipe, {}, recipe.nominal, fingerprint(model.config)))


def _ropes(model: Any, config: Any, recipe: CacheRecipe) -> dict[int, Rope | None]:
    """Rotary positions by layer: none for recipes that take keys as they are, seen where there is a model, else as it is said."""
    if recipe.rope != "before":
        return dict.fromkeys(range(config.num_hidden_layers))
    if model is not None:
        return ropes_of(model)
    types = getattr(config, "layer_types", None)
    return {n: rope_of(config, types[n] if types else None) for n in range(config.num_hidden_layers)}


def _layer(stock: Any, number: int, plan: Plan) -> Any:
    """Ours in place of transformers' layer where it holds plain keys and values."""
    if type(stock) is DynamicLayer:
        return CompressedLayer(number, plan)
    if type(stock) is DynamicSlidingWindowLayer:
        plan = replace(plan, recipe=replace(plan.recipe, sinks=0))
        return CompressedSlidingLayer(number, plan, stock.sliding_window)
    if type(stock) is LinearAttentionAndFullAttentionLayer:
        return CompressedHybridLayer(number, plan, stock.number_of_states)
    return stock


def _plan(
    recipe: CacheRecipe, rate: float, fitted: Fitted | None, number: int, config: Any, rope: Rope | None, module: Any
) -> Plan:
    codecs: tuple[Stage, Stage] | None = None
    if fitted is not None:
        codecs = fitted.codecs[number]
    elif recipe.learns != "once":
        codecs = recipe.keys(rate), recipe.values(rate)
    packed = (lambda: _reading.is_packed(config)) if config is not None else (lambda: False)
    return Plan(recipe, codecs, lambda *seen: learn(recipe, rate, rate, *seen), packed, rope, module,
                fresh=lambda: (recipe.keys(rate), recipe.values(rate)))  # fmt: skip


def _modules(model: Any) -> dict[int, Any]:
    """Attention modules by the number of their layer."""
    found: dict[int, Any] = {}
    for module in model.modules():
        number = getattr(module, "layer_idx", None)
        if isinstance(number, int) and hasattr(module, "scaling"):
            found.setdefault(number, module)
    return found


def _blocks(model: Any, modules: dict[int, Any]) -> dict[int, Any]:
    """The modules that hold attention modules, by the number of their layer."""
    number = {id(m): n for n, m in modules.items()}
    return {number[id(c)]: m for m in model.modules() for c in m.children() if id(c) in number}


def recipe_of(recipe: str | CacheRecipe, bits: float | None, **settings: Any) -> tuple[str, CacheRecipe]:
    """The recipe by its id, with its settings. Raises BadConfig for an unknown one, or one that is no cache's."""
    if isinstance(recipe, CacheRecipe):
        if settings:
            raise BadConfig(f"settings {', '.join(settings)} of a recipe that is made already")
        return "custom", recipe
    recipe, build = _builder(recipe)
    parameters = inspect.signature(build).parameters
    for name in settings:
        if name not in parameters:
            raise BadConfig(f"recipe {recipe!r}: {unknown('setting', name, list(parameters))}")
    if bits is not None and "bits" in parameters:
        settings["bits"] = bits
    return recipe, build(**settings)


def defaults(recipe: str) -> dict[str, Any]:
    """The settings of a recipe and their defaults. Raises BadConfig for an unknown one."""
    return {k: p.default for k, p in inspect.signature(_builder(recipe)[1]).parameters.items()}


def _builder(recipe: str) -> tuple[str, Callable[..., Any]]:
    known = registry.recipes("kv")
    recipe = f"{recipe}-cache" if recipe not in known and f"{recipe}-cache" in known else recipe
    if recipe not in known:
        raise unknown("kv recipe", recipe, sorted(known))
    return recipe, registry.load(registry.recipe(recipe).target)


def _chosen(
    recipe: str | CacheRecipe | Fitted, bits: float | None, context: int | None, window: int | None,
    sinks: int | None, settings: dict[str, Any],
) -> tuple[str, CacheRecipe, float]:  # fmt: skip
    """Name, recipe and the rate of what is coded."""
    if isinstance(recipe, Fitted):
        return recipe.name, recipe.recipe, recipe.rate
    name, made = recipe_of(recipe, None, **settings)
    return name, *budgeted(made, bits, context, window, sinks)


def budgeted(
    recipe: CacheRecipe, bits: float | None, context: int | None, window: int | None, sinks: int | None
) -> tuple[CacheRecipe, float]:
    """The recipe with its ends as asked, and the rate of what is coded so that `bits` holds at `context` tokens."""
    changes = {k: v for k, v in (("window", window), ("sinks", sinks)) if v is not None}
    made = replace(recipe, **changes)
    rate = made.nominal if bits is None else bits
    if context is not None:
        # A window holds from `window` to `window + group − 1` tokens, (group − 1) / 2 more in the mean.
        ends = made.sinks + made.window + (made.group - 1) / 2
        if context <= ends:
            raise BadConfig(
                f"a context of {context} tokens; {ends:.0f} are kept as they are, so give more, or a smaller window"
            )
        rate = (rate * context - 16 * ends) / (context - ends)
        if rate <= 0:
            raise BadConfig(
                f"{bits} bits a value at {context} tokens; windows and sinks alone take {16 * ends / context:.2f}"
            )
    return made, rate
