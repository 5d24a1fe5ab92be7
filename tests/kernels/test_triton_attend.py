"""The GPU kernels of attention against the plain twin: on a GPU where there is one, else in Triton's interpreter."""

import os

import numpy as np
import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
pytest.importorskip("triton")

from laconic.core.errors import BadInput  # noqa: E402
from laconic.kernels.attend import Coded, Decoder, Rope, attend_plain  # noqa: E402
from laconic.kernels.coordinates import pack_heads  # noqa: E402
from laconic.kernels.triton_attend import DeviceRope, attend_triton, on_device  # noqa: E402

HEADS, PAGE_BLOCKS = 2, 2


def history(bits, d, n_tokens, scaled, seed):
    """Random codes in pages of two blocks. bits: (n_heads, r)."""
    rng = np.random.default_rng(seed)
    bits = np.asarray(bits, np.uint8)
    r = bits.shape[1]
    levels = [[np.sort(rng.standard_normal(1 << int(b))) for b in row] for row in bits]
    synthesis = (np.linalg.qr(rng.standard_normal((HEADS, d, d)))[0][:, :r]).astype(np.float32)
    decoder = Decoder.of(bits, levels, synthesis, rng.standard_normal((HEADS, d)).astype(np.float32))
    pages, scales = [], []
    for _ in range(-(-n_tokens // (64 * PAGE_BLOCKS))):
        index = rng.integers(0, 256, (HEADS, 64 * PAGE_BLOCKS, r)) % (1 << bits.astype(np.int64))[:, None]
        pages.append(pack_heads(index.astype(np.uint8), bits))
        scales.append(rng.uniform(0.5, 1.5, (HEADS, 64 * PAGE_BLOCKS)).astype(np.float16))
    return Coded.of(decoder, pages, PAGE_BLOCKS, scales if scaled else None)


def widths(kind, r):
    if kind == "mixed":
        return [np.resize([8, 6, 5, 4, 3, 2, 1, 0], r), np.resize([0, 1, 7, 2, 4], r)]
    return np.full((HEADS, r), kind)


@pytest.mark.parametrize("kind", [4, 3, 1, 8, "mixed"])
@pytest.mark.parametrize("n_tokens, n_queries, scaled, masked", [(150, 1, False, False), (300, 9, True, True)])
def test_scores_and_sums_are_those_of_the_plain_twin(kind, n_tokens, n_queries, scaled, masked):
    d = 32
    keys, values = (history(widths(kind, d), d, n_tokens, scaled, seed) for seed in (1, 2))
    rng = np.random.default_rng(3)
    q = rng.standard_normal((HEADS, n_queries, d)).astype(np.float32)
    mask = (rng.random(n_tokens) < 0.7).astype(np.uint8) if masked else None
    compare(q, keys, values, n_tokens, mask)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("pairs, d", [(16, 32), (12, 32), (20, 48)])
def test_keys_from_before_rope_turn_as_in_the_plain_twin(pairs, d, interleaved):
    keys, values = (history(widths("mixed", d), d, 200, False, seed) for seed in (4, 5))
    frequency = (10_000.0 ** -(np.arange(pairs) / pairs)).astype(np.float32)
    rope = Rope.of(keys.decoder, frequency, interleaved=interleaved, first=70_000, factor=1.25)
    q = np.random.default_rng(6).standard_normal((HEADS, 3, d)).astype(np.float32)
    compare(q, keys, values, 200, None, rope)


def compare(q, keys, values, n_tokens, mask, rope=None):
    want = attend_plain(q, keys, values, n_tokens, mask, rope)
    there = on_device(keys, DEVICE)
    turning = None if rope is None else DeviceRope.of(there.decoder, rope)
    seen = None if mask is None else torch.from_numpy(mask).to(DEVICE)
    found = attend_triton(torch.from_numpy(q).to(DEVICE), there, on_device(values, DEVICE), n_tokens, seen, turning)
    acc, m, mass = (x.cpu().numpy() for x in found)
    # Results: what the three are for. A score that is off by ε moves them by some ε of the greatest value.
    size = np.abs(want[0] / want[2][..., None]).max()
    np.testing.assert_allclose(acc / mass[..., None], want[0] / want[2][..., None], rtol=0, atol=3e-3 * size)
    np.testing.assert_allclose(m, want[1], rtol=0, atol=1e-3 * np.abs(want[1]).max())
    np.testing.assert_allclose(m + np.log(mass), want[1] + np.log(want[2]), rtol=0, atol=1e-2)


def test_a_history_that_nobody_sees_weighs_nothing():
    d = 32
    keys = history(widths(4, d), d, 100, False, 7)
    coded = on_device(keys, DEVICE)
    q = torch.ones(HEADS, 2, d, device=DEVICE)
    none = torch.zeros(100, dtype=torch.uint8, device=DEVICE)
    for n_tokens, mask in ((100, none), (0, None)):
        acc, m, mass = attend_triton(q, coded, coded, n_tokens, mask)
        assert (m == -torch.inf).all() and (mass == 0).all() and (acc == 0).all()


def test_more_tokens_than_pages_hold_are_refused():
    coded = on_device(history(widths(2, 32), 32, 100, False, 8), DEVICE)
    with pytest.raises(BadInput, match="200 tokens"):
        attend_triton(torch.ones(HEADS, 1, 32, device=DEVICE), coded, coded, 200)
