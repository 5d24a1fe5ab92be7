"""Entropy-coded trellis with error feedback: less weighted error at the same bytes, any matrix, and safe to read."""

import math

import numpy as np
import pytest
import torch

from laconic.core.errors import BadConfig, BadInput, CodecError, CorruptStream
from laconic.core.packet import Codec, decode
from laconic.core.stage import Stats
from laconic.kernels.dependent_columns import Grid, sweep_columns, sweep_columns_plain
from laconic.quantize.dependent import EntropyCodedTrellis, level_costs
from laconic.quantize.feedback_plan import octaves, read_lines, write_lines
from laconic.quantize.feedback_trellis import FeedbackTrellis
from laconic.quantize.rounding import HessianWarning, inverse_factor, live_hessian


def _hessian(n, decay=0.5, seed=0):
    """Second moment of inputs with a spectrum that falls as a power, in random directions."""
    g = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))
    return ((q * (torch.arange(n) + 1.0).pow(-2 * decay)) @ q.T * 3).float()


def _weights(m, n, seed=1):
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed)) * 0.02


def _loss(error, hessian):
    error = error.double()
    return float((error @ hessian.double() * error).sum())


H, W = _hessian(128), _weights(512, 128)
STATS = Stats(hessian=H)


def _coded(stage, x=W, stats=STATS):
    """(bits per value of the packet, what comes back)."""
    packet = Codec(stage).fit(x, stats).encode(x)
    return 8 * len(packet) / x.numel(), decode(packet)


@pytest.mark.parametrize("bits", [2.0, 4.0])
def test_the_weighted_error_is_near_the_bound_and_far_below_plain(bits):
    rate, y = _coded(FeedbackTrellis(bits=bits, states=256))
    assert bits - 0.0045 < rate <= bits
    plain = decode(Codec(EntropyCodedTrellis(bits=bits, axes=(0,), states=256)).encode(W))
    got = _loss(W - y, H)
    # At high rate only det(H)^(1/n) is left of H: everything else is the gain over a codec that does not know it.
    determinant = math.exp(float(torch.logdet(H.double())) / len(H))
    bound = W.numel() * float(W.double().square().mean()) * determinant * 4.0**-rate
    assert 1.0 < got / bound < (1.2 if bits == 4 else 1.3)
    assert got < 0.75 * _loss(W - plain, H)


def test_steps_of_columns_pay():
    spread = torch.logspace(-2, 2, 128, base=2)
    x, hessian = W.contiguous(), H * spread[:, None] * spread
    rate, y = _coded(FeedbackTrellis(bits=3.0, states=64), x, Stats(hessian=hessian))
    factor = inverse_factor(live_hessian(hessian, 128), 1e-5).numpy()
    grid = Grid(
        np.full(128, 0.02 * 0.37, np.float32), 1.0, np.zeros(512, np.int64), np.zeros(128, np.int64), 0, 0, np.zeros(128, bool)
    )  # fmt: skip
    scale = 8 * math.log2(1 / 0.37**2 - 0.245) + 64  # 2.3 bits Shannon: one step for all at not less rate
    one = sweep_columns(np.ascontiguousarray(x.numpy().T), factor, grid, level_costs(4, np.array([scale])), 64)
    assert rate <= 3.0 and _loss(x - y, hessian) < 0.6 * one.error


def test_a_given_step_is_the_weighted_error():
    for step in (0.001, 0.003):
        stage = FeedbackTrellis(step=step, states=256)
        rate, y = _coded(stage)
        error = _loss(W - y, H)
        assert error / W.numel() == pytest.approx(0.245 * step**2, rel=0.1)
        bits, estimated = stage.estimate(W, STATS)
        assert bits == pytest.approx(rate, abs=0.05) and estimated == pytest.approx(error, rel=0.1)
        assert stage.estimate(W * 2, Stats(hessian=H / 4))[1] == pytest.approx(estimated, rel=1e-3)


def test_an_estimate_from_a_part_of_the_rows():
    x = _weights(3000, 128)
    stage = FeedbackTrellis(step=0.008, states=64)
    bits, estimated = stage.estimate(x, STATS)
    rate, y = _coded(stage, x)
    assert bits == pytest.approx(rate, abs=0.02) and estimated == pytest.approx(_loss(x - y, H), rel=0.1)


def test_without_a_hessian_it_is_as_good_as_plain():
    ours, plain = FeedbackTrellis(bits=2.0, states=64), EntropyCodedTrellis(bits=2.0, axes=(0,), states=64)
    errors = [float((W - _coded(stage, stats=None)[1]).square().sum()) for stage in (ours, plain)]
    assert errors[0] < 1.03 * errors[1]


