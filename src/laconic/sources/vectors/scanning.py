"""The fast search: codes are compared as they lie, and only vectors that may be near are costed.

Two kinds of codec have it. Codes of coordinates (`blocked`) behind affine stages, x̂ = y A + c with A orthogonal: then the cost of
a vector is a sum over its coordinates y_j, of squared differences or of products. And product codes of 16 points a slice, whose
costs are a sum over slices. `kernels.scan` adds them up; what it finds is what comparing all reconstructions finds.

An index holds such codes in the columns of `kernels.columns`; the codec's own order is made from them when it decodes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from ...core.errors import CorruptStream, decode_budget
from ...core.stage import Stage
from ...core.wire import Reader, read_sections

if TYPE_CHECKING:
    from ...kernels.columns import Columns
    from ...kernels.scan import Codes, Costs
    from .blocks import Block


class Scanner(Protocol):
    """What a kind of code gives to the scan."""

    where: Columns

    def index_of(self, payload: bytes, n: int) -> np.ndarray:
        """(n, r) uint8 codes from the codec's payload."""

    def payload_of(self, index: np.ndarray) -> bytes:
        """The inverse of `index_of`."""

    def costs(self, queries: np.ndarray, centroids: np.ndarray, norms: tuple[float, float]) -> Costs:
        """Of (n, dim) queries; centroids (n_lists, dim), zeros without lists."""

    def norms(self, index: np.ndarray, centroid: np.ndarray) -> tuple[float, float] | None:
        """Least and greatest squared norm of vectors; None where costs do not ask for them."""


def scanner(stage: Stage, dim: int, metric: str) -> Scanner | None:
    """None where codec and metric have no fast search."""
    return Coordinates.of(stage, dim, metric) or Products.of(stage, dim, metric)


class Coordinates(NamedTuple):
    """Codes of coordinates. turn: A, (dim, dim). shift: c, (dim,). still: costs without queries."""

    where: Columns
    levels: list[np.ndarray]
    turn: np.ndarray
    shift: np.ndarray
    still: Costs

    @staticmethod
    def of(stage: Stage, dim: int, metric: str) -> Coordinates | None:
        import torch

        from ...kernels.columns import columns
        from ...kernels.scan import COSINES, PRODUCTS, SQUARES, costs_of

        stages = list(stage.children().values())
        last: Any = stages[-1] if stages else None
        if last is None or not getattr(last, "blocked", False) or getattr(last, "scale", "") != "none":
            return None
        if not all(getattr(s, "affine", False) for s in stages[:-1]):
            return None
        probe: Any = torch.zeros(dim + 1, dim)
        sides = []
        for s in stages[:-1]:
            probe, side = s.encode(probe)
            sides.append(side)
        units = torch.cat([torch.zeros(1, dim), torch.eye(dim)]).reshape(probe.shape)
        for s, side in zip(stages[-2::-1], sides[::-1], strict=True):
            units = s.decode(units, side)
        rows = units.reshape(dim + 1, dim).numpy()
        turn = rows[1:] - rows[0]
        if not np.allclose(turn @ turn.T, np.eye(dim), atol=1e-3):
            return None
        tables = last.tables(1, dim)
        where, levels = columns(tables.widths[0]), tables.of_head(0)
        kind = {"l2": SQUARES, "ip": PRODUCTS, "cosine": COSINES}[metric]
        none = np.zeros((0, dim), np.float32)
        return Coordinates(where, levels, turn, rows[0], costs_of(kind, where, levels, none, none))

    def index_of(self, payload: bytes, n: int) -> np.ndarray:
        from ...kernels.coordinates import unpack

        return unpack(np.frombuffer(payload, np.uint8), self.where.bits, n)

    def payload_of(self, index: np.ndarray) -> bytes:
        from ...kernels.coordinates import pack

        return pack(index, self.where.bits).tobytes()

    def costs(self, queries: np.ndarray, centroids: np.ndarray, norms: tuple[float, float]) -> Costs:
        v, o = (np.ascontiguousarray(x @ self.turn.T) for x in (queries, centroids + self.shift))
        return self.still._replace(queries=v, origins=o, least=norms[0], most=norms[1])

    def norms(self, index: np.ndarray, centroid: np.ndarray) -> tuple[float, float] | None:
        from ...kernels.scan import COSINES

        if self.still.kind != COSINES:
            return None
        power = np.zeros(len(index))
        for column, level, o in zip(index.T, self.levels, self.turn @ (centroid + self.shift), strict=True):
            power += (level.astype(np.float64) + o)[column] ** 2
        return float(power.min()) * (1 - 1e-5), float(power.max()) * (1 + 1e-5)


