"""Blocks of coded vectors: the bytes that a codec gives for some thousand of them, opened only while they are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...core.errors import BadInput, CorruptStream, decode_budget
from ...core.stage import Stage
from ...core.wire import Reader, read_sections, write_sections

if TYPE_CHECKING:
    from .scanning import Scanner

VALUES = 1 << 22  # of a block at most, coordinates of all its vectors
_WORKING_BYTES = 64 << 20


class Block(NamedTuple):
    """data: the sections of the codec, each with its checksum; the payload in columns where the index scans it. numbers: int64 or
    int32 (n,), in the order of adding. list_: its inverted list."""

    data: bytes | memoryview
    numbers: np.ndarray
    list_: int = 0


def encode_rows(stage: Stage, rows: np.ndarray, scan: Scanner | None = None) -> bytes:
    """The sections of (n, dim) float32 rows; the payload in columns where there is a scan for it."""
    import torch

    y, side = stage.encode(torch.from_numpy(rows))
    if scan is not None:
        from ...kernels.columns import pack_columns

        y = pack_columns(scan.index_of(y, len(rows)), scan.where).tobytes()
    return write_sections(stage, {**side, "payload": y})


def relaid(
    stage: Stage, data: bytes | memoryview, n: int, scan: Scanner, back: bool = False, planes: bool = False
) -> bytes:
    """Sections with the payload in columns, from those of the codec, or from columns whose fine bits are planes; or back to those
    of the codec. Raises CorruptStream."""
    with decode_budget(2 * len(data) + 8 * n * len(scan.where.bits) + _WORKING_BYTES):
        reader = Reader(data)
        side = read_sections(stage, reader)
        reader.finish()
        side["payload"] = _turned(side["payload"], n, scan, back, planes)
    return write_sections(stage, side)


def _turned(payload: bytes, n: int, scan: Scanner, back: bool, planes: bool = False) -> bytes:
    from ...kernels.columns import pack_columns, unpack_columns, unpack_planes

    if len(payload) * 8 < n * int(scan.where.bits.sum(dtype=np.int64)):
        raise CorruptStream(f"{len(payload):,} bytes of codes for {n:,} vectors")
    if back:
        return scan.payload_of(unpack_columns(np.frombuffer(payload, np.uint8), scan.where, n))
    index = unpack_planes(np.frombuffer(payload, np.uint8), scan.where, n) if planes else scan.index_of(payload, n)
    return pack_columns(index, scan.where).tobytes()


def decode_rows(stage: Stage, data: bytes | memoryview, n: int, dim: int, scan: Scanner | None = None) -> np.ndarray:
    """(n, dim) float32 from sections, the payload in columns where there is a scan for it. Raises CorruptStream for damage and
    for other shapes."""
    with decode_budget(16 * n * dim + _WORKING_BYTES):
        reader = Reader(data)
        side = read_sections(stage, reader)
        reader.finish()
        payload = side.pop("payload")
        rows = stage.decode(payload if scan is None else _turned(payload, n, scan, True), side).numpy()
    if rows.shape != (n, dim) or rows.dtype != np.float32:
        raise CorruptStream(f"a block of {rows.dtype}{rows.shape}; float32 ({n}, {dim}) is right")
    return rows


def pieces(n: int, dim: int, lists: np.ndarray | None) -> list[tuple[int, np.ndarray]]:
    """(list, places) of the blocks that n rows fall into: at most `VALUES` coordinates each, all of one list."""
    most = max(64, VALUES // dim // 64 * 64)
    if lists is None:
        return [(0, np.arange(at, min(at + most, n))) for at in range(0, n, most)]
    order = np.argsort(lists, kind="stable")
    starts = np.flatnonzero(np.diff(lists[order], prepend=-1))
    out = []
    for a, b in zip(starts, [*starts[1:], len(order)], strict=True):
        out += [(int(lists[order[a]]), order[at : min(at + most, b)]) for at in range(a, b, most)]
    return out


def checked_ids(ids: object, n: int | None, what: str) -> np.ndarray:
    """(n,) int64. Raises BadInput for other shapes, dtypes and negative numbers."""
    a = np.asarray(ids)
    if a.ndim != 1 or (n is not None and len(a) != n) or (a.dtype.kind not in "iu" and a.size):
        raise BadInput(f"{what} are {a.dtype}{a.shape}; int64 ({'n' if n is None else n},) is right")
    if a.size and (int(a.min()) < 0 or int(a.max()) >= 1 << 63):
        raise BadInput(f"{what} run from {a.min()} to {a.max()}; 0 to 2^63 − 1 are right")
    return a.astype(np.int64)
