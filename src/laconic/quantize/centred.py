"""One bit a value around the mean: the step of least error for signs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .scales import Sample, Statistic

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class CentredSign(Statistic):
    """Offset: the mean; step: so that two levels, ±½, come to lie at mean ± mean |x − mean|.

    That is the mean of the values above the mean and of those below it where they are as many; signs around 0 lose the square
    of the mean beside (2503.16257 takes those).
    """

    affine = True

    def __call__(self, sample: Sample) -> tuple[Tensor, Tensor | None]:
        low, high = sample.codebook.span()
        mean = sample.mean(sample.x)
        step = 2 * sample.mean((sample.x - mean[:, None]).abs()) / (high - low)
        return step, mean - (low + high) / 2 * step
