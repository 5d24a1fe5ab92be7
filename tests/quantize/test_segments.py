"""Segments with bits of their own: the programme that cuts them, and the codes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from laconic.core.errors import BadConfig, BadInput, CorruptStream, NotFitted
from laconic.quantize.segments import SegmentCodes, cut


def price(found: list[tuple[int, int]]) -> int:
    return sum(n * b + (16 if b else 0) for n, b in found)


def loss(variance: np.ndarray, found: list[tuple[int, int]]) -> float:
    ends = np.cumsum([n for n, _ in found])
    return sum(variance[e - n : e].sum() / 4.0**b for e, (n, b) in zip(ends, found, strict=True))


def test_the_programme_finds_the_best_cut() -> None:
    variance = np.array([9, 8, 4, 3, 1, 0.5, 0.1, 0.05])
    for budget in (20, 40, 60):
        found = cut(variance, budget, 2)
        assert sum(n for n, _ in found) == 8 and price(found) <= budget
        best = np.inf
        for edges in itertools.chain.from_iterable(itertools.combinations((2, 4, 6), r) for r in range(4)):
            sizes = np.diff([0, *edges, 8])
            for bits in itertools.product(range(9), repeat=len(sizes)):
                some = list(zip(sizes.tolist(), bits, strict=True))
                if price(some) <= budget:
                    best = min(best, loss(variance, some))
        assert loss(variance, found) == pytest.approx(best)


def rows(n: int = 200, d: int = 48) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=g) * torch.linspace(3, 0.2, d)


def test_unequal_bits_beat_equal_ones_at_equal_bytes() -> None:
    x = torch.randn(300, 96, generator=torch.Generator().manual_seed(1)) * torch.logspace(0.5, -1, 96)

    def error(**settings: object) -> tuple[float, int]:
        stage = SegmentCodes(bits=3.2, unit=16, unbiased=False, **settings).fit(x)  # type: ignore[arg-type]
        data, side = stage.encode(x)
        return float((stage.decode(data, side) - x).square().mean()), len(data) + side["factors"].nbytes

    (cut_, cut_bytes), (whole, whole_bytes) = error(), error(adaptive=False)
    assert cut_ < 0.8 * whole and cut_bytes <= 1.15 * whole_bytes


def test_products_have_no_bias() -> None:
    """Over rotations the mean of ⟨q, ô⟩ is ⟨q, o⟩, where least squares shrinks it."""
    x, q = rows(40, 16), rows(40, 16)
    slopes = []
    for unbiased in (True, False):
        found = []
        for seed in range(12):
            stage = SegmentCodes(bits=3.0, unit=16, unbiased=unbiased, seed=seed).fit(x)
            y = stage.decode(*stage.encode(x))
            found.append(float((y @ q.T * (x @ q.T)).sum() / (x @ q.T).square().sum()))
        slopes.append(np.mean(found))
    assert abs(slopes[0] - 1) < 0.01 < 1 - slopes[1]


def test_zeros_shapes_and_damage() -> None:
    x = torch.cat([torch.zeros(2, 48), rows(30)])
    stage = SegmentCodes(bits=4.0).fit(rows())
    data, side = stage.encode(x.reshape(4, 8, 48))
    assert stage.decode(data, side).shape == (4, 8, 48) and not stage.decode(data, side)[0, :2].any()
    with pytest.raises(CorruptStream):
        stage.decode(data[:-1], side)
    with pytest.raises(CorruptStream):
        stage.decode(data, {**side, "rows": np.array([4, 9])})
    with pytest.raises(CorruptStream):
        stage.decode(data, {**side, "step": np.array([np.nan], np.float32)})
    with pytest.raises(BadInput):
        stage.encode(torch.zeros(3, 47))
    with pytest.raises(NotFitted):
        SegmentCodes().encode(x)
    with pytest.raises(BadConfig, match="factor"):
        SegmentCodes(bits=0.3).fit(x)
