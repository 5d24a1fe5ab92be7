"""Codecs of a cache that are fitted once: to calibration text, for every cache of a model, or to a cache's first prompt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.errors import BadConfig, BadInput, ModelMismatch
from ...core.stage import Stage, Stats
from .layer import CompressedLayer
from .metric import query_metric
from .recipe import CacheRecipe
from .store import Site

Progress = Callable[[int, int, str], None]
N_TOKENS, WINDOW = 16384, 1024  # of calibration: in all, and of a sequence


@dataclass(frozen=True)
class Fitted:
    """A recipe with the codecs of every layer. Saved as one safetensors file; `model` names the model it is for.

    rate: mean bits a value that is coded. rates: by layer, of keys and values.
    """

    name: str
    recipe: CacheRecipe
    settings: dict[str, Any]
    rate: float
    rates: dict[int, tuple[float, float]]
    codecs: dict[int, tuple[Stage, Stage]]
    model: str

    @property
    def nbytes(self) -> int:
        """Bytes of what the codecs learned."""
        return sum(
            a.nbytes for pair in self.codecs.values() for c in pair for _, a in c.arrays().values() if a is not None
        )

    def save(self, path: str | PathLike[str]) -> None:
        """Write one safetensors file with all of it."""
        from .saving import save_fitted

        save_fitted(self, path)

    @classmethod
    def load(cls, path: str | PathLike[str], recipe: CacheRecipe | None = None) -> Fitted:
        """What `save` wrote. recipe: where it has no id. Raises CorruptStream, BadConfig, ModelMismatch."""
        from .saving import load_fitted

        return load_fitted(path, recipe)

    def check(self, config: Any) -> None:
        """Raise ModelMismatch for a model of other shapes."""
        if self.model != fingerprint(config):
            raise ModelMismatch(
                f"recipe {self.name!r} was fitted to another model ({self.model}; this is {fingerprint(config)})"
            )


def fingerprint(config: Any) -> str:
    """Names a model by what its cache depends on: type, layers, heads, sizes and rotary positions."""
    config = config.get_text_config(decoder=True)
    keys = ("model_type", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "head_dim",
            "rope_parameters", "vocab_size", "layer_types")  # fmt: skip
    said = json.dumps({k: getattr(config, k, None) for k in keys}, sort_keys=True, default=str)
    return f"{config.model_type}-{hashlib.sha256(said.encode()).hexdigest()[:16]}"


def learn(
    recipe: CacheRecipe, key_rate: float, value_rate: float, keys: Tensor, values: Tensor, metric: Tensor | None
) -> tuple[Stage, Stage]:
    """Both codecs fitted. keys: (n, n_heads, n_tokens, d) as they are coded; metric: (n_heads, d, d), see `query_metric`."""
    stats = Stats(hessian=metric) if recipe.metric and metric is not None else None
    return recipe.keys(key_rate).fit(keys.float(), stats), recipe.values(value_rate).fit(values.float(), None)


@dataclass
class Heard:
    """What calibration heard of one layer. keys: as they are coded; metric: a sum over `n_batches`."""

    site: Site
    keys: list[Tensor]
    values: list[Tensor]
    metric: Tensor | None = None
    n_batches: int = 0

    def add(self, keys: Tensor, values: Tensor) -> None:
        rope = self.site.rope
        before = keys.float() if rope is None else rope.turn(keys.float(), 0, back=True)
        self.keys.append(before.half().cpu())  # learned there, wherever the model runs
        self.values.append(values.half().cpu())

    def add_queries(self, queries: Tensor) -> None:
        found = query_metric(queries.float(), self.site.n_heads, self.site.rope).cpu()
        self.metric = found if self.metric is None else self.metric + found
        self.n_batches += 1

    def learned(self, recipe: CacheRecipe, key_rate: float, value_rate: float) -> tuple[Stage, Stage]:
        metric = None if self.metric is None else self.metric / self.n_batches
        return learn(recipe, key_rate, value_rate, torch.cat(self.keys), torch.cat(self.values), metric)


class _Listener(CompressedLayer):
    """A layer that keeps nothing for the model and everything for calibration."""

    heard: Heard | None = None

    def _take(self, keys: Tensor, values: Tensor) -> None:
        self.n_seen += keys.shape[-2]
        if self.heard is None:
            self.heard = Heard(self.site, [], [])
        self.heard.add(keys, values)

    def observe(self, query: Tensor) -> None:
        assert self.heard is not None
        self.heard.add_queries(query)

    def settle(self) -> None:
        self.n_seen = 0


def fit(
    model: Any,
    *,
    recipe: str | CacheRecipe | Fitted = "auto",
    bits: float | None = None,
    calibration: Any,
    tokenizer: Any = None,
    context: int | None = None,
    window: int | None = None,
    sinks: int | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Fitted:
    """Fit a recipe's codecs to calibration text, once for all caches of a model.

    calibration: a text, files of text, or token ids (n, n_tokens). tokenizer: for text; the model's own folder's by default.
    Raises BadInput for a calibration without enough tokens, BadConfig as `cache` does.
    """
    from . import attention
    from .budgets import measured
    from .cache import _chosen

    if isinstance(recipe, Fitted):
        raise BadConfig("the recipe is fitted already")
    name, chosen, rate = _chosen(recipe, bits, context, window, sinks, settings)
    if chosen.learns != "once":
        raise BadConfig(f"recipe {name!r} learns nothing from calibration; leave calibration out")
    batches = _batches(calibration, tokenizer, model)
    attached = attention.is_packed(model.config.get_text_config(decoder=True))
    attention.attach(model)
    try:
        heard = listen(model, batches, chosen, progress)
        rates = {n: (rate, rate) for n in heard}
        if chosen.budgets == "measured":
            rates = measured(model, batches, chosen, rate, heard, progress)
        codecs = {n: h.learned(chosen, *rates[n]) for n, h in heard.items()}
        if chosen.tune is not None:
            codecs = chosen.tune(model, batches, chosen, codecs, progress)
    finally:
        if not attached:
            attention.detach(model)
    kept = settings if isinstance(recipe, str) else {}
    return Fitted(name, chosen, kept, rate, rates, codecs, fingerprint(model.config))


def listen(model: Any, batches: Sequence[Tensor], recipe: CacheRecipe, progress: Progress | None) -> dict[int, Heard]:
    """Run the model over calibration and hear what every layer's cache would be given."""
    from .cache import listening

    found: dict[int, Heard] = {}
    with torch.inference_mode():
        for i, ids in enumerate(batches):
            layers = listening(model, recipe, _Listener)
            for layer in layers.compressed:
                layer.heard = found.get(layer.number)  # type: ignore[attr-defined]
            model(input_ids=ids.to(model.device), past_key_values=layers, use_cache=True, logits_to_keep=1)
            found.update({x.number: x.heard for x in layers.compressed if x.heard is not None})  # type: ignore[attr-defined]
            if progress:
                progress(i + 1, len(batches), "calibration")
    return found


