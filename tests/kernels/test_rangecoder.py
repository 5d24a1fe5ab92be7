"""The range coder: the bytes of a reference with unbounded integers, inversion of mixed decisions, room, exact ends."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from laconic.core.errors import CorruptStream
from laconic.kernels import rangecoder as rc

BIT, INTERVAL, RAW = 0, 1, 2


@njit
def _encode(decisions, out):
    low, width, at = rc.ENCODER
    for kind, a, b, c, d in decisions:
        if kind == 0:
            low, width, at = rc.encode_bit(low, width, at, out, a, b, c)
        elif kind == 1:
            low, width, at = rc.encode_interval(low, width, at, out, a, c, b)
        else:
            low, width, at = rc.encode_bits(low, width, at, out, d, b)
    return rc.finish(low, width, at, out)


@njit
def _decode(decisions, data):
    """What was decided, knowing the kinds and probabilities; and whether the code ended there."""
    code, width, at = rc.start(data)
    found = np.zeros(decisions.shape[0], np.int64)
    for i in range(decisions.shape[0]):
        kind, a, b, c, _ = decisions[i]
        if kind == 0:
            found[i], code, width, at = rc.decode_bit(code, width, at, data, a, b)
        elif kind == 1:
            slot = rc.decode_slot(code, width, b)
            found[i] = a <= slot < a + c
            code, width, at = rc.decode_interval(code, width, at, data, a, c, b)
        else:
            found[i], code, width, at = rc.decode_bits(code, width, at, data, b)
    return found, rc.ended(code, width, at, data)


def _reference(decisions):
    """The same intervals with a low end of any length: no carries, no room to run out of."""
    low, width, n_words = 0, (1 << 64) - 1, 0

    def narrow(begin, freq, bits, rest=False):
        nonlocal low, width, n_words
        step = width >> bits
        low, width = low + step * begin, width - step * begin if rest else step * freq
        if width < 1 << 32:
            low, width, n_words = low << 32, width << 32, n_words + 1

    for kind, a, b, c, d in decisions.tolist():
        if kind == BIT:
            narrow(0, a, b) if c else narrow(a, 0, b, rest=True)
        elif kind == INTERVAL:
            narrow(a, c, b)
        else:
            if b > 16:
                narrow(d >> 16, 1, b - 16)
            if b:
                narrow(d & ((1 << min(b, 16)) - 1), 1, min(b, 16))
    for n in range(5):
        rest = (1 << (64 - 8 * n)) - 1
        value = (low + rest) & ~rest
        if value - low < width:
            break
    return value.to_bytes(4 * n_words + 8, "big")[: 4 * n_words + n]


def _decisions(n, seed, extreme):
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        bits = int(rng.integers(1, 17))
        total = 1 << bits
        kind = int(rng.integers(0, 3))
        if kind == BIT:
            p = int(rng.choice([1, total - 1])) if extreme else int(rng.integers(1, total))
            rows.append((BIT, p, bits, int(rng.random() * total < p), 0))
        elif kind == INTERVAL:
            begin = total - 1 if extreme else int(rng.integers(0, total))
            rows.append((INTERVAL, begin, bits, int(rng.integers(1, total - begin + 1)), 0))
        else:
            bits = int(rng.integers(0, 33))
            rows.append((RAW, 0, bits, 0, int(rng.integers(0, 1 << bits))))
    return np.array(rows, np.int64).reshape(n, 5)


def _code(decisions):
    out = np.zeros(8 * len(decisions) + 16, np.uint8)
    return out[: _encode(decisions, out)].copy()


@given(st.integers(0, 200), st.integers(0, 10_000), st.booleans())
@settings(max_examples=100, deadline=None)
def test_bytes_are_those_of_the_reference_and_come_back(n, seed, extreme):
    decisions = _decisions(n, seed, extreme)
    data = _code(decisions)
    assert data.tobytes() == _reference(decisions)
    found, exact = _decode(decisions, data)
    right = np.choose(decisions[:, 0], [decisions[:, 3], 1, decisions[:, 4]]) if n else found
    assert exact and np.array_equal(found, right)


def test_a_carry_runs_through_many_bytes():
    # The low end comes to lie just below one half and is then pushed over it.
    rows = [(INTERVAL, 32767, 16, 1, 0)] + [(INTERVAL, 65535, 16, 1, 0)] * 40 + [(BIT, 1, 16, 0, 0)] * 9
    decisions = np.array(rows, np.int64)
    data = _code(decisions)
    assert data.tobytes() == _reference(decisions)
    assert _decode(decisions, data)[1]


def test_a_short_buffer_is_left_alone_behind_its_end():
    decisions = _decisions(300, 5, False)
    right = _code(decisions)
    for room in (0, 1, 3, 7, 50, right.size - 1):
        memory = np.full(room + 64, 0xA5, np.uint8)
        assert _encode(decisions, memory[:room]) == right.size
        assert (memory[room:] == 0xA5).all()


@given(st.binary(max_size=60), st.integers(0, 60), st.integers(0, 10_000))
@settings(max_examples=150, deadline=None)
def test_any_bytes_can_be_read_and_only_one_code_ends(data, n, seed):
    decisions = _decisions(n, seed, seed % 2 == 0)
    raw = np.frombuffer(data, np.uint8).copy()
    found, exact = _decode(decisions, raw)
    bits_only = decisions[:, 0] != INTERVAL
    if exact and bits_only.all():
        again = decisions.copy()
        again[:, 3] = found
        again[:, 4] = found
        assert _code(again).tobytes() == data


def test_an_extended_code_is_refused():
    decisions = _decisions(50, 3, False)
    data = _code(decisions)
    for tail in ([0], [7], [0, 0, 0, 0, 0]):
        assert not _decode(decisions, np.append(data, np.array(tail, np.uint8)))[1]


@given(
    st.lists(st.integers(0, 299), max_size=200),
    st.sampled_from([0, 1]),
    st.sampled_from([2, 30, 255, 1023]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_adaptive_symbols_invert(symbols, order, limit, with_context):
    index = np.array(symbols, np.uint16)
    context = (np.arange(index.size) % 3).astype(np.uint16) if with_context else None
    data = rc.encode_symbols(index, 9, context, 3, order, limit)
    assert np.array_equal(rc.decode_symbols(data, index.size, 9, context, 3, order, limit), index)
    with pytest.raises(CorruptStream):
        rc.decode_symbols(np.append(data, np.uint8(0)), index.size, 9, context, 3, order, limit)


@given(st.lists(st.integers(-(1 << 31), (1 << 31) - 1) | st.integers(-9, 9), max_size=200), st.sampled_from([0, 1]))
@settings(max_examples=60, deadline=None)
def test_adaptive_integers_invert(values, order):
    index = np.array(values, np.int32)
    data = rc.encode_integers(index, order=order)
    assert np.array_equal(rc.decode_integers(data, index.size, order=order), index)


@given(st.binary(max_size=200), st.integers(0, 300))
@settings(max_examples=100, deadline=None)
def test_any_bytes_end_in_an_error_or_in_values(data, n):
    raw = np.frombuffer(data, np.uint8)
    for decode, encode in (
        (lambda: rc.decode_symbols(raw, n, 5), lambda y: rc.encode_symbols(y, 5)),
        (lambda: rc.decode_integers(raw, n), lambda y: rc.encode_integers(y)),
    ):
        try:
            values = decode()
        except CorruptStream:
            continue
        assert encode(values).tobytes() == data


def test_adaptive_codes_approach_the_entropy():
    rng = np.random.default_rng(0)
    p = np.exp(-np.abs(np.arange(256) - 128) / 12)
    p /= p.sum()
    entropy = -(p * np.log2(p)).sum()
    index = rng.choice(256, 1 << 17, p=p).astype(np.uint8)
    assert 8 * rc.encode_symbols(index, 8, limit=1023).size / index.size <= 1.003 * entropy
    values = index.astype(np.int32) - 128
    assert 8 * rc.encode_integers(values, limit=1023).size / index.size <= 1.01 * entropy


def test_no_float_is_in_a_decoder():
    rc.decode_symbols(rc.encode_symbols(np.zeros(3, np.uint8), 4), 3, 4)
    rc.decode_integers(rc.encode_integers(np.zeros(3, np.int32)), 3)
    for kernel in (rc._decode_adaptive, rc._decode_gamma):
        fresh = njit(kernel.py_func)
        fresh.compile(kernel.signatures[0])
        text = next(iter(fresh.inspect_llvm().values()))
        body = text[text.index("define ") : text.index("\n}", text.index("define "))]
        assert "double" not in body and "float" not in body, kernel.__name__
