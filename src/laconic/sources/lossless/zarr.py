"""The numcodecs codec: what Zarr, and HDF5 by way of numcodecs, stores its chunks with.

zarr.create_array(…, compressors=numcodecs.get_codec({"id": "laconic", "level": 5}))
"""

from __future__ import annotations

from typing import Any

import numcodecs.abc
import numpy as np
from numcodecs.compat import ensure_bytes, ensure_contiguous_ndarray, ndarray_copy

from ...core.errors import BadConfig, BadInput, CorruptStream
from .levels import level as known
from .stream import compress, decompress


class Laconic(numcodecs.abc.Codec):  # type: ignore[misc]
    """Chunks without loss as streams of `laconic.lossless`.

    level: 1 (fast) to 9 (small). typesize: bytes a value; above 1, bytes of equal significance are laid together, which
    pays for numbers: 1 leaves the chunk as it is.
    """

    codec_id = "laconic"

    def __init__(self, level: int = 5, typesize: int = 1) -> None:
        known(level)
        if not 1 <= typesize <= 16:
            raise BadConfig(f"typesize {typesize}; 1 to 16 bytes are right")
        self.level, self.typesize = level, typesize

    def encode(self, buf: Any) -> bytes:
        """A chunk of a whole number of values -> a stream."""
        raw = ensure_contiguous_ndarray(buf).view("u1").reshape(-1)
        if raw.size % self.typesize:
            raise BadInput(f"{raw.size:,} bytes are no whole number of values of {self.typesize}")
        return compress(raw.reshape(-1, self.typesize).T.tobytes(), level=self.level)

    def decode(self, buf: Any, out: Any = None) -> Any:
        """The chunk's bytes; into `out` where it is given. Raises CorruptStream."""
        raw = np.frombuffer(decompress(ensure_bytes(buf)), np.uint8)
        if raw.size % self.typesize:
            raise CorruptStream(f"{raw.size:,} bytes are no whole number of values of {self.typesize}")
        return ndarray_copy(raw.reshape(self.typesize, -1).T.tobytes(), out)
