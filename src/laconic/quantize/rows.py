"""A rule that gives the rows of a matrix that rounding would hurt most to another codec."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from ..core.combine import Rule
from ..core.errors import BadConfig, BadInput, CorruptStream
from ..core.stage import Leaf, Side, Stats, encoder_only
from .base import Codebook, Quantizer, Scale
from .codebooks import Uniform
from .scales import Along, GroupScale, MinMax

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SensitiveRows(Rule):
    """The share of rows whose rounding costs most, and the others: s_i = f_i · δ_i H δ_iᵀ with δ = Q(W) − W.

    f_i: `Stats.importance`, (n_out, 1), how much a squared error of output i hurts (a mean squared gradient); 1 where it is
    not given. H: `Stats.hessian`, else the identity. codebook, scale: of Q, the coarser of the two codecs, without feedback.
    Side: one bit a row. Behind it both shares keep the Hessian; what is known by row or by value goes with its row.

    Source: Zheng et al. 2024, MixLLM (2412.14590), salience of output features. Differs: the second-order term alone, with a
    Kronecker-factored Fisher E[g²] · H in place of gradients by sample.
    """

    share: float = 0.1
    codebook: Codebook = Uniform(16, 0.0)
    scale: Scale = GroupScale(Along(64), MinMax(True))
    chosen: Any = encoder_only()  # (n_out,) bool

    side: ClassVar[Mapping[str, Leaf]] = {"rows": Leaf("uint8", "indices")}

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise BadConfig(f"a share of {self.share} of the rows; 0 to 1 is right")

    def scores(self, x: Tensor, stats: Stats | None) -> Tensor:
        """s_i of every row, (n_out,) float64."""
        if x.ndim != 2:
            raise BadInput(f"rows of an array of shape {tuple(x.shape)}; a matrix is right")
        probe = Quantizer(self.codebook, self.scale)
        error = (probe.decode(*probe.encode(x)) - x).double()
        hessian = None if stats is None else stats.hessian
        cost = (error * (error if hessian is None else error @ hessian.double())).sum(dim=1)
        importance = None if stats is None else stats.importance
        if importance is None or importance.shape == x.shape[-1:]:
            return cost
        if importance.shape not in ((len(x), 1), x.shape):
            raise BadInput(f"importance of shape {tuple(importance.shape)} for a matrix of {tuple(x.shape)}")
        return cost * importance.double().mean(dim=1)

    def fit(self, x: Tensor, stats: Stats | None = None) -> Self:
        import torch

        count = round(self.share * len(x)) if x.ndim else 0
        order = self.scores(x, stats).argsort(descending=True, stable=True)
        chosen = torch.zeros(len(x), dtype=torch.bool)
        chosen[order[:count]] = True
        return self.replace(chosen=chosen)

    def push(self, x: Tensor, stats: Stats) -> tuple[Stats | None, ...]:
        chosen = self._chosen(x)

        def of(rows: Tensor) -> Stats:
            kept = {
                name: value[rows]
                for name in ("importance", "mask")
                if (value := getattr(stats, name)) is not None and value.shape == x.shape
            }
            by_row = stats.importance is not None and stats.importance.shape == (len(x), 1)
            return dataclasses.replace(stats, **({"importance": None} if by_row else {}), **kept)

        return of(chosen), of(~chosen)

    def split(self, x: Tensor) -> tuple[tuple[Tensor, Tensor], Side]:
        chosen = self._chosen(x)
        return (x[chosen], x[~chosen]), {"rows": np.packbits(chosen.numpy())}

    def join(self, shares: tuple[Tensor, Tensor], side: Side) -> Tensor:
        import torch

        sizes = [tuple(s.shape) for s in shares]
        n = sizes[0][0] + sizes[1][0] if all(len(s) == 2 for s in sizes) else 0
        if not n or sizes[0][1] != sizes[1][1] or side["rows"].shape != (-(-n // 8),):
            raise CorruptStream(f"shares of shapes {sizes} and a map of {side['rows'].shape} bytes do not fit")
        bits = np.unpackbits(side["rows"])
        chosen = torch.from_numpy(bits[:n].astype(bool))
        if bits[n:].any() or int(chosen.sum()) != sizes[0][0]:
            raise CorruptStream(f"a map with {int(bits.sum())} rows for a share of {sizes[0][0]}")
        out = torch.empty(n, sizes[0][1])
        out[chosen], out[~chosen] = shares
        return out

    def _chosen(self, x: Tensor) -> Tensor:
        if self.chosen is None:
            return self.fit(x).chosen
        if x.ndim != 2 or len(self.chosen) != len(x):
            raise BadInput(f"an array of shape {tuple(x.shape)}; the rule was fitted to {len(self.chosen)} rows")
        return self.chosen
