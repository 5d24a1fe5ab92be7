"""Attention on packed codes against the same from whole vectors, in float64."""

import os
import subprocess
import sys

import numpy as np
import pytest

from laconic.core.errors import BadConfig, BadInput
from laconic.kernels.attend import Coded, Decoder, Rope, addresses, attend, attend_plain
from laconic.kernels.coordinates import BLOCK, pack_heads

MIXED = np.array(
    [[0, 1, 2, 3, 4, 5, 6, 7, 8, 4, 4, 4, 3, 0, 2, 2], [4, 4, 3, 1, 0, 8, 8, 5, 4, 4, 2, 2, 6, 7, 0, 1]], np.uint8
)


def _decoder(bits, d, seed=0):
    rng = np.random.default_rng(seed)
    n_heads, r = bits.shape
    levels = [[np.sort(rng.standard_normal(1 << int(b))) * 0.9**j for j, b in enumerate(row)] for row in bits]
    synthesis = rng.standard_normal((n_heads, r, d)).astype(np.float32) / np.float32(np.sqrt(d))
    return Decoder.of(bits, levels, synthesis, rng.standard_normal((n_heads, d)).astype(np.float32) * 0.3)


def _coded(decoder, n, page_blocks=3, scaled=False, seed=0):
    """Random codes; what lies behind the last token is code 0 and a scale that is no number."""
    rng = np.random.default_rng(seed)
    per, (n_heads, r) = page_blocks * BLOCK, decoder.bits.shape
    pages, scales = [], []
    for start in range(0, n, per):
        here = min(per, n - start)
        index = np.zeros((n_heads, per, r), np.uint8)
        index[:, :here] = rng.integers(0, 256, (n_heads, here, r)) % (1 << decoder.bits.astype(int))[:, None]
        pages.append(pack_heads(index, decoder.bits))
        scale = np.full((n_heads, per), np.nan, np.float16)
        scale[:, :here] = rng.uniform(0.5, 1.5, (n_heads, here))
        scales.append(scale)
    return Coded.of(decoder, pages, page_blocks, scales if scaled else None)


def _made(bits, d=24, n=700, queries=4, scaled=False, seed=0):
    bits = np.array(bits, np.uint8) if np.ndim(bits) else np.full((2, 16), bits, np.uint8)
    keys = _coded(_decoder(bits, d, seed), n, 3, scaled, seed)
    values = _coded(_decoder(bits[::-1].copy(), d, seed + 1), n, 5, scaled, seed + 1)
    q = np.random.default_rng(seed).standard_normal((len(bits), queries, d)).astype(np.float32)
    return q, keys, values, n


def _rope(decoder, p=10, **settings):
    return Rope.of(decoder, (10000.0 ** -(np.arange(p) / p)).astype(np.float32), **settings)


def _close(got, expected, what=1.0):
    """Within the tolerance that the module states; `what`: times |q|, hence of scores. Values have size about 1."""
    (acc, m, mass), (acc_, m_, mass_) = got, expected
    assert all(a.dtype == np.float32 for a in got)
    np.testing.assert_allclose(m, m_, rtol=0, atol=1e-3 * what)
    np.testing.assert_allclose(m + np.log(mass), m_ + np.log(mass_), rtol=0, atol=1e-3 * what)
    result, right = acc / mass[..., None], acc_ / mass_[..., None]
    assert np.abs(result - right).max() <= 2e-3 * what * np.abs(right).max()


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("bits", [*range(1, 9), MIXED], ids=lambda b: b if isinstance(b, int) else "mixed")
def test_same_as_from_whole_vectors(bits, turned, scaled):
    q, keys, values, n = _made(bits, scaled=scaled)
    mask = (np.random.default_rng(5).random(n) < 0.7).astype(np.uint8)
    rope = _rope(keys.decoder, first=7, factor=1.1) if turned else None
    for m in (None, mask):
        _close(attend(q, keys, values, n, m, rope), attend_plain(q, keys, values, n, m, rope))


@pytest.mark.parametrize("queries", [1, 2, 3, 9])
@pytest.mark.parametrize("n", [1, 64, 65, 1024, 2600])
def test_any_number_of_queries_and_tokens(n, queries):
    q, keys, values, n = _made(3, n=n, queries=queries)
    for rope in (None, _rope(keys.decoder)):
        _close(attend(q, keys, values, n, None, rope), attend_plain(q, keys, values, n, None, rope))


