"""Scans of bit planes: the sums are those of the tables, and no near vector is lost."""

import numpy as np
import pytest

from laconic.core.errors import BadInput
from laconic.kernels.coordinates import pack
from laconic.kernels.scan import candidates, query, scan, sums_plain


def case(bits: np.ndarray, n: int, seed: int = 0):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(seed)
    index = np.stack([rng.integers(0, 1 << int(b), n) for b in bits], 1).astype(np.uint8)
    costs = [rng.random(1 << int(b)) * 3 - 1 for b in bits]
    true = sum(c[index[:, j]] for j, c in enumerate(costs))
    return pack(index, bits), query(costs, bits), true


@pytest.mark.parametrize(
    "bits", [[4] * 20, [8, 7, 6, 5, 4, 3, 2, 1, 0], [1] * 64, [2] * 5, [5, 5, 4, 3, 3, 1, 0, 0], [3] * 300]
)
def test_sums_and_candidates(bits: list[int]) -> None:
    widths = np.array(bits, np.uint8)
    codes, q, true = case(widths, 333)
    sums = sums_plain(codes, widths, 333, q)
    assert np.abs(q.base + q.step * sums - true).max() <= q.step * (len(bits) / 2 + 1)
    everything = np.full(333, 1 << 20, np.int64)
    found = scan(codes, widths, 333, q, everything)
    np.testing.assert_array_equal(np.sort(found.place), np.arange(333))
    np.testing.assert_array_equal(found.sum, sums[found.place])
    np.testing.assert_array_equal(everything, np.sort(sums))
    best = np.full(10, 1 << 20, np.int64)
    found = scan(codes, widths, 333, q, best)
    np.testing.assert_array_equal(best, np.sort(sums)[:10])
    assert set(np.argsort(true)[:10].tolist()) <= set(candidates(found, q, best).tolist())


def test_vectors_that_are_left_out() -> None:
    widths = np.array([4, 4, 2], np.uint8)
    codes, q, _ = case(widths, 100)
    skip = np.zeros(100, bool)
    skip[::2] = True
    best = np.full(3, 1 << 20, np.int64)
    assert (scan(codes, widths, 100, q, best, skip).place % 2 == 1).all()


def test_what_it_does_not_take() -> None:
    widths = np.array([4, 2], np.uint8)
    codes, q, _ = case(widths, 70)
    for bad in (codes[:-1], codes.astype(np.int8)):
        with pytest.raises(BadInput):
            scan(bad, widths, 70, q, np.full(3, 1 << 20, np.int64))
    with pytest.raises(BadInput):
        query([np.zeros(3), np.zeros(4)], widths)
