from __future__ import annotations

import numpy as np
import pytest
import torch

from laconic import Stats
from laconic.core.combine import chain
from laconic.core.errors import BadConfig, BadInput, CorruptStream, NotFitted
from laconic.quantize.coordinates import CoordinateCodes
from laconic.transforms.heads import HeadBasis, OneHead


def sample(n_heads: int = 3, n: int = 2000, d: int = 16, seed: int = 0) -> torch.Tensor:
    """Heads with means and covariances of their own."""
    g = torch.Generator().manual_seed(seed)
    power = torch.logspace(1, -1, d)
    turns = torch.linalg.qr(torch.randn(n_heads, d, d, generator=g)).Q
    return (torch.randn(n_heads, n, d, generator=g) * power) @ turns + 4 * torch.randn(n_heads, 1, d, generator=g)


def test_coordinates_are_centred_uncorrelated_and_in_order_head_by_head() -> None:
    x = sample()
    basis = HeadBasis().fit(x)
    y, side = basis.encode(x)
    assert side == {} and y.shape == x.shape
    assert y.mean(1).abs().max() < 5e-3 * y.std()
    for c in (y[h].T @ y[h] / y.shape[1] for h in range(3)):
        power = c.diagonal()
        assert (power[:-1] >= power[1:] * 0.999).all()
        off = c - torch.diag(power)
        assert (off.abs() / (power[:, None] * power).sqrt()).max() < 2e-2


