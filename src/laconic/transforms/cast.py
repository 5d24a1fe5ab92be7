"""Values at half precision, for what should stay nearly as it is: outliers, windows, the large entries of gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..core.errors import CorruptStream
from ..core.stage import Kind, Leaf, Side, Stage, Stats

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Half(Stage):
    """y = x / max |x| as float16: 11 bits of precision for values within 2^14 of the largest, whatever its magnitude.

    Side: the largest magnitude, float32. Push: the identity, as far as the later stages see.
    """

    takes: ClassVar[Kind] = Kind.ARRAY
    gives: ClassVar[Kind] = Kind.ARRAY
    side: ClassVar[Mapping[str, Leaf]] = {"largest": Leaf("float32", "scales")}

    def push(self, stats: Stats) -> Stats:
        return stats

    def encode(self, x: Tensor) -> tuple[Tensor, Side]:
        import torch

        largest = float(x.abs().max()) if x.numel() else 0.0
        side = {"largest": np.array([largest], np.float32)}
        return (x / largest if largest else x).to(torch.float16), side

    def decode(self, y: Tensor, side: Side) -> Tensor:
        import torch

        largest = side["largest"]
        if largest.shape != (1,) or y.dtype != torch.float16 or not np.isfinite(largest[0]):
            raise CorruptStream(f"{y.dtype} values with a largest of {largest[:4]}; float16 and one number are right")
        x = y.to(torch.float32) * float(largest[0])
        if not bool(torch.isfinite(x).all()):
            raise CorruptStream("half-precision values that are not finite")
        return x
