"""Rules that set single values of a vector aside: beyond a limit, or the extremes of each vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.errors import BadConfig
from ..core.stage import Side
from ..transforms.select import pack_gaps
from .rules import _Outliers
from .scales import along

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class _Ends(_Outliers):
    """Outliers are set to the end of their vector's range that they lie beyond, so that they do not widen it."""

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Least and greatest value that is no outlier; both broadcast against x."""
        raise NotImplementedError

    def positions(self, x: Tensor) -> Tensor:
        import torch

        low, high = self.bounds(x)
        return torch.nonzero(((x < low) | (x > high)).reshape(-1)).reshape(-1)

    def split(self, x: Tensor) -> tuple[tuple[Tensor, Tensor], Side]:
        low, high = self.bounds(x)
        at = self.positions(x)
        return (x.clamp(low, high).contiguous(), x.reshape(-1)[at]), pack_gaps(at.numpy())


@dataclass(frozen=True)
class Beyond(_Ends):
    """Values of normalised channels that lie beyond ±limit (see `ChannelRange`): how many is up to the data."""

    limit: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.limit < 1e6:
            raise BadConfig(f"limit {self.limit}; above 0, such as 1 behind ChannelRange, is right")

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        high = x.new_tensor(self.limit)
        return -high, high


@dataclass(frozen=True)
class Extremes(_Ends):
    """The share `fraction` of each vector along an axis: half of them its least values, half its greatest, one of each or more.

    Of equal values at an end all or none are set aside.
    """

    axis: int = -1

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        axis = along(self.axis, tuple(x.shape))
        n = x.shape[axis]
        cut = max(1, round(self.fraction * n / 2)) if self.fraction else 0
        if 2 * cut >= n:  # too short a vector to have outliers
            cut = 0
        if not n:
            none = x.sum(dim=axis, keepdim=True)
            return none, none
        ordered = x.sort(dim=axis).values
        return ordered.narrow(axis, cut, 1), ordered.narrow(axis, n - 1 - cut, 1)
