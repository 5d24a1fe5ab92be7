"""Rate-distortion bounds: what no codec at a given rate can go below (squared error throughout).

Rates are in bits per element, distortions in mean squared error per element.
"""

from __future__ import annotations

from functools import lru_cache
from math import e, exp, exp2, log, log10, pi, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..allocate.waterfill import reverse_water_filling
from ..core.errors import BadConfig, BadInput


def gap_db(distortion: float, bound: float) -> float:
    """Distance of a distortion from a bound at the same rate, in dB; 6.02 dB is one bit per element.

    >>> round(gap_db(0.1175, gaussian_distortion(2)), 2)  # Lloyd–Max at 2 bits
    2.74
    """
    if not distortion > 0 or not bound > 0:
        raise BadInput(f"distortion {distortion!r} and bound {bound!r} must be positive")
    return 10 * log10(distortion / bound)


def gaussian_distortion(bits: float, variance: float = 1.0) -> float:
    """D(R) = σ²·2^(−2R) of an i.i.d. Gaussian source; no source of this variance has a higher D(R).

    Source: Shannon 1959; Cover & Thomas, theorem 10.3.2.

    >>> [gaussian_distortion(bits) for bits in (1, 2, 3, 4)]
    [0.25, 0.0625, 0.015625, 0.00390625]
    """
    _check(bits, variance)
    return variance * exp2(-2 * bits)


def laplace_shannon_bound(bits: float, variance: float = 1.0) -> float:
    """Shannon *lower* bound (e/π)·σ²·2^(−2R) on D(R) of an i.i.d. Laplace source.

    Not attained at any rate: the truth lies between this and `laplace_distortion`, which meet as the rate grows.

    Source: Shannon 1959; Berger 1971, Rate Distortion Theory, chapter 4; h(X) = log2(e·σ·√2).

    >>> round(laplace_shannon_bound(2), 4)
    0.0541
    """
    _check(bits, variance)
    return e / pi * variance * exp2(-2 * bits)


def laplace_distortion(bits: float, variance: float = 1.0) -> float:
    """D(R) of an i.i.d. Laplace source, numerically (Blahut–Arimoto on a grid): from above, to 0.3 %.

    Above 3 bits D(R + Δ) <= D(R)·2^(−2Δ) continues it (code the error again: a Gaussian is the worst), which by then
    meets `laplace_shannon_bound` to the same accuracy; below 0.01 bits time sharing with rate 0 does.

    >>> round(laplace_distortion(1), 3)
    0.217
    """
    _check(bits, variance)
    from scipy.optimize import brentq

    solved = min(max(bits, 0.01), 3.0)
    # The slope at distortion D is close to 1/(2D) and never above; towards rate 0 it vanishes.
    low, high = log(0.1), 0.1 - log(2 * laplace_shannon_bound(solved))
    log_slope = brentq(lambda s: _laplace_point(exp(s)).rate - solved, low, high, xtol=1e-4)
    distortion = _laplace_point(exp(log_slope)).distortion
    if bits < solved:
        return variance * (1 - (1 - distortion) * bits / solved)
    return variance * distortion * exp2(-2 * (bits - solved))


def vector_gaussian_distortion(covariance: ArrayLike, bits: float) -> float:
    """D(R) per element of Gaussian vectors: reverse water-filling over the eigenvalues of their covariance.

    Shapes: covariance (n, n), symmetric, positive semidefinite. A vector is coded with n·bits.
    Source: Kolmogorov 1956; Cover & Thomas, theorem 10.3.3.

    >>> vector_gaussian_distortion([[16.0, 0.0], [0.0, 1.0]], bits=1)
    1.0
    """
    _check(bits, 1.0)
    covariance = np.asarray(covariance, np.float64)
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1] or not covariance.size:
        raise BadInput(f"covariance {covariance.shape} must be (n, n)")
    scale = float(np.abs(covariance).max())
    if not np.isfinite(scale) or np.abs(covariance - covariance.T).max() > 1e-6 * scale:
        raise BadInput("covariance must be finite and symmetric")
    eigenvalues = np.linalg.eigvalsh(covariance)
    if eigenvalues[0] < -1e-6 * scale:
        raise BadInput(f"covariance has the eigenvalue {eigenvalues[0]:g}; it must be positive semidefinite")
    return float(reverse_water_filling(np.maximum(eigenvalues, 0.0), bits * len(eigenvalues))[1].mean())


def ar1_distortion(bits: float, rho: float, variance: float = 1.0) -> float:
    """D(R) per sample of a stationary Gaussian AR(1) process: reverse water-filling over its spectrum.

    σ²(1 − ρ²)·2^(−2R) once the water level is below the whole spectrum. Vectors of n samples coded one by one have
    `vector_gaussian_distortion` of the matrix σ²·ρ^|i−j|, which tends to this from above.

    variance: of the process, not of the innovation.
    Source: Kolmogorov 1956; Berger 1971, Rate Distortion Theory, chapter 4.

    >>> ar1_distortion(2, 0.9).__round__(6), round((1 - 0.9**2) / 16, 6)
    (0.011875, 0.011875)
    """
    _check(bits, variance)
    if not -1 < rho < 1:
        raise BadConfig(f"rho {rho!r} must lie between -1 and 1")
    # The mean over n equally spaced frequencies is off by a factor 1 + O(|ρ|^n).
    n = 4096 if rho == 0 else max(4096, int(30 / -log(abs(rho))))
    omega = pi * (np.arange(n) + 0.5) / n
    spectrum = variance * (1 - rho**2) / (1 - 2 * rho * np.cos(omega) + rho**2)
    return float(reverse_water_filling(spectrum, bits * n)[1].mean())


