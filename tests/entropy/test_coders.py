"""Coders as stages: exact inversion, rates near the entropy, exact ends, and refusal of what is damaged or does not fit."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from laconic.core import registry
from laconic.core.errors import BadConfig, BadInput, CodecError, CorruptStream, NotFitted, decode_budget
from laconic.core.stage import Symbols
from laconic.entropy.coders import Adaptive, Escape, Pack, Rans
from laconic.entropy.models import GaussianTable, Histogram, LaplaceTable, Trained

ALPHABETS = [1, 2, 3, 16, 200, 256, 257, 4000, 1 << 16]
SHAPES = [(), (0,), (4, 0, 2), (1,), (7, 3), (1000,)]


def _symbols(alphabet, shape, seed=0):
    """Skewed symbols of an alphabet, 0 for unbounded integers."""
    rng = np.random.default_rng(seed)
    if alphabet == 0:
        return Symbols(np.rint(rng.laplace(0, 9, shape)).astype(np.int32), 0)
    dtype = np.uint8 if alphabet <= 256 else np.uint16
    return Symbols((alphabet * rng.random(shape) ** 3).astype(dtype).reshape(shape), alphabet)


def _same(stage, x):
    """Coded and back, from the bytes and the side information alone; the length in bytes."""
    data, side = stage.encode(x)
    assert set(side) == set(stage.side)
    assert all(side[name].dtype == leaf.dtype for name, leaf in stage.side.items())
    with decode_budget(16 * x.index.size + (1 << 20)):
        back = stage.decode(data, side)
    assert back.alphabet == x.alphabet and back.index.dtype == x.index.dtype
    assert np.array_equal(back.index, x.index)
    return len(data) + sum(s.nbytes for s in side.values())


def _entropy_bytes(x):
    counts = np.unique(x.index, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum()) / 8


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_coder_inverts(alphabet, shape):
    x = _symbols(alphabet, shape)
    _same(Pack(), x)
    _same(Adaptive(), x)
    _same(Rans(), x)
    if alphabet <= 1000:
        _same(Adaptive(order=1), x)
    if alphabet <= 4096:
        _same(Rans(Trained()).fit(x), _symbols(alphabet, shape, 1))


@given(st.integers(1, 5000), st.lists(st.integers(0, 4999), max_size=300))
@settings(max_examples=40, deadline=None)
def test_any_symbols(alphabet, values):
    x = Symbols(np.array([v % alphabet for v in values], np.uint8 if alphabet <= 256 else np.uint16), alphabet)
    for stage in (Pack(), Rans(), Adaptive()):
        _same(stage, x)


@given(
    st.lists(st.integers(-(1 << 31), (1 << 31) - 1) | st.integers(-9, 9), max_size=300), st.sampled_from([1, 7, 1024])
)
@settings(max_examples=40, deadline=None)
def test_any_integers(values, levels):
    x = Symbols(np.array(values, np.int32), 0)
    _same(Adaptive(), x)
    _same(Adaptive(order=1, limit=30), x)
    bounded, side = Escape(levels).encode(x)
    assert bounded.alphabet <= levels + 1 and bounded.index.max(initial=0) < bounded.alphabet
    back = Escape(levels).decode(bounded, side)
    assert np.array_equal(back.index, x.index) and back.index.dtype == np.int32
    scale = np.arange(x.index.size) % 128
    for model in (GaussianTable(), LaplaceTable()):
        _same(Rans(model).given(scale), x)
        _same(Rans(model).given(np.stack([scale, x.index // 3], -1)), x)


@pytest.mark.parametrize("alphabet", [2, 16, 256, 1000])
def test_rates(alphabet):
    x = _symbols(alphabet, (1 << 16,))
    entropy = _entropy_bytes(x)
    assert _same(Rans(), x) <= 1.005 * entropy + 0.25 * alphabet + 100
    assert _same(Rans(Trained()).fit(x), x) <= 1.005 * entropy + 100
    assert _same(Adaptive(limit=1023), x) <= 1.005 * entropy + 2.5 * alphabet
    assert _same(Pack(), x) <= 1.005 * np.log2(alphabet) / 8 * x.index.size + 40


@pytest.mark.parametrize("certainty", [0.9, 0.99, 0.999])
def test_rare_symbols_do_not_take_the_place_of_frequent_ones(certainty):
    rng = np.random.default_rng(0)
    index = np.where(rng.random(1 << 18) < certainty, 7, rng.integers(0, 250, 1 << 18)).astype(np.uint8)
    index[:200] = np.arange(200)
    x = Symbols(index, 256)
    entropy = _entropy_bytes(x)
    assert _same(Rans(), x) <= 1.03 * entropy + 150
    assert _same(Rans(Trained()).fit(x), x) <= 1.03 * entropy + 100
    unseen = Symbols(rng.integers(0, 256, 1000).astype(np.uint8), 256)
    _same(Rans(Trained()).fit(x), unseen)


def test_a_context_that_tells_something_saves_bits():
    rng = np.random.default_rng(0)
    context = rng.integers(0, 5, (200, 100))
    x = Symbols((rng.integers(0, 3, context.shape) * context).astype(np.uint8), 16)
    for stage, alone in ((Rans(Histogram(5)), Rans()), (Adaptive(n_contexts=5), Adaptive())):
        assert _same(stage.given(context), x) < 0.6 * _same(alone, x)
    trained = Rans(Trained(5)).given(context).fit(x)
    assert _same(trained, x) < 0.6 * _same(Rans(), x)


def test_order_one_sees_the_symbol_before():
    x = Symbols(np.tile(np.arange(16, dtype=np.uint8), 500), 16)
    assert _same(Adaptive(order=1), x) < 0.1 * _same(Adaptive(), x)


def test_an_order_for_integers_sees_their_size():
    rng = np.random.default_rng(0)
    size = np.repeat(2.0 ** rng.integers(0, 12, 200), 100)
    x = Symbols(np.rint(rng.normal(0, size)).astype(np.int32), 0)
    assert _same(Adaptive(order=1), x) < 0.95 * _same(Adaptive(), x)


def test_outliers_do_not_widen_the_alphabet():
    x = _symbols(0, (1 << 14,))
    x.index[[5, 77, 4000]] = [1 << 31 - 1, -(1 << 31), 123456]
    bounded, side = Escape().encode(x)
    assert bounded.alphabet < 200 and side["outliers"].size < 60
    few, _ = Escape().encode(_symbols(0, (100,)))
    assert few.alphabet == np.ptp(_symbols(0, (100,)).index) + 1


def test_a_gaussian_context_reaches_the_entropy():
    rng = np.random.default_rng(0)
    mean, scale = rng.normal(0, 5, (64, 256)), 2.0 ** rng.uniform(-2, 5, (64, 256))
    x = Symbols(np.rint(rng.normal(mean, scale)).astype(np.int32), 0)
    context = np.stack([np.rint(8 * (np.log2(scale) + 3)), np.rint(32 * mean)], -1).astype(np.int32)
    n_bits = 8 * _same(Rans(GaussianTable()).given(context), x)
    p = norm.cdf((x.index + 0.5 - mean) / scale) - norm.cdf((x.index - 0.5 - mean) / scale)
    assert n_bits < 1.003 * -np.log2(p).sum() + 200


@pytest.mark.parametrize(
    "stage", [Pack(), Rans(), Adaptive(), Rans(GaussianTable()), Rans(Histogram(4))], ids=lambda s: str(s)[:40]
)
def test_damage_ends_in_a_named_error_or_in_symbols(stage):
    rng = np.random.default_rng(0)
    unbounded = hasattr(stage, "model") and stage.model == GaussianTable()
    x = _symbols(0 if unbounded else 23, (40, 30))
    if hasattr(stage, "given"):
        stage = stage.given(np.arange(1200) % (96 if unbounded else 4))
    if stage == Adaptive():
        stage = stage.given(None)
    data, side = stage.encode(x)
    parts = {"": np.frombuffer(data, np.uint8), **side}
    for name, array in parts.items():
        for trial in range(60):
            bad = array.copy()
            if trial % 3 == 0 and bad.size:
                bad[rng.integers(bad.size)] ^= np.uint8(1 << rng.integers(8))
            elif trial % 3 == 1:
                bad = bad[: rng.integers(bad.size + 1)]
            else:
                bad = np.append(bad, rng.integers(0, 256, rng.integers(1, 9))).astype(np.uint8)
            changed = {**parts, name: bad}
            with decode_budget(1 << 22):
                try:
                    back = stage.decode(changed.pop("").tobytes(), changed)
                except CodecError:
                    continue
            assert back.index.size <= 1 << 22
            assert back.alphabet == 0 or int(back.index.max(initial=0)) < back.alphabet


@pytest.mark.parametrize("stage", [Pack(), Rans(), Adaptive()], ids=lambda s: type(s).__name__)
def test_bytes_behind_the_end_are_refused(stage):
    for shape in ((0,), (5000,)):
        data, side = stage.encode(_symbols(23, shape))
        for tail in (b"\0", b"\0\0", b"abcd"):
            with pytest.raises(CorruptStream):
                stage.decode(data + tail, side)
        with pytest.raises(CorruptStream):
            stage.decode(data, {**side, "head": np.append(side["head"], np.uint8(0))})


def test_lies_about_the_size_meet_the_budget():
    head = np.frombuffer(bytes([5, 1, 0x80, 0x80, 0x80, 0x80, 0x80, 0x40]), np.uint8)
    for stage in (Pack(), Adaptive()):
        with decode_budget(1 << 20), pytest.raises(CorruptStream, match="may use"):
            stage.decode(b"", {"head": head})
    huge = np.frombuffer(bytes([5, 2, 0, *[0xFF] * 8, 0x7F]), np.uint8)
    for stage in (Pack(), Adaptive()):
        with pytest.raises(CorruptStream):
            stage.decode(b"", {"head": huge})


def test_what_does_not_fit_is_refused():
    x = _symbols(0, (10,))
    for stage in (Pack(), Rans(), Rans(Trained())):
        with pytest.raises(BadInput, match="Escape"):
            stage.encode(x)
    with pytest.raises(BadInput, match="Escape"):
        Rans(Trained()).fit(x)
    with pytest.raises(BadInput, match="needs none"):
        Escape().encode(_symbols(5, (3,)))
    with pytest.raises(BadInput, match="without bound"):
        Rans(GaussianTable()).given(np.zeros(3, int)).encode(_symbols(5, (3,)))
    with pytest.raises(BadConfig, match="given"):
        Rans(GaussianTable()).encode(x)
    with pytest.raises(BadConfig, match="given"):
        Rans(Histogram(3)).encode(_symbols(5, (3,)))
    with pytest.raises(BadInput, match="float"):
        Rans(GaussianTable()).given(np.zeros(10)).encode(x)
    with pytest.raises(BadInput, match="shape"):
        Rans(GaussianTable()).given(np.zeros(7, int)).encode(x)
    with pytest.raises(BadInput, match="has 3"):
        Adaptive(n_contexts=3).given(np.full(3, 3)).encode(_symbols(5, (3,)))
    with pytest.raises(NotFitted):
        Rans(Trained()).encode(_symbols(5, (3,)))
    with pytest.raises(BadInput, match="fitted to 5"):
        Rans(Trained()).fit(_symbols(5, (30,))).encode(_symbols(6, (3,)))
    with pytest.raises(BadInput, match="alphabet of 5"):
        Pack().encode(Symbols(np.array([5], np.uint8), 5))
    with pytest.raises(BadInput, match="int64"):
        Pack().encode(Symbols(np.array([1]), 5))
    with pytest.raises(BadInput, match="int16"):
        Adaptive().encode(Symbols(np.array([1], np.int16), 0))
    with pytest.raises(BadInput, match="probabilities"):
        Adaptive(order=1).encode(_symbols(1 << 16, (3,)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Adaptive(order=2),
        lambda: Adaptive(limit=1),
        lambda: Adaptive(n_contexts=0),
        lambda: Histogram(0),
        lambda: Trained(1 << 13),
        lambda: Escape(0),
        lambda: Escape(5000),
    ],
)
def test_settings_that_cannot_work(make):
    with pytest.raises(BadConfig):
        make()


@pytest.mark.parametrize("stage", [Pack(), Rans(Histogram(3)), Rans(LaplaceTable()), Adaptive(1, 99, 2), Escape(64)])
def test_configurations_are_rebuilt(stage):
    assert registry.build(registry.config(stage)) == stage


def test_a_learned_pmf_that_is_none_is_refused():
    stage = Rans(Trained()).fit(_symbols(5, (100,)))
    data, side = stage.encode(_symbols(5, (9,)))
    wrong = np.array(stage.model.pmf)
    wrong[0, 0] += 1
    assert wrong.shape == (1, 6)
    with pytest.raises(CorruptStream, match="total"):
        stage.replace(model=stage.model.replace(pmf=wrong)).decode(data, side)
    with pytest.raises(CorruptStream, match="shape"):
        stage.replace(model=stage.model.replace(pmf=wrong[:, 1:])).decode(data, side)


def test_neither_torch_nor_numba_is_imported_before_it_is_needed():
    code = "import laconic.entropy.coders, sys; sys.exit(bool({'torch', 'numba'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_tensors_are_contexts():
    torch = pytest.importorskip("torch")
    context = torch.arange(12).reshape(3, 4) % 3
    x = _symbols(9, (3, 4))
    assert _same(Rans(Histogram(3)).given(context), x) == _same(Rans(Histogram(3)).given(context.numpy()), x)
