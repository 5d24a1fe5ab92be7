"""probabilistic-circuits: rows under a tree of hidden variables, below what sees rows as bytes; more states, fewer bits."""

import lzma

import numpy as np
import pytest
import torch

import laconic


def _pictures(n, seed):
    """Grey strokes of any slope, 6 × 6, a little noisy: pixels far apart know of each other through the stroke."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:6, :6] - 2.5
    angle, offset = rng.uniform(0, np.pi, (n, 1, 1)), rng.uniform(-2, 2, (n, 1, 1))
    away = np.abs(np.cos(angle) * x + np.sin(angle) * y - offset)
    return np.clip(np.rint((1.6 - away) * 5 + rng.normal(0, 0.3, away.shape)), 0, 8).astype(np.uint8)


@pytest.fixture(scope="module")
def rates():
    """Bits a pixel of packets without their circuits, by the number of states."""
    learn, new = (torch.from_numpy(_pictures(n, seed)) for n, seed in ((1500, 0), (400, 1)))
    found = {}
    for n_states in (2, 12):
        c = laconic.codec("probabilistic-circuits", n_variables=36, n_states=n_states, epochs=12).fit(learn)
        packet = c.encode(new, embed=False)
        assert torch.equal(laconic.decode(packet, model=c), new)
        found[n_states] = 8 * len(packet) / new.numel()
    return found


def test_more_states_take_fewer_bits(rates):
    assert rates[2] > 1.1 * rates[12]


def test_below_what_knows_bytes_only(rates):
    new = _pictures(400, 1)
    xz = 8 * len(lzma.compress(new.tobytes(), preset=9 | lzma.PRESET_EXTREME)) / new.size
    share = np.bincount(new.reshape(-1)) / new.size
    alone = -(share[share > 0] @ np.log2(share[share > 0]))
    assert rates[12] < 0.95 * xz and rates[12] < 0.8 * alone
