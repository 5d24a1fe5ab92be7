"""Tokens that are coded: appended in whole groups, read in tiles, never decoded and coded again.

CodedPast      any codec; a run is what one append gave, one payload a sequence of the batch
PagedPast      codecs that end in `CoordinateCodes`: codes lie in pages that the attention kernel reads as they are
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...core.stage import Side, Stage, Stats
from ...quantize.coordinates import BLOCK

if TYPE_CHECKING:
    from torch import Tensor

TILE = 16 * BLOCK  # tokens that are decoded at once where no kernel reads codes


class Share(NamedTuple):
    """One sequence's share of a run.

    codec: where it learned from the group itself (then what it learned counts), else None. exact: plain float16, for what
    no codec takes.
    """

    payload: bytes
    side: Side
    codec: Stage | None = None
    exact: bool = False

    @property
    def nbytes(self) -> int:
        """Payload, side information, and what the codec learned from this group alone."""
        own = sum(a.nbytes for _, a in self.codec.arrays().values() if a is not None) if self.codec is not None else 0
        return len(self.payload) + side_bytes(self.side) + own


@dataclass(frozen=True)
class Run:
    """Tokens start … stop of every sequence. stop may lie before what was coded: the rest was cropped away."""

    start: int
    stop: int
    coded: tuple[Share, ...]


class CodedPast:
    """Keys or values of one layer behind a codec that takes (n_heads, n_tokens, d).

    n_batch is known from the first append. exact: groups that held NaN or Inf and were kept in sixteen bits.
    """

    paged = False

    def __init__(self, codec: Stage, learns: str = "never") -> None:
        self.codec, self.learns = codec, learns
        self.runs: list[Run] = []
        self.exact = 0
        self.broken: set[int] = set()  # heads that brought NaN or Inf

    @property
    def n_tokens(self) -> int:
        """Tokens that are coded."""
        return self.runs[-1].stop if self.runs else 0

    @property
    def nbytes(self) -> int:
        """Every byte that is held, what beams share once."""
        return sum(c.nbytes for c in {id(c): c for r in self.runs for c in r.coded}.values())

    def append(self, x: Tensor, stats: Sequence[Stats | None] | None = None) -> None:
        """x: (n_batch, n_heads, n_tokens, d) float32."""
        start = self.n_tokens
        coded = tuple(self._coded(x[b], None if stats is None else stats[b]) for b in range(len(x)))
        self.runs.append(Run(start, start + x.shape[-2], coded))

    def _coded(self, x: Tensor, stats: Stats | None) -> Share:
        import torch

        if not bool(torch.isfinite(x).all()):
            self.exact += 1
            self.broken |= _broken(x)
            return Share(x.to(torch.float16).numpy().tobytes(), {"outer": np.array(x.shape, np.int64)}, exact=True)
        if self.learns != "group":
            return Share(*self.codec.encode(x))
        codec = self.codec.fit(x, stats)
        return Share(*codec.encode(x), codec)

    def tile(self, start: int, stop: int) -> Tensor:
        """(n_batch, n_heads, stop − start, d) float32."""
        import torch

        found = [
            self._decoded(r)[:, :, max(start - r.start, 0) : min(stop, r.stop) - r.start]
            for r in self._over(start, stop)
        ]
        return torch.cat(found, 2)

    def bounds(self) -> Iterator[tuple[int, int]]:
        """Tiles that are decoded at once."""
        yield from ((r.start, r.stop) for r in self.runs)

    def _over(self, start: int, stop: int) -> list[Run]:
        return [r for r in self.runs if r.start < stop and r.stop > start]

    def _decoded(self, run: Run) -> Tensor:
        import torch

        seen: dict[int, Tensor] = {}
        for c in run.coded:
            if id(c) not in seen:
                seen[id(c)] = decoded(c, self.codec)[:, : run.stop - run.start]
        return torch.stack([seen[id(c)] for c in run.coded])

    def select(self, index: Sequence[int]) -> None:
        """Sequences in a new order, some perhaps more than once: nothing is copied."""
        self.runs = [replace(r, coded=tuple(r.coded[i] for i in index)) for r in self.runs]

    def crop(self, n_tokens: int) -> None:
        """Forget what lies behind `n_tokens`; codes of a group that is cut stay as they are."""
        self.runs = [replace(r, stop=min(r.stop, n_tokens)) for r in self.runs if r.start < n_tokens]

    def forget(self, before: int) -> None:
        """Let go of runs that end at or before token `before`."""
        self.runs = [r for r in self.runs if r.stop > before]


def _broken(x: Tensor) -> set[int]:
    """Heads of (..., n_heads, n_tokens, d) with NaN or Inf."""
    some = ~x.isfinite().all(-1).all(-1).reshape(-1, x.shape[-3]).all(0)
    return set(some.nonzero().flatten().tolist())


def decoded(c: Share, codec: Stage) -> Tensor:
    """(n_heads, n_tokens, d) float32."""
    import torch

    if c.exact:
        shape = tuple(int(n) for n in c.side["outer"])
        return torch.from_numpy(np.frombuffer(c.payload, np.float16).reshape(shape).astype(np.float32))
    return (c.codec or codec).decode(c.payload, c.side)


def side_bytes(side: Side) -> int:
    """Bytes of side information, nested codecs' payloads included."""
    return sum(
        side_bytes(v) if isinstance(v, dict) else len(v) if isinstance(v, bytes) else v.nbytes for v in side.values()
    )


