"""laconic's own choice for caches."""

from ...core.combine import chain
from ...core.stage import Stage
from ...quantize.coordinates import CoordinateCodes
from ...sources.kv.recipe import CacheRecipe
from ...transforms.heads import HeadBasis


def auto_cache(bits: float = 3.0, window: int = 16, sinks: int = 4, rope: str = "after") -> CacheRecipe:
    """Keys in the basis of their head and its queries, values in their own; bits where they return most.

        k ─ (RoPE taken away) ─ − mean_h ─ basis of M^½ C M^½ ─▶ b_hj bits for coordinate j of head h, levels learned
        v ─ − mean_h ─ basis of C ─▶ the same

    Errors of a pair of coordinates count by the power of the queries there. Fitted once to calibration text, or to the first
    prompt. Rate: `bits` and nothing a token or group; the window and sinks.

    rope: "after": a query meets keys as they lie, taken into their basis once, and attention over a long context is faster than
    over an uncompressed cache. "before": rotary positions smear what keys have in common; before them a mean and a few
    directions hold most of the energy, and on english-llama-7m the same bits lose about half as much. But every key must be
    formed and turned before it is met, which makes attention slower than over an uncompressed cache: for memory's sake alone.

    Sources: Hooper et al. 2024, KVQuant (2401.18079), sections 3.2 and 3.3 (before RoPE, learned levels); Segall 1976 and
    Gersho & Gray 1992, section 8.3 (rates of coordinates).
    """

    def at(rate: float) -> Stage:
        return chain(HeadBasis(), CoordinateCodes(rate))

    return CacheRecipe(
        at, at, bits, group=8, window=window, sinks=sinks, rope=rope, learns="once", metric=True, budgets="measured"
    )