class RDPoint(NamedTuple):
    """A point that a code can reach, and how far above the rate-distortion function it can be."""

    rate: float  # bits
    distortion: float
    gap: float  # bits; R(distortion) >= rate − gap


def blahut_arimoto(
    pmf: ArrayLike, distortion: ArrayLike, slope: float, *, tolerance: float = 1e-4, max_iterations: int = 100_000
) -> RDPoint:
    """The point of a discrete source's R(D) where dR/dD = −slope/ln 2 bits.

    Shapes: pmf (n,), distortion (n, m) between source letters and reproductions.
    tolerance: bits, on `gap`; when `max_iterations` come first, `gap` says what was reached.
    Source: Blahut 1972, "Computation of channel capacity and rate-distortion functions", IEEE Trans. IT 18(4);
    Arimoto 1972, ibid. 18(1).

    >>> point = blahut_arimoto([0.5, 0.5], [[0, 1], [1, 0]], slope=np.log(9))  # a fair coin: R = 1 − h(D)
    >>> round(point.rate, 4), round(point.distortion, 4)
    (0.531, 0.1)
    """
    pmf, distortion = np.asarray(pmf, np.float64), np.asarray(distortion, np.float64)
    if pmf.ndim != 1 or distortion.ndim != 2 or len(pmf) != len(distortion) or not distortion.size:
        raise BadInput(f"pmf {pmf.shape} and distortion {distortion.shape} must be (n,) and (n, m)")
    if not (pmf >= 0).all() or abs(pmf.sum() - 1) > 1e-9 or not np.isfinite(distortion).all():
        raise BadInput("pmf must be probabilities that sum to 1, and distortions finite")
    if not 0 < slope < np.inf or not tolerance > 0 or max_iterations < 1:
        raise BadConfig(f"slope {slope!r}, tolerance {tolerance!r} and max_iterations {max_iterations!r}: use > 0")
    pmf, distortion = pmf[pmf > 0], distortion[pmf > 0]
    least = distortion.min(axis=1)  # taken out of the exponent, so no row underflows
    kernel = np.exp(-slope * (distortion - least[:, None]))
    rate, mean, gap = _blahut(pmf, kernel, kernel * distortion, tolerance, max_iterations)
    return RDPoint(float(rate - slope * (mean - float(pmf @ least)) / log(2)), mean, gap)


def _blahut(
    pmf: np.ndarray, kernel: np.ndarray, moment: np.ndarray, tolerance: float, max_iterations: int
) -> tuple[float, float, float]:
    """Iterate the reproduction pmf q for kernel exp(−slope·d) and moment d·kernel.

    Gives (rate + slope·D in bits, D, gap).
    """
    output = np.full(kernel.shape[1], 1 / kernel.shape[1])
    for _ in range(max_iterations):
        q = output
        z = kernel @ q
        c = np.maximum((pmf / z) @ kernel, np.finfo(float).tiny)
        log_c, output = np.log2(c), q * c
        mean_log_c = float(output @ log_c)
        gap = float(log_c.max()) - mean_log_c
        if gap <= tolerance:
            break
    return -float(pmf @ np.log2(z)) - mean_log_c, float((pmf / z) @ (moment @ q)), gap


@lru_cache(maxsize=256)
def _laplace_point(slope: float) -> RDPoint:
    """Blahut–Arimoto for a Laplace source of unit variance.

    The source is cut into cells and each cell put at its centroid, whose variance adds to the distortion exactly. Signs
    are symmetric, so only x >= 0 is kept: a reproduction ±y of one magnitude is one letter, its sign a fair coin's.
    """
    b, span = 1 / sqrt(2), 12.0
    n = int(span / sqrt(12 * 0.002 * min(0.5 / slope, 1.0))) + 1  # cell variance: 0.2 % of the distortion
    edges = np.append(np.arange(n) * span / n, 60.0)  # the last cell holds the tail, e^−85 of it missing
    survival = np.exp(-edges / b)
    first, second = (edges + b) * survival, (edges**2 + 2 * b * edges + 2 * b * b) * survival
    pmf = -np.diff(survival)
    x = -np.diff(first) / pmf
    inside = float((-np.diff(second) - pmf * x**2).sum())
    pmf /= pmf.sum()
    y = np.append(0.0, x[1:])  # the centroid of the first cell would forbid zero
    near, far = (x[:, None] - y) ** 2, (x[:, None] + y) ** 2
    a, z = np.exp(-slope * near), np.exp(-slope * far)
    rate, mean, gap = _blahut(pmf, (a + z) / 2, (a * near + z * far) / 2, 1e-3, 50_000)
    return RDPoint(rate - slope * mean / log(2), mean + inside, gap)


def _check(bits: float, variance: float) -> None:
    if not 0 <= bits < np.inf or not 0 < variance < np.inf:
        raise BadConfig(f"bits {bits!r} must not be negative, variance {variance!r} must be positive, both finite")