def test_rows_that_matter_more_get_finer_steps():
    weight = torch.logspace(-4, 4, 512, base=2)[:, None]
    stats = Stats(hessian=H, importance=weight)
    rate, y = _coded(FeedbackTrellis(bits=3.0, states=64), stats=stats)
    _, flat = _coded(FeedbackTrellis(bits=3.0, states=64))
    root = weight.sqrt()
    assert rate <= 3.0 and _loss((W - y) * root, H) < 0.65 * _loss((W - flat) * root, H)
    stage = FeedbackTrellis(step=0.008, states=64)
    _, y = _coded(stage, stats=stats)
    assert stage.estimate(W, stats)[1] == pytest.approx(_loss((W - y) * root, H), rel=0.1)
    for wrong in (torch.ones(3, 1), -weight, weight * math.nan):
        with pytest.raises(BadInput, match="importance"):
            FeedbackTrellis(bits=3.0).fit(W, Stats(importance=wrong))


def test_the_same_bytes_twice_and_from_another_factor_of_the_hessian():
    stage = FeedbackTrellis(bits=2.0, states=32)
    fitted = stage.fit(W, STATS)
    before = W.clone()
    payload, side = fitted.encode(W)
    again, same = fitted.encode(W.clone())
    assert payload == again and all(np.array_equal(side[k], same[k]) for k in side) and torch.equal(W, before)
    assert torch.equal(FeedbackTrellis(step=9.0, states=32).decode(payload, side), fitted.decode(payload, side))


@pytest.mark.parametrize("bits", [0.3, 1.0])
def test_low_rates_leave_columns_out(bits):
    rate, y = _coded(FeedbackTrellis(bits=bits, states=64))
    assert rate <= bits + 0.025 and _loss(W - y, H) < 1.02 * 4 ** (-bits) * _loss(W, H)
    if bits < 1:
        assert int((y == 0).all(0).sum()) > 5


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(7, 5),
        torch.full((40,), -3.25),
        torch.tensor([[1.5]]),
        torch.tensor([[-1e-42, 3e-39, 0.0]]),
        torch.tensor([3.4e38, -3.4e38, 1.0]).repeat(50, 1),
        _weights(50, 100) ** 15,
        _weights(3, 4, 5).reshape(3, 2, 2),
        torch.cat([_weights(99, 8), torch.full((1, 8), 1e5)]),
        (_weights(200, 100) > 0.05).float() * 7,
        torch.cat([torch.zeros(50, 8), _weights(50, 8)], 1),
        _weights(64, 64).T,
    ],
    ids=lambda x: f"{tuple(x.shape)}",
)
def test_any_finite_array_is_coded(x):
    for stats in (None, Stats(hessian=_hessian(x.shape[-1]))):
        rate = (
            {"bits": 9.0} if x.numel() >= 40 else {"step": 0.02 * float(x.abs().max()) or 1.0}
        )  # too few to keep to a rate
        stage = FeedbackTrellis(**rate, states=8).replace(stats=stats)
        payload, side = stage.encode(x)
        y = stage.decode(payload, side)
        assert y.shape == x.shape and bool(torch.isfinite(y).all())
        hessian = torch.eye(x.shape[-1]) if stats is None else stats.hessian
        scaled, back = (v.reshape(-1, x.shape[-1]).double() / max(float(x.abs().max()), 1e-45) for v in (x, y))
        assert (
            _loss(scaled - back, hessian)
            <= 2e-3 * _loss(scaled, hessian) + (3e-37 / max(float(x.abs().max()), 1e-37)) ** 2
        )
        assert bool((y.reshape(-1, x.shape[-1])[:, (x.reshape(-1, x.shape[-1]) == 0).all(0)] == 0).all()) or stats


def test_dead_columns_rows_of_zeros_and_a_bad_hessian():
    x, hessian = W.clone(), H.clone()
    x[::5] = 0
    x[:, 7] = 0
    hessian[3], hessian[:, 3] = 0, 0
    _, y = _coded(FeedbackTrellis(bits=3.0, states=32), x, Stats(hessian=hessian))
    assert _loss(x - y, hessian) < 0.03 * _loss(x, hessian) and bool((y[::5] == 0).all())
    assert float((x - y)[:, 3].square().mean()) < 0.2 * float(x[:, 3].square().mean())
    indefinite = 5 * torch.ones(128, 128) - 4 * torch.eye(128)
    with pytest.warns(HessianWarning, match="no error feedback"):
        _, y = _coded(FeedbackTrellis(bits=3.0, states=32), stats=Stats(hessian=indefinite))
    assert float((W - y).square().mean()) < 0.03 * float(W.square().mean())
    for wrong in (torch.eye(5), H * math.nan):
        with pytest.raises(BadInput, match="Hessian"):
            FeedbackTrellis(bits=3.0).fit(W, Stats(hessian=wrong))