@pytest.mark.parametrize("p, interleaved", [(1, False), (5, True), (12, False), (12, True)])
def test_turns_of_every_kind(p, interleaved):
    """Pairs half a head apart or next to each other, an odd number of them, channels that stay."""
    q, keys, values, n = _made(4)
    rope = _rope(keys.decoder, p, interleaved=interleaved, first=3)
    _close(attend(q, keys, values, n, None, rope), attend_plain(q, keys, values, n, None, rope))


def test_turns_far_out_are_exact():
    """One channel pair that turns by 1 a position: what is off behind 64 k positions is the score's rounding, not the angle."""
    decoder = Decoder.of(np.ones((1, 2), np.uint8), [[np.array([1.0, 1.0]), np.array([0.0, 0.0])]], np.eye(2, 2))
    coded = _coded(decoder, 640)
    q = np.array([[[1, 0], [0, 1]]], np.float32)
    for first in (0, 65_000, 1_000_000):
        rope = Rope.of(decoder, np.ones(1, np.float32), first=first)
        for t in (1, 64, 200, 640):
            only = np.zeros(640, np.uint8)
            only[t - 1] = 1
            _, m, _ = attend(q, coded, coded, 640, only, rope)
            angle = float(first + t - 1)
            np.testing.assert_allclose(m[0], [np.cos(angle), np.sin(angle)], rtol=0, atol=1e-4)


def test_synthesis_that_is_mostly_nothing():
    """Coordinates that are channels: a few pairs of coordinates make up any four channels, and the others are not read."""
    decoder = Decoder.of(np.full((2, 24), 4, np.uint8), [[np.linspace(-1, 1, 16)] * 24] * 2, np.eye(24))
    keys = _coded(decoder, 300)
    rope = _rope(decoder, 12)
    assert rope.counts.max() <= 4
    q = np.random.default_rng(0).standard_normal((2, 4, 24)).astype(np.float32)
    _close(attend(q, keys, keys, 300, None, rope), attend_plain(q, keys, keys, 300, None, rope))


@pytest.mark.parametrize("turned", [False, True])
def test_results_do_not_depend_on_threads_or_on_where_pages_end(turned):
    q, keys, values, n = _made(MIXED, n=5000)
    rope = _rope(keys.decoder) if turned else None
    expected = attend(q, keys, values, n, None, rope)
    for threads in (2, 5):
        for a, b in zip(attend(q, keys, values, n, None, rope, threads), expected, strict=True):
            assert np.array_equal(a, b)
    larger = Coded(keys.decoder, *_repaged(keys, 9))
    for a, b in zip(attend(q, larger, values, n, None, rope), expected, strict=True):
        assert np.array_equal(a, b)


