"""Few-bit codes of vectors laid out for look-ups in registers: nibbles of 32 vectors side by side, what is left behind them.

Coordinate j of a vector has bits[j] in 0 … 8. A *column* is four bits of a vector that hold the highest bits of one to four
coordinates, so that a table of 16 entries says what they cost: a coordinate of 4 or more bits has a column for its four
highest, three bits share one with a single bit or give up their lowest and are two, pairs of two and fours of one share one.
*Coarse* columns leave out so many bits of every coordinate at least: a scan reads less, and knows less. All other bits, the
*fine* ones, lie vector by vector; only of vectors that may be near are they read. Columns are of blocks of 64 vectors, the last
one filled up with code 0; first those of all blocks, then the fine bits:

    columns: of a block 32 · n_columns bytes, byte i of a column: vector i of the block in the low nibble, i + 32 in the high one
    fine:    n_fine bits a vector, bit b of the whole in bit b % 8 of byte b // 8

Columns that are added to each other in 8 bits, four and four, lie side by side: of C columns in order of their first
coordinates, a group takes those that lie C / 4 apart, so that great variances, which come first, meet small ones.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from laconic.core.errors import BadConfig, BadInput, CorruptStream
from laconic.kernels.coordinates import BLOCK

__all__ = [
    "Columns", "columns", "fine_code", "pack_columns", "pack_columns_plain", "unpack_columns", "unpack_columns_plain",
    "unpack_planes",
]  # fmt: skip


class Columns(NamedTuple):
    """Where the bits of each coordinate lie.

    bits: uint8 (r,). column: int32 (r,), −1 where a coordinate has none. shift, top: uint8 (r,), its place in the nibble and how
    many of its bits are there. fine: int32 (r,), the place of its lowest bit among the fine ones of a vector; the others below
    `top` follow.
    """

    bits: np.ndarray
    column: np.ndarray
    shift: np.ndarray
    top: np.ndarray
    fine: np.ndarray
    n_columns: int
    n_fine: int

    @property
    def low(self) -> np.ndarray:
        """uint8 (r,): fine bits of each coordinate."""
        return self.bits - self.top

    def column_bytes(self, n: int) -> int:
        """Of the columns of n vectors; fine bits begin there."""
        return 32 * self.n_columns * -(-n // BLOCK)

    def n_bytes(self, n: int) -> int:
        """Of n vectors."""
        return self.column_bytes(n) + -(-n * self.n_fine // 8)

    def members(self) -> list[list[int]]:
        """Coordinates of every column."""
        out: list[list[int]] = [[] for _ in range(self.n_columns)]
        for j in np.flatnonzero(self.column >= 0).tolist():
            out[self.column[j]].append(j)
        return out


def columns(bits: np.ndarray, coarse: int = 0) -> Columns:
    """Places of the codes of coordinates. bits: uint8 (r,), 0 to 8. coarse: how many bits of each coordinate columns leave out at
    least, 0 to 7; they hold four at most. Raises BadConfig."""
    if bits.ndim != 1 or bits.dtype != np.uint8 or (bits.size and int(bits.max()) > 8):
        raise BadConfig(f"bits are {bits.dtype}{bits.shape}; uint8 (r,), 0 to 8, is right")
    if not 0 <= coarse <= 7:
        raise BadConfig(f"coarse={coarse}; 0 to 7 bits that columns leave out are right")
    most = np.clip(bits.astype(np.int64) - coarse, 0, 4)
    of = {b: np.flatnonzero(most == b).tolist() for b in (1, 2, 3, 4)}
    found: list[list[tuple[int, int]]] = [[(j, 4)] for j in of[4]]  # (coordinate, bits in the nibble) by column
    pairs = min(len(of[3]), len(of[1]))
    found += [[(a, 3), (b, 1)] for a, b in zip(of[3][:pairs], of[1][:pairs], strict=True)]
    rest = [(j, 2) for j in sorted(of[2] + of[3][pairs:])] + [(j, 1) for j in of[1][pairs:]]
    while sum(b for _, b in rest) >= 4:  # twos come first, so every sum of four is met exactly
        one: list[tuple[int, int]] = []
        while sum(b for _, b in one) < 4:
            one.append(rest.pop(0))
        found.append(one)
    found.sort()
    column, fine = np.full(len(bits), -1, np.int32), np.zeros(len(bits), np.int32)
    shift, top = np.zeros(len(bits), np.uint8), np.zeros(len(bits), np.uint8)
    quarter = len(found) // 4
    for rank, one in enumerate(found):
        place = rank if rank >= 4 * quarter else rank % quarter * 4 + rank // quarter
        low = 0
        for j, b in one:
            column[j], shift[j], top[j] = place, low, b
            low += b
    left = (bits - top).astype(np.int32)
    fine[:] = np.where(left > 0, np.cumsum(left) - left, 0)  # without any: a place that is there
    return Columns(bits, column, shift, top, fine, len(found), int(left.sum()))


@njit(cache=True, nogil=True, inline="always")
def fine_code(codes, bit, low):
    """`low` bits, at most 8, from a bit of the codes on."""
    at, last = bit >> 3, codes.shape[0] - 1
    # The byte behind is asked for even where it is not needed, but never one behind the last.
    both = np.int64(codes[min(at, last)]) | np.int64(codes[min(at + 1, last)]) << 8
    return (both >> (bit & 7)) & ((1 << low) - 1)


@njit(cache=True, nogil=True)
def _pack(index, bits, column, shift, top, fine, n_columns, n_fine, out):
    """Returns whether every code fits into its bits."""
    n, r = index.shape
    begin, beyond = 8 * 32 * n_columns * ((n + 63) // 64), 0
    for t in range(n):
        block, i = t // 64, t % 64
        at, up = 32 * n_columns * block + i % 32, 4 * (i // 32)
        for j in range(r):
            code, low = np.int64(index[t, j]), np.int64(bits[j] - top[j])
            beyond |= code >> bits[j]
            if top[j]:
                out[at + 32 * column[j]] |= (code >> low) << (shift[j] + up)
            if low:
                bit = begin + t * n_fine + fine[j]
                both = (code & ((1 << low) - 1)) << (bit & 7)
                out[bit >> 3] |= both & 255
                if both > 255:
                    out[(bit >> 3) + 1] |= both >> 8
    return beyond == 0


@njit(cache=True, nogil=True)
def _unpack(codes, bits, column, shift, top, fine, n_columns, n_fine, out):
    n, r = out.shape
    begin = 8 * 32 * n_columns * ((n + 63) // 64)
    for t in range(n):
        block, i = t // 64, t % 64
        at, up = 32 * n_columns * block + i % 32, 4 * (i // 32)
        for j in range(r):
            low, code = np.int64(bits[j] - top[j]), 0
            if top[j]:
                code = ((codes[at + 32 * column[j]] >> (shift[j] + up)) & ((1 << top[j]) - 1)) << low
            if low:
                code |= fine_code(codes, begin + t * n_fine + fine[j], low)
            out[t, j] = code


def pack_columns(index: np.ndarray, where: Columns) -> np.ndarray:
    """Lays out codes: uint8, flat, `where.n_bytes(n)`. index: (n, r) uint8, below 2^bits. Raises BadInput for one that is not."""
    if index.ndim != 2 or index.dtype != np.uint8 or index.shape[1] != len(where.bits):
        raise BadInput(f"codes are {index.dtype}{index.shape}; uint8 (n, {len(where.bits)}) is right")
    out = np.zeros(where.n_bytes(len(index)), np.uint8)
    if not _pack(np.ascontiguousarray(index), *where, out):
        t, j = (int(i) for i in np.argwhere((index >> where.bits) > 0)[0])
        raise BadInput(f"code {index[t, j]} of vector {t}, coordinate {j}, which has {where.bits[j]} bits")
    return out


def unpack_columns(codes: np.ndarray, where: Columns, n: int) -> np.ndarray:
    """The codes of `pack_columns`: uint8 (n, r). Raises CorruptStream for more or fewer bytes than n vectors take."""
    if codes.shape != (where.n_bytes(n),) or codes.dtype != np.uint8:
        raise CorruptStream(f"{codes.dtype}{codes.shape} for {n} vectors; uint8({where.n_bytes(n)},) is right")
    out = np.empty((n, len(where.bits)), np.uint8)
    _unpack(np.ascontiguousarray(codes), *where, out)
    return out


def pack_columns_plain(index: np.ndarray, where: Columns) -> np.ndarray:
    """`pack_columns` in NumPy, column by column and bit by bit."""
    n, low = len(index), where.low
    blocks = np.pad(index, ((0, -n % BLOCK), (0, 0))).reshape(-(-n // BLOCK), BLOCK, index.shape[1])
    nibbles = np.zeros((len(blocks), where.n_columns, BLOCK), np.uint8)
    fine = np.zeros((n, where.n_fine), np.uint8)
    for j in range(index.shape[1]):
        if where.top[j]:
            nibbles[:, where.column[j]] |= (blocks[:, :, j] >> low[j]) << where.shift[j]
        for b in range(low[j]):
            fine[:, where.fine[j] + b] = index[:, j] >> b & 1
    coarse = nibbles[..., :32] | nibbles[..., 32:] << 4
    return np.concatenate([coarse.reshape(-1), np.packbits(fine.reshape(-1), bitorder="little")])


def unpack_columns_plain(codes: np.ndarray, where: Columns, n: int) -> np.ndarray:
    """`unpack_columns` in NumPy."""
    fine = np.unpackbits(codes[where.column_bytes(n) :], bitorder="little")
    return _assembled(codes, where, n, fine[: n * where.n_fine].reshape(n, where.n_fine))


def unpack_planes(codes: np.ndarray, where: Columns, n: int) -> np.ndarray:
    """The codes of an older order, (n, r) uint8: fine bits of a block of 64 vectors as planes, vector t in bit t % 8 of byte
    t // 8. Raises CorruptStream for more or fewer bytes than n vectors take."""
    n_blocks = -(-n // BLOCK)
    if codes.shape != (where.column_bytes(n) + 8 * where.n_fine * n_blocks,) or codes.dtype != np.uint8:
        raise CorruptStream(f"{codes.dtype}{codes.shape} for {n} vectors in planes")
    planes = codes[where.column_bytes(n) :].reshape(n_blocks, where.n_fine, 8)
    fine = np.unpackbits(planes, axis=2, bitorder="little").transpose(0, 2, 1).reshape(n_blocks * BLOCK, where.n_fine)
    return _assembled(codes, where, n, fine[:n])


def _assembled(codes: np.ndarray, where: Columns, n: int, fine: np.ndarray) -> np.ndarray:
    """Codes from their columns, and fine bits (n, n_fine)."""
    coarse = codes[: where.column_bytes(n)].reshape(-(-n // BLOCK), where.n_columns, 32)
    nibbles = np.concatenate([coarse & 15, coarse >> 4], 2).transpose(0, 2, 1)
    nibbles = nibbles.reshape(-(-n // BLOCK) * BLOCK, where.n_columns)[:n]
    out, low = np.zeros((n, len(where.bits)), np.uint8), where.low
    for j in range(len(where.bits)):
        if where.top[j]:
            out[:, j] = (nibbles[:, where.column[j]] >> where.shift[j] & (1 << where.top[j]) - 1) << low[j]
        for b in range(low[j]):
            out[:, j] |= fine[:, where.fine[j] + b] << b
    return out
