"""Trellis-coded matrices in registers: the entries are those of the codebook; products are those of the dense matrix."""

import numpy as np
import pytest
import torch

from laconic.core.errors import BadConfig, BadInput
from laconic.kernels.gemv_trellis import dequantize_trellis, gemv_trellis, gemv_trellis_plain, pack_trellis
from laconic.kernels.trellis import code
from laconic.quantize.trellis import LearnedTrellis, Trellis


def _made(bits, states, group=128, n_out=21, n_in=384, length=192):
    """(packed, dense); any symbols make a path."""
    rng = np.random.default_rng(states)
    book = Trellis(bits, states=states, length=length)
    index = rng.integers(0, 1 << int(bits), (n_out, n_in))
    step = rng.uniform(0.5, 1.5, (n_out, n_in // group)).astype(np.float32)
    dense = book.lookup(torch.from_numpy(index)).numpy() * np.repeat(step, group, 1)
    return pack_trellis(index, code(bits, states), book.points(), step, length), dense


@pytest.mark.parametrize(
    "bits, states, group", [(1.0, 256, 384), (2.0, 4096, 64), (3.0, 1024, 16), (2.0, 1 << 17, 128)]
)
def test_entries_and_products(bits, states, group):
    p, dense = _made(bits, states, group)
    assert np.array_equal(dequantize_trellis(p), dense)
    assert np.array_equal(dequantize_trellis(p, 3, 9), dense[3:9])
    x = np.random.default_rng(1).standard_normal((5, 384)).astype(np.float32)
    alone = np.concatenate([gemv_trellis(p, x[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(alone, gemv_trellis_plain(p, x), rtol=0, atol=1e-6 * np.abs(dense).sum(1).max())
    for threads in (1, 2):
        assert np.array_equal(gemv_trellis(p, x, threads=threads), alone)


def test_what_was_encoded_comes_back():
    x = torch.randn(8, 512, generator=torch.Generator().manual_seed(0))
    book = LearnedTrellis(2.0, states=256, length=256).fit(x)
    index = book.nearest(x)
    p = pack_trellis(index.numpy(), code(2.0, 256), book.points(), np.ones((8, 1), np.float32), 256)
    assert np.array_equal(dequantize_trellis(p), book.lookup(index).numpy())
    assert p.nbytes == 8 * 512 * 2 // 8 + 4 * (2 * 256) + 4 * 8


def test_refusals():
    book, one = Trellis(2.0, states=256, length=128), np.ones((4, 1), np.float32)
    index = np.zeros((4, 256), np.int64)
    with pytest.raises(BadConfig, match="whole bits"):
        pack_trellis(index[:, ::2], code(1.5, 256), Trellis(1.5, states=256).points(), one, 128)
    with pytest.raises(BadConfig, match="blocks of 120"):
        pack_trellis(index, code(2.0, 256), book.points(), one, 120)
    with pytest.raises(BadInput, match="0 to 3"):
        pack_trellis(index + 4, code(2.0, 256), book.points(), one, 128)
    p = pack_trellis(index, code(2.0, 256), book.points(), one, 128)
    with pytest.raises(BadInput, match="contiguous"):
        gemv_trellis(p, np.zeros((1, 255), np.float32))