class Page(NamedTuple):
    """A block of 64 tokens of all heads, as it lies in memory; never written to again, so that sequences may share it.

    codes: uint8, head behind head; norms: float16 (n_heads, 64), or None. at: where the two begin.
    """

    codes: np.ndarray
    norms: np.ndarray | None
    at: tuple[int, int]

    @classmethod
    def of(cls, codes: np.ndarray, norms: np.ndarray | None) -> Page:
        """With addresses."""
        return cls(codes, norms, (codes.ctypes.data, 0 if norms is None else norms.ctypes.data))

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + (0 if self.norms is None else self.norms.nbytes)


class PagedPast:
    """Keys or values of one layer behind affine stages and `CoordinateCodes`, as the attention kernel reads them.

    pages: by sequence of the batch, then in order. dropped: pages at the front that were let go of. Tokens may come one by
    one: a block that is not full yet is laid out anew with the codes that it has.
    """

    paged = True

    def __init__(self, codec: Stage, n_heads: int, d: int) -> None:
        import torch

        from ...kernels.attend import Decoder

        stages = codec.children()
        *front, last = stages.values() if stages else [codec]
        self.codec, self.front, self.codes = codec, front, last
        # The stages in front are affine, so what they do to the origin and to unit vectors says it all.
        origin = self._analysed(torch.zeros(n_heads, 1, d))
        unit = torch.eye(d).expand(n_heads, d, d).contiguous()
        self.analysis, self.shift = self._analysed(unit) - origin, origin  # (n_heads, d, r), (n_heads, 1, r)
        r = origin.shape[-1]
        self.tables = self.codes.tables(n_heads, r)
        mean = self._synthesized(torch.zeros(n_heads, 1, r))
        synthesis = self._synthesized(torch.eye(r).expand(n_heads, r, r).contiguous()) - mean
        kept = _learned(codec, synthesis.numpy(), float(mean.abs().max()))
        self.decoder = Decoder.of(self.tables.widths, self.tables.levels, kept, mean[:, 0].numpy())
        self.pages: list[list[Page]] = []
        self.n_tokens, self.dropped, self.exact = 0, 0, 0
        self.broken: set[int] = set()  # heads that brought NaN or Inf

    @property
    def first(self) -> int:
        """The first token whose page is still there."""
        return self.dropped * BLOCK

    @property
    def nbytes(self) -> int:
        """Every byte of the pages, what sequences share once, the free part of the last block included."""
        return sum({page.at: page.nbytes for pages in self.pages for page in pages}.values())

    def append(self, x: Tensor, stats: Sequence[Stats | None] | None = None) -> None:
        """x: (n_batch, n_heads, n_tokens, d) float32. NaN and Inf are coded as 0, and counted."""
        import torch

        finite = torch.isfinite(x)
        if not bool(finite.all()):
            self.exact += int((~finite.all(-1)).sum())
            self.broken |= _broken(x)
            x = x.masked_fill(~finite, 0.0)
        self.pages = self.pages or [[] for _ in range(len(x))]
        self._code([torch.baddbmm(self.shift, sequence, self.analysis) for sequence in x])
        self.n_tokens += x.shape[-2]

    def _code(self, coordinates: Sequence[Tensor]) -> None:
        """Lay out what one append brings, (n_heads, n_tokens, r) a sequence."""
        thresholds = self.tables.thresholds()
        for b, y in enumerate(coordinates):
            self._write(b, *self.codes.quantize(y.numpy(), thresholds))

    def _write(self, b: int, index: np.ndarray, norms: np.ndarray | None) -> None:
        from ...kernels.coordinates import pack_heads

        pages = self.pages[b]
        if begun := (self.n_tokens - self.first) % BLOCK:  # the last block is not full
            last = len(pages) - 1
            index = np.concatenate([self._codes(b, last, last + 1)[:, :begun], index], 1)
            norms = None if norms is None else np.concatenate([pages[last].norms[:, :begun], norms], 1)  # type: ignore[index]
            del pages[last]
        n = -(-index.shape[1] // BLOCK)
        sizes = self.tables.block_bytes
        by_head = np.split(pack_heads(index, self.tables.widths), n * np.cumsum(sizes)[:-1])
        blocks = np.concatenate([h.reshape(n, -1) for h in by_head], 1)
        if norms is not None:
            norms = np.pad(norms, ((0, 0), (0, n * BLOCK - norms.shape[1]))).reshape(len(norms), n, BLOCK)
        for i in range(n):  # copies, so that each can be let go of by itself
            pages.append(Page.of(blocks[i].copy(), None if norms is None else norms[:, i].copy()))

    def coded(self, b: int) -> Any:
        """The codes of one sequence, for `kernels.attend`; the first token is `first`."""
        from ...kernels.attend import Coded

        places = np.array([p.at for p in self.pages[b]], np.int64)
        norms = places[:, 1].copy() if self.codes.scale != "none" else places[:0, 1]
        kept = tuple(p.codes for p in self.pages[b]), tuple(p.norms for p in self.pages[b])
        return Coded(self.decoder, places[:, 0].copy(), 1, norms, kept)

    def turning(self, rope: Any) -> Any:
        """A `kernels.attend.Rope` of these keys, as `attend` wants it."""
        return rope

    def attend(
        self, b: int, q: Tensor, values: PagedPast, n: int, seen: Tensor | None, turn: Any
    ) -> tuple[Tensor, ...]:
        """`kernels.attend` of one sequence's queries with these keys and some values, their first n tokens."""
        import torch

        from ...kernels.attend import attend

        numbers = None if seen is None else seen.numpy()
        found = attend(q.numpy(), self.coded(b), values.coded(b), n, numbers, turn, torch.get_num_threads())
        return tuple(map(torch.from_numpy, found))

    def on_host(self, page: Page) -> tuple[np.ndarray, np.ndarray | None]:
        """A page's codes and norms as a file has them."""
        return page.codes, page.norms

    def tile(self, start: int, stop: int) -> Tensor:
        """(n_batch, n_heads, stop − start, d) float32; whole blocks are read."""
        import torch

        first, last = (start - self.first) // BLOCK, -(-(stop - self.first) // BLOCK)
        skip = start - self.first - first * BLOCK
        out = []
        for b, pages in enumerate(self.pages):
            y = self.tables.lookup(self._codes(b, first, last))
            if self.codes.scale != "none":
                norms = np.concatenate([p.norms for p in pages[first:last]], 1)  # type: ignore[arg-type]
                y *= norms[:, :, None].astype(np.float32)
            y = y[:, skip : skip + stop - start]
            out.append(torch.from_numpy(y @ self.decoder.synthesis.astype(np.float32) + self.decoder.mean[:, None]))
        return torch.stack(out)

    def _codes(self, b: int, first: int, last: int) -> np.ndarray:
        """uint8 (n_heads, 64 · n_blocks, r) of blocks that are kept."""
        from ...kernels.coordinates import unpack_heads

        ends = np.append(0, np.cumsum(self.tables.block_bytes))
        blocks = [p.codes for p in self.pages[b][first:last]]
        data = np.concatenate([c[a:z] for a, z in zip(ends, ends[1:], strict=False) for c in blocks])
        return unpack_heads(data, self.tables.widths, len(blocks) * BLOCK)

    def bounds(self) -> Iterator[tuple[int, int]]:
        """Tiles that are decoded at once."""
        yield from ((a, min(a + TILE, self.n_tokens)) for a in range(self.first, self.n_tokens, TILE))

    def select(self, index: Sequence[int]) -> None:
        """Sequences in a new order, some perhaps more than once: nothing is copied."""
        self.pages = [list(self.pages[i]) for i in index]

    def crop(self, n_tokens: int) -> None:
        """Forget what lies behind `n_tokens`; codes of a block that is cut stay as they are."""
        self.n_tokens = min(n_tokens, self.n_tokens)
        kept = -(-max(0, self.n_tokens - self.first) // BLOCK)
        self.pages = [pages[:kept] for pages in self.pages]

    def forget(self, before: int) -> None:
        """Let go of blocks that end at or before token `before`."""
        n = max(0, min(before, self.n_tokens) // BLOCK - self.dropped)
        if n:
            self.dropped += n
            self.pages = [pages[n:] for pages in self.pages]

    def _analysed(self, x: Tensor) -> Tensor:
        for stage in self.front:
            x, _ = stage.encode(x)
        return x

    def _synthesized(self, y: Tensor) -> Tensor:
        for stage in reversed(self.front):
            y = stage.decode(y, {})
        return y


def _learned(codec: Stage, x: np.ndarray, mean: float) -> np.ndarray:
    """The codec's own array where it says the same but for the rounding of what was added, so that it is held once."""
    for _, a in codec.arrays().values():
        if a is not None and a.shape == x.shape and np.allclose(a, x, rtol=0, atol=2.0**-22 * (mean + 1)):
            return a
    return x


Past = CodedPast | PagedPast


def past_for(codec: Stage, n_heads: int, d: int, learns: str) -> Past:
    """The store that suits the codec: pages where its codes can be read as they lie."""
    stages = list(codec.children().values()) or [codec]
    if (
        learns != "group"
        and getattr(stages[-1], "blocked", False)
        and all(getattr(s, "affine", False) for s in stages[:-1])
    ):
        return PagedPast(codec, n_heads, d)
    return CodedPast(codec, learns)
