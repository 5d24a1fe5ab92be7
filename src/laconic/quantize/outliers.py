"""Rules that set single values of a vector aside: beyond a limit, or the extremes of each vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..core.combine import Rule
from ..core.errors import BadConfig
from ..core.stage import Leaf, Side, Stats
from ..transforms.select import pack_gaps
from .base import error_weights
from .rules import Largest, put_back
from .scales import along

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class _Ends(Rule):
    """The array with outliers at the ends of their vectors' ranges, so that they widen none, and the outliers as a vector.

    Side: positions, Golomb–Rice coded, as those of `Largest`.
    """

    side: ClassVar[Mapping[str, Leaf]] = Largest.side

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Least and greatest value that is no outlier; both broadcast against x."""
        raise NotImplementedError

    def split(self, x: Tensor) -> tuple[tuple[Tensor, Tensor], Side]:
        import torch

        low, high = self.bounds(x)
        at = torch.nonzero(((x < low) | (x > high)).reshape(-1)).reshape(-1)
        return (x.clamp(low, high).contiguous(), x.reshape(-1)[at]), pack_gaps(at.numpy())

    def join(self, shares: tuple[Tensor, Tensor], side: Side) -> Tensor:
        return put_back(*shares, side)

    def push(self, x: Tensor, stats: Stats) -> tuple[Stats | None, ...]:
        return Stats(importance=error_weights(stats)), None


@dataclass(frozen=True)
class Beyond(_Ends):
    """Values that lie beyond ±limit, of channels that were brought to one range (`ChannelRange`): how many, the data say."""

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

    Values that equal the last one kept are kept; vectors too short to spare two have no outliers.
    """

    fraction: float = 0.01
    axis: int = -1

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 0.5:
            raise BadConfig(f"{self.fraction} of the values as outliers; above 0 to .5 is right")

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        axis = along(self.axis, tuple(x.shape))
        n = x.shape[axis]
        cut = max(1, round(self.fraction * n / 2))
        cut = cut if 2 * cut < n else 0
        if not n:
            none = x.sum(dim=axis, keepdim=True)
            return none, none
        ordered = x.sort(dim=axis).values
        return ordered.narrow(axis, cut, 1), ordered.narrow(axis, n - 1 - cut, 1)
