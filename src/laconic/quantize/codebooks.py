"""Scalar codebooks: uniform, Lloyd–Max, normal float, minifloats, power, logarithmic, additive powers of two, k-means.

A scalar codebook is a table of levels. `nearest` compares with thresholds that lie between neighbours; a value halfway
between two levels goes to the one nearer zero (minifloats: to the even mantissa, as IEEE 754 has it). The thresholds are
float32 with that rule already in them, so that every implementation decides by the one comparison `x > threshold`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

from ..core.errors import BadConfig, CorruptStream, NotFitted, unknown
from ..core.stage import learned
from .base import Codebook, Ladder

if TYPE_CHECKING:
    from torch import Tensor

MAX_LEVELS = 1 << 16


def _check_levels(levels: int, least: int, most: int = MAX_LEVELS) -> None:
    if not least <= levels <= most:
        raise BadConfig(f"{levels} levels; {least} to {most} can be had")


@dataclass(frozen=True)
class Levels(Codebook):
    """Base of the scalar codebooks: a subclass names its levels in `points`."""

    def points(self) -> np.ndarray:
        """The level of every index: float32, (alphabet,). NaN or Inf where an index stands for nothing."""
        raise NotImplementedError

    @property
    def alphabet(self) -> int:
        return len(self.points())

    def ladder(self) -> Ladder:
        points = self.points()
        levels, index = np.unique(points, return_index=True)
        levels, index = levels[np.isfinite(levels)], index[np.isfinite(levels)]
        low, high = levels[:-1].astype(np.float64), levels[1:].astype(np.float64)
        return Ladder(levels, _thresholds((low + high) / 2, self._upper_wins(low, high, index)), index)

    def _upper_wins(self, low: np.ndarray, high: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Which of the values halfway between neighbours go up."""
        return np.abs(high) < np.abs(low)

    def nearest(self, x: Tensor) -> Tensor:
        import torch

        from ..kernels.scalar import rank

        ladder = self.ladder()
        found = rank(x.numpy(), ladder.thresholds)
        if not np.array_equal(ladder.index, np.arange(len(ladder.index))):
            found = ladder.index[found]
        return torch.from_numpy(found)

    def lookup(self, index: Tensor) -> Tensor:
        import torch

        points = self.points()
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < len(points):
            raise CorruptStream(
                f"indices {int(index.min())} to {int(index.max())} in a codebook of {len(points)} levels"
            )
        levels = torch.from_numpy(points)[index]
        if not np.isfinite(points).all() and not bool(torch.isfinite(levels).all()):
            raise CorruptStream("an index that stands for no number")
        return levels

    def span(self) -> tuple[float, float]:
        levels = self.ladder().levels
        return float(levels[0]), float(levels[-1])


def _thresholds(middle: np.ndarray, upper_wins: np.ndarray) -> np.ndarray:
    """The greatest float32 that is still rounded down, for each middle (float64)."""
    t = middle.astype(np.float32)
    t = np.where(t.astype(np.float64) > middle, np.nextafter(t, np.float32(-np.inf)), t)
    return np.where(upper_wins & (t.astype(np.float64) == middle), np.nextafter(t, np.float32(-np.inf)), t)


@dataclass(frozen=True)
class Uniform(Levels):
    """Equal steps: level i is i − zero.

    zero: the index, possibly half an index, that stands for 0; None puts it in the middle, so an odd number of levels holds
    0 (`Uniform(3)` is the ternary book) and an even one is mid-rise. 0 is the unsigned book of asymmetric scales; 8 with
    16 levels is two's complement.
    """

    levels: int = 16
    zero: float | None = None

    def __post_init__(self) -> None:
        _check_levels(self.levels, 2)
        if self.zero is not None and not (0 <= self.zero <= self.levels - 1 and float(2 * self.zero).is_integer()):
            raise BadConfig(f"zero {self.zero}; a multiple of 1/2 from 0 to {self.levels - 1} is right")

    @property
    def alphabet(self) -> int:
        return self.levels

    def points(self) -> np.ndarray:
        zero = (self.levels - 1) / 2 if self.zero is None else self.zero
        return (np.arange(self.levels) - zero).astype(np.float32)


# --- Lloyd–Max --------------------------------------------------------------------------------------------------------


