"""The fast search: codes are compared as they lie, and only what may be near is opened.

Works for codecs that end in codes of coordinates (`blocked`) behind affine stages, x̂ = y A + c with A orthogonal: then the cost
of a vector is a sum over its coordinates y_j, of squared differences or of products, and `kernels.scan` adds it up. Every vector
that could be among the k nearest is then ranked by its levels in float32, so that the result is that of comparing all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.errors import CorruptStream, decode_budget
from ...core.stage import Stage
from ...core.wire import Reader, read_sections
from .blocks import Block
from .ranking import Best

if TYPE_CHECKING:
    from ...quantize.coordinates import Tables

METRICS = ("l2", "ip")


@dataclass
class Scanner:
    """tables: rates and levels. turn: A, (dim, dim). shift: c, (dim,). views: of blocks that were checked, by their number."""

    stage: Stage
    tables: Tables
    turn: np.ndarray
    shift: np.ndarray
    views: dict[int, np.ndarray] = field(default_factory=dict)

    @staticmethod
    def of(stage: Stage, dim: int) -> Scanner | None:
        """None where the codes are of another kind."""
        import torch

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
        return Scanner(stage, last.tables(1, dim), turn, rows[0])

    def search(self, queries: np.ndarray, blocks: list[Block], k: int, metric: str, dead: np.ndarray | None) -> Best:
        """The k nearest of every query among the blocks. dead: by number, what not to find."""
        from ...kernels.scan import candidates, query, scan

        out, bits, book = Best(len(queries), k), self.tables.widths[0], self.tables.of_head(0)
        turned = (queries - self.shift if metric == "l2" else queries) @ self.turn.T
        codes = [self._codes(b) for b in blocks]
        skips = [None if dead is None else dead[b.numbers] for b in blocks]
        for i, y in enumerate(turned):
            parts = [(v - x) ** 2 if metric == "l2" else -v * x for v, x in zip(y, book, strict=True)]
            q, best = query(parts, bits), np.full(k, 1 << 20, np.int64)
            found = [
                scan(c, bits, len(b.numbers), q, best, skip) for c, b, skip in zip(codes, blocks, skips, strict=True)
            ]
            for c, b, f in zip(codes, blocks, found, strict=True):
                near = candidates(f, q, best)
                if len(near):
                    cost = self._costs(c, near, len(b.numbers), parts)
                    if metric == "ip":
                        cost -= np.float32(queries[i] @ self.shift)
                    out.add(cost[None], b.numbers[near], np.array([i]))
        return out

    def _costs(self, codes: np.ndarray, places: np.ndarray, n: int, parts: list[np.ndarray]) -> np.ndarray:
        """float32 costs of some vectors of a block, from their codes."""
        from ...kernels.coordinates import BLOCK, block_bytes, unpack

        bits = self.tables.widths[0]
        size = block_bytes(bits)
        which, row = np.unique(places // BLOCK, return_inverse=True)
        some = codes.reshape(-1, size)[which].reshape(-1)
        index = unpack(some, bits, len(which) * BLOCK)[row * BLOCK + places % BLOCK]
        total = np.zeros(len(places), np.float64)
        for j, part in enumerate(parts):
            total += part[index[:, j]]
        return total.astype(np.float32)

    def _codes(self, block: Block) -> np.ndarray:
        """The codes of a block where they lie; checked when first seen."""
        first = int(block.numbers[0])
        if first not in self.views:
            with decode_budget(2 * len(block.data) + (1 << 20)):
                reader = Reader(block.data)
                n_bytes = len(read_sections(self.stage, reader)["payload"])
                reader.finish()
            size = int(self.tables.block_bytes[0]) * -(-len(block.numbers) // 64)
            if n_bytes != size:
                raise CorruptStream(
                    f"{n_bytes:,} bytes of codes for {len(block.numbers):,} vectors; {size:,} are right"
                )
            reader = Reader(block.data)  # the payload is the first section, and has one axis
            reader.take(1)
            reader.varint()
            self.views[first] = np.frombuffer(reader.take(size), np.uint8)
        return self.views[first]
