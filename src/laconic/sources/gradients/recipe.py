"""`GradientRecipe`: how a model's gradients travel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...core.combine import ErrorControl, ErrorFeedback, error_feedback
from ...core.errors import BadConfig, unknown
from ...core.stage import Stage

PLAIN = ("float32", "float16", "bfloat16")
TRAVELS = ("codes", "whole", "factors", "plain")


@dataclass(frozen=True)
class Plan:
    """How the level of every parameter is chosen, and chosen anew while training (L-GreCo).

    levels: to choose from. every: steps between plans. window: steps whose gradients are summed for it. error: the summed
    error that is allowed, over that of the recipe's own level everywhere. relative: errors are shares of the gradients' norms,
    for optimizers like Adam, whose steps do not depend on these.
    """

    levels: tuple[float, ...]
    every: int = 100
    window: int = 10
    error: float = 1.0
    relative: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.window <= self.every / 2 or not self.levels or not 0 < self.error:
            raise BadConfig(
                f"a plan of {len(self.levels)} levels every {self.every} steps from {self.window} of them, {self.error} of the "
                "error; a level, a window of up to half of them and more than 0 are right"
            )


@dataclass(frozen=True)
class GradientRecipe:
    """How gradients of data-parallel workers travel.

    at: the codec of one gradient at a level, ARRAY -> BYTES. level: the one taken (a fraction kept, a rank, bits).
    control: what becomes of what the codec loses, `error_feedback` or `error_control` around a codec; None: it is lost.
    travels: "codes": every rank's packet goes to all others, for whatever cannot be added up; "whole":
        the same of all parameters as one vector, each in units of its root mean square; "factors": as matrices of rank
        `level`, P and Q of power iteration, which can be added on the way; "plain": as numbers.
    factors: the codec of P and Q, ARRAY -> BYTES for values of unit variance; None: as numbers of `plain`, added on the way.
    plain: the dtype of what is not compressed (biases, gains, short parameters) on the wire.
    smallest: parameters of fewer values, or of one axis, are not compressed.
    plan: chooses levels by parameter; None: `level` everywhere.
    optimizer: the name in `laconic.gradients` of an optimizer that does its own sending; such a recipe is no hook.
    """

    at: Callable[[float], Stage]
    level: float
    control: Callable[[Stage], ErrorFeedback | ErrorControl] | None = error_feedback
    travels: str = "codes"
    factors: Stage | None = None
    plain: str = "float32"
    smallest: int = 1024
    plan: Plan | None = None
    optimizer: str = ""

    def __post_init__(self) -> None:
        if self.plain not in PLAIN:
            raise unknown("dtype", self.plain, list(PLAIN))
        if self.travels not in TRAVELS:
            raise unknown("way to travel", self.travels, list(TRAVELS))

    @property
    def codec(self) -> Stage:
        """A sequence of gradients of one parameter, axis 0 being time, as one packet."""
        codec = self.at(self.level)
        return self.control(codec) if self.control is not None else codec
