"""Matrices of few-bit codes laid out for the register kernels, and back.

An entry is step · level(code) + offset. Rows lie in blocks of 16 and columns in units of 32; the 512 codes of a unit are
bit planes of 64 bytes: a code of b bits takes one plane group for each power of two in b (7 = 4 + 2 + 1), from its lowest
bits up. Byte 4 i + j of a vector belongs to row i and column 4 s + j, with s the *quad*, 0 … 7:

    width 8: quad s is vector s;   4: bits 4 (s mod 2) of vector s div 2;   2: bits 2 (s mod 4) of s div 4;   1: bit s

so that a shift and a mask give 16 rows × 4 columns of bytes, which is what one integer dot product of 4 takes.

    bits in memory = b + (bits of a step, and of an offset) / group

A group that is no multiple of 32 (16 stays as it is) is padded; padded columns meet activations of zero.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import njit

from laconic.core.errors import BadConfig, BadInput

__all__ = ["LANES", "UNIT", "Packed", "dequantize", "dequantize_plain", "pack", "rows_of", "widths"]

LANES = 16  # rows of a block
UNIT = 32  # columns of a unit


def widths(bits: int) -> tuple[int, ...]:
    """The plane widths that make up a code, lowest bits first: 7 -> (4, 2, 1)."""
    return tuple(w for w in (8, 4, 2, 1) if bits & w)


class Packed(NamedTuple):
    """A packed matrix.

    codes: uint8, flat, n_blocks · n_units · bits · 64. step, offset: (n_blocks · n_groups · 16), float32, or uint16 that
    holds float16; offset may be None. table: float32 (2^bits,), the level of each code (code − zero where it is affine).
    fine: uint8 (16,), where the levels of a table of up to 16 are integers times `quantum`: those integers + 128. quantum is 0
    where they are not, and only the float kernel applies. zero: what integers subtract from a code (an entry of `fine`).
    """

    codes: np.ndarray
    step: np.ndarray
    offset: np.ndarray | None
    table: np.ndarray
    fine: np.ndarray | None
    affine: bool
    zero: int
    quantum: float
    bits: int
    n_out: int
    n_in: int
    group: int

    @property
    def n_groups(self) -> int:
        return -(-self.n_in // self.group)

    @property
    def stored_groups(self) -> int:
        """Groups in memory: of 16 columns, always an even number."""
        return self.padded_in // self.padded_group

    @property
    def padded_group(self) -> int:
        """Columns that a group takes in memory."""
        return 16 if self.group == 16 else -(-self.group // UNIT) * UNIT

    @property
    def padded_in(self) -> int:
        """Columns in memory."""
        return -(-self.n_groups * self.padded_group // UNIT) * UNIT

    @property
    def n_blocks(self) -> int:
        return -(-self.n_out // LANES)

    @property
    def run(self) -> int:
        """Columns that share an activation scale: the group, or its largest divisor in whole units up to 128."""
        units = self.padded_group // UNIT
        return 16 if not units else UNIT * max(d for d in (1, 2, 3, 4) if units % d == 0)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = (self.codes, self.step, self.offset, self.table, self.fine)
        return sum(a.nbytes for a in arrays if a is not None)


@lru_cache(maxsize=64)
def _places(bits: int, n_in: int, group: int, padded_group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the codes of a row lie: byte from the row's first and shift, (n_planes, n_in) each; and the planes' widths."""
    column = np.arange(n_in)
    place = column // group * padded_group + column % group
    quad = place % UNIT // 4
    planes = np.array(widths(bits), np.int64)
    first = np.cumsum(planes) - planes  # vectors of a unit before the plane: as many as the bits below it
    per = 8 // planes[:, None]
    at = place // UNIT * (bits * 64) + (first[:, None] + quad // per) * 64 + place % 4
    return at, quad % per * planes[:, None], planes


@njit(cache=True, nogil=True)
def _pack(codes, at, shift, planes, row_bytes, out):
    """codes: (n_out, n_in) uint8. row_bytes: of a block, which is of 16 rows. out: zeros."""
    for r in range(codes.shape[0]):
        first, low = r // 16 * row_bytes + 4 * (r % 16), 0
        for p in range(planes.shape[0]):
            mask = (1 << planes[p]) - 1
            for c in range(codes.shape[1]):
                out[first + at[p, c]] |= ((codes[r, c] >> low) & mask) << shift[p, c]
            low += planes[p]


