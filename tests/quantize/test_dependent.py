"""Entropy-coded trellis quantization: near the bound by the bytes written, at the rate named, on any array, and safe to read."""

import dataclasses
import hashlib
import math

import numpy as np
import pytest
import torch
from scipy.fft import dct, idct

from laconic.core.errors import BadConfig, BadInput, CodecError, CorruptStream
from laconic.core.packet import Codec, decode, info
from laconic.kernels.dependent import PRECISION
from laconic.measure.bounds import gap_db, gaussian_distortion, laplace_distortion, vector_gaussian_distortion
from laconic.quantize.dependent import (
    CENTRED_BELOW,
    LAM,
    LAM_CENTRED,
    LAWS,
    EntropyCodedTrellis,
    grid_pmf,
    grid_tables,
    level_costs,
)


def _gaussian(*shape, seed=0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x / x.square().mean().sqrt()


def _point(stage, x):
    """(rate, distortion) of a packet."""
    packet = Codec(stage).encode(x)
    return 8 * len(packet) / x.numel(), float((x - decode(packet)).double().square().mean())


@pytest.mark.parametrize("bits", [0.5, 1.0, 2.0, 3.0, 4.0])
def test_gaussian_is_near_the_bound(bits):
    x = _gaussian(1 << 18)
    rate, distortion = _point(EntropyCodedTrellis(bits=bits, states=1024), x)
    header = 8 * 220 / x.numel()  # .04 dB of a packet of this size, .01 dB at 2^20 values
    assert gap_db(distortion, gaussian_distortion(rate - header)) < (0.21 if bits < 1 else 0.18)
    assert gap_db(distortion, gaussian_distortion(rate)) < 0.25
    assert (0.99 if bits < 1 else 0.997) * bits < rate <= bits


def test_more_states_come_nearer():
    x = _gaussian(1 << 17)
    gaps = []
    for states in (8, 32, 256, 4096):
        rate, distortion = _point(EntropyCodedTrellis(bits=2.0, states=states), x)
        gaps.append(gap_db(distortion, gaussian_distortion(rate)))
    assert all(b < a - 0.05 for a, b in zip(gaps, gaps[1:], strict=False))


@pytest.mark.parametrize("bits", [0.5, 2.0, 3.0])
def test_autoregressive_vectors_are_near_the_bound(bits):
    n, rho = 128, 0.9
    g = np.random.default_rng(0)
    x = g.standard_normal((4096, n))
    for j in range(1, n):
        x[:, j] = rho * x[:, j - 1] + math.sqrt(1 - rho**2) * x[:, j]
    coefficients = torch.from_numpy(dct(x, axis=1, norm="ortho").astype(np.float32))
    packet = Codec(EntropyCodedTrellis(bits=bits, axes=(-1,), states=256)).encode(coefficients)
    y = idct(decode(packet).numpy().astype(float), axis=1, norm="ortho")
    covariance = rho ** np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    rate = 8 * len(packet) / x.size
    assert np.mean((x - y) ** 2) < 1.08 * vector_gaussian_distortion(covariance, rate) and rate <= bits
    assert info(packet).ledger.by_role()["scales"] == n + 4


@pytest.mark.parametrize(("bits", "gap"), [(0.25, 0.45), (0.5, 0.55), (1.0, 0.45), (2.0, 0.35)])
def test_laplacian_is_near_the_bound(bits, gap):
    g = np.random.default_rng(0)
    x = torch.from_numpy((g.laplace(size=1 << 18) / math.sqrt(2)).astype(np.float32))
    rate, distortion = _point(EntropyCodedTrellis(bits=bits, states=256), x)
    assert gap_db(distortion, laplace_distortion(rate)) < gap


@pytest.mark.parametrize("axes", [(), (0,), (-1,), (0, 1)])
@pytest.mark.parametrize("bits", [1.0, 3.3])
def test_rate_is_kept_on_any_axes(axes, bits):
    x = _gaussian(24, 48, 96) * torch.linspace(0.1, 3, 48)[:, None] * torch.linspace(0.5, 2, 24)[:, None, None]
    packet = Codec(EntropyCodedTrellis(bits=bits, axes=axes, states=64)).fit(x).encode(x)
    assert 0.98 * bits < 8 * len(packet) / x.numel() <= bits
    y = decode(packet)
    assert y.shape == x.shape and float((x - y).square().mean()) < 0.5 * float(x.square().mean())


def test_scales_pay_where_variances_differ():
    x = _gaussian(4096, 64) * torch.logspace(-3, 1, 64, base=2)
    one, own = (_point(EntropyCodedTrellis(bits=2.0, axes=axes, states=64), x) for axes in ((), (-1,)))
    assert own[1] < 0.55 * one[1]


def test_fit_keeps_the_step_and_the_bytes():
    x = _gaussian(300, 400)
    stage = EntropyCodedTrellis(bits=2.0, axes=(0,), states=32)
    fitted = stage.fit(x)
    assert fitted.step is not None and dataclasses.replace(fitted, step=None) == stage
    payload, side = fitted.encode(x)
    again, same = fitted.encode(x.clone())
    assert payload == again and all(np.array_equal(side[k], same[k]) for k in side)
    assert Codec(fitted).encode(x * 8) != Codec(fitted).encode(x)
    rate = 8 * len(Codec(fitted).encode(x * 8)) / x.numel()  # solved anew, from where `fit` left it
    assert rate <= 2.0


def test_step_alone_sets_the_distortion():
    for step in (0.02, 0.1, 0.3):
        _, distortion = _point(EntropyCodedTrellis(step=step, states=256), _gaussian(1 << 15))
        assert distortion == pytest.approx(0.245 * step**2, rel=0.03)


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(7, 5),
        torch.full((40,), -3.25),
        torch.tensor([1.5]),
        torch.tensor([-1e-42, 3e-39, 0.0]),
        torch.tensor([3.4e38, -3.4e38, 1.0]).repeat(50),
        torch.tensor([1e30, *([1.0, -1.0] * 100)]),
        _gaussian(5000) ** 15,
        torch.cat([_gaussian(999), torch.tensor([1e5])]),
        (_gaussian(20000) > 2.5).float() * 7,
        _gaussian(64, 64).T,
        torch.cat([torch.zeros(50, 8), _gaussian(50, 8)], 1).contiguous(),
    ],
    ids=lambda x: f"{tuple(x.shape)}",
)
@pytest.mark.parametrize("axes", [(), (-1,)])
def test_any_finite_array_is_coded(x, axes):
    stage = EntropyCodedTrellis(bits=9.0, axes=axes, states=8)
    before = x.clone()
    if axes and x.ndim == 1:  # a scale for every value: all of them together must be within the rate, and are
        assert stage.encode(x)[1]["scale"].shape == x.shape
        return
    payload, side = stage.encode(x)
    y = stage.decode(payload, side)
    assert torch.equal(x, before) and y.shape == x.shape and bool(torch.isfinite(y).all())
    assert float((x - y).double().square().sum()) <= 1e-3 * float(x.double().square().sum()) + 1e-70
    assert bool((y[:, x.abs().amax(0) == 0] == 0).all()) if axes else True


