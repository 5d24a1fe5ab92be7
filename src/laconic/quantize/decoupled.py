"""Steps and offsets solved for under the Hessian, in turns with the rounding: decoupleQ's quantizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ..core.errors import BadConfig
from ..core.stage import Side, Symbols
from .base import Quantizer, error_weights, index_dtype
from .rounding import live_hessian
from .scales import Along, GroupScale, MinMax

if TYPE_CHECKING:
    from torch import Tensor

_RIDGE = 1e-6  # of the normal equations, as a part of their mean diagonal


class _State(NamedTuple):
    """step, offset: (n_rows, n_groups) as stored; index: (n_rows, n); loss: (n_rows,) float64."""

    step: Tensor
    offset: Tensor
    index: Tensor
    loss: Tensor


@dataclass(frozen=True)
class Decoupled(Quantizer):
    """A quantizer whose integers and whose floats are optimised in turns for tr((W − Ŵ) H (W − Ŵ)ᵀ).

        Ŵ = s · I + z:   I by `rounding` for fixed (s, z)   ⇄   all (s, z) of a row at once, in closed form, for fixed I

    The second step solves the normal equations of 2 · n_groups unknowns a row, BᵀHB θ = BᵀHw, B's columns being the integers
    and the ones of each group; a ridge of 1e-6 keeps groups of equal integers solvable. Half-step results that are worse
    behind the store are dropped row by row, so the loss never rises. Ends after `rounds`, or when no row gains.
    Without a Hessian: the plain quantizer.

    scale: a `GroupScale` along rows with offsets in floats, the start of the iteration.
    Source: Guo et al. 2024, decoupleQ (2404.12759), the alternation of its layer-wise minimisation. Differs: integers by
    the error-feedback sweep throughout, no projected gradient steps; rows keep their best.
    """

    scale: GroupScale = GroupScale(Along(), MinMax(True))
    rounds: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.rounds <= 100:
            raise BadConfig(f"{self.rounds} rounds; 0 to 100 are right")
        if not self.scale.find.affine or set(self.scale.store.leaves(True)) - {"scale", "zero", "exponent"}:
            raise BadConfig(
                "steps and offsets in floats are solved for; use GroupScale(Along(size), MinMax(True), Float())"
            )

    def encode(self, x: Tensor) -> tuple[Symbols, Side]:
        if self.stats is None or self.stats.hessian is None or not self.rounds:
            return super().encode(x)
        return _Alternation(self, x).run()


class _Alternation:
    """The iteration for one array, all rows at once."""

    def __init__(self, stage: Decoupled, x: Tensor) -> None:
        self.stage, self.x = stage, x
        self.rows = x.reshape(-1, x.shape[-1])
        self.shape = tuple(self.rows.shape)
        self.hessian = live_hessian(stage.stats.hessian, x.shape[-1])
        self.size = stage.scale.groups.size or x.shape[-1]  # type: ignore[attr-defined]
        self.n_groups = -(-x.shape[-1] // self.size)

    def run(self) -> tuple[Symbols, Side]:
        stage = self.stage
        side = stage.scale.measure(self.rows, stage.codebook, error_weights(stage.stats))
        best = self._rounded(*self._seen(side))
        for _ in range(stage.rounds):
            solved = self._relevelled(best, *self._solve(best.index))
            rounded = self._better(solved, self._rounded(solved.step, solved.offset))
            if not bool((rounded.loss < best.loss * (1 - 1e-4)).any()):
                best = rounded
                break
            best = rounded
        side = stage.scale.store.put(best.step, best.offset)
        lattice = stage.scale.groups.lattice(tuple(self.x.shape))
        side |= {name: side[name].reshape(lattice) for name in ("scale", "zero")}
        index = best.index.reshape(self.x.shape).numpy()
        return Symbols(index.astype(index_dtype(stage.codebook.alphabet)), stage.codebook.alphabet), side

    def _seen(self, side: Side) -> tuple[Tensor, Tensor]:
        lattice = self.stage.scale.groups.lattice(self.shape)
        step, offset = self.stage.scale.store.get(side, lattice, True)
        assert offset is not None
        return step, offset

    def _rounded(self, step: Tensor, offset: Tensor) -> _State:
        """Indices by the rounding for these steps and offsets."""
        stage = self.stage
        grid = stage.scale.expand(stage.scale.store.put(step, offset), self.shape)
        index = stage.rounding(self.rows, grid, stage.codebook, stage.stats)
        return self._state(step, offset, index)

    def _relevelled(self, old: _State, step: Tensor, offset: Tensor) -> _State:
        """The same indices with other steps and offsets where those, stored, are better."""
        for _ in range(2):  # rows that keep their old numbers change what a common exponent has to reach
            step, offset = self._seen(self.stage.scale.store.put(step, offset))
            kept = self._better(old, self._state(step, offset, old.index))
            step, offset = kept.step, kept.offset
        step, offset = self._seen(self.stage.scale.store.put(step, offset))
        return self._state(step, offset, old.index)

    def _state(self, step: Tensor, offset: Tensor, index: Tensor) -> _State:
        groups = self.stage.scale.groups
        levels = self.stage.codebook.lookup(index)
        error = levels * groups.spread(step, self.shape) + groups.spread(offset, self.shape) - self.rows
        error = error.double()
        return _State(step, offset, index, (error @ self.hessian * error).sum(dim=1))

    def _better(self, a: _State, b: _State) -> _State:
        import torch

        wins = b.loss < a.loss
        pick = (torch.where(wins[:, None], q, p) for p, q in zip(a[:3], b[:3], strict=True))
        return _State(*pick, torch.where(wins, b.loss, a.loss))

    def _solve(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Steps and offsets of least loss for these integers: (n_rows, n_groups) each, float32."""
        import torch

        h, g, missing = self.hessian, self.n_groups, self.n_groups * self.size - self.shape[1]
        levels = self.stage.codebook.lookup(index).double()

        def by_group(t: Tensor) -> Tensor:
            """Sums over each group of the last axis."""
            padded = torch.nn.functional.pad(t, (0, missing))
            return padded.reshape(*t.shape[:-1], g, self.size).sum(dim=-1)

        ones = by_group(h)  # (n, g): H times the ones of each group
        wh = self.rows.double() @ h
        parts = [levels[:, a : a + self.size] @ h[a : a + self.size] for a in range(0, self.shape[1], self.size)]
        a11 = torch.stack([by_group(p * levels) for p in parts], dim=1)
        a12 = torch.stack([by_group(p) for p in parts], dim=1)
        a22 = by_group(ones.T).expand(len(levels), g, g)
        normal = torch.cat([torch.cat([a11, a12], 2), torch.cat([a12.mT, a22], 2)], 1)
        right = torch.cat([by_group(wh * levels), by_group(wh)], 1)
        diagonal = normal.diagonal(dim1=1, dim2=2)
        ridge = torch.diag_embed(diagonal * _RIDGE + diagonal.mean(dim=1, keepdim=True) * 1e-12 + 1e-300)
        found, failed = torch.linalg.solve_ex(normal + ridge, right)
        found = torch.where((failed == 0)[:, None] & found.isfinite(), found, 0.0).float()
        return found[:, :g].contiguous(), found[:, g:].contiguous()
