"""The codes in a packet as numbers that may be moved: for tuning after quantization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..core.reopen import Opened
from ..core.stage import Kind, Side, Symbols
from .base import Codebook, Grid, Scale, index_dtype

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Codes:
    """A packet of a chain that begins with a quantizer and hands its symbols to lossless coders.

    index: (..., n / codebook.dim) int64. grid: what the scale in the packet means. side: the scale's own.
    """

    opened: Opened
    index: Tensor
    codebook: Codebook
    scale: Scale
    side: Side

    @property
    def grid(self) -> Grid:
        """Step and offset of every value."""
        return self.scale.expand(self.side, self.opened.shape)

    def weight(self, index: Tensor | None = None) -> Tensor:
        """The values that an index stands for, by default its own."""
        return self.grid.denormalize(self.codebook.lookup(self.index if index is None else index))

    @property
    def lattice(self) -> tuple[int, ...]:
        """Shape of the scale's lattice."""
        return self.scale.groups.lattice(self.opened.shape)  # type: ignore[attr-defined]  # `grouped` is asked first

    @property
    def grouped(self) -> bool:
        """Whether the scale is one step a group, stored so that it can be put anew."""
        return all(hasattr(self.scale, name) for name in ("groups", "store", "find"))

    def spread(self, factor: Tensor) -> Tensor:
        """A number for every group -> what broadcasts against the values."""
        return self.scale.groups.spread(factor, self.opened.shape)  # type: ignore[attr-defined]

    def sums(self, x: Tensor) -> Tensor:
        """Sums of values over the groups: lattice."""
        groups = self.scale.groups  # type: ignore[attr-defined]
        return groups.scatter(groups.gather(x, 0.0).sum(1), self.opened.shape)

    def scaled(self, factor: Tensor) -> Side:
        """The scale's side information with every group's step and offset times a factor (lattice)."""
        store, affine = self.scale.store, self.scale.find.affine  # type: ignore[attr-defined]
        step, offset = store.get(self.side, self.lattice, affine)
        return store.put(step * factor, None if offset is None else offset * factor)

    def packet(self, index: Tensor | None = None, side: Side | None = None, codebook: Codebook | None = None) -> bytes:
        """The packet with other codes, another scale or other learned points; the rest of it stays."""
        first, *coders = self.opened.stage.children().values()
        stage = self.opened.stage
        if codebook is not None:
            first = first.replace(codebook=codebook)
            stage = stage.with_arrays({f"stages.0.{k}": a for k, (_, a) in first.arrays().items() if a is not None})
        new = (self.index if index is None else index).numpy()
        y = Symbols(new.astype(index_dtype(self.codebook.alphabet)), self.codebook.alphabet)
        sides = {"0": self.side if side is None else side}
        for i, coder in enumerate(coders, 1):
            y, sides[str(i)] = coder.encode(y)
        return self.opened.changed(bytes(y), sides, stage).packet()  # type: ignore[arg-type]  # coders end in bytes


def codes_of(opened: Opened) -> Codes | None:
    """The codes of a packet; None where it has none that stand each for itself (transforms, trellises, entropy-coded rates)."""
    import torch

    steps = list(opened.stage.children().values())
    if opened.stage.holds_codecs or not steps or steps[0].takes is not Kind.ARRAY or steps[0].gives is not Kind.SYMBOLS:
        return None
    book, scale = getattr(steps[0], "codebook", None), getattr(steps[0], "scale", None)
    if book is None or scale is None or book.sequential or not all(s.lossless for s in steps[1:]):
        return None
    y = opened.payload
    for i in range(len(steps) - 1, 0, -1):
        y = steps[i].decode(y, opened.side[str(i)])
    return Codes(opened, torch.from_numpy(y.index.astype(np.int64)), book, scale, opened.side["0"])
