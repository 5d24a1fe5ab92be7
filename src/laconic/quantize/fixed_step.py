"""The entropy-coded trellis for many arrays of one source: a step for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from ..core.errors import NotFitted
from ..core.stage import Side, Stats
from .dependent import EntropyCodedTrellis

if TYPE_CHECKING:
    from torch import Tensor

_FIT_VALUES = 1 << 18  # values on which the step is solved; all that it looks for is one number


@dataclass(frozen=True)
class FixedStep(EntropyCodedTrellis):
    """`EntropyCodedTrellis` whose step is solved once, by `fit`, and then taken for every array as it is.

    An array then costs one search instead of some eight, arrays of one source have one distortion, and `bits` is kept to on
    the average of the source instead of array by array: an array that is harder than the training data takes more.

    Shapes, side and source: those of `EntropyCodedTrellis`.
    """

    keeps_rate: ClassVar[bool] = False

    def fit(self, x: Tensor, stats: Stats | None = None) -> Self:
        """Solves the step on every k-th row, so many as 2^18 values have."""
        if self.bits is None:
            return self
        rows = x.reshape(-1, x.shape[-1])
        every = max(1, rows.numel() // _FIT_VALUES)
        thin = rows[::every].detach().cpu().numpy().astype(np.float32)
        return self.replace(step=self._solve(np.ascontiguousarray(thin)).step)

    def encode(self, x: Tensor) -> tuple[bytes, Side]:
        if self.step is None:
            raise NotFitted("FixedStep has no step yet; call .fit(x) first, or name one")
        coded = self._code(np.ascontiguousarray(x.detach().cpu().numpy(), np.float32), self.step)
        return coded.payload, coded.side
