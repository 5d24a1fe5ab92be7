"""The fast search: codes are compared as they lie, and only vectors that may be near are costed.

Two kinds of codec have it, behind affine stages x̂ = y A + c with A orthogonal: codes of coordinates (`blocked`), and product
codes of up to 8 bits a slice. The cost of a vector is then a sum over the coordinates y_j, of squared differences or of
products. `kernels.scan` adds it up; what it finds is what comparing all reconstructions finds.

An index holds such codes in the columns of `kernels.columns`; the codec's own order is made from them when it decodes. Points of
product codes are numbered anew there, so that their four highest bits tell where they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...core.errors import CorruptStream, decode_budget
from ...core.stage import Stage
from ...core.wire import Reader, read_sections

if TYPE_CHECKING:
    from ...kernels.columns import Columns
    from ...kernels.scan import Codes, Costs
    from ...kernels.shortlist import Estimates
    from .blocks import Block


_MANY = 48  # queries
_MOST_BYTES = 1 << 27  # of codes in a block; those that are made have some 2²²


class Scanner(NamedTuple):
    """What the scan needs of a codec.

    where: of a vector's codes. points: float32 (2^bits, width) of each code, in the order of the columns. turn: (dim, dim), the
    transpose of A. shift: c, (dim,). still: costs without queries. order: int64 (n_codes, 2^bits), the codec's numbers of the
    points of a product code; None for codes of coordinates.
    """

    where: Columns
    points: list[np.ndarray]
    turn: np.ndarray
    shift: np.ndarray
    still: Costs
    order: np.ndarray | None = None

    def pays(self, n_queries: float) -> bool:
        """Whether so many queries that read the same codes are faster by the scan than by decoding these once for all of them.

        Of product codes above 4 bits the columns say little, so that one vector in ten is costed to the end: some 100 ns a
        vector and query, where decoding takes 2 µs a vector.
        """
        return self.order is None or not self.where.n_fine or n_queries < _MANY

    def index_of(self, payload: bytes, n: int) -> np.ndarray:
        """(n, n_codes) uint8 codes from the codec's payload."""
        from ...kernels import bits, coordinates

        data, widths = np.frombuffer(payload, np.uint8), self.where.bits
        if self.order is None:
            return coordinates.unpack(data, widths, n)
        found = bits.unpack(data, int(widths[0]), n * len(widths)).reshape(n, -1).astype(np.int64)
        return np.take_along_axis(np.argsort(self.order, 1).T, found, 0).astype(np.uint8)

    def payload_of(self, index: np.ndarray) -> bytes:
        """The inverse of `index_of`."""
        from ...kernels import bits, coordinates

        if self.order is None:
            return coordinates.pack(index, self.where.bits).tobytes()
        found = np.take_along_axis(self.order.T, index.astype(np.int64), 0)
        return bits.pack(found.reshape(-1).astype(np.uint8), int(self.where.bits[0])).tobytes()

    def turned(self, x: np.ndarray, threads: int = 1) -> np.ndarray:
        """x A^T, in an order of operations that no library changes and by threads that do not wait for work when it is done."""
        from ...kernels.product import product

        return product(np.ascontiguousarray(x), self.turn, threads=threads)

    def norms(self, index: np.ndarray, centroid: np.ndarray) -> tuple[float, float] | None:
        """Least and greatest squared norm of vectors; None where costs do not ask for them."""
        from ...kernels.scan import COSINES

        if self.still.kind != COSINES:
            return None
        power, at = np.zeros(len(index)), 0
        o = self.turned((centroid + self.shift)[None])[0]
        for code, points in zip(index.T, self.points, strict=True):
            end = at + points.shape[1]
            power += np.square(points.astype(np.float64) + o[at:end]).sum(1)[code]
            at = end
        return float(power.min()) * (1 - 1e-5), float(power.max()) * (1 + 1e-5)


