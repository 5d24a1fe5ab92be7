"""Selections and their positions, honest decoders included."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.core.errors import BadInput, CorruptStream, decode_budget
from laconic.core.stage import Stats
from laconic.transforms.select import Threshold, TopK, pack_gaps, unpack_gaps


@settings(deadline=None, max_examples=100)
@given(st.sets(st.integers(0, 5000), max_size=300), st.integers(0, 100))
def test_positions_come_back(positions, spare):
    positions = np.array(sorted(positions), np.int64)
    below = int(positions[-1]) + 1 + spare if len(positions) else spare
    assert np.array_equal(unpack_gaps(pack_gaps(positions), len(positions), below), positions)


@pytest.mark.parametrize("density", [0.5, 0.1, 0.01, 0.001])
def test_positions_cost_little_more_than_their_entropy(density):
    n = 1 << 20
    positions = np.flatnonzero(np.random.default_rng(0).random(n) < density)
    side = pack_gaps(positions)
    n_bits = 8 * sum(a.size for a in side.values())
    entropy = -n * (density * np.log2(density) + (1 - density) * np.log2(1 - density))
    assert n_bits < 1.045 * entropy


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_damaged_positions_are_refused_or_valid(data):
    """Whatever the bytes say, positions come out ascending and in range, or CorruptStream."""
    n = data.draw(st.integers(0, 40))
    side = {
        "unary": np.frombuffer(data.draw(st.binary(max_size=30)), np.uint8),
        "rest": np.frombuffer(data.draw(st.binary(max_size=30)), np.uint8),
        "bits": np.array([data.draw(st.integers(0, 60))], np.uint8),
    }
    try:
        got = unpack_gaps(side, n, 1000)
    except CorruptStream:
        return
    assert len(got) == n and (np.diff(got) > 0).all() and (not n or 0 <= got[0] and got[-1] < 1000)


def test_top_k_keeps_the_largest():
    x = torch.randn(8, 33, generator=torch.Generator().manual_seed(0))
    stage = TopK(0.1)
    y, side = stage.encode(x)
    back = stage.decode(y, side)
    assert len(y) == 27 and (back != 0).sum() == 27
    assert torch.equal(back[back != 0], x[back != 0])
    assert x.abs()[back == 0].max() <= y.abs().min()


def test_ties_are_broken_by_position():
    y, side = TopK(0.5).encode(torch.ones(8))
    assert torch.equal(TopK(0.5).decode(y, side), torch.tensor([1.0] * 4 + [0.0] * 4))


def test_importance_decides():
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    stage = TopK(0.25).fit(x, Stats(importance=torch.tensor([100.0, 1, 1, 1])))
    y, side = stage.encode(x)
    assert torch.equal(stage.decode(y, side), torch.tensor([[1.0, 0, 0, 0]]))
    with pytest.raises(BadInput):
        stage.encode(torch.ones(3, 5))


def test_threshold_is_relative():
    x = torch.cat([torch.ones(99), torch.tensor([50.0])])
    for scale in (1e-3, 1.0, 1e3):
        y, side = Threshold(3).encode(x * scale)
        assert torch.equal(y, torch.tensor([50.0]) * scale)
        assert torch.equal(Threshold(3).decode(y, side)[:99], torch.zeros(99))
    assert len(Threshold(99).encode(x)[0]) == 1


def test_decoder_claims_before_it_allocates():
    y, side = TopK(0.5).encode(torch.ones(8))
    lie = {**side, "shape": np.array([2**40, 2**20], np.uint64)}
    with decode_budget(1 << 20), pytest.raises(CorruptStream, match="at most"):
        TopK(0.5).decode(y, lie)
    for shape in ([], [3], [2**63, 4, 4], [0, 2**63]):
        with decode_budget(1 << 20), pytest.raises(CorruptStream):
            TopK(0.5).decode(y, {**side, "shape": np.array(shape, np.uint64)})
    with pytest.raises(CorruptStream):
        TopK(0.5).decode(y[:3], side)
    with pytest.raises(CorruptStream):
        TopK(0.5).decode(y.reshape(2, 2), side)
