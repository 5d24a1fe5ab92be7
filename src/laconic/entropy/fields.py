"""Numbers without loss by their bit fields: exponents first, alone or as differences to an array that the reader has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from ..core.combine import need
from ..core.errors import BadInput, CorruptStream, NotFitted, claim
from ..core.stage import Kind, Leaf, Side, Stage, Stats, Symbols, learned
from ..core.wire import Reader, read_sections, write_sections, write_varint
from .coders import Rans
from .models import Histogram
from .planes import DTYPES

if TYPE_CHECKING:
    from torch import Tensor
    from torch import dtype as Dtype

_STORED, _CODED = range(2)
_HEAD = {"dtype": Leaf("uint8", "header"), "shape": Leaf("int64", "header")}


def _words(x: Tensor) -> np.ndarray:
    """The patterns of an array: (n,) unsigned."""
    import torch

    return x.contiguous().reshape(-1).view(torch.uint8).numpy().view(f"u{x.element_size()}")


def _head(x: Tensor) -> Side:
    dtype = DTYPES.index(str(x.dtype).removeprefix("torch."))
    return {"dtype": np.array([dtype], np.uint8), "shape": np.array(x.shape, np.int64)}


def _said(side: Side) -> tuple[tuple[int, ...], Dtype]:
    import torch

    shape = tuple(int(d) for d in side["shape"].ravel())
    if side["dtype"].shape != (1,) or side["dtype"][0] >= len(DTYPES) or min(shape, default=0) < 0:
        raise CorruptStream(f"dtype {side['dtype'][:4]} and shape {shape[:4]} of an array")
    return shape, getattr(torch, DTYPES[int(side["dtype"][0])])


def _array(words: np.ndarray, shape: tuple[int, ...], dtype: Dtype) -> Tensor:
    import torch

    if dtype is torch.bool and (words > 1).any():
        raise CorruptStream("a truth value above 1")
    return torch.from_numpy(words.view(np.uint8)).view(dtype).reshape(shape)


@dataclass(frozen=True)
class FieldPlanes(Stage):
    """ARRAY -> SYMBOLS (bytes per value, values): plane k holds byte k of every value; floats are turned left by one bit.

    The turn puts the sign last, so that bfloat16's and float32's highest plane is the exponent and nothing else.
    Side: dtype (its place in DTYPES) and shape.
    """

    takes: ClassVar[Kind] = Kind.ARRAY
    gives: ClassVar[Kind] = Kind.SYMBOLS
    lossless: ClassVar[bool] = True
    accepts: ClassVar[tuple[str, ...]] = DTYPES
    casts: ClassVar[bool] = False
    side: ClassVar[Mapping[str, Leaf]] = _HEAD

    def encode(self, x: Tensor) -> tuple[Symbols, Side]:
        from ..kernels import fields

        return Symbols(fields.split(_words(x), x.is_floating_point()), 256), _head(x)

    def decode(self, y: Symbols, side: Side) -> Tensor:
        from ..kernels import fields

        shape, dtype = _said(side)
        if y.alphabet != 256 or y.index.dtype != np.uint8 or y.index.shape != (dtype.itemsize, math.prod(shape)):
            raise CorruptStream(f"planes of shape {y.index.shape} for {shape} of {dtype}")
        claim(y.index.size, "an array")
        return _array(fields.join(y.index, dtype.is_floating_point), shape, dtype)


@dataclass(frozen=True)
class Sparing(Stage):
    """SYMBOLS (bytes) -> BYTES: every row coded by itself, or stored where coding would not save one byte in 64.

    Mantissas are all but noise; to leave them alone costs .3 % of bfloat16 weights and gives half of the time back.
    """

    coder: Stage = Rans()

    takes: ClassVar[Kind] = Kind.SYMBOLS
    gives: ClassVar[Kind] = Kind.BYTES
    lossless: ClassVar[bool] = True

    def __post_init__(self) -> None:
        need(self.coder, Kind.SYMBOLS, Kind.BYTES, "Sparing")

    def encode(self, x: Symbols) -> tuple[bytes, Side]:
        if x.alphabet != 256 or x.index.ndim != 2:
            raise BadInput(f"rows of bytes are needed; these are {x.index.shape} of {x.alphabet} symbols")
        out = bytearray()
        write_varint(out, x.index.shape[1])
        for row in x.index:
            frame, n = b"", row.size
            if _bits(row) < 7.875:
                y, side = self.coder.encode(Symbols(row, 256))
                frame = write_sections(self.coder, {**side, "payload": y}, checksum=False)
            coded = 0 < len(frame) < n - n // 64
            out.append(_CODED if coded else _STORED)
            if coded:
                write_varint(out, len(frame))
            out += frame if coded else row.tobytes()
        return bytes(out), {}

    def decode(self, y: bytes, side: Side) -> Symbols:
        reader, rows = Reader(y), []
        n = reader.varint()
        claim(n, "a row of bytes")
        while reader.at < len(y):
            method = reader.take(1)[0]
            claim(n * (len(rows) + 1), "rows of bytes")
            if method == _STORED:
                rows.append(np.frombuffer(reader.take(n), np.uint8))
            elif method == _CODED:
                frame = Reader(reader.take(reader.varint()))
                inner = read_sections(self.coder, frame, checksum=False)
                frame.finish()
                got = self.coder.decode(inner.pop("payload"), inner)
                if got.index.shape != (n,) or got.alphabet != 256:
                    raise CorruptStream(f"a row of {got.index.shape} symbols below {got.alphabet}, {n} bytes announced")
                rows.append(got.index)
            else:
                raise CorruptStream(f"a row of bytes coded by method {method}")
        if not rows:
            raise CorruptStream("no rows of bytes")
        return Symbols(np.stack(rows), 256)


def _bits(row: np.ndarray) -> float:
    """Zero-order entropy of a row of bytes, from 2^16 of them."""
    step = 1 + (row.size >> 16)
    counts = np.bincount(row[::step], minlength=256)
    p = counts[counts > 0] / max(int(counts.sum()), 1)
    return float(-(p * np.log2(p)).sum())


@dataclass(frozen=True)
class Difference(Stage):
    """ARRAY -> BYTES: differences to `base`, counted in steps of the last bit, as tokens and rest bits.

    `fit` takes the base: an array of the dtype and shape of those to be coded, such as the same tensor of the checkpoint
    before. A token's table is chosen by the high byte of the base's number, its exponent: how many steps training moves a
    weight depends on how long a step is.
    coder: of tokens, in 256 contexts. base: its bytes, cut or filled with zeros where an array has another size; kept out of
    packets with `embed=False`, which then hold its hash.
    Side: dtype, shape, the rest bits (see `kernels.fields`).
    """

    coder: Rans = Rans(Histogram(256))
    base: np.ndarray | None = learned("uint8", role="models")

    takes: ClassVar[Kind] = Kind.ARRAY
    gives: ClassVar[Kind] = Kind.BYTES
    lossless: ClassVar[bool] = True
    accepts: ClassVar[tuple[str, ...]] = DTYPES
    casts: ClassVar[bool] = False
    side: ClassVar[Mapping[str, Leaf]] = {**_HEAD, "rest": Leaf("uint8", "codes")}

    def __post_init__(self) -> None:
        need(self.coder, Kind.SYMBOLS, Kind.BYTES, "Difference")

    def fit(self, x: Tensor, stats: Stats | None = None) -> Self:
        return self.replace(base=_words(x).view(np.uint8))

    def _base(self, n: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """(base, context) of n numbers of `width` bytes."""
        if self.base is None:
            raise NotFitted("no base to take differences to; fit the codec to it")
        if self.base.ndim != 1:
            raise CorruptStream(f"a base of {self.base.ndim} dimensions; its bytes have 1")
        claim(n * width, "a base")
        words = np.zeros(n * width, np.uint8)
        held = self.base[: words.size]
        words[: held.size] = held
        words = words.view(f"u{width}")
        return words, words if width == 1 else (words >> 8 * width - 9 & 255).astype(np.uint8)

    def encode(self, x: Tensor) -> tuple[bytes, Side]:
        from ..kernels import fields

        base, context = self._base(x.numel(), x.element_size())
        token, rest = fields.differences(_words(x), base, x.is_floating_point())
        coder = self.coder.given(context)
        y, side = coder.encode(Symbols(token, 256))
        return write_sections(coder, {**side, "payload": y}, checksum=False), {**_head(x), "rest": rest}

    def decode(self, y: bytes, side: Side) -> Tensor:
        from ..kernels import fields

        shape, dtype = _said(side)
        n = math.prod(shape)
        base, context = self._base(n, dtype.itemsize)
        coder, frame = self.coder.given(context), Reader(y)
        inner = read_sections(coder, frame, checksum=False)
        frame.finish()
        token = coder.decode(inner.pop("payload"), inner)
        if token.alphabet != 256 or token.index.shape != (n,):
            raise CorruptStream(f"tokens of shape {token.index.shape} for {n:,} numbers")
        return _array(fields.applied(token.index, side["rest"], base, dtype.is_floating_point), shape, dtype)
