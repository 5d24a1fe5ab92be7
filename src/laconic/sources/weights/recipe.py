"""`WeightRecipe`: what the walk over a model's blocks runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...core.errors import BadConfig, unknown
from ...core.stage import Stage

if TYPE_CHECKING:
    from .trial import Trial
    from .tune import Tuning

Policy = Callable[["Trial", float], list[float]]
"""(trial, budget in bits over all matrices) -> rate of every matrix, one of the recipe's `rates` where it names any."""


@dataclass(frozen=True)
class Statistics:
    """What calibration gathers for each matrix.

    hessian: second moment of the inputs, as the blocks before it give them once they are quantized.
    tokens: "uniform", or "attention": each token's weight in the Hessian grows with the attention that it receives (RSQ).
    drift: also the cross moment of what quantized blocks changed in the inputs, (X_f − X)ᵀX (SAES-SVD).
    fisher: also the mean squared gradient of the log-likelihood at the outputs, by row, from one backward pass; it scales
        the Hessians of different matrices to one measure, nats of KL, and weighs rows.
    """

    hessian: bool = True
    tokens: str = "uniform"
    drift: bool = False
    fisher: bool = False

    def __post_init__(self) -> None:
        if self.tokens not in ("uniform", "attention"):
            raise unknown("weights of tokens", self.tokens, ["uniform", "attention"])


@dataclass(frozen=True)
class Tune:
    """What moves a coded model towards the original one, at the end, with both whole in memory.

    modules_only: leave folders alone, which are walked with one block in memory; a module is there whole in any case.
    """

    run: Callable[[Tuning], None]
    modules_only: bool = False

    def __call__(self, tuning: Tuning) -> None:
        self.run(tuning)


@dataclass(frozen=True)
class WeightRecipe:
    """How the matrices of a model are coded.

    at: the codec of one matrix at a rate, nominal bits a weight; a Stage of ARRAY (n_out, n_in) -> BYTES that may be fitted
        with `Stats(hessian, importance)`.
    rates: the rates that `at` knows, ascending; () when any will do (the codec then keeps to its rate in real bytes).
    statistics: what calibration gathers. nominal: the rate taken where the user names no budget.
    policy: chooses a rate for every matrix under the budget; None: the room's own, measured sensitivity (see `policies`).
    at_step: the codec at a quantizer's step in the metric of the statistics, where one step puts all matrices at the same
        slope; with `estimate(x, stats) -> (bits a value, error)`. It takes the place of a policy.
    embedding: the same as `at` for embeddings and heads; None: `at`.
    tune: moves what was coded towards the original model, at the end; None: nothing does.
    """

    at: Callable[[float], Stage]
    rates: tuple[float, ...] = ()
    statistics: Statistics = Statistics()
    nominal: float = 4.0
    policy: Policy | None = None
    at_step: Callable[[float], Any] | None = None
    embedding: Callable[[float], Stage] | None = None
    tune: Tune | None = None

    def __post_init__(self) -> None:
        if list(self.rates) != sorted(set(self.rates)) or (self.rates and self.rates[0] <= 0):
            raise BadConfig(f"rates {self.rates}; ascending bits above 0 are right")

    @property
    def codec(self) -> Stage:
        """The codec of one matrix at the nominal rate."""
        return self.at(self.nominal)