def test_laws_are_told_apart():
    g = np.random.default_rng(0)
    draws = {
        4: g.standard_normal(1 << 16),
        2: g.laplace(size=1 << 16),
        1: g.gamma(2, size=1 << 16) ** 2 * g.choice([-1, 1], 1 << 16),
    }
    for law, x in draws.items():
        stage = EntropyCodedTrellis(bits=3.0, states=8)
        assert stage.encode(torch.from_numpy((x / x.std()).astype(np.float32)))[1]["law"].tolist() == [law]


def test_pmfs_are_positive_sum_up_and_follow_their_law():
    for law, of in LAWS.items():
        for index in (1, 17, 40, 63, 64, 90, 127, 200, 255):
            pmf, reach, shift, centred = grid_pmf(law, index)
            assert (pmf.sum(1) == 1 << PRECISION).all() and centred == (of.peaked and index < CENTRED_BELOW)
            even = pmf[0, : 2 * reach + 1]
            assert (even > 0).all() and pmf[0, 2 * reach + 1] > 0 and not pmf[0, 2 * reach + 2 :].any()
            if not shift:
                assert np.abs(even - even[::-1]).max() <= 1  # the last unit of a rounding falls to one side
                h = np.arange(-reach, reach + 1)
                law_of = np.exp(-((2 * np.abs(h) / 2 ** (index / 16 - 4)) ** (law / 2)) * 2 / law)
                assert (
                    np.abs(even / even.sum() - law_of / law_of.sum()).max() < 1.5 / (1 << PRECISION) * reach**0.5 + 2e-3
                )


