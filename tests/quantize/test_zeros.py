from __future__ import annotations

import numpy as np
import pytest
import torch

import laconic
from laconic.core.errors import CorruptStream
from laconic.quantize.codebooks import Uniform
from laconic.quantize.scales import Along, Float, GroupScale, MinMax, PowerOfTwo
from laconic.quantize.zeros import IntegerZero


def test_zero_is_a_level_of_every_group() -> None:
    x = torch.randn(9, 40, generator=torch.Generator().manual_seed(0)) + 0.7
    book, scale = Uniform(16, 0.0), GroupScale(Along(8), MinMax(True), IntegerZero(4))
    grid = scale.expand(scale.measure(x, book), (9, 40))
    levels = grid.denormalize(book.lookup(book.nearest(grid.normalize(torch.zeros(9, 40)))))
    assert not levels.any()
    assert float((grid.offset / grid.step).frac().abs().max()) == 0
    reached = grid.denormalize(book.lookup(book.nearest(grid.normalize(x))))
    assert bool(((reached - x).abs() <= 0.51 * 1.1 * grid.step).all())


def test_a_group_of_zeros_comes_back() -> None:
    x = torch.zeros(2, 16)
    x[1, 3] = -4.0
    scale = GroupScale(Along(8), MinMax(True), IntegerZero(2))
    grid = scale.expand(scale.measure(x, Uniform(4, 0.0)), (2, 16))
    levels = Uniform(4, 0.0).lookup(Uniform(4, 0.0).nearest(grid.normalize(x)))
    torch.testing.assert_close(grid.denormalize(levels), x, rtol=1e-3, atol=0)


def test_any_store_of_steps_will_do_and_symmetric_grids_send_no_zeros() -> None:
    step = torch.tensor([[0.5, 2.0]])
    store = IntegerZero(3, PowerOfTwo())
    side = store.put(step, -step * torch.tensor([[1.0, 6.0]]))
    back, offset = store.get(side, (1, 2), True)
    assert torch.equal(back, step) and torch.equal(offset, -step * torch.tensor([[1.0, 6.0]]))
    assert set(store.leaves(False)) == set(store.put(step, None)) == {"scale"}


def test_damage_has_a_name() -> None:
    side = IntegerZero(4, Float("float32")).put(torch.ones(3, 2), torch.ones(3, 2))
    with pytest.raises(CorruptStream):
        IntegerZero(4, Float("float32")).get(side | {"zero": np.zeros((2, 2), np.uint8)}, (3, 2), True)
    with pytest.raises(CorruptStream):
        IntegerZero(4, Float("float32")).get(side | {"zero": side["zero"][:-1]}, (3, 2), True)
    with pytest.raises(laconic.BadConfig, match="1 to 8"):
        IntegerZero(9)
