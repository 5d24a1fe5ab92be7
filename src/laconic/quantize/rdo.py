"""Quantizing with the coder's own bill in view, and finding the step that meets a rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, prod
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from ..core.combine import need
from ..core.errors import BadConfig, BadInput, CorruptStream
from ..core.stage import Kind, Leaf, Side, Stage, Stats, Symbols
from ..core.wire import write_sections

if TYPE_CHECKING:
    from torch import Tensor

_MOST_TRIES = 9
_STEPS = (2.0**-6, 2.0**13)


@dataclass(frozen=True)
class RdoQuantizer(Stage):
    """ARRAY -> SYMBOLS: transform coefficients to the integers that minimise D + λ R under `CoefficientCoder`'s model.

    Shapes: (planes, rows, columns, b²) float32 in units of the step, zigzag -> the same, int32 without bound.
    lam: λ in squared steps a bit; 0 rounds to the nearest. 0.11 is best on photographs, and the optimum is flat.
    slope: steps grow from 1 at the constant coefficient to 1 + slope at the highest frequency; 0 is best for squared error.
    quarter: keep of all planes but the first only the quarter of lowest frequencies, the samples that 4:2:0 would keep.
    Source: see `kernels.coefficients`; the sampling in the transform domain as in Dugad & Ahuja 2001.
    """

    lam: float = 0.11
    slope: float = 0.0
    quarter: bool = False

    takes: ClassVar[Kind] = Kind.ARRAY
    gives: ClassVar[Kind] = Kind.SYMBOLS

    def __post_init__(self) -> None:
        if not (0 <= self.lam <= 10 and 0 <= self.slope <= 100):
            raise BadConfig(f"lam={self.lam}, slope={self.slope}; 0 to 10 and 0 to 100 are possible")

    def encode(self, x: Tensor) -> tuple[Symbols, Side]:
        from ..kernels.coefficients import MAX_VALUE, block_of, choose

        block = block_of(tuple(x.shape))
        if not block:
            raise BadInput(f"coefficients of shape {tuple(x.shape)}; (planes, rows, columns, b²) is needed")
        steps = self._steps(block)
        wanted = np.ascontiguousarray(x.numpy() / steps)
        if self.quarter:
            frequency = np.maximum(*_frequencies(block))
            wanted[1:, :, :, frequency >= max(block // 2, 1)] = 0
        if wanted.size and not float(abs(wanted).max()) <= MAX_VALUE:
            raise BadInput(f"coefficients up to {abs(wanted).max():.3g} steps; at most {MAX_VALUE:,} are possible")
        return Symbols(choose(wanted, steps**2, self.lam)[0], 0), {}

    def decode(self, y: Symbols, side: Side) -> Tensor:
        import torch

        from ..kernels.coefficients import block_of

        block = block_of(y.index.shape)
        if y.alphabet != 0 or not block:
            raise CorruptStream(f"symbols of alphabet {y.alphabet} and shape {y.index.shape} are no coefficients")
        return torch.from_numpy(y.index.astype(np.float32) * self._steps(block))

    def _steps(self, block: int) -> np.ndarray:
        """(b²,) float32, the step of each coefficient over that of the constant one."""
        u, v = _frequencies(block)
        return (1 + np.float32(self.slope) * (u + v).astype(np.float32) / np.float32(max(2 * block - 2, 1))).astype(
            np.float32
        )


def _frequencies(block: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of each coefficient in zigzag order."""
    from ..transforms.dct import zigzag

    u, v = np.divmod(zigzag(block), block)
    return u, v


@dataclass(frozen=True)
class Step(Stage):
    """x in units of one step: x / step there, x̂ · step back. Behind it, every quantizer's step is 1."""

    step: float

    takes: ClassVar[Kind] = Kind.ARRAY
    gives: ClassVar[Kind] = Kind.ARRAY

    def __post_init__(self) -> None:
        if not _STEPS[0] <= self.step <= _STEPS[1]:
            raise BadConfig(f"step {self.step}; {_STEPS[0]} to {_STEPS[1]} are possible")

    def encode(self, x: Tensor) -> tuple[Tensor, Side]:
        return x / np.float32(self.step).item(), {}

    def decode(self, y: Tensor, side: Side) -> Tensor:
        return y * np.float32(self.step).item()


@dataclass(frozen=True)
class RateTarget(Stage):
    """ARRAY -> BYTES: finds the step at which a codec of unit step meets a rate, by coding.

    codec: quantizes in steps of 1. bits: for each position of the last two axes (the pixels of planes), all bytes of the
    codec counted, packet header apart. guess: the step to begin with.
    The result does not exceed the target unless the largest step does; the search ends within 1.5 % below it.
    Side: the step.
    """

    codec: Stage
    bits: float
    guess: float = 1.0

    takes: ClassVar[Kind] = Kind.ARRAY
    gives: ClassVar[Kind] = Kind.BYTES
    side: ClassVar[Mapping[str, Leaf]] = {"step": Leaf("float32", "scales")}
    payload_role: ClassVar[str | None] = None
    holds_codecs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        need(self.codec, Kind.ARRAY, Kind.BYTES, "a rate target")
        if not 0 < self.bits <= 1e6 or not _STEPS[0] <= self.guess <= _STEPS[1]:
            raise BadConfig(
                f"bits={self.bits}, guess={self.guess}; a positive rate and a step of {_STEPS} are possible"
            )

    def children(self) -> Mapping[str, Stage]:
        return {"codec": self.codec}

    def fit(self, x: Tensor, stats: Stats | None = None) -> Self:
        return self.replace(codec=self.codec.fit(x / np.float32(self.guess).item(), stats))

    def encode(self, x: Tensor) -> tuple[bytes, Side]:
        target = self.bits * prod(x.shape[-2:]) / 8
        step, fits, exceeds = self.guess, None, None
        for _ in range(_MOST_TRIES):
            trial = self._code(x, np.float32(step))
            if trial[1] <= target:
                fits = trial if fits is None or trial[1] >= fits[1] else fits
            else:
                exceeds = trial if exceeds is None or trial[1] <= exceeds[1] else exceeds
            if 0.985 * target <= trial[1] <= target:
                break
            if fits and exceeds:  # a power law between the two, kept off the ends
                low, high = np.log([exceeds[0], fits[0]])
                share = np.log(exceeds[1] / (0.993 * target)) / np.log(exceeds[1] / max(fits[1], 1))
                following = float(np.exp(low + (high - low) * min(max(share, 0.05), 0.95)))
            else:
                following = step * min(max(trial[1] / (0.993 * target), 1 / 16), 16.0)
            following = min(max(following, _STEPS[0]), _STEPS[1])
            if np.float32(following) == np.float32(step):
                break
            step = following
        best = fits or exceeds
        assert best is not None  # there was a first trial
        return b"", {"step": np.array([best[0]], np.float32), "codec": best[2]}

    def _code(self, x: Tensor, step: np.float32) -> tuple[np.float32, int, Side]:
        """(step, bytes, the codec's output)."""
        y, side = self.codec.encode(x / step.item())
        output = {**side, "payload": y}
        return step, len(write_sections(self.codec, output)), output

    def decode(self, y: bytes, side: Side) -> Any:
        step = float(side["step"][0]) if side["step"].shape == (1,) else 0.0
        if not isfinite(step) or not _STEPS[0] <= step <= _STEPS[1]:
            raise CorruptStream(f"a step of {step}; {_STEPS} are possible")
        below = side["codec"]
        return self.codec.decode(below["payload"], {k: v for k, v in below.items() if k != "payload"}) * step
