"""Many workers in one process, deterministic: the hook's code with the network left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...core.errors import BadConfig
from .collective import run_together
from .compressor import Compressor, compressor


class Workers:
    """Compressors of n ranks. `exchange` is one step; `reports` what each has sent."""

    def __init__(self, ranks: Sequence[Compressor]) -> None:
        self.ranks = ranks

    def exchange(self, gradients: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Each rank's gradients by name, ranks in order -> the mean that all apply, which is one and the same for all."""
        if len(gradients) != len(self.ranks):
            raise BadConfig(f"gradients of {len(gradients)} workers; {len(self.ranks)} were asked for")
        works = [c.step(g) for c, g in zip(self.ranks, gradients, strict=True)]
        return run_together(works, [c.traffic for c in self.ranks])[0]

    @property
    def reports(self) -> list[Any]:
        """By rank."""
        return [c.report() for c in self.ranks]


def simulate(recipe_id: str, n_workers: int, **settings: Any) -> Workers:
    """`n_workers` ranks of a compressor, to be driven step by step. settings: of `compressor` and of the recipe.

    >>> import torch
    >>> workers = simulate("ef-levels", 4, fraction=0.5)
    >>> mean = workers.exchange([{"w": torch.full((40, 40), float(i))} for i in range(4)])
    >>> float(mean["w"].max())
    1.5
    """
    ranks = []
    for rank in range(n_workers):
        one = compressor(recipe_id, **settings)
        one.place = rank, n_workers
        ranks.append(one)
    return Workers(ranks)
