"""`Index`: train, add, search, remove, reconstruct, merge, save, over any codec of vectors.

What `search` ranks is what `reconstruct` shows. Codes that have a fast scan (`scanning`) are compared as they lie; of others the
blocks that a search reads are decoded, a few thousand vectors at a time. `nbytes` is the true memory of codes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core import registry
from ...core.errors import BadConfig, BadInput, ModelMismatch, NotFitted
from ...core.packet import codec
from ...core.stage import Kind, Stage
from ...core.telling import told_to
from .blocks import Block, checked_ids, decode_rows, encode_rows, pieces
from .ranking import Best, as_rows, check_metric, costs, directions
from .scanning import Opened, Scanner, opened, scanner

if TYPE_CHECKING:
    from ...kernels.shortlist import Estimates

MAX_DIM = 4096
_ROWS_A_LIST = 4  # training vectors that a list needs
_TOGETHER = 4096  # queries that are scanned together
_READ = 16  # originals that are read at a time
_SHORTLIST, _LEAST = 4, 32  # times k, and at least, of a coarse index
_LISTED = 1 << 24  # vectors on the short lists of queries that are scanned together
_ROUNDING = 1e-5  # of costs in float32


class Index:
    """Vectors at `bits` a coordinate, found by their nearness.

    dim: coordinates, 1 to 4096. metric: "l2" (squared distances, small is near), "ip" (inner products, large is near) or
    "cosine" (the same of directions). recipe: an id of `laconic.recipes("vectors")`, or "auto": the one of least error on the
    training vectors. bits: what the recipe's setting is called, whatever that recipe counts in it; `bits_per_dim` says what
    is kept. lists: inverted lists, 0 for none; a list's mean is taken from its vectors before they are coded. coarse: of codes
    with a fast scan, how many bits of each coordinate, 0 to 7, a search leaves to those vectors that estimates put on a short
    list; with lists, at 4 bits, 2 makes short lists half as fast again. originals: a file that gets the vectors as they are,
    float32, for `search(..., rescore=n)`. threads: of a search. settings: of the recipe.

    Errors: BadConfig for settings, BadInput for data, NotFitted before `train`, CorruptStream from a damaged file.
    """

    def __init__(
        self,
        dim: int,
        metric: str = "l2",
        recipe: str = "auto",
        bits: float = 4.0,
        lists: int = 0,
        seed: int = 0,
        *,
        coarse: int = 0,
        originals: str | PathLike[str] | None = None,
        threads: int = 1,
        **settings: Any,
    ) -> None:
        check_metric(metric)
        if not 1 <= dim <= MAX_DIM:
            raise BadConfig(f"{dim} dimensions; 1 to {MAX_DIM} are right")
        if lists < 0 or lists > 1 << 20:
            raise BadConfig(f"lists={lists}; 0 to {1 << 20} are right")
        if not isinstance(coarse, (int, np.integer)) or isinstance(coarse, bool) or not 0 <= coarse <= 7:
            raise BadConfig(f"coarse={coarse}; 0 to 7 bits are right")
        self.dim, self.metric, self.recipe, self.bits = dim, metric, recipe, bits
        self.lists, self.seed, self.threads, self.settings, self.coarse = lists, seed, threads, settings, int(coarse)
        self.centroids: np.ndarray | None = None
        self.list_prices: np.ndarray | None = None  # float32 (lists,), of balanced lists, see `lists`
        self.query_map: np.ndarray | None = (
            None  # float32 (dim + 1, dim), what `tune` learned: q ↦ q M + m, m the last row
        )
        self.stage: Stage | None = None if recipe == "auto" else recipe_stage(recipe, bits, seed, settings)
        self.trained = self.stage is not None and not lists and not self.stage.arrays()
        if self.stage is not None and self.trained:  # nothing to learn but the number of dimensions
            import torch

            self.stage = self.stage.fit(torch.eye(dim))
        self._blocks: list[Block] = []
        self._ids: np.ndarray | None = None  # by number, where they are not the numbers
        self._dead: np.ndarray | None = None  # by number, where something was removed
        self._errors: np.ndarray | None = (
            None  # by number, where originals are kept: float32, how far each is from its code
        )
        self._n = 0
        self._places: tuple[np.ndarray, np.ndarray] | None = None
        self._scanner: tuple[Scanner | None] | None = None  # once it was looked for
        self._opened: Opened | None = None
        self._estimates: tuple[Opened, Estimates] | None = None  # of what was opened
        self._means: tuple[np.ndarray, np.ndarray, np.ndarray] | None = (
            None  # centroids, their centre, and they around it
        )
        self._originals = None if originals is None else Path(originals)
        if self._originals is not None:
            self._originals.write_bytes(b"")

    # --- Filling ------------------------------------------------------------------------------------------------------

    def train(
        self,
        x: Any,
        *,
        balanced: bool = False,
        progress: Callable[[int, int, str], None] | None = None,
        checkpoint: str | PathLike[str] | None = None,
    ) -> Index:
        """Learns lists and codec from (n, dim) vectors. Raises BadInput where they are too few, with the number needed.

        balanced: lists of about equal size. progress: called with steps done, steps in all, and a word, while lists and
        slow codecs are learned. checkpoint: a file in which the lists are kept step by step; the same training goes on from it
        after a stop.
        """
        rows = self._rows(x, "training vectors")
        if self._blocks:
            raise BadInput(f"the index holds {len(self):,} vectors of another training; train a new one")
        least = max(_ROWS_A_LIST * self.lists, 2 if self.trained else self.dim)
        if len(rows) < least:
            raise BadInput(
                f"{len(rows)} training vectors; {least} or more are needed, {self.dim} dimensions and {self.lists} lists"
            )
        if self.lists:
            from .lists import SAMPLE, learn

            some = np.ascontiguousarray(rows[:: max(1, len(rows) // (SAMPLE * self.lists))])
            file = None if checkpoint is None else Path(checkpoint)
            self.centroids, self.list_prices = learn(some, self.lists, self.seed, balanced, progress, file)
            rows = rows - self.centroids[self._assign(rows)]
        if self.recipe == "auto":
            from .auto import CANDIDATES, SCANNED, choose

            self.recipe = choose(rows, self.bits, self.seed, self.settings, SCANNED if self.coarse else CANDIDATES)
            self.stage = recipe_stage(self.recipe, self.bits, self.seed, self.settings)
        import torch

        assert self.stage is not None
        with told_to(progress):
            self.stage = self.stage.fit(torch.from_numpy(rows if rows.flags.writeable else rows.copy()))
        self.trained, self._scanner, self._opened = True, None, None
        if self.coarse:
            self._scan()  # says where the codec has none
        return self

    def add(self, x: Any, ids: Any = None) -> Index:
        """Codes (n, dim) vectors. ids: (n,) integers from 0 on, each once; by default 0, 1, 2, … in the order of adding.

        A call makes blocks of its own, some 200 bytes each beside the codes: add a thousand vectors at a time or more.
        """
        stage = self._ready()
        rows = self._rows(x, "vectors")
        names = self._fresh(ids, len(rows))
        numbers = np.arange(self._n, self._n + len(rows))
        lists = self._assign(rows) if self.centroids is not None else None
        found, scan = [], self._scan()
        for list_, at in pieces(len(rows), self.dim, lists):
            part = rows[at] if self.centroids is None else rows[at] - self.centroids[list_]
            found.append(Block(encode_rows(stage, np.ascontiguousarray(part), scan), numbers[at], list_))
        if self._originals is not None:
            with self._originals.open("ab") as f:
                f.write(rows.tobytes())
            self._errors = self._errors_with(rows, found)
        if names is not None or self._ids is not None:
            old = np.arange(self._n) if self._ids is None else self._ids
            self._ids = np.concatenate([old, numbers if names is None else names])
        if self._dead is not None:
            self._dead = np.append(self._dead, np.zeros(len(rows), bool))
        self._blocks += found
        self._n += len(rows)
        self._places = self._opened = None
        return self

    def remove(self, ids: Any) -> int:
        """Forgets vectors; says how many of the ids were there. Their codes are kept until `save`, which leaves out blocks of
        which nothing is left."""
        found = self._numbers(checked_ids(ids, None, "ids"))
        found = np.unique(found[found >= 0])
        if len(found):
            if self._dead is None:
                self._dead = np.zeros(self._n, bool)
            self._dead[found] = True
            self._blocks = [b for b in self._blocks if not self._dead[b.numbers].all()]
            self._places = self._opened = None
        return len(found)

    def tune(
        self,
        queries: Any,
        positives: Any,
        *,
        encoder: Any = None,
        epochs: int = 4,
        negatives: int = 50,
        rate: float = 1.0,
        seed: int = 0,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Index:
        """Moves the points of a product code, and the queries, until what should be found ranks first; codes stay as they are.

        queries: (n, dim), and positives: (n,) ids that they should find. A linear map of queries is learned and kept in the
        index, which then applies it in every search. encoder: a torch module to be trained in its place; it takes lists of
        what `queries` then holds and gives (n, dim) tensors, and searches take what it gives. See `tuning.tune`.
        """
        from .tuning import tune

        tune(self, queries, positives, encoder, epochs, negatives, rate, seed, progress)
        return self

    def empty(self) -> Index:
        """Another index of the same training, without vectors: for shards, which `merge` puts together."""
        self._ready()
        out = copy.copy(self)
        out._blocks, out._n = [], 0
        out._ids = out._dead = out._places = out._opened = out._originals = out._errors = out._estimates = None
        return out

    def merge(self, *others: Index) -> Index:
        """Takes over the vectors of other indices of the same training. Raises ModelMismatch, BadInput for ids in two of them."""
        mine = self.model_hash()
        for other in others:
            if mine != other.model_hash() or (self.dim, self.metric) != (other.dim, other.metric):
                raise ModelMismatch(
                    "the other index has another metric, recipe, coarse or training; only shards of one training are merged"
                )
            if (self._originals is None) != (other._originals is None):
                raise BadInput("one index keeps originals, the other does not")
        every = (self, *others)
        if sum(i._ids is None and i._n > 0 for i in every) > 1:
            raise BadInput("both indices count their ids from 0; give ids to `add` to merge them")
        values, counts = np.unique(np.concatenate([i.ids() for i in every]), return_counts=True)
        if (counts > 1).any():
            raise BadInput(f"id {int(values[counts > 1][0])} is in both")
        ids = np.concatenate([np.arange(i._n) if i._ids is None else i._ids for i in every])
        if any(i._dead is not None for i in every):
            self._dead = np.concatenate([i._dead if i._dead is not None else np.zeros(i._n, bool) for i in every])
        for other in others:
            if self._originals is not None and other._originals is not None:
                with self._originals.open("ab") as f:
                    f.write(other._originals.read_bytes())
            self._blocks += [b._replace(numbers=b.numbers + self._n) for b in other._blocks]
            self._n += other._n
        known = [i._errors for i in every if i._errors is not None]
        self._errors = np.concatenate(known) if sum(map(len, known)) == self._n and known else None
        self._ids = None if np.array_equal(ids, np.arange(self._n)) else ids
        self._places = self._opened = None
        return self

    # --- Reading ------------------------------------------------------------------------------------------------------

    def search(
        self,
        q: Any,
        k: int,
        *,
        probe: int | None = None,
        rescore: int = 0,
        shortlist: int | None = None,
        allowed: Any = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest of every query: (n, k) distances float32 and ids int64, nearest first, ties by the order of adding.

        Where there are fewer than k, ids are −1 and distances inf (l2) or −inf. probe: lists that a query reads, a sixteenth of
        all by default. rescore: candidates that are compared once more, as originals; those are not read whose code lies too
        far away for its error. shortlist: of codes with a fast scan, how many vectors of least estimates are compared by their
        codes; 0 for all that may be among the nearest, which is exact, and slow where the index is coarse. By default 4 k, 32 at
        least, where it is coarse, and 0 where it is not. Of sentences' embeddings at 4 bits, 2 k lose one neighbour in
        500, with coarse=2 one in 50, and 4 k of these one in 600. The first short list after a change reads all codes.
        allowed: ids among which to search.
        """
        queries = self._queries(q)
        self._ready()
        wanted = max(k, rescore)
        if shortlist is None:
            shortlist = max(_SHORTLIST * k, _LEAST) if self.coarse else 0
        if shortlist < 0:
            raise BadConfig(f"shortlist={shortlist}; 0 or more is right")
        if rescore and self._originals is None:
            raise BadConfig("rescore needs originals; make the index with originals=PATH")
        best = Best(len(queries), max(1, min(wanted, max(self._n, k))))
        dead = self._outside(allowed)
        scan, near = self._scan(), self._near(queries, probe)
        if (
            scan is not None
            and not shortlist
            and not scan.pays(len(queries) * (1 if near is None else near.shape[1] / self.lists))
        ):
            scan = None
        if scan is not None:
            self._scanned(scan, queries, near, dead, shortlist, best)
        for at, block, rows in [] if scan is not None else self._read(near):
            cost = costs(queries if at is None else queries[at], rows, self.metric)
            if dead is not None:
                cost[:, dead[block.numbers]] = np.inf
            best.add(cost, block.numbers, at)
        if rescore:
            best = self._rescored(queries, best, k)
        out = Best(len(queries), k)
        m = min(k, best.cost.shape[1])
        out.cost[:, :m], out.number[:, :m] = best.cost[:, :m], best.number[:, :m]
        ids = out.number if self._ids is None else np.where(out.number >= 0, self._ids[out.number], -1)
        return out.distances(self.metric), ids

    def reconstruct(self, ids: Any) -> np.ndarray:
        """(n, dim) float32: what the codes of these vectors stand for. Raises BadInput for an id that is not there."""
        wanted = checked_ids(ids, None, "ids")
        numbers = self._numbers(wanted)
        if (numbers < 0).any():
            raise BadInput(f"id {int(wanted[numbers < 0][0])} is not in the index")
        out = np.empty((len(wanted), self.dim), np.float32)
        block, row = self._where()
        for b in np.unique(block[numbers]):
            mine = block[numbers] == b
            out[mine] = self._open(self._blocks[b])[row[numbers[mine]]]
        return out

    def encode(self, x: Any) -> bytes:
        """The codec view: vectors as one string of bytes. Without lists."""
        if self.lists:
            raise BadConfig("codes of an index with lists depend on the list; use add, or an index with lists=0")
        rows = self._rows(x, "vectors")
        return len(rows).to_bytes(8, "little") + encode_rows(self._ready(), rows)

    def decode(self, codes: bytes) -> np.ndarray:
        """What `encode` was given, as the codec keeps it: (n, dim) float32."""
        n = int.from_bytes(codes[:8], "little")
        if len(codes) < 8 or n > 1 << 40:
            raise BadInput(f"{len(codes)} bytes of codes for {n} vectors")
        return decode_rows(self._ready(), memoryview(codes)[8:], n, self.dim)

    def ids(self) -> np.ndarray:
        """Of all vectors that are there, in the order of adding."""
        every = np.arange(self._n) if self._ids is None else self._ids
        return every if self._dead is None else every[~self._dead]

    def __len__(self) -> int:
        return self._n - (0 if self._dead is None else int(self._dead.sum()))

    # --- Numbers ------------------------------------------------------------------------------------------------------

    @property
    def code_bytes(self) -> int:
        """Of all codes with norms, factors, framing and checksums."""
        return sum(len(b.data) for b in self._blocks)

    @property
    def bits_per_dim(self) -> float:
        """8 · code_bytes over the coordinates of all vectors that are there; ids, lists and what is learned are not in it."""
        return 8 * self.code_bytes / max(1, len(self) * self.dim)

    @property
    def model_bytes(self) -> int:
        """Of what was learned and is shared by all vectors."""
        learned = [] if self.stage is None else [a for _, a in self.stage.arrays().values() if a is not None]
        return sum(a.nbytes for a in (*learned, self.centroids, self.list_prices, self.query_map) if a is not None)

    @property
    def nbytes(self) -> int:
        """All memory that grows with the vectors, and what was learned; 2 bytes a vector, of cosine 4, for short lists."""
        numbers = sum(b.numbers.nbytes for b in self._blocks) if self.lists else 0
        named = 0 if self._ids is None else self._ids.nbytes
        known = self._estimates[1] if self._estimates is not None and self._estimates[0] is self._opened else None
        named += sum(a.nbytes for a in (self._dead, self._errors, known) if a is not None)
        return self.code_bytes + self.model_bytes + numbers + named

    def report(self) -> dict[str, Any]:
        """Sizes and settings, for people."""
        return {
            "vectors": len(self), "dim": self.dim, "metric": self.metric, "recipe": self.recipe, "lists": self.lists,
            "coarse": self.coarse,
            "blocks": len(self._blocks), "bits_per_dim": round(self.bits_per_dim, 4), "code_bytes": self.code_bytes,
            "model_bytes": self.model_bytes, "nbytes": self.nbytes, "float32_bytes": 4 * len(self) * self.dim,
        }  # fmt: skip

    def model_hash(self) -> str:
        """Of settings and everything learned; shards of one training agree in it."""
        import json

        import xxhash

        said = xxhash.xxh3_128()
        said.update(
            json.dumps(
                [
                    self.recipe,
                    self.dim,
                    self.metric,
                    registry.config(self._ready()),
                    *([self.coarse] if self.coarse else []),
                ],
                sort_keys=True,
            ).encode()
        )
        for name, (_, array) in self._ready().arrays().items():
            said.update(name.encode() + (b"" if array is None else array.tobytes()))
        for own in (self.centroids, self.list_prices, self.query_map):
            said.update(b"" if own is None else own.tobytes())
        return said.hexdigest()

    # --- Files --------------------------------------------------------------------------------------------------------

    def save(self, path: str | PathLike[str]) -> None:
        """Writes one file, in place of an old one only when it is whole."""
        from .saving import save

        save(self, path)

    @staticmethod
    def load(path: str | PathLike[str], *, mmap: bool = True, originals: str | PathLike[str] | None = None) -> Index:
        """Opens a file of `save`. mmap: codes stay on disk until they are read. Raises CorruptStream."""
        from .saving import load

        return load(path, mmap=mmap, originals=originals)

    # --- Inside -------------------------------------------------------------------------------------------------------

    def _ready(self) -> Stage:
        if not self.trained or self.stage is None:
            raise NotFitted("the index has learned nothing yet; call train(x) first")
        return self.stage

    def _rows(self, x: Any, what: str) -> np.ndarray:
        rows = as_rows(x, self.dim, what)
        return directions(rows) if self.metric == "cosine" else rows

    def _queries(self, q: Any) -> np.ndarray:
        queries = self._rows(q, "queries")
        if self.query_map is None:
            return queries
        queries = queries @ self.query_map[:-1] + self.query_map[-1]
        return directions(queries) if self.metric == "cosine" else queries

    def _assign(self, rows: np.ndarray) -> np.ndarray:
        from ...kernels.distance import half_norms, nearest, points

        assert self.centroids is not None
        prices = None if self.list_prices is None else half_norms(self.centroids) + self.list_prices
        return nearest(rows, points(self.centroids, prices))[0]

    def _fresh(self, ids: Any, n: int) -> np.ndarray | None:
        if ids is None and self._ids is None:
            return None
        names = np.arange(self._n, self._n + n) if ids is None else checked_ids(ids, n, "ids")
        values, counts = np.unique(names, return_counts=True)
        if (counts > 1).any():
            raise BadInput(f"id {int(values[counts > 1][0])} is given {int(counts.max())} times")
        if (twice := np.intersect1d(values, self.ids())).size:
            raise BadInput(f"id {int(twice[0])} is in the index already")
        return names

    def _numbers(self, ids: np.ndarray) -> np.ndarray:
        """Number of every id, −1 where it is not there."""
        if self._ids is None:
            out = np.where(ids < self._n, ids, -1)
            alive = (
                np.ones(len(out), bool)
                if self._dead is None
                else ~self._dead[np.maximum(out, 0)]
                if self._n
                else out >= 0
            )
            return np.where((out >= 0) & alive, out, -1)
        numbers = np.arange(self._n) if self._dead is None else np.flatnonzero(~self._dead)
        if not len(numbers):
            return np.full(len(ids), -1)
        names = self._ids[numbers]
        order = np.argsort(names, kind="stable")
        at = np.minimum(np.searchsorted(names[order], ids), len(names) - 1)
        return np.where(names[order[at]] == ids, numbers[order[at]], -1)

    def _where(self) -> tuple[np.ndarray, np.ndarray]:
        """Block and row in it, by number."""
        if self._places is None:
            block, row = np.full(self._n, -1, np.int32), np.full(self._n, -1, np.int32)
            for b, found in enumerate(self._blocks):
                block[found.numbers], row[found.numbers] = b, np.arange(len(found.numbers))
            self._places = block, row
        return self._places

    def _scan(self) -> Scanner | None:
        """The scan of codes as they lie, where codec and metric have it."""
        if self._scanner is None:
            found = scanner(self._ready(), self.dim, self.metric, self.coarse)
            if found is None and self.coarse:
                raise BadConfig(f"coarse={self.coarse} of {self.recipe!r}, which has no fast scan; coarse=0 is right")
            if found is not None and self.coarse and not found.where.n_columns:
                bits = int(found.where.bits.max())
                raise BadConfig(f"coarse={self.coarse} leaves nothing to estimate by, of codes of {bits} bits at most")
            self._scanner = (found,)
        return self._scanner[0]

    def _scanned(
        self,
        scan: Scanner,
        queries: np.ndarray,
        near: np.ndarray | None,
        dead: np.ndarray | None,
        shortlist: int,
        best: Best,
    ) -> None:
        from ...kernels.scan import neighbours
        from ...kernels.shortlist import shortlisted

        centroids = np.zeros((1, self.dim), np.float32) if self.centroids is None else self.centroids
        if (read_from := self._opened) is None:
            self._opened = read_from = opened(self._ready(), scan, self._blocks, centroids)
        known = self._estimates
        if shortlist and (known is None or known[0] is not read_from):
            self._estimates = known = read_from, read_from.estimates()
        together = max(1, min(_TOGETHER, _LISTED // max(1, min(shortlist, self._n))))
        for at in range(0, len(queries), together):
            part = slice(at, at + together)
            costs = read_from.costs._replace(queries=scan.turned(queries[part], self.threads))
            codes, k = read_from.codes, best.cost.shape[1]
            read = None if near is None else near[part]
            if shortlist and known is not None:
                read = np.zeros((len(costs.queries), 1), np.int64) if read is None else read
                found = shortlisted(costs, codes, known[1], k, read, shortlist, dead=dead, threads=self.threads)
            else:
                found = neighbours(costs, codes, k, near=read, dead=dead, threads=self.threads)
            best.cost[part], best.number[part] = found

    def _scattered(self) -> bool:
        """Whether blocks hold other vectors than runs of neighbours."""
        return any(len(b.numbers) != int(b.numbers[-1]) - int(b.numbers[0]) + 1 for b in self._blocks) or bool(
            self.lists
        )

    def _open(self, block: Block) -> np.ndarray:
        rows = decode_rows(self._ready(), block.data, len(block.numbers), self.dim, self._scan())
        return rows if self.centroids is None else rows + self.centroids[block.list_]

    def _outside(self, allowed: Any) -> np.ndarray | None:
        """By number, True for what a search must not find; None where that is nothing."""
        if allowed is None:
            return self._dead
        found = self._numbers(checked_ids(allowed, None, "allowed ids"))
        out = np.ones(self._n, bool)
        out[found[found >= 0]] = False
        return out

    def _near(self, queries: np.ndarray, probe: int | None) -> np.ndarray | None:
        """(n, probe) lists that each query reads, nearest first; None without lists."""
        from ...kernels.product import product

        if self.centroids is None:
            return None
        n = min(self.lists, max(1, self.lists // 16) if probe is None else probe)
        if n < 1:
            raise BadConfig(f"probe={probe}; at least 1 is right")
        if self._means is None or self._means[0] is not self.centroids:
            # Of l2 without what is common to all of them, which products in float32 would be rounded by.
            centre = self.centroids.mean(0, dtype=np.float64).astype(np.float32) * np.float32(self.metric == "l2")
            self._means = self.centroids, centre, np.ascontiguousarray((self.centroids - centre).T)
        _, centre, means = self._means
        products = product(queries - centre, means, threads=self.threads)
        cost = costs(queries - centre, means.T, self.metric, products)
        some = np.argpartition(cost, n - 1, axis=1)[:, :n]
        return np.take_along_axis(some, np.argsort(np.take_along_axis(cost, some, 1), 1, kind="stable"), 1)

    def _read(self, near: np.ndarray | None) -> Iterator[tuple[np.ndarray | None, Block, np.ndarray]]:
        """(places of the queries that read it, None for all; block; its vectors)."""
        wanted: list[tuple[np.ndarray | None, Block]] = [(None, b) for b in self._blocks]
        if near is not None:
            readers = [np.flatnonzero((near == c).any(1)) for c in range(self.lists)]
            wanted = [(readers[b.list_], b) for b in self._blocks if len(readers[b.list_])]
        if self.threads <= 1 or len(wanted) < 2:
            yield from ((at, b, self._open(b)) for at, b in wanted)
            return
        with ThreadPoolExecutor(self.threads) as pool:
            step = 4 * self.threads  # so many opened blocks are held at once
            for i in range(0, len(wanted), step):
                some = wanted[i : i + step]
                for (at, b), rows in zip(some, pool.map(self._open, [b for _, b in some]), strict=True):
                    yield at, b, rows

    def _rescored(self, queries: np.ndarray, best: Best, k: int) -> Best:
        assert self._originals is not None
        size = 4 * self._n * self.dim
        if not self._originals.exists() or self._originals.stat().st_size != size:
            raise BadInput(f"{self._originals} does not hold {size:,} bytes, the originals of {self._n:,} vectors")
        rows = (
            np.memmap(self._originals, np.float32, "r", shape=(self._n, self.dim))
            if self._n
            else np.empty((0, self.dim))
        )
        out = Best(len(queries), k)
        for i, (numbers, cost) in enumerate(zip(best.number, best.cost, strict=True)):
            found = numbers[numbers >= 0]
            least = self._least(queries[i], cost[numbers >= 0], found)
            order = np.argsort(least, kind="stable")
            for at in range(0, len(found), max(k, _READ)):
                some = order[at : at + max(k, _READ)]
                some = some[least[some] <= out.cost[i, -1]]
                if not len(some):
                    break
                near = np.sort(found[some])
                out.add(costs(queries[i : i + 1], np.asarray(rows[near]), self.metric), near, np.array([i]))
        return out

    def _errors_with(self, rows: np.ndarray, found: list[Block]) -> np.ndarray | None:
        """Errors of all vectors with those that were just coded; rows: of the latter, in their order."""
        if self._errors is None and self._n:
            return None
        new = np.empty(len(rows), np.float32)
        for block in found:
            at = block.numbers - self._n
            coded = self._open(block)
            coded = directions(coded) if self.metric == "cosine" else coded
            new[at] = np.sqrt(np.square(rows[at] - coded, dtype=np.float64).sum(1)) * (1 + 1e-6)
        return new if self._errors is None else np.concatenate([self._errors, new])

    def _least(self, query: np.ndarray, cost: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """What originals cost at least, by the cost of their codes and how far they are from these: float64."""
        if self._errors is None:
            return np.full(len(numbers), -np.inf)
        error, power = self._errors[numbers].astype(np.float64), float(np.square(query, dtype=np.float64).sum())
        if self.metric == "l2":
            far = np.sqrt(cost.astype(np.float64))
            return np.square(np.maximum(far - error, 0)) - _ROUNDING * (power + np.square(far + error))
        norm = math.sqrt(power)
        return cost.astype(np.float64) - norm * error - _ROUNDING * (np.abs(cost) + norm * error + norm)


def recipe_stage(recipe: str, bits: float, seed: int, settings: dict[str, Any]) -> Stage:
    """A recipe's codec at `bits`, with the seed where it takes one. Raises BadConfig for one that is not for vectors."""
    import inspect

    if registry.recipe(recipe).domain != "vectors":
        raise BadConfig(
            f"recipe {recipe!r} is for {registry.recipe(recipe).domain}; for vectors are {registry.recipes('vectors')}"
        )
    takes = inspect.signature(registry.load(registry.recipe(recipe).target)).parameters
    whole = isinstance(takes["bits"].default, int)
    if whole and not math.isclose(bits, round(bits)):
        raise BadConfig(f"bits={bits}; recipe {recipe!r} takes whole bits")
    given: dict[str, Any] = {
        "bits": round(bits) if whole else float(bits),
        **({"seed": seed} if "seed" in takes else {}),
    }
    stage = codec(recipe, **{**given, **settings}).stage
    assert stage.gives is Kind.BYTES
    return stage
