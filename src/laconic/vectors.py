"""Embedding vectors: an index that keeps them in few bits, searches them, and says what it keeps.

index = laconic.vectors.Index(384, metric="cosine", recipe="klt-levels", bits=2)
index.train(x).add(x)
distances, ids = index.search(q, 10)
index.save("x.lacv"); laconic.vectors.Index.load("x.lacv")

laconic.vectors.build("x.parquet", "x.lacv", bits=2)  # a set too large for memory, in one pass
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_LAZY = {
    "Index": "laconic.sources.vectors.index",
    "build": "laconic.sources.vectors.building",
    "map_shards": "laconic.sources.vectors.building",
    "plan": "laconic.sources.vectors.building",
    "trials": "laconic.sources.vectors.auto",
}
__all__ = ["Index", "build", "map_shards", "plan", "trials"]

if TYPE_CHECKING:
    from .sources.vectors.auto import trials
    from .sources.vectors.building import build, map_shards, plan
    from .sources.vectors.index import Index


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'laconic.vectors' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
