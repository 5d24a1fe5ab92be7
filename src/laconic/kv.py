"""Caches of keys and values: compressed, drop-in for transformers, judged token by token.

cache = laconic.kv.cache(model, recipe="turboquant", bits=3)
model.generate(**inputs, past_key_values=cache)
cache.nbytes, cache.bits_per_value
cache.save("prompt.lac"); laconic.kv.load("prompt.lac", model)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_LAZY = {
    "cache": "laconic.sources.kv.cache",
    "fit": "laconic.sources.kv.fit",
    "Fitted": "laconic.sources.kv.fit",
    "CompressedCache": "laconic.sources.kv.cache",
    "CacheRecipe": "laconic.sources.kv.recipe",
    "load": "laconic.sources.kv.saving",
    "PrefixTrie": "laconic.sources.kv.tries",
    "TokenCoder": "laconic.sources.kv.tries",
    "DeltaCoder": "laconic.sources.kv.tries",
}
__all__ = ["CacheRecipe", "CompressedCache", "DeltaCoder", "Fitted", "PrefixTrie", "TokenCoder", "cache", "fit", "load"]

if TYPE_CHECKING:
    from .sources.kv.cache import CompressedCache, cache
    from .sources.kv.fit import Fitted, fit
    from .sources.kv.recipe import CacheRecipe
    from .sources.kv.saving import load
    from .sources.kv.tries import DeltaCoder, PrefixTrie, TokenCoder


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'laconic.kv' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
