"""Bytes without loss: levels 1 to 9, blocks in threads, streams in bounded memory.

small = laconic.lossless.compress(data, level=9)
data = laconic.lossless.decompress(small)
with laconic.lossless.open("book.lac") as f: f.read(1000)
laconic.lossless.Tensors("model.safetensors.lac")["lm_head.weight"]
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_STREAM, _FILES = "laconic.sources.lossless.stream", "laconic.sources.files"
_LAZY = {
    "compress": (_STREAM, "compress"),
    "decompress": (_STREAM, "decompress"),
    "open": (_STREAM, "open_stream"),
    "info": (_STREAM, "info"),
    "Reader": (_STREAM, "Reader"),
    "Writer": (_STREAM, "Writer"),
    "train_dictionary": (_STREAM, "train_dictionary"),
    "Tensors": (_FILES, "Tensors"),
}
__all__ = ["Reader", "Tensors", "Writer", "compress", "decompress", "info", "open", "train_dictionary"]

if TYPE_CHECKING:
    from .sources.files import Tensors
    from .sources.lossless.stream import Reader, Writer, compress, decompress, info, train_dictionary
    from .sources.lossless.stream import open_stream as open


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        module, found = _LAZY[name]
        return getattr(import_module(module), found)
    raise AttributeError(f"module 'laconic.lossless' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
