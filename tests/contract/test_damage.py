"""Only a CodecError comes out of a damaged packet; in bounded time and memory; and damage is never decoded in silence."""

from __future__ import annotations

import random
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path

import pytest

import laconic

from .damage import header_lies, plain_damage, section_lies
from .samples import RECIPES, fitted, same, sample

LIMIT = 64 << 20
SECONDS = 5.0


def attempt(packet: bytes) -> object | None:
    """The decoded value or None; anything but a CodecError is the test's failure."""
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # an overflow on the way is a decoder that believed what it read
            return laconic.decode(packet, limit_bytes=LIMIT)
    except laconic.CodecError as e:
        assert str(e)
        return None
    finally:
        assert time.perf_counter() - start < SECONDS


@pytest.mark.parametrize("name", RECIPES)
def test_flips_cuts_and_extensions_are_caught(name: str) -> None:
    packet = fitted(name).encode(sample(name))
    for bad in plain_damage(packet, 300, random.Random(1)):
        assert attempt(bad) is None


@pytest.mark.parametrize("name", RECIPES)
def test_lying_headers(name: str) -> None:
    x = sample(name)
    packet = fitted(name).encode(x)
    honest = laconic.decode(packet)
    results = [attempt(lie) for lie in header_lies(packet, 300, random.Random(2))]
    assert any(r is None for r in results)
    assert any(r is None or not same(r, honest) for r in results)


@pytest.mark.parametrize("name", RECIPES)
def test_lying_sections(name: str) -> None:
    packet = fitted(name).encode(sample(name))
    for lie in section_lies(packet, 300, random.Random(3)):
        attempt(lie)


def peak_bytes() -> int:
    """This process' peak resident memory; getrusage would count its parent's at the fork."""
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def survive(names: Iterable[str]) -> None:
    """Run in a process of its own: decode lies and report how much the resident peak grew, in bytes."""
    for name in names:
        packet = fitted(name).encode(sample(name))
        laconic.decode(packet)
    before = peak_bytes()
    for name in names:
        packet = fitted(name).encode(sample(name))
        for seed in (4, 5):
            for lies in (header_lies, section_lies):
                for lie in lies(packet, 60, random.Random(seed)):
                    attempt(lie)
    print(peak_bytes() - before)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux' account of a process' peak memory")
def test_lies_do_not_take_memory() -> None:
    code = (
        "from tests.contract.test_damage import survive; from tests.contract.samples import RECIPES; survive(RECIPES)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 2 * LIMIT


def test_a_liar_about_size_is_refused_before_memory_is_taken() -> None:
    packet = fitted(RECIPES[0]).encode(sample(RECIPES[0]))
    with pytest.raises(laconic.CorruptStream, match="limit"):
        laconic.decode(packet, limit_bytes=10)
