"""rANS: the bytes of a reference in Python integers, one form of the kernel like the other, inversion, rate, damage."""

import llvmlite.binding as llvm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from laconic.core.errors import BadConfig, BadInput, CorruptStream, decode_budget
from laconic.kernels import rans
from laconic.kernels.pmf import cost_bits, normalize

PRECISION = 12


def _reference(index, freqs, precision, n_lanes):
    """Symbols under one list of frequencies each, by the formulas at the head of the module."""
    states, words = [1 << 16] * n_lanes, []
    for i, (s, freq) in enumerate(zip(index, freqs, strict=True)):
        x, f, c = states[i % n_lanes], freq[s], sum(freq[:s])
        if x >= f << (32 - precision):
            words.append(x & 0xFFFF)
            x >>= 16
        states[i % n_lanes] = ((x // f) << precision) + c + x % f
    return np.array(words, "<u2").tobytes() + np.array(states, "<u4").tobytes()


def _pmf(alphabet, seed=0, precision=PRECISION):
    rng = np.random.default_rng(seed)
    return normalize(rng.integers(0, 4, alphabet) ** 6 + (np.arange(alphabet) == alphabet // 2), precision)


def _draw(freq, n, seed=0):
    dtype = np.uint8 if freq.size <= 256 else np.uint16
    return np.random.default_rng(seed).choice(freq.size, n, p=freq / freq.sum()).astype(dtype)


def _many(n, seed=0, n_tables=9, lookup_bits=5):
    """Tables of different sizes, a table for every symbol, and symbols that follow them."""
    rng = np.random.default_rng(seed)
    freqs = [_pmf(int(a), t) for t, a in enumerate(rng.integers(1, 300, n_tables))]
    built = rans.tables(np.concatenate(freqs), np.array([f.size for f in freqs]), PRECISION, lookup_bits)
    table = rng.integers(0, n_tables, n).astype(np.uint16)
    index = np.array([rng.choice(freqs[t].size, p=freqs[t] / freqs[t].sum()) for t in table], np.uint16)
    return built, table, index, [freqs[t].tolist() for t in table]


@pytest.fixture(params=[False, True], ids=["scalar", "vector"])
def form(request, monkeypatch):
    """Both forms of the kernel. The vector form is right on every machine whose LLVM knows its operations."""
    if request.param and llvm.llvm_version_info < (19,):
        pytest.skip("this LLVM has no vector compress")
    monkeypatch.setattr(rans, "_wide", lambda: request.param)


@pytest.mark.parametrize("n_lanes", [1, 4, 16, 32, 64])
@pytest.mark.parametrize("n", [0, 1, 31, 64, 777])
def test_bytes_are_those_of_the_reference(form, n_lanes, n):
    freq = _pmf(200)
    built, index = rans.tables(freq, np.array([200]), PRECISION), _draw(freq, n)
    data = rans.encode(index, built, n_lanes)
    assert data.tobytes() == _reference(index, [freq.tolist()] * n, PRECISION, n_lanes)
    assert np.array_equal(rans.decode(data, built, n, n_lanes), index)


@pytest.mark.parametrize("n_lanes", [4, 32])
@pytest.mark.parametrize("lookup_bits", [0, 5, 12])
def test_a_table_for_every_symbol(form, n_lanes, lookup_bits):
    built, table, index, freqs = _many(700, lookup_bits=lookup_bits)
    data = rans.encode(index, built, n_lanes, table)
    assert data.tobytes() == _reference(index.tolist(), freqs, PRECISION, n_lanes)
    assert np.array_equal(rans.decode(data, built, index.size, n_lanes, table), index)


@pytest.mark.parametrize("precision", [10, 11, 12, 13, 14])
@pytest.mark.parametrize("skew", [0, 1, 5, 40])
def test_code_length_is_the_entropy(precision, skew):
    counts = (1 / np.arange(1, 101) ** (skew / 4) * 1e6).astype(np.int64) + 1
    freq = normalize(counts, precision)
    built, index = rans.tables(freq, np.array([100]), precision), _draw(freq, 1 << 16)
    ideal = cost_bits(np.bincount(index, minlength=100), freq, precision)
    n_bits = 8 * rans.encode(index, built, 32).size
    assert ideal <= n_bits <= 1.001 * ideal + 32 * 32 + (1 << 16) * 0.001


def test_a_certain_symbol_costs_nothing(form):
    built = rans.tables(np.array([0, 1 << PRECISION]), np.array([2]), PRECISION)
    data = rans.encode(np.ones(10_000, np.uint8), built, 32)
    assert data.size == 4 * 32
    assert rans.decode(data, built, 10_000, 32).min() == 1


@given(st.integers(1, 600), st.integers(0, 400), st.sampled_from([1, 4, 32]), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_inversion(alphabet, n, n_lanes, seed):
    freq = _pmf(alphabet, seed)
    built, index = rans.tables(freq, np.array([alphabet]), PRECISION, lookup_bits=seed % 13), _draw(freq, n, seed)
    table = None if built.lookup_bits == PRECISION else np.zeros(n, np.uint8)
    assert np.array_equal(rans.decode(rans.encode(index, built, n_lanes, table), built, n, n_lanes, table), index)


@given(st.binary(max_size=400), st.integers(0, 300), st.sampled_from([1, 4, 32]), st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_bytes_end_in_an_error_or_in_symbols(data, n, n_lanes, wide):
    freq = _pmf(100)
    built = rans.tables(freq, np.array([100]), PRECISION)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rans, "_wide", lambda: wide and llvm.llvm_version_info >= (19,))
        try:
            index = rans.decode(np.frombuffer(data, np.uint8), built, n, n_lanes)
        except CorruptStream:
            return
    assert rans.encode(index, built, n_lanes).tobytes() == data


def test_cut_extended_and_flipped_codes_are_refused(form):
    built, table, index, _ = _many(500)
    data = rans.encode(index, built, 32, table)
    flipped = data.copy()
    flipped[100] ^= 16
    for damaged in (data[2:], data[:-2], data[:-1], np.append(data, data[:2]), np.append(data[:2], data), flipped):
        with pytest.raises(CorruptStream):
            rans.decode(damaged, built, 500, 32, table)
    for n in (0, 499, 501):
        with pytest.raises(CorruptStream):
            rans.decode(data, built, n, 32, np.resize(table, n))
    with decode_budget(100), pytest.raises(CorruptStream, match="may use"):
        rans.decode(data, built, 500, 32, table)


def test_what_cannot_be_coded_is_refused(form):
    built = rans.tables(np.array([0, 1 << PRECISION]), np.array([2]), PRECISION)
    for n in (3, 64):
        with pytest.raises(BadInput, match="frequency 0"):
            rans.encode(np.zeros(n, np.uint8), built, 32)
        with pytest.raises(BadInput, match="outside"):
            rans.encode(np.full(n, 2, np.uint8), built, 32)
        with pytest.raises(BadInput, match="outside"):
            rans.encode(np.ones(n, np.uint8), built, 32, np.ones(n, np.uint8))
    with pytest.raises(BadInput, match="table"):
        rans.decode(np.zeros(128, np.uint8), built, 3, 32, np.array([0, 0, 1], np.uint8))
    with pytest.raises(BadConfig, match="lanes"):
        rans.encode(np.ones(3, np.uint8), built, 3)


@pytest.mark.parametrize("freq", [[4095], [4097], [-1, 4097], [1 << 30, 4096]])
def test_what_is_no_pmf_is_refused(freq):
    with pytest.raises(BadConfig, match="no pmf"):
        rans.tables(np.array(freq), np.array([len(freq)]), PRECISION)


def test_no_float_is_in_a_decoder():
    for kernel in (rans._decode, rans._decode_wide, rans._tables):
        fresh = njit(kernel.py_func)
        fresh.compile(kernel.signatures[0] if kernel.signatures else _signature(kernel))
        assert "double" not in _body(fresh) and "float" not in _body(fresh), kernel.__name__


def _signature(kernel):
    built, table, index, _ = _many(64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rans, "_wide", lambda: True)
        rans.decode(rans.encode(index, built, 32, table), built, 64, 32, table)
    return kernel.signatures[0]


def _body(compiled):
    """The function itself, without the wrapper that unpacks Python arguments."""
    text = next(iter(compiled.inspect_llvm().values()))
    start = text.index("define ")
    return text[start : text.index("\n}", start)]
