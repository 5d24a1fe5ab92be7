"""Zero points that are whole numbers of steps, as GPTQ's file format has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import BadConfig, CorruptStream
from ..core.stage import Leaf, Side
from .scales import Float, Store

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class IntegerZero(Store):
    """Steps as `store` has them, and offsets −z · step with z an integer from 0 to 2^bits − 1.

    For unsigned books, `Uniform(1 << bits, 0.0)`: then 0 is a level of every group, and the offset takes `bits` instead of
    16 bits. z is rounded for the step as it is stored.

    Source: Frantar et al. 2022, GPTQ (2210.17323), the asymmetric grid of its reference quantizer.
    """

    bits: int = 4
    store: Store = Float()

    offsets = True

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise BadConfig(f"zero points of {self.bits} bits; 1 to 8 are right")

    def leaves(self, affine: bool) -> Mapping[str, Leaf]:
        return dict(self.store.leaves(False)) | ({"zero": Leaf("uint8", "zeros")} if affine else {})

    def put(self, step: Tensor, offset: Tensor | None) -> Side:
        import torch

        from ..kernels.bits import pack

        side = self.store.put(step, None)
        if offset is not None:
            seen = self.store.get(side, tuple(step.shape), False)[0].double()
            zero = torch.where(seen == 0, 0, -offset.double() / seen.masked_fill(seen == 0, 1))
            code = zero.round().clamp(0, (1 << self.bits) - 1).to(torch.uint8)
            side["zero"] = pack(np.ascontiguousarray(code.numpy()), self.bits)
        return side

    def get(self, side: Side, lattice: tuple[int, ...], affine: bool) -> tuple[Tensor, Tensor | None]:
        import torch

        from ..kernels.bits import unpack

        step, _ = self.store.get({k: v for k, v in side.items() if k != "zero"}, lattice, False)
        if not affine:
            return step, None
        if side["zero"].ndim != 1:
            raise CorruptStream(f"zero has shape {side['zero'].shape}; packed codes have one axis")
        code = unpack(side["zero"], self.bits, int(np.prod(lattice))).astype(np.float32)
        return step, torch.from_numpy(-code.reshape(lattice)) * step
