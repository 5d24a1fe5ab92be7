"""Few-bit codes of vectors laid out for look-ups in registers: nibbles of 32 vectors side by side, what is left behind them.

Coordinate j of a vector has bits[j] in 0 … 8. A *column* is four bits of a vector that hold the highest bits of one to four
coordinates, so that a table of 16 entries says what they cost: a coordinate of 4 or more bits has a column for its four
highest, three bits share one with a single bit or give up their lowest and are two, pairs of two and fours of one share one.
All other bits are planes of single bits; only vectors that may be near are read there. n vectors lie in blocks of 64, the last
one filled up with code 0; first the columns of all blocks, then their planes:

    columns: of a block 32 · n_columns bytes, byte i of a column: vector i of the block in the low nibble, i + 32 in the high one
    planes:  of a block 8 · n_planes bytes, vector t is bit t % 8 of byte t // 8

    bytes of a block = 8 · Σ bits, as in `kernels.coordinates`; no bit is lost

Columns that are added to each other in 8 bits, four and four, lie side by side: of C columns in order of their first
coordinates, a group takes those that lie C / 4 apart, so that great variances, which come first, meet small ones.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from laconic.core.errors import BadConfig, BadInput, CorruptStream
from laconic.kernels.coordinates import BLOCK, block_bytes

__all__ = ["Columns", "columns", "pack_columns", "pack_columns_plain", "unpack_columns", "unpack_columns_plain"]


class Columns(NamedTuple):
    """Where the bits of each coordinate lie.

    bits: uint8 (r,). column: int32 (r,), −1 where a coordinate has none. shift, top: uint8 (r,), its place in the nibble and how
    many of its bits are there. plane: int32 (r,), the plane of its lowest bit; the others below `top` follow.
    """

    bits: np.ndarray
    column: np.ndarray
    shift: np.ndarray
    top: np.ndarray
    plane: np.ndarray
    n_columns: int
    n_planes: int

    @property
    def low(self) -> np.ndarray:
        """uint8 (r,): bits of each coordinate that lie in planes."""
        return self.bits - self.top

    def column_bytes(self, n: int) -> int:
        """Of the columns of n vectors; planes begin there."""
        return 32 * self.n_columns * -(-n // BLOCK)

    def n_bytes(self, n: int) -> int:
        """Of n vectors."""
        return block_bytes(self.bits) * -(-n // BLOCK)

    def members(self) -> list[list[int]]:
        """Coordinates of every column."""
        out: list[list[int]] = [[] for _ in range(self.n_columns)]
        for j in np.flatnonzero(self.column >= 0).tolist():
            out[self.column[j]].append(j)
        return out


def columns(bits: np.ndarray) -> Columns:
    """Places of the codes of coordinates. bits: uint8 (r,), 0 to 8. Raises BadConfig."""
    if bits.ndim != 1 or bits.dtype != np.uint8 or (bits.size and int(bits.max()) > 8):
        raise BadConfig(f"bits are {bits.dtype}{bits.shape}; uint8 (r,), 0 to 8, is right")
    of = {b: np.flatnonzero(np.minimum(bits, 4) == b).tolist() for b in (1, 2, 3, 4)}
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
    column, plane = np.full(len(bits), -1, np.int32), np.zeros(len(bits), np.int32)
    shift, top = np.zeros(len(bits), np.uint8), np.zeros(len(bits), np.uint8)
    quarter = len(found) // 4
    for rank, one in enumerate(found):
        place = rank if rank >= 4 * quarter else rank % quarter * 4 + rank // quarter
        low = 0
        for j, b in one:
            column[j], shift[j], top[j] = place, low, b
            low += b
    left = (bits - top).astype(np.int32)
    plane[:] = np.cumsum(left) - left
    return Columns(bits, column, shift, top, plane, len(found), int(left.sum()))


@njit(cache=True, nogil=True)
def _pack(index, bits, column, shift, top, plane, n_columns, n_planes, out):
    """Returns whether every code fits into its bits."""
    n, r = index.shape
    n_blocks = (n + 63) // 64
    fine, beyond = 32 * n_columns * n_blocks, 0
    for t in range(n):
        block, i = t // 64, t % 64
        at, up = 32 * n_columns * block + i % 32, 4 * (i // 32)
        bit_at = fine + 8 * n_planes * block + i // 8
        for j in range(r):
            code, low = index[t, j], bits[j] - top[j]
            beyond |= code >> bits[j]
            if top[j]:
                out[at + 32 * column[j]] |= (code >> low) << (shift[j] + up)
            for b in range(low):
                out[bit_at + 8 * (plane[j] + b)] |= ((code >> b) & 1) << (i % 8)
    return beyond == 0


@njit(cache=True, nogil=True)
def _unpack(codes, bits, column, shift, top, plane, n_columns, n_planes, out):
    n, r = out.shape
    fine = 32 * n_columns * ((n + 63) // 64)
    for t in range(n):
        block, i = t // 64, t % 64
        at, up = 32 * n_columns * block + i % 32, 4 * (i // 32)
        bit_at = fine + 8 * n_planes * block + i // 8
        for j in range(r):
            low, code = bits[j] - top[j], 0
            if top[j]:
                code = ((codes[at + 32 * column[j]] >> (shift[j] + up)) & ((1 << top[j]) - 1)) << low
            for b in range(low):
                code |= ((codes[bit_at + 8 * (plane[j] + b)] >> (i % 8)) & 1) << b
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
    """`pack_columns` in NumPy, column by column and plane by plane."""
    n_blocks = -(-len(index) // BLOCK)
    padded = np.zeros((n_blocks * BLOCK, index.shape[1]), np.uint8)
    padded[: len(index)] = index
    blocks, low = padded.reshape(n_blocks, BLOCK, index.shape[1]), where.low
    nibbles = np.zeros((n_blocks, where.n_columns, BLOCK), np.uint8)
    bits = np.zeros((n_blocks, where.n_planes, BLOCK), np.uint8)
    for j in range(index.shape[1]):
        if where.top[j]:
            nibbles[:, where.column[j]] |= (blocks[:, :, j] >> low[j]) << where.shift[j]
        for b in range(low[j]):
            bits[:, where.plane[j] + b] = blocks[:, :, j] >> b & 1
    fine = np.packbits(bits, axis=2, bitorder="little")
    return np.concatenate([(nibbles[..., :32] | nibbles[..., 32:] << 4).reshape(-1), fine.reshape(-1)])


def unpack_columns_plain(codes: np.ndarray, where: Columns, n: int) -> np.ndarray:
    """`unpack_columns` in NumPy."""
    n_blocks = -(-n // BLOCK)
    coarse = codes[: where.column_bytes(n)].reshape(n_blocks, where.n_columns, 32)
    nibbles = np.concatenate([coarse & 15, coarse >> 4], 2)
    fine = codes[where.column_bytes(n) :].reshape(n_blocks, where.n_planes, 8)
    bits = np.unpackbits(fine, axis=2, bitorder="little")
    out, low = np.zeros((n_blocks, BLOCK, len(where.bits)), np.uint8), where.low
    for j in range(len(where.bits)):
        if where.top[j]:
            out[..., j] = (nibbles[:, where.column[j]] >> where.shift[j] & (1 << where.top[j]) - 1) << low[j]
        for b in range(low[j]):
            out[..., j] |= bits[:, where.plane[j] + b] << b
    return out.reshape(n_blocks * BLOCK, len(where.bits))[:n]
