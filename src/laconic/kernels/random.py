"""Counter-based random numbers, the same on every machine: what a decoder regenerates from a seed instead of storing.

Every word is a pure function of (seed, stream, position), so any part of a sequence can be made alone. Only IEEE-exact
operations (integer arithmetic; float64 + - * / sqrt, never contracted or reordered; polynomials here for log, sine and
cosine, not a libm) stand between the seed and the result, so the results agree bit for bit across machines.

Source: J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (Philox4x32-10).
"""

from functools import lru_cache

import numpy as np
from numba import njit

from laconic.core.errors import BadInput
from laconic.kernels.product import product

__all__ = ["bits", "cosine_of_turn", "gaussian", "permutation", "random_orthogonal", "signs", "uniform"]

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_S32 = np.uint64(32)
_N_ROUNDS = 10


@njit(cache=True, nogil=True, inline="always")
def philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 of one counter; every word is held in the low half of a uint64."""
    for _ in range(_N_ROUNDS):
        p0 = _M0 * c0
        p1 = _M1 * c2
        c0, c1, c2, c3 = (p1 >> _S32) ^ c1 ^ k0, p1 & _LOW, (p0 >> _S32) ^ c3 ^ k1, p0 & _LOW
        k0 = (k0 + _W0) & _LOW
        k1 = (k1 + _W1) & _LOW
    return c0, c1, c2, c3


def _u64(value: int) -> np.uint64:
    return np.uint64(value & 0xFFFFFFFFFFFFFFFF)


@njit(cache=True, nogil=True)
def _bits(seed, stream, start, out):
    n = out.shape[0]
    k0, k1 = seed & _LOW, seed >> _S32
    c2, c3 = stream & _LOW, stream >> _S32
    i = 0
    while i < n:
        at = start + np.uint64(i)
        block = at >> np.uint64(1)
        a, b, c, d = philox(block & _LOW, block >> _S32, c2, c3, k0, k1)
        if at & np.uint64(1):
            out[i] = c | (d << _S32)
            i += 1
        else:
            out[i] = a | (b << _S32)
            if i + 1 < n:
                out[i + 1] = c | (d << _S32)
            i += 2


def bits(seed: int, n: int, *, stream: int = 0, start: int = 0) -> np.ndarray:
    """Words `start … start + n` of the sequence named by (seed, stream): uint64, shape (n,).

    Philox4x32-10 with key = seed, counter = (block, stream); a block gives two words, low half first. `seed` and
    `stream` are taken modulo 2^64.
    """
    out = np.empty(n, np.uint64)
    _bits(_u64(seed), _u64(stream), _u64(start), out)
    return out


def bits_plain(seed: int, n: int, *, stream: int = 0, start: int = 0) -> np.ndarray:
    """`bits`, in NumPy."""
    at = _u64(start) + np.arange(n, dtype=np.uint64)
    block = at >> np.uint64(1)
    c = [block & _LOW, block >> _S32, np.full(n, _u64(stream) & _LOW), np.full(n, _u64(stream) >> _S32)]
    k0, k1 = int(_u64(seed) & _LOW), int(_u64(seed) >> _S32)
    for _ in range(_N_ROUNDS):
        p0, p1 = _M0 * c[0], _M1 * c[2]
        c = [(p1 >> _S32) ^ c[1] ^ np.uint64(k0), p1 & _LOW, (p0 >> _S32) ^ c[3] ^ np.uint64(k1), p0 & _LOW]
        k0, k1 = (k0 + int(_W0)) & int(_LOW), (k1 + int(_W1)) & int(_LOW)
    return np.where(at & np.uint64(1), c[2] | (c[3] << _S32), c[0] | (c[1] << _S32))


def uniform(seed: int, n: int, *, stream: int = 0, start: int = 0) -> np.ndarray:
    """Uniform on [0, 1), 53 bits each: float64, shape (n,)."""
    return (bits(seed, n, stream=stream, start=start) >> np.uint64(11)) * 2.0**-53


def signs(seed: int, n: int, *, stream: int = 0, dtype: type = np.float32) -> np.ndarray:
    """n independent signs, +1 or -1, shape (n,); bit i of word j is sign 64 j + i (set: -1)."""
    words = bits(seed, -(-n // 64), stream=stream)
    return (1 - 2 * unpack_bits(words)[:n].astype(np.int8)).astype(dtype)


def unpack_bits(words: np.ndarray) -> np.ndarray:
    """Bits of uint64 words, lowest first, on either byte order: uint8, shape (64 * len(words),)."""
    return np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")


def permutation(seed: int, n: int, *, stream: int = 0) -> np.ndarray:
    """A random permutation of 0 … n-1 (the stable order of n random words): int64, shape (n,)."""
    return np.argsort(bits(seed, n, stream=stream), kind="stable")


# --- Gaussian ---------------------------------------------------------------------------------------------------------
# log x = e log 2 + 2 atanh(s), s = (m - 1) / (m + 1), m in [sqrt(1/2), sqrt 2): |s| <= .1716, 11 terms reach 1e-17.
# sin and cos of pi/4 * t, |t| <= 1, by their series to t^17 / t^18.
_ATANH = tuple(2.0 / (2 * k + 1) for k in range(11))
_LN2 = 0.6931471805599453
_SQRT_HALF = 0.7071067811865476
_QUARTER_PI = 0.7853981633974483


def _series(first: int) -> tuple[float, ...]:
    terms, factorial = [], 1.0
    for k in range(2 * 9):
        factorial *= k if k else 1.0
        if k % 2 == first:
            terms.append((-1.0) ** (k // 2) / factorial)
    return tuple(terms)


_SIN, _COS = _series(1), _series(0)


@njit(cache=True, nogil=True, inline="always")
def _normal_pair(w0, w1):
    """Box-Muller: two words to two independent standard normal values."""
    # u in (0, 1]: 53 bits, never zero. As mantissa and exponent, without frexp: u = m 2^e, m in [1/2, 1).
    k = (w0 >> np.uint64(11)) + np.uint64(1)
    m = float(np.int64(k)) * 2.0**-53
    e = 0.0
    for step in (32, 16, 8, 4, 2, 1):
        if m < 2.0**-step:
            m *= 2.0**step
            e -= step
    if m < _SQRT_HALF:
        m *= 2.0
        e -= 1.0
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    p = _ATANH[10]
    for i in range(9, -1, -1):
        p = p * z + _ATANH[i]
    radius = np.sqrt(-2.0 * (e * _LN2 + s * p))
    # The angle is 2 pi (octant + t) / 8: reduce exactly in integers, t in [-1/2, 1/2) of a quarter turn.
    quadrant = (w1 + (np.uint64(1) << np.uint64(61))) >> np.uint64(62)
    rest = np.int64(w1 - (quadrant << np.uint64(62)))
    x = float(rest >> np.int64(9)) * 2.0**-52 * _QUARTER_PI
    z = x * x
    sine = _SIN[8]
    cosine = _COS[8]
    for i in range(7, -1, -1):
        sine = sine * z + _SIN[i]
        cosine = cosine * z + _COS[i]
    sine *= x
    if quadrant & np.uint64(1):
        sine, cosine = cosine, -sine
    if quadrant & np.uint64(2):
        sine, cosine = -sine, -cosine
    return radius * cosine, radius * sine


@njit(cache=True, nogil=True)
def _gaussian(words, out):
    for i in range(0, out.shape[0], 2):
        a, b = _normal_pair(words[i], words[i + 1])
        out[i] = a
        if i + 1 < out.shape[0]:
            out[i + 1] = b


def gaussian(seed: int, n: int, *, stream: int = 0, start: int = 0) -> np.ndarray:
    """Standard normal values: float64, shape (n,). Value i needs words i and i ^ 1; `start` must be even.

    Source: G. Box, M. Muller, "A note on the generation of random normal deviates", 1958. Differs: log, sine and cosine
    are polynomials (absolute error below 1e-15), so that no libm decides a bit.
    """
    if start % 2:
        raise BadInput(f"start {start} is odd; Box-Muller makes pairs, use an even start")
    out = np.empty(n, np.float64)
    _gaussian(bits(seed, n + (n & 1), stream=stream, start=start), out)
    return out


def gaussian_plain(seed: int, n: int, *, stream: int = 0, start: int = 0) -> np.ndarray:
    """`gaussian`, in NumPy: the same operations in the same order, so the same bits."""
    words = bits_plain(seed, n + (n & 1), stream=stream, start=start)
    w0, w1 = words[0::2], words[1::2]
    m, e = np.frexp(((w0 >> np.uint64(11)) + np.uint64(1)).astype(np.int64).astype(np.float64) * 2.0**-53)
    low = m < _SQRT_HALF
    m, e = np.where(low, m * 2.0, m), np.where(low, e - 1, e).astype(np.float64)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    p = np.full_like(z, _ATANH[10])
    for i in range(9, -1, -1):
        p = p * z + _ATANH[i]
    radius = np.sqrt(-2.0 * (e * _LN2 + s * p))
    quadrant = (w1 + (np.uint64(1) << np.uint64(61))) >> np.uint64(62)
    rest = (w1 - (quadrant << np.uint64(62))).view(np.int64)
    x = (rest >> 9).astype(np.float64) * 2.0**-52 * _QUARTER_PI
    z = x * x
    sine, cosine = np.full_like(z, _SIN[8]), np.full_like(z, _COS[8])
    for i in range(7, -1, -1):
        sine, cosine = sine * z + _SIN[i], cosine * z + _COS[i]
    sine *= x
    odd, back = (quadrant & np.uint64(1)) != 0, (quadrant & np.uint64(2)) != 0
    sine, cosine = np.where(odd, cosine, sine), np.where(odd, -sine, cosine)
    sine, cosine = np.where(back, -sine, sine), np.where(back, -cosine, cosine)
    return np.stack([radius * cosine, radius * sine], 1).reshape(-1)[:n]


def cosine_of_turn(numerator: np.ndarray, denominator: int) -> np.ndarray:
    """cos(2 π numerator / denominator) for integers, the angle reduced exactly: float64, shape of `numerator`.

    The denominator is a multiple of 4. Absolute error below 2e-16 times a few; the same bits everywhere.
    """
    if denominator < 4 or denominator % 4:
        raise BadInput(f"denominator {denominator}; a positive multiple of 4 is needed")
    quarter = denominator // 4
    at = 2 * (np.asarray(numerator, np.int64) % denominator) + quarter
    quadrant = at // (2 * quarter)
    x = (at - (2 * quadrant + 1) * quarter) / (2 * quarter) * (2 * _QUARTER_PI)
    z = x * x
    sine, cosine = np.full_like(z, _SIN[8]), np.full_like(z, _COS[8])
    for i in range(7, -1, -1):
        sine, cosine = sine * z + _SIN[i], cosine * z + _COS[i]
    value = np.where(quadrant % 2, sine * x, cosine)
    return np.where((quadrant == 1) | (quadrant == 2), -value, value)


# --- Random rotations -------------------------------------------------------------------------------------------------
_REFLECTIONS = 64  # reflections that are gathered into one block; part of the definition, as it orders the sums
_COLUMNS = 256


@njit(cache=True, nogil=True)
def _block_factor(gram, beta):
    """T with H_1 H_2 … H_b = I - Vᵀ T V, upper triangular; gram = V Vᵀ."""
    b = beta.shape[0]
    t = np.zeros((b, b))
    for i in range(b):
        for j in range(i):
            total = 0.0
            for k in range(j, i):
                total += t[j, k] * gram[k, i]
            t[j, i] = -beta[i] * total
        t[i, i] = beta[i]
    return t


def _orthogonal(seed: int, n: int) -> np.ndarray:
    width = n + (n & 1)  # Gaussian values come in pairs
    q = np.zeros((n, n))
    for first in range((n - 1) // _REFLECTIONS * _REFLECTIONS, -1, -_REFLECTIONS):
        m, b = n - first, min(_REFLECTIONS, n - first)
        v = gaussian(seed, b * width, start=first * width).reshape(b, width)[:, first:n]
        v = np.where(np.arange(m) >= np.arange(b)[:, None], v, 0.0)
        norm_squared = np.diagonal(product(v, v, transposed=True))
        norm, head, at = np.sqrt(norm_squared), np.diagonal(v).copy(), np.arange(b)
        sign = np.where(head < 0, -1.0, 1.0)
        v[at, at] += sign * norm
        length = 2.0 * (norm_squared + np.abs(head) * norm)
        beta = np.divide(2.0, length, out=np.zeros(b), where=length > 0)
        t = _block_factor(product(v, v, transposed=True), beta)
        q[first + at, first + at] = -sign
        turned = np.ascontiguousarray(v.T)
        for c in range(first, n, _COLUMNS):  # in slices, to need 12 n² bytes and not 40 n²
            part = np.ascontiguousarray(q[first:, c : c + _COLUMNS])
            q[first:, c : c + _COLUMNS] = part - product(turned, product(t, product(v, part)))
    out = q.astype(np.float32)
    out.flags.writeable = False
    return out


_small_orthogonal = lru_cache(maxsize=4)(_orthogonal)


def random_orthogonal(seed: int, n: int) -> np.ndarray:
    """An orthogonal matrix drawn uniformly (Haar) from the seed: float32, (n, n), read-only.

    A product of n Householder reflections of Gaussian vectors, in float64, blocked, every sum in a fixed order.
    The last few up to n = 2048 are kept.

    Source: G. Stewart, "The efficient generation of random orthogonal matrices", SIAM J. Numer. Anal. 17(3), 1980;
    blocks: R. Schreiber, C. Van Loan, "A storage-efficient WY representation", SIAM J. Sci. Stat. Comput. 10(1), 1989.
    """
    if n < 1:
        raise BadInput(f"an orthogonal matrix has at least one row, not {n}")
    return _small_orthogonal(seed, n) if n <= 2048 else _orthogonal(seed, n)
