"""Bytes without loss: levels 1 to 9, blocks in threads, streams in bounded memory.

small = laconic.lossless.compress(data, level=9)
data = laconic.lossless.decompress(small)
with laconic.lossless.open("book.lac") as f: f.read(1000)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_LAZY = {
    "compress": "compress",
    "decompress": "decompress",
    "open": "open_stream",
    "info": "info",
    "Reader": "Reader",
    "Writer": "Writer",
}
__all__ = ["Reader", "Writer", "compress", "decompress", "info", "open"]

if TYPE_CHECKING:
    from .sources.lossless.stream import Reader, Writer, compress, decompress, info
    from .sources.lossless.stream import open_stream as open


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module("laconic.sources.lossless.stream"), _LAZY[name])
    raise AttributeError(f"module 'laconic.lossless' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
