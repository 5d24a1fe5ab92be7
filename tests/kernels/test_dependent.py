"""The trellis search and its coder: plain twins bit for bit, any path comes back, and damage is refused by name."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.core.errors import BadConfig, BadInput, CorruptStream
from laconic.kernels import dependent as kernel
from laconic.quantize.dependent import grid_tables, level_costs

SCALES = np.array([30.2, 52.7, 70.3, 100.4, 140.9])  # a from .2 to 28 steps: centred unions and a shift among them
PLAIN_COSTS = kernel.Costs(np.zeros((1, 41), np.float32), np.zeros(1, np.int64), np.full(1, np.inf, np.float32))


def _case(law, n, n_lanes, seed=0):
    g = np.random.default_rng(seed)
    table = g.integers(0, len(SCALES), n).astype(np.uint8)
    x = (g.standard_normal(n) * 2.0 ** (SCALES[table] / 16 - 4)).astype(np.float32)
    x[g.integers(0, n, 6)] *= np.float32([1, 50, -300, 4e3, -5e4, 1e6])
    return x, table, level_costs(law, SCALES), grid_tables(law, np.rint(SCALES)), kernel.lane_bounds(n, n_lanes)


@pytest.mark.parametrize("states", [8, 16, 32, 64, 128, 1024])
@pytest.mark.parametrize("law", [1, 2, 3, 4])
def test_search_and_coder_are_their_plain_twins(law, states):
    x, table, costs, tables, bounds = _case(law, 700, 3, seed=states)
    q = kernel.quantize(x, table, costs, states, bounds)
    assert np.array_equal(q, kernel.quantize_plain(x, table, costs, states, bounds))
    words, lengths = kernel.encode(q, table, tables, states, bounds)
    plain_words, plain_lengths = kernel.encode_plain(q, table, tables, states, bounds)
    assert np.array_equal(words, plain_words) and np.array_equal(lengths, plain_lengths)
    chosen = kernel.levels(q, kernel.walk(q, states, bounds), tables.centred[table])
    assert np.array_equal(kernel.decode(words, lengths, table, tables, states, bounds), chosen)
    assert np.array_equal(kernel.decode_plain(words, lengths, table, tables, states, bounds), chosen)
    assert np.abs(x - chosen).max() < 8  # the outliers too, whatever they cost


@pytest.mark.parametrize(("law", "only", "states"), [(2, None, 64), (4, 1, 8), (4, 1, 256)])
def test_search_in_windows_loses_nothing(law, only, states):
    x, table, costs, _, _ = _case(law, 11_000, 1)
    if only is not None:  # at a low rate, where paths run side by side for long
        x = x[table == 2][:9000] * np.float32(2.0 ** ((SCALES[only] - SCALES[2]) / 16) * 1.2)
        x, table = np.tile(x, 5)[:9000], np.full(9000, only, np.uint8)
    bounds = kernel.lane_bounds(x.size, 1)
    paid = []
    for search in (kernel.quantize, kernel.quantize_plain):
        q = search(x, table, costs, states, bounds)
        unions, centred = kernel.walk(q, states, bounds), np.isfinite(costs.centre)[table]
        level = kernel.levels(q, unions, centred)
        half = costs.level.shape[1] // 2
        cost = costs.level[table, np.clip((level >> costs.shift[table]) + half, 0, 2 * half)]
        cost = np.where(centred & (level == 0) & (unions == 1), costs.centre[table], cost)
        paid.append(float(np.minimum((x - level).astype(float) ** 2, 100).sum() + cost.sum()))
    assert paid[0] <= paid[1] * (1 + 1e-5)


@pytest.mark.parametrize(("states", "gain"), [(8, 1.09), (64, 1.27), (256, 1.34), (1024, 1.39), (4096, 1.42)])
def test_granular_gain(states, gain):
    x = np.random.default_rng(5).uniform(-8, 8, 1 << 17).astype(np.float32)
    bounds, table = kernel.lane_bounds(x.size, 1), np.zeros(x.size, np.uint8)
    q = kernel.quantize(x, table, PLAIN_COSTS, states, bounds)
    level = kernel.levels(q, kernel.walk(q, states, bounds), np.zeros(x.size, bool))
    measured = 10 * np.log10(4 / 12 / np.mean((x - level).astype(float) ** 2))
    assert measured == pytest.approx(gain, abs=0.02)  # in dB over rounding to every other level


def test_every_code_halves_and_merges():
    for states, (union, branch) in kernel.CODES.items():
        assert 0 < union < states // 2  # the union is known before the oldest input leaves and before the newest enters
        assert states // 2 <= branch < states  # the oldest input decides between the subsets, as the newest does


@given(st.lists(st.integers(-(1 << 27) + 1, (1 << 27) - 1), max_size=60), st.integers(1, 4), st.sampled_from([8, 4096]))
@settings(max_examples=60, deadline=None)
def test_any_indices_come_back(indices, law, states):
    q = np.array(indices, np.int32)
    table = np.arange(q.size, dtype=np.uint8) % len(SCALES)
    tables, bounds = grid_tables(law, np.rint(SCALES)), kernel.lane_bounds(q.size, 2)
    words, lengths = kernel.encode(q, table, tables, states, bounds)
    chosen = kernel.levels(q, kernel.walk(q, states, bounds), tables.centred[table])
    assert np.array_equal(kernel.decode(words, lengths, table, tables, states, bounds), chosen)


def test_coder_is_as_short_as_its_pmfs():
    g = np.random.default_rng(1)
    n, scale = 1 << 17, 84
    x, table = (g.standard_normal(n) * 2.0 ** (scale / 16 - 4)).astype(np.float32), np.zeros(n, np.uint8)
    tables, bounds = grid_tables(4, np.array([scale])), kernel.lane_bounds(n, 4)
    q = kernel.quantize(x, table, level_costs(4, np.array([float(scale)])), 64, bounds)
    words, lengths = kernel.encode(q, table, tables, 64, bounds)
    ideal = kernel.code_lengths(q, kernel.walk(q, 64, bounds), table, np.zeros(1, np.uint8), tables)[0]
    assert len(lengths) == 4 and lengths.sum() == words.size
    assert ideal <= 32 * words.size <= ideal * 1.0002 + 4 * 64


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_noise_decodes_to_levels_or_is_refused(data):
    n = data.draw(st.integers(1, 200))
    n_lanes = data.draw(st.integers(1, min(n, 9)))
    lengths = np.array(data.draw(st.lists(st.integers(0, 6), min_size=n_lanes, max_size=n_lanes)), np.uint32)
    seed = data.draw(st.integers(0, 999))
    words = np.random.default_rng(seed).integers(0, 1 << 32, int(lengths.sum())).astype(np.uint32)
    table = np.random.default_rng(seed).integers(0, len(SCALES), n).astype(np.uint8)
    tables = grid_tables(data.draw(st.integers(1, 4)), np.rint(SCALES))
    try:
        out = kernel.decode(words, lengths, table, tables, 64, kernel.lane_bounds(n, n_lanes))
    except CorruptStream:
        return
    assert out.shape == (n,) and np.abs(out).max() <= kernel.MAX_LEVEL


def test_cut_extended_and_flipped_streams_are_refused():
    x, table, costs, tables, bounds = _case(4, 3000, 2)
    q = kernel.quantize(x, table, costs, 8, bounds)
    words, lengths = kernel.encode(q, table, tables, 8, bounds)
    longer, shorter = lengths + np.uint32([0, 1]), lengths - np.uint32([0, 1])
    for bad_words, bad_lengths in (
        (words[:-1], lengths),
        (words[:-1], shorter),
        (np.append(words, words[:1]), longer),
        (words, lengths[::-1] + np.uint32([1, 0])),
        (words, lengths[:1]),
        (words[:2], np.uint32([1, 1])),
    ):
        with pytest.raises(CorruptStream):
            kernel.decode(bad_words, bad_lengths, table, tables, 8, bounds)
    refused = 0
    for at in range(0, words.size, 7):
        flipped = words.copy()
        flipped[at] ^= 1 << (at % 32)
        try:
            kernel.decode(flipped, lengths, table, tables, 8, bounds)
        except CorruptStream:
            refused += 1
    assert refused > 0.99 * len(range(0, words.size, 7))  # a lane must end in the very state that it began with


def test_what_cannot_be_coded_is_named():
    x, table, costs, tables, bounds = _case(4, 100, 1)
    for bad in (x.astype(np.float64), np.append(x[:-1], np.float32(np.nan)), np.append(x[:-1], np.float32(1e9))):
        with pytest.raises(BadInput):
            kernel.quantize(bad, table, costs, 8, bounds)
    with pytest.raises(BadInput):
        kernel.quantize(x, table + np.uint8(5), costs, 8, bounds)
    with pytest.raises(BadInput):
        kernel.quantize(x, table, costs, 8, bounds + 1)
    with pytest.raises(BadInput):
        kernel.encode(np.full(100, 1 << 27, np.int32), table, tables, 8, bounds)
    with pytest.raises(BadConfig, match="states"):
        kernel.quantize(x, table, costs, 12, bounds)


def test_tables_must_be_pmfs():
    pmf = np.zeros((2, kernel.ROW), int)
    pmf[0, :4], pmf[1, :5] = [100, 1 << 14, (1 << 14) - 101, 1], [1, 1 << 14, 1 << 13, (1 << 13) - 2, 1]
    good = (pmf, [1], [0], [0])
    assert kernel.coder_tables(*good).reach.tolist() == [1]
    high, gap = pmf.copy(), pmf.copy()
    high[0, 0] += 1
    gap[0, 0], gap[0, 1] = 0, gap[0, 1] + 100
    for bad in ((high, [1], [0], [0]), (gap, [1], [0], [0]), (pmf, [2], [0], [0]), (pmf, [1], [17], [0]),
                (pmf, [1], [0], [1]), (pmf[:1], [1], [0], [0])):  # fmt: skip
        with pytest.raises(BadConfig):
            kernel.coder_tables(*bad)
