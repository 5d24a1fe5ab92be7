"""Gradients of data-parallel training in fewer bytes: two lines behind `DistributedDataParallel`.

state = laconic.gradients.compressor("ef-levels", ddp)
ddp.register_comm_hook(state, laconic.gradients.hook)
state.report()                       # bytes on the wire, times fewer than float32, seconds, skipped steps
torch.save(state, f"rank{rank}.pt")  # error memories and all; resume with torch.load(…, weights_only=False).bind(ddp)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_LAZY = {
    "compressor": "laconic.sources.gradients.compressor",
    "hook": "laconic.sources.gradients.hook",
    "Compressor": "laconic.sources.gradients.compressor",
    "Report": "laconic.sources.gradients.compressor",
    "GradientRecipe": "laconic.sources.gradients.recipe",
    "OneBitAdam": "laconic.sources.gradients.onebit",
    "simulate": "laconic.sources.gradients.simulate",
}
__all__ = ["Compressor", "GradientRecipe", "OneBitAdam", "Report", "compressor", "hook", "simulate"]

if TYPE_CHECKING:
    from .sources.gradients.compressor import Compressor, Report, compressor
    from .sources.gradients.hook import hook
    from .sources.gradients.onebit import OneBitAdam
    from .sources.gradients.recipe import GradientRecipe
    from .sources.gradients.simulate import simulate


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'laconic.gradients' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
