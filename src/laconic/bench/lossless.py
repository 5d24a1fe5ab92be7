"""Bytes without loss: size and speed both ways, beside the peers that are installed, in one run; every decode is verified."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

# name -> (program, arguments that compress {in} to {out}, arguments that decompress {out} to {back}); None: standard output
PEERS: dict[str, tuple[str, list[str], list[str]]] = {
    "gzip -9": ("gzip", ["-9", "-c", "{in}"], ["-d", "-c", "{out}"]),
    "bzip2 -9": ("bzip2", ["-9", "-c", "{in}"], ["-d", "-c", "{out}"]),
    "xz -9e": ("xz", ["-9e", "-T1", "-c", "{in}"], ["-d", "-c", "{out}"]),
    "zstd -3": ("zstd", ["-3", "-q", "-c", "{in}"], ["-d", "-q", "-c", "{out}"]),
    "zstd -19": ("zstd", ["-19", "-q", "-c", "{in}"], ["-d", "-q", "-c", "{out}"]),
    "brotli -11": ("brotli", ["-q", "11", "-c", "{in}"], ["-d", "-c", "{out}"]),
    "7z ppmd": ("7zz", ["a", "-m0=ppmd:o=8:mem=256m", "-mmt=1", "{out}.7z", "{in}"], ["e", "-so", "{out}.7z"]),
    "zpaq -m5": ("zpaq", ["a", "{out}.zpaq", "{in}", "-m5", "-t1"],
                 ["x", "{out}.zpaq", "{in}", "-to", "{back}", "-t1", "-force"]),
}  # fmt: skip
_SUFFIXES = {"7z ppmd": ".7z", "zpaq -m5": ".zpaq"}


@dataclass(frozen=True)
class Row:
    """One coder on one file. Seconds are processor time of all that the coder runs, start of a program included."""

    file: str
    coder: str
    n_bytes: int
    coded_bytes: int
    encode_seconds: float
    decode_seconds: float


def _cpu(job: Callable[[], object]) -> float:
    """Processor seconds of this process and its children, the way that a busy machine disturbs least."""
    before = os.times()
    job()
    after = os.times()
    return sum(after[:4]) - sum(before[:4])


def _peer(name: str, path: Path) -> Row | None:
    program, pack, unpack = PEERS[name]
    if shutil.which(program) is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        out, back = Path(folder) / "out", Path(folder) / "back"
        words = {"in": str(path.resolve()), "out": str(out), "back": str(back)}
        own = name in _SUFFIXES

        def call(arguments: list[str], target: Path, piped: bool) -> None:
            command = [program, *(a.format(**words) for a in arguments)]
            with open(target, "wb") if piped else open(os.devnull, "wb") as f:
                subprocess.run(command, stdout=f, stderr=subprocess.DEVNULL, check=True, cwd=folder)

        encode = _cpu(lambda: call(pack, out, not own))
        decode = _cpu(lambda: call(unpack, back, name != "zpaq -m5"))
        if not back.exists() or back.read_bytes() != path.read_bytes():
            raise RuntimeError(f"{name} did not give {path} back")
        coded = Path(str(out) + _SUFFIXES.get(name, "")).stat().st_size
        return Row(path.name, name, path.stat().st_size, coded, encode, decode)


def _ours(level: int, path: Path) -> Row:
    from ..sources.lossless.stream import compress, decompress

    data, coded = path.read_bytes(), b""

    def pack() -> None:
        nonlocal coded
        coded = compress(data, level=level)

    def unpack() -> None:
        if decompress(coded) != data:
            raise RuntimeError(f"level {level} did not give {path} back")

    encode = _cpu(pack)
    decode = _cpu(unpack)
    return Row(path.name, f"laconic -{level}", len(data), len(coded), encode, decode)


def rows(files: list[Path], levels: list[int], peers: list[str]) -> Iterator[Row]:
    """Measure one by one; a peer that is not installed is left out."""
    from ..sources.lossless.stream import compress, decompress

    for level in levels:
        decompress(compress(bytes(range(256)) * 4 + b"warm", level=level))  # compiled before anything is timed
    for path in files:
        for level in levels:
            yield _ours(level, path)
        for name in peers or PEERS:
            if (row := _peer(name, path)) is not None:
                yield row


def run(files: list[Path], json_: Path | None, levels: list[int], peers: list[str], plot: Path | None) -> None:
    """Measure, print every row as it comes, and write them."""
    print(f"{'file':<16} {'coder':<12} {'bytes':>12} {'coded':>12} {'MB/s in':>9} {'MB/s out':>9}")
    done: list[Row] = []
    for r in rows(files, levels, peers):
        done.append(r)
        speeds = (r.n_bytes / 1e6 / max(s, 1e-3) for s in (r.encode_seconds, r.decode_seconds))
        print(
            f"{r.file:<16} {r.coder:<12} {r.n_bytes:>12,} {r.coded_bytes:>12,}",
            *(f"{s:>9.3f}" for s in speeds),
            flush=True,
        )
        if json_:
            json_.write_text(json.dumps([asdict(x) for x in done], indent=1))
    if plot:
        _draw(done, plot)


def _draw(done: list[Row], plot: Path) -> None:
    """Size over all files against speed of coding, and the front of those that nothing beats in both."""
    from matplotlib.figure import Figure

    totals = {}
    for coder in dict.fromkeys(r.coder for r in done):
        mine = [r for r in done if r.coder == coder]
        n = sum(r.n_bytes for r in mine)
        seconds = max(sum(r.encode_seconds for r in mine), 1e-3)
        totals[coder] = (n / 1e6 / seconds, sum(r.coded_bytes for r in mine) / n)
    figure = Figure(figsize=(7, 5))
    axes = figure.add_subplot()
    for coder, (speed, size) in totals.items():
        ours = coder.startswith("laconic")
        axes.plot(speed, size, "o" if ours else "s", color="C0" if ours else "0.5")
        axes.annotate(coder, (speed, size), textcoords="offset points", xytext=(5, 4), fontsize=8)
    front = sorted(p for p in totals.values() if not any(q[0] > p[0] and q[1] < p[1] for q in totals.values()))
    axes.plot(*zip(*front, strict=True), color="0.8", zorder=0)
    axes.set(xscale="log", xlabel="MB of processor time a second, coding", ylabel="coded size, of the original")
    figure.savefig(plot)