def scanner(stage: Stage, dim: int, metric: str, coarse: int = 0) -> Scanner | None:
    """None where codec and metric have no fast search. coarse: see `kernels.columns`."""
    from ...kernels.columns import columns
    from ...kernels.scan import COSINES, PRODUCTS, SQUARES, costs_of, neighbouring

    found, order = coordinates_of(stage, dim), None
    if found is None and (product := product_of(stage, dim)) is not None and len(product.points[0]) <= 256:
        order = np.stack([neighbouring(p, coarse > 0) for p in product.points])
        points = [p[o] for p, o in zip(product.points, order, strict=True)]
        widths = np.full(len(points), len(points[0]).bit_length() - 1, np.uint8)
        found = widths, points, product.turn, product.shift
    if found is None:
        return None
    widths, points, turn, shift = found
    where, none = columns(widths, coarse), np.zeros((0, dim), np.float32)
    kind = {"l2": SQUARES, "ip": PRODUCTS, "cosine": COSINES}[metric]
    turn = np.ascontiguousarray(turn.T)
    return Scanner(where, points, turn, shift, costs_of(kind, where, points, none, none), order)


def coordinates_of(stage: Stage, dim: int) -> tuple[np.ndarray, list[np.ndarray], np.ndarray, np.ndarray] | None:
    """(bits, levels, A, c) of a codec that codes coordinates behind affine stages; None for others."""
    stages = list(stage.children().values())
    last: Any = stages[-1] if stages else None
    if last is None or not getattr(last, "blocked", False) or getattr(last, "scale", "") != "none":
        return None
    before = affine(stages[:-1], dim)
    if before is None:
        return None
    tables = last.tables(1, dim)
    return tables.widths[0], [x.reshape(-1, 1) for x in tables.of_head(0)], *before


class Product(NamedTuple):
    """A product code: its book, points (n_points, width) by slice, and A and c of what is before."""

    book: Any
    points: list[np.ndarray]
    turn: np.ndarray
    shift: np.ndarray


def product_of(stage: Stage, dim: int) -> Product | None:
    """The product code behind affine stages that a codec is; None for others."""
    stages = list(stage.children().values())
    if len(stages) < 2 or not stages[-1].lossless or stages[-2].side:
        return None
    book = getattr(stages[-2], "codebook", None)
    product: Callable[[], Any] | None = getattr(book, "product", None)
    if product is None or (found := product()) is None or len(found[0][1]) < 2:
        return None
    before = affine(stages[:-2], dim)
    return None if before is None else Product(book, [p for _, p in found], *before)


def affine(stages: list[Stage], dim: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(A, c) float32 of x̂ = y A + c with A orthogonal; None where stages are not so."""
    import torch

    if not all(getattr(s, "affine", False) for s in stages):
        return None
    probe: Any = torch.zeros(dim + 1, dim)
    sides = []
    for s in stages:
        probe, side = s.encode(probe)
        sides.append(side)
    units = torch.cat([torch.zeros(1, dim), torch.eye(dim)]).reshape(probe.shape)
    for s, side in zip(stages[::-1], sides[::-1], strict=True):
        units = s.decode(units, side)
    rows = units.reshape(dim + 1, dim).numpy()
    turn = rows[1:] - rows[0]
    return (turn, rows[0]) if np.allclose(turn @ turn.T, np.eye(dim), atol=1e-3) else None


class Opened(NamedTuple):
    """Blocks as the scan takes them: `codes` holds addresses of what `held` keeps. costs: without queries. lists: of each
    block."""

    codes: Codes
    costs: Costs
    held: list[tuple[np.ndarray, np.ndarray]]
    lists: list[int]

    def estimates(self) -> Estimates:
        """For short lists."""
        from ...kernels.shortlist import estimates_of

        return estimates_of(self.costs, [(i, c, len(n)) for i, (c, n) in zip(self.lists, self.held, strict=True)])


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
        if n_bytes > _MOST_BYTES:  # kernels count the bits of a block in 32
            raise CorruptStream(f"a block of {n_bytes:,} bytes of codes; at most {_MOST_BYTES:,} are right")
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
    costs = scan.still._replace(origins=scan.turned(centroids + scan.shift), least=least, most=most)
    return Opened(Codes(address, numbers, n_vectors, first), costs, held, lists.tolist())
