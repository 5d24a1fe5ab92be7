"""Roundings beside the nearest point: stochastic, error feedback under a Hessian, descent on the cosine."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import BadConfig, BadInput, unknown
from ..core.stage import Stats
from .base import Codebook, Grid, Ladder, Rounding

if TYPE_CHECKING:
    from torch import Tensor


class HessianWarning(UserWarning):
    """A Hessian was not positive definite, and something else was done than asked for; the message says what."""


def _ladder(codebook: Codebook, who: str) -> Ladder:
    ladder = codebook.ladder()
    if ladder is None:
        raise BadConfig(f"{who} needs a scalar codebook; {type(codebook).__name__} has vectors or sequences")
    return ladder


def _rows(x: Tensor, grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """x, step and offset as (n_rows, n) float32 arrays."""
    tensors = (x, grid.step.expand(x.shape), None if grid.offset is None else grid.offset.expand(x.shape))
    rows = (None if t is None else np.ascontiguousarray(t.numpy()).reshape(-1, x.shape[-1]) for t in tensors)
    return tuple(rows)  # type: ignore[return-value]


def _from_rank(rank: np.ndarray, ladder: Ladder, shape: tuple[int, ...]) -> Tensor:
    import torch

    return torch.from_numpy(ladder.index[rank].reshape(shape))


@dataclass(frozen=True)
class Stochastic(Rounding):
    """To one of the two neighbouring levels at random, so that the expectation is the value: unbiased inside the book's span.

    The same seed gives the same choices at every call.
    """

    seed: int = 0

    def __call__(self, x: Tensor, grid: Grid, codebook: Codebook, stats: Stats | None) -> Tensor:
        from ..kernels.random import uniform

        ladder = _ladder(codebook, "Stochastic")
        levels = ladder.levels.astype(np.float64)
        u = grid.normalize(x).double().numpy()
        low = np.clip(np.searchsorted(levels, u, side="right") - 1, 0, len(levels) - 2)
        share = (u - levels[low]) / (levels[low + 1] - levels[low])
        return _from_rank(low + (uniform(self.seed, u.size).reshape(u.shape) < share), ladder, tuple(x.shape))


@dataclass(frozen=True)
class CoordinateDescent(Rounding):
    """Nearest first, then up to `rounds` passes that move an index by one wherever the row's cosine with x rises.

    For directions: a decoder of inner products corrects the length by itself.

    Source: Li et al. 2025, SAQ (2509.12086), code adjustment. Differs: any scalar codebook, any grid.
    """

    rounds: int = 6

    def __post_init__(self) -> None:
        if not 1 <= self.rounds <= 1000:
            raise BadConfig(f"{self.rounds} rounds; 1 to 1000 are right")

    def __call__(self, x: Tensor, grid: Grid, codebook: Codebook, stats: Stats | None) -> Tensor:
        from ..kernels.feedback import descend
        from ..kernels.scalar import rank

        ladder = _ladder(codebook, "CoordinateDescent")
        rows, step, offset = _rows(x, grid)
        start = rank(grid.normalize(x).numpy(), ladder.thresholds).reshape(rows.shape)
        return _from_rank(descend(rows, step, offset, ladder.levels, start, self.rounds), ladder, tuple(x.shape))


@dataclass(frozen=True)
class Feedback(Rounding):
    """Error feedback: columns one after the other, each error spread over the columns that are still free (GPTQ, LDLQ).

    With H = E[xxᵀ] of the inputs, damped, and H⁻¹ = Uᵀ U: for blocks b of `codebook.columns` columns in order

        E = (W_b − Q(W_b)) U_bb⁻¹,   W_rest ← W_rest − E U_{b,rest}

    which for single columns is GPTQ's step and for vector codebooks the block LDLQ of QuIP#. Without a Hessian: nearest.

    damping: added to the diagonal, as a part of its mean; ten and a hundred times that if H is not positive definite, then
    nearest; both are reported by a `HessianWarning`.
    order: "natural", or "descending" by the diagonal of H (activation order; the grid is given, so groups are static).

    Positions where `stats.mask` is True count as stored with the value they came with: their error is what feedback added.
    A column whose diagonal is 0 never met an input; it is rounded by itself.

    Source: Frantar et al. 2022, GPTQ (2210.17323), Alg. 1; Chee et al. 2023, QuIP (2307.13304), Theorem 1 (LDLQ is the
    same); Tseng et al. 2024, QuIP# (2402.04396), section 4.1 (blocks); QTIP (2406.11235). Differs: U is the inverse of
    the upper factor of H = R Rᵀ, in float64, one factorisation instead of three; dead columns keep their values.
    """

    damping: float = 0.01
    order: str = "natural"

    def __post_init__(self) -> None:
        if not 0 <= self.damping <= 1e6:
            raise BadConfig(f"damping {self.damping}; a part of the mean diagonal such as .01 is right")
        if self.order not in ("natural", "descending"):
            raise unknown("order", self.order, ["natural", "descending"])

    def __call__(self, x: Tensor, grid: Grid, codebook: Codebook, stats: Stats | None) -> Tensor:
        import torch

        if stats is None or stats.hessian is None:
            return codebook.nearest(grid.normalize(x))
        n, width, mask = x.shape[-1], codebook.columns, stats.mask
        if n % width:
            raise BadInput(f"{n} columns for a codebook that takes {width} together; a multiple is right")
        if mask is not None and mask.shape != x.shape:
            raise BadInput(
                f"a mask of shape {tuple(mask.shape)} for values of shape {tuple(x.shape)}; fit on these values"
            )
        hessian = live_hessian(stats.hessian, n)
        order = self._order(torch.diagonal(hessian), width)
        factor = inverse_factor(hessian[order][:, order], self.damping)
        if factor is None:
            return codebook.nearest(grid.normalize(x))
        at, upper, exact = order.numpy(), factor.numpy(), None
        w, step, offset = (None if a is None else a[:, at] for a in _rows(x, grid))
        assert w is not None and step is not None
        if mask is not None:
            exact = np.where(mask.reshape(w.shape).numpy()[:, at], w, np.float32(np.nan))
        ladder = codebook.ladder()
        if ladder is not None and width == 1:
            from ..kernels.feedback import sweep

            index = ladder.index[sweep(w, step, offset, upper, ladder.thresholds, ladder.levels, exact)]
        else:
            index = _blockwise(w, step, offset, upper, codebook, exact)
        out = np.empty_like(index)
        out[:, at[:: codebook.dim] // codebook.dim] = index
        shape = (*x.shape[:-2], -1, out.shape[1]) if x.ndim > 1 else (-1,)  # a codebook may take several rows together
        return torch.from_numpy(out.reshape(shape))

    def _order(self, diagonal: Tensor, width: int) -> Tensor:
        """A permutation of the columns that keeps blocks of `width` together."""
        import torch

        blocks = torch.arange(len(diagonal)).reshape(-1, width)
        if self.order == "descending":
            blocks = blocks[diagonal.reshape(-1, width).mean(dim=1).argsort(descending=True, stable=True)]
        return blocks.reshape(-1)


def inverse_factor(hessian: Tensor, damping: float) -> Tensor | None:
    """U with (H + damping)⁻¹ = Uᵀ U, upper triangular: (n, n) float32. hessian: (n, n) float64.

    If H is not positive definite the damping is raised; None where that does not help. Both give a HessianWarning.
    """
    import torch

    mean = float(torch.diagonal(hessian).mean())
    for raised in (damping, 10 * damping, 100 * damping):
        factor = hessian.flip(0, 1)  # a copy; of matrices of this size there are never more than four
        factor.diagonal().add_(raised * mean)
        factor, failed = torch.linalg.cholesky_ex(factor)
        if not int(failed):
            if raised > damping:
                warnings.warn(
                    f"Hessian not positive definite with damping {damping:g}; {raised:g} was used",
                    HessianWarning, stacklevel=3,
                )  # fmt: skip
            factor = factor.flip(0, 1)
            inverse = torch.eye(len(hessian), dtype=torch.float64)
            torch.linalg.solve_triangular(factor, inverse, upper=True, out=inverse)
            return inverse.float()
    warnings.warn(
        f"Hessian not positive definite with damping up to {raised:g}; there will be no error feedback",
        HessianWarning, stacklevel=3,
    )  # fmt: skip
    return None


def live_hessian(hessian: Tensor, n: int) -> Tensor:
    """The Hessian of n columns in float64; columns that met no input are decoupled from the others. Raises BadInput."""
    import torch

    if hessian.shape != (n, n):
        raise BadInput(f"a Hessian of shape {tuple(hessian.shape)} for rows of {n} values; ({n}, {n}) is right")
    hessian = hessian.double()
    if not bool(torch.isfinite(hessian).all()):
        raise BadInput("a Hessian with NaN or Inf")
    dead = torch.diagonal(hessian) <= 0
    if bool(dead.any()):
        hessian = hessian.masked_fill(dead[:, None] | dead[None], 0.0)
        live = torch.diagonal(hessian)[~dead]
        hessian.diagonal()[dead] = live.mean() if len(live) else 1.0
    return hessian


def _blockwise(
    w: np.ndarray, step: np.ndarray, offset: np.ndarray | None, upper: np.ndarray,
    codebook: Codebook, exact: np.ndarray | None,
) -> np.ndarray:  # fmt: skip
    """The sweep for any codebook, `codebook.columns` at a time; gives indices (n_rows, n / dim)."""
    import torch

    from ..kernels.feedback import BLOCK
    from ..kernels.product import product

    n, width, w, out = w.shape[1], codebook.columns, w.copy(), []
    error = np.empty(w.shape, np.float32)
    lazy = max(BLOCK // width, 1) * width
    for first in range(0, n, lazy):
        last = min(first + lazy, n)
        for a in range(first, last, width):
            b = a + width
            grid = Grid(torch.from_numpy(step[:, a:b]), None if offset is None else torch.from_numpy(offset[:, a:b]))
            index = codebook.nearest(grid.normalize(torch.from_numpy(w[:, a:b])).contiguous())
            out.append(index.numpy())
            q = grid.denormalize(codebook.lookup(index)).numpy()
            if exact is not None:
                kept = exact[:, a:b]
                q = np.where(np.isnan(kept), q, kept)
            inverse = np.linalg.inv(upper[a:b, a:b].astype(np.float64)).astype(np.float32)
            error[:, a:b] = product(np.ascontiguousarray(w[:, a:b] - q), inverse)
            if b < last:
                w[:, b:last] -= product(np.ascontiguousarray(error[:, a:b]), np.ascontiguousarray(upper[a:b, b:last]))
        if last < n:
            w[:, last:] -= product(
                np.ascontiguousarray(error[:, first:last]), np.ascontiguousarray(upper[first:last, last:])
            )
    return np.concatenate(out, axis=1)
