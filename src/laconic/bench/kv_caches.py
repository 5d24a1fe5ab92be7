"""Caches by the names that a command line has for them: `none`, ours as ID:BITS, llama.cpp's, and transformers' own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import BadConfig
from ..sources.kv.decode import MakeCache, uncompressed
from .kv_blocks import FORMATS, blocks_cache
from .kv_peers import QUANTIZED


@dataclass(frozen=True)
class Spec:
    """One cache. kind: "none", "ours", "blocks", "fp8" or "quantized", which is made in the peers' environment."""

    name: str
    kind: str
    recipe: str = ""
    bits: float | None = None


def parse(text: str) -> list[Spec]:
    """Specs separated by commas: ID, ID:BITS, a block format (`q4_0`, keys and values apart as `q8_0/q4_0`, `+rot`), …

    Raises BadConfig for bits that are no number above 0, or one spec twice.
    """
    found = [_spec(part.strip()) for part in text.split(",") if part.strip()]
    names = [s.name for s in found]
    for name in names:
        if names.count(name) > 1:
            raise BadConfig(f"the cache {name!r} is named {names.count(name)} times; once is right")
    if not found:
        raise BadConfig("no cache is named; use ID:BITS, for instance auto:3,q4_0")
    return found


def _spec(text: str) -> Spec:
    if text == "none":
        return Spec(text, "none")
    if text == "fp8":
        return Spec(text, "fp8")
    if text in QUANTIZED:
        return Spec(text, "quantized")
    if set(text.removesuffix("+rot").split("/")) <= set(FORMATS):
        return Spec(text, "blocks")
    name, colon, bits = text.partition(":")
    if name in {q.partition(":")[0] for q in QUANTIZED}:
        raise BadConfig(f"no peer {text!r}; {', '.join(QUANTIZED)} are there")
    try:
        rate = float(bits) if colon else None
    except ValueError:
        rate = -1.0
    if rate is not None and not rate > 0:
        raise BadConfig(f"{text!r}: bits are a number above 0, as in {name}:3")
    return Spec(text, "ours", name, rate)


def maker(
    spec: Spec, model: Any, *, calibration: Sequence[Path] = (), tokenizer: Any = None, context: int | None = None
) -> MakeCache:
    """What makes an empty cache of a kind for a model, or for its configuration alone.

    calibration: texts that ours are fitted to, once; without them they learn from each prompt. context: the length at which
        the bits hold with windows and sinks in them; without it they are those of a coded value.
    Raises BadConfig for a kind that is made elsewhere.
    """
    config = getattr(model, "config", model)
    if spec.kind == "none":
        return uncompressed(config)
    if spec.kind == "fp8":
        return lambda: _fp8(config)
    if spec.kind == "blocks":
        keys, _, values = spec.name.removesuffix("+rot").partition("/")
        return lambda: blocks_cache(config, keys, values or None, rotate=spec.name.endswith("+rot"))
    if spec.kind == "ours":
        return _ours(spec, model, calibration, tokenizer, context)
    raise BadConfig(f"{spec.name} is made in an environment of its own, see bench/kv_peers.py")


def _ours(spec: Spec, model: Any, calibration: Sequence[Path], tokenizer: Any, context: int | None) -> MakeCache:
    from ..sources.kv.cache import cache
    from ..sources.kv.fit import fit

    asked = {k: v for k, v in (("bits", spec.bits), ("context", context)) if v is not None}
    if not calibration:
        return lambda: cache(model, recipe=spec.recipe, **asked)
    texts = [str(path) for path in calibration]
    fitted = fit(model, recipe=spec.recipe, calibration=texts, tokenizer=tokenizer, **asked)
    return lambda: cache(model, recipe=fitted)


def _fp8(config: Any) -> Any:
    from transformers import QuantizedCache

    return QuantizedCache("fp8", config)
