"""Rotations from a seed."""

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard as sylvester

from laconic.core.errors import BadInput, CorruptStream
from laconic.transforms.rotation import Hadamard, RandomRotation


def test_hadamard_without_signs_is_sylvesters():
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    y, _ = Hadamard(None).encode(x)
    torch.testing.assert_close(y, x @ torch.tensor(sylvester(64), dtype=torch.float32) / 8, rtol=0, atol=1e-5)


@pytest.mark.parametrize("n", [48, 188, 192, 288, 704, 768])
def test_one_outlier_is_spread_over_its_block(n):
    x = torch.zeros(1, n)
    x[0, 3] = 1
    y, _ = Hadamard(1).encode(x)
    block = 4 if n == 188 else n
    assert torch.allclose(y.abs()[y != 0], torch.tensor(block**-0.5), atol=1e-6) and (y != 0).sum() == block


def test_seeds_matter():
    x = torch.randn(4, 96, generator=torch.Generator().manual_seed(0))
    for stage in (Hadamard, RandomRotation):
        assert torch.equal(stage(1).encode(x)[0], stage(1).encode(x)[0])
        assert not torch.allclose(stage(1).encode(x)[0], stage(2).encode(x)[0])


def test_rotated_unit_vectors_look_gaussian():
    """TurboQuant's premise: coordinates of a rotated unit vector have variance 1/n and, in high dimension, kurtosis 3."""
    x = torch.zeros(1, 1024)
    x[0, 0] = 1
    coordinates = RandomRotation(0).encode(x)[0].numpy().ravel() * 32
    assert abs((coordinates**2).mean() - 1) < 1e-4 and abs((coordinates**4).mean() - 3) < 0.6


def test_blocks_must_divide():
    with pytest.raises(BadInput, match="use 48"):
        Hadamard(block=32).encode(torch.ones(2, 48))
    with pytest.raises(CorruptStream):
        Hadamard(block=32).decode(torch.ones(2, 48), {})
    with pytest.raises(BadInput, match="hadamard"):
        RandomRotation().encode(torch.ones(1, 5000))
    with pytest.raises(CorruptStream):
        RandomRotation().decode(torch.ones(1, 5000), {})


def test_known_values():
    """The bitstream depends on these numbers: a change here is a new part, not a fix."""
    x = torch.arange(8, dtype=torch.float32).reshape(1, 8)
    got = np.concatenate([stage.encode(x)[0].numpy()[0, :3] for stage in (RandomRotation(1), Hadamard(1))])
    np.testing.assert_allclose(got, KNOWN, atol=1e-5)


KNOWN = [-5.006151, 4.239475, -4.354177, -0.707107, -4.949748, -4.949748]
