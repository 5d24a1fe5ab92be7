"""The first coordinates of every head's vectors, as many as the head is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from ..core.errors import BadConfig, BadInput, CorruptStream, claim
from ..core.stage import Kind, Leaf, Side, Stage, Stats, learned
from ..transforms.base import fitted

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class HeadRanks(Stage):
    """ARRAY -> BYTES: of head h the first r_h coordinates in float16, the others are 0.

    Coordinates are expected in order of what they are worth (`HeadBasis`). The ranks share `share` of all coordinates: `fit`
    gives them to the heads whose next coordinate has the greatest variance; a search may set `ranks` otherwise.

    Shapes: x (..., n_heads, n_tokens, d). Payload: head by head, (..., n_tokens, r_h) float16 each.
    Side: the axes; a power of two by which all values are divided where float16 would overflow. Cost in the model: 16 bits
    a head.
    """

    share: float = 0.5
    ranks: np.ndarray | None = learned("uint16", "header")

    takes: ClassVar[Kind] = Kind.ARRAY
    gives: ClassVar[Kind] = Kind.BYTES
    side: ClassVar[Mapping[str, Leaf]] = {"axes": Leaf("int64", "header"), "scale": Leaf("float32", "scales")}

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise BadConfig(f"a share of {self.share} of the coordinates; above 0 to 1 is right")

    def fit(self, x: Tensor, stats: Stats | None = None) -> Self:
        if x.ndim < 3 or not x.numel():
            raise BadInput(f"an array of shape {tuple(x.shape)}; (…, heads, tokens, coordinates) with values is right")
        power = x.double().square().movedim(-3, 0).flatten(1, -2).mean(1).numpy()
        worth = np.minimum.accumulate(power, axis=1)  # a coordinate comes only behind those in front of it
        n = max(len(power), round(self.share * power.size))
        worth[:, 0] = np.inf  # at least one a head
        best = np.argsort(-worth.reshape(-1), kind="stable")[:n]
        return self.replace(ranks=np.bincount(best // power.shape[1], minlength=len(power)))

    def push(self, stats: Stats) -> Stats:
        """None: nothing behind bytes asks how errors hurt."""
        return Stats()

    def encode(self, x: Tensor) -> tuple[bytes, Side]:
        if x.ndim < 3:
            raise BadInput(f"an array of shape {tuple(x.shape)}; (…, heads, tokens, coordinates) is right")
        ranks = self._ranks(tuple(x.shape), BadInput)
        rows = np.moveaxis(x.detach().cpu().numpy().astype(np.float32), -3, 0)
        largest = float(np.abs(rows).max(initial=0.0))
        scale = np.float32(2.0 ** max(0, math.ceil(math.log2(largest / 32768)))) if largest > 32768 else np.float32(1)
        data = b"".join((h[..., :r] / scale).astype(np.float16).tobytes() for h, r in zip(rows, ranks, strict=True))
        return data, {"axes": np.array(x.shape, np.int64), "scale": np.array([scale], np.float32)}

    def decode(self, y: bytes, side: Side) -> Tensor:
        import torch

        axes = tuple(int(n) for n in side["axes"].ravel())
        if side["axes"].ndim != 1 or len(axes) < 3 or min(axes) < 0:
            raise CorruptStream(f"axes {axes}; (…, heads, tokens, coordinates) is right")
        if side["scale"].shape != (1,) or not 1 <= side["scale"][0] <= 2.0**100:
            raise CorruptStream(f"a scale of {side['scale']}; one power of two, 1 or more, is right")
        claim(4 * math.prod(axes), "coordinates")
        ranks = self._ranks(axes, CorruptStream)
        *lead, n_heads, n, d = axes
        rows = math.prod(lead) * n
        if len(y) != 2 * rows * int(ranks.sum()):
            raise CorruptStream(
                f"{len(y):,} bytes of coordinates; {2 * rows * int(ranks.sum()):,} are right for {axes}"
            )
        values = np.frombuffer(y, np.float16)
        if not np.isfinite(values).all():
            raise CorruptStream("coordinates that are not finite")
        out, at = np.zeros((n_heads, *lead, n, d), np.float32), 0
        for h, r in enumerate(ranks.astype(np.int64)):
            out[h, ..., :r] = values[at : at + rows * r].reshape(*lead, n, r).astype(np.float32) * side["scale"][0]
            at += rows * r
        if not np.isfinite(out).all():
            raise CorruptStream("coordinates that are not finite")
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(out, 0, -3)))

    def _ranks(self, axes: tuple[int, ...], error: type[Exception]) -> np.ndarray:
        ranks = fitted(self, "ranks")
        if ranks.shape != (axes[-3],) or int(ranks.max(initial=0)) > axes[-1]:
            raise error(f"ranks {ranks.tolist()} for {axes[-3]} heads of {axes[-1]} coordinates")
        return ranks
