"""Keys and values on disk, of which attention reads what its queries ask for; what finds them stays in memory.

Rows            float16 rows in a file that has no name, memory-mapped
BlockStore      blocks of tokens found by their mean key
ClusterStore    clusters of like keys, each head its own, read until they hold enough of the attention
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...core.errors import BadConfig

if TYPE_CHECKING:
    from torch import Tensor

    from ...core.stage import Stage, Stats
    from .recipe import CacheRecipe
    from .store import Site


@dataclass(frozen=True)
class Retrieval:
    """How much is read. block: tokens of a block; n_blocks: of them, for each call.

    reindex: read tokens take the positions right in front of the window instead of their own. mass: of the attention that the
    clusters promise, the part that is read; bits: of a key's hash; distance: bits by which a key may differ from its cluster's.
    folder: where the file lies; None: the system's place for such files.
    """

    block: int = 64
    n_blocks: int = 4
    reindex: bool = True
    mass: float = 0.8
    bits: int = 32
    distance: int = 7
    folder: str | None = None

    def __post_init__(self) -> None:
        if self.block < 1 or self.n_blocks < 1:
            raise BadConfig(f"{self.n_blocks} blocks of {self.block} tokens; 1 or more of each are right")
        if not 0 < self.mass <= 1 or not 1 <= self.bits <= 64 or not 0 <= self.distance < self.bits:
            raise BadConfig(f"mass {self.mass}, {self.bits} bits, distance {self.distance}; above 0 to 1, 1 to 64, and "
                            "below the bits are right")  # fmt: skip


class Rows:
    """Rows of float16 in a file: appended to, read by number. The file is gone when this is."""

    def __init__(self, width: int, folder: str | None = None) -> None:
        self.width, self.n = width, 0
        self.file = tempfile.TemporaryFile(dir=folder, prefix="laconic-")
        self.map: np.memmap | None = None

    @property
    def nbytes(self) -> int:
        return 2 * self.width * self.n

    def append(self, rows: np.ndarray) -> int:
        """(n, width); the number of the first. Finite values beyond float16 are cut to its range."""
        start, self.map = self.n, None
        cut = np.where(np.isfinite(rows), np.clip(rows, -65504.0, 65504.0), rows).astype(np.float16)
        self.file.seek(2 * self.width * start)
        self.file.write(np.ascontiguousarray(cut).tobytes())
        self.file.flush()
        self.n += len(rows)
        return start

    def read(self, index: np.ndarray) -> np.ndarray:
        """Rows of any numbers, float32; no other page of the file is touched."""
        if self.map is None:
            self.map = np.memmap(self.file, np.float16, "r", shape=(self.n, self.width))
        return self.map[index].astype(np.float32)


class _DiskStore:
    """What both stores share. Row of token t, head h: first + (t − start) · n_heads + h, `first` of the run that t is in.

    loaded, asked: tokens of a head that were read, and that reading everything would have taken.
    """

    def __init__(self, retrieval: Retrieval, site: Site, first: int) -> None:
        self.retrieval, self.site, self.first = retrieval, site, first
        self.rows = Rows(site.d + site.d_value, retrieval.folder)
        self.runs: list[list[tuple[int, int]]] = []  # by sequence: (start, first)
        self.n_tokens, self.dropped, self.loaded, self.asked = 0, 0, 0, 0

    @property
    def nbytes(self) -> int:
        """In memory and on disk."""
        return self.memory_bytes + self.rows.nbytes

    @property
    def memory_bytes(self) -> int:
        """What finds the tokens."""
        raise NotImplementedError

    @property
    def notes(self) -> tuple[str, ...]:
        """What lies where, and how much of it queries had read."""
        part = self.loaded / self.asked if self.asked else 0.0
        return (f"{self.rows.nbytes:,} bytes on disk, {self.memory_bytes:,} in memory to find them; {part:.1%} read",)

    def _append(self, keys: Tensor, values: Tensor) -> None:
        if not self.runs:
            self.runs = [[] for _ in keys]
        for b, both in enumerate(torch.cat([keys, values], -1)):
            self.runs[b].append((self.n_tokens, self.rows.append(both.transpose(0, 1).flatten(0, 1).numpy())))
        self.n_tokens += keys.shape[2]

    def _read(self, b: int, at: np.ndarray) -> tuple[Tensor, Tensor]:
        """Keys and values at places (n_heads, n) of one sequence, as they were stored; zeros where a place is −1."""
        starts, firsts = (np.array(x) for x in zip(*self.runs[b], strict=True))
        run = np.searchsorted(starts, at, "right") - 1
        numbers = firsts[run] + (at - starts[run]) * len(at) + np.arange(len(at))[:, None]
        there = at >= 0
        out = np.zeros((*at.shape, self.rows.width), np.float32)
        out[there] = self.rows.read(numbers[there])
        both = torch.from_numpy(out)
        return both[..., : self.site.d], both[..., self.site.d :]

    def _count(self, at: np.ndarray) -> None:
        self.loaded += int((at >= 0).sum())
        self.asked += len(at) * (self.n_tokens - self.dropped)

    def _whole(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        at = np.broadcast_to(np.arange(start, stop), (self.site.n_heads, stop - start))
        keys, values = zip(*(self._read(b, at) for b in range(len(self.runs))), strict=True)
        return torch.stack(keys), torch.stack(values)

    def bounds(self) -> Iterator[tuple[int, int]]:
        size = self.retrieval.block
        yield from ((a, min(a + size, self.n_tokens)) for a in range(self.dropped, self.n_tokens, size))

    def select(self, index: Sequence[int]) -> None:
        self.runs = [list(self.runs[i]) for i in index]

    def crop(self, n_tokens: int) -> None:
        self.n_tokens = min(self.n_tokens, n_tokens)
        self.runs = [[r for r in runs if r[0] < n_tokens] for runs in self.runs]

    def forget(self, before: int) -> None:
        self.dropped = max(self.dropped, before)


class BlockStore(_DiskStore):
    """Blocks of tokens with their mean key, before RoPE; a call reads those whose mean is nearest to that of its queries.

    Source: Di et al. 2025, ReKV (2503.00540), section 3.2 (internal retrieval).
    """

    def __init__(self, retrieval: Retrieval, site: Site, first: int) -> None:
        super().__init__(retrieval, site, first)
        self.means: list[np.ndarray] = []  # by sequence: (n_blocks, n_heads · d) float16

    @property
    def memory_bytes(self) -> int:
        return sum(m.nbytes for m in {id(m): m for m in self.means}.values())

    def append(self, keys: Tensor, values: Tensor, stats: Sequence[Stats | None] | None = None) -> None:
        """n_tokens must be a multiple of the block."""
        if keys.shape[2] % self.retrieval.block:
            raise BadConfig(
                f"{keys.shape[2]} tokens for blocks of {self.retrieval.block}; let `group` be a multiple of it"
            )
        if self.site.rope is not None:
            keys = self.site.rope.turn(keys, self.first + self.n_tokens, back=True)
        means = keys.unflatten(2, (-1, self.retrieval.block)).mean(3).transpose(1, 2).flatten(2).half().numpy()
        self.means = (
            [np.concatenate(pair) for pair in zip(self.means, means, strict=True)] if self.means else list(means)
        )
        self._append(keys, values)

    def parts(self, queries: Tensor, n_new: int, end: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """queries: (n_batch, n_heads, groups · n_new, d), the last of them at place end − 1."""
        q = queries.unflatten(2, (-1, n_new))
        rope = self.site.rope
        if rope is not None:
            q = rope.turn(q, self.first + end - n_new, back=True)
        wanted = q.mean((2, 3)).flatten(1)
        found = [self._places(b, wanted[b]) for b in range(len(q))]
        longest = max(len(f) for f in found)
        at = np.stack([np.pad(f, (longest - len(f), 0), constant_values=-1) for f in found])
        spread = np.repeat(at[:, None], self.site.n_heads, 1)
        both = []
        for b, places in enumerate(spread):
            self._count(places)
            both.append(self._read(b, places))
        keys, values = (torch.stack(part) for part in zip(*both, strict=True))
        if rope is not None:
            keys = self._turned(keys, at)
        yield keys, values, torch.from_numpy(spread)

    def _places(self, b: int, wanted: Tensor) -> np.ndarray:
        """Places of the tokens of the best blocks, in order."""
        size, first = self.retrieval.block, -(-self.dropped // self.retrieval.block)
        means = torch.from_numpy(self.means[b].astype(np.float32))[first : -(-self.n_tokens // size)]
        near = torch.cosine_similarity(means, wanted[None], dim=1)
        best = near.topk(min(self.retrieval.n_blocks, len(near))).indices.sort().values.numpy() + first
        places = (best[:, None] * size + np.arange(size)).reshape(-1)
        return places[places < self.n_tokens]

    def _turned(self, keys: Tensor, at: np.ndarray) -> Tensor:
        """RoPE where tokens are read to, in front of the window, or where they were."""
        rope = self.site.rope
        assert rope is not None
        if self.retrieval.reindex:
            return rope.turn(keys, self.first + self.n_tokens - keys.shape[2])
        out = torch.empty_like(keys)
        for b, places in enumerate(at):
            for run in np.split(np.arange(len(places)), np.flatnonzero(np.diff(places) != 1) + 1):
                if len(run):
                    out[b, :, run] = rope.turn(keys[b, :, run], self.first + int(places[run[0]]))
        return out

    def tile(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        keys, values = self._whole(start, stop)
        return (keys if self.site.rope is None else self.site.rope.turn(keys, self.first + start)), values

    def select(self, index: Sequence[int]) -> None:
        super().select(index)
        self.means = [self.means[i] for i in index]

    def crop(self, n_tokens: int) -> None:
        super().crop(n_tokens)
        self.means = [m[: -(-n_tokens // self.retrieval.block)] for m in self.means]


@dataclass
class _Clusters:
    """Of one head. hashes: (n,) uint64 of their first member; sums: (n, d) float32 of rotated keys; members: places."""

    hashes: np.ndarray
    sums: np.ndarray
    members: list[list[int]] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return self.hashes.nbytes + self.sums.nbytes + 4 * sum(map(len, self.members))

    def copy(self) -> _Clusters:
        return _Clusters(self.hashes.copy(), self.sums.copy(), [list(m) for m in self.members])

    def add(self, hashes: np.ndarray, keys: np.ndarray, start: int, distance: int) -> None:
        """Tokens one by one: each joins the nearest cluster within `distance` bits, else it is the first of a new one."""
        known, sums = list(self.hashes), list(self.sums)
        table = np.zeros(len(known) + len(keys), np.uint64)
        table[: len(known)] = self.hashes
        for i, (code, key) in enumerate(zip(hashes, keys, strict=True)):
            n = len(known)
            apart = np.bitwise_count(table[:n] ^ code)
            if n and apart.min() <= distance:
                at = int(apart.argmin())
                sums[at] = sums[at] + key
                self.members[at].append(start + i)
            else:
                table[n] = code
                known.append(code)
                sums.append(key)
                self.members.append([start + i])
        self.hashes, self.sums = np.array(known, np.uint64), np.array(sums, np.float32)

    def keep(self, first: int, stop: int) -> None:
        """Only members within first … stop; sums keep what others gave to them."""
        left = [[m for m in members if first <= m < stop] for members in self.members]
        part = np.array([len(a) / len(b) for a, b in zip(left, self.members, strict=True)], np.float32)
        there = part > 0
        self.hashes, self.sums = self.hashes[there], (self.sums * part[:, None])[there]
        self.members = [m for m in left if m]

    def found(self, queries: np.ndarray, mass: float) -> np.ndarray:
        """Places for queries (rows, d), scaled: for each row the heaviest clusters until they hold `mass` of count · e^score."""
        counts = np.array([len(m) for m in self.members])
        score = queries @ (self.sums / counts[:, None]).T + np.log(counts)
        weight = np.exp(score - score.max(1, keepdims=True))
        weight /= weight.sum(1, keepdims=True)
        order = np.argsort(-weight, 1, kind="stable")
        ahead = np.take_along_axis(weight, order, 1)
        taken = np.cumsum(ahead, 1) - ahead < mass
        some = np.unique(order[taken])
        return np.sort(np.concatenate([np.array(self.members[i]) for i in some]))


class ClusterStore(_DiskStore):
    """Keys of each head in clusters of like hashes; a call reads as many as promise `mass` of its attention, head by head.

    A hash is the signs of projections onto random hyperplanes, of keys before RoPE. Keys lie rotated, at their own positions.
    Source: Kim et al. 2025, V-Rex (2512.12284), ReSV.
    """

    def __init__(self, retrieval: Retrieval, site: Site, first: int) -> None:
        super().__init__(retrieval, site, first)
        planes = np.random.default_rng(site.layer).standard_normal((site.d, retrieval.bits))
        self.planes = planes.astype(np.float32)
        self.clusters: list[list[_Clusters]] = []

    @property
    def memory_bytes(self) -> int:
        return sum(c.nbytes for heads in self.clusters for c in heads)

    def append(self, keys: Tensor, values: Tensor, stats: Sequence[Stats | None] | None = None) -> None:
        rope, start = self.site.rope, self.n_tokens
        before = keys if rope is None else rope.turn(keys, self.first + start, back=True)
        signs = (before.numpy() @ self.planes > 0).astype(np.uint64)
        hashes = (signs << np.arange(signs.shape[-1], dtype=np.uint64)).sum(-1, dtype=np.uint64)
        if not self.clusters:
            none = np.zeros(0, np.uint64), np.zeros((0, self.site.d), np.float32)
            self.clusters = [[_Clusters(*none) for _ in range(self.site.n_heads)] for _ in keys]
        for b, heads in enumerate(self.clusters):
            for h, clusters in enumerate(heads):
                clusters.add(hashes[b, h], keys[b, h].nan_to_num(0.0).numpy(), start, self.retrieval.distance)
        self._append(keys, values)

    def parts(self, queries: Tensor, n_new: int, end: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """queries: (n_batch, n_heads, rows, d), scaled and rotated."""
        q, mass = queries.numpy(), self.retrieval.mass
        found = [[c.found(q[b, h], mass) for h, c in enumerate(heads)] for b, heads in enumerate(self.clusters)]
        longest = max(len(f) for heads in found for f in heads)
        fill = {"constant_values": -1}
        at = np.stack([np.stack([np.pad(f, (0, longest - len(f)), **fill) for f in heads]) for heads in found])
        both = []
        for b, places in enumerate(at):
            self._count(places)
            both.append(self._read(b, places))
        keys, values = (torch.stack(part) for part in zip(*both, strict=True))
        yield keys, values, torch.from_numpy(at)

    def tile(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        return self._whole(start, stop)

    def select(self, index: Sequence[int]) -> None:
        super().select(index)
        self.clusters = [[c.copy() for c in self.clusters[i]] for i in index]

    def crop(self, n_tokens: int) -> None:
        super().crop(n_tokens)
        self._keep()

    def forget(self, before: int) -> None:
        if before > self.dropped:
            super().forget(before)
            self._keep()

    def _keep(self) -> None:
        for heads in self.clusters:
            for clusters in heads:
                clusters.keep(self.dropped, self.n_tokens)


def block_store(recipe: CacheRecipe, site: Site, keys: Stage, values: Stage, first: int) -> BlockStore:
    """Of ReKV. What lies on disk is in sixteen bits."""
    return BlockStore(_asked(recipe), site, first)


def cluster_store(recipe: CacheRecipe, site: Site, keys: Stage, values: Stage, first: int) -> ClusterStore:
    """Of V-Rex. What lies on disk is in sixteen bits."""
    return ClusterStore(_asked(recipe), site, first)


def _asked(recipe: CacheRecipe) -> Retrieval:
    if recipe.retrieve is None:
        raise BadConfig("a recipe that retrieves says how much; set `retrieve`")
    return recipe.retrieve
