"""Integer pmfs: exact totals, little lost, cheap on the wire; tables of distributions against their formulas."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import laplace, norm

from laconic.core.errors import BadConfig, BadInput, CorruptStream
from laconic.kernels import pmf, rangecoder, rans

FORMULAS = {"gaussian": norm, "laplace": laplace}
# Tables are not sent, so they are part of the bitstream: a change here is a new version of the models.
DIGESTS = {"gaussian": "0001e5ade6d5634a", "laplace": "23f928fd02eefa73"}


@given(
    st.lists(st.integers(0, 1 << 40) | st.integers(0, 3), min_size=1, max_size=300),
    st.sampled_from([10, 12, 14]),
)
@settings(max_examples=150, deadline=None)
def test_frequencies_are_positive_with_the_exact_total(counts, precision):
    counts = np.array(counts, np.int64)
    if not counts.any():
        with pytest.raises(BadConfig):
            pmf.normalize(counts, precision)
        return
    freq = pmf.normalize(counts, precision)
    assert freq.sum() == 1 << precision
    assert ((freq > 0) == (counts > 0)).all()


@pytest.mark.parametrize("counts", [[7], [1] * 1024, [1 << 61, 1], [1 << 50] * 2000, [1] * 500 + [10**9]])
def test_extreme_counts(counts):
    freq = pmf.normalize(np.array(counts), 12)
    assert freq.sum() == 4096 and freq.min() >= 1
    with pytest.raises(BadConfig, match="have room"):
        pmf.normalize(np.ones(1025, np.int64), 10)


@pytest.mark.parametrize("power", [0, 0.5, 1, 2])
def test_little_is_lost_by_rounding_to_frequencies(power):
    counts = (1e7 / np.arange(1, 257) ** power).astype(np.int64) + 1
    entropy = pmf.cost_bits(counts, counts / counts.sum(), 0)
    assert entropy <= pmf.cost_bits(counts, pmf.normalize(counts, 14), 14) <= 1.002 * entropy + 1e-4 * counts.sum()


@given(st.integers(1, 400), st.integers(0, 5000), st.integers(0, 100))
@settings(max_examples=80, deadline=None)
def test_a_written_pmf_is_read_as_it_will_be_used(alphabet, n, seed):
    rng = np.random.default_rng(seed)
    counts = np.bincount(rng.integers(0, alphabet, n + 1) // (1 + seed % 5), minlength=alphabet)
    freq, data = pmf.write_pmf(counts, 14)
    assert np.array_equal(pmf.read_pmf(data, alphabet, 14), freq)
    assert freq.sum() == 1 << 14 and (freq[counts > 0] > 0).all()
    for damaged in (data[:0], np.append(data, np.uint8(1))):
        with pytest.raises(CorruptStream):
            pmf.read_pmf(damaged, alphabet, 14)


@given(st.binary(max_size=100), st.integers(1, 300))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_refused_or_are_a_pmf(data, alphabet):
    try:
        freq = pmf.read_pmf(np.frombuffer(data, np.uint8), alphabet, 14)
    except CorruptStream:
        return
    assert freq.shape == (alphabet,) and freq.sum() == 1 << 14 and freq.min() >= 0


def test_a_pmf_is_cheap():
    rng = np.random.default_rng(0)
    p = np.exp(-np.abs(np.arange(256) - 128) / 12)
    counts = np.bincount(rng.choice(256, 1 << 20, p=p / p.sum()), minlength=256)
    entropy = pmf.cost_bits(counts, counts / counts.sum(), 0)
    freq, data = pmf.write_pmf(counts, 14)
    assert data.size <= 128
    assert pmf.cost_bits(counts, freq, 14) + 8 * data.size <= 1.0015 * entropy


def test_histograms_count():
    rng = np.random.default_rng(0)
    index, table = rng.integers(0, 50, 1003).astype(np.uint8), rng.integers(0, 3, 1003).astype(np.uint16)
    assert np.array_equal(pmf.histogram(index, 60)[0], np.bincount(index, minlength=60))
    by_table = pmf.histogram(index, 60, table, 3)
    assert np.array_equal(by_table[1], np.bincount(index[table == 1], minlength=60))


@pytest.mark.parametrize("name", pmf.DISTRIBUTIONS)
def test_distribution_functions(name):
    cdf = pmf._cdf(name)
    x = np.arange(cdf.size) / 256
    assert np.abs(cdf / 2**40 - FORMULAS[name].cdf(x)).max() < 2e-12
    assert (np.diff(cdf) >= 0).all() and cdf[0] == 1 << 39


@pytest.mark.parametrize("name", pmf.DISTRIBUTIONS)
def test_tables_are_the_same_on_every_machine(name):
    model = pmf.located(name)
    digest = hashlib.sha256()
    for array in (model.tables.interval, model.tables.first, model.first, model.lowest):
        digest.update(array.astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == DIGESTS[name]


@pytest.mark.parametrize("name", pmf.DISTRIBUTIONS)
@pytest.mark.parametrize("low, high, excess", [(0.11, 64, 0.001), (0.25, 1, 0.002), (1, 16, 0.001), (16, 4000, 0.0005)])
def test_rate_is_the_entropy_of_the_true_distribution(name, low, high, excess):
    """Symbols of a continuous mean and scale cost their entropy, although the tables know both only coarsely."""
    rng, formula, n = np.random.default_rng(1), FORMULAS[name], 1 << 17
    mean, scale = rng.normal(0, 10, n), np.exp(rng.uniform(np.log(low), np.log(high), n))
    y = np.rint(formula.rvs(mean, scale, random_state=rng)).astype(np.int32)
    p = formula.cdf((y + 0.5 - mean) / scale) - formula.cdf((y - 0.5 - mean) / scale)
    entropy = -np.log2(np.maximum(p, 1e-12)).sum()
    model, mean_index, scale_index = pmf.located(name), np.rint(32 * mean).astype(np.int32), pmf.scale_index(scale)
    placed = pmf.locate(y, scale_index, mean_index, model)
    coded = rans.encode(placed.symbol, model.tables, 32, placed.table), rangecoder.encode_integers(placed.escaped)
    assert placed.escaped.size < n / 500
    assert 8 * (sum(c.size for c in coded) + placed.low_bits.size) <= (1 + excess) * entropy + 32 * 32


@given(
    st.lists(
        st.tuples(
            st.integers(-(1 << 31), (1 << 31) - 1) | st.integers(-50, 50),
            st.integers(0, 127),
            st.integers(-(1 << 31), (1 << 31) - 1) | st.integers(-100, 100),
        ),
        max_size=100,
    ),
    st.sampled_from(pmf.DISTRIBUTIONS),
)
@settings(max_examples=80, deadline=None)
def test_places_invert(rows, name):
    y, scale, mean = np.array(rows, np.int64).reshape(-1, 3).T
    y, mean, scale, model = y.astype(np.int32), mean.astype(np.int32), pmf.check_scale(scale), pmf.located(name)
    for m in (mean, None):
        placed = pmf.locate(y, scale, m, model)
        table, n_bytes = pmf.located_tables(scale, m, model)
        assert np.array_equal(table, placed.table) and n_bytes == placed.low_bits.size
        assert np.array_equal(pmf.unlocate(placed, scale, m, model), y)


def test_scales():
    assert [int(s) for s in pmf.scale_index(np.array([0, 0.125, 1, 2, 1e9]))] == [0, 0, 24, 32, 127]
    with pytest.raises(BadInput, match="0 to 127"):
        pmf.check_scale(np.array([128]))
    with pytest.raises(BadInput, match="0 to 127"):
        pmf.check_scale(np.array([-1]))
    with pytest.raises(CorruptStream, match="escaped"):
        model = pmf.located("laplace")
        placed = pmf.locate(np.array([9], np.int32), np.zeros(1, np.uint8), None, model)
        pmf.unlocate(placed._replace(escaped=np.empty(0, np.int32)), np.zeros(1, np.uint8), None, model)
