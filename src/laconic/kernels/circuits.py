"""Probabilistic circuits in integers: messages along a tree of hidden variables, and the range coder under what they say.

A message is M integers a row, the largest in [2^23, 2^24) and none below 1, kept as float32, which holds them exactly. An edge
is M × M integers, rows of the parent's state with the exact total 2^20; a variable's symbols are cumulative frequencies with
the exact total 2^22 in every state. A message times an edge is a sum of at most 256 products below 2^44: float64 is exact to
2^53, so the product is the same integer in any order, with or without fused operations, on every machine and thread count; BLAS
may do it. After every product a message is brought back into its range by a shift.

The pmf of a variable has 2^24 slots: one a symbol, the rest as Σ_z w(z) F_z(s) / Σ_z w(z) 2^22 says, divided as integers. A
decoder finds the symbol by halving, so neither end ever builds a pmf.
"""

import numpy as np
from numba import njit

from laconic.kernels import rangecoder as rc

__all__ = ["EDGE_BITS", "MESSAGE_BITS", "SYMBOL_BITS", "add_rows", "code", "code_plain", "decode", "decoder", "encoder",
           "ended", "finish", "joined", "observe", "scaled", "scaled_plain", "shares"]  # fmt: skip

EDGE_BITS = 20
SYMBOL_BITS = 22
MESSAGE_BITS = 24
SLOT_BITS = 24
_WEIGHT_BITS = 17  # so that Σ w F, below 2^39, times 2^24 is below 2^63
_TOP = 1 << MESSAGE_BITS
_U = np.uint64


@njit(cache=True, nogil=True)
def add_rows(place, rows, out):
    """out[place[i]] += rows[i] for every i in turn. place: (n,) int64; rows: (n, m) float32; out: (k, m) float32."""
    for i in range(place.shape[0]):
        at = place[i]
        for j in range(rows.shape[1]):
            out[at, j] += rows[i, j]


@njit(cache=True, nogil=True)
def _shares(table, codes, total, out):
    for r in range(codes.shape[0]):
        whole, best = 0, 0
        for j in range(codes.shape[1]):
            value = table[codes[r, j]]
            whole += value
            if value > table[codes[r, best]]:
                best = j
        left = total
        for j in range(codes.shape[1]):
            share = 1 + table[codes[r, j]] * (total - codes.shape[1]) // whole
            out[r, j] = share
            left -= share
        out[r, best] += left


def shares(table: np.ndarray, codes: np.ndarray, bits: int) -> np.ndarray:
    """Rows of integers ≥ 1 with the total 2^bits, as the values that codes stand for: int64, shape of `codes`.

    table: (256,) int64 below 2^40, positive. codes: (n, k) uint8, k ≤ 2^16.
    """
    out = np.empty(codes.shape, np.int64)
    _shares(table, np.ascontiguousarray(codes), 1 << bits, out)
    return out


@njit(cache=True, nogil=True, forceinline=True, _nrt=False)
def _settle(value, row, out):
    """A row of integers shifted until its largest has MESSAGE_BITS bits."""
    top = np.int64(1)
    for j in range(value.shape[0]):
        top = max(top, value[j])
    down = 0
    while top >> down >= _TOP:
        down += 1
    up = 0
    while top << (up + 1) < _TOP:
        up += 1
    for j in range(value.shape[0]):
        out[row, j] = max((value[j] >> down) << up, 1)


@njit(cache=True, nogil=True)
def scaled(product, out):
    """Message times edge, (n, M) float64 that hold integers below 2^53, as messages into `out`: (n, M) float32."""
    value = np.empty(product.shape[1], np.int64)
    for i in range(product.shape[0]):
        for j in range(product.shape[1]):
            value[j] = np.int64(product[i, j])
        _settle(value, i, out)


def scaled_plain(product: np.ndarray, out: np.ndarray) -> None:
    """`scaled` in NumPy."""
    value = product.astype(np.int64)
    bits = np.array([max(int(row.max()), 1).bit_length() for row in value])[:, None]
    out[:] = np.maximum(value >> np.maximum(bits - MESSAGE_BITS, 0) << np.maximum(MESSAGE_BITS - bits, 0), 1)


@njit(cache=True, nogil=True)
def joined(message, other):
    """message ← message ⊙ other, both (n, M) float32 messages."""
    value = np.empty(message.shape[1], np.int64)
    for i in range(message.shape[0]):
        for j in range(message.shape[1]):
            value[j] = np.int64(message[i, j]) * np.int64(other[i, j])
        _settle(value, i, message)


