"""Models: compress to a budget, judge beside the original, load to run on few-bit codes, export to others' formats.

laconic.weights.compress("MODEL", out="OUT", bits=3.0, calibration=["text.txt"])
model = laconic.weights.load("OUT")
laconic.weights.export("OUT", "TARGET", to="gguf")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_LAZY = {
    "compress": "laconic.sources.weights.compress",
    "judge": "laconic.sources.weights.judge",
    "evaluate": "laconic.sources.weights.judge",
    "load": "laconic.sources.weights.loading",
    "footprint": "laconic.sources.weights.runtime",
    "export": "laconic.sources.weights.export",
    "cut": "laconic.sources.weights.stack",
}
__all__ = ["compress", "cut", "evaluate", "export", "footprint", "judge", "load"]

if TYPE_CHECKING:
    from .sources.weights.compress import compress
    from .sources.weights.export import export
    from .sources.weights.judge import evaluate, judge
    from .sources.weights.loading import load
    from .sources.weights.runtime import footprint
    from .sources.weights.stack import cut


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'laconic.weights' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