class Products(NamedTuple):
    """Product codes of C slices. points: (dim, 16 C) float64, each point in its slice's rows, zeros in the others. squares:
    whether costs are l2."""

    where: Columns
    points: np.ndarray
    squares: bool

    @staticmethod
    def of(stage: Stage, dim: int, metric: str) -> Products | None:
        from ...kernels.columns import columns

        stages = list(stage.children().values())
        if len(stages) != 2 or metric == "cosine" or not stages[1].lossless:
            return None
        product: Callable[[], Any] | None = getattr(getattr(stages[0], "codebook", None), "product", None)
        if product is None:
            return None
        found = product()
        if found is None or any(len(points) != 16 for _, points in found):
            return None
        table = np.zeros((dim, len(found), 16))
        for c, (span, points) in enumerate(found):
            table[span, c] = points.T
        return Products(columns(np.full(len(found), 4, np.uint8)), table.reshape(dim, -1), metric == "l2")

    def index_of(self, payload: bytes, n: int) -> np.ndarray:
        from ...kernels.bits import unpack

        return unpack(np.frombuffer(payload, np.uint8), 4, n * len(self.where.bits)).reshape(n, -1).astype(np.uint8)

    def payload_of(self, index: np.ndarray) -> bytes:
        from ...kernels.bits import pack

        return pack(index.reshape(-1), 4).tobytes()

    def costs(self, queries: np.ndarray, centroids: np.ndarray, norms: tuple[float, float]) -> Costs:
        from ...kernels.scan import tabled

        q, c = queries.astype(np.float64), centroids.astype(np.float64)
        mine, theirs = (np.reshape(x @ self.points, (len(x), -1, 16)) for x in (q, c))
        if self.squares:
            own = np.square(self.points).sum(0).reshape(-1, 16)
            offset = np.square(q).sum(1)[:, None] - 2 * q @ c.T + np.square(c).sum(1)
            found = (own - 2 * mine, 2 * theirs, offset)
        else:
            found = (-mine, np.zeros_like(theirs), -q @ c.T)
        return tabled(*(x.astype(np.float32) for x in found))

    def norms(self, index: np.ndarray, centroid: np.ndarray) -> tuple[float, float] | None:
        return None


class Opened(NamedTuple):
    """Blocks as the scan takes them: `codes` holds addresses of what `held` keeps; norms as in `Costs`."""

    codes: Codes
    norms: tuple[float, float]
    held: list[tuple[np.ndarray, np.ndarray]]


def opened(stage: Stage, scan: Scanner, blocks: list[Block], centroids: np.ndarray) -> Opened:
    """Checks blocks and finds their codes where they lie. Raises CorruptStream."""
    from ...kernels.columns import unpack_columns
    from ...kernels.scan import Codes

    order = sorted(range(len(blocks)), key=lambda i: blocks[i].list_)
    held, norms = [], []
    for b in (blocks[i] for i in order):
        n = len(b.numbers)
        with decode_budget(2 * len(b.data) + (1 << 20)):
            reader = Reader(b.data)
            n_bytes = len(read_sections(stage, reader)["payload"])
            reader.finish()
        if n_bytes != scan.where.n_bytes(n):
            raise CorruptStream(f"{n_bytes:,} bytes of codes for {n:,} vectors; {scan.where.n_bytes(n):,} are right")
        reader = Reader(b.data)  # the payload is the first section, and has one axis
        reader.take(1)
        reader.varint()
        codes = np.frombuffer(reader.take(n_bytes), np.uint8)
        held.append((codes, np.ascontiguousarray(b.numbers, np.int64)))
        if scan.norms(np.zeros((1, len(scan.where.bits)), np.uint8), centroids[b.list_]) is not None:
            norms.append(scan.norms(unpack_columns(codes, scan.where, n), centroids[b.list_]))
    address, numbers = (np.array([h[i].ctypes.data for h in held], np.int64) for i in (0, 1))
    lists = np.array([blocks[i].list_ for i in order], np.int64)
    first = np.searchsorted(lists, np.arange(len(centroids) + 1)).astype(np.int64)
    least, most = (f(n[i] for n in norms if n) if norms else 0.0 for i, f in ((0, min), (1, max)))
    n_vectors = np.array([len(h[1]) for h in held], np.int64)
    return Opened(Codes(address, numbers, n_vectors, first), (least, most), held)
