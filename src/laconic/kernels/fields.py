"""Bit fields of numbers: bytes of equal significance together, and differences to another array as tokens and rest bits.

    turned    a float's pattern turned left by one bit: exponent, mantissa, sign; so that whole bytes are exponent
    ordered   a pattern as an integer that grows with the number: ~u for negative numbers, u with its high bit set for others
    z         the difference of two ordered patterns modulo 2^w, signs folded: 0, −1, 1, −2, … → 0, 1, 2, 3, …
    token     z below 16; else 16 + 4 (k − 5) + the two bits behind the leading one, k the length of z in bits
    rest      the k − 3 low bits, least significant first

Differences are taken in 64 bits whatever the width, so that there is one loop to compile. All of it is a bijection of
patterns, so that NaN and both zeros survive.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from laconic.core.errors import CorruptStream, claim

_u = np.uint64
_0, _1 = _u(0), _u(1)
_LOOP = {"cache": True, "nogil": True}


@njit(**_LOOP)
def _split(words, turned, planes):
    width = planes.shape[0]
    for k in range(width):
        down = 8 * k
        for i in range(words.size):
            v = words[i]
            if turned:
                v = v << 1 | v >> 8 * width - 1
            planes[k, i] = v >> down & 255


@njit(**_LOOP)
def _join(planes, turned, words):
    width = planes.shape[0]
    for i in range(words.size):
        words[i] = planes[0, i]
    for k in range(1, width):
        up = 8 * k
        for i in range(words.size):
            words[i] |= words.dtype.type(planes[k, i]) << up
    if turned:
        for i in range(words.size):
            words[i] = words[i] >> 1 | words[i] << 8 * width - 1


def split(words: np.ndarray, turned: bool) -> np.ndarray:
    """words: (n,) unsigned of b bytes -> (b, n) uint8, the least significant byte first."""
    planes = np.empty((words.dtype.itemsize, words.size), np.uint8)
    _split(words, turned, planes)
    return planes


def join(planes: np.ndarray, turned: bool) -> np.ndarray:
    """The inverse of `split`."""
    words = np.empty(planes.shape[1], f"u{planes.shape[0]}")
    _join(planes, turned, words)
    return words


def split_plain(words: np.ndarray, turned: bool) -> np.ndarray:
    """`split` as its definition."""
    width = words.dtype.itemsize
    v = words << 1 | words >> 8 * width - 1 if turned else words
    return np.stack([(v >> 8 * k & 255).astype(np.uint8) for k in range(width)])


@njit(**_LOOP)
def _ordered(v, is_float, width, mask):
    if not is_float:
        return v
    return ~v & mask if v >> _u(width - 1) else v | _1 << _u(width - 1)


@njit(**_LOOP)
def _length(z):
    """Bits of z up to the leading one."""
    n = 0
    for step in (32, 16, 8, 4, 2, 1):
        if z >> _u(step):
            z >>= _u(step)
            n += step
    return n + np.int64(z)


@njit(**_LOOP)
def _tokens(words, base, is_float, width, token, rest):
    """Fill `token` and `rest`; returns the bits of rest."""
    mask = ~_0 >> _u(64 - width)
    acc, held, at = _0, 0, 0
    for i in range(words.size):
        d = _ordered(words[i], is_float, width, mask) - _ordered(base[i], is_float, width, mask)
        d &= mask
        z = (d << _1 ^ (mask if d >> _u(width - 1) else _0)) & mask
        if z < _u(16):
            token[i] = z
            continue
        k = _length(z)
        token[i] = 16 + 4 * (k - 5) + np.int64(z >> _u(k - 3) & _u(3))
        left = k - 3
        while left:  # a byte at most fills the accumulator at a time
            n = min(left, 8)
            acc |= (z & (_1 << _u(n)) - _1) << _u(held)
            z >>= _u(n)
            held, left = held + n, left - n
            if held >= 8:
                rest[at] = acc & _u(255)
                acc, held, at = acc >> _u(8), held - 8, at + 1
    if held:
        rest[at] = acc
    return 8 * at + held


@njit(**_LOOP)
def _rest_bits(token):
    n = 0
    for t in token:
        if t >= 16:
            n += (np.int64(t) - 16 >> 2) + 2
    return n


@njit(**_LOOP)
def _untoken(token, rest, base, is_float, width, words):
    """Fill `words`; False where a token stands for more bits than a number has."""
    mask = ~_0 >> _u(64 - width)
    acc, held, at = _0, 0, 0
    for i in range(words.size):
        z = _u(token[i])
        if z >= _u(16):
            k = (np.int64(z) - 16 >> 2) + 5
            if k > width:
                return False
            left, got, value = k - 3, 0, _0
            while left:
                n = min(left, 8)
                if held < n:
                    acc |= _u(rest[at]) << _u(held)
                    held, at = held + 8, at + 1
                value |= (acc & (_1 << _u(n)) - _1) << _u(got)
                acc >>= _u(n)
                held, left, got = held - n, left - n, got + n
            z = (_u(4) | z & _u(3)) << _u(k - 3) | value
        d = z >> _1 ^ (mask if z & _1 else _0)
        v = d + _ordered(base[i], is_float, width, mask) & mask
        if is_float:
            v = v ^ _1 << _u(width - 1) if v >> _u(width - 1) else ~v & mask
        words[i] = v
    return acc == _0


def differences(words: np.ndarray, base: np.ndarray, is_float: bool) -> tuple[np.ndarray, np.ndarray]:
    """words, base: (n,) unsigned of the same dtype -> (token (n,) uint8, rest uint8)."""
    width = 8 * words.dtype.itemsize
    token, rest = np.empty(words.size, np.uint8), np.empty(words.nbytes, np.uint8)
    n_bits = _tokens(words.astype(_u), base.astype(_u), is_float, width, token, rest)
    return token, rest[: -(-n_bits // 8)].copy()


def applied(token: np.ndarray, rest: np.ndarray, base: np.ndarray, is_float: bool) -> np.ndarray:
    """The words again.

    Raises
    ------
    CorruptStream: tokens and rest bits are not such as `differences` gives.
    """
    need = -(-_rest_bits(token) // 8)
    if rest.shape != (need,):
        raise CorruptStream(f"{rest.size:,} bytes of rest bits, the tokens ask for {need:,}")
    claim(8 * base.size, "an array")
    words = np.empty(base.size, _u)
    if not _untoken(token, rest, base.astype(_u), is_float, 8 * base.dtype.itemsize, words):
        raise CorruptStream("a difference of more bits than a number has, or bits behind the last")
    return words.astype(base.dtype)


def differences_plain(words: np.ndarray, base: np.ndarray, is_float: bool) -> tuple[np.ndarray, np.ndarray]:
    """`differences` as its definition, in Python's integers."""
    width = 8 * words.dtype.itemsize
    high, full = 1 << width - 1, (1 << width) - 1

    def ordered(v: int) -> int:
        return v if not is_float else full - v if v & high else v | high

    token, bits = np.empty(words.size, np.uint8), ""
    for i, (v, b) in enumerate(zip(words.tolist(), base.tolist(), strict=True)):
        d = (ordered(v) - ordered(b) + high) % (full + 1) - high
        z = 2 * d if d >= 0 else -2 * d - 1
        if z < 16:
            token[i] = z
            continue
        k = z.bit_length()
        token[i] = 16 + 4 * (k - 5) + (z >> k - 3 & 3)
        bits += format(z & (1 << k - 3) - 1, f"0{k - 3}b")[::-1]
    return token, np.packbits(np.array([c == "1" for c in bits], bool), bitorder="little")
