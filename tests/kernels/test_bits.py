"""Bit packing and mixed radix: the plain twin's bytes, exact inversion, the promised rate, and refusal of what is not theirs."""

from math import log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.core.errors import BadConfig, BadInput, CorruptStream
from laconic.kernels import bits


def _symbols(alphabet, n, seed=0):
    dtype = np.uint8 if alphabet <= 256 else np.uint16
    return np.random.default_rng(seed).integers(0, alphabet, n).astype(dtype)


def _radix_reference(index, alphabet):
    """Words as Python integers, strung into one."""
    word, total, at = bits.radix_word(alphabet), 0, 0
    for begin in range(0, len(index), word.symbols):
        part = [int(s) for s in index[begin : begin + word.symbols]]
        value = 0
        for s in part:
            value = value * alphabet + s
        total |= value << at
        at += (alphabet ** len(part) - 1).bit_length()
    return total.to_bytes((at + 7) // 8, "little")


@pytest.mark.parametrize("n_bits", range(1, 17))
@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 31, 1000])
def test_pack_is_its_plain_twin(n_bits, n):
    index = _symbols(1 << n_bits, n)
    packed = bits.pack(index, n_bits)
    assert packed.size == bits.packed_bytes(n, n_bits)
    assert np.array_equal(packed, bits.pack_plain(index, n_bits))
    assert np.array_equal(bits.unpack(packed, n_bits, n), index)
    assert np.array_equal(bits.unpack_plain(packed, n_bits, n), index)


def test_pack_takes_wider_integers_than_it_needs():
    index = np.array([[1, 0, 5], [7, 2, 3]], np.uint32)
    assert np.array_equal(bits.pack(index, 3), bits.pack_plain(index, 3))


@given(st.integers(2, 1 << 16), st.integers(0, 300), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_radix_words_are_numbers_to_the_base_of_the_alphabet(alphabet, n, seed):
    index = _symbols(alphabet, n, seed)
    packed = bits.pack_radix(index, alphabet)
    assert packed.tobytes() == _radix_reference(index, alphabet)
    assert np.array_equal(bits.unpack_radix(packed, alphabet, n), index)


def test_radix_is_within_half_a_percent_of_the_entropy():
    for alphabet in [*range(2, 600), *range(601, 1 << 16, 97), (1 << 15) + 1, 1 << 16]:
        word = bits.radix_word(alphabet)
        assert word.bits <= 1.005 * word.symbols * log2(alphabet), alphabet
        assert 2**word.bits >= alphabet**word.symbols
        assert word.bits <= 256


@given(st.sampled_from([2, 3, 5, 6, 100, 257, 1000]), st.integers(0, 60), st.binary(max_size=80))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_refused_or_are_what_would_be_packed(alphabet, n, data):
    raw = np.frombuffer(data, np.uint8)[: bits.radix_bytes(n, alphabet)]
    try:
        index = bits.unpack_radix(raw, alphabet, n)
    except CorruptStream:
        return
    assert index.size == n
    assert bits.pack_radix(index, alphabet).tobytes() == raw.tobytes()


@given(st.integers(1, 16), st.integers(0, 60), st.binary(min_size=120, max_size=120))
@settings(max_examples=100, deadline=None)
def test_bits_behind_the_last_symbol_are_refused(n_bits, n, data):
    raw = np.frombuffer(data, np.uint8)[: bits.packed_bytes(n, n_bits)]
    spare = 8 * raw.size - n * n_bits
    if spare and raw[-1] >> (8 - spare):
        with pytest.raises(CorruptStream, match="behind the last"):
            bits.unpack(raw, n_bits, n)
    else:
        assert bits.pack(bits.unpack(raw, n_bits, n), n_bits).tobytes() == raw.tobytes()


def test_wrong_lengths_and_symbols_are_refused():
    packed = bits.pack(_symbols(8, 10), 3)
    for data in (packed[:-1], np.append(packed, np.uint8(0))):
        with pytest.raises(CorruptStream):
            bits.unpack(data, 3, 10)
    words = bits.pack_radix(_symbols(5, 100), 5)
    for data in (words[:-1], np.append(words, np.uint8(0))):
        with pytest.raises(CorruptStream):
            bits.unpack_radix(data, 5, 100)
    with pytest.raises(BadInput, match="symbol 8"):
        bits.pack(np.array([8], np.uint8), 3)
    with pytest.raises(BadInput, match="symbol 5"):
        bits.pack_radix(np.array([5], np.uint8), 5)
    with pytest.raises(BadInput, match="int64"):
        bits.pack(np.array([1]), 3)
    with pytest.raises(BadConfig):
        bits.pack(np.array([1], np.uint8), 17)
    with pytest.raises(BadConfig):
        bits.radix_word(1)
