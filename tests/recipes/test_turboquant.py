from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import laconic
from laconic import BadConfig, BadInput

D = 128
G = torch.Generator().manual_seed(0)
X, Y = (torch.nn.functional.normalize(torch.randn(n, D, generator=G), dim=1) for n in (6000, 400))


def back(name: str, bits: int, x: torch.Tensor = X) -> torch.Tensor:
    return laconic.decode(laconic.codec(name, bits=bits).fit(x).encode(x))


def slope(x: torch.Tensor, decoded: torch.Tensor, queries: torch.Tensor) -> float:
    """Regression of estimated on true inner products, through 0."""
    true, estimate = queries @ x.T, queries @ decoded.T
    return float((true * estimate).sum() / true.square().sum())


@pytest.mark.parametrize(("bits", "distortion"), [(1, 0.361), (2, 0.116), (3, 0.0340), (4, 0.0093)])
def test_distortion_per_unit_norm(bits: int, distortion: float) -> None:
    """Theorem 1 at d = 128; the paper rounds to .36, .117, .03, .009."""
    e = back("turboquant", bits) - X
    assert float(e.square().sum(1).mean()) == pytest.approx(distortion, rel=0.01)


@pytest.mark.parametrize(("bits", "biased"), [(1, 0.64), (2, 0.88), (3, 0.97)])
def test_slope_of_inner_products(bits: int, biased: float) -> None:
    """The mse variant shrinks them (by 2/π at one bit), the prod variant does not."""
    assert slope(X, back("turboquant", bits), Y) == pytest.approx(biased, abs=0.01)
    assert slope(X, back("turboquant-prod", bits), Y) == pytest.approx(1.0, abs=0.01)


def test_prod_is_unbiased_for_queries_near_the_vectors() -> None:
    """A query that is the vector itself is where a bias shows most."""
    near = torch.nn.functional.normalize(X[:2000] + 0.05 * torch.randn(2000, D, generator=G), dim=1)
    for name, expected in (("turboquant", 0.88), ("turboquant-prod", 1.0)):
        decoded = back(name, 2)[:2000]
        assert float((near * decoded).sum() / (near * X[:2000]).sum()) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("name", ["turboquant", "turboquant-prod"])
def test_rate_is_bits_and_a_norm(name: str) -> None:
    n_norms = 1 if name == "turboquant" else 2
    for bits in (2, 3, 5):
        packet = laconic.codec(name, bits=bits).fit(X).encode(X)
        assert 8 * len(packet) / X.numel() == pytest.approx(bits + 16 * n_norms / D, abs=0.01)


def test_vectors_far_from_gaussian_and_of_any_norm() -> None:
    """The rotation makes the law known whatever the data: one-hot vectors, constant ones, norms over ten decades."""
    x = torch.eye(D).repeat(8, 1)
    x[:512] = 1.0 / D**0.5
    x *= torch.logspace(-2, 2, len(x))[:, None]
    relative = (back("turboquant", 3, x) - x).square().sum(1) / x.square().sum(1)
    assert float(relative.mean()) == pytest.approx(0.034, rel=0.25)


@pytest.mark.parametrize("file", ["glove6b50d_top2445_vectors.npy", "sift_photos_base.npy"])
def test_real_embeddings(data: Path, file: str) -> None:
    """No training, no tuning: real vectors have the distortion of the theorem, as near as one rotation of a common mean can."""
    x = torch.from_numpy(np.load(data / "ann-vectors" / file).astype(np.float32))[:4000]
    for bits, distortion in ((2, 0.116), (4, 0.0093)):
        y = back("turboquant", bits, x)
        relative = (y - x).square().sum(1) / x.square().sum(1)
        assert float(relative.mean()) == pytest.approx(distortion, rel=0.1)
    assert slope(x, back("turboquant-prod", 3, x), x[:300]) == pytest.approx(1.0, abs=0.02)


def test_settings_and_inputs() -> None:
    for name, bits in (("turboquant", 0), ("turboquant", 9), ("turboquant-prod", 0)):
        with pytest.raises(BadConfig, match="bits"):
            laconic.codec(name, bits=bits)
    with pytest.raises((BadInput, BadConfig), match="4096"):
        laconic.codec("turboquant").fit(torch.randn(2, 5000, generator=G)).encode(torch.randn(2, 5000, generator=G))
    a, b = (laconic.decode(laconic.codec("turboquant", seed=s).fit(X).encode(X)) for s in (0, 1))
    assert not torch.equal(a, b), "another seed, another rotation"
