"""Recipes for vectors: what their cards claim, on seeded data."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import laconic

D = 128


def gaussian(n: int, deviations: np.ndarray, seed: int) -> torch.Tensor:
    turn, _ = np.linalg.qr(np.random.default_rng(7).standard_normal((len(deviations),) * 2))
    x = np.random.default_rng(seed).standard_normal((n, len(deviations))) * deviations
    return torch.from_numpy((x @ turn).astype(np.float32))


def measured(recipe: str, deviations: np.ndarray, n: int = 1500, **settings: object) -> tuple[float, float, float]:
    """Bits a coordinate, squared error over the power, 1 − cos², on vectors that were not learned from."""
    codec = laconic.codec(recipe, **settings).fit(gaussian(2000, deviations, 0))
    x = gaussian(n, deviations, 1)
    packet = codec.encode(x, embed=False)
    y = codec.decode(packet)
    cos2 = (x * y).sum(1) ** 2 / (x.square().sum(1) * y.square().sum(1))
    return 8 * len(packet) / x.numel(), float((x - y).square().sum() / x.square().sum()), float((1 - cos2).mean())


def test_saq_is_as_near_as_the_paper_says() -> None:
    """1 − cos² at 2 bits from .151 without adjustment to .116; at 4 bits .0103."""
    bits, _, error = measured("saq", np.ones(D), bits=2.125)
    assert bits < 2.2 and error == pytest.approx(0.116, abs=0.003)
    assert measured("saq", np.ones(D), bits=4.125)[2] == pytest.approx(0.0103, abs=0.0005)


def test_saq_gains_most_where_the_spectrum_is_steep() -> None:
    """Against one width for all coordinates, whose variances span three decades: .047 to .113."""
    steep = np.geomspace(1, 0.03, 64)
    assert measured("saq", steep, bits=2.25)[2] < 0.45 * measured("rabitq", steep, bits=2.25)[2]


def test_klt_levels_gain_the_ratio_of_the_means() -> None:
    """At a high rate: arithmetic over geometric mean of the variances (Huang & Schultheiss)."""
    spread = np.geomspace(1, 0.2, 64)
    gain = (spread**2).mean() / np.exp(np.log(spread**2).mean())
    flat, shaped = measured("klt-levels", np.ones(64), bits=4.0)[1], measured("klt-levels", spread, bits=4.0)[1]
    assert flat / shaped == pytest.approx(gain, rel=0.12)


def test_klt_trellis_is_near_the_bound() -> None:
    """Reverse water-filling: at 2 bits within .5 dB and what the side information of few vectors takes."""
    spread = np.geomspace(1, 0.1, 32)
    bits, error, _ = measured("klt-trellis", spread, n=3000, bits=2.0)
    low, high = 0.0, 1.0
    for _ in range(60):
        level = (low + high) / 2
        rate = 0.5 * np.log2(np.maximum(spread**2 / level, 1)).mean()
        low, high = (level, high) if rate > bits else (low, level)
    bound = np.minimum(spread**2, level).sum() / (spread**2).sum()
    assert error < 10**0.06 * bound


def test_product_quantization_uses_what_neighbours_share() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 8, generator=g).repeat_interleave(2, 1) + 0.1 * torch.randn(3000, 16, generator=g)
    codec = laconic.codec("pq", bits=2.0, index_bits=4).fit(x[:2000])
    y = codec.decode(codec.encode(x[2000:]))
    assert float((y - x[2000:]).square().mean() / x.var()) < 0.05  # two bits each alone: .118


def test_opq_takes_away_what_correlations_cost() -> None:
    """The card's numbers, and a rotation that is learned where axes of variance are not enough."""
    spread = np.geomspace(1, 1000**-0.5, 64)
    _, product, _ = measured("pq", spread, bits=1.0)
    _, optimized, _ = measured("opq", spread, bits=1.0)
    assert product == pytest.approx(0.283, rel=0.05) and optimized == pytest.approx(0.095, rel=0.05)
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.standard_normal((8, 8)))
    corners = rng.choice([-1.0, 1.0], (3000, 8)) + 0.1 * rng.standard_normal((3000, 8))  # white: its axes say nothing
    x = torch.from_numpy((corners @ turn).astype(np.float32))
    error = {}
    for rounds in (0, 30):
        codec = laconic.codec("opq", bits=1.0, index_bits=4, rounds=rounds).fit(x[:2000])
        error[rounds] = float((codec.decode(codec.encode(x[2000:])) - x[2000:]).square().mean())
    assert error[30] < 0.5 * error[0]


def test_scalar_steps_cost_a_twelfth_of_their_square() -> None:
    x = torch.rand(4000, 16, generator=torch.Generator().manual_seed(0)) * torch.linspace(1, 5, 16)
    for bits in (4, 6, 8):
        codec = laconic.codec("scalar", bits=bits).fit(x)
        error = (codec.decode(codec.encode(x)) - x).double().square().mean(0)
        step = torch.linspace(1, 5, 16).double() / 2**bits
        assert torch.allclose(error, step**2 / 12, rtol=0.05)


def test_contexts_of_magnitudes_take_away_what_no_transform_can() -> None:
    """Values that are never negative and large together: at the rate of klt-trellis under half its error."""
    g = torch.Generator().manual_seed(0)
    x = (torch.randn(4000, 32, generator=g) * torch.exp(torch.randn(4000, 1, generator=g))).clamp(min=0)
    found = {}
    for recipe in ("klt-trellis", "ar-scalar"):
        codec = laconic.codec(recipe, bits=2.0).fit(x[:2500])
        packet = codec.encode(x[2500:], embed=False)
        y = codec.decode(packet)
        found[recipe] = 8 * len(packet) / x[2500:].numel(), float((y - x[2500:]).square().mean())
    (r0, e0), (r1, e1) = found["klt-trellis"], found["ar-scalar"]
    assert e1 * 4.0 ** (r1 - r0) < 0.5 * e0


def test_a_network_sees_bent_lines() -> None:
    """The card's figure: every second value lies where a bent line of the one before it puts it."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(6000, 6, generator=g)
    x[:, 1::2] = 0.3 * x[:, 1::2] + 3 * (x[:, ::2].abs() - 1).abs()
    found = {}
    for recipe in ("ar-scalar", "ar-net"):
        codec = laconic.codec(recipe, bits=2.0).fit(x[:5000])
        packet = codec.encode(x[5000:], embed=False)
        found[recipe] = 8 * len(packet) / x[5000:].numel(), float((codec.decode(packet) - x[5000:]).square().mean())
    (r0, e0), (r1, e1) = found["ar-scalar"], found["ar-net"]
    assert e1 * 4.0 ** (r1 - r0) < 0.75 * e0