class _Law(NamedTuple):
    """A symmetric unimodal density on t = value(u), u ≥ 0: mass(u) du, up to a factor; beyond `end` it counts for nothing."""

    value: Callable[[np.ndarray], np.ndarray]
    slope: Callable[[np.ndarray], np.ndarray]  # dt / du
    mass: Callable[[np.ndarray], np.ndarray]
    width: float  # of the body, in u
    end: float


def _law(name: str, dim: int) -> _Law:
    if name == "gaussian":
        return _Law(lambda u: u, np.ones_like, lambda u: np.exp(-u * u / 2), 1.0, 39.0)
    if name == "laplace":  # variance 1
        return _Law(lambda u: u, np.ones_like, lambda u: np.exp(-math.sqrt(2) * u), 1.0, 500.0)
    # One coordinate of a uniform unit vector: (1 − t²)^((d−3)/2) dt; t = sin u leaves cos^(d−2) u du, smooth for all d ≥ 2.
    return _Law(np.sin, np.cos, lambda u: np.cos(u) ** (dim - 2), 1 / math.sqrt(dim), math.pi / 2)


_NODES = 48  # of the quadrature in one cell
_TAIL = 25.0  # the last cell is cut that many widths of the body behind its beginning


@lru_cache(maxsize=64)
def _lloyd_max(levels: int, law_name: str, dim: int) -> tuple[np.ndarray, float]:
    """Levels (float64, sorted) and mean squared error.

    Newton's method on the thresholds of the positive half: each lies halfway between the centroids of its two cells, and a
    centroid moves with its cell's ends by known derivatives, so the system is tridiagonal. Cells are integrated by
    Gauss–Legendre quadrature.
    """
    law = _law(law_name, dim)
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    odd = levels % 2
    n = (levels - odd) // 2  # positive levels; thresholds 0 < u_1 < … (odd: the first bounds the cell of level 0)
    n_free = n - 1 + odd

    def cells(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mass and centroid of the cells that end in u and in ∞."""
        low = np.concatenate([[0.0], u])
        high = np.append(u, min(law.end, low[-1] + _TAIL * law.width))
        at = (high + low)[:, None] / 2 + (high - low)[:, None] / 2 * nodes
        mass = law.mass(at) * weights * (high - low)[:, None] / 2
        total = mass.sum(axis=1)
        centroid = (mass * law.value(at)).sum(axis=1) / total
        if odd:
            centroid[0] = 0.0
        return total, centroid

    # First guess: cells of equal ∫ f^(1/3) dt, the companding law (Panter & Dite 1951).
    fine = np.linspace(0, min(law.end, 15 * law.width), 8193)
    part = np.cbrt(law.mass(fine) * law.slope(fine) ** 2)
    part = np.append(0, np.cumsum((part[1:] + part[:-1]) / 2))
    u = np.interp(part[-1] * (np.arange(1, n_free + 1) - odd / 2) / (n + odd / 2), part, fine)
    for _ in range(40 if n_free else 0):
        total, centroid = cells(u)
        t, f = law.value(u), law.mass(u)
        upper = f * (t - centroid[:-1]) / total[:-1]  # what a threshold moves the centroid below it, and above it
        lower = f * (centroid[1:] - t) / total[1:]
        if odd:
            upper[0] = 0.0
        jacobian = np.diag(law.slope(u) - (upper + lower) / 2)
        jacobian -= np.diag(lower[:-1], -1) / 2 + np.diag(upper[1:], 1) / 2
        step = np.linalg.solve(jacobian, t - (centroid[:-1] + centroid[1:]) / 2)
        gap = np.diff(np.append(0.0, u))
        u = u - step / max(1.0, 2 * np.max(np.abs(np.diff(step, prepend=0.0)) / gap))  # keeps the order
        if np.max(np.abs(step)) < 1e-12 * law.width:
            break
    total, centroid = cells(u)
    positive = centroid[odd:]
    everything = np.concatenate([-positive[::-1], [0.0] * odd, positive])
    variance = 1.0 / dim if law_name == "sphere" else 1.0
    return everything, variance - float((total * centroid**2).sum() / total.sum())


@dataclass(frozen=True)
class LloydMax(Levels):
    """The levels of least mean squared error for a known law.

    law: "gaussian" or "laplace", variance 1; "sphere", one coordinate of a random unit vector of `dim` values (variance
    1 / dim), the law behind a random rotation.
    sphere_dim: that `dim`; 0: `fit` takes the length of the data's last axis.

    N(0,1), 2/4/8/16 levels: error .3634 / .1175 / .03454 / .009501; sphere, dim 128, times 128: .3609 / .1160 / .0340 / .00931.

    Source: Max 1960; Lloyd 1982. Differs: solved by Newton's method in float64; levels are rounded to float32.
    """

    levels: int = 16
    law: str = "gaussian"
    sphere_dim: int = 0

    def __post_init__(self) -> None:
        _check_levels(self.levels, 2, 1024)
        if self.law not in ("gaussian", "laplace", "sphere"):
            raise unknown("law", self.law, ["gaussian", "laplace", "sphere"])
        if self.law == "sphere" and self.sphere_dim and not 2 <= self.sphere_dim <= 1 << 20:
            raise BadConfig(f"sphere of dimension {self.sphere_dim}; 2 to {1 << 20} are possible, or 0 until fit")
        if self.law != "sphere" and self.sphere_dim:
            raise BadConfig(f"sphere_dim is {self.sphere_dim} and the law is {self.law}; leave it 0")

    @property
    def alphabet(self) -> int:
        return self.levels

    def fit(self, x: Tensor, weights: Tensor | None = None) -> Self:
        return self.replace(sphere_dim=x.shape[-1]) if self.law == "sphere" and not self.sphere_dim else self

    def points(self) -> np.ndarray:
        return self._solved()[0].astype(np.float32)

    def distortion(self) -> float:
        """Mean squared error a value, for the law."""
        return self._solved()[1]

    def _solved(self) -> tuple[np.ndarray, float]:
        if self.law == "sphere" and not self.sphere_dim:
            raise NotFitted("the dimension of the sphere is not known yet; call .fit(x) or name sphere_dim")
        return _lloyd_max(self.levels, self.law, self.sphere_dim)


# --- tables -----------------------------------------------------------------------------------------------------------

_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


@dataclass(frozen=True)
class NormalFloat(Levels):
    """NF4: quantiles of a normal law fitted to [−1, 1], 0 among them.

    Source: Dettmers et al. 2023 (2305.14314), eq. 4 and Appendix E (the table).
    """

    @property
    def alphabet(self) -> int:
        return len(_NF4)

    def points(self) -> np.ndarray:
        return np.array(_NF4, dtype=np.float32)


class _Format(NamedTuple):
    exponent: int
    mantissa: int
    special: int  # of the highest exponent's codes, how many from the top stand for no number


FORMATS = {
    "e2m1": _Format(2, 1, 0),
    "e3m2": _Format(3, 2, 0),
    "e4m3": _Format(4, 3, 1),
    "e5m2": _Format(5, 2, 4),
    "float16": _Format(5, 10, 1 << 10),
    "bfloat16": _Format(8, 7, 1 << 7),
}


@lru_cache(maxsize=8)
def _minifloat(name: str) -> np.ndarray:
    e_bits, m_bits, special = FORMATS[name]
    code = np.arange(1 << (e_bits + m_bits))
    exponent, mantissa = code >> m_bits, code & ((1 << m_bits) - 1)
    bias = (1 << (e_bits - 1)) - 1
    value = np.ldexp(
        (mantissa + ((exponent > 0) << m_bits)).astype(np.float64), np.maximum(exponent, 1) - bias - m_bits
    )
    value[len(code) - special :] = np.nan
    points = np.concatenate([value, -value]).astype(np.float32)
    points.flags.writeable = False
    return points


@dataclass(frozen=True)
class Minifloat(Levels):
    """A floating-point format as a codebook; the index is the bit pattern: sign, exponent, mantissa.

    format: "e2m1" (FP4, to ±6), "e3m2" (FP6, to ±28), "e4m3" (FP8, to ±448, no Inf), "e5m2" (to ±57344), "float16",
    "bfloat16". Values beyond the range go to its end; ties to the even mantissa.

    Source: OCP Microscaling Formats v1.0 (2023), section 5.3; Rouhani et al. 2023 (2310.10537).
    """

    format: str = "e2m1"

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise unknown("format", self.format, list(FORMATS))

    @property
    def alphabet(self) -> int:
        return 2 << (FORMATS[self.format].exponent + FORMATS[self.format].mantissa)

    def points(self) -> np.ndarray:
        return _minifloat(self.format).copy()

    def _upper_wins(self, low: np.ndarray, high: np.ndarray, index: np.ndarray) -> np.ndarray:
        return index[1:] % 2 == 0

    def nearest(self, x: Tensor) -> Tensor:
        import torch

        if self.format not in ("float16", "bfloat16"):
            return super().nearest(x)
        low, high = self.span()
        code = (x.clamp(low, high) + 0.0).to(getattr(torch, self.format)).contiguous().view(torch.int16)  # + 0: no −0
        return code.to(torch.int64) & 0xFFFF


def _mirrored(positive: np.ndarray) -> np.ndarray:
    """Sorted levels ±positive (float64), 0 once."""
    return np.unique(np.concatenate([-positive, positive])).astype(np.float32) + np.float32(0)  # no −0


@dataclass(frozen=True)
class Power(Levels):
    """Uniform levels on [−1, 1] seen through y = sign(u) |u|^(1/a): the maps that turn products into products.

    exponent: a; None lets `fit` choose the a of least error from .25 to 1.

    Source: Yvinec et al. 2023, PowerQuant (2301.09858). Differs: values go to the nearest level, not to the nearest
    in the companded domain.
    """

    levels: int = 15
    exponent: float | None = None

    def __post_init__(self) -> None:
        _check_levels(self.levels, 2)
        if self.exponent is not None and not 0.1 <= self.exponent <= 4:
            raise BadConfig(f"exponent {self.exponent}; .1 to 4 is sensible, 1 is uniform")

    @property
    def alphabet(self) -> int:
        return self.levels

    def points(self) -> np.ndarray:
        if self.exponent is None:
            raise NotFitted("the exponent of Power is not chosen; fit, or give one")
        u = np.linspace(-1, 1, self.levels)
        u = (u - u[::-1]) / 2  # exactly symmetric
        return (np.sign(u) * np.abs(u) ** (1 / self.exponent)).astype(np.float32)

    def span(self) -> tuple[float, float]:
        return -1.0, 1.0

    def fit(self, x: Tensor, weights: Tensor | None = None) -> Self:
        if self.exponent is not None or not x.numel():
            return self if self.exponent is not None else self.replace(exponent=1.0)

        def error(a: float) -> float:
            book = self.replace(exponent=a)
            e = (x - book.lookup(book.nearest(x))).double().square()
            return float((e if weights is None else e * weights).sum())

        best = min((k / 20 for k in range(5, 21)), key=error)
        return self.replace(exponent=min((best + k / 100 for k in range(-4, 5)), key=error))


@dataclass(frozen=True)
class Log(Levels):
    """Powers of two down from 1: level k is 2^(−k / per_octave).

    per_octave: 1 is log2, 2 is log√2. signed: levels ±; else for values in [0, 1], as attention weights are.

    Source: Miyashita et al. 2016 (1603.01025); log√2: Li et al. 2023, RepQ-ViT (2212.08254). Differs: values go to
    the nearest level, not to the nearest logarithm.
    """

    levels: int = 16
    per_octave: int = 1
    signed: bool = False

    def __post_init__(self) -> None:
        _check_levels(self.levels, 2, 256)
        if not 1 <= self.per_octave <= 16:
            raise BadConfig(f"{self.per_octave} levels an octave; 1 (log2) to 16 are possible")
        if self.signed and self.levels % 2:
            raise BadConfig(f"{self.levels} levels with signs; an even number is right")
        if self.levels // (2 if self.signed else 1) > 120 * self.per_octave:
            raise BadConfig(f"{self.levels} levels, {self.per_octave} an octave: the least is below float32; use fewer")

    @property
    def alphabet(self) -> int:
        return self.levels

    def points(self) -> np.ndarray:
        n = self.levels // 2 if self.signed else self.levels
        positive = 2.0 ** (-np.arange(n) / self.per_octave)
        return _mirrored(positive) if self.signed else positive[::-1].astype(np.float32)


@dataclass(frozen=True)
class AdditivePowers(Levels):
    """APoT: sums of `terms` powers of two, each from a set of 2^bits_per_term that interleave; greatest level 1.

    Term i of n adds one of 0, 2^−i, 2^−(i+n), …, 2^−(i+(2^k−2)n). signed: levels ± with 0 once, 2 · 2^(kn) − 1 of them.

    Source: Li et al. 2020, APoT (1909.13144), section 2.
    """

    terms: int = 2
    bits_per_term: int = 1
    signed: bool = True

    def __post_init__(self) -> None:
        if self.terms < 1 or self.bits_per_term < 1 or self.terms * self.bits_per_term > 12:
            raise BadConfig(f"{self.terms} terms of {self.bits_per_term} bits; at least 1 each and 12 bits together")
        if ((1 << self.bits_per_term) - 1) * self.terms > 100:
            raise BadConfig(
                f"{self.terms} terms of {self.bits_per_term} bits need powers below float32; use fewer bits"
            )

    def points(self) -> np.ndarray:
        sums = np.zeros(1)
        for i in range(self.terms):
            powers = 2.0 ** -(i + self.terms * np.arange((1 << self.bits_per_term) - 1))
            sums = np.add.outer(sums, np.append(0.0, powers)).reshape(-1)
        sums = np.unique(sums / sums.max())
        return _mirrored(sums) if self.signed else sums.astype(np.float32)


# --- k-means ----------------------------------------------------------------------------------------------------------

_BINS = 1024


@dataclass(frozen=True)
class KMeans(Levels):
    """Levels learned from the (normalised, weighted) values: 1-D k-means.

    Fit: the exact optimum over some 1024 bins by dynamic programming, then Lloyd's iterations on all values.

    Source: Wang & Song 2011, Ckmeans.1d.dp (the programme); KVQuant's nuqX (2401.18079) (the weights).
    """

    levels: int = 16
    table: np.ndarray | None = learned("float16")

    def __post_init__(self) -> None:
        _check_levels(self.levels, 2, 256)

    @property
    def alphabet(self) -> int:
        return self.levels

    def points(self) -> np.ndarray:
        if self.table is None:
            raise NotFitted("the levels of KMeans are not learned yet; call fit")
        if self.table.shape != (self.levels,) or not np.isfinite(self.table).all():
            raise CorruptStream(f"a table of shape {self.table.shape}; {self.levels} finite levels are right")
        return self.table.astype(np.float32)

    def span(self) -> tuple[float, float]:
        """±1 until fitted, so that scales normalise the data to that."""
        return (-1.0, 1.0) if self.table is None else super().span()

    def fit(self, x: Tensor, weights: Tensor | None = None) -> Self:
        v = x.reshape(-1).double().numpy()
        w = np.ones_like(v) if weights is None else weights.expand(x.shape).reshape(-1).double().numpy()
        v, w = v[w > 0], w[w > 0]
        if not v.size:
            return self.replace(table=np.linspace(-1, 1, self.levels))
        order = np.argsort(v, kind="stable")
        return self.replace(table=_kmeans(v[order], w[order], self.levels))


def _bins(v: np.ndarray) -> np.ndarray:
    """Where the bins of sorted values begin, and where the last one ends: half of equal count, half of equal ∫ f^(1/3)."""
    half = _BINS // 2
    count = np.unique(np.linspace(0, len(v), min(len(v), half) + 1).astype(np.int64))
    ends = np.append(v[count[:-1]], v[-1])
    part = np.append(0, np.cumsum(np.diff(ends) ** (2 / 3)))  # f ≈ 1 / width
    values = np.interp(np.linspace(0, part[-1], half + 1), part, ends)
    return np.unique(np.concatenate([count, np.searchsorted(v, values)]))


def _kmeans(v: np.ndarray, w: np.ndarray, k: int) -> np.ndarray:
    """k levels, sorted, for sorted values `v` of weights `w` > 0, float64."""
    mass, first = np.append(0, np.cumsum(w)), np.append(0, np.cumsum(w * v))
    edges = _bins(v)
    m, f = mass[edges], first[edges]
    # Cost of one cell from edge i to edge j but for the constant Σ w v²: −(Σ w v)² / Σ w.
    width = m[None] - m[:, None]
    gain = np.full(width.shape, -np.inf)
    np.divide(np.square(f[None] - f[:, None]), width, out=gain, where=width > 0)
    best, cuts = gain[0], []
    for _ in range(1, min(k, len(edges) - 1)):
        total = best[:, None] + gain
        cuts.append(np.argmax(total, axis=0))
        best = np.take_along_axis(total, cuts[-1][None], axis=0)[0]
    at = [len(edges) - 1]
    for cut in reversed(cuts):
        at.append(int(cut[at[-1]]))
    bounds = np.append(0, edges[at[::-1]])
    for _ in range(1000):
        bounds = bounds[np.append(True, np.diff(mass[bounds]) > 0)]
        table = np.diff(first[bounds]) / np.diff(mass[bounds])
        moved = np.concatenate([[0], np.searchsorted(v, (table[1:] + table[:-1]) / 2, side="right"), [len(v)]])
        if np.array_equal(moved, bounds):
            break
        bounds = moved
    return np.concatenate([table, np.full(k - len(table), table[-1])])  # fewer values than levels: the last one again
