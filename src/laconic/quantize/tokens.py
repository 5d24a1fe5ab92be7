"""Rules that tell tokens, or channels, apart for a partition: salient tokens, and channels of wide range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from ..core.combine import Rule
from ..core.errors import BadConfig, BadInput, CorruptStream
from ..core.stage import Leaf, Side, Stats, encoder_only

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Salient(Rule):
    """The share `share` of the tokens that matter most, and the others; both keep their order.

    What matters: `Stats.importance` at fit, summed over all axes but the tokens'; without it, or for another number of tokens,
    the first tokens.
    Shapes: x (..., n_tokens, d) -> (..., k, d), (..., n_tokens − k, d). Side: one bit a token.
    """

    share: float = 0.5
    importance: Any = encoder_only()

    side: ClassVar[Mapping[str, Leaf]] = {"salient": Leaf("uint8", "indices")}

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise BadConfig(f"{self.share} of the tokens salient; above 0 and below 1 is right")

    def fit(self, x: Tensor, stats: Stats | None = None) -> Self:
        return self.replace(importance=None if stats is None else stats.importance)

    def push(self, x: Tensor, stats: Stats) -> tuple[Stats | None, ...]:
        return None, None

    def split(self, x: Tensor) -> tuple[tuple[Tensor, Tensor], Side]:
        import torch

        if x.ndim < 2:
            raise BadInput(f"an array of shape {tuple(x.shape)} has no tokens; (…, tokens, dim) is right")
        n = x.shape[-2]
        k = min(n, max(1, round(self.share * n)))
        worth = torch.zeros(n)
        if self.importance is not None and self.importance.shape[-2] == n:
            worth = self.importance.movedim(-2, 0).reshape(n, -1).sum(1)
        chosen = torch.zeros(n, dtype=torch.bool)
        chosen[worth.argsort(descending=True, stable=True)[:k]] = True
        return (x[..., chosen, :], x[..., ~chosen, :]), {"salient": np.packbits(chosen.numpy())}

    def join(self, shares: tuple[Tensor, Tensor], side: Side) -> Tensor:
        return _merged(shares, side["salient"], -2)


@dataclass(frozen=True)
class WideChannels(Rule):
    """The share `share` of the channels whose values span the widest range over the tokens, head by head, and the others.

    Shapes: x (..., n_tokens, d) -> (..., n_tokens, k), (..., n_tokens, d − k), the same k in every head. Side: one bit a channel.
    Source: Tao et al. 2025, VidKV (2503.16257), section 3.2 (mixed precision of key channels).
    """

    share: float = 0.5

    side: ClassVar[Mapping[str, Leaf]] = {"wide": Leaf("uint8", "indices")}

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise BadConfig(f"{self.share} of the channels; above 0 and below 1 is right")

    def split(self, x: Tensor) -> tuple[tuple[Tensor, Tensor], Side]:
        import torch

        if x.ndim < 2 or not x.numel() or x.shape[-1] < 2:
            raise BadInput(f"an array of shape {tuple(x.shape)}; (…, tokens, dim) with two channels or more is right")
        d = x.shape[-1]
        k = min(d - 1, max(1, round(self.share * d)))
        spread = x.amax(-2) - x.amin(-2)
        wide = torch.zeros(spread.shape, dtype=torch.bool)
        wide.scatter_(-1, spread.argsort(dim=-1, descending=True, stable=True)[..., :k], True)
        shares = tuple(
            x.movedim(-1, -2)[m].reshape(*x.shape[:-2], -1, x.shape[-2]).movedim(-1, -2) for m in (wide, ~wide)
        )
        return (shares[0].contiguous(), shares[1].contiguous()), {"wide": np.packbits(wide.numpy())}

    def join(self, shares: tuple[Tensor, Tensor], side: Side) -> Tensor:
        import torch

        wide, rest = shares
        if wide.ndim < 2 or wide.shape[:-1] != rest.shape[:-1] or not wide.shape[-1]:
            raise CorruptStream(f"channels of shapes {tuple(wide.shape)} and {tuple(rest.shape)}")
        k, d = wide.shape[-1], wide.shape[-1] + rest.shape[-1]
        mask = _bits(side["wide"], int(np.prod(wide.shape[:-2], dtype=np.int64)) * d).reshape(-1, d)
        if not bool((mask.sum(-1) == k).all()):
            raise CorruptStream(f"a map of channels that does not have {k} of {d} in every head")
        n = wide.shape[-2]
        x = torch.empty(len(mask), d, n)
        x[mask] = wide.movedim(-1, -2).reshape(-1, n)
        x[~mask] = rest.movedim(-1, -2).reshape(-1, n)
        return x.movedim(-1, -2).reshape(*wide.shape[:-2], n, d).contiguous()


def _bits(packed: np.ndarray, n: int) -> Tensor:
    """n flags. Raises CorruptStream for another length, or bits behind the end."""
    import torch

    if packed.ndim != 1 or len(packed) != -(-n // 8):
        raise CorruptStream(f"{packed.shape} bytes of flags; {-(-n // 8)} are right for {n}")
    flags = np.unpackbits(packed).astype(bool)
    if flags[n:].any():
        raise CorruptStream("flags behind the end")
    return torch.from_numpy(flags[:n].copy())


def _merged(shares: tuple[Tensor, Tensor], packed: np.ndarray, axis: int) -> Tensor:
    """Two shares of an axis laid back into their places."""
    import torch

    first, second = shares
    shapes = [list(s.shape) for s in shares]
    if first.ndim != second.ndim or first.ndim < -axis:
        raise CorruptStream(f"shares of shapes {shapes}")
    n = first.shape[axis] + second.shape[axis]
    for s in shapes:
        s[axis] = n
    chosen = _bits(packed, n)
    if shapes[0] != shapes[1] or int(chosen.sum()) != first.shape[axis]:
        raise CorruptStream(
            f"shares of shapes {tuple(first.shape)}, {tuple(second.shape)} and {int(chosen.sum())} flags"
        )
    x = torch.empty(shapes[0])
    x.movedim(axis, 0)[chosen] = first.movedim(axis, 0)
    x.movedim(axis, 0)[~chosen] = second.movedim(axis, 0)
    return x
