from __future__ import annotations

import math

import pytest
import torch

import laconic
from laconic.core.combine import chain
from laconic.entropy.coders import Pack
from laconic.kv import cache
from laconic.quantize.base import Quantizer
from laconic.quantize.codebooks import Uniform
from laconic.quantize.scales import AbsMean, Along, GroupScale
from laconic.recipes.kv.vidkv import vidkv

from .caches import divergence, llama


def video(n: int = 512) -> torch.Tensor:
    """(2, 4, n, 64): tokens that change slowly, as those of frames do; channels with places and sizes of their own."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, n, 64, generator=g)
    for t in range(1, n):
        x[:, :, t] = 0.9 * x[:, :, t - 1] + (1 - 0.81) ** 0.5 * x[:, :, t]
    x[:, :, :, ::9] *= 6
    return x + 1.5 * torch.randn(2, 4, 1, 64, generator=g)


def error(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x - y).square().sum() / x.square().sum())


def test_mixed_bits_against_the_line_between_one_and_two() -> None:
    """Wide channels at 2 bits: less error at 1.5 bits than the mean of 1 and 2 in the logarithm."""
    x = video()[0]
    errors = {}
    for bits in (1.0, 1.5, 2.0):
        codec = vidkv(bits).keys(bits)
        errors[bits] = error(x, codec.decode(*codec.encode(x)))
    assert errors[1.5] < math.sqrt(errors[1.0] * errors[2.0])


def test_signs_around_the_mean_against_signs_around_zero() -> None:
    x = video()[0]
    codec = vidkv(1.0).keys(1.0)
    rows = x.unflatten(1, (-1, 64))
    around_zero = (rows.sign() * rows.abs().mean(2, keepdim=True)).flatten(1, 2)
    assert error(x, codec.decode(*codec.encode(x))) < 0.75 * error(x, around_zero)


def test_values_by_channel_against_by_token() -> None:
    """Three levels of slowly changing values: along the channel less than three quarters of the error along the token."""
    x = video()[1]
    by_token = chain(Quantizer(Uniform(3), GroupScale(Along(64, -1), AbsMean())), Pack())
    by_channel = vidkv().values(1.5)
    lost = [error(x, c.decode(*c.encode(x))) for c in (by_channel, by_token)]
    assert lost[0] < 0.75 * lost[1]


def test_ternary_values_take_what_they_should() -> None:
    x = video()[1]
    payload, side = vidkv().values(1.5).encode(x)
    assert math.log2(3) <= 8 * len(payload) / x.numel() < 1.005 * math.log2(3) + 0.001
    assert side["0"]["scale"].nbytes * 8 == 16 / 64 * x.numel()


def test_frequencies_and_salient_tokens() -> None:
    x = video()[0]
    for recipe in (vidkv(frequency=True), vidkv(1.0, frequency=True)):
        codec = recipe.keys(recipe.nominal)
        assert error(x, codec.decode(*codec.encode(x))) < 0.5
    model = llama()
    kl = [divergence(model, cache(model, recipe=vidkv(salient=s))) for s in (0.0, 0.5)]
    assert kl[1] < kl[0]
    for bad in ({"keys": 2.5}, {"salient": 1.0}):
        with pytest.raises(laconic.BadConfig):
            laconic.codec("vidkv", **bad)
