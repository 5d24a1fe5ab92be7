from __future__ import annotations

import pytest
import torch

import laconic
from laconic import Stats


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("bits", "rate", "error"), [(2, 2.625, 0.0695), (4, 4.5, 0.0051), (5, 5.5, 0.0014)])
def test_rate_and_error(bits: int, rate: float, error: float) -> None:
    """The bits a weight of block_q2_K, block_q4_K and block_q5_K; N(0, 1) with less error than llama.cpp's encoder."""
    x = normal(32, 2048)
    packet = laconic.codec("k-quant", bits=bits).encode(x)
    payload = sum(v for k, v in laconic.info(packet).ledger.by_role().items() if k != "header")
    assert payload * 8 == rate * x.numel() + 16, "all but two bytes of a common exponent"
    assert len(packet) - payload < 400
    assert float((laconic.decode(packet) - x).square().mean()) < error


def test_an_importance_matrix_is_obeyed() -> None:
    x, w = normal(16, 512), torch.rand(512, generator=torch.Generator().manual_seed(1)) ** 3
    codec = laconic.codec("k-quant", bits=2)

    def loss(c: laconic.Codec) -> float:
        return float(((laconic.decode(c.encode(x)) - x).square() * w).sum())

    assert loss(codec.fit(x, Stats(importance=w))) < 0.85 * loss(codec)


@pytest.mark.parametrize("bits", [2, 4])
def test_a_hessian_lowers_the_error_of_the_layer(bits: int) -> None:
    g = torch.Generator().manual_seed(2)
    x = torch.randn(1024, 512, generator=g) * torch.linspace(0.1, 2, 512)[torch.randperm(512, generator=g)]
    x = x + x.roll(1, 1) + x.roll(3, 1)
    w, h = normal(32, 512), x.T @ x / 1024
    codec = laconic.codec("k-quant", bits=bits)

    def loss(c: laconic.Codec) -> float:
        e = laconic.decode(c.encode(w)) - w
        return float((e @ h * e).sum())

    weighed = loss(codec.fit(w, Stats(importance=h.diagonal())))
    assert weighed < 0.97 * loss(codec)
    assert loss(codec.fit(w, Stats(hessian=h))) < 0.72 * weighed


def test_other_rates_are_refused_by_name() -> None:
    with pytest.raises(laconic.BadConfig, match="2, 4, 5"):
        laconic.codec("k-quant", bits=3)
