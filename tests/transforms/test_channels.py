from __future__ import annotations

import numpy as np
import pytest
import torch

from laconic.core.errors import BadConfig, BadInput, CorruptStream
from laconic.core.stage import Stats
from laconic.transforms.channels import ChannelRange, ChannelSeparable, JoinHeads
from laconic.transforms.prune import KeepLargest


def keys(n: int = 200) -> torch.Tensor:
    """(3, 4, n, 8), a channel of every head far from 0 and another large."""
    x = torch.randn(3, 4, n, 8, generator=torch.Generator().manual_seed(0))
    x[..., 2] += 50.0
    x[..., 5] *= 20.0
    return x


def test_ranges_hold_all_but_a_fraction_of_each_channel() -> None:
    stage = ChannelRange(0.02).fit(keys(2000))
    y, side = stage.encode(keys(2000))
    beyond = (y.abs() > 1).float().mean((0, 2))
    assert not side and beyond.shape == (4, 8)
    assert torch.allclose(beyond, torch.full_like(beyond, 0.02), atol=0.008)  # float16 moves the ends of a far channel
    assert torch.allclose(stage.decode(y, {}), keys(2000), atol=1e-4)


def test_errors_count_as_the_hessian_says_behind_a_range() -> None:
    stage = ChannelRange().fit(keys())
    h = torch.eye(8).repeat(4, 1, 1) * torch.arange(1.0, 5.0)[:, None, None]
    pushed = stage.push(Stats(hessian=h)).hessian
    y, _ = stage.encode(keys())
    noise = 0.1 * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    e = stage.decode(y + noise, {}) - stage.decode(y, {})
    before = torch.einsum("bhti,hij,bhtj->", e, h, e)
    assert pushed is not None
    assert float(torch.einsum("bhti,hij,bhtj->", noise, pushed, noise)) == pytest.approx(float(before), rel=1e-3)
    with pytest.raises(BadConfig):
        stage.push(Stats(importance=torch.ones(8)))


def test_divisors_are_roots_of_the_greatest_magnitudes() -> None:
    x = keys()
    stage = ChannelSeparable()
    y, side = stage.encode(x)
    assert side["channel"].shape == (3, 4, 8) and side["channel"].dtype == np.float16
    assert torch.allclose(y.abs().amax(-2), x.abs().amax(-2).sqrt(), rtol=2e-3)
    assert torch.allclose(stage.decode(y, side), x, rtol=1e-5)
    for bad in (side["channel"][:1], side["channel"] * 0, side["channel"] * np.nan):
        with pytest.raises(CorruptStream):
            stage.decode(y, {"channel": bad})


@pytest.mark.parametrize(("heads", "joined"), [(0, 6), (1, 1), (3, 3), (4, 3), (5, 3), (99, 6)])
def test_heads_side_by_side(heads: int, joined: int) -> None:
    x = torch.arange(2 * 6 * 5 * 4.0).reshape(2, 6, 5, 4)
    y, side = JoinHeads(heads).encode(x)
    assert y.shape == (2, 6 // joined, 5, joined * 4) and side["joined"] == joined
    assert torch.equal(y[1, 0, 3, :4], x[1, 0, 3]) and torch.equal(y[1, -1, 3, -4:], x[1, -1, 3])
    assert torch.equal(JoinHeads(heads).decode(y, side), x)
    assert JoinHeads(heads).encode(x[:, :, :0])[0].shape == (2, 6 // joined, 0, joined * 4)
    with pytest.raises(CorruptStream):
        JoinHeads().decode(y, {"joined": np.array([7], np.uint16)})
    with pytest.raises(BadInput):
        JoinHeads().encode(x[0, 0])


def test_the_largest_values_stay() -> None:
    x = torch.tensor([[3.0, -1.0, 0.5, -4.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    y, side = KeepLargest(0.4).encode(x)
    assert torch.equal(y, torch.tensor([[3.0, -4.0], [0.0, 0.0]])) and len(side["bitmap"]) == 2
    assert torch.equal(KeepLargest(0.4).decode(y, side), torch.tensor([[3.0, 0, 0, -4.0, 0], [0.0] * 5]))
    assert torch.equal(KeepLargest(1.0).decode(*KeepLargest(1.0).encode(x)), x)
    lie = np.packbits([1, 1, 1, 0, 0, 1, 0, 0, 0, 0]), np.packbits([1] * 4 + [0] * 9), side["bitmap"][:1]
    for bitmap in lie:
        with pytest.raises(CorruptStream):
            KeepLargest(0.4).decode(y, {**side, "bitmap": bitmap})