@pytest.mark.parametrize("law", [4, 2])
@pytest.mark.parametrize("states", [8, 64])
def test_the_fast_sweep_is_the_plain_one(law, states):
    g = np.random.default_rng(states)
    n, m = 9, 150
    w = g.standard_normal((n, m)).astype(np.float32)
    upper = np.triu(g.standard_normal((n, n)) * 0.2 + np.eye(n)).astype(np.float32)
    grid = Grid(
        np.linspace(0.3, 0.6, n, dtype=np.float32), 1.01, g.integers(-6, 7, m), g.integers(-6, 7, n), -7, -9, np.arange(n) == 4
    )  # fmt: skip
    costs = level_costs(law, 66.0 + np.arange(-9, 8))
    fast, plain = (sweep(w, upper, grid, costs, states) for sweep in (sweep_columns, sweep_columns_plain))
    for a, b in zip(fast[:4], plain[:4], strict=True):
        assert np.array_equal(a, b)
    assert fast.error == pytest.approx(plain.error) and (fast.unions == 2).any()


def test_feedback_sums_up_to_the_weighted_error():
    factor = inverse_factor(live_hessian(H, 128), 0.0).numpy()
    w = np.ascontiguousarray(W.numpy().T)
    grid = Grid(
        np.full(128, 0.01, np.float32), 1.0, np.zeros(512, np.int64), np.zeros(128, np.int64), 0, 0, np.zeros(128, bool)
    )  # fmt: skip
    swept = sweep_columns(w, factor, grid, level_costs(4, np.array([80.0])), 16)
    error = torch.from_numpy((w - swept.level * np.float32(0.01)).T)
    assert swept.error == pytest.approx(_loss(error, H), rel=1e-3)


def test_what_follows_the_first_value_is_looked_at():
    """The last levels of a column leave a state that suits the next: a path in pieces loses less than a tenth of a dB."""
    x = torch.randn(128, 256, generator=torch.Generator().manual_seed(0))
    pieces = _coded(FeedbackTrellis(step=0.5, states=256), x, None)
    whole = _coded(FeedbackTrellis(step=0.5, states=256), x.reshape(-1, 8), None)
    gaps = [10 * math.log10(float((y.reshape(x.shape) - x).square().mean()) * 4**rate) for rate, y in (pieces, whole)]
    assert gaps[0] < gaps[1] + 0.1


def test_octaves_are_exact_powers():
    i = np.arange(-300, 300)
    assert (
        np.allclose(octaves(i), 2.0 ** (i / 16), rtol=1e-15)
        and (octaves(i[i % 16 == 12]) == octaves(i[i % 16 == 12])).all()
    )


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
            FeedbackTrellis(**settings)
    with pytest.raises(BadConfig):
        FeedbackTrellis(bits=2.0, damping=-1.0)
    with pytest.raises(BadConfig, match="step"):
        FeedbackTrellis(bits=2.0).estimate(W)
    for bad in (torch.tensor([1.0, math.nan]), torch.tensor([math.inf]), torch.empty(0)):
        with pytest.raises(BadInput):
            FeedbackTrellis(bits=2.0).encode(bad)


def test_damage_is_refused_or_harmless():
    x = W[:64, :40] * torch.linspace(0, 2, 40)
    stage = FeedbackTrellis(bits=2.0, states=16).fit(x, Stats(hessian=_hessian(40)))
    payload, side = stage.encode(x)
    flat = np.zeros(40, np.int64), np.zeros(40, np.int64), np.zeros(64, np.int64), np.zeros(64, np.int64)
    lines = read_lines(side["models"], 40, 64)
    assert lines.law == 4 and len(lines.row) == 64
    far = (flat[0] + 5000, *flat[1:])
    for name, bad in (
        ("shape", np.array([64, 41], np.uint32)),
        ("shape", np.array([0, 40], np.uint32)),
        ("shape", np.array([64, 40, 1] + [1] * 20, np.uint32)),
        ("shape", np.array([[64, 40]], np.uint32)),
        ("models", side["models"][:-3]),
        ("models", np.empty(0, np.uint8)),
        ("models", write_lines((80, -20, 5), *flat)),
        ("models", write_lines((80, -90, 4), *flat)),
        ("models", write_lines((1 << 20, 0, 4), *flat)),
        ("models", write_lines((80, -20, 4), *far)),
        ("models", write_lines((80, 20, 4), *flat)),  # nothing is coded
        ("step", np.array([np.nan], np.float32)),
        ("step", np.array([0], np.float32)),
        ("step", np.array([], np.float32)),
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
        flipped, models = bytearray(payload), side["models"].copy()
        flipped[g.integers(len(payload))] ^= 1 << g.integers(8)
        models[g.integers(len(models))] ^= 1 << g.integers(8)
        for a, b in ((bytes(flipped), side), (payload, {**side, "models": models})):
            try:
                y = stage.decode(a, b)
            except CodecError as e:
                assert isinstance(e, CorruptStream)
            else:
                assert y.shape == x.shape and bool(torch.isfinite(y).all())
