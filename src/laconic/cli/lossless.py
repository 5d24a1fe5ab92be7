"""`laconic compress` with a level, as zstd's command line does it: bytes to a stream of blocks, in bounded memory."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from ..core.errors import BadConfig, BadInput, CodecError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SUFFIX = ".lac"
_PIECE = 1 << 20


class Options(NamedTuple):
    """What was asked for."""

    level: int = 5
    threads: int = 1
    output: str | None = None
    stdout: bool = False
    force: bool = False
    remove: bool = False
    quiet: bool = False
    limit_bytes: int = 1 << 40
    limit_memory: int = 1 << 30
    dictionary: str | None = None

    def shared(self) -> bytes | None:
        """The dictionary's bytes."""
        return None if self.dictionary is None else Path(self.dictionary).read_bytes()


FLAGS = ("--force", "--rm", "--stdout", "--quiet", "--long", "--resume", "--dry-run")  # that take no value


def rewritten(argv: list[str]) -> list[str]:
    """Arguments with -1 … -9 and -T0 as the parser knows them: --level=1, --threads=…"""
    if len(argv) < 2 or argv[1] not in ("compress", "decompress"):
        return argv
    out, literal = argv[:2], False
    for arg in argv[2:]:
        literal = literal or arg == "--"
        value = out[-1].startswith("--") and "=" not in out[-1] and out[-1] not in FLAGS  # of the option before
        digit = not literal and not value and len(arg) == 2 and arg[0] == "-" and arg[1] in "123456789"
        short = not literal and arg.startswith("-T") and arg[2:].isdigit()
        out.append(f"--level={arg[1]}" if digit else f"--threads={arg[2:]}" if short else arg)
    return out


def is_stream(source: str) -> bool:
    """Whether a file, or what waits on standard input, is a stream of blocks."""
    from ..sources.lossless.stream import MAGIC

    if source == "-":
        return not _is_terminal(sys.stdin) and sys.stdin.buffer.peek(4)[:4] == MAGIC  # type: ignore[attr-defined]
    path = Path(source)
    if not path.is_file():
        return False
    with open(path, "rb") as f:
        return f.read(4) == MAGIC


def each(sources: list[str], job: Callable[[str, Options], None], options: Options) -> None:
    """Do every file, say what went wrong with each, and end with 1 if anything did."""
    if options.output and len(sources) > 1:
        raise BadConfig(f"-o names one file, {len(sources)} are given")
    if len(sources) == 1:
        return job(sources[0], options)
    failed = False
    for source in sources:
        try:
            job(source, options)
        except (CodecError, OSError) as e:
            failed = True
            print(f"laconic: {source}: {e}", file=sys.stderr)
    if failed:
        raise SystemExit(1)


def compress(source: str, options: Options) -> None:
    """One file to a stream; the input is kept unless --rm."""
    from ..sources.lossless.stream import Writer

    with _opened(source) as f, _target(source, source + SUFFIX, options) as out:
        counted = _Counted(out)
        n = 0
        with Writer(counted, options.level, _threads(options), options.shared()) as writer:  # type: ignore[arg-type]
            while piece := f.read(_PIECE):
                n += writer.write(piece)
    _finished(source, options, f"{n:,} -> {counted.n_bytes:,} bytes")


def decompress(source: str, options: Options) -> None:
    """One stream to what it was."""
    from ..sources.lossless.stream import chunks

    name = source[: -len(SUFFIX)] if source.endswith(SUFFIX) else source + ".out"
    with _opened(source) as f, _target(source, name, options) as out:
        n = 0
        for chunk in chunks(f, _threads(options), options.limit_bytes, options.limit_memory, options.shared()):
            n += out.write(chunk)
    _finished(source, options, f"{n:,} bytes")


def test(source: str, options: Options) -> None:
    """Decode one stream and keep nothing."""
    from ..sources.lossless.stream import chunks

    with _opened(source) as f:
        n = sum(map(len, chunks(f, _threads(options), options.limit_bytes, options.limit_memory, options.shared())))
    if not options.quiet:
        print(f"{source}: {n:,} bytes, whole", file=sys.stderr)


def listing(source: str, options: Options) -> None:
    """What one stream says of itself, memory of decoding included."""
    from ..sources.lossless.stream import info

    with _opened(source) as f:
        said = info(f, options.shared())
    print(f"{source}: level {said.level}, {said.n_blocks} blocks, {said.n_coded:,} of {said.n_bytes:,} bytes, "
          f"decoding takes {said.n_memory / (1 << 20):.0f} MiB a thread")  # fmt: skip


def train_dictionary(sources: list[str], output: str, n_bytes: int, options: Options) -> None:
    """A dictionary of what small files have in common."""
    from ..sources.archive import atomic
    from ..sources.files import refuse_overwrite
    from ..sources.lossless import stream

    refuse_overwrite(Path(output), options.force)
    learned = stream.train_dictionary([Path(s).read_bytes() for s in sources], n_bytes)
    with atomic(Path(output)) as f:
        f.write(learned)
    if not options.quiet:
        print(f"{output}: {len(learned):,} bytes from {len(sources)} files", file=sys.stderr)


class _Counted:
    def __init__(self, out: IO[bytes]) -> None:
        self._out, self.n_bytes = out, 0

    def write(self, data: bytes) -> int:
        self.n_bytes += len(data)
        self._out.write(data)
        return len(data)


def _threads(options: Options) -> int:
    return options.threads or os.cpu_count() or 1


@contextmanager
def _opened(source: str) -> Iterator[IO[bytes]]:
    if source == "-":
        if _is_terminal(sys.stdin):
            raise BadConfig("no input: standard input is a terminal")
        yield sys.stdin.buffer
        return
    if Path(source).is_dir():
        raise BadInput(f"{source}: a folder; leave out the level, or pack it: tar c {source} | laconic compress -9 -c")
    if not Path(source).exists():
        raise BadInput(f"{source}: no such file")
    with open(source, "rb") as f:
        yield f


@contextmanager
def _target(source: str, name: str, options: Options) -> Iterator[Any]:
    from ..sources.archive import atomic
    from ..sources.files import refuse_overwrite

    if options.stdout or (source == "-" and options.output is None):
        if _is_terminal(sys.stdout) and not options.force:
            raise BadConfig("bytes are not written to a terminal; redirect, or name a file with -o")
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    target = Path(options.output or name)
    refuse_overwrite(target, options.force)
    with atomic(target) as f:
        yield f


def _finished(source: str, options: Options, said: str) -> None:
    if not options.quiet:
        print(f"{source}: {said}", file=sys.stderr)
    if options.remove and source != "-" and not options.stdout:
        Path(source).unlink()


def _is_terminal(stream: Any) -> bool:
    return bool(stream.isatty())
