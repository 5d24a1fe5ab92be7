"""Rules for `partition`: halves of an axis, the tail of a sequence, outliers by magnitude or by sensitivity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from ..core.combine import Rule
from ..core.errors import BadConfig, BadInput, CorruptStream
from ..core.stage import Leaf, Side, Stats, encoder_only
from ..transforms.select import pack_gaps, unpack_gaps
from .base import Codebook, Quantizer, Scale, error_weights
from .codebooks import Uniform
from .rounding import inverse_factor, live_hessian
from .scales import Along, GroupScale, MinMax, along

if TYPE_CHECKING:
    from torch import Tensor


class _Cut:
    """What rules share that cut an axis in two: nothing is sent, and statistics are cut with it."""

    axis: int

    def at(self, n: int) -> int:
        """Where an axis of length n is cut. Raises BadInput."""
        raise NotImplementedError

    def split(self, x: Tensor) -> tuple[tuple[Tensor, Tensor], Side]:
        axis = along(self.axis, tuple(x.shape))
        at = self.at(x.shape[axis])
        return (x.narrow(axis, 0, at).contiguous(), x.narrow(axis, at, x.shape[axis] - at).contiguous()), {}

    def join(self, shares: tuple[Tensor, Tensor], side: Side) -> Tensor:
        import torch

        first, last = (tuple(s.shape) for s in shares)
        if len(first) != len(last) or not -len(first) <= self.axis < len(first):
            raise CorruptStream(f"shares of shapes {first} and {last} joined along axis {self.axis}")
        axis = self.axis % len(first)
        if any(a != b for i, (a, b) in enumerate(zip(first, last, strict=True)) if i != axis):
            raise CorruptStream(f"shares of shapes {first} and {last} joined along axis {axis}")
        return torch.cat(shares, axis)

    def push(self, x: Tensor, stats: Stats) -> tuple[Stats, Stats]:
        axis = along(self.axis, tuple(x.shape))
        last = axis == x.ndim - 1
        both: list[dict[str, Any]] = [{}, {}]
        for name in stats.present():
            value = getattr(stats, name)
            if name in ("hessian", "drift") and last:
                at = self.at(x.shape[axis])
                parts: tuple[Any, Any] = (value[:at, :at], value[at:, at:])
            elif name in ("hessian", "drift") or (value.shape != x.shape and not last):
                parts = (value, value)
            elif value.shape == x.shape:
                parts = self.split(value)[0]
            else:
                at = self.at(x.shape[axis])
                parts = (value[:at], value[at:])
            for share, part in zip(both, parts, strict=True):
                share[name] = part
        return Stats(**both[0]), Stats(**both[1])


@dataclass(frozen=True)
class Halves(_Cut, Rule):
    """The first and the second half of an axis of even length: keys and values, real and imaginary parts."""

    axis: int = 0

    def at(self, n: int) -> int:
        if n % 2:
            raise BadInput(f"axis {self.axis} has length {n}; an even one has halves")
        return n // 2


@dataclass(frozen=True)
class Tail(_Cut, Rule):
    """The past, and the last `window` positions of an axis or a few more, so that the past is a multiple of `multiple`."""

    window: int = 32
    multiple: int = 1
    axis: int = -2

    def __post_init__(self) -> None:
        if self.window < 0 or self.multiple < 1:
            raise BadConfig(f"window {self.window}, multiple {self.multiple}; at least 0 and 1 are right")

    def at(self, n: int) -> int:
        return max(n - self.window, 0) // self.multiple * self.multiple


@dataclass(frozen=True)
class _Outliers(Rule):
    """The array with 0 in place of its outliers, and the outliers as a vector.

    Behind it the first share has the Hessian, a mask of the outliers, and importance 0 there, so that statistics of scales
    leave them out.
    Side: positions, Golomb–Rice coded; about log2(e / fraction) bits an outlier.
    """

    fraction: float = 0.01

    side: ClassVar[Mapping[str, Leaf]] = {
        "unary": Leaf("uint8", "indices"),
        "rest": Leaf("uint8", "indices"),
        "bits": Leaf("uint8", "indices"),
    }

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 0.5:
            raise BadConfig(f"{self.fraction} of the values as outliers; 0 to .5 is right")

    def score(self, x: Tensor) -> Tensor:
        """What is gained by storing each value: the shape of x."""
        raise NotImplementedError

    def positions(self, x: Tensor) -> Tensor:
        """Where the highest scores are in the flattened array, ascending; of equal ones the first."""
        count = round(self.fraction * x.numel())
        return self.score(x).reshape(-1).argsort(descending=True, stable=True)[:count].sort().values

    def split(self, x: Tensor) -> tuple[tuple[Tensor, Tensor], Side]:
        at = self.positions(x)
        rest = x.clone().contiguous()
        rest.view(-1)[at] = 0
        return (rest, x.reshape(-1)[at]), pack_gaps(at.numpy())

    def join(self, shares: tuple[Tensor, Tensor], side: Side) -> Tensor:
        return put_back(*shares, side)

    def push(self, x: Tensor, stats: Stats) -> tuple[Stats | None, ...]:
        import torch

        mask = torch.zeros(x.shape, dtype=torch.bool)
        mask.view(-1)[self.positions(x)] = True
        mask = mask if stats.mask is None else mask | stats.mask
        weights = error_weights(stats)
        weights = torch.ones(x.shape) if weights is None else weights.expand(x.shape)
        return Stats(stats.hessian, weights.masked_fill(mask, 0.0), mask), None


def put_back(rest: Tensor, values: Tensor, side: Side) -> Tensor:
    """The array with its outliers in their places. Raises CorruptStream where there are not as many."""
    import torch

    if values.ndim != 1 or values.numel() > rest.numel():
        raise CorruptStream(f"outliers of shape {tuple(values.shape)} in an array of {tuple(rest.shape)}")
    rest = rest.contiguous()
    rest.view(-1)[torch.from_numpy(unpack_gaps(side, len(values), rest.numel()))] = values
    return rest


@dataclass(frozen=True)
class Largest(_Outliers):
    """The share `fraction` of largest magnitude."""

    def score(self, x: Tensor) -> Tensor:
        return x.abs()


@dataclass(frozen=True)
class MostSensitive(_Outliers):
    """The share `fraction` whose rounding would hurt most: s_ij = (w_ij − Q(w_ij))² / (2 [H⁻¹]_jj).

    That is the layer's error from rounding one weight when all others of its row make good for it as well as they can.
    codebook, scale: of Q, which takes each value by itself. Without a Hessian at fit, H = 1.

    Source: Dettmers et al. 2023, SpQR (2306.03078), section 3.
    """

    codebook: Codebook = Uniform(8, 0.0)
    scale: Scale = GroupScale(Along(16), MinMax())
    stats: Any = encoder_only()
    inverse: Any = encoder_only()  # diagonal of H⁻¹

    def fit(self, x: Tensor, stats: Stats | None = None) -> Self:
        if stats is None or stats.hessian is None:
            return self.replace(stats=stats)
        upper = inverse_factor(live_hessian(stats.hessian, x.shape[-1]), 0.01)
        return self.replace(stats=stats, inverse=None if upper is None else upper.double().square().sum(dim=0))

    def score(self, x: Tensor) -> Tensor:
        if self.inverse is not None and len(self.inverse) != x.shape[-1]:
            raise BadInput(f"rows of {x.shape[-1]} values; the rule was fitted to rows of {len(self.inverse)}")
        probe = Quantizer(self.codebook, self.scale, stats=self.stats)
        error = (x - probe.decode(*probe.encode(x))).double().square()
        return error if self.inverse is None else error / (2 * self.inverse)
