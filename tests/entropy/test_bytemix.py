"""The byte coder as a stage: smaller than the dictionary coders, stored where nothing helps, no torch."""

import bz2
import lzma
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import laconic
from laconic.core.errors import BadConfig, CorruptStream
from laconic.entropy.bytemix import ByteMix


def _source() -> bytes:
    return b"".join(p.read_bytes() for p in sorted(Path(laconic.__file__).parent.glob("core/*.py")))


def _size(data: bytes) -> int:
    y, side = ByteMix().encode(data)
    assert ByteMix().decode(y, side) == data
    return len(y) + sum(a.nbytes for a in side.values())


def test_smaller_than_xz_and_bzip2_on_program_text():
    data = _source()
    assert _size(data) < 0.85 * len(bz2.compress(data))
    assert _size(data) < 0.85 * len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))


def test_smaller_than_xz_bzip2_and_ppmd_on_a_book(data):
    book = (data / "canterbury-snappy" / "alice29.txt").read_bytes()
    n = _size(book)
    assert n < 37_600  # PPMd 38,890; zpaq -m5 37,600
    assert n < 0.79 * len(lzma.compress(book, preset=9 | lzma.PRESET_EXTREME))
    assert n < 0.88 * len(bz2.compress(book))


def test_random_bytes_are_stored():
    noise = np.random.default_rng(0).integers(0, 256, 5000).astype(np.uint8).tobytes()
    y, side = ByteMix().encode(noise)
    assert y == noise
    assert ByteMix().decode(y, side) == noise


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 7])
def test_short(n):
    assert _size(b"\0" * n) <= n + 5


def test_table_bits_are_part_of_the_code():
    data = _source()[:60_000]
    y, side = ByteMix(18).encode(data)
    try:
        assert ByteMix(22).decode(y, side) != data
    except CorruptStream:
        pass
    with pytest.raises(BadConfig):
        ByteMix(15)


@pytest.mark.parametrize(
    "change",
    [
        {"length": np.array([2**32 - 1], np.uint32)},
        {"length": np.array([], np.uint32)},
        {"mode": np.array([7], np.uint8)},
        {"mode": np.array([0], np.uint8)},
        {"mode": np.zeros((1, 1), np.uint8)},
    ],
)
def test_lies_beside_the_code(change):
    y, side = ByteMix(16).encode(b"never " * 100)
    with pytest.raises(CorruptStream):
        ByteMix(16).decode(y, {**side, **change})


def test_no_torch():
    code = (
        "from laconic.entropy.bytemix import ByteMix\n"
        "y, s = ByteMix(16).encode(b'abc' * 50); assert ByteMix(16).decode(y, s) == b'abc' * 50\n"
        "import sys; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
