"""Messages in integers: the fast loops against plain ones, and products that are exact whoever multiplies."""

import numpy as np
import pytest

from laconic.kernels import circuits as k
from laconic.kernels import rangecoder as rc


def _messages(rng, n, m):
    out = np.empty((n, m), np.float32)
    k.scaled(np.floor(2.0 ** rng.uniform(0, 50, (n, m))), out)
    return out


def _cumulative(rng, n_symbols, m):
    codes = rng.integers(0, 256, (m, n_symbols), dtype=np.uint8)
    from laconic.entropy.circuits import values

    out = np.zeros((n_symbols + 1, m), np.uint32)
    np.cumsum(k.shares(values(), codes, k.SYMBOL_BITS).T, axis=0, out=out[1:])
    return out


def test_shares_are_exact_and_never_nothing():
    from laconic.entropy.circuits import values

    codes = np.random.default_rng(0).integers(0, 256, (40, 256), dtype=np.uint8)
    codes[0] = 255
    codes[1, 1:], codes[1, 0] = 255, 0
    out = k.shares(values(), codes, 22)
    assert (out.sum(1) == 1 << 22).all() and out.min() >= 1
    value = values()[codes]
    plain = 1 + value * ((1 << 22) - 256) // value.sum(1, keepdims=True)
    plain[np.arange(40), codes.argmin(1)] += (1 << 22) - plain.sum(1)  # what is left goes to the first of the largest
    assert (out == plain).all()
    want = 2.0 ** (codes / -8)
    np.testing.assert_allclose(out / (1 << 22), want / want.sum(1, keepdims=True), rtol=0.02, atol=3e-4)


def test_messages_keep_their_range_as_the_plain_loop_has_it():
    rng = np.random.default_rng(1)
    product = np.floor(2.0 ** rng.uniform(0, 52, (300, 7)))
    product[0] = 0
    fast, plain = np.empty((300, 7), np.float32), np.empty((300, 7), np.float32)
    k.scaled(product, fast)
    k.scaled_plain(product, plain)
    assert (fast == plain).all()
    assert (fast[1:].max(1) >= 1 << 23).all() and (fast.max(1) < 1 << 24).all() and fast.min() >= 1


def test_a_product_is_the_same_integer_in_any_order():
    rng = np.random.default_rng(2)
    from laconic.entropy.circuits import values

    m = 256
    message = _messages(rng, 20, m)
    message[0] = (1 << 24) - 1
    edge = k.shares(values(), rng.integers(0, 256, (m, m), dtype=np.uint8), k.EDGE_BITS)
    edge[:, 0] = 1 << 20  # the largest sum there can be
    floats = message.astype(np.float64) @ edge.astype(np.float64)
    assert (floats.astype(np.int64) == message.astype(np.int64) @ edge).all()
    back = message[:, ::-1].astype(np.float64) @ edge[::-1].astype(np.float64)
    assert (floats == back).all()


@pytest.mark.parametrize("joining", [k.joined, k.observe])
def test_evidence_multiplies(joining):
    rng = np.random.default_rng(3)
    message, want = _messages(rng, 50, 6), np.empty((50, 6), np.float32)
    if joining is k.joined:
        other = _messages(rng, 50, 6)
        factor, args = other.astype(np.int64), (other,)
    else:
        cumulative, symbol = _cumulative(rng, 9, 6), rng.integers(0, 9, 50, dtype=np.uint8)
        factor, args = np.diff(cumulative.astype(np.int64), axis=0)[symbol], (cumulative, symbol)
    k.scaled_plain((message.astype(np.int64) * factor).astype(np.float64), want)
    joining(message, *args)
    assert (message == want).all()


@pytest.mark.parametrize("n_symbols", [1, 2, 16, 256, 3000])
def test_code_is_what_plain_integers_say_and_comes_back(n_symbols):
    rng = np.random.default_rng(4)
    message, cumulative = _messages(rng, 200, 5), _cumulative(rng, n_symbols, 5)
    symbol = rng.integers(0, n_symbols, 200).astype(np.uint16)
    out, state = np.empty(4 * 200 + 64, np.uint8), k.encoder()
    k.code(state, out, message, cumulative, symbol)
    data = out[: k.finish(state, out)]

    low, width, at = rc.ENCODER
    plain = np.empty_like(out)
    for begin, slots in k.code_plain(message, cumulative, symbol):
        assert slots >= 1
        low, width, at = rc.encode_interval(low, width, at, plain, begin, slots, k.SLOT_BITS)
        low, width = np.uint64(low), np.uint64(width)
    assert plain[: rc.finish(low, width, at, plain)].tobytes() == data.tobytes()

    back, state = np.empty_like(symbol), k.decoder(data)
    k.decode(state, data, message, cumulative, back)
    assert (back == symbol).all() and k.ended(state, data)
    assert not k.ended(k.decoder(data), data) or n_symbols == 1
