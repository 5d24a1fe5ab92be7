"""Files in, `.lac` files out, and back: what the command line and `laconic.compress` run."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from ..core import packet as packets
from ..core.errors import BadConfig, BadInput, CorruptStream
from ..core.packet import DEFAULT_LIMIT, Codec
from . import archive, formats
from .pick import LOSSLESS_ARRAY, LOSSLESS_DELTA, Choice, pick

SUFFIX = ".lac"
Progress = Callable[[int, int, str], None]  # bytes done, bytes in all, what


@dataclass(frozen=True)
class Row:
    """What became of one item.

    n_elements: values; pixels of a picture, bytes of a byte string.
    error: squared error over the energy of the original (‖x − x̂‖² / ‖x‖²), measured on the decoded packet; 0 where every
    bit came back. psnr: for pictures, in dB.
    note: why an item was kept without loss, where its recipe could not take it.
    """

    name: str
    recipe: str
    n_elements: int
    in_bytes: int
    out_bytes: int
    error: float
    psnr: float | None
    encode_seconds: float
    decode_seconds: float
    note: str = ""

    @property
    def bits_per_element(self) -> float:
        """All bits over all values."""
        return 8 * self.out_bytes / max(self.n_elements, 1)


@dataclass(frozen=True)
class Report:
    """What `compress` did: a row an item, and the file as a whole."""

    source: str
    out: str
    in_bytes: int
    out_bytes: int
    rows: tuple[Row, ...]
    seconds: float


@dataclass(frozen=True)
class FileInfo:
    """A `.lac` file's table and the ledger of all its packets together."""

    path: str
    n_bytes: int
    entries: tuple[archive.Entry, ...]
    packets: tuple[tuple[str, packets.Info], ...]
    by_role: dict[str, int]


def _sources(path: Path) -> list[formats.Source]:
    if not path.exists():
        raise BadInput(f"{path}: no such file or folder")
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        if not files:
            raise BadInput(f"{path}: an empty folder")
        return [formats.open_source(p, p.relative_to(path).as_posix()) for p in files]
    if not path.is_file():
        raise BadInput(f"{path}: neither a file nor a folder")
    return [formats.open_source(path, path.name)]


class Base:
    """Arrays that the reader has as well: a file or folder whose items are found by path and name."""

    def __init__(self, path: str | PathLike[str]) -> None:
        sources = _sources(Path(path))
        self._one = len(sources) == 1
        self._known = {(s.path, c.item.name): c for s in sources for c in s.contents if c.item.dtype != "bytes"}

    def codec(self, path: str, item: archive.Item, i: int) -> Codec | None:
        """Differences to this item's chunk `i`; None where the base has no such array."""
        held = [c for (p, name), c in self._known.items() if name == item.name and (self._one or p == path)]
        if len(held) != 1 or (held[0].item.dtype, held[0].item.shape) != (item.dtype, item.shape):
            return None
        chunk = held[0].read(i)
        return packets.codec(LOSSLESS_DELTA).fit(chunk) if _numel(chunk) else None


@dataclass(frozen=True)
class Plan:
    """What will be coded, and how."""

    sources: tuple[formats.Source, ...]
    choices: dict[tuple[str, str], Choice]
    base: Base | None = None

    def pairs(self) -> Iterator[tuple[formats.Source, formats.Content, Choice]]:
        """Every item with its source and its recipe."""
        for s in self.sources:
            for c in s.contents:
                yield s, c, self.choices[s.path, c.item.name]

    @property
    def in_bytes(self) -> int:
        """Bytes of all items."""
        return sum(c.n_bytes for _, c, _ in self.pairs())

    def at(self, bits: float) -> Plan:
        """The same plan with every lossy item at `bits`."""
        moved = {k: c if c.bits is None else replace(c, bits=bits) for k, c in self.choices.items()}
        return replace(self, choices=moved)


def plan(path: str | PathLike[str], *, recipe: str | None = None, bits: float | None = None) -> Plan:
    """Look at the input and choose; reads headers only."""
    return _plan(_sources(Path(path)), recipe, bits)


