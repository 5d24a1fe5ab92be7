"""A codebook whose levels keep the spread of what they stand for: KVQuant's Q-Norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from ..core.errors import CorruptStream, NotFitted
from ..core.stage import learned
from .base import Ladder
from .codebooks import KMeans, Levels

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Matched(Levels):
    """The levels of `book` moved so that what they reconstruct has the mean and the standard deviation of the originals.

    x goes to the cell in which `book` has it, and is reconstructed as gain · level + shift. Centroids shrink the spread, at 2
    bits by some 6 %, and a softmax over such keys is too flat; the squared error grows by the square of that.
    Cost: 32 bits beside the book's.
    Source: Hooper et al. 2024, KVQuant (2401.18079), section 3.5 (Q-Norm).
    """

    book: KMeans = KMeans(4)
    affine: np.ndarray | None = learned("float16")

    @property
    def alphabet(self) -> int:
        return self.book.alphabet

    def points(self) -> np.ndarray:
        if self.affine is None:
            raise NotFitted("Matched has seen no values yet; call fit")
        if self.affine.shape != (2,) or not np.isfinite(self.affine).all():
            raise CorruptStream(f"a gain and shift of {self.affine[:4]}; two finite numbers are right")
        gain, shift = self.affine.astype(np.float32)
        return self.book.points() * gain + shift

    def span(self) -> tuple[float, float]:
        """That of the book, so that scales normalise alike before and after `fit`."""
        return self.book.span()

    def fit(self, x: Tensor, weights: Tensor | None = None) -> Self:
        book = self.book.fit(x, weights)
        w = np.ones(x.numel()) if weights is None else weights.expand(x.shape).reshape(-1).double().numpy()
        v = x.reshape(-1).double().numpy()
        q = book.lookup(book.nearest(x)).reshape(-1).double().numpy()
        total = max(float(w.sum()), 1e-30)
        means = [float((w * a).sum()) / total for a in (v, q)]
        spreads = [float(np.sqrt((w * (a - m) ** 2).sum() / total)) for a, m in zip((v, q), means, strict=True)]
        gain = spreads[0] / spreads[1] if spreads[1] > 0 else 1.0
        return self.replace(book=book, affine=np.clip([gain, means[0] - gain * means[1]], -65504.0, 65504.0))

    def ladder(self) -> Ladder:
        """Thresholds of the book, levels moved."""
        found = self.book.ladder()
        return found._replace(levels=self.points()[found.index])

    def nearest(self, x: Tensor) -> Tensor:
        return self.book.nearest(x)
