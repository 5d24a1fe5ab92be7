"""Trees of bytes: order kept, close to the entropy, what is sent gives the same tree, lies refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.core.errors import CorruptStream
from laconic.kernels import bytetree as bt


def _walk(tree, byte):
    node, depth = 0, 0
    while node < bt.LEAF:
        node = int(tree.child[2 * node + (int(tree.path[byte]) >> 15 - depth & 1)])
        depth += 1
    return node - bt.LEAF, depth


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.integers(0, 255), st.integers(1, 2**40), min_size=2))
def test_every_byte_is_found_and_their_order_kept(some):
    counts = np.zeros(256, np.int64)
    counts[list(some)] = list(some.values())
    depths = bt.balanced(counts)
    tree = bt.tree(depths)
    for byte in some:
        assert _walk(tree, byte) == (byte, depths[byte])
    assert (np.diff(tree.path[sorted(some)].astype(int)) > 0).all()


def test_decisions_are_near_the_entropy():
    rng = np.random.default_rng(0)
    counts = np.bincount(rng.geometric(0.1, 100_000).clip(0, 255), minlength=256)
    p = counts[counts > 0] / counts.sum()
    mean = (bt.balanced(counts) * counts).sum() / counts.sum()
    assert -(p * np.log2(p)).sum() <= mean < -(p * np.log2(p)).sum() + 0.5


def test_what_is_sent_gives_the_tree_again():
    rng = np.random.default_rng(0)
    for text in (rng.integers(0, 256, 5000), rng.geometric(0.1, 5000).clip(0, 255), np.zeros(3000), np.zeros(3)):
        sent, tree = bt.plant(text.astype(np.uint8))
        rest, again = bt.replant(np.append(sent, np.arange(3, dtype=np.uint8)))
        assert rest.tolist() == [0, 1, 2]
        assert np.array_equal(tree.child, again.child) and np.array_equal(tree.path, again.path)
        assert sent.size < 200


@pytest.mark.parametrize("depths", [{}, {7: 1}, {0: 1, 1: 2}, {0: 1, 1: 1, 2: 1}, {0: 2, 1: 1, 2: 2}, {0: 16, 1: 1}])
def test_depths_that_are_no_tree(depths):
    given_ = np.zeros(256, np.uint8)
    given_[list(depths)] = list(depths.values())
    with pytest.raises(CorruptStream):
        bt.tree(given_)


def test_damaged_trees_are_refused_or_others():
    rng = np.random.default_rng(0)
    sent, _ = bt.plant(rng.geometric(0.1, 5000).clip(0, 255).astype(np.uint8))
    refused = 0
    for at in range(sent.size):
        damaged = sent.copy()
        damaged[at] ^= 1 << int(rng.integers(8))
        try:
            bt.replant(damaged)
        except CorruptStream:
            refused += 1
    assert refused > sent.size // 2
    for bad in (b"", b"\x05abc"):
        with pytest.raises(CorruptStream):
            bt.replant(np.frombuffer(bad, np.uint8))
