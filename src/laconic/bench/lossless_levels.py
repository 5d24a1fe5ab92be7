"""Levels beside the peers whose place they take, in one process and in turns; and memory on a long stream."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import laconic

from .rows import Measurement, Row, ratio

SAMPLES = Path(laconic.__file__).parent / "samples"
FILES = ("genesis.txt", "english-llama-7m/tokenizer.json", "english-llama-7m/model.safetensors")
ZEROS = 4 << 30
_PEAK = "from laconic.bench.kv_process import status; print(status('VmHWM') >> 20, file=sys.stderr)"


def level_1() -> Iterator[Row]:
    """Level 1 beside zstd -3: size beside the program, processor time beside the library."""
    import zstandard

    from ..sources.lossless.stream import compress, decompress

    coder, decoder = zstandard.ZstdCompressor(level=3, write_checksum=True), zstandard.ZstdDecompressor()
    for name in FILES:
        data = (SAMPLES / name).read_bytes()
        ours = compress(data, level=1)
        if decompress(ours) != data:
            raise RuntimeError(f"level 1 did not give {name} back")
        if shutil.which("zstd"):
            theirs = subprocess.run(["zstd", "-3", "-q", "-c"], input=data, stdout=subprocess.PIPE, check=True).stdout
            yield Row(f"level 1, {name}, size", len(ours) / len(theirs), "of the peer's", "zstd -3",
                      len(theirs) / len(data), ("<=", 1.0))  # fmt: skip
        peer = coder.compress(data)
        for what, mine, other in (
            ("coding", lambda x=data: compress(x, level=1), lambda x=data: coder.compress(x)),
            ("decoding", lambda x=ours: decompress(x), lambda x=peer: decoder.decompress(x)),
        ):
            a, b = ratio(mine, other, 9, time.thread_time)
            yield Row(
                f"level 1, {name}, {what}", b / a, "of the peer's speed", "zstd -3", len(data) / 1e6 / b, (">=", 0.5)
            )


def zeros() -> Iterator[Row]:
    """4 GB of zeros through `compress | decompress`: the most that either side holds."""
    if sys.platform != "linux":
        return
    start = "import sys, io\nfrom laconic import lossless\n"
    pack = f"w = lossless.Writer(sys.stdout.buffer, 1)\nfor _ in range({ZEROS >> 20}): w.write(bytes(1 << 20))\nw.close()\n"
    unpack = (
        "r = io.BufferedReader(lossless.Reader(sys.stdin.buffer))\n"
        "n = sum(len(p) for p in iter(lambda: r.read(1 << 20), b''))\n"
        f"assert n == {ZEROS}, n\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = [sys.executable, "-c"]
    a = subprocess.Popen([*run, start + pack + _PEAK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    b = subprocess.run([*run, start + unpack + _PEAK], stdin=a.stdout, stderr=subprocess.PIPE, env=environment)
    said = a.communicate()[1]
    if a.returncode or b.returncode:
        raise RuntimeError(f"{said.decode()} {b.stderr.decode()}")
    for what, text in (("coding", said), ("decoding", b.stderr)):
        yield Row(f"4 GB of zeros through a pipe, {what}", int(text), "MB at most", target=("<=", 200))


def denoising() -> Iterator[Row]:
    """midicoth beside the same stack without its denoising."""
    data = (SAMPLES / FILES[0]).read_bytes()
    ours, without = (len(laconic.codec("midicoth", steps=steps).encode(data)) for steps in (3, 0))
    yield Row(f"midicoth, {FILES[0]}, size", ours / without, "of that without denoising", target=("<=", 0.985))


def compressed() -> Iterator[Row]:
    """What is compressed already, at every level: size, and processor time of coding."""
    from ..sources.lossless.stream import LEVELS, compress

    data = np.random.default_rng(0).bytes(8 << 20)
    for level in LEVELS:
        start = time.thread_time()
        ours = compress(data, level=level)
        seconds = time.thread_time() - start
        yield Row(f"level {level}, noise, size", len(ours) / len(data), "of the original", target=("<=", 1.001))
        yield Row(f"level {level}, noise, coding", len(data) / 1e6 / seconds, "MB/s", target=(">=", 20))


SUITE = (
    Measurement("level 1", level_1),
    Measurement("zeros through a pipe", zeros),
    Measurement("midicoth", denoising),
    Measurement("noise", compressed),
)