def _repaged(coded, page_blocks):
    """The same blocks on pages of another size; addresses by hand, as a growing cache has them."""
    sizes = 8 * coded.decoder.bits.sum(1, dtype=np.int64)
    ends = np.cumsum(coded.page_blocks * sizes)
    heads = [np.split(page, ends[:-1]) for page in coded.kept[0]]
    whole = [np.concatenate(parts) for parts in zip(*heads, strict=True)]
    n_pages = -(-len(coded.kept[0]) * coded.page_blocks // page_blocks)
    pages = []
    for i in range(n_pages):
        parts = [w[i * page_blocks * s : (i + 1) * page_blocks * s] for w, s in zip(whole, sizes, strict=True)]
        short = [np.pad(p, (0, page_blocks * s - len(p))) for p, s in zip(parts, sizes, strict=True)]
        pages.append(np.concatenate(short))
    return addresses(pages), page_blocks, np.empty(0, np.int64), (tuple(pages), ())


def test_two_histories_merge_to_one():
    """The rule by which the caller joins what it attends elsewhere."""
    q, keys, values, n = _made(4, n=800)
    head = np.zeros(n, np.uint8)
    head[:300] = 1
    (a, m, x), (b, k, y) = (attend(q, keys, values, n, mask) for mask in (head, 1 - head))
    top = np.maximum(m, k)
    acc = a * np.exp(m - top)[..., None] + b * np.exp(k - top)[..., None]
    mass = x * np.exp(m - top) + y * np.exp(k - top)
    _close((acc, top, mass), attend_plain(q, keys, values, n))


@pytest.mark.parametrize("turned", [False, True])
def test_nothing_attended(turned):
    q, keys, values, n = _made(4)
    rope = _rope(keys.decoder) if turned else None
    none = np.zeros(n, np.uint8)
    for acc, m, mass in (
        attend(q, keys, values, 0, None, rope),
        attend(q, keys, values, n, none, rope),
        attend_plain(q, keys, values, 0, None, rope),
        attend_plain(q, keys, values, n, none, rope),
    ):
        assert (m == -np.inf).all() and not mass.any() and not acc.any()


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_where_it_is_and_is_not_hidden(turned, bad):
    q, keys, values, n = _made(4)
    rope = _rope(keys.decoder) if turned else None
    clean = attend(q, keys, values, n, None, rope)
    q[1, 2, 5] = bad
    acc, _, mass = attend(q, keys, values, n, None, rope)
    assert not np.isfinite(acc[1, 2]).any() and not np.isfinite(acc[1, 2] / mass[1, 2]).any()
    for got, expected in zip((acc, mass), (clean[0], clean[2]), strict=True):
        assert np.array_equal(got[0], expected[0]) and np.array_equal(got[1, :2], expected[1, :2])


@pytest.mark.parametrize("side", ["keys", "values"])
def test_a_scale_that_is_not_finite_is_not_hidden(side):
    q, keys, values, n = _made(4, scaled=True)
    (keys if side == "keys" else values).kept[1][1][0, 3] = np.nan
    acc, _, _ = attend(q, keys, values, n)
    assert np.isnan(acc[0]).any(-1).all() and np.isfinite(acc[1]).all()


def test_weights_far_apart_keep_their_sum():
    """A token that outweighs thousands of others e^9 times: these still have their part."""
    decoder = Decoder.of(np.ones((1, 1), np.uint8), [[np.array([0.0, 1.0])]], np.ones((1, 1)))
    n = 4096
    index = np.zeros((1, n, 1), np.uint8)
    index[0, 70] = 1
    keys = Coded.of(decoder, [pack_heads(index, decoder.bits)], n // BLOCK)
    values = Coded.of(decoder, [pack_heads(1 - index, decoder.bits)], n // BLOCK)
    q = np.full((1, 1, 1), 9.0, np.float32)
    acc, _, mass = attend(q, keys, values, n)
    assert abs(acc[0, 0, 0] - (n - 1) * np.exp(-9)) <= 1e-3 * (n - 1) * np.exp(-9)
    assert abs(mass[0, 0] - 1 - (n - 1) * np.exp(-9)) <= 1e-4


def test_bad_configurations_are_refused():
    levels = [[np.zeros(16)] * 4]
    for bits, synthesis, mean in (
        (np.full((1, 4), 9, np.uint8), np.eye(4), None),
        (np.full((1, 4), 4, np.int64), np.eye(4), None),
        (np.full((1, 4), 4, np.uint8), np.eye(5), None),
        (np.full((1, 4), 4, np.uint8), np.eye(4), np.zeros((2, 4), np.float32)),
        (np.full((1, 4), 3, np.uint8), np.eye(4), None),
        (np.full((1, 4), 4, np.uint8), np.full((4, 4), np.nan), None),
    ):
        with pytest.raises(BadConfig):
            Decoder.of(bits, levels, synthesis, mean)
    q, keys, values, n = _made(4)
    with pytest.raises(BadConfig):
        _rope(keys.decoder, 13)
    for q_, n_, mask in ((q[:1], n, None), (q.astype(np.float64), n, None), (q[..., :8], n, None), (q, 9999, None),
                         (q, -1, None), (q, n, np.ones(n - 1, np.uint8)), (q, n, np.ones(n))):  # fmt: skip
        with pytest.raises(BadInput):
            attend(np.ascontiguousarray(q_), keys, values, n_, mask)
    pages = keys.kept[0]
    for pages_, scales in ((pages[:1] + (pages[1][:-1],), None), (pages, [np.zeros((2, 3 * BLOCK), np.float16)])):
        with pytest.raises(BadInput):
            Coded.of(keys.decoder, pages_, 3, scales)


PORTABLE = """
import sys
sys.path.insert(0, sys.argv[1])
from test_attend import MIXED, _close, _made, _rope
from laconic.kernels.attend import attend, attend_plain
q, keys, values, n = _made(MIXED, n=200, scaled=True)
for rope in (None, _rope(keys.decoder)):
    _close(attend(q, keys, values, n, None, rope), attend_plain(q, keys, values, n, None, rope))
"""


@pytest.mark.parametrize("features", ["", "+avx2,+fma"])
def test_machines_without_the_instructions(features):
    """The same kernels compiled for less than this machine has: other ways to look up, to multiply and to read float16."""
    env = {**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": features}
    subprocess.run([sys.executable, "-c", PORTABLE, os.path.dirname(__file__)], env=env, check=True)
