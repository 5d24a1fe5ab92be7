"""The widest byte coder as a stage: what it finds in data, what it refuses, how small it is."""

import lzma

import numpy as np
import pytest

from laconic.core.errors import BadConfig, CorruptStream
from laconic.core.packet import WORKING_BYTES
from laconic.entropy.contextmix import STORED, ContextMix, look
from laconic.kernels.contextmix import BINARY, RECORD, TEXT, workspace_bytes


def test_looks_right():
    rng = np.random.default_rng(0)
    text = np.frombuffer(b"the rate of a code is its length, and nothing else.\n" * 99, np.uint8)
    assert look(text).kind == TEXT
    rows = np.tile(rng.integers(0, 256, 24), 400).astype(np.uint8)
    rows[::7] = rng.integers(0, 256, rows[::7].size)
    found = look(rows)
    assert (
        found.kind == RECORD and found.record % 24 == 0
    )  # a multiple of the period repeats as well as the period does
    noise = rng.integers(0, 256, 9000).astype(np.uint8)
    assert look(noise).kind == BINARY and not look(noise).x86
    code = noise.copy()
    code[::40], code[4::40] = 0xE8, 0
    assert look(code).x86
    for n in (0, 1, 2, 63, 64, 65):
        look(noise[:n])


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 7])
def test_short(n):
    y, side = ContextMix().encode(b"\0" * n)
    assert len(y) <= n and ContextMix().decode(y, side) == b"\0" * n


def test_code_with_branches_comes_back():
    rng = np.random.default_rng(1)
    code = rng.integers(0, 30, 6000).astype(np.uint8)
    code[::40], code[4::40] = 0xE8, 255
    y, side = ContextMix().encode(code.tobytes())
    assert side["look"][4] == 1 and ContextMix().decode(y, side) == code.tobytes()


def test_noise_is_stored_and_lies_are_refused():
    noise = np.random.default_rng(0).integers(0, 256, 500).astype(np.uint8).tobytes()
    y, side = ContextMix().encode(noise)
    assert y == noise and side["look"][0] == STORED
    for at, value in ((0, 4), (1, 0), (1, 2049), (2, 0), (3, 5000), (4, 2)):
        lie = side["look"].copy()
        lie[at] = value
        with pytest.raises(CorruptStream):
            ContextMix().decode(y, {**side, "look": lie})
    with pytest.raises(CorruptStream):
        ContextMix().decode(y, {**side, "length": np.array([499], np.uint32)})
    for bad in ({"table_bits": 15}, {"table_bits": 29}, {"history": 0}):
        with pytest.raises(BadConfig):
            ContextMix(**bad)


def test_memory_stays_within_what_a_packet_may_use():
    for n in (0, 1000, 100_000, 300_000, 1 << 20, 3 << 20, 10_000_000, 1 << 24):
        assert n + workspace_bytes(ContextMix().bits(n)) < 16 * n + WORKING_BYTES


def test_smaller_than_zpaq_on_a_book(data):
    book = (data / "canterbury-snappy" / "alice29.txt").read_bytes()
    y, side = ContextMix(28, 128).encode(book)
    assert len(y) + 14 < 36_500  # zpaq -m5 takes 37,600, PPMd 38,890
    assert len(y) < 0.75 * len(lzma.compress(book, preset=9 | lzma.PRESET_EXTREME))


def test_smaller_than_xz_where_there_are_records(data):
    table = (data / "canterbury-snappy" / "kppkn.gtb").read_bytes()[:60_000]
    y, side = ContextMix(28, 128).encode(table)
    assert side["look"][0] == RECORD
    assert len(y) < 0.8 * len(lzma.compress(table, preset=9 | lzma.PRESET_EXTREME))
    assert ContextMix(28, 128).decode(y, side) == table
