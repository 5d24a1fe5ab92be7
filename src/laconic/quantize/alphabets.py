"""Columns with alphabets of their own, allocated by their losses: BAQ's quantizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np

from ..core.errors import BadConfig, CorruptStream, claim
from ..core.stage import Kind, Leaf, Side, Stage, Stats, encoder_only
from .base import Scale, error_weights
from .codebooks import Uniform
from .rounding import inverse_factor, live_hessian
from .scales import Along, GroupScale, MinMax

if TYPE_CHECKING:
    from torch import Tensor

_MOST = 256  # levels of a column; its table entry is one byte


class _Rows(NamedTuple):
    """A matrix in the sweep's order: w, low, width (n_rows, n); upper (n, n); at: the order."""

    w: np.ndarray
    low: np.ndarray
    width: np.ndarray
    upper: np.ndarray
    at: np.ndarray


@dataclass(frozen=True)
class ColumnAlphabets(Stage):
    """ARRAY -> BYTES: every input channel has as many levels as its share of the loss earns, errors fed back (BAQ).

        sweep with 2^bits levels everywhere ─▶ loss L_j of column j ─▶ R_j = bits + log2(L_j / L̃) / slope
        A_j = round(2^R_j) levels, L̃ such that the mean of log2 A_j is `bits` ─▶ sweep again ─▶ mixed-radix words

    A column that costs four times the loss gets one more bit: then all cost the same. Without a Hessian it is the identity.
    Shapes: x (…, n). Levels lie equally spaced in the range of a group of a row, from `scale` as for 2^bits levels.
    Side: `levels`, one byte a column, A_j − 1; and that of `scale`. Columns of one alphabet are packed together.
    Payload: Σ_j ⌈n_rows log2 A_j⌉ bits but for .5 % of the words.

    Source: Zhang et al. 2025, BAQ (2506.05664), the closed form of the equal-loss allocation; slope 1.95 as in its code.
    Differs: columns are swept by activation; alphabets go up to 256; their table and packing are counted and real.
    """

    bits: float = 3.0
    scale: Scale = GroupScale(Along(), MinMax(True))
    slope: float = 1.95
    damping: float = 0.01
    stats: Any = encoder_only()

    takes: ClassVar[Kind] = Kind.ARRAY
    gives: ClassVar[Kind] = Kind.BYTES

    @property
    def side(self) -> Mapping[str, Leaf]:  # type: ignore[override]
        return {"levels": Leaf("uint8", "codebooks"), "rows": Leaf("int64", "header"), **self.scale.side}

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 6:
            raise BadConfig(f"{self.bits} bits a column; 1 to 6, as a column has up to {_MOST} levels")
        if not 0.5 <= self.slope <= 100 or not 0 <= self.damping <= 1e6:
            raise BadConfig(f"slope {self.slope}, damping {self.damping}; about 2 and .01 are right")

    def fit(self, x: Tensor, stats: Stats | None = None) -> Self:
        return self.replace(stats=stats)

    def push(self, stats: Stats) -> Stats:
        """None: nothing behind bytes asks how errors hurt."""
        return Stats()

    def encode(self, x: Tensor) -> tuple[bytes, Side]:
        from ..kernels.alphabets import sweep_alphabets

        side, book = self._measure(x), self._book()
        rows = self._rows(x, side)
        start = np.full(x.shape[-1], book.alphabet, np.int64)
        _, error = sweep_alphabets(rows.w, rows.low, rows.width, start, rows.upper)
        ordered = allocate_alphabets(np.square(error, dtype=np.float64).sum(axis=0), self.bits, self.slope)
        rank, _ = sweep_alphabets(rows.w, rows.low, rows.width, ordered, rows.upper)
        alphabet, index = np.empty_like(ordered), np.empty_like(rank)
        alphabet[rows.at], index[:, rows.at] = ordered, rank
        data = b"".join(_pack(index[:, alphabet == a], int(a)) for a in np.unique(alphabet))
        shape = np.array(x.shape[:-1], np.int64)
        return data, side | {"levels": (alphabet - 1).astype(np.uint8), "rows": shape}

    def decode(self, y: bytes, side: Side) -> Tensor:
        import torch

        if side["levels"].ndim != 1 or side["rows"].ndim != 1 or (side["rows"] < 0).any():
            raise CorruptStream(f"alphabets {side['levels'].shape}, rows {side['rows'].ravel()[:8]}; one axis is right")
        alphabet, outer = side["levels"].astype(np.int64) + 1, tuple(int(n) for n in side["rows"])
        n_rows = math.prod(outer)
        claim(8 * n_rows * len(alphabet), "columns with alphabets")
        index, at = np.empty((n_rows, len(alphabet)), np.float32), 0
        for a in np.unique(alphabet):
            columns = np.flatnonzero(alphabet == a)
            index[:, columns], at = _unpack(y, at, n_rows, len(columns), int(a))
        if at != len(y):
            raise CorruptStream(f"{len(y) - at} bytes behind the columns")
        low, width = self._range({k: v for k, v in side.items() if k in self.scale.side}, (*outer, len(alphabet)))
        cells = np.maximum(alphabet - 1, 1).astype(np.float32)
        base = np.where(alphabet > 1, low, low + width * np.float32(0.5))
        return torch.from_numpy((index * (width / cells) + base).reshape(*outer, len(alphabet)))

    def _book(self) -> Uniform:
        return Uniform(max(2, round(2**self.bits)), 0.0)

    def _measure(self, x: Tensor) -> Side:
        return self.scale.measure(x, self._book(), error_weights(self.stats))

    def _range(self, side: Side, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Lowest level of every value's group and the width of its range, (n_rows, n) float32."""
        import torch

        grid = self.scale.expand(side, shape)
        offset = torch.zeros(()) if grid.offset is None else grid.offset
        low, step = (t.expand(shape).reshape(-1, shape[-1]).contiguous().numpy() for t in (offset, grid.step))
        return low, step * np.float32(self._book().alphabet - 1)

    def _rows(self, x: Tensor, side: Side) -> _Rows:
        n = x.shape[-1]
        low, width = self._range(side, tuple(x.shape))
        w = np.ascontiguousarray(x.numpy(), np.float32).reshape(-1, n)
        if self.stats is None or self.stats.hessian is None:
            return _Rows(w, low, width, np.eye(n, dtype=np.float32), np.arange(n))
        hessian = live_hessian(self.stats.hessian, n)
        order = hessian.diagonal().argsort(descending=True, stable=True)
        upper = inverse_factor(hessian[order][:, order], self.damping)
        at = order.numpy()
        w, low, width = (np.ascontiguousarray(a[:, at]) for a in (w, low, width))
        return _Rows(w, low, width, np.eye(n, dtype=np.float32) if upper is None else upper.numpy(), at)


def allocate_alphabets(loss: np.ndarray, bits: float, slope: float) -> np.ndarray:
    """A_j = round(2^(c + log2(L_j) / slope)), 1 to 256, for the greatest c whose mean of log2 A_j is at most `bits`.

    loss: (n,) float64, of every column at equal rate. Gives (n,) int64. A loss of 0 counts as the least that is not.
    """
    positive = loss[loss > 0]
    if not len(positive):
        return np.full(len(loss), max(1, math.floor(2**bits + 1e-9)), np.int64)
    wish = np.log2(np.maximum(loss, positive.min())) / slope

    def alphabets(shift: float) -> np.ndarray:
        return np.clip(np.rint(np.exp2(np.clip(wish + shift, -1.0, 9.0))), 1, _MOST).astype(np.int64)

    low, high = -float(wish.max()) - 1, -float(wish.min()) + 9
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.log2(alphabets(middle)).mean() <= bits else (low, middle)
    return alphabets(low)


def _stored(n: int, alphabet: int) -> tuple[int, int]:
    """Bytes of n symbols, and the bits of each or 0 for mixed radix."""
    from ..kernels import bits

    if alphabet == 1 or not n:
        return 0, 0
    n_bits = (alphabet - 1).bit_length()
    plain, radix = bits.packed_bytes(n, n_bits), bits.radix_bytes(n, alphabet)
    return (plain, n_bits) if alphabet == 1 << n_bits or plain <= radix else (radix, 0)


def _pack(index: np.ndarray, alphabet: int) -> bytes:
    from ..kernels import bits

    size, n_bits = _stored(index.size, alphabet)
    if not size:
        return b""
    symbols = np.ascontiguousarray(index).astype(np.uint8)
    return (bits.pack(symbols, n_bits) if n_bits else bits.pack_radix(symbols, alphabet)).tobytes()


def _unpack(data: bytes, at: int, n_rows: int, n_columns: int, alphabet: int) -> tuple[np.ndarray, int]:
    """Symbols (n_rows, n_columns) from byte `at`, and where they end. Raises CorruptStream."""
    from ..kernels import bits

    n = n_rows * n_columns
    size, n_bits = _stored(n, alphabet)
    if not size:
        return np.zeros((n_rows, n_columns), np.uint8), at
    if at + size > len(data):
        raise CorruptStream(f"columns of {size:,} bytes at byte {at:,} of {len(data):,}")
    part = np.frombuffer(data, np.uint8, size, at)
    index = bits.unpack(part, n_bits, n) if n_bits else bits.unpack_radix(part, alphabet, n)
    if int(index.max()) >= alphabet:
        raise CorruptStream(f"symbol {index.max()} in an alphabet of {alphabet}")
    return index.reshape(n_rows, n_columns), at + size
