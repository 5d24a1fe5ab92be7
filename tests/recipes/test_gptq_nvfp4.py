from __future__ import annotations

import pytest
import torch

import laconic
from laconic import Stats


def layer(n: int = 256, rows: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=g))
    x = torch.randn(2048, n, generator=g) @ (q * torch.arange(1, n + 1) ** -0.5).T
    x[:, torch.randperm(n, generator=g)[:4]] *= 8
    return torch.randn(rows, n, generator=g), x.T @ x / 2048


def laplace(*shape: int) -> torch.Tensor:
    u = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.log(u[0] / u[1]).float()


def relative(x: torch.Tensor, **settings: int) -> float:
    back = laconic.decode(laconic.codec("gptq-nvfp4", **settings).encode(x))
    return float((back - x).square().sum() / x.square().sum())


def test_rotation_helps_or_hurts_as_the_paper_says() -> None:
    """MR-GPTQ: with groups of 16 a rotation does not help heavy-tailed values, it makes them Gaussian."""
    x = laplace(256, 1024)
    plain, rotated = relative(x, rotation=0), relative(x, rotation=128)
    assert abs(plain - 0.0073) < 2e-4, "absmax scales: .0086"
    assert 1.0 < rotated / plain < 1.05


@pytest.mark.parametrize("rotation", [0, 16, 64])
def test_feedback_works_behind_the_rotation(rotation: int) -> None:
    w, h = layer()
    codec = laconic.codec("gptq-nvfp4", rotation=rotation)

    def loss(c: laconic.Codec) -> float:
        e = laconic.decode(c.encode(w)) - w
        return float((e @ h * e).sum() / (w @ h * w).sum())

    assert loss(codec.fit(w, Stats(hessian=h))) < 0.62 * loss(codec)


def test_rate_is_four_and_a_half_bits() -> None:
    w, h = layer()
    info = laconic.info(laconic.codec("gptq-nvfp4").fit(w, Stats(hessian=h)).encode(w))
    by_role = info.ledger.by_role()
    assert by_role["codes"] * 8 == 4 * w.numel()
    assert by_role["scales"] * 8 == w.numel() // 2 + 32
    assert by_role["header"] < 500


def test_rows_that_the_rotation_cannot_take_are_refused_by_name() -> None:
    with pytest.raises(laconic.BadInput, match="block 16"):
        laconic.codec("gptq-nvfp4").encode(torch.ones(2, 24))
    assert laconic.decode(laconic.codec("gptq-nvfp4", rotation=0).encode(torch.ones(2, 24))).shape == (2, 24)
