from __future__ import annotations

import numpy as np
import pytest
import torch

from laconic import BadConfig, BadInput, CorruptStream
from laconic.core.stage import Stats
from laconic.quantize.bitstack import BitStack


def matrix(m: int = 48, n: int = 80) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randn(m, n, generator=g) * torch.linspace(0.5, 2, n)


def hessian(n: int = 80) -> torch.Tensor:
    x = torch.randn(300, n, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.2, 3, n)
    return x.T @ x / 300


def test_every_prefix_of_levels_decodes_and_each_level_helps() -> None:
    x, h = matrix(), hessian()
    stage = BitStack(bits=20.0, rank=1).fit(x, Stats(hessian=h))
    payload, side = stage.encode(x)
    size, losses = stage.level_bytes(48, 80), []
    assert len(payload) == size * stage.n_levels(48, 80)
    for end in range(size, len(payload) + 1, size):
        e = stage.decode(payload[:end], side) - x
        losses.append(float((e.square() * h.diagonal()).sum()))
    assert len(losses) >= 10
    assert losses[1] < 0.45 * losses[0]
    assert all(b < 0.9 * a for a, b in zip(losses, losses[1:], strict=False))


def test_a_lower_rate_is_a_prefix() -> None:
    x, stats = matrix(), Stats(hessian=hessian())
    long, side = BitStack(bits=8.0, rank=1).fit(x, stats).encode(x)
    short, _ = BitStack(bits=4.0, rank=1).fit(x, stats).encode(x)
    assert len(short) < len(long) and long.startswith(short)


def test_one_level_of_a_sign_pattern_times_rank_one_is_exact() -> None:
    signs = torch.where(torch.rand(48, 80, generator=torch.Generator().manual_seed(2)) < 0.5, -1.0, 1.0)
    x = signs * torch.outer(torch.linspace(1, 2, 48), torch.linspace(1, 3, 80))
    stage = BitStack(bits=3.0, rank=1)
    back = stage.decode(*stage.encode(x))
    torch.testing.assert_close(back, x, rtol=2e-3, atol=0)


def test_column_scales_are_sent_where_there_is_a_hessian() -> None:
    x, h = matrix(), hessian()
    _, side = BitStack().fit(x, Stats(hessian=h)).encode(x)
    sent = np.ldexp(side["column"].astype(np.float64), side["exponents"][0])
    np.testing.assert_allclose(sent, h.diagonal().sqrt(), rtol=1e-3)
    assert BitStack().encode(x)[1]["column"].size == 0


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(BadConfig, match="no level"):
        BitStack(bits=1.0).encode(matrix())
    with pytest.raises(BadInput, match="matrix"):
        BitStack().encode(torch.ones(3))
    with pytest.raises(BadInput, match="Hessian"):
        BitStack().fit(matrix(), Stats(hessian=hessian(79)))
    stage = BitStack(bits=6.0, rank=1)
    payload, side = stage.encode(matrix())
    for bad in (b"", payload[:-1], payload + b"\0"):
        with pytest.raises(CorruptStream):
            stage.decode(bad, side)
    with pytest.raises(CorruptStream):
        stage.decode(payload, side | {"shape": np.array([48, 0], np.uint32)})
