"""Cosine transforms, orthonormal, with sums in a fixed order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..core.errors import BadConfig, BadInput, CodecError, CorruptStream, claim
from ..core.stage import Leaf, Side
from .base import Orthogonal, Transform, from_rows, to_rows

if TYPE_CHECKING:
    from torch import Tensor

MAX_ORDER = 4096


@lru_cache(maxsize=8)
def dct_matrix(n: int) -> np.ndarray:
    """Orthonormal DCT-II: C[k, i] = √(2/n) cos(π (2i + 1) k / 2n), row 0 by √½ smaller; float32, (n, n), read-only.

    The angle is reduced in integers and the cosine is a polynomial, so every machine has the same matrix.
    """
    from ..kernels.random import cosine_of_turn

    cosine = (cosine_of_turn(np.arange(4 * n), 4 * n) * np.sqrt(2.0 / n)).astype(np.float32)
    c = np.stack([cosine[(2 * np.arange(n) + 1) * k % (4 * n)] for k in range(n)])
    c[0] = np.sqrt(1.0 / n)
    c.flags.writeable = False
    return c


@dataclass(frozen=True)
class DCT(Orthogonal):
    """DCT-II along the last axis in blocks; near the KLT of slowly varying rows, and it costs nothing to send.

    block: length of the blocks; None: the whole axis. At most 4096 either way.
    Source: Ahmed, Natarajan & Rao, IEEE Trans. Computers C-23, 1974.
    """

    block: int | None = None

    def __post_init__(self) -> None:
        if self.block is not None and not 1 <= self.block <= MAX_ORDER:
            raise BadConfig(f"DCT block {self.block}; 1 to {MAX_ORDER} are possible, or None for the whole axis")

    def analyse(self, rows: np.ndarray) -> np.ndarray:
        return self._transform(rows, False, BadInput)

    def synthesize(self, rows: np.ndarray) -> np.ndarray:
        return self._transform(rows, True, CorruptStream)

    def _transform(self, rows: np.ndarray, back: bool, error: type[CodecError]) -> np.ndarray:
        from ..kernels.product import product

        n = rows.shape[1]
        block = self.block or n
        if n % block or block > MAX_ORDER:
            raise error(f"DCT blocks of {block} do not fit rows of {n}; a divisor up to {MAX_ORDER} is needed")
        return product(rows.reshape(-1, block), dct_matrix(block), transposed=not back).reshape(rows.shape)


@lru_cache(maxsize=8)
def zigzag(b: int) -> np.ndarray:
    """Raster positions of a b × b block in JPEG's zigzag order: (b²,) int64."""
    y, x = np.divmod(np.arange(b * b), b)
    d = y + x
    return np.lexsort((np.where(d % 2, y, x), d))


@dataclass(frozen=True)
class BlockDCT(Transform):
    """DCT-II of b × b blocks of two axes, coefficients in zigzag order on a new last axis.

    Shapes: x (..., height, width) -> y (..., ⌈height / b⌉, ⌈width / b⌉, b²). The last row and column are repeated to
    fill the blocks. Side: height and width, 64 bits.
    block: 8 as in JPEG (ITU-T T.81, A.3.3); orthonormal, so squared errors of y are those of x, padding apart.
    Push: refused, since errors of a block belong to two axes.
    """

    block: int = 8

    side: ClassVar[Mapping[str, Leaf]] = {"size": Leaf("uint32", "header")}

    def __post_init__(self) -> None:
        if not 1 <= self.block <= 64:
            raise BadConfig(f"block {self.block}; 1 to 64 are possible")

    def encode(self, x: Tensor) -> tuple[Tensor, Side]:
        from ..kernels.product import product

        if x.ndim < 2:
            raise BadInput(f"an array of shape {tuple(x.shape)} has no two axes; a picture is needed")
        height, width = x.shape[-2:]
        b, picture = self.block, to_rows(x).reshape(-1, height, width)
        picture = np.pad(picture, ((0, 0), (0, -height % b), (0, -width % b)), mode="edge")
        n, rows, columns = len(picture), picture.shape[1] // b, picture.shape[2] // b
        blocks = picture.reshape(n, rows, b, columns, b).transpose(0, 1, 3, 2, 4).reshape(-1, b)
        half = product(np.ascontiguousarray(blocks), dct_matrix(b), transposed=True)
        turned = np.ascontiguousarray(half.reshape(-1, b, b).transpose(0, 2, 1)).reshape(-1, b)
        full = product(turned, dct_matrix(b), transposed=True).reshape(-1, b, b).transpose(0, 2, 1)
        y = full.reshape(-1, b * b)[:, zigzag(b)]
        shape = (*x.shape[:-2], rows, columns, b * b)
        return from_rows(y, x, shape), {"size": np.array([height, width], np.uint32)}

    def decode(self, y: Tensor, side: Side) -> Tensor:
        from ..kernels.product import product

        b, coefficients = self.block, to_rows(y, CorruptStream)
        height, width = (int(v) for v in side["size"]) if side["size"].shape == (2,) else (0, 0)
        if y.ndim < 3 or tuple(y.shape[-3:]) != (-(-height // b), -(-width // b), b * b):
            raise CorruptStream(f"coefficients of shape {tuple(y.shape)} for a picture of {height} × {width}")
        claim(4 * coefficients.size, "pictures")
        blocks = np.empty_like(coefficients)
        blocks[:, zigzag(b)] = coefficients
        turned = np.ascontiguousarray(blocks.reshape(-1, b, b).transpose(0, 2, 1)).reshape(-1, b)
        half = product(turned, dct_matrix(b)).reshape(-1, b, b).transpose(0, 2, 1)
        full = product(np.ascontiguousarray(half).reshape(-1, b), dct_matrix(b))
        rows, columns = y.shape[-3:-1]
        picture = full.reshape(-1, rows, columns, b, b).transpose(0, 1, 3, 2, 4).reshape(-1, rows * b, columns * b)
        return from_rows(np.ascontiguousarray(picture[:, :height, :width]), y, (*y.shape[:-3], height, width))
