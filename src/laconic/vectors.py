"""Embedding vectors: an index that keeps them in few bits, searches them, and says what it keeps.

index = laconic.vectors.Index(384, metric="cosine", recipe="klt-levels", bits=2)
index.train(x).add(x)
distances, ids = index.search(q, 10)
index.save("x.lacv"); laconic.vectors.Index.load("x.lacv")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_LAZY = {"Index": "laconic.sources.vectors.index", "trials": "laconic.sources.vectors.auto"}
__all__ = ["Index", "trials"]

if TYPE_CHECKING:
    from .sources.vectors.auto import trials
    from .sources.vectors.index import Index


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'laconic.vectors' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
