"""Context mixing of bytes: the tables, the vector steps against plain ones, and one code on every machine."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from laconic.core.errors import CorruptStream, decode_budget
from laconic.kernels import bytemix as bm

from .damage import damaged

TEXT = (b"It was the best of codes, it was the worst of codes; it was 1859 bytes, or 0x743. " * 9)[:700]
SAMPLE = np.frombuffer(TEXT + bytes(range(256)) + b"\0" * 300 + TEXT[::-1], np.uint8)


def test_bit_histories_are_closed_and_count():
    states = bm.bit_histories()
    assert len(states) <= 256 and states[0][0] == (0, 0, 0)
    for (zeros, ones, _), (after_0, after_1) in states:
        for bit, after in ((0, after_0), (1, after_1)):
            count = states[after][0]
            mine, other = (zeros, ones)[bit], (zeros, ones)[1 - bit]
            assert mine <= count[bit] <= mine + 1 or mine > 6
            assert count[1 - bit] <= other
            assert count[bit] > 0
    t = bm.tables()
    for i, ((zeros, ones, _), _) in enumerate(states):
        assert (t.kept[i], t.agreed[i]) == (-(zeros + ones > 0), -(not zeros or not ones))
    # With no contradiction the count of a run only grows, to the largest kept.
    state = 0
    for n in range(1, 40):
        state = states[state][1][1]
        assert states[state][0][:2] == (0, min(n, 24))


def test_squash_and_stretch_are_each_others_inverse():
    t = bm.tables()
    x = np.arange(-bm.DOMAIN, bm.DOMAIN + 1)
    assert abs(t.squash - 65536 / (1 + np.exp(-x / 256))).max() <= 1
    assert t.squash.min() >= 1 and t.squash.max() <= 65535 and (np.diff(t.squash) >= 0).all()
    inner = np.arange(4096)[8:-8]
    p = (inner + 0.5) / 4096
    assert abs(t.stretch[inner] - np.clip(256 * np.log(p / (1 - p)), -2047, 2047)).max() <= 1


@njit
def _mix(w, row, x, at):
    return bm.mix(w, row, x, at)


@njit
def _train(w, row, x, at, error):
    bm.train(w, row, x, at, error)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_vector_steps_are_the_plain_ones(seed):
    rng = np.random.default_rng(seed)
    w = rng.integers(-bm.WEIGHT_LIMIT, bm.WEIGHT_LIMIT + 1, 4 * bm.LANES).astype(np.int32)
    x = rng.integers(-2047, 2048, 2 * bm.LANES).astype(np.int32)
    row, at, error = 16 * int(rng.integers(4)), 16 * int(rng.integers(2)), int(rng.integers(-(1 << 17), 1 << 17))
    assert _mix(w, row, x, at) == bm.mix(w, row, x, at)
    plain = w.copy()
    bm.train(plain, row, x, at, error)
    _train(w, row, x, at, error)
    assert np.array_equal(w, plain)


@njit
def _mix3(w, a, b, c, x):
    return bm.mix3(w, a, b, c, x)


@njit
def _train3(w, a, b, c, x, error):
    bm.train3(w, a, b, c, x, error)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_vector_steps_of_three_rows_are_the_plain_ones(seed):
    rng = np.random.default_rng(seed)
    w = bm.on_a_line(8 * bm.LANES, np.int16)
    assert w.ctypes.data % 64 == 0
    w[:] = rng.choice([rng.integers(-32768, 32768, w.size), np.full(w.size, -32768)])
    x = tuple(int(v) for v in rng.choice([rng.integers(-2047, 2048, bm.LANES), np.full(bm.LANES, -2047)]))
    rows = [16 * int(k) for k in rng.permutation(8)[:3]]
    assert _mix3(w, *rows, x) == bm.mix3(w, *rows, x)
    error, plain = int(rng.integers(-32768, 32768)), w.copy()
    bm.train3(plain, *rows, x, error)
    _train3(w, *rows, x, error)
    assert np.array_equal(w, plain)


CODE = """
import sys, hashlib, warnings
import numpy as np
warnings.simplefilter("ignore", RuntimeWarning)  # hashes wrap; interpreted, NumPy says so
from laconic.kernels import bytemix
x = np.frombuffer(bytes.fromhex(sys.argv[1]), np.uint8)
code = bytemix.encode(x, 18)
assert np.array_equal(bytemix.decode(code, x.size, 18), x)
print(hashlib.sha256(code.tobytes()).hexdigest())
"""


@pytest.mark.parametrize(
    "how",
    [{"NUMBA_DISABLE_JIT": "1"}, {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}],
    ids=["interpreted", "without-avx"],
)
def test_one_code_everywhere(how, tmp_path):
    code = bm.encode(SAMPLE, 18)
    run = subprocess.run(
        [sys.executable, "-c", CODE, SAMPLE.tobytes().hex()],
        env=os.environ | how | {"NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == hashlib.sha256(code.tobytes()).hexdigest()


def _round_trip(data: bytes, bits: int = 16) -> int:
    x = np.frombuffer(data, np.uint8)
    code = bm.encode(x, bits)
    if code is None:
        return len(data)
    assert code.size < len(data)
    assert bm.decode(code, len(data), bits).tobytes() == data
    return code.size


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=400), st.integers(1, 6))
def test_inverts(data, times):
    _round_trip(data * times)


def test_inverts_where_tables_overflow_and_matches_are_long():
    rng = np.random.default_rng(0)
    words = [rng.integers(97, 123, rng.integers(2, 9)).astype(np.uint8).tobytes() for _ in range(3000)]
    text = b" ".join(words[i] for i in rng.zipf(1.2, 40_000) % 3000)
    assert _round_trip(text, 16) > _round_trip(text, 22)
    assert _round_trip(text + text, 22) < 1.02 * _round_trip(text, 22) + 200
    assert _round_trip(bytes(300_000), 22) < 200


def test_noise_does_not_shrink():
    noise = np.random.default_rng(1).integers(0, 256, 20_000).astype(np.uint8)
    assert bm.encode(noise, 20) is None


def test_near_the_entropy_of_a_memoryless_source():
    rng = np.random.default_rng(2)
    p = 0.5 ** np.arange(1, 9)
    p[-1] *= 2
    x = rng.choice(8, 100_000, p=p).astype(np.uint8)
    entropy_bits = -(p * np.log2(p)).sum() * x.size
    assert 8 * bm.encode(x, 20).size < 1.02 * entropy_bits


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_damage_is_named_or_other_bytes(data):
    code, n = damaged(data, bm.encode(SAMPLE, 16), SAMPLE.size, st.integers(0, 3 * SAMPLE.size))
    try:
        out = bm.decode(code, n, 16)
    except CorruptStream:
        return
    assert out.size == n and not np.array_equal(out, SAMPLE)


def test_lengths_are_not_believed():
    for n in (1 << 40, (1 << 31) - 1, 10**7):
        with pytest.raises(CorruptStream):
            bm.decode(np.zeros(20, np.uint8), n, 20)
    code = bm.encode(np.zeros(100_000, np.uint8), 20)
    with decode_budget(50_000), pytest.raises(CorruptStream):
        bm.decode(code, 100_000, 20)


def test_workspace_is_as_large_as_said_and_what_a_packet_may_use():
    for n in (0, 1000, 300_000, (1 << 18) + 1, (1 << 19) + 1, (1 << 20) + 1, (1 << 21) + 1, (1 << 22) + 1, 1 << 24):
        for bits in (16, 24, 26):
            said = bm.workspace_bytes(n, bits)
            assert n + said < 16 * n + (16 << 20)
            if bits < 26:
                assert 0 <= said - sum(a.nbytes for a in bm._workspace(n, bits, bm.tables())) < 400_000