def test_what_was_analysed_comes_back() -> None:
    x = sample(seed=1)
    basis = HeadBasis().fit(x)
    for shape in ((3, 2000, 16), (2, 3, 1000, 16), (1, 2, 3, 1, 16)):
        part = x[:, : int(np.prod(shape)) // 48].reshape(shape) if shape[0] != 3 else x
        back = basis.decode(*basis.encode(part))
        assert back.shape == part.shape
        torch.testing.assert_close(back, part, atol=2e-3 * float(x.abs().max()), rtol=0)
    assert basis.mean is not None and basis.synthesis is not None
    assert basis.mean.dtype == basis.synthesis.dtype == np.float16
    assert sum(a.nbytes for _, a in basis.arrays().values() if a is not None) == 3 * 2 * (16 + 1) * 16


@pytest.mark.parametrize("rank", [1, 4, 12])
def test_fewer_coordinates_keep_the_most_energy_that_so_many_can(rank: int) -> None:
    x = sample(seed=2)
    basis = HeadBasis(rank).fit(x)
    y, _ = basis.encode(x)
    assert y.shape == (3, 2000, rank)
    error = (basis.decode(y, {}) - x).square().sum((1, 2))
    left = torch.stack([torch.linalg.eigvalsh((h - h.mean(0)).T @ (h - h.mean(0)))[:-rank].sum() for h in x])
    torch.testing.assert_close(error, left, rtol=0.01, atol=0)
    assert (HeadBasis(rank, centre=False).fit(x).mean == 0).all()


def test_in_the_metric_of_queries_inner_products_keep_their_errors() -> None:
    """Errors of coordinates, weighted by what `push` says, add up to E (q · (k − k̂))²."""
    x, g = sample(seed=3), torch.Generator().manual_seed(9)
    queries = torch.randn(3, 4000, 16, generator=g) * torch.logspace(1, -1.5, 16)
    metric = queries.transpose(1, 2) @ queries / 4000
    losses = {}
    for name, stats in (("told", Stats(hessian=metric)), ("not told", None)):
        codec = chain(HeadBasis(), CoordinateCodes(1.5)).fit(x, stats)
        wrong = x - codec.decode(*codec.encode(x))
        losses[name] = float((queries @ wrong.transpose(1, 2)).square().mean())
    assert losses["told"] < 0.7 * losses["not told"]
    basis = HeadBasis().fit(x, Stats(hessian=metric))
    pushed = basis.push(Stats(hessian=metric)).hessian
    assert pushed is not None and pushed.shape == (3, 16, 16)
    e = 0.01 * torch.randn(3, 500, 16, generator=g)
    y = basis.encode(x)[0][:, :500]
    moved = basis.decode(y + e, {}) - basis.decode(y, {})
    by_inputs = torch.einsum("hnd,hde,hne->h", moved, metric, moved)
    by_coordinates = torch.einsum("hnd,hde,hne->h", e, pushed, e)
    torch.testing.assert_close(by_coordinates, by_inputs, rtol=0.02, atol=0)
    # In this basis the metric of errors is diagonal where the coordinates' covariance is.
    c = y.transpose(1, 2) @ y / 500
    power = c.diagonal(dim1=1, dim2=2)
    assert ((c - torch.diag_embed(power)).abs() / (power[:, :, None] * power[:, None]).sqrt()).amax() < 0.25


def test_one_metric_serves_all_heads_and_others_are_refused() -> None:
    x = sample()
    one = HeadBasis().fit(x, Stats(hessian=torch.eye(16)))
    assert np.array_equal(one.synthesis, HeadBasis().fit(x).synthesis)
    with pytest.raises(BadConfig, match="Hessian"):
        HeadBasis().fit(x, Stats(hessian=torch.eye(8)))
    with pytest.raises(BadConfig, match="importance"):
        one.push(Stats(importance=torch.ones(16)))
    assert one.push(Stats()).hessian is None
    with pytest.raises(BadConfig):
        HeadBasis(-1)
    with pytest.raises(BadConfig, match="pseudo-inverse"):
        HeadBasis(5).fit(x, Stats(hessian=torch.eye(16)))
    with pytest.raises(BadConfig, match="at most 16"):
        HeadBasis(17).fit(x)
    with pytest.raises(NotFitted):
        HeadBasis().encode(x)
    with pytest.raises(BadInput):
        HeadBasis().fit(x[0])
    with pytest.raises(BadInput):
        one.encode(sample(2))


def test_flat_and_tiny_heads_have_a_basis_too() -> None:
    x = sample()
    x[1] = 7.0
    basis = HeadBasis().fit(x)
    torch.testing.assert_close(basis.decode(*basis.encode(x))[1], x[1], atol=0.01, rtol=0)
    few = sample(n=3)
    basis = HeadBasis().fit(few)
    torch.testing.assert_close(basis.decode(*basis.encode(few)), few, atol=0.05, rtol=0)


def test_damage_has_a_name() -> None:
    x = sample()
    basis = HeadBasis(8).fit(x)
    y, side = basis.encode(x)
    assert basis.mean is not None and basis.synthesis is not None
    for lie in (
        {"mean": basis.mean[:2]},
        {"mean": basis.mean[:, :9]},
        {"mean": basis.mean * np.float16(np.nan)},
        {"synthesis": basis.synthesis[:2]},
        {"synthesis": basis.synthesis[:, :, :9]},
        {"synthesis": basis.synthesis[0]},
        {"synthesis": basis.synthesis * np.float16(np.inf)},
    ):
        with pytest.raises(CorruptStream):
            basis.replace(**lie).decode(y, side)
    for wrong in (y[..., :7], y[:2], y[0]):
        with pytest.raises(CorruptStream):
            basis.decode(wrong, side)


def test_claim_in_the_basis_three_bits_beat_four_without() -> None:
    """Heads whose power is spread over 40 dB: the gain of the transform is worth more than a bit a value."""
    x = sample(4, 4000, 32, seed=5)

    def error(codec: object) -> float:
        codec = codec.fit(x)  # type: ignore[attr-defined]
        return float((codec.decode(*codec.encode(x)) - x).square().mean())

    assert error(chain(HeadBasis(), CoordinateCodes(3.0))) < error(CoordinateCodes(4.0)) / 2


def test_rows_as_tokens_of_one_head() -> None:
    x = torch.arange(24.0).reshape(2, 3, 4)
    y, side = OneHead().encode(x)
    assert y.shape == (1, 6, 4)
    assert torch.equal(OneHead().decode(y, side), x)
    for bad in (np.array([5]), np.array([-2, -3]), np.array([2, 3, 2])):
        with pytest.raises(CorruptStream):
            OneHead().decode(y, {"rows": bad})
