"""Counter-based random numbers: published answers, plain twins bit for bit, distributions, the same bits elsewhere."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from laconic.core.errors import BadInput
from laconic.kernels.random import (
    bits,
    bits_plain,
    gaussian,
    gaussian_plain,
    permutation,
    philox,
    random_orthogonal,
    signs,
    uniform,
)


@pytest.mark.parametrize(
    "counter, key, answer",
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_published_answers(counter, key, answer):
    """Random123's known answers for philox4x32-10."""
    words = [np.uint64(int(w, 16)) for w in (counter + " " + key).split()]
    assert [f"{int(w):08x}" for w in philox(*words)] == answer.split()


def test_layout_of_words():
    """Word 2 b + h of a stream: half h of the block with counter (b, stream)."""
    assert [hex(int(w)) for w in bits(0, 2)] == ["0xe169c58d6627e8d5", "0x9b00dbd8bc57ac4c"]


@settings(deadline=None, max_examples=60)
@given(st.integers(-(2**63), 2**64), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 70))
def test_bits_equal_plain(seed, stream, start, n):
    assert np.array_equal(bits(seed, n, stream=stream, start=start), bits_plain(seed, n, stream=stream, start=start))


def test_any_part_can_be_made_alone():
    whole = bits(7, 100, stream=3)
    assert np.array_equal(bits(7, 31, stream=3, start=13), whole[13:44])
    assert np.array_equal(gaussian(7, 31, start=14), gaussian(7, 100)[14:45])
    with pytest.raises(BadInput):
        gaussian(7, 4, start=1)


def test_streams_and_seeds_differ():
    a, b, c = bits(1, 1000), bits(1, 1000, stream=1), bits(2, 1000)
    assert not set(map(int, a)) & set(map(int, b)) | set(map(int, a)) & set(map(int, c))


@pytest.mark.parametrize("n", [0, 1, 2, 999, 20000])
def test_gaussian_equals_plain_bit_for_bit(n):
    assert np.array_equal(gaussian(5, n), gaussian_plain(5, n))


def test_gaussian_is_box_muller():
    words = bits(3, 20000)
    u = ((words[0::2] >> np.uint64(11)) + np.uint64(1)).astype(np.float64) * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log(u)), 2 * np.pi * words[1::2].astype(np.float64) * 2.0**-64
    expected = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).reshape(-1)
    assert np.abs(gaussian(3, 20000) - expected).max() < 1e-14


def test_distributions():
    assert stats.kstest(gaussian(11, 100_000), "norm").pvalue > 1e-3
    assert stats.kstest(uniform(11, 100_000), "uniform").pvalue > 1e-3
    s = signs(11, 100_001)
    assert s.dtype == np.float32 and set(s) == {-1.0, 1.0} and abs(s.mean()) < 0.02
    assert abs((s[1:] * s[:-1]).mean()) < 0.02


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**63), st.integers(1, 300))
def test_permutation(seed, n):
    assert np.array_equal(np.sort(permutation(seed, n)), np.arange(n))


def test_permutations_are_even():
    first = [int(permutation(seed, 4)[0]) for seed in range(2000)]
    assert stats.chisquare(np.bincount(first, minlength=4)).pvalue > 1e-3


@pytest.mark.parametrize("n", [1, 2, 7, 64, 65, 130, 300])
def test_random_orthogonal(n):
    q = random_orthogonal(9, n)
    assert q.dtype == np.float32 and q.shape == (n, n)
    assert np.abs(q.astype(np.float64) @ q.T.astype(np.float64) - np.eye(n)).max() < 2e-7
    assert np.array_equal(q, random_orthogonal(9, n))
    assert n == 1 or not np.array_equal(q, random_orthogonal(10, n))


def test_random_orthogonal_is_haar():
    """Moments of the trace of O(n): mean 0, variance 1, fourth moment 3 for n >= 4; determinants of both signs."""
    trace = np.array([np.trace(random_orthogonal(seed, 4)) for seed in range(4000)])
    assert abs(trace.mean()) < 0.06 and abs(trace.var() - 1) < 0.12 and abs((trace**4).mean() - 3) < 0.7
    determinants = [np.linalg.det(random_orthogonal(seed, 3)) for seed in range(400)]
    assert 120 < sum(d > 0 for d in determinants) < 280


DIGEST = """
import hashlib, numpy as np
from laconic.kernels.product import product
from laconic.kernels.random import gaussian, random_orthogonal
g = gaussian(1, 4096).astype(np.float32).reshape(64, 64)
made = random_orthogonal(4, 70), gaussian(2, 1001), product(g, g)
print(hashlib.sha256(b"".join(a.tobytes() for a in made)).hexdigest())
"""


def test_same_bits_without_vector_instructions(tmp_path):
    """The oldest machine of the architecture, without AVX and FMA, gets the same rotations and products."""

    def digest(**environment):
        run = subprocess.run(
            [sys.executable, "-c", DIGEST],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
            capture_output=True,
            text=True,
            check=True,
        )
        return run.stdout

    generic = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    assert digest() == digest(**generic)
