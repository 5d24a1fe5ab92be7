"""Streams of bytes: there and back at every level, with any threads, in bounded memory; damage refused by name."""

import io
import itertools
import subprocess
import sys

import numpy as np
import pytest

from laconic import lossless
from laconic.core.errors import BadConfig, CodecError, CorruptStream
from laconic.sources.lossless.levels import LEVELS, memory_bytes

TEXT = b"It was the best of codes, it was the worst of codes; it was 1859 bytes. " * 4
NOISE = np.random.default_rng(0).integers(0, 256, 70_000).astype(np.uint8).tobytes()


@pytest.mark.parametrize("level", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("data", [b"", b"a", bytes(range(256)), TEXT, b"\0" * 5000], ids=len)
def test_there_and_back(level, data):
    coded = lossless.compress(data, level=level)
    assert lossless.decompress(coded) == data
    assert len(coded) <= len(data) * 1.001 + 32


def test_noise_costs_a_thousandth():
    for level in LEVELS:
        coded = lossless.compress(NOISE, level=level)
        assert len(coded) < 1.001 * len(NOISE) and lossless.decompress(coded) == NOISE


@pytest.mark.parametrize("level", [1, 3, 5])
def test_every_flip_and_every_cut_is_refused(level):
    coded = lossless.compress(TEXT, level=level)
    for at in range(len(coded)):
        with pytest.raises(CorruptStream):
            lossless.decompress(coded[:at])
        flipped = bytearray(coded)
        flipped[at] ^= 1 << at % 8
        with pytest.raises(CorruptStream):
            lossless.decompress(flipped)
    with pytest.raises(CorruptStream):
        lossless.decompress(coded + b"\0")


def test_threads_change_nothing():
    data = np.random.default_rng(1).integers(97, 101, 3 << 20).astype(np.uint8).tobytes()
    coded = lossless.compress(data, level=1)
    assert lossless.compress(data, level=1, threads=3) == coded
    assert lossless.decompress(coded, threads=3) == lossless.decompress(coded) == data


def test_streams_follow_each_other():
    a, b = lossless.compress(TEXT, level=1), lossless.compress(b"more", level=3)
    assert lossless.decompress(a + b) == TEXT + b"more"
    said = lossless.info(io.BytesIO(a + b))
    assert (said.n_blocks, said.n_bytes, said.n_coded) == (2, len(TEXT) + 4, len(a) + len(b))


class _Zeros(io.RawIOBase):
    """What a writer gives, counted and forgotten."""

    n_bytes = 0

    def write(self, data):
        self.n_bytes += len(data)
        return len(data)


def test_zeros_without_end_take_no_room():
    sink, piece = _Zeros(), bytes(1 << 20)
    with lossless.Writer(sink, level=1) as writer:
        for _ in range(64):
            writer.write(piece)
    assert sink.n_bytes < 64 * 16 + 40


def test_limits_are_kept():
    bomb = lossless.compress(bytes(1 << 22), level=1)
    assert len(bomb) < 200
    with pytest.raises(CorruptStream, match="limit"):
        lossless.decompress(bomb, limit_bytes=1 << 20)
    wide = lossless.compress(TEXT, level=9)
    assert lossless.info(io.BytesIO(wide)).n_memory > 10 << 20
    with pytest.raises(CorruptStream, match="memory"):
        lossless.decompress(wide, limit_memory=1 << 20)
    assert all(memory_bytes(n) < 1 << 30 for n in LEVELS)


def test_files(tmp_path):
    path = str(tmp_path / "a.lac")
    with lossless.open(path, "wb", level=2) as f:
        for _ in range(5):
            f.write(TEXT)
    with lossless.open(path) as f:
        assert f.read(10) == TEXT[:10]
        assert f.read() == (5 * TEXT)[10:]
    with pytest.raises(ZeroDivisionError), lossless.open(path, "wb", level=2) as f:
        f.write(TEXT)
        _ = 1 / 0
    with pytest.raises(CodecError), lossless.open(path) as f:
        f.read()


def test_settings_are_checked():
    for bad in ({"level": 0}, {"level": 10}, {"threads": 0}):
        with pytest.raises(BadConfig):
            lossless.compress(b"abc", **bad)
    with pytest.raises(BadConfig):
        lossless.open("nowhere.lac", "ab")


def test_garbage_is_refused():
    rng = np.random.default_rng(2)
    head = lossless.compress(b"", level=5)[:11]
    for n, lead in itertools.product((0, 1, 10, 50), (b"", head)):
        with pytest.raises(CorruptStream):
            lossless.decompress(lead + rng.integers(0, 256, n).astype(np.uint8).tobytes())


def test_no_torch():
    code = (
        "import sys, laconic; d = laconic.lossless; assert d.decompress(d.compress(b'abc' * 99)) == b'abc' * 99; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
