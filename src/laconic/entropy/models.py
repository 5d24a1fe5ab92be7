"""Entropy models: integer pmfs with an exact total, one table or one of many for every symbol.

    index, context ─ model.place ─▶ (symbol, table) + side          what the coder codes, what the model sends
    side, context  ─ model.tables ─▶ tables, table of each symbol   what the decoder can build beforehand
    symbol, table  ─ model.restore ─▶ index

`context` is what `given` told the coder: integers that encoder and decoder share, one or two for every symbol.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np

from ..core.errors import BadConfig, BadInput, CorruptStream, NotFitted
from ..core.stage import Leaf, Part, Side, Symbols, learned
from ..core.wire import Reader, write_varint

if TYPE_CHECKING:
    from ..kernels.pmf import Located
    from ..kernels.rans import Tables

PRECISION = 14
MAX_ALPHABET = 1 << 16
_LOOKUP_BITS = 8  # of tables of which there are many; a single table is looked up in one step


class Coded(NamedTuple):
    """Symbols as a coder takes them.

    symbol: (n,) uint8 or uint16, below the size of its table. table: (n,) uint8 or uint16, None where there is one table.
    """

    symbol: np.ndarray
    table: np.ndarray | None
    tables: Tables


@dataclass(frozen=True)
class EntropyModel(Part):
    """What probability each symbol has. Everything a decoder derives tables from is integer arithmetic."""

    side: ClassVar[Mapping[str, Leaf]] = {}

    def fit(self, symbols: Symbols, context: np.ndarray | None) -> Self:
        """Learn from symbols (flat) and return a new model; the default has nothing to learn."""
        return self

    def place(self, symbols: Symbols, context: np.ndarray | None) -> tuple[Coded, Side]:
        """Symbols (flat, at least one) -> what the coder codes, and side information."""
        raise NotImplementedError

    def tables(self, n: int, alphabet: int, context: np.ndarray | None, side: Side) -> tuple[Tables, np.ndarray | None]:
        """The tables, and which one each of the `n` symbols has. Raises CorruptStream."""
        raise NotImplementedError

    def restore(self, coded: Coded, alphabet: int, context: np.ndarray | None, side: Side) -> np.ndarray:
        """The inverse of `place`: index (n,), in the dtype of the alphabet. Raises CorruptStream."""
        raise NotImplementedError


def integers(context: Any, n: int) -> np.ndarray | None:
    """A context as it was given (tensor or array) as integers of shape (n,) or (n, 2); None where there is none."""
    if context is None:
        return None
    array = np.asarray(context.detach().cpu() if hasattr(context, "detach") else context)
    if array.dtype.kind not in "iu":
        raise BadInput(f"context is {array.dtype}; it decides on tables, so it must be integers")
    if array.size == n:
        return np.ascontiguousarray(array.reshape(n))
    if array.size == 2 * n and array.shape[-1:] == (2,):
        return np.ascontiguousarray(array.reshape(n, 2))
    raise BadInput(f"context of shape {array.shape} for {n} symbols; one integer a symbol, or two on the last axis")


def tables_below(context: np.ndarray | None, n_contexts: int, what: str) -> np.ndarray | None:
    """Contexts as table numbers below `n_contexts`: uint16, or None where there is one table."""
    if n_contexts == 1:
        return None
    if context is None or context.ndim != 1:
        raise BadConfig(f"{what} has {n_contexts} contexts; tell it one integer a symbol with given(context)")
    if context.size and not 0 <= int(context.min()) <= int(context.max()) < n_contexts:
        raise BadInput(f"contexts from {context.min()} to {context.max()}; {what} has {n_contexts}")
    return context.astype(np.uint16)


def _check_contexts(n_contexts: int) -> None:
    if not 1 <= n_contexts <= 1 << 12:
        raise BadConfig(f"{n_contexts} contexts; 1 to 4096 are right")


def check_alphabet(alphabet: int, what: str) -> None:
    """Refuse an alphabet that has no table."""
    if alphabet == 0:
        raise BadInput(f"{what} needs a bounded alphabet; put Escape before the coder, or use Adaptive")
    if alphabet > MAX_ALPHABET:
        raise BadInput(f"an alphabet of {alphabet}; {what} takes at most {MAX_ALPHABET}")


@dataclass(frozen=True)
class _Counted(EntropyModel):
    """Frequencies of the symbols of a bounded alphabet, in one table or one a context.

    Frequencies have 14 bits, which is too coarse for symbols rarer than one in 2^15: these have no slot of their own but
    share one more symbol, the escape, and are listed beside the code.
    """

    def _tables(self, freq: np.ndarray) -> Tables:
        from ..kernels import rans

        n_contexts, size = freq.shape
        bits = PRECISION if n_contexts == 1 else _LOOKUP_BITS
        return rans.tables(freq.reshape(-1), np.full(n_contexts, size), PRECISION, bits)

    def _code(self, symbols: Symbols, table: np.ndarray | None, freq: np.ndarray) -> tuple[Coded, np.ndarray]:
        """(what is coded, the list of rare symbols). freq: (n_contexts, alphabet) or, with the escape, one more."""
        from ..kernels import pmf, rangecoder

        symbol, alphabet = symbols
        rare = np.empty(0, np.uint16)
        if freq.shape[1] > alphabet and not freq[:, :alphabet].all():
            symbol, rare = pmf.substitute(symbol, table, freq[:, :alphabet] == 0)
        return Coded(symbol, table, self._tables(freq)), rangecoder.encode_symbols(rare, _depth(alphabet))

    def _restore(self, symbol: np.ndarray, alphabet: int, rare: np.ndarray) -> np.ndarray:
        from ..kernels import rangecoder

        escaped = np.flatnonzero(symbol == alphabet)
        index = symbol.astype(np.uint8 if alphabet <= 256 else np.uint16)
        listed = rangecoder.decode_symbols(rare, escaped.size, _depth(alphabet))
        if escaped.size and int(listed.max()) >= alphabet:
            raise CorruptStream(f"a rare symbol {listed.max()} in an alphabet of {alphabet}")
        index[escaped] = listed
        return index


def _depth(alphabet: int) -> int:
    return max((alphabet - 1).bit_length(), 1)


def _with_escape(counts: np.ndarray, always: bool) -> np.ndarray:
    """Counts (n_contexts, alphabet) with those of rare symbols moved to one symbol more, where there are several."""
    rare = counts << (PRECISION + 1) < counts.sum(axis=1, keepdims=True)
    n_rare = ((counts > 0) & rare).sum()
    if not always and n_rare < 2:
        return counts
    escape = np.where(rare, counts, 0).sum(axis=1, keepdims=True)
    return np.concatenate([np.where(rare, 0, counts), np.maximum(escape, always)], axis=1)


@dataclass(frozen=True)
class Histogram(_Counted):
    """The frequencies of the very symbols that are coded, sent with them: for streams that pay for their own table.

    n_contexts: tables, one for every value of the context that is given; 1 needs no context.
    Side: pmf, one byte that says whether there is an escape, then per table a varint length and the pmf, as coarse as pays
    (256 symbols: about 90 bytes for 2^20 of them); rare, the escaped symbols as an adaptive code.
    """

    n_contexts: int = 1

    side: ClassVar[Mapping[str, Leaf]] = {"pmf": Leaf("uint8", "models"), "rare": Leaf("uint8", "indices")}

    def __post_init__(self) -> None:
        _check_contexts(self.n_contexts)

    def place(self, symbols: Symbols, context: np.ndarray | None) -> tuple[Coded, Side]:
        from ..kernels import pmf

        index, alphabet = symbols
        check_alphabet(alphabet, "Histogram")
        table = tables_below(context, self.n_contexts, "Histogram")
        counts = pmf.histogram(index, alphabet, table, self.n_contexts)
        if alphabet < MAX_ALPHABET:
            counts = _with_escape(counts, always=False)
        if (most := int((counts > 0).sum(axis=1).max())) > 1 << (PRECISION - 2):
            raise BadInput(f"{most} different symbols; Histogram has room for {1 << (PRECISION - 2)}, so use Adaptive")
        out, freqs = bytearray([counts.shape[1] - alphabet]), []
        for row in counts:
            freq, data = pmf.write_pmf(row, PRECISION) if row.any() else (_certain(row.size), np.empty(0, np.uint8))
            write_varint(out, data.size)
            out += data.tobytes()
            freqs.append(freq)
        coded, rare = self._code(symbols, table, np.stack(freqs))
        return coded, {"pmf": np.frombuffer(bytes(out), np.uint8), "rare": rare}

    def tables(self, n: int, alphabet: int, context: np.ndarray | None, side: Side) -> tuple[Tables, np.ndarray | None]:
        from ..kernels import pmf

        table = tables_below(context, self.n_contexts, "Histogram")
        reader, freqs = Reader(side["pmf"].tobytes()), []
        size = alphabet + (escapes := reader.take(1)[0])
        if escapes > 1 or not 1 <= alphabet <= size <= MAX_ALPHABET:
            raise CorruptStream(f"a histogram of {alphabet} symbols and {escapes} escapes")
        for _ in range(self.n_contexts):
            data = np.frombuffer(reader.take(reader.varint()), np.uint8)
            freqs.append(pmf.read_pmf(data, size, PRECISION) if data.size else _certain(size))
        reader.finish()
        return self._tables(np.stack(freqs)), table

    def restore(self, coded: Coded, alphabet: int, context: np.ndarray | None, side: Side) -> np.ndarray:
        return self._restore(coded.symbol, alphabet, side["rare"])


def _certain(size: int) -> np.ndarray:
    freq = np.zeros(size, np.int64)
    freq[0] = 1 << PRECISION
    return freq


@dataclass(frozen=True)
class Trained(_Counted):
    """Frequencies learned once, for many streams too short to pay for a table; every symbol of the alphabet can occur.

    n_contexts: as of `Histogram`. pmf: (n_contexts, alphabet + 1) uint16 with totals 2^14; the last is the escape.
    Side: the escaped symbols as an adaptive code.
    """

    n_contexts: int = 1
    pmf: np.ndarray | None = learned("uint16", role="models")

    side: ClassVar[Mapping[str, Leaf]] = {"rare": Leaf("uint8", "indices")}

    def __post_init__(self) -> None:
        _check_contexts(self.n_contexts)

    def fit(self, symbols: Symbols, context: np.ndarray | None) -> Self:
        from ..kernels import pmf

        index, alphabet = symbols
        check_alphabet(alphabet, "Trained")
        if alphabet > 1 << (PRECISION - 2):
            raise BadInput(f"an alphabet of {alphabet}; Trained learns 4096 symbols at most; put Escape first")
        table = tables_below(context, self.n_contexts, "Trained")
        counts = _with_escape(pmf.histogram(index, alphabet, table, self.n_contexts), always=True)
        return self.replace(pmf=np.stack([pmf.normalize(row, PRECISION) for row in counts]))

    def _freq(self, alphabet: int) -> np.ndarray:
        if self.pmf is None:
            raise NotFitted("Trained has no pmf; fit the codec to symbols like those it will code")
        if self.pmf.shape != (self.n_contexts, alphabet + 1):
            raise CorruptStream(f"a pmf of shape {self.pmf.shape} for {self.n_contexts} contexts of {alphabet} symbols")
        if (self.pmf.sum(axis=1, dtype=np.int64) != 1 << PRECISION).any() or not self.pmf[:, -1].all():
            raise CorruptStream(f"a learned pmf without total 2^{PRECISION} or without escape")
        return self.pmf

    def place(self, symbols: Symbols, context: np.ndarray | None) -> tuple[Coded, Side]:
        check_alphabet(symbols.alphabet, "Trained")
        if self.pmf is not None and symbols.alphabet != self.pmf.shape[1] - 1:
            raise BadInput(
                f"symbols of an alphabet of {symbols.alphabet}; Trained was fitted to {self.pmf.shape[1] - 1}"
            )
        table = tables_below(context, self.n_contexts, "Trained")
        coded, rare = self._code(symbols, table, self._freq(symbols.alphabet))
        return coded, {"rare": rare}

    def tables(self, n: int, alphabet: int, context: np.ndarray | None, side: Side) -> tuple[Tables, np.ndarray | None]:
        return self._tables(self._freq(alphabet)), tables_below(context, self.n_contexts, "Trained")

    def restore(self, coded: Coded, alphabet: int, context: np.ndarray | None, side: Side) -> np.ndarray:
        return self._restore(coded.symbol, alphabet, side["rare"])


@dataclass(frozen=True)
class _LocationScale(EntropyModel):
    """Integers from a distribution whose scale, and mean to 1/32, the context tells for each of them.

    context: (n,) scale indices s = 0 … 127, scale = 2^(s/8 − 3); or (n, 2), the scale index and 32 × the mean.
    Symbols: int32 without bound. What lies beyond a table is escaped; above scale 16 the lowest bits are sent as they are.
    Tables are built from integers, so they are the same on every machine. Rate: about .002 bits a symbol above the entropy.
    Side: the escaped values as adaptive Elias-gamma codes, and the low bits.
    """

    distribution: ClassVar[str]

    side: ClassVar[Mapping[str, Leaf]] = {"escaped": Leaf("uint8", "indices"), "low_bits": Leaf("uint8", "codes")}

    def _context(self, context: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None, Located]:
        from ..kernels import pmf

        if context is None:
            raise BadConfig(f"{type(self).__name__} needs scale indices; tell the coder with given(context)")
        scale, mean = (context, None) if context.ndim == 1 else (context[:, 0], context[:, 1].astype(np.int32))
        return pmf.check_scale(scale), mean, pmf.located(self.distribution)

    def place(self, symbols: Symbols, context: np.ndarray | None) -> tuple[Coded, Side]:
        from ..kernels import pmf, rangecoder

        if symbols.alphabet:
            raise BadInput(f"{type(self).__name__} codes integers without bound, not an alphabet of {symbols.alphabet}")
        scale, mean, model = self._context(context)
        placed = pmf.locate(symbols.index, scale, mean, model)
        escaped = rangecoder.encode_integers(placed.escaped)
        return Coded(placed.symbol, placed.table, model.tables), {"escaped": escaped, "low_bits": placed.low_bits}

    def tables(self, n: int, alphabet: int, context: np.ndarray | None, side: Side) -> tuple[Tables, np.ndarray | None]:
        from ..kernels import pmf

        if alphabet:
            raise CorruptStream(f"an alphabet of {alphabet} for a model of integers without bound")
        scale, mean, model = self._context(context)
        table, n_bytes = pmf.located_tables(scale, mean, model)
        if side["low_bits"].size != n_bytes:
            raise CorruptStream(f"{side['low_bits'].size} bytes of low bits; the scales ask for {n_bytes}")
        return model.tables, table

    def restore(self, coded: Coded, alphabet: int, context: np.ndarray | None, side: Side) -> np.ndarray:
        from ..kernels import pmf, rangecoder

        scale, mean, model = self._context(context)
        assert coded.table is not None
        escaped = rangecoder.decode_integers(side["escaped"], pmf.count_escapes(coded.symbol, coded.table, model))
        return pmf.unlocate(pmf.Placed(coded.table, coded.symbol, escaped, side["low_bits"]), scale, mean, model)


@dataclass(frozen=True)
class GaussianTable(_LocationScale):
    """`_LocationScale` with normal distributions (Ballé et al. 2018, 1802.01436; Minnen et al. 2018, 1809.02736)."""

    distribution: ClassVar[str] = "gaussian"


@dataclass(frozen=True)
class LaplaceTable(_LocationScale):
    """`_LocationScale` with Laplace distributions; the scale is the mean absolute deviation."""

    distribution: ClassVar[str] = "laplace"
