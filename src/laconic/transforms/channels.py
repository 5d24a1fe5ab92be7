"""Channels of keys and values brought to one size: by what calibration saw of them, or by what is there."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from ..core.errors import BadConfig, BadInput, CorruptStream
from ..core.stage import Leaf, Side, Stats, learned
from .base import Transform, fitted, refuse

if TYPE_CHECKING:
    from torch import Tensor

_LEAST = 6.2e-5  # the least normal number of float16


@dataclass(frozen=True)
class ChannelRange(Transform):
    """y = (x − middle) / half width: all but `fraction` of a channel's values, the extreme ones, come to lie in [−1, 1].

    One middle and width for every channel of every head, learned, so that keys that come later need none of their own.
    Shapes: x (..., n_heads, n_tokens, d). Cost: 32 bits a channel in the model. Push: a Hessian (n_heads, d, d) or (d, d) is
    scaled.
    Source: Hooper et al. 2024, KVQuant (2401.18079), sections 3.1 and 3.4 (per-channel keys, thresholds from calibration).
    """

    fraction: float = 0.01
    middle: np.ndarray | None = learned("float16", "zeros")
    half: np.ndarray | None = learned("float16", "scales")

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 0.5:
            raise BadConfig(f"{self.fraction} of the values beyond the range; 0 to below .5 is right")

    def fit(self, x: Tensor, stats: Stats | None = None) -> Self:
        if x.ndim < 3 or not x.numel():
            raise BadInput(f"an array of shape {tuple(x.shape)}; (…, heads, tokens, dim) with values is right")
        rows = x.movedim(-3, 0).flatten(1, -2).numpy().astype(np.float64)
        low, high = np.quantile(rows, (self.fraction / 2, 1 - self.fraction / 2), axis=1)
        middle = np.clip((low + high) / 2, -65504.0, 65504.0)
        return self.replace(middle=middle, half=np.clip((high - low) / 2, _LEAST, 65504.0))

    def push(self, stats: Stats) -> Stats:
        import torch

        refuse(self, stats, "importance", "mask", "drift")
        if stats.hessian is None:
            return stats
        half = torch.from_numpy(fitted(self, "half").astype(np.float32))
        return dataclasses.replace(stats, hessian=stats.hessian * half[:, :, None] * half[:, None, :])

    def encode(self, x: Tensor) -> tuple[Tensor, Side]:
        middle, half = self._arrays(x, BadInput)
        return (x - middle) / half, {}

    def decode(self, y: Tensor, side: Side) -> Tensor:
        middle, half = self._arrays(y, CorruptStream)
        return y * half + middle

    def _arrays(self, x: Tensor, error: type[Exception]) -> tuple[Tensor, Tensor]:
        import torch

        both = fitted(self, "middle"), fitted(self, "half")
        shape = (x.shape[-3], x.shape[-1]) if x.ndim > 2 else ()
        if any(a.shape != shape or not np.isfinite(a).all() for a in both) or (both[1] <= 0).any():
            raise error(f"ranges {both[0].shape}, {both[1].shape} for an array {tuple(x.shape)}; one a head and channel "
                        "is right, above 0")  # fmt: skip
        middle, half = (torch.from_numpy(a.astype(np.float32)).unsqueeze(-2) for a in both)
        return middle, half


@dataclass(frozen=True)
class ChannelSeparable(Transform):
    """y = x / c with c_j = √(max |x_j|) over the tokens at hand: then tokens can share a scale among their channels.

    Shapes: x (..., n_tokens, d). Side: c, 16 bits a channel. Push: importance stays as it is, a mean weight of tokens.
    Source: He et al. 2024, ZipCache (2405.14256), section 4.1, Algorithm 1.
    """

    side: ClassVar[Mapping[str, Leaf]] = {"channel": Leaf("float16", "scales")}

    def push(self, stats: Stats) -> Stats:
        refuse(self, stats, "hessian", "mask", "drift")
        return stats

    def encode(self, x: Tensor) -> tuple[Tensor, Side]:
        if x.ndim < 2 or not x.numel():
            raise BadInput(f"an array of shape {tuple(x.shape)}; (…, tokens, dim) with values is right")
        root = x.abs().amax(-2).sqrt().numpy()
        side = {"channel": np.where(root > 0, np.clip(root, _LEAST, 65504.0), 1.0).astype(np.float16)}
        return x / self._divisors(x, side, BadInput), side

    def decode(self, y: Tensor, side: Side) -> Tensor:
        return y * self._divisors(y, side, CorruptStream)

    def _divisors(self, x: Tensor, side: Side, error: type[Exception]) -> Tensor:
        import torch

        c = side["channel"]
        if x.ndim < 2 or c.shape != (*x.shape[:-2], x.shape[-1]) or not (np.isfinite(c).all() and (c > 0).all()):
            raise error(f"divisors of shape {c.shape} for an array {tuple(x.shape)}; one a channel, above 0, is right")
        return torch.from_numpy(c.astype(np.float32)).unsqueeze(-2)


@dataclass(frozen=True)
class JoinHeads(Transform):
    """Heads of a token laid side by side: (..., n_heads, n_tokens, d) -> (..., n_heads / m, n_tokens, m · d).

    heads: m; 0: all heads. Where it does not divide their number, the greatest divisor below it is taken.
    Side: m, 16 bits. Push: importance of tokens, (..., n_tokens, 1), stays.
    """

    heads: int = 0

    side: ClassVar[Mapping[str, Leaf]] = {"joined": Leaf("uint16", "header")}

    def __post_init__(self) -> None:
        if not 0 <= self.heads < 1 << 16:
            raise BadConfig(f"{self.heads} heads side by side; 1 to 65535, or 0 for all, are right")

    def push(self, stats: Stats) -> Stats:
        refuse(self, stats, "hessian", "mask", "drift")
        if stats.importance is not None and (stats.importance.shape[-1] != 1 or stats.importance.shape[-3] != 1):
            raise BadConfig(
                f"importance of shape {tuple(stats.importance.shape)}; one number a token can follow JoinHeads"
            )
        return stats

    def encode(self, x: Tensor) -> tuple[Tensor, Side]:
        if x.ndim < 3 or not x.shape[-3]:
            raise BadInput(f"an array of shape {tuple(x.shape)}; (…, heads, tokens, dim) is right")
        n = x.shape[-3]
        m = next(m for m in range(min(self.heads or n, n), 0, -1) if n % m == 0)
        if m >= 1 << 16:
            raise BadInput(f"{m} heads side by side; at most 65535")
        y = x.unflatten(-3, (n // m, m)).movedim(-3, -2).flatten(-2)
        return y.contiguous(), {"joined": np.array([m], np.uint16)}

    def decode(self, y: Tensor, side: Side) -> Tensor:
        m = int(side["joined"].ravel()[0]) if side["joined"].shape == (1,) else 0
        if y.ndim < 3 or not m or y.shape[-1] % m:
            raise CorruptStream(f"{side['joined'][:4]} heads side by side in an array {tuple(y.shape)}")
        x = y.unflatten(-1, (m, y.shape[-1] // m)).movedim(-2, -3).flatten(-4, -3)
        return x.contiguous()
