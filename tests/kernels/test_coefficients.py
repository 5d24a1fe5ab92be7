"""Coefficient coding: exact inverses, the bill of the chooser, damage, one code on every machine."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.core.errors import CorruptStream, decode_budget
from laconic.kernels import coefficients as kc

from .damage import damaged


def _blocks(shape, scale, seed=0, smooth=True):
    """Laplacian coefficients whose size falls with frequency, as those of pictures do."""
    rng = np.random.default_rng(seed)
    b = kc.block_of(shape)
    t = kc._constants(b)
    return (rng.laplace(size=shape) * scale / (1 + (t.u + t.v if smooth else 0)) ** 1.3).astype(np.float32)


def _quantized(shape, scale, seed=0):
    return np.rint(_blocks(shape, scale, seed)).astype(np.int32)


SAMPLE = _quantized((3, 2, 3, 64), 20.0)


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(st.integers(1, 5), st.integers(0, 4), st.integers(0, 4), st.sampled_from([1, 2, 3, 8, 16])),
    st.sampled_from([0.0, 0.3, 5.0, 300.0, 3e6]),
    st.integers(0, 99),
)
def test_inverts(dims, scale, seed):
    shape = (*dims[:3], dims[3] ** 2)
    q = np.clip(_quantized(shape, scale, seed), -kc.MAX_VALUE, kc.MAX_VALUE)
    code = kc.encode(q)
    assert np.array_equal(kc.decode(code, shape), q)
    assert np.array_equal(kc.encode(q), code)


def test_extremes():
    q = np.full((2, 2, 2, 4), kc.MAX_VALUE, np.int32)
    q[:, ::2, ::2] *= -1
    assert np.array_equal(kc.decode(kc.encode(q), q.shape), q)


def test_zeros_cost_next_to_nothing():
    assert kc.encode(np.zeros((3, 8, 8, 256), np.int32)).size < 120


def test_near_the_entropy_of_independent_coefficients():
    """Contexts that hold nothing cost little: a memoryless source, against its entropy."""
    rng = np.random.default_rng(3)
    p = np.array([0.05, 0.1, 0.7, 0.1, 0.05])
    q = np.zeros((1, 16, 16, 256), np.int32)
    q[..., 5:] = rng.choice(5, (1, 16, 16, 251), p=p) - 2
    entropy_bits = -(p * np.log2(p)).sum() * 16 * 16 * 251
    assert 8 * kc.encode(q).size < 1.04 * entropy_bits


def test_neighbours_help():
    """Blocks whose activity is shared are cheaper than the same blocks in random order."""
    rng = np.random.default_rng(4)
    activity = np.repeat(np.repeat(rng.choice([0.1, 1.0], (1, 6, 6)), 8, 1), 8, 2)
    q = np.rint(_blocks((1, 48, 48, 64), 1.0) * activity[..., None]).astype(np.int32)
    shuffled = q.reshape(-1, 64)[rng.permutation(48 * 48)].reshape(q.shape)
    assert kc.encode(q).size < 0.93 * kc.encode(shuffled).size


def test_continuity_predicts_the_constant_coefficient():
    """A ramp over the whole picture: the constant coefficients grow without end, what continuity leaves does not."""
    x = np.add.outer(np.arange(256.0), 2 * np.arange(256.0))
    c = np.sqrt(2 / 8) * np.cos(np.pi * np.outer(np.arange(8), 2 * np.arange(8) + 1) / 16)
    c[0] /= np.sqrt(2)
    y = np.einsum("ui,rick,vk->rcuv", c, x.reshape(32, 8, 32, 8), c).reshape(1, 32, 32, 64)
    t = kc._constants(8)
    q = np.rint(y[..., t.u * 8 + t.v] / 4).astype(np.int32)
    assert 8 * kc.encode(q).size / 32**2 < 12  # a block; the constant alone has a range of 1500


@pytest.mark.parametrize("scale", [2.0, 12.0])
def test_bill_is_what_is_paid(scale):
    wanted = _blocks((3, 12, 12, 64), scale)
    q, bits = kc.choose(wanted, np.ones(64, np.float32), 0.1)
    assert abs(8 * kc.encode(q).size - bits) < 0.002 * bits + 32


def test_choice_pays():
    wanted = _blocks((1, 24, 24, 64), 10.0)
    ones = np.ones(64, np.float32)
    last = None
    for lam in (0.0, 0.05, 0.2, 0.8):
        q, bits = kc.choose(wanted, ones, lam)
        error = float(((wanted - q) ** 2).sum())
        nearest, nearest_bits = kc.choose(wanted, ones, 0.0)
        assert np.array_equal(nearest, np.rint(wanted))
        assert error + lam * bits <= float(((wanted - nearest) ** 2).sum()) + lam * nearest_bits
        assert (abs(q) <= abs(nearest)).all()
        if last:
            assert bits < last[0] and error > last[1]
        last = (bits, error)


def test_importance_is_kept():
    """A coefficient whose error weighs more is rounded down less often."""
    wanted = _blocks((1, 24, 24, 64), 3.0, smooth=False)
    heavy = np.ones(64, np.float32)
    heavy[1:32] = 9.0
    q, _ = kc.choose(wanted, heavy, 0.4)
    error = ((wanted - q) ** 2).mean((0, 1, 2))
    assert error[1:32].mean() < 0.6 * error[32:].mean()


CODE = """
import sys, hashlib, warnings
import numpy as np
warnings.simplefilter("ignore", RuntimeWarning)  # the coder wraps; interpreted, NumPy says so
from laconic.kernels import coefficients
q = np.load(sys.argv[1])
code = coefficients.encode(q)
assert np.array_equal(coefficients.decode(code, q.shape), q)
print(hashlib.sha256(code.tobytes()).hexdigest())
"""


@pytest.mark.parametrize(
    "how",
    [{"NUMBA_DISABLE_JIT": "1"}, {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}],
    ids=["interpreted", "without-avx"],
)
def test_one_code_everywhere(how, tmp_path):
    np.save(tmp_path / "q.npy", SAMPLE)
    run = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "q.npy")],
        env=os.environ | how | {"NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == hashlib.sha256(kc.encode(SAMPLE).tobytes()).hexdigest()


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_damage_is_named_or_other_values(data):
    shapes = st.tuples(st.integers(0, 20), st.integers(0, 9), st.integers(0, 9), st.integers(0, 300))
    code, shape = damaged(data, kc.encode(SAMPLE), SAMPLE.shape, shapes)
    try:
        q = kc.decode(code, shape)
    except CorruptStream:
        return
    assert q.shape == shape and abs(q).max(initial=0) <= kc.MAX_VALUE
    assert shape != SAMPLE.shape or not np.array_equal(q, SAMPLE)


def test_shapes_are_not_believed():
    for shape in (
        (1, 1 << 30, 1 << 30, 64),
        (1, 1, 10**8, 1),
        (17, 1, 1, 64),
        (0, 1, 1, 64),
        (1, 1, 1, 63),
        (1, 0, 1, 4),
    ):
        with pytest.raises(CorruptStream):
            kc.decode(np.zeros(9, np.uint8), shape)
    with decode_budget(1 << 20), pytest.raises(CorruptStream):
        kc.decode(kc.encode(SAMPLE), SAMPLE.shape)
