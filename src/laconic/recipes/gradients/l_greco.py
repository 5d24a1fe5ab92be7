"""L-GreCo: how much each parameter's gradient is compressed, by dynamic programming, planned anew while training."""

from ...core.combine import chain
from ...core.errors import unknown
from ...core.stage import Stage
from ...entropy.coders import Rans
from ...quantize.base import Quantizer
from ...quantize.codebooks import Uniform
from ...quantize.lowrank import LowRankCode
from ...quantize.scales import AbsMax, Float, GroupScale, Whole
from ...quantize.sparse import SparseLevels
from ...sources.gradients.recipe import GradientRecipe, Plan

_FAMILIES = ("top-k", "low-rank", "levels")


def l_greco(
    family: str = "top-k",
    level: float = 0.0,
    every: int = 100,
    window: int = 10,
    error: float = 1.0,
    plan: bool = True,
    relative: bool | None = None,
) -> GradientRecipe:
    """Every parameter has its own fraction, rank or number of levels: least bytes whose summed error is that of one for all.

        min Σ_l bytes(l, c_l)   so that   Σ_l ‖G_l − C(G_l; c_l)‖ / u_l ≤ error · Σ_l ‖G_l − C(G_l; level)‖ / u_l

    family: "top-k", level a fraction (default .02), choices from a fifth to five times as much; "low-rank", PowerSGD, a rank
    (4), from half to twice as much; "levels", uniform levels with entropy coding (7), from 3 to 31. G: the gradients of `window`
    steps, summed; a plan every `every` steps, the first after one window. plan: False is the one level for all. relative: u_l
    is ‖G_l‖, which is right for Adam, whose steps do not depend on it; False: 1, as published; None: True but for "low-rank",
    where it saves little. Error feedback throughout.

    `laconic bench gradients --only l-greco`: a Llama of .4 million parameters, Adam, 240 steps of two ranks, three seeds beside
    one level, whose losses spread by ± 1.0 % uncompressed. At .9 of the error of rank 4: 1.37 × fewer bytes, final loss .9 %
    higher; at the error of top-k .02: 1.31 × and 1.3 % lower. Tried on two or three seeds: relative errors over rank 4 save
    1.11 ×; errors as they are over top-k 1.37 ×, but the loss is 2.3 % higher; squared errors, which would add up, 2.5 and 1.8 ×
    at a loss 5 and 7 % higher, since they leave all bytes to the few parameters of great gradients.

    Source: Markov et al. 2024, L-GreCo (2210.17357), Alg. 1. Differs: relative errors, and a table averaged over ranks; see
    `sources.gradients.plan`.
    """
    if family not in _FAMILIES:
        raise unknown("family", family, list(_FAMILIES))
    travels = "codes"
    if family == "top-k":
        level = level or 0.02
        choices = tuple(
            min(level * f, 1.0) for f in (0.2, 0.25, 0.35, 0.5, 0.6, 0.7, 0.85, 1.2, 1.4, 1.7, 2.0, 2.8, 4.0, 5.0)
        )
        at = _top
    elif family == "low-rank":
        level = level or 4
        choices = tuple(float(r) for r in range(max(1, int(level) // 2), int(2 * level) + 1))
        at, travels = _low, "factors"
    else:
        level = level or 7
        choices = (3.0, 5.0, 9.0, 11.0, 15.0, 21.0, 31.0)
        at = _levels
    relative = family != "low-rank" if relative is None else relative
    made = Plan(choices, every, window, error, relative) if plan else None
    return GradientRecipe(at, level, travels=travels, plan=made)


def _top(fraction: float) -> Stage:
    return SparseLevels(fraction, 2)


def _low(rank: float) -> Stage:
    return LowRankCode()


def _levels(levels: float) -> Stage:
    return chain(Quantizer(Uniform(int(levels)), GroupScale(Whole(), AbsMax(), Float())), Rans())