def _plan(sources: list[formats.Source], recipe: str | None, bits: float | None) -> Plan:
    if bits is not None and not (0 < bits <= 16 and math.isfinite(bits)):
        raise BadConfig(f"bits {bits}; give bits per value above 0 and up to 16")
    if recipe not in (None, "lossless"):
        packets.registry.recipe(recipe)
    choices = {(s.path, c.item.name): pick(c.item, s.format, recipe, bits) for s in sources for c in s.contents}
    if bits is not None and all(c.bits is None for c in choices.values()):
        raise BadConfig("bits is for lossy coding; everything in this input is kept without loss")
    return Plan(tuple(sources), choices)


def compress(
    path: str | PathLike[str] | IO[bytes],
    out: str | PathLike[str] | IO[bytes] | None = None,
    *,
    recipe: str | None = None,
    bits: float | None = None,
    max_bytes: int | None = None,
    base: str | PathLike[str] | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Compress a file or folder into one `.lac` file.

    path: `.safetensors`, `.npy`, `.npz`, a picture, any other file (as bytes), a folder of these, or a binary stream.
    out: path or binary stream; `path` + ".lac" by default.
    recipe: an id, or "lossless"; chosen by what the input is when None. bits: bits per value of lossy items.
    max_bytes: the whole file's size at most; the rate is found by measuring.
    base: a file or folder with arrays of the same names, which `decompress` will be given too: arrays that are kept without
    loss, then all unless a recipe is named, are coded as differences to it.
    Raises BadInput, BadConfig, FileExistsError; nothing is left behind when it does.
    """
    start = time.perf_counter()
    if hasattr(path, "read"):
        sources, name = [formats.open_stream(_seekable(path), "stdin")], "stdin"
    else:
        sources, name = _sources(Path(path)), str(path)
    if bits is not None and max_bytes is not None:
        raise BadConfig("give bits or max_bytes, not both")
    if base is not None:
        recipe = recipe or "lossless"
    todo = replace(_plan(sources, recipe, bits), base=None if base is None else Base(base))
    if out is None:
        if name == "stdin":
            raise BadConfig("give a name or a stream for what is read from a stream")
        out = Path(name.rstrip("/") + SUFFIX)
    if hasattr(out, "write"):
        n, rows = _to_budget(todo, max_bytes, out, progress)
    else:
        target = Path(out)
        refuse_overwrite(target, force)
        with archive.atomic(target) as f:
            n, rows = _to_budget(todo, max_bytes, f, progress)
    target_name = getattr(out, "name", "stdout") if hasattr(out, "write") else str(out)
    return Report(name, target_name, todo.in_bytes, n, tuple(rows), time.perf_counter() - start)


def _seekable(stream: IO[bytes]) -> IO[bytes]:
    """A pipe's bytes in a temporary file, since the table at the head of the archive holds their number."""
    spool = tempfile.SpooledTemporaryFile(64 << 20)
    shutil.copyfileobj(stream, spool)
    return spool  # type: ignore[return-value]


def refuse_overwrite(target: Path, force: bool) -> None:
    """Raise FileExistsError unless forced."""
    if target.exists() and not force:
        raise FileExistsError(f"{target} exists; -f overwrites it")
    if not target.parent.exists():
        raise BadInput(f"{target.parent}: no such folder")


def _to_budget(todo: Plan, max_bytes: int | None, out: IO[bytes], progress: Progress | None) -> tuple[int, list[Row]]:
    """Write the archive; with a limit, search the rate by whole trials in memory until it fits closely."""
    if max_bytes is None:
        return _write(todo, out, progress)
    lossy = sum(formats.n_rated(c.item, s.format) for s, c, ch in todo.pairs() if ch.bits is not None)
    best: tuple[int, list[Row], bytes] | None = None
    low, high = 0.0, 16.0
    trial = BytesIO()
    n, rows = _write(todo, trial, progress)
    spent = sum(8 * r.out_bytes for r, (_, _, ch) in zip(rows, todo.pairs(), strict=True) if ch.bits is not None)
    fixed, bits = n - spent / 8, max((c.bits or 0 for c in todo.choices.values()), default=0.0)
    for _ in range(8):
        if n <= max_bytes:
            low = max(low, bits)
            if best is None or n > best[0]:
                best = (n, rows, trial.getvalue())
            if n >= 0.98 * max_bytes or not lossy or bits >= 16:
                break
        else:
            high = min(high, bits)
        if not lossy or max_bytes <= fixed:
            break
        want = 8 * (0.995 * max_bytes - fixed) / lossy
        bits = want if low < want < high else (low + high) / 2
        trial = BytesIO()
        n, rows = _write(todo.at(bits), trial, progress)
        rate = sum(8 * r.out_bytes for r, (_, _, ch) in zip(rows, todo.pairs(), strict=True) if ch.bits is not None)
        fixed = n - rate / 8 + (rate - bits * lossy) / 8
    if best is None:
        raise BadConfig(f"{max_bytes:,} bytes cannot be met; the least reached is {n:,} bytes")
    out.write(best[2])
    return best[0], best[1]


def _write(todo: Plan, out: IO[bytes], progress: Progress | None) -> tuple[int, list[Row]]:
    writer = archive.Writer(out, [s.entry() for s in todo.sources])
    rows, done, total = [], 0, todo.in_bytes
    for source, content, choice in todo.pairs():
        tally = _Tally(source, content, choice)
        for i in range(content.item.chunks):
            if progress:
                progress(done + tally.in_bytes, total, tally.name)
            near = (
                todo.base.codec(source.path, content.item, i) if todo.base and choice.recipe == LOSSLESS_ARRAY else None
            )
            tally.add(writer, content.read(i), near)
        rows.append(tally.row())
        done += content.n_bytes
    writer.finish()
    if progress:
        progress(total, total, "")
    return writer.n_bytes, rows


class _Tally:
    """Codes the chunks of one item and keeps count; the loss is measured on what the packet decodes to."""

    def __init__(self, source: formats.Source, content: formats.Content, choice: Choice) -> None:
        label = content.item.name
        self.name = label if source.path.endswith(".safetensors") else "/".join(p for p in (source.path, label) if p)
        self.item, self.choice, self.picture = content.item, choice, source.format == "image"
        self.codec = packets.codec(choice.recipe, **choice.codec_settings())
        self.in_bytes = self.out_bytes = 0
        self.lost = self.energy = 0.0
        self.encode_seconds = self.decode_seconds = 0.0
        self.note = ""

    def add(self, writer: archive.Writer, chunk: Any, near: Codec | None = None) -> None:
        try:
            packet, codec = self._encode(chunk, self.codec)
            if near is not None:
                start = time.perf_counter()
                differences = near.encode(chunk, embed=False)
                self.encode_seconds += time.perf_counter() - start
                if len(differences) < len(packet):
                    packet, codec = differences, near
        except BadInput as e:
            if self.codec.stage.lossless:
                raise
            # NaN and Inf, or a shape that this recipe does not take: keep the item whole, and say so in the report.
            self.note = f"kept without loss: {self.choice.recipe}: {e}"
            packet, codec = self._encode(chunk, packets.codec(LOSSLESS_ARRAY))
        start = time.perf_counter()
        back = codec.decode(packet)
        self.decode_seconds += time.perf_counter() - start
        self.out_bytes += writer.add(packet)
        if isinstance(chunk, bytes):
            self.in_bytes += len(chunk)
            if back != chunk:
                raise CorruptStream(f"{self.name}: {self.choice.recipe} did not give the same bytes back")
        else:
            self._compare(chunk, back, codec.stage.lossless)

    def _encode(self, chunk: Any, codec: Codec) -> tuple[bytes, Codec]:
        start = time.perf_counter()
        codec = codec.fit(chunk) if not isinstance(chunk, bytes) and _numel(chunk) else codec
        packet = codec.encode(chunk)
        self.encode_seconds += time.perf_counter() - start
        return packet, codec

    def _compare(self, chunk: Any, back: Any, lossless: bool) -> None:
        import torch

        x = chunk if isinstance(chunk, torch.Tensor) else torch.from_numpy(np.array(chunk))
        self.in_bytes += x.numel() * x.element_size()
        if lossless:
            if x.numel() and not torch.equal(_bits(x), _bits(back)):
                raise CorruptStream(f"{self.name}: {self.choice.recipe} did not give the same bits back")
            return
        a, b = x.to(torch.float32), back.to(torch.float32)
        self.lost += float((a - b).double().square().sum())
        self.energy += float(a.double().square().sum())

    def row(self) -> Row:
        n = math.prod(self.item.shape)
        rated = formats.n_rated(self.item, "image" if self.picture else "")
        psnr = None
        if self.picture and not self.codec.stage.lossless:
            psnr = math.inf if self.lost == 0 else 10 * math.log10(255**2 * n / self.lost)
        recipe = LOSSLESS_ARRAY if self.note else self.choice.describe()
        error = self.lost / self.energy if self.energy else 0.0
        return Row(
            self.name, recipe, rated, self.in_bytes, self.out_bytes, error, psnr,
            self.encode_seconds, self.decode_seconds, self.note,
        )  # fmt: skip


def _numel(chunk: Any) -> int:
    return int(np.prod(chunk.shape))


def _bits(t: Any) -> Any:
    import torch

    return t.contiguous().reshape(-1).view(torch.uint8)


class _Given(NamedTuple):
    """How packets are decoded: what they may take, what they are differences to, how many at once."""

    limit_bytes: int
    base: Base | None = None
    threads: int = 1


def _chunk(given: _Given, path: str, item: archive.Item, i: int, packet: bytes) -> Any:
    near = given.base.codec(path, item, i) if given.base else None
    chunk = packets.decode(packet, model=near, limit_bytes=given.limit_bytes)
    _check(chunk, item, i)
    return chunk


def _decoded(reader: archive.Reader, entry: archive.Entry, given: _Given) -> Iterator[Any]:
    """The chunks of one file of the archive, each checked against the table; at most threads + 1 are held."""
    coded = ((item, i, packet) for item in entry.items for i, packet in enumerate(reader.packets(item)))
    if given.threads == 1:
        yield from (_chunk(given, entry.path, *c) for c in coded)
        return
    flying: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(given.threads, "laconic") as pool:
        for c in coded:
            flying.append(pool.submit(_chunk, given, entry.path, *c))
            if len(flying) > given.threads:
                yield flying.popleft().result()
        while flying:
            yield flying.popleft().result()


def _check(chunk: Any, item: archive.Item, i: int) -> None:
    if item.dtype == "bytes":
        if not isinstance(chunk, bytes):
            raise CorruptStream(f"{item.name or 'bytes'}: the packet holds an array")
        return
    if isinstance(chunk, bytes):
        raise CorruptStream(f"{item.name}: the packet holds bytes")
    want, dtype = formats.chunk_shape(item, i), str(chunk.dtype).removeprefix("torch.")
    if tuple(chunk.shape) != want or dtype != item.dtype:
        raise CorruptStream(
            f"{item.name}: chunk {i} is {dtype} {tuple(chunk.shape)}, the table says {item.dtype} {want}"
        )


def decompress(
    path: str | PathLike[str] | IO[bytes],
    out: str | PathLike[str] | IO[bytes] | None = None,
    *,
    force: bool = False,
    limit_bytes: int = DEFAULT_LIMIT,
    base: str | PathLike[str] | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> str:
    """Make the file or folder again from a `.lac` file; returns where it went.

    limit_bytes: refuse chunks that decode to more. base: as `compress` was given it; ModelMismatch is raised where it is
    missing or another. threads: chunks decoded at once. Raises CorruptStream (nothing is left behind), FileExistsError.
    """
    if not 1 <= threads <= 256:
        raise BadConfig(f"{threads} threads; 1 to 256 are right")
    given = _Given(limit_bytes, None if base is None else Base(base), threads)
    if hasattr(path, "read"):
        return _restore(path, "stdin", out, force, given, progress)
    source = Path(path)
    if not source.is_file():
        raise BadInput(f"{source}: no such file")
    with open(source, "rb") as f:
        return _restore(f, str(source), out, force, given, progress)


def _restore(f: IO[bytes], name: str, out: Any, force: bool, given: _Given, progress: Progress | None) -> str:
    reader = archive.Reader(f)
    single = len(reader.entries) == 1 and "/" not in reader.entries[0].path
    if hasattr(out, "write"):
        if not single:
            raise BadConfig(f"{name} holds {len(reader.entries)} files; a stream takes one")
        formats.write_entry(out, reader.entries[0], _decoded(reader, reader.entries[0], given))
        reader.finish()
        return getattr(out, "name", "stdout")
    stem = Path(name.removesuffix(SUFFIX)) if name.endswith(SUFFIX) else None
    if single:
        entry = reader.entries[0]
        if out is None and stem is None:
            raise BadConfig(f"{name} does not end in {SUFFIX}; name the output with -o")
        target = Path(out) if out is not None else Path(formats.output_name(replace(entry, path=str(stem))))
        refuse_overwrite(target, force)
        with archive.atomic(target) as g:
            formats.write_entry(g, entry, _decoded(reader, entry, given))
            reader.finish()
        return str(target)
    folder = Path(out) if out is not None else stem
    if folder is None:
        raise BadConfig(f"{name} does not end in {SUFFIX}; name the output folder with -o")
    refuse_overwrite(folder, force)
    with archive.atomic_folder(folder) as part:
        for i, entry in enumerate(reader.entries):
            if progress:
                progress(i, len(reader.entries), entry.path)
            target = part / formats.output_name(entry)
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "xb") as g:
                formats.write_entry(g, entry, _decoded(reader, entry, given))
        reader.finish()
    return str(folder)


def info(path: str | PathLike[str] | bytes) -> FileInfo | packets.Info:
    """Contents and rate ledger of a `.lac` file, or of one packet given as bytes. Checks checksums, decodes nothing."""
    if isinstance(path, (bytes, bytearray, memoryview)):
        return packets.info(path)
    source = Path(path)
    if not source.is_file():
        raise BadInput(f"{source}: no such file")
    with open(source, "rb") as f:
        reader = archive.Reader(f)
        found: list[tuple[str, packets.Info]] = []
        roles: dict[str, int] = {}
        for entry in reader.entries:
            for item in entry.items:
                for packet in reader.packets(item):
                    said = packets.info(packet)
                    found.append(("/".join(p for p in (entry.path, item.name) if p), said))
                    for role, n in said.ledger.by_role().items():
                        roles[role] = roles.get(role, 0) + n
        reader.finish()
    size = source.stat().st_size
    roles["table"] = size - sum(roles.values())
    return FileInfo(str(source), size, tuple(reader.entries), tuple(found), roles)


def verify(
    path: str | PathLike[str], *, limit_bytes: int = DEFAULT_LIMIT, base: str | PathLike[str] | None = None
) -> int:
    """Decode everything and keep nothing; returns the number of packets. Raises what `decompress` would."""
    given = _Given(limit_bytes, None if base is None else Base(base))
    source = Path(path)
    if not source.is_file():
        raise BadInput(f"{source}: no such file")
    with open(source, "rb") as f:
        reader = archive.Reader(f)
        n = sum(1 for entry in reader.entries for _ in _decoded(reader, entry, given))
        reader.finish()
    return n


class Tensors(Mapping[str, Any]):
    """The arrays of a `.lac` file by name, each decoded alone when it is asked for; the rest of the file is not read.

    base: as `compress` was given it. Raises CorruptStream, ModelMismatch, KeyError.
    Of an archive of several files, names are `path/name`.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        base: str | PathLike[str] | None = None,
        limit_bytes: int = DEFAULT_LIMIT,
    ) -> None:
        self._given, self._path = _Given(limit_bytes, None if base is None else Base(base)), Path(path)
        if not self._path.is_file():
            raise BadInput(f"{path}: no such file")
        with open(self._path, "rb") as f:
            reader = archive.Reader(f)
            several = len(reader.entries) > 1
            self._items: dict[str, tuple[str, archive.Item, list[tuple[int, int]]]] = {}
            for entry in reader.entries:
                for item in entry.items:
                    name = "/".join(p for p in (entry.path if several else "", item.name) if p)
                    self._items[name] = entry.path, item, list(reader.skip(item))

    def __getitem__(self, name: str) -> Any:
        import torch

        path, item, spans = self._items[name]
        with open(self._path, "rb") as f:
            chunks = []
            for i, (at, n) in enumerate(spans):
                f.seek(at)
                chunks.append(_chunk(self._given, path, item, i, f.read(n)))
        return chunks[0] if len(chunks) == 1 else b"".join(chunks) if item.dtype == "bytes" else torch.cat(chunks)

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


def is_terminal(stream: IO[Any]) -> bool:
    """Whether bytes written there would land on somebody's screen."""
    return hasattr(stream, "isatty") and stream.isatty()
