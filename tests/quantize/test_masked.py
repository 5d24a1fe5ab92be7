"""Levels under laws of a masked network: rate, what the network and the last look are worth, bad input, damage."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import laconic
from laconic.core.errors import BadConfig, BadInput, CorruptStream, NotFitted, decode_budget
from laconic.core.telling import told_to
from laconic.quantize.autoregressive import Autoregressive
from laconic.quantize.masked import Masked

from .test_autoregressive import rows, tried


def fitted(x: torch.Tensor, **settings: object) -> Masked:
    return Masked(**settings).fit(x)


@pytest.fixture(scope="module")
def one_bit() -> Masked:
    return fitted(rows(4000), bits=1.0)


@pytest.mark.parametrize("bits", [0.5, 3.0])
def test_the_rate_holds_on_other_vectors(bits: float) -> None:
    rate, error = tried(fitted(rows(4000), bits=bits), rows(3000, seed=1))
    assert rate == pytest.approx(bits, rel=0.08) and error < 4.0**-bits


def test_a_network_knows_more_than_linear_forms() -> None:
    """Every second value lies where a bent line of the one before it puts it."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(6000, 6, generator=g)
    x[:, 1::2] = 0.3 * x[:, 1::2] + 3 * (x[:, ::2].abs() - 1).abs()
    learn, other = x[:5000], x[5000:]
    net, linear = fitted(learn, bits=None, step=0.5), Autoregressive(bits=None, step=0.5).fit(learn)
    assert tried(net, other)[0] < 0.95 * tried(linear, other)[0]


def test_the_last_look_takes_error_away() -> None:
    """Of values that lie near the mean of their neighbours; against the best constants that do without it."""
    x = torch.randn(4000, 25, generator=torch.Generator().manual_seed(0)).cumsum(1)[:, 1:]
    stage = fitted(x[:3000], bits=0.5)
    y = x[3000:]
    data, side = stage.encode(y)
    assert stage.last is not None
    with decode_budget(1 << 28):
        whole, bare = stage.decode(data, side), stage.replace(last=0 * stage.last).decode(data, side)
    bare += (y - bare).mean(0)
    assert (y - whole).square().mean() < 0.8 * (y - bare).square().mean()


@pytest.mark.parametrize("x", [torch.zeros(3, 5), torch.ones(70, 4), torch.full((1, 3), 1e38), torch.zeros(2, 0, 4) + 1,
                               torch.arange(12.0).reshape(3, 4) * 1e-38, torch.arange(9.0)[:, None]])  # fmt: skip
def test_odd_arrays(x: torch.Tensor) -> None:
    stage = fitted(x if x.numel() else torch.ones(2, 4), bits=4.0)
    data, side = stage.encode(x)
    with decode_budget(1 << 24):
        y = stage.decode(data, side)
    assert y.shape == x.shape and torch.isfinite(y).all()
    assert (y - x).abs().max() <= 0.51 * x.abs().max() if x.numel() else not data


def test_values_far_beyond_what_was_learned_come_back_coarser(one_bit: Masked) -> None:
    x = torch.full((2, 24), 3e38)
    data, side = one_bit.encode(x)
    assert side["coarser"][0] > 50
    with decode_budget(1 << 24):
        assert torch.allclose(one_bit.decode(data, side), x, rtol=1e-3)


def test_one_odd_value_leaves_the_others_near(one_bit: Masked) -> None:
    """As near as without it, and two steps: what the last look moves a value at most."""
    x = rows(50, seed=2)
    odd = x.clone()
    odd[:, 5] = 1000 * float(one_bit.delta[0])  # type: ignore[index]
    with decode_budget(1 << 24):
        back = one_bit.decode(*one_bit.encode(odd))
    others = np.arange(24) != 5
    assert (back - odd)[:, others].abs().max() <= 3.6 * float(one_bit.delta[0])  # type: ignore[index]


def test_learning_twice_gives_the_same(one_bit: Masked) -> None:
    again = fitted(rows(4000), bits=1.0)
    assert np.array_equal(again.weights, one_bit.weights) and np.array_equal(again.last, one_bit.last)


def test_learning_says_how_far_it_is() -> None:
    said: list[tuple[int, int, str]] = []
    with told_to(lambda *word: said.append(word)):
        fitted(rows(200), bits=1.0)
    fitted(rows(70), bits=1.0)  # to nobody
    done = [d for d, _, _ in said]
    assert done == sorted(set(done)) and (done[0], done[-1]) == (0, 60) and {t for _, t, _ in said} == {60}


def test_bad_settings_and_input_are_named(one_bit: Masked) -> None:
    for settings in ({"bits": 0.0}, {"bits": None}, {"step": -1.0}, {"lam": 2.0}, {"units": -1}):
        with pytest.raises(BadConfig):
            Masked(**settings)
    with pytest.raises(NotFitted):
        Masked().encode(rows(2))
    with pytest.raises(BadInput, match="laws of 24"):
        one_bit.encode(torch.zeros(3, 5))
    bad = rows(3)
    bad[1, 2] = torch.nan
    with pytest.raises(BadInput, match="vector 1"):
        one_bit.encode(bad)


@pytest.mark.parametrize(
    "what", ["weights", "offsets", "exponents", "delta", "last", "hidden", "range", "least integer"]
)
def test_damaged_laws_are_refused(what: str, one_bit: Masked) -> None:
    data, side = one_bit.encode(rows(10))
    assert one_bit.weights is not None and one_bit.offsets is not None
    broken = {
        "weights": {"weights": one_bit.weights[:-1]},
        "offsets": {"offsets": one_bit.offsets[:5]},
        "exponents": {"exponents": np.array([15, 0, 0, 0])},
        "delta": {"delta": np.array([np.nan])},
        "last": {"last": np.zeros((24, 24))},
        "hidden": {"hidden": np.full(96, 1 << 60)},
        "least integer": {"offsets": np.where(np.arange(6)[:, None] == 3, -(2**63), one_bit.offsets)},
        "range": {"offsets": np.where(np.arange(6)[:, None] == 3, 1 << 20, one_bit.offsets)},
    }[what]
    with pytest.raises(CorruptStream, match="laws|a step of"), decode_budget(1 << 24):
        one_bit.replace(**broken).decode(data, side)


@pytest.mark.parametrize("outer", [[1 << 62, 1 << 62, 0], [1] * 70, [-1], [1 << 40, 1 << 40]])
def test_axes_that_no_array_has_are_refused(outer: list[int], one_bit: Masked) -> None:
    linear = Autoregressive(bits=None, step=0.5).fit(rows(100))
    side = {"rows": np.array(outer, np.int64), "coarser": np.zeros(1, np.uint8)}
    for stage in (one_bit, linear):
        with pytest.raises(CorruptStream), decode_budget(1 << 24):
            stage.decode(b"", side)


def test_a_few_long_vectors_come_back_from_a_packet() -> None:
    """What the network takes is no part of what vectors may use."""
    x = torch.randn(2, 768, generator=torch.Generator().manual_seed(0))
    codec = laconic.codec("ar-net", bits=2.0).fit(x)
    assert laconic.decode(codec.encode(x)).shape == x.shape


def test_decoding_keeps_to_what_packets_may_use() -> None:
    """16 bytes a value, however many there are."""
    x = rows(20_000)
    stage = fitted(x[:500], bits=2.0)
    data, side = stage.encode(x)
    with decode_budget(16 * x.numel()):
        assert stage.decode(data, side).shape == x.shape