@njit(cache=True, nogil=True)
def observe(message, cumulative, symbol):
    """message ← message ⊙ p(symbol | z). cumulative: (K + 1, M) uint32; symbol: (n,) uint8 or uint16 below K."""
    value = np.empty(message.shape[1], np.int64)
    for i in range(message.shape[0]):
        s = np.int64(symbol[i])
        for j in range(message.shape[1]):
            freq = np.int64(cumulative[s + 1, j]) - np.int64(cumulative[s, j])
            value[j] = np.int64(message[i, j]) * freq
        _settle(value, i, message)


@njit(cache=True, nogil=True, forceinline=True, _nrt=False)
def _weigh(message, i, weight):
    """A message's row as weights with a sum below 2^17, and that sum in units of 2^−22."""
    total = np.int64(0)
    for j in range(weight.shape[0]):
        total += np.int64(message[i, j])
    down = 0
    while total >> down >= 1 << _WEIGHT_BITS:
        down += 1
    total = 0
    for j in range(weight.shape[0]):
        weight[j] = np.uint32(np.int64(message[i, j]) >> down)
        total += np.int64(weight[j])
    return _U(total) << _U(SYMBOL_BITS)


@njit(cache=True, nogil=True, forceinline=True, _nrt=False)
def _begin(weight, cumulative, s, whole):
    """The first slot of symbol s; of s = K, the number of slots."""
    mass = _U(0)
    for j in range(weight.shape[0]):
        mass += _U(weight[j]) * _U(cumulative[s, j])
    n_symbols = cumulative.shape[0] - 1
    return np.int64(s) + np.int64(mass * _U((1 << SLOT_BITS) - n_symbols) // whole)


def encoder() -> np.ndarray:
    """The state of an encoder: low, width, at; (3,) uint64."""
    return np.array(rc.ENCODER, np.uint64)


@njit(cache=True, nogil=True)
def code(state, out, message, cumulative, symbol):
    """Code one variable of every row. message: (n, M); cumulative, symbol: as of `observe`. out: 4 bytes a symbol suffice."""
    weight = np.empty(message.shape[1], np.uint32)
    low, width, at = state[0], state[1], np.int64(state[2])
    for i in range(message.shape[0]):
        whole = _weigh(message, i, weight)
        s = np.int64(symbol[i])
        begin = _begin(weight, cumulative, s, whole)
        end = _begin(weight, cumulative, s + 1, whole)
        low, width, at = rc.encode_interval(low, width, at, out, begin, end - begin, SLOT_BITS)
    state[0], state[1], state[2] = low, width, at


@njit(cache=True, nogil=True)
def finish(state, out):
    """Length of the code, which is in `out`."""
    return rc.finish(state[0], state[1], np.int64(state[2]), out)


@njit(cache=True, nogil=True)
def decoder(data):
    """The state of a decoder: code, width, at; (3,) uint64."""
    state = np.empty(3, np.uint64)
    state[0], state[1], at = rc.start(data)
    state[2] = at
    return state


@njit(cache=True, nogil=True)
def decode(state, data, message, cumulative, symbol):
    """The inverse of `code`, into `symbol`."""
    weight = np.empty(message.shape[1], np.uint32)
    code, width, at = state[0], state[1], np.int64(state[2])
    for i in range(message.shape[0]):
        whole = _weigh(message, i, weight)
        slot = rc.decode_slot(code, width, SLOT_BITS)
        low, high = np.int64(0), np.int64(cumulative.shape[0] - 1)
        begin, end = np.int64(0), np.int64(1 << SLOT_BITS)
        while high - low > 1:
            middle = (low + high) >> 1
            edge = _begin(weight, cumulative, middle, whole)
            if edge <= slot:
                low, begin = middle, edge
            else:
                high, end = middle, edge
        symbol[i] = low
        code, width, at = rc.decode_interval(code, width, at, data, begin, end - begin, SLOT_BITS)
    state[0], state[1], state[2] = code, width, at


@njit(cache=True, nogil=True)
def ended(state, data):
    """Whether `data` ends where the symbols do."""
    return rc.ended(state[0], state[1], np.int64(state[2]), data)


def code_plain(message: np.ndarray, cumulative: np.ndarray, symbol: np.ndarray) -> list[tuple[int, int]]:
    """The (first slot, slots) that `code` gives each row's symbol, in Python's integers."""
    found = []
    for row, s in zip(message.astype(np.int64).tolist(), symbol.tolist(), strict=True):
        down = max(sum(row).bit_length() - _WEIGHT_BITS, 0)
        weight = [w >> down for w in row]
        whole = sum(weight) << SYMBOL_BITS

        def begin(k: int, weight: list[int] = weight, whole: int = whole) -> int:
            mass = sum(w * c for w, c in zip(weight, cumulative[k].tolist(), strict=True))
            return k + mass * ((1 << SLOT_BITS) - len(cumulative) + 1) // whole

        found.append((begin(s), begin(s + 1) - begin(s)))
    return found
