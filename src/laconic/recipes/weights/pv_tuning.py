"""PV-Tuning: after quantization, scales by gradient and a few codes a step by the model's divergence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...core.errors import BadConfig
from ...core.packet import codec
from ...sources.weights.recipe import Statistics, Tune, WeightRecipe

if TYPE_CHECKING:
    from ...sources.weights.tune import Tuning

_RATES = tuple(map(float, range(2, 9)))


def pv_tuning(
    bits: int = 2, group: int = 64, steps: int = 100, samples: int = 2, share: float = 1e-3, trust: float = 1e-2
) -> WeightRecipe:
    """GPTQ's codes, then in turns Adam on scales and gains of norms (P) and single steps of a small share of codes (V).

        packets ─▶ KL(original ‖ coded) ─ gradient ─┬▶ log of every group's scale, gains: all, by small steps
                                                    └▶ codes: the `share` with the surest gradients, by a whole level

    Needs a calibration text, and memory for seven times the weights in float32 (500 MB at most; a larger model stays as GPTQ
    coded it, and the report says so). trust: most that ‖ΔW‖ / ‖W‖ of a matrix may be in one V step. samples: windows for each
    step. The size is that of GPTQ. What samples set aside do not confirm is not kept.

    Source: Malinovskii et al. 2024, PV-Tuning (2405.14852), algorithm 1, V on a subspace (section 3.2). Differs: on scalar
    codes, which move by a level at a time, where the paper's searches among vectors; see `tune_pv.alternate`.
    Claim: PV below P alone (codebooks and scales), P below none. Seen here (english-llama-7m, attention at 2 bits, 30 steps of
    256 tokens, KL on held-out text): none .0697, P .0642, PV .0630 with 3,400 moves of 1.6 million codes; on calibration
    text set aside .0515, .0397, .0376.
    """

    def tune(tuning: Tuning) -> None:
        from ...sources.weights.tune_pv import alternate

        alternate(tuning, steps, samples, share=share, trust=trust)

    if float(bits) not in _RATES:
        raise BadConfig(f"{bits} bits; 2 to 8 are right")
    return WeightRecipe(
        lambda rate: codec("gptq", bits=int(rate), group=group).stage,
        _RATES,
        Statistics(),
        float(bits),
        tune=Tune(tune),
    )
