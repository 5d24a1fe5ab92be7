from __future__ import annotations

import numpy as np
import pytest
import torch

import laconic
from laconic import Stats
from laconic.core.errors import CorruptStream
from laconic.quantize.rows import SensitiveRows
from laconic.quantize.scales import Along, GroupScale, MinMax


def data() -> torch.Tensor:
    return torch.randn(21, 64, generator=torch.Generator().manual_seed(0))


def test_rows_that_matter_are_chosen_and_come_back() -> None:
    x, importance = data(), torch.ones(21, 1)
    importance[[3, 17]] = 100
    rule = SensitiveRows(0.1).fit(x, Stats(hessian=torch.eye(64), importance=importance))
    shares, side = rule.split(x)
    assert rule.chosen.nonzero().reshape(-1).tolist() == [3, 17]
    assert torch.equal(SensitiveRows(0.1).join(shares, side), x)
    assert side["rows"].size == 3


def test_inputs_of_no_weight_do_not_count() -> None:
    x, h = data(), torch.diag(torch.cat([torch.ones(16), torch.zeros(48)]))
    x[4, 16:] *= 50
    rule = SensitiveRows(0.05, scale=GroupScale(Along(16), MinMax(True)))
    assert bool(rule.fit(x).chosen[4])
    assert not bool(rule.fit(x, Stats(hessian=h)).chosen[4])


def test_statistics_go_with_their_rows() -> None:
    x = data()
    stats = Stats(hessian=torch.eye(64), importance=torch.rand(21, 64), mask=x > 1)
    rule = SensitiveRows(0.3).fit(x, stats)
    first, second = rule.push(x, stats)
    assert torch.equal(first.importance, stats.importance[rule.chosen])
    assert torch.equal(second.mask, stats.mask[~rule.chosen]) and torch.equal(second.hessian, stats.hessian)
    by_row = rule.push(x, Stats(importance=torch.ones(21, 1)))
    assert by_row[0].importance is None, "a factor for a row does not change how the row is rounded"


def test_damage_and_misuse_have_names() -> None:
    x = data()
    shares, side = SensitiveRows(0.3).fit(x).split(x)
    for rows in (side["rows"][:-1], side["rows"] ^ np.uint8(1), side["rows"] ^ np.array([128, 0, 0], np.uint8)):
        with pytest.raises(CorruptStream):
            SensitiveRows(0.3).join(shares, {"rows": rows})
    with pytest.raises(laconic.BadInput, match="matrix"):
        SensitiveRows().fit(x[0])
    with pytest.raises(laconic.BadInput, match="21 rows"):
        SensitiveRows().fit(x).split(x[:5])