def _batches(calibration: Any, tokenizer: Any, model: Any) -> list[Tensor]:
    """Token ids (1, n_tokens) each, up to N_TOKENS in all, spread over what was given."""
    if isinstance(calibration, Tensor):
        ids = calibration if calibration.ndim == 2 else calibration[None]
        rows = [r[None] for r in ids]
    else:
        from ..weights.reading import Reader, read_text, spread

        if isinstance(calibration, (str, PathLike)):
            calibration = [calibration]
        texts = [read_text(Path(c)) if isinstance(c, PathLike) or _is_file(c) else str(c) for c in calibration]
        reader = Reader.of(tokenizer if tokenizer is not None else _tokenizer(model))
        limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or WINDOW
        size = min(WINDOW, limit)
        windows = spread(reader.windows("\n".join(texts), size, "calibration"), max(1, N_TOKENS // size))
        rows = [torch.from_numpy(w.ids)[None] for w in windows]
    n = sum(r.numel() for r in rows)
    if n < 512:
        raise BadInput(f"{n} tokens to calibrate on; 512 are the least, some ten thousand are right")
    return rows


def _is_file(text: str) -> bool:
    return len(text) < 4096 and "\n" not in text and Path(text).is_file()


def _tokenizer(model: Any) -> Any:
    from transformers import AutoTokenizer

    where = getattr(model.config, "_name_or_path", "")
    if not where:
        raise BadConfig("calibration is text and the model names no folder; give tokenizer=")
    return AutoTokenizer.from_pretrained(where)