@njit(cache=True, nogil=True)
def _rows(index, codes, step, offset, table, group, n_groups, at, shift, planes, row_bytes, out):
    """out[i] = entries of row index[i]; one multiplication, and one addition where there are offsets."""
    n_in = out.shape[1]
    row = np.empty(n_in, np.uint8)
    for i in range(index.shape[0]):
        r = index[i]
        first, low = r // 16 * row_bytes + 4 * (r % 16), 0
        row[:] = 0
        for p in range(planes.shape[0]):
            mask = (1 << planes[p]) - 1
            for c in range(n_in):
                row[c] |= ((codes[first + at[p, c]] >> shift[p, c]) & mask) << low
            low += planes[p]
        side = r // 16 * n_groups * 16 + r % 16
        for g in range((n_in + group - 1) // group):
            s = step[side + g * 16]
            for c in range(g * group, min(n_in, (g + 1) * group)):
                out[i, c] = table[row[c]] * s
            if offset is not None:
                o = offset[side + g * 16]
                for c in range(g * group, min(n_in, (g + 1) * group)):
                    out[i, c] += o


def _side(values: np.ndarray, n_blocks: int, stored_groups: int, exact: bool) -> np.ndarray:
    """(n_out, n_groups) float32 to (block, group, lane): float16 bits where that changes nothing, or where it may."""
    n_out, n_groups = values.shape
    full = np.zeros((n_blocks * LANES, stored_groups), np.float32)
    full[:n_out, :n_groups] = values
    full = np.ascontiguousarray(full.reshape(n_blocks, LANES, stored_groups).transpose(0, 2, 1)).reshape(-1)
    with np.errstate(over="ignore"):
        half = full.astype(np.float16)
    loss = np.abs(half.astype(np.float32) - full)
    if (loss <= (0 if exact else 2.0**-11) * np.abs(full)).all():
        return half.view(np.uint16)
    return full


def _whole(table: np.ndarray) -> tuple[np.ndarray | None, float]:
    """Integers within ±127 and the quantum they are multiples of, a power of two; (None, 0) for other levels."""
    for quantum in (2.0**k for k in range(4, -11, -1)):
        levels = table / quantum
        if np.abs(levels).max() <= 127 and (levels == np.rint(levels)).all():
            return levels.astype(np.int8), quantum
    return None, 0.0


def pack(
    codes: np.ndarray,
    bits: int,
    step: np.ndarray,
    offset: np.ndarray | None = None,
    *,
    table: np.ndarray | None = None,
    zero: int = 0,
    group: int | None = None,
    exact: bool = True,
) -> Packed:
    """Lay out a matrix.

    codes: (n_out, n_in) unsigned, below 2^bits, bits 1 … 8. step, offset: (n_out, n_groups) float32. table: float32 levels of
    the codes (up to 2^bits); without one, level = code − zero. group: columns of a step; n_in / n_groups where not given.
    exact: keep float32 steps unless float16 holds them; else round them to float16 (2^−11 of each at most).
    """
    if codes.ndim != 2 or not codes.size or not 1 <= bits <= 8:
        raise BadInput(f"codes {codes.shape} of {bits} bits; a matrix of 1 to 8 bits is right")
    n_out, n_in = codes.shape
    if codes.min() < 0 or codes.max() >> bits:
        raise BadInput(f"codes from {codes.min()} to {codes.max()}; 0 to {(1 << bits) - 1} are right")
    if group is None:
        if step.ndim != 2 or not step.shape[1] or n_in % step.shape[1]:
            raise BadConfig(f"steps {step.shape} for {n_in} columns; say the group size where it does not divide them")
        group = n_in // step.shape[1]
    right = (n_out, -(-n_in // group))
    for name, side in (("steps", step), ("offsets", offset)):
        if side is not None and (side.shape != right or side.dtype != np.float32 or not np.isfinite(side).all()):
            raise BadInput(f"{name} are {side.dtype}{side.shape}; finite float32{right} is right")
    affine = table is None
    levels = np.zeros(1 << bits, np.float32)
    if table is None:
        levels[:] = np.arange(1 << bits) - zero
        fine, quantum = None, 1.0
    else:
        if table.ndim != 1 or len(table) > 1 << bits or int(codes.max()) >= len(table) or not np.isfinite(table).all():
            raise BadInput(f"a table of shape {table.shape} for codes up to {codes.max()} of {bits} bits")
        levels[: len(table)] = table
        whole, quantum = _whole(levels) if bits <= 4 else (None, 0.0)
        fine, zero = None, 0
        if whole is not None:
            fine, zero = np.full(LANES, 128, np.uint8), 128
            fine[: 1 << bits] = whole.astype(np.int16) + 128
    n_blocks = -(-n_out // LANES)
    empty = Packed(np.empty(0, np.uint8), np.empty(0, np.float32), None, levels, fine, affine, zero, quantum, bits,
                   n_out, n_in, group)  # fmt: skip
    row_bytes = empty.padded_in // UNIT * bits * 64
    out = np.zeros(n_blocks * row_bytes, np.uint8)
    places = _places(bits, n_in, group, empty.padded_group)
    _pack(np.ascontiguousarray(codes, np.uint8), *places, row_bytes, out)
    return empty._replace(
        codes=out,
        step=_side(step, n_blocks, empty.stored_groups, exact),
        offset=None if offset is None else _side(offset, n_blocks, empty.stored_groups, exact),
    )


def _floats(side: np.ndarray | None) -> np.ndarray | None:
    return side.view(np.float16).astype(np.float32) if side is not None and side.dtype == np.uint16 else side


def _some(p: Packed, blocks: np.ndarray | slice, local: np.ndarray) -> np.ndarray:
    """Rows `local` of those blocks, dequantized."""
    per, places = p.stored_groups * LANES, _places(p.bits, p.n_in, p.group, p.padded_group)
    codes = p.codes.reshape(p.n_blocks, -1)[blocks]
    step, offset = (None if a is None else _floats(a.reshape(-1, per)[blocks]).reshape(-1) for a in (p.step, p.offset))
    out = np.empty((len(local), p.n_in), np.float32)
    _rows(local, codes.reshape(-1), step, offset, p.table, p.group, p.stored_groups, *places, codes.shape[1], out)
    return out


def rows_of(p: Packed, index: np.ndarray) -> np.ndarray:
    """Some rows, dequantized: float32 (len(index), n_in). index: int64 in 0 … n_out − 1."""
    if index.size and not 0 <= int(index.min()) <= int(index.max()) < p.n_out:
        raise BadInput(f"rows {index.min()} to {index.max()} of a matrix of {p.n_out}")
    blocks, place = np.unique(index // LANES, return_inverse=True)
    return _some(p, blocks, place.reshape(-1) * LANES + index % LANES)


def dequantize(p: Packed, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Rows start … stop − 1 as float32 (n, n_in): level · step + offset, each operation rounded once."""
    stop = p.n_out if stop is None else stop
    first = start // LANES
    return _some(p, slice(first, -(-stop // LANES)), np.arange(start, stop) - first * LANES)


def dequantize_plain(p: Packed) -> np.ndarray:
    """`dequantize` in NumPy."""
    n_units = p.padded_in // UNIT
    planes = p.codes.reshape(p.n_blocks, n_units, p.bits, LANES, 4).astype(np.int64)
    codes = np.zeros((p.n_blocks, n_units, 8, LANES, 4), np.int64)
    first = low = 0
    for w in widths(p.bits):
        for quad in range(8):
            vector, shift = divmod(quad, 8 // w)
            codes[:, :, quad] |= (planes[:, :, first + vector] >> (w * shift) & ((1 << w) - 1)) << low
        first += w
        low += w
    dense = codes.transpose(0, 3, 1, 2, 4).reshape(p.n_blocks * LANES, p.padded_in)
    levels = p.table[dense].reshape(-1, p.stored_groups, p.padded_group)[:, :, : p.group]
    shape = (p.n_blocks, p.stored_groups, LANES)
    step, offset = (
        None if a is None else a.reshape(shape).transpose(0, 2, 1).reshape(-1, p.stored_groups, 1)
        for a in (_floats(p.step), _floats(p.offset))
    )
    out = levels * step if offset is None else levels * step + offset
    return out.reshape(len(out), -1)[: p.n_out, : p.n_in]
