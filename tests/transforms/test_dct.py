"""Cosine transforms and wavelets against independent implementations and published properties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dct, dctn

from laconic.core.errors import BadInput, CorruptStream
from laconic.transforms.dct import DCT, BlockDCT, dct_matrix, zigzag
from laconic.transforms.wavelet import Wavelet53, Wavelet97


@pytest.mark.parametrize("n", [1, 2, 5, 8, 48, 128])
def test_dct_is_scipys(n):
    x = np.random.default_rng(0).standard_normal((7, n)).astype(np.float32)
    got = DCT().encode(torch.from_numpy(x))[0].numpy()
    np.testing.assert_allclose(got, dct(x, norm="ortho"), atol=1e-5)
    assert not dct_matrix(n).flags.writeable


def test_block_dct_is_scipys_in_zigzag():
    x = np.random.default_rng(0).standard_normal((2, 19, 26)).astype(np.float32)
    y, side = BlockDCT().encode(torch.from_numpy(x))
    assert y.shape == (2, 3, 4, 64) and list(side["size"]) == [19, 26]
    block = dctn(x[1, 8:16, 16:24], norm="ortho").reshape(-1)
    np.testing.assert_allclose(y[1, 1, 2].numpy(), block[zigzag(8)], atol=1e-5)
    assert list(zigzag(8)[:10]) == [0, 1, 8, 16, 9, 2, 3, 10, 17, 24] and zigzag(8)[63] == 63


def test_block_dct_refuses_sizes_that_do_not_fit():
    y, side = BlockDCT().encode(torch.zeros(16, 16))
    for size in ([17, 16], [0, 16], [2**32 - 1, 16], [16]):
        with pytest.raises(CorruptStream):
            BlockDCT().decode(y, {"size": np.array(size, np.uint32)})
    with pytest.raises(BadInput):
        BlockDCT().encode(torch.zeros(16))


def test_dct_refuses_what_it_cannot_hold():
    with pytest.raises(BadInput):
        DCT().encode(torch.zeros(1, 5000))
    with pytest.raises(BadInput):
        DCT(block=7).encode(torch.zeros(1, 20))
    with pytest.raises(CorruptStream):
        DCT(block=7).decode(torch.zeros(1, 20), {})


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 6), st.sampled_from([(-1,), (-2,), (-2, -1), (-1, -2)]))
def test_reversible_wavelet_is_exact(height, width, levels, axes):
    x = torch.from_numpy(np.random.default_rng(height * 41 + width).integers(-(2**24), 2**24, (3, height, width)))
    x = x.to(torch.int32)
    stage = Wavelet53(levels, axes)
    y, _ = stage.encode(x)
    assert y.dtype == torch.int32 and torch.equal(stage.decode(y, {}), x)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 6), st.sampled_from([(-1,), (-2,), (-2, -1)]))
def test_97_inverts(height, width, levels, axes):
    x = torch.from_numpy(np.random.default_rng(height * 41 + width).standard_normal((2, height, width)))
    x = x.to(torch.float32)
    stage = Wavelet97(levels, axes)
    torch.testing.assert_close(stage.decode(stage.encode(x)[0], {}), x, rtol=0, atol=3e-5)


def test_97_has_four_vanishing_moments_and_unit_gain():
    t = torch.linspace(-1, 1, 65)
    for power in range(4):
        y, _ = Wavelet97(1, (-1,)).encode((t**power).reshape(1, -1))
        assert y[0, 33 + 3 : -3].abs().max() < 1e-5  # high-pass of a cubic is zero away from the mirrored ends
    low = Wavelet97(1, (-1,)).encode(torch.ones(1, 64))[0][0, :32]
    torch.testing.assert_close(low, torch.full((32,), 2.0**0.5), rtol=1e-5, atol=0)


def test_97_is_nearly_orthonormal():
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    y, _ = Wavelet97(4).encode(x)
    assert abs(float(y.square().sum() / x.square().sum()) - 1) < 0.1


def test_53_of_a_ramp():
    y, _ = Wavelet53(1, (-1,)).encode(torch.arange(0, 16, dtype=torch.int32).reshape(1, 16))
    assert y.tolist()[0][8:15] == [0] * 7 and y.tolist()[0][1:8] == list(range(2, 16, 2))


def test_53_refuses_other_values():
    for x in (torch.zeros(4, 4), torch.full((4, 4), 2**25, dtype=torch.int32)):
        with pytest.raises(BadInput):
            Wavelet53().encode(x)
