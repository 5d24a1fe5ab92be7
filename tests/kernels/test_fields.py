"""Bit fields: the loops against their definitions, and damage."""

from __future__ import annotations

import numpy as np
import pytest

from laconic.core.errors import CorruptStream
from laconic.kernels import fields

RNG = np.random.default_rng(0)


def patterns(width: int, n: int) -> np.ndarray:
    return RNG.integers(0, 256, width * n, dtype=np.uint8).view(f"u{width}")


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_planes(width: int, turned: bool) -> None:
    for n in (0, 1, 1000):
        words = patterns(width, n)
        planes = fields.split(words, turned)
        assert np.array_equal(planes, fields.split_plain(words, turned))
        assert np.array_equal(fields.join(planes, turned), words)


@pytest.mark.parametrize("is_float", [False, True])
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_differences(width: int, is_float: bool) -> None:
    base = patterns(width, 1200)
    words = base.copy()
    words[300:600] += RNG.integers(0, 90, 300).astype(words.dtype)
    words[600:900] -= RNG.integers(0, 90, 300).astype(words.dtype)
    words[900:] = patterns(width, 300)
    token, rest = fields.differences(words, base, is_float)
    plain = fields.differences_plain(words, base, is_float)
    assert np.array_equal(token, plain[0]) and np.array_equal(rest, plain[1])
    assert not token[:300].any()
    assert np.array_equal(fields.applied(token, rest, base, is_float), words)


def test_a_difference_is_small_across_zero_and_powers_of_two() -> None:
    base = np.array([0.0, 1.0, -2.0], np.float32)
    near = np.nextafter(base, np.float32(-9))
    token, _ = fields.differences(near.view("u4"), base.view("u4"), True)
    assert token.max() <= 3  # from zero it is two steps: −0 lies between


def test_damage() -> None:
    base = patterns(2, 500)
    token, rest = fields.differences(patterns(2, 500), base, True)
    with pytest.raises(CorruptStream, match="bytes of rest bits"):
        fields.applied(token, rest[:-1], base, True)
    too_long = np.full(500, 255, np.uint8)
    with pytest.raises(CorruptStream, match="more bits than a number"):
        fields.applied(too_long, np.zeros(500 * 61 // 8 + 1, np.uint8), base, True)
    one = np.array([16], np.uint8)
    with pytest.raises(CorruptStream, match="bits behind"):
        fields.applied(one, np.array([255], np.uint8), base[:1], True)
