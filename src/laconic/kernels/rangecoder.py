"""A range coder to be used from inside other kernels: binary decisions, intervals of a pmf, and equiprobable bits.

The functions are small and compiled into their callers, so that the state lives in registers:

    encoder   low, width, at = ENCODER;   low, width, at = encode_bit(low, width, at, out, p, 16, bit);   …
              at = finish(low, width, at, out)                              out[:at] is the code, if at ≤ out.size
    decoder   code, width, at = start(data);   bit, code, width, at = decode_bit(code, width, at, data, p, 16);   …
              ended(code, width, at, data)                                  False: damaged

Arithmetic: the interval [low, low + width) ⊂ [0, 2^64), width ≥ 2^32; 32 bits are shifted out whenever width falls
below, and a carry runs back through the bytes that are written. Probabilities have up to 16 bits, so what the division
of the width loses is below 2^−16 of a slot. A decoder reads zeros behind the end. `ended` compares the last bytes with
those that `finish` would have written, so the code of given decisions is unique; that another code was damaged into it,
only a checksum can tell.

No function reads or writes out of bounds on any input. An encoder that runs out of room goes on counting in `at`.

Helpers that take arrays are compiled with `_nrt=False`: reference counts would cost ten times what the coder does.

Source: G. Martin 1979 (range encoding); A. Said, "Introduction to arithmetic coding", HPL-2004-76. Adaptive
probabilities move by 1 / (n + 1.5) until n reaches a limit, as in M. Mahoney's lpaq.
"""

import numpy as np
from numba import njit

from laconic.core.errors import CorruptStream, claim

__all__ = [
    "ENCODER",
    "FRESH",
    "adapt",
    "decode_bit",
    "decode_bits",
    "decode_integers",
    "decode_interval",
    "decode_slot",
    "decode_symbols",
    "encode_bit",
    "encode_bits",
    "encode_integers",
    "encode_interval",
    "encode_symbols",
    "ended",
    "finish",
    "probability",
    "start",
    "with_room",
]

_U = np.uint64
_ONES = np.uint64(0xFFFFFFFFFFFFFFFF)
_MIN_WIDTH = np.uint64(1 << 32)
_32 = np.uint64(32)

ENCODER = (_U(0), _ONES, 0)  # low, width, at


@njit(cache=True, nogil=True, forceinline=True, _nrt=False)
def _carry(out, at):
    """Add one to the number that ends before byte `at`."""
    at = min(at, out.shape[0]) - 1
    while at >= 0:
        out[at] = (np.int64(out[at]) + 1) & 255
        if out[at] != 0:
            return
        at -= 1


@njit(cache=True, nogil=True, forceinline=True, _nrt=False)
def _shift_out(low, width, at, out):
    if width < _MIN_WIDTH:
        if at + 4 <= out.shape[0]:
            out[at] = low >> _U(56)
            out[at + 1] = (low >> _U(48)) & _U(255)
            out[at + 2] = (low >> _U(40)) & _U(255)
            out[at + 3] = (low >> _32) & _U(255)
        return low << _32, width << _32, at + 4
    return low, width, at


@njit(cache=True, nogil=True, forceinline=True, _nrt=False)
def _shift_in(code, width, at, data):
    if width < _MIN_WIDTH:
        word = _U(0)
        if at + 4 <= data.shape[0]:
            word = _U(data[at]) << _U(24) | _U(data[at + 1]) << _U(16) | _U(data[at + 2]) << _U(8) | _U(data[at + 3])
        else:
            for j in range(at, at + 4):
                word = word << _U(8) | (_U(data[j]) if j < data.shape[0] else _U(0))
        return code << _32 | word, width << _32, at + 4
    return code, width, at


@njit(cache=True, nogil=True, forceinline=True, _nrt=False)
def encode_bit(low, width, at, out, p, bits, bit):
    """Code `bit`, which is 1 with probability p / 2^bits; 0 < p < 2^bits, bits ≤ 16."""
    bound = (width >> _U(bits)) * _U(p)
    mask = _U(bit) - _U(1)  # as in `decode_bit`
    low += bound & mask
    width = (bound & ~mask) | ((width - bound) & mask)
    if low < (bound & mask):
        _carry(out, at)
    return _shift_out(low, width, at, out)


