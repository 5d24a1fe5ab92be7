"""Codebooks cut out of the lattice E8, the densest packing of eight dimensions: no table to learn or to send.

The lattice step is in units of normalised values, so these books want a scale that brings the data to unit variance, such
as the root mean square of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from ..core.errors import BadConfig, NotFitted, claim
from .base import Codebook
from .vector import checked_index, grouped

if TYPE_CHECKING:
    from torch import Tensor

_FIT_VECTORS = 1 << 12  # that many are enough to find the step to a few percent, where the error is flat
_SMALLEST, _LARGEST = 1e-6, 1e6


@dataclass(frozen=True)
class _Scaled(Codebook):
    """A finite piece of the lattice, `step` apart."""

    step: float | None = None

    def __post_init__(self) -> None:
        if self.step is not None and not _SMALLEST <= self.step <= _LARGEST:
            raise BadConfig(f"a lattice step of {self.step}; {_SMALLEST} to {_LARGEST} is sensible, or None to fit it")

    def _step(self) -> float:
        if self.step is None:
            raise NotFitted(f"{type(self).__name__} has no step yet; call .fit(x), or give one")
        return self.step

    def _fit_step(
        self, x: Tensor, weights: Tensor | None, reach: float, through: Callable[[np.ndarray], np.ndarray]
    ) -> Self:
        """The step of least weighted error on some of the data, out of 33 around reach × the standard deviation.

        through: vectors in steps -> their reproduction.
        """
        if self.step is not None or not x.numel():
            return self if self.step is not None else self.replace(step=1.0)
        rows = grouped(x, 8).astype(np.float64)
        w = np.ones((1, 8)) if weights is None else grouped(weights.broadcast_to(x.shape), 8).astype(np.float64)
        pick = np.arange(0, len(rows), max(1, len(rows) // _FIT_VECTORS))
        rows, w = rows[pick], w[pick] if len(w) > 1 else w
        size = float(np.sqrt(np.mean(rows * rows)))
        if not size > 0:
            return self.replace(step=1.0)
        steps = np.clip(reach * size * np.geomspace(0.4, 3.0, 33), _SMALLEST, _LARGEST)
        errors = [float((w * (rows - s * through(rows / s)) ** 2).sum()) for s in steps]
        return self.replace(step=float(steps[int(np.argmin(errors))]))


@dataclass(frozen=True)
class E8(_Scaled):
    """The Voronoi code E8 / levels·E8: as many points as a cube of `levels` points a side, in the shape of the lattice's cell.

    Rate: log2(levels) a value. Nearest point in closed form; where it lies outside, the farthest point of the code on the
    ray to the vector. An index is a coordinate modulo `levels`, so every value has its own symbol; eight stand together.

    N(0,1), 2 / 3 / 4 bits, best step: error .1045 / .0292 / .0082 (Lloyd–Max .1175 / .0345 / .0095).

    Shapes: x (..., n), 8 divides n -> index (..., n).
    Source: Conway & Sloane 1982, 1983 (see `kernels.lattice`); for weights and caches Savkin et al. 2025, NestQuant
    (2502.09720). Differs: one step for all blocks; what overloads is drawn in instead of coded at another step.
    """

    levels: int = 4

    sequential: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 2 <= self.levels <= 256:
            raise BadConfig(f"{self.levels} levels a dimension; 2 to 256 can be had")
        super().__post_init__()

    @property
    def alphabet(self) -> int:
        return self.levels

    @property
    def columns(self) -> int:
        return 8

    def span(self) -> tuple[float, float]:
        """No point is farther out: the covering radius of E8 is 1."""
        return -self._step() * self.levels, self._step() * self.levels

    def fit(self, x: Tensor, weights: Tensor | None = None) -> Self:
        from ..kernels.lattice import voronoi_decode, voronoi_encode

        def through(y: np.ndarray) -> np.ndarray:
            return voronoi_decode(voronoi_encode(y, self.levels)[0], self.levels) / 2

        return self._fit_step(x, weights, 4.0 / self.levels, through)

    def nearest(self, x: Tensor) -> Tensor:
        import torch

        from ..kernels.lattice import voronoi_encode

        index, _ = voronoi_encode(grouped(x, 8) / self._step(), self.levels)
        return torch.from_numpy(index.reshape(x.shape))

    def lookup(self, index: Tensor) -> Tensor:
        import torch

        from ..kernels.lattice import voronoi_decode

        i = checked_index(index, self.levels, 8)
        claim(i.size * 8, "lattice points")
        points = voronoi_decode(i.reshape(-1, 8), self.levels)
        return torch.from_numpy((points * (0.5 * self._step())).astype(np.float32).reshape(i.shape))


@dataclass(frozen=True)
class E8Ball(_Scaled):
    """The 2^16 points around the origin that E8P takes: 256 absolute values, seven signs, a shift of ± ¼.

    Rate: exactly 2 bits a value; a table of 2 kB for any data. N(0,1), best step: error .0918 (Lloyd–Max .1175).

    Shapes: x (..., n), 8 divides n -> index (..., n / 8).
    Source: Tseng et al. 2024, QuIP# (2402.04396), section 4.2. Differs: which 29 vectors of length 12 fill up the 256 is
    a rule instead of a choice (see `kernels.lattice.ball_points`).
    """

    dim: ClassVar[int] = 8

    @property
    def alphabet(self) -> int:
        return 1 << 16

    def span(self) -> tuple[float, float]:
        return -2.75 * self._step(), 2.75 * self._step()

    def fit(self, x: Tensor, weights: Tensor | None = None) -> Self:
        from ..kernels.lattice import ball_decode, ball_encode

        return self._fit_step(x, weights, 1.0, lambda y: ball_decode(ball_encode(y)) / 4)

    def nearest(self, x: Tensor) -> Tensor:
        import torch

        from ..kernels.lattice import ball_encode

        return torch.from_numpy(ball_encode(grouped(x, 8) / self._step()).reshape(*x.shape[:-1], x.shape[-1] // 8))

    def lookup(self, index: Tensor) -> Tensor:
        import torch

        from ..kernels.lattice import ball_decode

        i = checked_index(index, self.alphabet, 1)
        claim(i.size * 64, "lattice points")
        points = ball_decode(i.reshape(-1)) * (0.25 * self._step())
        return torch.from_numpy(points.astype(np.float32).reshape(*i.shape[:-1], i.shape[-1] * 8))
