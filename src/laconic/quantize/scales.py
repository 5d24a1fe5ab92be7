"""Scales: which values share one (groups), how big they are (statistic), and how that is stored (store).

    x ─ groups.gather ─▶ rows of values ─ statistic ─▶ step, offset ─ store.put ─▶ side
    side ─ store.get ─▶ step, offset ─ groups.spread ─▶ Grid

Statistics that search (`Search`, `LeastSquares`) judge a candidate by the error behind the store, as the decoder will see
it. A group of zeros, or one too small for its store, gets step 0 and is reconstructed as its offset.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from ..core.errors import BadConfig, BadInput, CorruptStream, unknown
from ..core.stage import Leaf, Part, Side
from .base import Codebook, Grid, Scale
from .codebooks import Minifloat, Uniform

if TYPE_CHECKING:
    from torch import Tensor

MAX_SIZE = 1 << 40


# --- groups: which values share a scale -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Groups(Part):
    """Which values share a scale. The scales form a lattice, an array with as many axes as x."""

    def lattice(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the lattice for x of `shape`. Raises BadInput where `shape` lacks the axis."""
        raise NotImplementedError

    def gather(self, x: Tensor, fill: float | None = None) -> Tensor:
        """x -> (n_groups, m). Short groups are filled up with `fill`, or with their last value."""
        raise NotImplementedError

    def scatter(self, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        """(n_groups,) in the order of `gather` -> lattice."""
        return rows.reshape(self.lattice(shape))

    def collect(self, lattice: Tensor) -> Tensor:
        """The inverse of `scatter`."""
        return lattice.reshape(-1)

    def spread(self, scales: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Lattice -> what broadcasts against x."""
        return scales

    def run(self, shape: tuple[int, ...]) -> int:
        """Length of the runs along the last axis that lie in one group; the last may be short."""
        return shape[-1]


@dataclass(frozen=True)
class Whole(Groups):
    """One scale for the array."""

    def lattice(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (1,) * len(shape)

    def gather(self, x: Tensor, fill: float | None = None) -> Tensor:
        return x.reshape(1, -1)


@dataclass(frozen=True)
class Each(Groups):
    """One scale for every index of an axis (an output channel of a convolution, say), whatever the others are."""

    axis: int = 0

    def lattice(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        axis = along(self.axis, shape)
        return tuple(n if i == axis else 1 for i, n in enumerate(shape))

    def gather(self, x: Tensor, fill: float | None = None) -> Tensor:
        axis = along(self.axis, tuple(x.shape))
        return x.movedim(axis, 0).reshape(x.shape[axis], -1)

    def run(self, shape: tuple[int, ...]) -> int:
        return 1 if along(self.axis, shape) == len(shape) - 1 else shape[-1]


@dataclass(frozen=True)
class Along(Groups):
    """Runs of `size` values along an axis; 0: the whole axis (one scale per row). The last run of an axis may be shorter."""

    size: int = 0
    axis: int = -1

    def __post_init__(self) -> None:
        if not 0 <= self.size <= MAX_SIZE:
            raise BadConfig(f"group size {self.size}; 1 or more, or 0 for the whole axis")

    def lattice(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        axis = along(self.axis, shape)
        n_groups = -(-shape[axis] // self.size) if self.size else 1
        return (*shape[:axis], n_groups, *shape[axis + 1 :])

    def gather(self, x: Tensor, fill: float | None = None) -> Tensor:
        import torch

        rows = x.movedim(along(self.axis, tuple(x.shape)), -1)
        size = self.size or rows.shape[-1]
        if missing := -rows.shape[-1] % size:
            last = rows[..., -1:] if fill is None else torch.full_like(rows[..., -1:], fill)
            rows = torch.cat([rows, last.expand(*rows.shape[:-1], missing)], dim=-1)
        return rows.reshape(-1, size)

    def scatter(self, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        axis, lattice = along(self.axis, shape), self.lattice(shape)
        moved = (*lattice[:axis], *lattice[axis + 1 :], lattice[axis])
        return rows.reshape(moved).movedim(-1, axis)

    def collect(self, lattice: Tensor) -> Tensor:
        return lattice.movedim(self.axis, -1).reshape(-1)

    def spread(self, scales: Tensor, shape: tuple[int, ...]) -> Tensor:
        axis = along(self.axis, shape)
        if scales.shape[axis] == 1 or self.size == 1:
            return scales
        return scales.repeat_interleave(self.size, axis).narrow(axis, 0, shape[axis])

    def run(self, shape: tuple[int, ...]) -> int:
        return (self.size or shape[-1]) if along(self.axis, shape) == len(shape) - 1 else shape[-1]


def along(axis: int, shape: tuple[int, ...]) -> int:
    """The axis as a number from 0. Raises BadInput where `shape` lacks it."""
    if not -len(shape) <= axis < len(shape):
        raise BadInput(f"axis {axis} of an array of shape {shape}")
    return axis % len(shape)


# --- statistics: how big they are -------------------------------------------------------------------------------------


class Sample(NamedTuple):
    """What a statistic looks at.

    x: (n_groups, m) float32, each group divided by a power of two so that its greatest magnitude is in [1/2, 1).
    weights: (n_groups, m) float32 or None; a value of weight 0 does not count, not even as an extreme.
    seen: (step, offset) -> the same behind the store.
    """

    x: Tensor
    weights: Tensor | None
    codebook: Codebook
    seen: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]

    def grid(self, step: Tensor, offset: Tensor | None) -> Grid:
        """The grid of one (step, offset) a group."""
        return Grid(step[:, None], None if offset is None else offset[:, None])

    def levels(self, step: Tensor, offset: Tensor | None) -> Tensor:
        """The nearest level of every value, normalised."""
        return self.codebook.lookup(self.codebook.nearest(self.grid(step, offset).normalize(self.x)))

    def error(self, step: Tensor, offset: Tensor | None, power: float = 2.0) -> Tensor:
        """Σ weight · |x̂ − x|^power of every group, float64."""
        import torch

        from ..kernels.scalar import group_errors

        ladder = self.codebook.ladder()
        if ladder is not None:
            error = group_errors(*self._arrays(step, offset), ladder.thresholds, ladder.levels, power)
            return torch.from_numpy(error)
        e = (self.grid(step, offset).denormalize(self.levels(step, offset)) - self.x).abs().double() ** power
        return (e if self.weights is None else e * self.weights).sum(dim=1)

    def fit(self, step: Tensor, offset: Tensor | None, rounds: int) -> tuple[Tensor, Tensor | None, Tensor]:
        """(step, offset) after `rounds` of alternating least squares, and an upper bound of their error, float64."""
        import torch

        from ..kernels.scalar import group_fit

        ladder = self.codebook.ladder()
        if ladder is not None:
            new, moved, error = group_fit(*self._arrays(step, offset), ladder.thresholds, ladder.levels, rounds)
            return torch.from_numpy(new), None if moved is None else torch.from_numpy(moved), torch.from_numpy(error)
        for _ in range(rounds):
            step, offset = self._least_squares(self.levels(step, offset), step, offset)
        return step, offset, self.error(step, offset)

    def _arrays(self, step: Tensor, offset: Tensor | None) -> tuple[np.ndarray | None, ...]:
        return tuple(None if t is None else t.numpy() for t in (self.x, self.weights, step, offset))

    def _least_squares(self, levels: Tensor, step: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor | None]:
        import torch

        x, q = self.x.double(), levels.double()
        w = torch.ones_like(x) if self.weights is None else self.weights.double()
        n, wx, wq, wxq, wqq = (t.sum(dim=1) for t in (w, w * x, w * q, w * x * q, w * q * q))
        if offset is None:
            return torch.where(wqq > 0, wxq / wqq, step.double()).float(), None
        bottom = wqq * n - wq * wq
        good = bottom > 1e-10 * wqq * n
        found = torch.where(good, (wxq * n - wx * wq) / bottom, step.double())
        return found.float(), torch.where(good, (wx - found * wq) / n, offset.double()).float()

    def extremes(self) -> tuple[Tensor, Tensor]:
        """Least and greatest value of every group."""
        if self.weights is None:
            return self.x.amin(dim=1), self.x.amax(dim=1)
        out = self.weights <= 0
        inf = float("inf")
        return self.x.masked_fill(out, inf).amin(dim=1), self.x.masked_fill(out, -inf).amax(dim=1)

    def mean(self, values: Tensor) -> Tensor:
        """Weighted mean of every group."""
        if self.weights is None:
            return values.mean(dim=1)
        return (values * self.weights).sum(dim=1) / self.weights.sum(dim=1)


@dataclass(frozen=True)
class Statistic(Part):
    """Finds the step (and offset) of every group: `(sample) -> (step, offset)`, float32 (n_groups,) each."""

    affine: ClassVar[bool] = False  # whether there are offsets; a property where it depends on the fields

    def __call__(self, sample: Sample) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError


@dataclass(frozen=True)
class AbsMax(Statistic):
    """The least step without clipping: the extremes of the data meet those of the codebook."""

    def __call__(self, sample: Sample) -> tuple[Tensor, Tensor | None]:
        low, high = sample.codebook.span()
        least, greatest = sample.extremes()
        step = greatest * 0
        if high > 0:
            step = step.maximum(greatest / high)
        if low < 0:
            step = step.maximum(least / low)
        return step, None


@dataclass(frozen=True)
class MinMax(Statistic):
    """Step and offset that lay the range of the data on that of the codebook. with_zero: the range is widened to hold 0."""

    with_zero: bool = False

    affine = True

    def __call__(self, sample: Sample) -> tuple[Tensor, Tensor | None]:
        low, high = sample.codebook.span()
        least, greatest = sample.extremes()
        if self.with_zero:
            least, greatest = least.clamp(max=0), greatest.clamp(min=0)
        step = (greatest - least) / (high - low)
        return step, least - low * step


@dataclass(frozen=True)
class Rms(Statistic):
    """Root mean square, for codebooks made for variance 1."""

    def __call__(self, sample: Sample) -> tuple[Tensor, Tensor | None]:
        return sample.mean(sample.x.square()).sqrt(), None


@dataclass(frozen=True)
class AbsMean(Statistic):
    """Mean magnitude; with `Uniform(3)` the ternary weights of BitNet b1.58 (Ma et al. 2024, 2402.17764, eq. 1–3)."""

    def __call__(self, sample: Sample) -> tuple[Tensor, Tensor | None]:
        return sample.mean(sample.x.abs()), None


@dataclass(frozen=True)
class Percentile(Statistic):
    """`of` on the data clipped to its (1 − fraction) and fraction quantiles."""

    fraction: float = 0.999
    of: Statistic = AbsMax()

    affine = property(lambda self: self.of.affine)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if not 0.5 < self.fraction <= 1:
            raise BadConfig(f"fraction {self.fraction}; above .5, up to 1 (no clipping) is right")

    def __call__(self, sample: Sample) -> tuple[Tensor, Tensor | None]:
        import torch

        x = sample.x.numpy()
        ends = (1 - self.fraction, self.fraction)
        if sample.weights is None:
            low, high = np.quantile(x, ends, axis=1, keepdims=True)
        else:
            low, high = np.nanquantile(np.where(sample.weights.numpy() > 0, x, np.nan), ends, axis=1, keepdims=True)
        clipped = np.clip(x, low.astype(np.float32), high.astype(np.float32))
        return self.of(sample._replace(x=torch.from_numpy(clipped)))


@dataclass(frozen=True)
class Search(Statistic):
    """Of `n` factors from `low` to `high` on the step of `of`, the one of least Σ weight · |error|^power.

    An offset moves so that the middle of the range stays.

    Source: the clipping search of GPTQ (Frantar et al. 2022, 2210.17323) and of MR-GPTQ (Egiazarian et al. 2025,
    2509.23202), which has power 2.4. Differs: errors are taken behind the store.
    """

    of: Statistic = AbsMax()
    low: float = 0.5
    high: float = 1.0
    n: int = 40
    power: float = 2.0

    affine = property(lambda self: self.of.affine)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if not (0 < self.low <= self.high <= 16 and 1 <= self.n <= 10_000 and 0.1 <= self.power <= 16):
            raise BadConfig(
                f"{self.n} factors from {self.low} to {self.high}, power {self.power}; "
                "0 < low ≤ high ≤ 16, 1 to 10000 factors and a power from .1 to 16 are right"
            )

    def __call__(self, sample: Sample) -> tuple[Tensor, Tensor | None]:
        step, offset = self.of(sample)
        best = _Best()
        for factor in (1.0, *np.linspace(self.low, self.high, self.n).tolist()):
            grid = _shrunk(sample, step, offset, factor)
            best.offer(*grid, sample.error(*sample.seen(*grid), self.power))
        return best.step, best.offset


@dataclass(frozen=True)
class LeastSquares(Statistic):
    """Alternating least squares: levels for the step, step (and offset) for the levels.

    Started from the step of `of`, or from that times each of `starts` factors from 1.15 down to .65; the best end, or the
    step of `of` itself where that is better behind the store, is kept.
    """

    of: Statistic = AbsMax()
    rounds: int = 3
    starts: int = 1

    affine = property(lambda self: self.of.affine)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if not (1 <= self.rounds <= 1000 and 1 <= self.starts <= 1000):
            raise BadConfig(f"{self.rounds} rounds from {self.starts} starts; 1 to 1000 of each are right")

    def __call__(self, sample: Sample) -> tuple[Tensor, Tensor | None]:
        step, offset = self.of(sample)
        ends = _Best()
        for factor in np.linspace(1.15, 0.65, self.starts).tolist() if self.starts > 1 else (1.0,):
            ends.offer(*sample.fit(*_shrunk(sample, step, offset, factor), self.rounds))
        best = _Best()
        for grid in ((step, offset), (ends.step, ends.offset)):
            best.offer(*grid, sample.error(*sample.seen(*grid)))
        return best.step, best.offset


def _shrunk(sample: Sample, step: Tensor, offset: Tensor | None, factor: float) -> tuple[Tensor, Tensor | None]:
    """The step times `factor`; an offset moves so that the middle of the range stays."""
    if offset is None:
        return step * factor, None
    low, high = sample.codebook.span()
    return step * factor, offset + step * ((1 - factor) * (low + high) / 2)


class _Best:
    """Keeps, group by group, the offered (step, offset) of least error."""

    step: Tensor
    offset: Tensor | None
    error: Tensor | None = None

    def offer(self, step: Tensor, offset: Tensor | None, error: Tensor) -> None:
        import torch

        if self.error is None:
            self.step, self.offset, self.error = step, offset, error
            return
        better = error < self.error
        self.error = torch.where(better, error, self.error)
        self.step = torch.where(better, step, self.step)
        if self.offset is not None and offset is not None:
            self.offset = torch.where(better, offset, self.offset)


# --- stores: how steps and offsets are sent ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Store(Part):
    """How the lattices of steps and offsets become side information."""

    offsets: ClassVar[bool] = False  # whether it can store them

    def leaves(self, affine: bool) -> Mapping[str, Leaf]:
        """What it sends."""
        raise NotImplementedError

    def put(self, step: Tensor, offset: Tensor | None) -> Side:
        """Lattices, float32 -> side."""
        raise NotImplementedError

    def get(self, side: Side, lattice: tuple[int, ...], affine: bool) -> tuple[Tensor, Tensor | None]:
        """Side -> lattices, float32. Raises CorruptStream for what `put` cannot have made."""
        raise NotImplementedError


def expect(side: Side, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array of that name. Raises CorruptStream where its shape is another."""
    array = side[name]
    if array.shape != shape:
        raise CorruptStream(f"{name} has shape {array.shape}; {shape} is right")
    return array


_FLOATS = {"float16": "float16", "bfloat16": "uint16", "float32": "float32"}


@dataclass(frozen=True)
class Float(Store):
    """As floats. Half floats have one exponent for the whole lattice beside them, so that no magnitude is out of range.

    dtype: "float16", "bfloat16" (sent as its bits) or "float32".
    """

    dtype: str = "float16"

    offsets = True

    def __post_init__(self) -> None:
        if self.dtype not in _FLOATS:
            raise unknown("dtype of a scale", self.dtype, list(_FLOATS))

    def leaves(self, affine: bool) -> Mapping[str, Leaf]:
        out = {"scale": Leaf(_FLOATS[self.dtype], "scales")}
        if affine:
            out["zero"] = Leaf(_FLOATS[self.dtype], "zeros")
        if self.dtype == "float16":
            out["exponent"] = Leaf("int16", "scales")
        return out

    def put(self, step: Tensor, offset: Tensor | None) -> Side:
        kept = {"scale": step} if offset is None else {"scale": step, "zero": offset}
        arrays, exponents = zip(*(self._put(t) for t in kept.values()), strict=True)
        side: Side = dict(zip(kept, arrays, strict=True))
        return side | ({"exponent": np.array(exponents, np.int16)} if self.dtype == "float16" else {})

    def get(self, side: Side, lattice: tuple[int, ...], affine: bool) -> tuple[Tensor, Tensor | None]:
        names = ("scale", "zero") if affine else ("scale",)
        exponents = expect(side, "exponent", (len(names),)) if self.dtype == "float16" else np.zeros(2, np.int16)
        step, *offset = (self._get(expect(side, n, lattice), int(e)) for n, e in zip(names, exponents, strict=False))
        return step, offset[0] if offset else None

    def _put(self, t: Tensor) -> tuple[np.ndarray, int]:
        import torch

        if self.dtype == "float16":
            return to_half(t.numpy())
        if self.dtype == "bfloat16":
            most = torch.finfo(torch.bfloat16).max
            return t.clamp(-most, most).bfloat16().contiguous().view(torch.int16).numpy().view(np.uint16), 0
        return t.contiguous().numpy(), 0

    def _get(self, array: np.ndarray, exponent: int) -> Tensor:
        import torch

        if self.dtype == "float16":
            return torch.from_numpy(from_half(array, exponent))
        if self.dtype == "bfloat16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        if not np.isfinite(array).all():
            raise CorruptStream("a scale that is not finite")
        return torch.from_numpy(array)


def to_half(values: np.ndarray, keep: bool = False) -> tuple[np.ndarray, int]:
    """values ≈ half · 2^exponent, the greatest magnitude near the top of the range.

    keep: the exponent stays 0 where half precision loses nothing by it.
    """
    top = float(np.abs(values).max(initial=0))
    exponent = int(np.frexp(top)[1]) - 15 if top else 0
    if keep and 2.0**-8 <= top <= 65504:
        exponent = 0
    return np.clip(np.ldexp(values.astype(np.float64), -exponent), -65504, 65504).astype(np.float16), exponent


def from_half(half: np.ndarray, exponent: int) -> np.ndarray:
    """The float32 values of `to_half`. Raises CorruptStream for what is not finite."""
    if not -200 <= exponent <= 200 or not np.isfinite(half).all():
        raise CorruptStream(f"a scale that is not finite, or exponent {exponent}")
    with np.errstate(over="ignore"):
        return np.ldexp(half.astype(np.float64), exponent).astype(np.float32)


@dataclass(frozen=True)
class PowerOfTwo(Store):
    """E8M0: the step rounded up to a power of two, 8 bits.

    Source: OCP Microscaling Formats v1.0 (2023), section 5.4.1. Differs: rounding up, so that nothing clips; where clipping
    is better, `Search` finds the smaller one.
    """

    def leaves(self, affine: bool) -> Mapping[str, Leaf]:
        return {"scale": Leaf("uint8", "scales")}

    def put(self, step: Tensor, offset: Tensor | None) -> Side:
        mantissa, exponent = np.frexp(step.double().numpy())
        power = np.where(mantissa == 0.5, exponent - 1, exponent)
        return {"scale": (np.clip(np.where(mantissa > 0, power, -127), -127, 127) + 127).astype(np.uint8)}

    def get(self, side: Side, lattice: tuple[int, ...], affine: bool) -> tuple[Tensor, Tensor | None]:
        import torch

        code = expect(side, "scale", lattice).astype(np.int32)
        if (code == 255).any():
            raise CorruptStream("a scale that is NaN")
        return torch.from_numpy(np.ldexp(np.float32(1), code - 127).astype(np.float32)), None


@dataclass(frozen=True)
class TwoLevel(Store):
    """E4M3 steps times one float32, as NVFP4 has them.

    Source: NVIDIA, "Introducing NVFP4" (2025). Differs: the float32 is a power of two, so that it does not decide how a step
    is rounded.
    """

    def leaves(self, affine: bool) -> Mapping[str, Leaf]:
        return {"scale": Leaf("uint8", "scales"), "global": Leaf("float32", "scales")}

    def put(self, step: Tensor, offset: Tensor | None) -> Side:
        import torch

        mantissa, exponent = np.frexp(float(step.max()) / 448 if step.numel() else 0.0)
        common = float(np.ldexp(1.0, int(exponent) - int(mantissa == 0.5)))
        code = Minifloat("e4m3").nearest((step.double() / max(common, 2.0**-149)).to(torch.float32))
        return {"scale": code.numpy().astype(np.uint8), "global": np.array([common], np.float32)}

    def get(self, side: Side, lattice: tuple[int, ...], affine: bool) -> tuple[Tensor, Tensor | None]:
        import torch

        code, common = expect(side, "scale", lattice), expect(side, "global", (1,))
        if (code > 0x7E).any() or not np.isfinite(common[0]) or common[0] < 0:
            raise CorruptStream(f"steps that are negative or NaN, or the common factor {common[0]}")
        return Minifloat("e4m3").lookup(torch.from_numpy(code.astype(np.int64))) * torch.from_numpy(common), None


@dataclass(frozen=True)
class Bilevel(Store):
    """Steps and zero points quantized themselves: `bits` bits each, affine in super-groups of `size` neighbours.

    The zero point is −offset / step, taken with the step as stored. Neighbours are those in the flattened lattice.

    Source: Dettmers et al. 2023, SpQR (2306.03078), bilevel quantization.
    """

    bits: int = 3
    size: int = 16
    store: Store = Float()

    offsets = True

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8 or not 1 <= self.size <= MAX_SIZE:
            raise BadConfig(
                f"{self.bits} bits in super-groups of {self.size}; 1 to 8 bits, and groups of 1 or more, are right"
            )
        if not self.store.offsets:
            raise BadConfig(f"{type(self.store).__name__} stores no offsets; use Float")

    def leaves(self, affine: bool) -> Mapping[str, Leaf]:
        out = {}
        for name in ("scale", "zero") if affine else ("scale",):
            out[name] = Leaf("uint8", name + "s")
            out.update({f"{name}_{k}": Leaf(leaf.dtype, name + "s") for k, leaf in self.store.leaves(True).items()})
        return out

    def put(self, step: Tensor, offset: Tensor | None) -> Side:
        import torch

        side = self._put("scale", step)
        if offset is not None:
            seen = self._get("scale", side, tuple(step.shape))
            zero = torch.where(seen == 0, 0, -offset.double() / seen.double().masked_fill(seen == 0, 1))
            side |= self._put("zero", zero.clamp(-1e6, 1e6).float())
        return side

    def get(self, side: Side, lattice: tuple[int, ...], affine: bool) -> tuple[Tensor, Tensor | None]:
        step = self._get("scale", side, lattice)
        return step, -self._get("zero", side, lattice) * step if affine else None

    def _scale(self) -> GroupScale:
        return GroupScale(Along(self.size), MinMax(), self.store)

    def _put(self, name: str, values: Tensor) -> Side:
        from ..kernels.bits import pack

        flat, book = values.reshape(-1), Uniform(1 << self.bits, 0.0)
        side = self._scale().measure(flat, book)
        index = book.nearest(self._scale().expand(side, tuple(flat.shape)).normalize(flat))
        packed = pack(index.numpy().astype(np.uint8), self.bits)
        return {name: packed, **{f"{name}_{k}": v for k, v in side.items()}}

    def _get(self, name: str, side: Side, lattice: tuple[int, ...]) -> Tensor:
        import torch

        from ..kernels.bits import unpack

        n = int(np.prod(lattice))
        if side[name].ndim != 1:
            raise CorruptStream(f"{name} has shape {side[name].shape}; packed codes have one axis")
        index = unpack(side[name], self.bits, n).astype(np.int64)
        levels = Uniform(1 << self.bits, 0.0).lookup(torch.from_numpy(index))
        below = {k: side[f"{name}_{k}"] for k in self.store.leaves(True)}
        return self._scale().expand(below, (n,)).denormalize(levels).reshape(lattice)


# --- the scale --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GroupScale(Scale):
    """One step (and offset) for every group of values.

    Side: that of `store`.
    """

    groups: Groups = Along()
    find: Statistic = AbsMax()
    store: Store = Float()

    side = property(lambda self: self.store.leaves(self.find.affine))  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.find.affine and not self.store.offsets:
            raise BadConfig(
                f"{type(self.find).__name__} finds offsets and {type(self.store).__name__} stores none; "
                "use a symmetric statistic such as AbsMax, or another store such as Float"
            )

    def measure(self, x: Tensor, codebook: Codebook, weights: Tensor | None = None) -> Side:
        import torch

        shape = tuple(x.shape)
        if not x.numel():
            empty = torch.zeros(self.groups.lattice(shape))
            return self.store.put(empty, empty if self.find.affine else None)
        rows, present = gather(self.groups, x, weights)
        size = magnitude(rows)

        def put(step: Tensor, offset: Tensor | None) -> Side:
            step, offset = (None if t is None else self.groups.scatter(t * size, shape) for t in (step, offset))
            return self.store.put(step, offset)

        def seen(step: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor | None]:
            got = self.store.get(put(step, offset), self.groups.lattice(shape), self.find.affine)
            step, offset = (None if t is None else self.groups.collect(t) / size for t in got)
            return step, offset

        return put(*self.find(Sample(rows / size[:, None], present, codebook, seen)))

    def expand(self, side: Side, shape: tuple[int, ...]) -> Grid:
        step, offset = self.store.get(side, self.groups.lattice(shape), self.find.affine)
        spread = (None if t is None else self.groups.spread(t, shape) for t in (step, offset))
        return Grid(*spread)

    def run(self, shape: tuple[int, ...]) -> int:
        return self.groups.run(shape)


def gather(groups: Groups, x: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Rows of the groups of x, and of the weights; None where all values count the same.

    weights: shape of x, or of its last axis. A group whose weights are all 0 is treated as if it had none.
    """
    import torch

    rows, one = groups.gather(x), torch.ones(())
    if weights is None:
        return rows, groups.gather(one.expand(x.shape), fill=0.0) if rows.numel() > x.numel() else None
    if weights.shape not in (x.shape, x.shape[-1:]):
        raise BadInput(f"weights of shape {tuple(weights.shape)} for values of shape {tuple(x.shape)}")
    w = groups.gather(weights.to(torch.float32).expand(x.shape), fill=0.0)
    return rows, torch.where((w > 0).any(dim=1, keepdim=True), w, groups.gather(one.expand(x.shape), fill=0.0))


def magnitude(rows: Tensor) -> Tensor:
    """The power of two above the greatest magnitude of every row (at least 2^-125, so that dividing by it is exact)."""
    import torch

    _, exponent = torch.frexp(rows.abs().amax(dim=1))
    return torch.ldexp(torch.ones(len(rows)), exponent.clamp(-125, 127))