def test_pmfs_are_part_of_the_bitstream():
    digest = hashlib.sha256()
    for law in LAWS:
        for index in range(1, 256):
            rows = grid_pmf(law, index)
            digest.update(rows.pmf.astype("<u2").tobytes() + bytes([rows.reach, rows.shift]))
    assert digest.hexdigest()[:16] == "e62674ec00315f17"


@pytest.mark.parametrize("law", LAWS)
def test_search_pays_what_the_coder_charges(law):
    indices = np.array([44, 56, 80, 100])
    costs, tables = level_costs(law, indices.astype(float)), grid_tables(law, indices)
    assert not tables.shift.any()
    bits = PRECISION - np.log2(np.maximum(tables.entry & 0xFFFF, 1))
    half = costs.level.shape[1] // 2
    for t, index in enumerate(indices):
        even, odd = bits[2 * t], bits[2 * t + 1]
        reach, centred = tables.reach[t], tables.centred[t]
        lam = LAM_CENTRED if centred else np.interp(index, (48, 64), LAM)
        if centred:
            assert costs.centre[t] == pytest.approx(lam * odd[reach], rel=0.02, abs=0.002)
        for q in range(-min(reach, 6), min(reach, 6) + 1):
            pairs = [(2 * q, even[q + reach]), (2 * q + 1, odd[q + reach + 1])]
            if centred:
                pairs[1] = (2 * q - np.sign(q), odd[q + reach]) if q else (0, even[reach])
            for level, charged in pairs:
                if charged < 11:  # rarer ones feel the rounding to 2^-15
                    assert costs.level[t, half + level] == pytest.approx(lam * charged, rel=0.02, abs=0.004)


def test_wrong_settings_and_inputs_are_named():
    for settings in (
        {},
        {"bits": 0.0},
        {"bits": 13.0},
        {"step": -1.0},
        {"step": math.inf},
        {"bits": 2.0, "states": 100},
    ):
        with pytest.raises(BadConfig):
            EntropyCodedTrellis(**settings)
    with pytest.raises(BadInput, match="axes"):
        EntropyCodedTrellis(bits=2.0, axes=(2,)).encode(_gaussian(4, 4))
    with pytest.raises(BadInput, match="axes"):
        EntropyCodedTrellis(bits=2.0, axes=(1, -1)).encode(_gaussian(4, 4))
    with pytest.raises(BadInput, match="share a scale"):
        EntropyCodedTrellis(bits=2.0, axes=(0,)).encode(_gaussian(100, 4))
    for bad in (torch.tensor([1.0, math.nan]), torch.tensor([math.inf]), torch.empty(0)):
        with pytest.raises(BadInput):
            EntropyCodedTrellis(bits=2.0).encode(bad)


def test_damage_is_refused_or_harmless():
    x = _gaussian(60, 40) * torch.linspace(0, 2, 40)
    stage = EntropyCodedTrellis(bits=2.0, axes=(-1,), states=16)
    payload, side = stage.encode(x)
    for name, bad in (
        ("shape", np.array([60, 41])),
        ("shape", np.array([2400])),
        ("shape", np.array([-60, -40])),
        ("shape", np.array([60, 40, 1] + [1] * 20)),
        ("shape", np.array([[60, 40]])),
        ("scale", side["scale"][:-1]),
        ("scale", np.zeros(40, np.uint8)),
        ("scale", np.ones(40, np.uint8)),
        ("step", np.array([np.nan], np.float32)),
        ("step", np.array([0], np.float32)),
        ("step", np.array([], np.float32)),
        ("law", np.array([0], np.uint8)),
        ("law", np.array([5], np.uint8)),
        ("lane_words", np.array([], np.uint32)),
        ("lane_words", side["lane_words"] + 1),
        ("lane_words", np.full(5000, 2, np.uint32)),
    ):
        with pytest.raises(CorruptStream):
            stage.decode(payload, {**side, name: bad})
    for bad in (b"", payload[:-4], payload[:-1], payload + b"\0\0\0\0", payload + b"\0"):
        with pytest.raises(CorruptStream):
            stage.decode(bad, side)
    g = np.random.default_rng(0)
    for _ in range(60):
        flipped, scale = bytearray(payload), side["scale"].copy()
        flipped[g.integers(len(payload))] ^= 1 << g.integers(8)
        scale[g.integers(40)] ^= 1 << g.integers(8)
        for a, b in ((bytes(flipped), side), (payload, {**side, "scale": scale})):
            try:
                y = stage.decode(a, b)
            except CodecError as e:
                assert isinstance(e, CorruptStream)
            else:
                assert y.shape == x.shape and bool(torch.isfinite(y).all())
