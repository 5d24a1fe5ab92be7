"""laconic says it in fewer bits: compression for everything a machine-learning system stores or sends.

Nothing heavy is imported until it is used; `import laconic` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import hook

__version__ = "0.1.0"

_LAZY = {
    "codec": "laconic.core.packet",
    "recipes": "laconic.core.registry",
    "decode": "laconic.core.packet",
    "Codec": "laconic.core.packet",
    "Stats": "laconic.core.stage",
    "CodecError": "laconic.core.errors",
    "CorruptStream": "laconic.core.errors",
    "ModelMismatch": "laconic.core.errors",
    "NotFitted": "laconic.core.errors",
    "BadConfig": "laconic.core.errors",
    "BadInput": "laconic.core.errors",
    "compress": "laconic.sources.files",
    "decompress": "laconic.sources.files",
    "verify": "laconic.sources.files",
    "info": "laconic.sources.files",
}
_ROOMS = ("gradients", "kv", "lossless", "vectors", "weights")
__all__ = [*_LAZY, *_ROOMS, "__version__"]

if TYPE_CHECKING:
    from .core.errors import BadConfig, BadInput, CodecError, CorruptStream, ModelMismatch, NotFitted
    from .core.packet import Codec, codec, decode
    from .core.registry import recipes
    from .core.stage import Stats
    from .sources.files import compress, decompress, info, verify


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name in _ROOMS:
        return import_module(f"laconic.{name}")
    raise AttributeError(f"module 'laconic' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


hook.install()
