"""`CacheRecipe`: how the cache of a layer keeps its keys and values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...core.combine import chain, partition
from ...core.errors import BadConfig, unknown
from ...core.stage import Stage
from ...entropy.coders import Pack
from ...quantize.base import Quantizer
from ...quantize.codebooks import Minifloat
from ...quantize.rules import Halves, Tail
from ...quantize.scales import AbsMax, GroupScale, PowerOfTwo, Whole

if TYPE_CHECKING:
    from .evict import Eviction
    from .retrieve import Retrieval
    from .store import Site, Store

AtRate = Callable[[float], Stage]
LEARNS = ("never", "once", "group")
ROPE = ("after", "before")
BUDGETS = ("uniform", "measured")
INPUTS = ("none", "attention", "residual", "peaks")
SALIENT = ("normalized", "accumulated")


def half() -> Stage:
    """Sixteen bits a value, for windows and sinks of a packet."""
    return chain(Quantizer(Minifloat("float16"), GroupScale(Whole(), AbsMax(), PowerOfTwo())), Pack())


def sixteen(rate: float) -> Stage:
    """`half`, for recipes that keep what they keep in sixteen bits. Raises BadConfig where another rate is asked for."""
    if rate != 16:
        raise BadConfig(
            f"{rate:g} bits a value; this recipe keeps values in 16, and its settings say how many it keeps or reads"
        )
    return half()


def levels(rate: float) -> int:
    """Levels of a uniform codebook at a rate: 2^rate or the next fewer, at least 2."""
    if not 0 < rate <= 8:
        raise BadConfig(f"{rate} bits a value; above 0 to 8 are right")
    return max(2, math.floor(2**rate + 1e-9))


@dataclass(frozen=True)
class CacheRecipe:
    """A cache as a pipeline: append → (before RoPE) → transform → quantize whole groups → window and sinks → evict → read.

    keys, values: the codec at a rate in bits a value, ARRAY (..., n_heads, n_tokens, d) -> BYTES. Their own chains.
    nominal: the rate taken where the user names none.
    group: tokens that are coded at once, a multiple of what the codecs need. value_group: of values, where a packet's may be
        fewer; 0: the same. A cache codes both together.
    window: the latest tokens that stay as they are, at least so many; sinks: the same for the first.
    rope: whether keys are coded "after" RoPE, as the model hands them over, or "before", rotated back and again when read.
    learns: "never": the codecs need no data. "once": fitted on calibration text, or else on the first prompt; what they learned
        counts in the cache in the second case. "group": fitted anew to every group, and what they learned is kept with it.
    metric: whether keys are fitted with the second moment of the queries as the Hessian.
    budgets: "uniform": every layer's keys and values at the same rate; "measured": by the loss in KL that each causes.
    salient: a score of tokens (`scores.py`), "normalized" or "accumulated", handed to codecs that learn from a "group" as
        `Stats.importance` (1, n_tokens, 1).
    evict: drops tokens, head by head. retrieve: reads only blocks that the query asks for.
    store: a layer's store where it is not a pair of keys and values.
    inputs: what the store is told of the layer's inputs, "none", the "attention" module's, the "residual" stream, or the
        "peaks" of that: the greatest magnitude of each token over the median one.
    tune: (model, batches, recipe, codecs by layer, progress) -> codecs, what calibration does once they are fitted.
    """

    keys: AtRate
    values: AtRate
    nominal: float = 3.0
    group: int = 64
    value_group: int = 0
    window: int = 32
    sinks: int = 0
    rope: str = "after"
    learns: str = "never"
    metric: bool = False
    budgets: str = "uniform"
    salient: str | None = None
    evict: Eviction | None = None
    retrieve: Retrieval | None = None
    store: Callable[[CacheRecipe, Site, Stage, Stage, int], Store] | None = None
    inputs: str = "none"
    tune: Callable[..., dict[int, tuple[Stage, Stage]]] | None = None

    def __post_init__(self) -> None:
        for value, known, what in (
            (self.rope, ROPE, "place of RoPE"),
            (self.learns, LEARNS, "way to learn"),
            (self.budgets, BUDGETS, "budget"),
            (self.inputs, INPUTS, "input of a layer"),
            (self.salient, (None, *SALIENT), "score of tokens"),
        ):
            if value not in known:
                raise unknown(what, str(value), [str(k) for k in known])
        if self.salient and self.learns != "group":
            raise BadConfig(f"tokens scored for codecs that learn {self.learns!r}; they learn from a 'group'")
        if self.group < 1 or self.window < 0 or self.sinks < 0:
            raise BadConfig(f"group {self.group}, window {self.window}, sinks {self.sinks}; 1, 0 and 0 are the least")

    @property
    def codec(self) -> Stage:
        """Keys and values of one layer as one packet: (2, n_heads, n_tokens, d), the last tokens in sixteen bits."""
        keys, values = (at(self.nominal) for at in (self.keys, self.values))
        groups = self.group, self.value_group or self.group
        tails = (partition(Tail(self.window, g, -2), c, half()) for g, c in zip(groups, (keys, values), strict=True))
        return partition(Halves(0), *tails)
