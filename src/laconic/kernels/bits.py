"""Bit packing of 1 to 16 bits, and mixed radix for alphabets that are no power of two.

Layouts (little-endian, lowest bit first, no header; the number of symbols is the caller's to keep):

    bits    symbol i lies at bits i·b … i·b + b − 1
    radix   words of b bits, word w at bits w·b …; a word holds g symbols as Σ s_j A^(g−1−j), 2^b ≥ A^g. The last word
            may hold fewer symbols, in as few bits as these need.

Bits behind the last symbol are zero, so that exactly one byte string stands for a sequence of symbols.
"""

from functools import lru_cache
from math import log2
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from laconic.core.errors import BadConfig, BadInput, CorruptStream, claim

__all__ = [
    "MAX_ALPHABET",
    "RadixWord",
    "load64",
    "pack",
    "pack_plain",
    "pack_radix",
    "packed_bytes",
    "radix_bytes",
    "radix_word",
    "store64",
    "unpack",
    "unpack_plain",
    "unpack_radix",
]

MAX_ALPHABET = 1 << 16
_WORD_BITS = 128
_TOLERANCE = 0.005  # a radix word may be longer than g log2 A by this much, relatively

_U64 = np.uint64
_LOW32 = np.uint64(0xFFFFFFFF)


@intrinsic
def load64(typingctx, data, at):
    """The uint64 at byte `at` of a uint8 array; the caller sees to it that 8 bytes are there."""

    def codegen(context, builder, sig, args):
        base = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.load(builder.bitcast(builder.gep(base, [args[1]]), ir.IntType(64).as_pointer()), align=1)

    return types.uint64(data, types.intp), codegen


