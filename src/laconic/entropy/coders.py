"""Coders: SYMBOLS -> BYTES, and the escape of outliers that bounds an alphabet.

Pack       exact fixed rate: bits, or mixed radix where the alphabet is no power of two
Rans       an entropy model; the fastest, for everything that knows or sends its probabilities
Adaptive   no model sent: probabilities follow the symbols; for short or changing streams, and for any integers
Escape     integers without bound -> a bounded alphabet, outliers aside
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Self

import numpy as np

from ..core.errors import BadConfig, BadInput, CorruptStream, claim
from ..core.stage import Kind, Leaf, Side, Stage, Stats, Symbols, encoder_only
from ..core.wire import MAX_DIMS, Reader, write_varint
from .models import MAX_ALPHABET, Coded, EntropyModel, Histogram, check_alphabet, integers, tables_below

_HEAD = Leaf("uint8", "header")
_INT32 = np.iinfo(np.int32)


def _head(shape: tuple[int, ...], *numbers: int) -> np.ndarray:
    """Varints: the numbers, then the dimensions and their count."""
    out = bytearray()
    for n in (*numbers, len(shape), *shape):
        write_varint(out, n)
    return np.frombuffer(bytes(out), np.uint8)


def _read_head(head: np.ndarray, n_numbers: int) -> tuple[tuple[int, ...], list[int]]:
    reader = Reader(head.tobytes())
    numbers = [reader.varint() for _ in range(n_numbers)]
    n_dims = reader.varint()
    if n_dims > MAX_DIMS:
        raise CorruptStream(f"symbols with {n_dims} dimensions; at most {MAX_DIMS} are allowed")
    shape = tuple(reader.varint() for _ in range(n_dims))
    reader.finish()
    if prod(max(d, 1) for d in shape) >= 1 << 62:
        raise CorruptStream(f"symbols of shape {shape}")
    claim(prod(shape), "symbols")
    return shape, numbers


def _flat(x: Symbols) -> np.ndarray:
    """The index in one row; checked against the alphabet."""
    index = np.ascontiguousarray(x.index).reshape(-1)
    if x.alphabet == 0:
        if index.dtype != np.int32:
            raise BadInput(f"symbols without bound are {index.dtype}; int32 is right")
    elif index.dtype.kind != "u" or (index.size and int(index.max()) >= x.alphabet):
        raise BadInput(f"symbols of dtype {index.dtype} do not lie in an alphabet of {x.alphabet}")
    return index


@dataclass(frozen=True)
class Pack(Stage):
    """Symbols at fixed rate: ⌈log2 A⌉ bits each, or words of mixed radix within .5 % of log2 A where that is shorter.

    Side: head, the alphabet and the shape.
    """

    takes: ClassVar[Kind] = Kind.SYMBOLS
    gives: ClassVar[Kind] = Kind.BYTES
    side: ClassVar[Mapping[str, Leaf]] = {"head": _HEAD}
    lossless: ClassVar[bool] = True

    def encode(self, x: Symbols) -> tuple[bytes, Side]:
        from ..kernels import bits

        index = _flat(x)
        check_alphabet(x.alphabet, "Pack")
        n_bits = _packs_bits(index.size, x.alphabet)
        if x.alphabet == 1 or index.size == 0:
            data = b""
        else:
            data = (bits.pack(index, n_bits) if n_bits else bits.pack_radix(index, x.alphabet)).tobytes()
        return data, {"head": _head(x.index.shape, x.alphabet)}

    def decode(self, y: bytes, side: Side) -> Symbols:
        from ..kernels import bits

        shape, (alphabet,) = _read_head(side["head"], 1)
        if not 1 <= alphabet <= MAX_ALPHABET:
            raise CorruptStream(f"packed symbols of an alphabet of {alphabet}")
        n = prod(shape)
        data = np.frombuffer(y, np.uint8)
        if alphabet == 1 or n == 0:
            if data.size:
                raise CorruptStream(f"{data.size} bytes behind symbols that take none")
            return Symbols(np.zeros(shape, np.uint8 if alphabet <= 256 else np.uint16), alphabet)
        n_bits = _packs_bits(n, alphabet)
        index = bits.unpack(data, n_bits, n) if n_bits else bits.unpack_radix(data, alphabet, n)
        if n_bits and alphabet < 1 << n_bits and int(index.max()) >= alphabet:
            raise CorruptStream(f"symbol {index.max()} in an alphabet of {alphabet}")
        return Symbols(index.reshape(shape), alphabet)


def _packs_bits(n: int, alphabet: int) -> int:
    """Bits a symbol, or 0 where mixed radix is shorter."""
    from ..kernels import bits

    n_bits = (alphabet - 1).bit_length()
    if alphabet == 1 << n_bits:
        return n_bits
    return n_bits if bits.packed_bytes(n, n_bits) <= bits.radix_bytes(n, alphabet) else 0


@dataclass(frozen=True)
class Rans(Stage):
    """Interleaved rANS under an entropy model.

    model: where the probabilities come from. context: what `given` told, for models with a table a symbol; integers, of
    the shape of the symbols or with a last axis of 2 (see the model).
    Side: head (alphabet, lanes, shape) and what the model sends. Termination: exact; see `kernels.rans`.
    """

    model: EntropyModel = Histogram()
    context: Any = encoder_only()  # the decoder is told as well; it never travels

    takes: ClassVar[Kind] = Kind.SYMBOLS
    gives: ClassVar[Kind] = Kind.BYTES
    lossless: ClassVar[bool] = True

    side = property(lambda self: {"head": _HEAD, **self.model.side})  # type: ignore[assignment]

    def given(self, context: Any) -> Self:
        """The same coder, told what both ends know of every symbol."""
        return self.replace(context=context)

    def fit(self, x: Symbols, stats: Stats | None = None) -> Self:
        index = _flat(x)
        return self.replace(model=self.model.fit(Symbols(index, x.alphabet), integers(self.context, index.size)))

    def encode(self, x: Symbols) -> tuple[bytes, Side]:
        from ..kernels import rans

        index = _flat(x)
        if not index.size:
            empty = {name: np.empty(0, leaf.dtype) for name, leaf in self.model.side.items()}
            return b"", {"head": _head(x.index.shape, x.alphabet, 0), **empty}
        coded, sent = self.model.place(Symbols(index, x.alphabet), integers(self.context, index.size))
        n_lanes = rans.lanes_for(_sampled_bytes(coded))
        data = rans.encode(coded.symbol, coded.tables, n_lanes, coded.table)
        return data.tobytes(), {"head": _head(x.index.shape, x.alphabet, n_lanes.bit_length() - 1), **sent}

    def decode(self, y: bytes, side: Side) -> Symbols:
        from ..kernels import rans

        shape, (alphabet, log_lanes) = _read_head(side["head"], 2)
        n = prod(shape)
        if log_lanes > 6 or alphabet > MAX_ALPHABET:
            raise CorruptStream(f"a code of 2^{log_lanes} lanes and an alphabet of {alphabet}")
        if n == 0:
            if y or any(side[name].size for name in self.model.side):
                raise CorruptStream("a code of no symbols that is not empty")
            return Symbols(np.zeros(shape, _dtype(alphabet)), alphabet)
        context = integers(self.context, n)
        tables, table = self.model.tables(n, alphabet, context, side)
        symbol = rans.decode(np.frombuffer(y, np.uint8), tables, n, 1 << log_lanes, table)
        index = self.model.restore(Coded(symbol, table, tables), alphabet, context, side)
        return Symbols(index.reshape(shape), alphabet)


def _dtype(alphabet: int) -> type[np.integer]:
    return np.int32 if alphabet == 0 else np.uint8 if alphabet <= 256 else np.uint16


def _sampled_bytes(coded: Coded) -> float:
    """Length of the code, estimated from some thousand symbols: the encoder picks the number of lanes by it."""
    step = 1 + coded.symbol.size // 4096
    first = coded.tables.first[coded.table[::step]] if coded.table is not None else 0
    freq = coded.tables.interval[first + coded.symbol[::step].astype(np.int64)] >> 16
    bits = coded.tables.precision - np.log2(np.maximum(freq, 1))
    return float(bits.mean()) / 8 * coded.symbol.size


@dataclass(frozen=True)
class Adaptive(Stage):
    """Range coding with probabilities that follow the symbols; nothing but the code is sent.

    Symbols of a bounded alphabet are paths in a binary tree, integers without bound adaptive Elias-gamma codes.
    order: 1 to take the symbol before (of integers: its length in bits) into the context. limit: how slowly old symbols are
    forgotten; 1023 for stationary data, 30 for data that changes. n_contexts: values of the context that `given` tells.
    Side: head, the alphabet and the shape.
    """

    order: int = 0
    limit: int = 255
    n_contexts: int = 1
    context: Any = encoder_only()  # the decoder is told as well; it never travels

    takes: ClassVar[Kind] = Kind.SYMBOLS
    gives: ClassVar[Kind] = Kind.BYTES
    side: ClassVar[Mapping[str, Leaf]] = {"head": _HEAD}
    lossless: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.order not in (0, 1):
            raise BadConfig(f"order {self.order}; 0 or 1 is right")
        if not 2 <= self.limit <= 1023:
            raise BadConfig(f"limit {self.limit}; 2 to 1023 is right")
        if not 1 <= self.n_contexts <= 1 << 12:
            raise BadConfig(f"{self.n_contexts} contexts; 1 to 4096 are right")

    def given(self, context: Any) -> Self:
        """The same coder, told what both ends know of every symbol."""
        return self.replace(context=context)

    def encode(self, x: Symbols) -> tuple[bytes, Side]:
        from ..kernels import rangecoder

        index = _flat(x)
        if problem := self._too_big(x.alphabet):
            raise BadInput(problem)
        table = tables_below(integers(self.context, index.size), self.n_contexts, "Adaptive")
        args = (self.n_contexts, self.order, self.limit)
        if x.alphabet:
            data = rangecoder.encode_symbols(index, (x.alphabet - 1).bit_length(), table, *args)
        else:
            data = rangecoder.encode_integers(index, table, *args)
        return data.tobytes(), {"head": _head(x.index.shape, x.alphabet)}

    def decode(self, y: bytes, side: Side) -> Symbols:
        from ..kernels import rangecoder

        shape, (alphabet,) = _read_head(side["head"], 1)
        if problem := self._too_big(alphabet):
            raise CorruptStream(problem)
        n = prod(shape)
        table = tables_below(integers(self.context, n), self.n_contexts, "Adaptive")
        args = (self.n_contexts, self.order, self.limit)
        data = np.frombuffer(y, np.uint8)
        if alphabet:
            index = rangecoder.decode_symbols(data, n, (alphabet - 1).bit_length(), table, *args)
            if n and int(index.max()) >= alphabet:
                raise CorruptStream(f"symbol {index.max()} in an alphabet of {alphabet}")
        else:
            index = rangecoder.decode_integers(data, n, table, *args)
        return Symbols(index.reshape(shape), alphabet)

    def _too_big(self, alphabet: int) -> str:
        depth = max(alphabet - 1, 0).bit_length()
        n_nodes = self.n_contexts << (depth * (1 + self.order)) if alphabet else 0
        if alphabet > MAX_ALPHABET or n_nodes > 1 << 22:
            return (
                f"an alphabet of {alphabet} in {self.n_contexts} contexts of order {self.order} has {n_nodes:,} "
                f"probabilities; 4,194,304 are allowed, and an alphabet of {MAX_ALPHABET}"
            )
        return ""


@dataclass(frozen=True)
class Escape(Stage):
    """Integers without bound -> a window of them, and one more symbol for what lies outside.

    Symbols: int32 of alphabet 0 -> unsigned of an alphabet of at most `levels` + 1. The window leaves out, on each side, what
    is rarer than one in 4096; without outliers it is what occurs, and there is no escape symbol.
    Side: head (the window, the number of outliers) and the outliers as adaptive Elias-gamma codes.
    """

    levels: int = 1024

    takes: ClassVar[Kind] = Kind.SYMBOLS
    gives: ClassVar[Kind] = Kind.SYMBOLS
    side: ClassVar[Mapping[str, Leaf]] = {"head": _HEAD, "outliers": Leaf("uint8", "indices")}
    lossless: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= 1 << 12:
            raise BadConfig(f"{self.levels} levels; 1 to 4096 is right")

    def encode(self, x: Symbols) -> tuple[Symbols, Side]:
        from ..kernels import rangecoder

        if x.alphabet:
            raise BadInput(f"Escape takes integers without bound; an alphabet of {x.alphabet} needs none")
        values = _flat(x).astype(np.int64)
        low, high = self._window(values)
        outside = (values < low) | (values > high)
        width = high - low + 1
        index = np.where(outside, width, values - low)
        beyond = values[outside]
        outliers = np.where(beyond < low, beyond - low, beyond - high - 1)
        alphabet = width + bool(outliers.size)
        head = _head((), low << 1 if low >= 0 else ~low << 1 | 1, width, outliers.size)
        data = rangecoder.encode_integers(outliers.astype(np.int32))
        return Symbols(index.astype(_dtype(alphabet)).reshape(x.index.shape), alphabet), {
            "head": head,
            "outliers": data,
        }

    def decode(self, y: Symbols, side: Side) -> Symbols:
        from ..kernels import rangecoder

        _, (zigzag, width, n_outliers) = _read_head(side["head"], 3)
        low = ~(zigzag >> 1) if zigzag & 1 else zigzag >> 1
        high = low + width - 1
        if not (
            1 <= width <= 1 << 12 and -(1 << 31) <= low and high < 1 << 31 and y.alphabet == width + bool(n_outliers)
        ):
            raise CorruptStream(f"a window from {low} to {high} for an alphabet of {y.alphabet}")
        claim(4 * y.index.size, "symbols")
        values = y.index.astype(np.int64).reshape(-1) + low
        outside = np.flatnonzero(values > high)
        if outside.size != n_outliers:
            raise CorruptStream(f"{outside.size} escape symbols for {n_outliers} outliers")
        beyond = rangecoder.decode_integers(side["outliers"], n_outliers).astype(np.int64)
        below, above = beyond + low, beyond + high + 1
        outlier = np.where(beyond < 0, below, above)
        # A distance of 2^31 or more was sent modulo 2^32 and has changed its sign; then only the other side is possible.
        outlier = np.where(outlier > _INT32.max, below - (1 << 32), outlier)
        outlier = np.where(outlier < _INT32.min, above + (1 << 32), outlier)
        values[outside] = outlier
        if values.size and not _INT32.min <= int(values.min()) <= int(values.max()) <= _INT32.max:
            raise CorruptStream("an outlier that is no int32")
        return Symbols(values.astype(np.int32).reshape(y.index.shape), 0)

    def _window(self, values: np.ndarray) -> tuple[int, int]:
        if not values.size:
            return 0, 0
        middle = int(np.partition(values, values.size // 2)[values.size // 2])
        start = middle - self.levels // 2
        inside = np.clip(values - start, -1, self.levels)  # −1 and `levels` stand for all that lies outside
        counts = np.bincount(inside + 1, minlength=self.levels + 2)
        rare = values.size >> 12
        below, above = np.cumsum(counts)[1:-1], np.cumsum(counts[::-1])[::-1][1:-1]
        kept = np.flatnonzero((below > max(rare, int(counts[0]))) & (above > max(rare, int(counts[-1]))))
        return start + int(kept[0]), start + int(kept[-1])