@njit(cache=True, nogil=True, forceinline=True, _nrt=False)
def decode_bit(code, width, at, data, p, bits):
    """(bit, code, width, at)."""
    bound = (width >> _U(bits)) * _U(p)
    bit = _U(code < bound)
    mask = bit - _U(1)  # a branch here would be mispredicted as often as the bit is uncertain
    code, width, at = _shift_in(code - (bound & mask), (bound & ~mask) | ((width - bound) & mask), at, data)
    return np.int64(bit), code, width, at


@njit(cache=True, nogil=True, forceinline=True, _nrt=False)
def encode_interval(low, width, at, out, begin, freq, bits):
    """Code a symbol whose slots are begin … begin + freq − 1 of 2^bits; freq > 0, bits ≤ 16.

    At up to 24 bits it is as decodable, and the division loses 1e-4 bits a symbol.
    """
    step = width >> _U(bits)
    bound = step * _U(begin)
    low += bound
    if low < bound:
        _carry(out, at)
    return _shift_out(low, step * _U(freq), at, out)


@njit(cache=True, nogil=True, forceinline=True, _nrt=False)
def decode_slot(code, width, bits):
    """The slot, below 2^bits on any input; find the symbol that holds it, then call `decode_interval` with it."""
    return np.int64(min(code // (width >> _U(bits)), (_U(1) << _U(bits)) - _U(1)))


@njit(cache=True, nogil=True, forceinline=True, _nrt=False)
def decode_interval(code, width, at, data, begin, freq, bits):
    """(code, width, at) behind the symbol with these slots."""
    step = width >> _U(bits)
    return _shift_in(code - step * _U(begin), step * _U(freq), at, data)


@njit(cache=True, nogil=True, forceinline=True, _nrt=False)
def encode_bits(low, width, at, out, value, n_bits):
    """Code the low n_bits ≤ 32 of `value`, each worth one bit."""
    if n_bits > 16:
        low, width, at = encode_interval(low, width, at, out, _U(value) >> _U(16) & _U(0xFFFF), 1, n_bits - 16)
        n_bits = 16
    if n_bits > 0:
        low, width, at = encode_interval(low, width, at, out, _U(value) & ((_U(1) << _U(n_bits)) - _U(1)), 1, n_bits)
    return low, width, at


@njit(cache=True, nogil=True, forceinline=True, _nrt=False)
def decode_bits(code, width, at, data, n_bits):
    """(value, code, width, at)."""
    value = 0
    if n_bits > 16:
        value = decode_slot(code, width, n_bits - 16)
        code, width, at = decode_interval(code, width, at, data, value, 1, n_bits - 16)
        n_bits = 16
    if n_bits > 0:
        low = decode_slot(code, width, n_bits)
        code, width, at = decode_interval(code, width, at, data, low, 1, n_bits)
        value = value << n_bits | low
    return value, code, width, at


@njit(cache=True, nogil=True, forceinline=True, _nrt=False)
def _ending(low, width):
    """The number in [low, low + width) with the fewest leading bytes: (number mod 2^64, bytes, whether it carries)."""
    value, n, rest = _U(0), 0, _ONES
    while value - low >= width:  # ends at n = 4, since width ≥ 2^32
        n += 1
        rest >>= _U(8)
        value = (low + rest) & ~rest
    return value, n, value < low


@njit(cache=True, nogil=True, forceinline=True, _nrt=False)
def finish(low, width, at, out):
    """Write the last 0 to 4 bytes; returns the length of the code, which is in `out` if it is no longer than that."""
    value, n, carries = _ending(low, width)
    if carries:
        _carry(out, at)
    for j in range(n):
        if at + j < out.shape[0]:
            out[at + j] = (value >> _U(56 - 8 * j)) & _U(255)
    return at + n


@njit(cache=True, nogil=True, forceinline=True, _nrt=False)
def start(data):
    """(code, width, at) of a decoder."""
    code = _U(0)
    for j in range(8):
        code = code << _U(8) | (_U(data[j]) if j < data.shape[0] else _U(0))
    return code, _ONES, 8


@njit(cache=True, nogil=True, forceinline=True, _nrt=False)
def ended(code, width, at, data):
    """Whether `data` ends as `finish` would have ended it."""
    n = data.shape[0] - (at - 8)
    if n < 0 or n > 4 or code >= width:
        return False
    value = _U(0)
    for j in range(n):
        value |= _U(data[at - 8 + j]) << _U(56 - 8 * j)
    again, length, _ = _ending(value - code, width)
    return again == value and length == n


# An adaptive probability is a uint32: 22 bits of P(1), then 10 bits of how often it was adapted.
FRESH = np.uint32(1 << 31)
_RATE = np.array([65536 * 2 // (2 * n + 3) for n in range(1024)], dtype=np.int64)


@njit(cache=True, nogil=True, forceinline=True, _nrt=False)
def probability(state):
    """P(1) in 16 bits, never 0 or 1."""
    return min(max(np.int64(state) >> 16, 1), 65535)  # signed, because Numba mixes signs as floats


@njit(cache=True, nogil=True, forceinline=True, _nrt=False)
def adapt(state, bit, limit):
    """Move toward `bit` by 1 / (n + 1.5); n counts up to `limit` ≤ 1023."""
    n = np.int64(state) & 1023
    p = np.int64(state) >> 10
    target = 4194303 if bit else 0
    p += ((target - p) * _RATE[n]) >> 16
    return np.uint32(p << 10 | min(n + 1, limit))


@njit(cache=True, nogil=True)
def _encode_adaptive(index, context, n_contexts, depth, order, limit, out):
    """Code symbols below 2^depth as paths in binary trees of adaptive probabilities, a tree for every context.

    context: (n,) integers below n_contexts, or None. order: 1 to add the symbol before to the context, else 0.
    Returns the length in bytes; the code is in `out` if that is long enough.
    """
    trees = np.full((n_contexts << (depth * order), 1 << depth), FRESH, np.uint32)
    low, width, at = ENCODER
    before = 0
    for i in range(index.shape[0]):
        symbol = np.int64(index[i])
        tree = before if context is None else (np.int64(context[i]) << (depth * order)) + before
        node = 1
        for b in range(depth - 1, -1, -1):
            bit = (symbol >> b) & 1
            state = trees[tree, node]
            low, width, at = encode_bit(low, width, at, out, probability(state), 16, bit)
            trees[tree, node] = adapt(state, bit, limit)
            node = node << 1 | bit
        before = symbol * order
    return finish(low, width, at, out)


@njit(cache=True, nogil=True)
def _decode_adaptive(data, context, n_contexts, depth, order, limit, index):
    """The inverse of `_encode_adaptive` into `index`; False where `data` does not end where the symbols do."""
    trees = np.full((n_contexts << (depth * order), 1 << depth), FRESH, np.uint32)
    code, width, at = start(data)
    before = 0
    for i in range(index.shape[0]):
        tree = before if context is None else (np.int64(context[i]) << (depth * order)) + before
        node = 1
        for _ in range(depth):
            state = trees[tree, node]
            bit, code, width, at = decode_bit(code, width, at, data, probability(state), 16)
            trees[tree, node] = adapt(state, bit, limit)
            node = node << 1 | bit
        symbol = node - (1 << depth)
        index[i] = symbol
        before = symbol * order
    return ended(code, width, at, data)


_CLASSES = 33  # bit lengths less one of 1 + |zigzag| of an int32


@njit(cache=True, nogil=True)
def _encode_gamma(index, context, n_contexts, order, limit, out):
    """Code int32 as adaptive Elias-gamma: the length in unary, two more bits, all adaptive; the rest as it is.

    context, order, result: as of `_encode_adaptive`; the context of order 1 is the length of the symbol before.
    """
    n_before = 1 + (_CLASSES - 1) * order
    unary = np.full((n_contexts * n_before, _CLASSES), FRESH, np.uint32)
    tops = np.full((n_contexts * n_before, _CLASSES * 4), FRESH, np.uint32)
    low, width, at = ENCODER
    before = 0
    for i in range(index.shape[0]):
        v = np.int64(index[i])
        value = ((v << 1) ^ (v >> 63)) + 1
        c = before if context is None else np.int64(context[i]) * n_before + before
        length = 0
        while value >> (length + 1):
            state = unary[c, length]
            low, width, at = encode_bit(low, width, at, out, probability(state), 16, 1)
            unary[c, length] = adapt(state, 1, limit)
            length += 1
        if length < _CLASSES - 1:
            state = unary[c, length]
            low, width, at = encode_bit(low, width, at, out, probability(state), 16, 0)
            unary[c, length] = adapt(state, 0, limit)
        node = 1
        left = length
        while left > 0 and node < 4:
            left -= 1
            bit = (value >> left) & 1
            state = tops[c, 4 * length + node]
            low, width, at = encode_bit(low, width, at, out, probability(state), 16, bit)
            tops[c, 4 * length + node] = adapt(state, bit, limit)
            node = node << 1 | bit
        low, width, at = encode_bits(low, width, at, out, value & ((1 << left) - 1), left)
        before = length * order
    return finish(low, width, at, out)


@njit(cache=True, nogil=True)
def _decode_gamma(data, context, n_contexts, order, limit, index):
    """The inverse of `_encode_gamma` into int32 `index`; False where `data` ends elsewhere or a value is no int32."""
    n_before = 1 + (_CLASSES - 1) * order
    unary = np.full((n_contexts * n_before, _CLASSES), FRESH, np.uint32)
    tops = np.full((n_contexts * n_before, _CLASSES * 4), FRESH, np.uint32)
    code, width, at = start(data)
    before = 0
    for i in range(index.shape[0]):
        c = before if context is None else np.int64(context[i]) * n_before + before
        length = 0
        while length < _CLASSES - 1:
            state = unary[c, length]
            bit, code, width, at = decode_bit(code, width, at, data, probability(state), 16)
            unary[c, length] = adapt(state, bit, limit)
            if bit == 0:
                break
            length += 1
        node, left, value = 1, length, 1
        while left > 0 and node < 4:
            left -= 1
            state = tops[c, 4 * length + node]
            bit, code, width, at = decode_bit(code, width, at, data, probability(state), 16)
            tops[c, 4 * length + node] = adapt(state, bit, limit)
            node = node << 1 | bit
            value = value << 1 | bit
        rest, code, width, at = decode_bits(code, width, at, data, left)
        value = (value << left | rest) - 1
        if value >> 32:
            return False
        index[i] = (value >> 1) ^ -(value & 1)
        before = length * order
    return ended(code, width, at, data)


def with_room(n_bytes, kernel):
    """The code that `kernel(out)` writes, given a guess of its length; run again where the guess was too low."""
    out = np.empty(n_bytes, np.uint8)
    length = kernel(out)
    if length > n_bytes:
        out = np.empty(length, np.uint8)
        kernel(out)
    return out[:length]


def encode_symbols(
    index: np.ndarray,
    depth: int,
    context: np.ndarray | None = None,
    n_contexts: int = 1,
    order: int = 0,
    limit: int = 255,
) -> np.ndarray:
    """Adaptive code of unsigned symbols (n,) below 2^depth: uint8. context: (n,) unsigned below n_contexts, or None."""
    guess = index.size * depth // 8 + 64
    return with_room(guess, lambda out: _encode_adaptive(index, context, n_contexts, depth, order, limit, out))


def decode_symbols(
    data: np.ndarray,
    n: int,
    depth: int,
    context: np.ndarray | None = None,
    n_contexts: int = 1,
    order: int = 0,
    limit: int = 255,
) -> np.ndarray:
    """The inverse of `encode_symbols`: uint8, or uint16 above a depth of 8. Raises CorruptStream."""
    dtype = np.uint8 if depth <= 8 else np.uint16
    claim(n * np.dtype(dtype).itemsize, "entropy-coded symbols")
    index = np.empty(n, dtype)
    if not _decode_adaptive(np.array(data), context, n_contexts, depth, order, limit, index):
        raise CorruptStream("an adaptive code that does not end where its symbols do")
    return index


def encode_integers(
    index: np.ndarray,
    context: np.ndarray | None = None,
    n_contexts: int = 1,
    order: int = 0,
    limit: int = 255,
) -> np.ndarray:
    """Adaptive Elias-gamma code of int32 (n,): uint8. context: (n,) unsigned below n_contexts, or None."""
    return with_room(index.size + 64, lambda out: _encode_gamma(index, context, n_contexts, order, limit, out))


def decode_integers(
    data: np.ndarray,
    n: int,
    context: np.ndarray | None = None,
    n_contexts: int = 1,
    order: int = 0,
    limit: int = 255,
) -> np.ndarray:
    """The inverse of `encode_integers`: int32. Raises CorruptStream."""
    claim(4 * n, "entropy-coded integers")
    index = np.empty(n, np.int32)
    if not _decode_gamma(np.array(data), context, n_contexts, order, limit, index):
        raise CorruptStream("an adaptive code of integers that does not end where they do")
    return index
