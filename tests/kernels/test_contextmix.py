"""The widest context mixing: vector steps against plain ones, one code on every machine, damage, memory."""

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
from laconic.kernels import contextmix as cm
from laconic.kernels.bytemix import on_a_line

from .damage import damaged

TEXT = (b"It was the best of codes,\nit was the worst of codes; it was 1859 bytes, or 0x743. " * 4)[:300]
SAMPLE = np.frombuffer(TEXT + bytes(range(0, 256, 3)) + b"\0" * 60 + TEXT[::-1], np.uint8)
SHORT = SAMPLE[60:140]
BITS = 16


@njit
def _mix(w, row, x, n):
    return cm.mix(w, row, x, n)


@njit
def _train(w, row, x, n, error):
    cm.train(w, row, x, n, error)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_vector_steps_are_the_plain_ones(seed):
    rng = np.random.default_rng(seed)
    n = cm.LANES * int(rng.integers(1, 5))
    w, x = on_a_line(3 * n, np.int16), on_a_line(n, np.int16)
    w[:] = rng.integers(-32768, 32768, w.size)
    x[:] = rng.integers(-2047, 2048, n)
    row, error = n * int(rng.integers(3)), int(rng.integers(-32768, 32768))
    assert _mix(w, row, x, n) == cm.mix(w, row, x, n)
    plain = w.copy()
    cm.train(plain, row, x, n, error)
    _train(w, row, x, n, error)
    assert np.array_equal(w, plain)


CODE = """
import sys, hashlib, warnings
import numpy as np
warnings.simplefilter("ignore", RuntimeWarning)  # hashes wrap; interpreted, NumPy says so
from laconic.kernels import contextmix as cm
x = np.frombuffer(bytes.fromhex(sys.argv[1]), np.uint8)
program = cm.program(cm.RECORD, 12, 5, 2)
code = cm.encode(x, 16, program)
print(hashlib.sha256(code.tobytes()).hexdigest())
"""


@pytest.mark.parametrize(
    "how",
    [{"NUMBA_DISABLE_JIT": "1"}, {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}],
    ids=["interpreted", "without-avx"],
)
def test_one_code_everywhere(how, tmp_path):
    code = cm.encode(SHORT, BITS, cm.program(cm.RECORD, 12, 5, 2))
    run = subprocess.run(
        [sys.executable, "-c", CODE, SHORT.tobytes().hex()],
        env=os.environ | how | {"NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == hashlib.sha256(code.tobytes()).hexdigest()


@settings(deadline=None, max_examples=25)
@given(st.binary(max_size=300), st.integers(1, 5), st.integers(0, 2), st.integers(1, 2048), st.integers(1, 40))
def test_inverts(data, times, kind, record, record2):
    x = np.frombuffer(data * times, np.uint8)
    program = cm.program(kind, record, record2, 1 + record % 4)
    code = cm.encode(x, BITS, program)
    if code is not None:
        assert code.size < x.size
        assert np.array_equal(cm.decode(code, x.size, BITS, program), x)


def test_inverts_where_tables_overflow_and_matches_are_long():
    rng = np.random.default_rng(0)
    words = [rng.integers(97, 123, rng.integers(2, 9)).astype(np.uint8).tobytes() for _ in range(3000)]
    text = b" ".join(words[i] for i in rng.zipf(1.2, 8_000) % 3000)
    program = cm.program(cm.TEXT)
    sizes = []
    for data, bits in ((text, 16), (text, 22), (text + text, 22)):
        x = np.frombuffer(data, np.uint8)
        code = cm.encode(x, bits, program)
        assert np.array_equal(cm.decode(code, x.size, bits, program), x)
        sizes.append(code.size)
    assert sizes[0] > sizes[1] and sizes[2] < 1.02 * sizes[1] + 200


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_damage_is_named_or_other_bytes(data):
    program = cm.program(cm.BINARY)
    code, n = damaged(data, cm.encode(SAMPLE, BITS, program), SAMPLE.size, st.integers(0, 2 * SAMPLE.size), 100)
    try:
        out = cm.decode(code, n, BITS, program)
    except CorruptStream:
        return
    assert out.size == n and not np.array_equal(out, SAMPLE)


def test_lengths_are_not_believed():
    program = cm.program(cm.TEXT)
    for n in (1 << 40, (1 << 31) - 1, 10**7):
        with pytest.raises(CorruptStream):
            cm.decode(np.zeros(20, np.uint8), n, BITS, program)
    code = cm.encode(np.zeros(5_000, np.uint8), BITS, program)
    with decode_budget(50_000), pytest.raises(CorruptStream):
        cm.decode(code, 5_000, BITS, program)


def test_workspace_is_as_large_as_said():
    for bits in (16, 20, 24):
        held = sum(a.nbytes for a in cm._state(bits, cm.program(cm.TEXT), cm.tables()))
        assert 0 <= cm.workspace_bytes(bits) - held < 300_000


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=40), st.lists(st.sampled_from([0, 255, 0xE8, 0xE9, 7, 200]), max_size=60))
def test_branches_invert(data, tail):
    x = np.frombuffer(data + bytes(tail), np.uint8)
    moved = x.copy()
    cm.branches(moved, True)
    cm.branches(moved, False)
    assert np.array_equal(moved, x)


def test_a_stride_as_long_as_the_record_looks_at_nothing_that_is_not_decoded_yet() -> None:
    from laconic.kernels import contextmix

    text = np.random.default_rng(0).integers(0, 3, 200).astype(np.uint8)
    for record, stride in ((4, 4), (4, 8), (1, 4)):
        program = contextmix.program(2, record, 16, stride)
        code = contextmix.encode(text, 18, program)
        assert code is not None and np.array_equal(contextmix.decode(code, len(text), 18, program), text)
