"""Partial matching with denoising: there and back, one code on every machine, damage, memory."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.core.errors import BadConfig, CorruptStream, decode_budget
from laconic.core.packet import WORKING_BYTES
from laconic.entropy.partialmatch import PartialMatch
from laconic.kernels import partialmatch as pm
from laconic.kernels.bytemix import tables

from .damage import damaged

TEXT = (b"It was the best of codes,\nit was the worst of codes; it was 1859 bytes, or 0x743. " * 9)[:700]
SAMPLE = np.frombuffer(TEXT + bytes(range(0, 256, 3)) + b"\0" * 60 + TEXT[::-1], np.uint8)
SHORT = SAMPLE[:90]


@settings(deadline=None, max_examples=30)
@given(st.binary(max_size=300), st.integers(1, 5), st.integers(0, 3))
def test_inverts(data, times, steps):
    x = np.frombuffer(data * times, np.uint8)
    code = pm.encode(x, steps)
    if code is not None:
        assert code.size < x.size and np.array_equal(pm.decode(code, x.size, steps), x)


CODE = """
import sys, hashlib, warnings
import numpy as np
warnings.simplefilter("ignore", RuntimeWarning)  # hashes wrap; interpreted, NumPy says so
from laconic.kernels import partialmatch as pm
x = np.frombuffer(bytes.fromhex(sys.argv[1]), np.uint8)
print(hashlib.sha256(pm.encode(x, 3).tobytes()).hexdigest())
"""


@pytest.mark.parametrize(
    "how",
    [{"NUMBA_DISABLE_JIT": "1"}, {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}],
    ids=["interpreted", "without-avx"],
)
def test_one_code_everywhere(how, tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", CODE, SHORT.tobytes().hex()],
        env=os.environ | how | {"NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == hashlib.sha256(pm.encode(SHORT, 3).tobytes()).hexdigest()


def test_inverts_where_tables_overflow(monkeypatch):
    words = np.random.default_rng(0).integers(97, 123, (2000, 5)).astype(np.uint8)
    x = words[np.random.default_rng(1).zipf(1.2, 4000) % 2000].ravel()
    room = pm.encode(x, 3)
    monkeypatch.setattr(pm, "_sizes", lambda n: (1 << 10, 1 << 11))
    tight = pm.encode(x, 3)
    assert np.array_equal(pm.decode(tight, x.size, 3), x) and tight.size > 1.02 * room.size


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_damage_is_named_or_other_bytes(data):
    code, n = damaged(data, pm.encode(SAMPLE, 3), SAMPLE.size, st.integers(0, 3 * SAMPLE.size))
    try:
        out = pm.decode(code, n, 3)
    except CorruptStream:
        return
    assert out.size == n and not np.array_equal(out, SAMPLE)


def test_lengths_and_settings_are_not_believed():
    for n in (1 << 40, (1 << 31) - 1, 10**7):
        with pytest.raises(CorruptStream):
            pm.decode(np.zeros(20, np.uint8), n, 3)
    code = pm.encode(np.zeros(100_000, np.uint8), 3)
    assert np.array_equal(pm.decode(code, 100_000, 3), np.zeros(100_000))
    with decode_budget(50_000), pytest.raises(CorruptStream):
        pm.decode(code, 100_000, 3)
    with pytest.raises(BadConfig):
        PartialMatch(4)


def test_memory_is_as_said_and_what_a_packet_may_use():
    for n in (0, 1000, 152_089, 300_000, 1 << 20, 3 << 20, 1 << 24):
        said = pm.workspace_bytes(n)
        assert n + said < 16 * n + WORKING_BYTES
        assert 0 <= said - sum(a.nbytes for a in pm._workspace(n, tables())) < 20_000
