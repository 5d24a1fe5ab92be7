"""BitStack's blocks: signs of a matrix and a low rank of its magnitudes, level upon level, any prefix of which decodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np

from ..core.errors import BadConfig, BadInput, CorruptStream, claim
from ..core.stage import Kind, Leaf, Side, Stage, Stats, encoder_only
from .scales import from_half, to_half

if TYPE_CHECKING:
    from torch import Tensor

_FLOOR = 1e-4  # of the largest column scale


class _Level(NamedTuple):
    """Sizes of one level of an (m, n) matrix, in bytes: signs, then the factors."""

    sign_bytes: int
    factor_bytes: int

    @property
    def n_bytes(self) -> int:
        return self.sign_bytes + self.factor_bytes


@dataclass(frozen=True)
class BitStack(Stage):
    """ARRAY -> BYTES: residual levels sign(R) ⊙ (L N), with L N the best rank-k approximation of |R|.

        R_0 = W diag(s),   R_i+1 = R_i − sign(R_i) ⊙ (L_i N_i),   s_j = √H_jj

    A level takes m n + 16 k (m + n) bits; there are as many as `bits` pays for, column scales included, at least one.
    The payload is one level after another and any number of whole levels from its beginning decodes: what was said of fewer is
    a prefix of what was said of more (`level_bytes`, `sources.weights.stack.cut_packet`).

    rank: k. Small matrices want it small: at n = 256, k = 16 costs as much as the signs twice over.
    Shapes: x (m, n). Side: `shape`; `column`, s in half precision, and its exponent. Without a Hessian s is 1 and is not sent.
    Raises BadInput for an array that is no matrix, BadConfig where the rate leaves no level.
    Source: Wang et al. 2024, BitStack (2410.23918): activation-aware scaling, iterative absolute value decomposition.
    Differs: s is the root mean square of an input, in the paper its norm over the calibration tokens, the same but for a
    factor; it is sent with the matrix instead of absorbed into what comes before.
    """

    bits: float = 4.0
    rank: int = 2
    scale: Any = encoder_only()  # s, (n,) float64

    takes: ClassVar[Kind] = Kind.ARRAY
    gives: ClassVar[Kind] = Kind.BYTES
    side: ClassVar[Mapping[str, Leaf]] = {
        "shape": Leaf("uint32", "header"),
        "column": Leaf("float16", "scales"),
        "exponents": Leaf("int16", "scales"),
    }

    def __post_init__(self) -> None:
        if not 0 < self.bits <= 64 or not 1 <= self.rank <= 1024:
            raise BadConfig(f"bits {self.bits}, rank {self.rank}; up to 64, and 1 … 1024 are possible")

    def fit(self, x: Tensor, stats: Stats | None = None) -> Self:
        if stats is None or stats.hessian is None:
            return self.replace(scale=None)
        m, n = _shape(x)
        if stats.hessian.shape != (n, n):
            raise BadInput(f"a Hessian of shape {tuple(stats.hessian.shape)} for rows of {n}; ({n}, {n}) is right")
        s = stats.hessian.diagonal().double().clamp(min=0).sqrt().numpy()
        return self.replace(scale=np.maximum(s, _FLOOR * s.max()) if s.max() > 0 else None)

    def push(self, stats: Stats) -> Stats:
        """None: bytes are not changed any more."""
        return Stats()

    def level_bytes(self, m: int, n: int) -> int:
        """Bytes of the payload that one level of an (m, n) matrix takes."""
        return self._level(m, n).n_bytes

    def side_bytes(self, m: int, n: int) -> int:
        """Bytes that column scales take, whatever the levels."""
        return 2 * n if self.scale is not None else 0

    def rate(self, m: int, n: int, n_levels: int) -> float:
        """The `bits` that pay for so many levels."""
        return 8 * (n_levels * self.level_bytes(m, n) + self.side_bytes(m, n)) / (m * n)

    def n_levels(self, m: int, n: int) -> int:
        """How many levels `bits` pays for."""
        fixed = self.side_bytes(m, n)
        levels = int((self.bits * m * n / 8 - fixed) / self.level_bytes(m, n) + 1e-9)
        if levels < 1:
            least = self.rate(m, n, 1)
            raise BadConfig(
                f"{self.bits:g} bits leave no level for a matrix of {m} × {n}; {least:.3g} bits are the least"
            )
        return levels

    def _level(self, m: int, n: int) -> _Level:
        return _Level(-(-m * n // 8), 2 * min(self.rank, m, n) * (m + n))

    def encode(self, x: Tensor) -> tuple[bytes, Side]:
        m, n = _shape(x)
        column, exponent = np.ones(0, np.float16), 0
        w, s = x.detach().cpu().double().numpy(), np.ones(n)
        if self.scale is not None:
            if len(self.scale) != n:
                raise BadInput(f"rows of {n} values; fitted on rows of {len(self.scale)}")
            column, exponent = to_half(self.scale.astype(np.float32))
            s = from_half(column, exponent).astype(np.float64)
        size = _power_of_two(np.abs(w * s).max())
        rest, levels = w * s / size, []
        for _ in range(self.n_levels(m, n)):
            negative = rest < 0
            left, right = _halves(np.abs(rest), min(self.rank, m, n))
            levels.append(np.packbits(negative).tobytes() + left.tobytes() + right.tobytes())
            rest = rest - _level(negative, left, right)
        side = {
            "shape": np.array([m, n], np.uint32),
            "column": column,
            "exponents": np.array([exponent, int(np.log2(size))], np.int16),
        }
        return b"".join(levels), side

    def decode(self, y: bytes, side: Side) -> Tensor:
        import torch

        shape, column, exponents = side["shape"], side["column"], side["exponents"]
        if (
            shape.shape != (2,)
            or not shape.all()
            or exponents.shape != (2,)
            or (np.abs(exponents.astype(int)) > 512).any()
        ):
            raise CorruptStream(f"shape {shape[:4]}, exponents {exponents[:4]}; those of a matrix are right")
        m, n = (int(d) for d in shape)
        claim(8 * m * n, f"a matrix of {m} × {n}")
        sizes = self._level(m, n)
        if len(y) % sizes.n_bytes or not y:
            raise CorruptStream(
                f"{len(y):,} bytes; levels of a matrix of {m} × {n} have {sizes.n_bytes:,}, one at least"
            )
        if column.shape not in ((0,), (n,)) or not np.isfinite(column).all() or (column <= 0).any():
            raise CorruptStream(f"column scales of shape {column.shape}; {n} positive numbers, or none, are right")
        k, out = min(self.rank, m, n), np.zeros((m, n))
        for at in range(0, len(y), sizes.n_bytes):
            bits = np.frombuffer(y, np.uint8, sizes.sign_bytes, at)
            factors = np.frombuffer(y, np.float16, sizes.factor_bytes // 2, at + sizes.sign_bytes)
            if not np.isfinite(factors).all():
                raise CorruptStream("factors that are not finite")
            left, right = factors[: m * k].reshape(m, k), factors[m * k :].reshape(k, n)
            out += _level(np.unpackbits(bits, count=m * n).reshape(m, n).astype(bool), left, right)
        if column.size:
            out /= from_half(column, int(exponents[0])).astype(np.float64)
        top = np.finfo(np.float32).max
        return torch.from_numpy(np.clip(np.ldexp(out, int(exponents[1])), -top, top).astype(np.float32))


def _shape(x: Tensor) -> tuple[int, int]:
    if x.ndim != 2 or not x.numel():
        raise BadInput(f"shape {tuple(x.shape)}; signs and factors make a matrix")
    return int(x.shape[0]), int(x.shape[1])


def _power_of_two(largest: float) -> float:
    """The power of two above `largest`; 1 for 0."""
    return float(np.ldexp(1.0, int(np.frexp(largest)[1]))) if largest > 0 else 1.0


def _halves(a: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors (m, k) and (k, n) float16 of the best rank-k approximation of a; singular values are shared evenly."""
    tall = a.shape[0] >= a.shape[1]
    values, vectors = np.linalg.eigh(a.T @ a if tall else a @ a.T)
    v = vectors[:, : -k - 1 : -1]
    v = v * np.where(v.sum(0) < 0, -1.0, 1.0)
    other = a @ v if tall else (v.T @ a).T
    root = np.maximum(values[: -k - 1 : -1], max(1e-12 * values[-1], 1e-30)) ** 0.25
    share, rest = v * root, other / root
    left, right = (rest, share.T) if tall else (share, rest.T)
    return np.ascontiguousarray(left, np.float16), np.ascontiguousarray(right, np.float16)


def _level(negative: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """sign ⊙ (L N), float64; the product in a fixed order."""
    from ..kernels.product import product

    size = product(left.astype(np.float64), right.astype(np.float64))
    return np.where(negative, -size, size)
