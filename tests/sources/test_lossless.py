"""Streams of bytes: there and back at every level, with any threads, in bounded memory; damage refused by name."""

import io
import itertools
import subprocess
import sys

import numpy as np
import pytest

from laconic import lossless
from laconic.core.errors import BadConfig, BadInput, CodecError, CorruptStream, ModelMismatch
from laconic.sources.lossless.levels import LEVELS, ZSTD, decode_block, memory_bytes

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


# Streams of version 1, whose levels 1 and 2 were DEFLATE.
FIRST = (
    "894c414201011400c3505b03900136f32c51284f2c5628c94855484a2d2e51c84f5348ce4f492dd651c844c894e717214959c3a40c2d4c2d15922a4b528bf"
    "5143ca9640e006f2147bb0090012b681137"
)


def test_streams_of_version_1_are_still_read():
    assert lossless.decompress(bytes.fromhex(FIRST)) == TEXT[: len(TEXT) // 2]


@pytest.mark.parametrize(
    ("level", "method", "which"), [(5, 5, "first"), (9, 6, "first"), (5, 8, "second"), (9, 9, "second")]
)
def test_blocks_of_earlier_byte_coders_are_refused_by_name(level, method, which):
    coded = bytearray(lossless.compress(TEXT, level=level))
    assert coded[11] == LEVELS[level].method
    coded[11] = method
    with pytest.raises(CorruptStream, match=f"{which} version of the byte coders"):
        lossless.decompress(coded)


def test_level_1_is_at_most_what_zstd_3_takes():
    zstandard = pytest.importorskip("zstandard")
    rng = np.random.default_rng(3)
    words = [bytes(rng.integers(97, 123, rng.integers(2, 9)).astype(np.uint8)) for _ in range(3000)]
    text = b" ".join(words[int(i)] for i in rng.zipf(1.3, 60_000) % 3000)
    assert len(lossless.compress(text, level=1)) < len(zstandard.ZstdCompressor(level=3).compress(text))


def _records(n):
    return [b'{"name": "user%d", "id": %d, "mail": "user%d@example.org"}' % (i, i * 7919 % 1000, i) for i in range(n)]


def test_dictionary():
    samples = _records(4000)
    learned = lossless.train_dictionary(samples, 4096)
    assert len(learned) <= 4096
    for level in (1, 2):
        coded = lossless.compress(samples[7], level=level, dictionary=learned)
        assert len(coded) < 0.6 * len(lossless.compress(samples[7], level=level))
        assert lossless.decompress(coded, dictionary=learned) == samples[7]
        for other in (None, learned[:-1]):
            with pytest.raises(ModelMismatch):
                lossless.decompress(coded, dictionary=other)
    plain = lossless.compress(samples[7], level=1)
    assert lossless.decompress(plain, dictionary=learned) == samples[7]
    with pytest.raises(BadConfig, match="dictionary"):
        lossless.compress(b"x", level=5, dictionary=learned)
    with pytest.raises(BadInput, match="no dictionary"):
        lossless.train_dictionary([b"one"])


def test_a_frame_that_claims_a_size_is_refused_before_it_is_taken():
    lie = bytes([0b11000000]) + (1 << 60).to_bytes(8, "little")
    with pytest.raises(CorruptStream, match="begins otherwise"):
        decode_block(ZSTD, lie, 100, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_zeros_through_a_pipe_in_bounded_memory():
    """512 MB by way of `compress | decompress`: neither side may hold more than a few blocks."""
    work = (
        "import sys\nfrom laconic import lossless\n{}\n"
        "print([int(x.split()[1]) >> 10 for x in open('/proc/self/status') if x.startswith('VmHWM')][0], file=sys.stderr)"
    )
    pack = "w = lossless.Writer(sys.stdout.buffer, 1)\nfor _ in range(512): w.write(bytes(1 << 20))\nw.close()"
    read = "n = sum(len(p) for p in iter(lambda: r.read(1 << 20), b''))"
    unpack = f"import io; r = io.BufferedReader(lossless.Reader(sys.stdin.buffer))\n{read}; assert n == 512 << 20, n"
    a = subprocess.Popen([sys.executable, "-c", work.format(pack)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    b = subprocess.run([sys.executable, "-c", work.format(unpack)], stdin=a.stdout, stderr=subprocess.PIPE, text=True)
    said = a.communicate()[1]
    assert a.returncode == b.returncode == 0, (said, b.stderr)
    assert int(said) < 200 and int(b.stderr) < 200


def test_numcodecs():
    numcodecs = pytest.importorskip("numcodecs")
    from laconic.sources.lossless.zarr import Laconic

    numcodecs.register_codec(Laconic)
    values = np.cumsum(np.random.default_rng(0).standard_normal(5000)).astype(np.float32).reshape(50, 100)
    sizes = []
    for settings in ({"level": 1}, {"level": 1, "typesize": 4}, {"level": 5, "typesize": 4}):
        codec = numcodecs.get_codec({"id": "laconic", **settings})
        assert numcodecs.get_codec(codec.get_config()) == codec
        coded = codec.encode(values)
        sizes.append(len(coded))
        assert np.array_equal(np.frombuffer(codec.decode(coded), np.float32).reshape(values.shape), values)
        out = np.empty_like(values)
        codec.decode(coded, out=out)
        assert np.array_equal(out, values)
    assert sizes[0] > sizes[1]
    with pytest.raises(BadConfig):
        Laconic(typesize=0)
    with pytest.raises(BadInput):
        Laconic(typesize=4).encode(b"abc")


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_kill_in_mid_write_leaves_no_stream(tmp_path):
    """What a killed writer leaves under the final name is the old file, or nothing."""
    work = (
        "import os, sys\nfrom pathlib import Path\nfrom laconic import lossless\nfrom laconic.sources.archive import atomic\n"
        "with atomic(Path(sys.argv[1])) as f:\n"
        "    w = lossless.Writer(f, 1)\n    w.write(os.urandom(9 << 20))\n    f.flush()\n    os.kill(os.getpid(), 9)\n"
    )
    target = tmp_path / "a.lac"
    assert subprocess.run([sys.executable, "-c", work, str(target)]).returncode == -9
    assert not target.exists() and [p.name for p in tmp_path.iterdir()] != []
    (part,) = tmp_path.iterdir()
    with pytest.raises(CorruptStream):
        lossless.decompress(part.read_bytes())
