from __future__ import annotations

import numpy as np
import pytest
import torch

from laconic.core.errors import BadConfig, BadInput, CorruptStream
from laconic.core.stage import Stats
from laconic.quantize.tokens import Salient, WideChannels


def test_salient_tokens_in_their_order() -> None:
    x = torch.arange(2 * 6 * 3.0).reshape(2, 6, 3)
    worth = torch.tensor([0.1, 0.9, 0.0, 0.5, 0.2, 0.8])[None, :, None]
    rule = Salient(0.5).fit(x, Stats(importance=worth))
    (first, second), side = rule.split(x)
    assert torch.equal(first, x[:, [1, 3, 5]]) and torch.equal(second, x[:, [0, 2, 4]])
    assert len(side["salient"]) == 1
    assert torch.equal(Salient(0.5).join((first, second), side), x), "the decoder needs no importance"


def test_without_importance_the_first_tokens() -> None:
    x = torch.arange(8.0).reshape(1, 4, 2)
    (first, _), _ = Salient(0.5).fit(x).split(x)
    assert torch.equal(first, x[:, :2])
    (first, _), _ = Salient(0.5).fit(x, Stats(importance=torch.ones(1, 9, 1))).split(x)
    assert torch.equal(first, x[:, :2])


def test_wide_channels_head_by_head() -> None:
    x = torch.randn(2, 3, 40, 6, generator=torch.Generator().manual_seed(0))
    x[0, 0, :, 4] *= 9
    x[1, 2, :, 1] *= 9
    rule = WideChannels(1 / 6)
    (wide, rest), side = rule.split(x)
    assert wide.shape == (2, 3, 40, 1) and rest.shape == (2, 3, 40, 5)
    assert torch.equal(wide[0, 0, :, 0], x[0, 0, :, 4]) and torch.equal(wide[1, 2, :, 0], x[1, 2, :, 1])
    assert torch.equal(rule.join((wide, rest), side), x)


def test_lies_and_settings() -> None:
    x = torch.randn(2, 16, 8)
    for rule, name in ((Salient(), "salient"), (WideChannels(), "wide")):
        shares, side = rule.split(x)
        for bad in (side[name][:0], ~side[name] & 0xF0, np.concatenate([side[name], side[name]])):
            with pytest.raises(CorruptStream):
                rule.join(shares, {name: bad})
        with pytest.raises(CorruptStream):
            rule.join((shares[0], shares[1][:1]), side)
        with pytest.raises(BadInput):
            rule.split(torch.ones(3))
        for share in (0.0, 1.0):
            with pytest.raises(BadConfig):
                type(rule)(share)