@intrinsic
def store64(typingctx, data, at, word):
    """Write a uint64 to bytes `at` … `at` + 7 of a uint8 array; the caller sees to it that they exist."""

    def codegen(context, builder, sig, args):
        base = context.make_array(sig.args[0])(context, builder, args[0]).data
        builder.store(args[2], builder.bitcast(builder.gep(base, [args[1]]), ir.IntType(64).as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(data, types.intp, types.uint64), codegen


def packed_bytes(n: int, bits: int) -> int:
    """Length of `n` packed symbols."""
    return (n * bits + 7) // 8


@njit(cache=True, nogil=True)
def _pack(index, bits, out):
    """`out` has 16 bytes more than it needs: words are stored whole and the next one overwrites what is too much."""
    n = index.shape[0]
    n_groups = n // 8  # 8 symbols end on a byte
    if bits <= 8:
        for g in range(n_groups):
            word = _U64(0)
            for j in range(8):
                word |= _U64(index[8 * g + j]) << _U64(j * bits)
            store64(out, g * bits, word)
    else:
        half = _U64(4 * bits)
        for g in range(n_groups):
            low = high = _U64(0)
            for j in range(4):
                low |= _U64(index[8 * g + j]) << _U64(j * bits)
                high |= _U64(index[8 * g + 4 + j]) << _U64(j * bits)
            if bits < 16:
                low |= high << half
                high >>= _U64(64) - half
            store64(out, g * bits, low)
            store64(out, g * bits + 8, high)
    at, word, fill = n_groups * bits, _U64(0), 0
    for i in range(8 * n_groups, n):
        word |= _U64(index[i]) << _U64(fill)
        fill += bits
        while fill >= 8:
            out[at] = np.uint8(word & _U64(255))
            word >>= _U64(8)
            fill -= 8
            at += 1
    if fill > 0:
        out[at] = np.uint8(word)


@njit(cache=True, nogil=True)
def _unpack(data, bits, out):
    """`data` is exactly as long as `out` needs. Returns the bits behind the last symbol, which must be 0."""
    n = out.shape[0]
    mask = _U64((1 << bits) - 1)
    half = _U64(4 * bits)
    g = 0
    # A group is read with whole words, which may reach past its own bytes but never past the last byte of `data`.
    while 8 * (g + 1) <= n and g * bits + 16 <= data.shape[0]:
        low = load64(data, g * bits)
        if bits <= 8:
            for j in range(8):
                out[8 * g + j] = (low >> _U64(j * bits)) & mask
        else:
            high = load64(data, g * bits + 8)
            if bits < 16:
                high = (high << (_U64(64) - half)) | (low >> half)
            for j in range(4):
                out[8 * g + j] = (low >> _U64(j * bits)) & mask
                out[8 * g + 4 + j] = (high >> _U64(j * bits)) & mask
        g += 1
    at, word, fill = g * bits, _U64(0), 0
    for i in range(8 * g, n):
        while fill < bits:
            word |= _U64(data[at]) << _U64(fill)
            fill += 8
            at += 1
        out[i] = word & mask
        word >>= _U64(bits)
        fill -= bits
    return word


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 16:
        raise BadConfig(f"{bits} bits a symbol; 1 to 16 can be packed")


def _check_index(index: np.ndarray, alphabet: int) -> np.ndarray:
    index = np.ascontiguousarray(index).reshape(-1)
    if index.dtype not in (np.uint8, np.uint16, np.uint32):
        raise BadInput(f"symbols are {index.dtype}; uint8, uint16 or uint32 are packed")
    if index.size and (top := int(index.max())) >= alphabet:
        raise BadInput(f"symbol {top} in an alphabet of {alphabet}")
    return index


def pack(index: np.ndarray, bits: int) -> np.ndarray:
    """Symbols below 2^bits -> uint8, shape (packed_bytes(n, bits),). index: uint8, uint16 or uint32, any shape."""
    _check_bits(bits)
    index = _check_index(index, 1 << bits)
    out = np.empty(packed_bytes(index.size, bits) + 16, np.uint8)
    _pack(index, bits, out)
    return out[:-16]


def unpack(data: np.ndarray, bits: int, n: int) -> np.ndarray:
    """The `n` symbols of `pack`; uint8 up to 8 bits, else uint16.

    Raises CorruptStream: `data` (uint8) has another length than `n` symbols take, or bits behind the last one are set.
    """
    _check_bits(bits)
    if data.size != packed_bytes(n, bits):
        raise CorruptStream(f"{n:,} symbols of {bits} bits in {data.size:,} bytes; {packed_bytes(n, bits):,} are right")
    dtype = np.uint8 if bits <= 8 else np.uint16
    claim(n * np.dtype(dtype).itemsize, "packed symbols")
    out = np.empty(n, dtype)
    if _unpack(np.array(data), bits, out):
        raise CorruptStream("bits are set behind the last packed symbol")
    return out


def pack_plain(index: np.ndarray, bits: int) -> np.ndarray:
    """`pack` in NumPy, one row of bits a symbol."""
    rows = (index.reshape(-1, 1).astype(np.uint32) >> np.arange(bits, dtype=np.uint32)) & 1
    return np.packbits(rows.astype(np.uint8).reshape(-1), bitorder="little")


def unpack_plain(data: np.ndarray, bits: int, n: int) -> np.ndarray:
    """`unpack` in NumPy."""
    rows = np.unpackbits(data, bitorder="little")[: n * bits].reshape(n, bits).astype(np.uint32)
    return (rows << np.arange(bits, dtype=np.uint32)).sum(axis=1).astype(np.uint8 if bits <= 8 else np.uint16)


class RadixWord(NamedTuple):
    """How an alphabet is laid into words: symbols a word, bits a word, symbols to a 32-bit digit."""

    symbols: int
    bits: int
    per_digit: int


@lru_cache
def radix_word(alphabet: int) -> RadixWord:
    """The shortest word within .5 % of log2 A bits a symbol; at most 211 bits are needed for A ≤ 65536."""
    if not 2 <= alphabet <= MAX_ALPHABET:
        raise BadConfig(f"alphabet of {alphabet}; 2 to {MAX_ALPHABET} can be packed")
    per_digit = 1
    while alphabet ** (per_digit + 1) <= 1 << 32:
        per_digit += 1
    symbols = 1
    while (bits := (alphabet**symbols - 1).bit_length()) > (1 + _TOLERANCE) * symbols * log2(alphabet):
        symbols += 1
    symbols *= max(1, _WORD_BITS // bits)  # longer words waste no more, and their loops run twice as fast
    return RadixWord(symbols, (alphabet**symbols - 1).bit_length(), per_digit)


def radix_bytes(n: int, alphabet: int) -> int:
    """Length of `n` symbols packed in mixed radix."""
    word = radix_word(alphabet)
    full, rest = divmod(n, word.symbols)
    return (full * word.bits + (alphabet**rest - 1).bit_length() + 7) // 8


@njit(cache=True, nogil=True)
def _pack_radix(index, alphabet, symbols, bits, last_bits, per_digit, out):
    n = index.shape[0]
    radix = _U64(alphabet)
    n_limbs = (bits + 31) // 32
    limbs = np.zeros(n_limbs, np.uint64)
    at, stream, fill, i = 0, _U64(0), 0, 0
    while i < n:
        end = min(n, i + symbols)
        limbs[:] = 0
        while i < end:  # word = word · A^k + the next k symbols read as one number
            digit, power, stop = _U64(0), _U64(1), min(end, i + per_digit)
            while i < stop:
                digit = digit * radix + _U64(index[i])
                power *= radix
                i += 1
            for j in range(n_limbs):
                digit += limbs[j] * power
                limbs[j] = digit & _LOW32
                digit >>= _U64(32)
        left = bits if end % symbols == 0 else last_bits
        for j in range((left + 31) // 32):
            stream |= limbs[j] << _U64(fill)
            fill += min(left, 32)
            left -= 32
            while fill >= 8:
                out[at] = np.uint8(stream & _U64(255))
                stream >>= _U64(8)
                fill -= 8
                at += 1
    if fill > 0:
        out[at] = np.uint8(stream)


@njit(cache=True, nogil=True, error_model="numpy")
def _unpack_radix(data, alphabet, symbols, bits, last_bits, per_digit, out):
    """Returns False where a word is out of range or a bit behind the last one is set."""
    n = out.shape[0]
    radix = _U64(alphabet)
    limbs = np.zeros((bits + 31) // 32, np.uint64)
    at, stream, fill, i = 0, _U64(0), 0, 0
    while i < n:
        end = min(n, i + symbols)
        left = bits if end - i == symbols else last_bits
        n_limbs = (left + 31) // 32
        for j in range(n_limbs):
            width = min(left, 32)
            while fill < width:
                stream |= _U64(data[at]) << _U64(fill)
                fill += 8
                at += 1
            limbs[j] = stream & ((_U64(1) << _U64(width)) - _U64(1))
            stream >>= _U64(width)
            fill -= width
            left -= 32
        k = end
        while k > i:  # the last symbols of a word are its lowest digits
            stop = max(i, k - ((k - i - 1) % per_digit + 1))
            power = _U64(1)
            for _ in range(k - stop):
                power *= radix
            rest = _U64(0)
            for j in range(n_limbs - 1, -1, -1):
                value = (rest << _U64(32)) | limbs[j]
                quotient = value // power
                limbs[j] = quotient
                rest = value - quotient * power
            while n_limbs > 0 and limbs[n_limbs - 1] == 0:
                n_limbs -= 1
            while k > stop:
                k -= 1
                quotient = rest // radix
                out[k] = rest - quotient * radix
                rest = quotient
        if n_limbs > 0:
            return False
        i = end
    return stream == 0


def _last_bits(n: int, alphabet: int, word: RadixWord) -> int:
    return (alphabet ** (n % word.symbols) - 1).bit_length()


def pack_radix(index: np.ndarray, alphabet: int) -> np.ndarray:
    """Symbols below `alphabet` -> uint8, shape (radix_bytes(n, alphabet),). index: unsigned, any shape."""
    word = radix_word(alphabet)
    index = _check_index(index, alphabet)
    out = np.empty(radix_bytes(index.size, alphabet), np.uint8)
    _pack_radix(index, alphabet, word.symbols, word.bits, _last_bits(index.size, alphabet, word), word.per_digit, out)
    return out


def unpack_radix(data: np.ndarray, alphabet: int, n: int) -> np.ndarray:
    """The `n` symbols of `pack_radix`; uint8 up to an alphabet of 256, else uint16.

    Raises CorruptStream: a wrong length, a word that holds no g symbols, or bits behind the last one.
    """
    word = radix_word(alphabet)
    if data.size != (right := radix_bytes(n, alphabet)):
        raise CorruptStream(f"{n:,} symbols of an alphabet of {alphabet} in {data.size:,} bytes; {right:,} are right")
    dtype = np.uint8 if alphabet <= 256 else np.uint16
    claim(n * np.dtype(dtype).itemsize, "packed symbols")
    out = np.empty(n, dtype)
    args = (word.symbols, word.bits, _last_bits(n, alphabet, word), word.per_digit)
    if not _unpack_radix(np.array(data), alphabet, *args, out):
        raise CorruptStream(f"a packed word is out of the range of an alphabet of {alphabet}")
    return out
