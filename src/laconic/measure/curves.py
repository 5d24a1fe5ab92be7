"""Comparing rate-distortion curves."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..core.errors import BadConfig, BadInput


class BDRate(NamedTuple):
    """Average difference in rate at equal quality, and where it was averaged."""

    percent: float  # negative: the tested codec needs less
    low: float  # the qualities that both curves reach
    high: float
    overlap: float  # their share of all qualities that either curve reaches


def bd_rate(
    anchor_rates: ArrayLike,
    anchor_qualities: ArrayLike,
    rates: ArrayLike,
    qualities: ArrayLike,
    *,
    method: Literal["pchip", "cubic"] = "pchip",
) -> BDRate:
    """Bjøntegaard delta rate: mean of log(rate) − log(anchor rate) over the qualities both curves reach, in percent.

    Shapes: four or more points a curve, in any order. Rates are positive; a quality is higher when better (PSNR in dB;
    for a distortion give its negative or its dB) and must rise with the rate.
    method: how log(rate) is interpolated over quality. "pchip": piecewise monotone cubic, as in JVET's common test
        conditions; "cubic": one polynomial of third degree, as first published (least squares beyond four points).
    Raises: BadInput: too few points, a curve that is no function of quality, or no overlap (nothing is extrapolated).
    Source: Bjøntegaard 2001, VCEG-M33; PCHIP: JVET common test conditions (Fritsch & Carlson 1980).

    >>> bd_rate([1, 2, 4, 8], [30, 33, 36, 39], [0.9, 1.8, 3.6, 7.2], [30, 33, 36, 39]).percent.__round__(9)
    -10.0
    """
    if method not in ("pchip", "cubic"):
        raise BadConfig(f"method {method!r}: use 'pchip' or 'cubic'")
    anchor, test = _curve(anchor_rates, anchor_qualities), _curve(rates, qualities)
    low, high = max(anchor[0][0], test[0][0]), min(anchor[0][-1], test[0][-1])
    if low >= high:
        spans = [f"{q[0]:g} to {q[-1]:g}" for q, _ in (anchor, test)]
        raise BadInput(f"the curves share no quality: {spans[0]} and {spans[1]}")
    union = max(anchor[0][-1], test[0][-1]) - min(anchor[0][0], test[0][0])
    mean = (_integral(*test, low, high, method) - _integral(*anchor, low, high, method)) / (high - low)
    return BDRate(float(np.expm1(mean) * 100), float(low), float(high), float((high - low) / union))


def _curve(rates: ArrayLike, qualities: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Quality and log rate of a curve, in order of quality."""
    rate, quality = np.asarray(rates, np.float64), np.asarray(qualities, np.float64)
    if rate.ndim != 1 or rate.shape != quality.shape or len(rate) < 4:
        raise BadInput(f"rates {rate.shape} and qualities {quality.shape}: a curve needs four or more points")
    if not (np.isfinite(rate).all() and np.isfinite(quality).all() and (rate > 0).all()):
        raise BadInput("rates must be positive and qualities finite")
    order = np.argsort(quality)
    rate, quality = rate[order], quality[order]
    if (np.diff(rate) <= 0).any() or (np.diff(quality) <= 0).any():
        raise BadInput(f"quality must rise with rate; in order of quality {quality} the rates are {rate}")
    return quality, np.log(rate)


def _integral(quality: np.ndarray, log_rate: np.ndarray, low: float, high: float, method: str) -> float:
    if method == "pchip":
        from scipy.interpolate import PchipInterpolator

        return float(PchipInterpolator(quality, log_rate).integrate(low, high))
    centre = quality.mean()  # the fit is ill-conditioned far from 0
    primitive = np.polyint(np.polyfit(quality - centre, log_rate, 3))
    return float(np.polyval(primitive, high - centre) - np.polyval(primitive, low - centre))
