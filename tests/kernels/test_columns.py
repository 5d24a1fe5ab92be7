"""Codes in columns: packed as the plain twin packs them, and every bit comes back."""

import numpy as np
import pytest

from laconic.core.errors import BadConfig, BadInput, CorruptStream
from laconic.kernels.columns import columns, pack_columns, pack_columns_plain, unpack_columns, unpack_columns_plain

BITS = [[4] * 20, [8, 7, 6, 5, 4, 3, 2, 1, 0], [1] * 64, [2] * 5, [5, 5, 4, 3, 3, 1, 0, 0], [3] * 11, [0], [1, 1], []]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("n", [0, 1, 64, 333])
def test_there_and_back(bits: list[int], n: int) -> None:
    rng = np.random.default_rng(n)
    where = columns(np.array(bits, np.uint8))
    index = rng.integers(0, 1 << where.bits.astype(int), (n, len(bits)), np.int64).astype(np.uint8)
    codes = pack_columns(index, where)
    np.testing.assert_array_equal(codes, pack_columns_plain(index, where))
    assert len(codes) == where.n_bytes(n) == 8 * sum(bits) * -(-n // 64)
    np.testing.assert_array_equal(unpack_columns(codes, where, n), index)
    np.testing.assert_array_equal(unpack_columns_plain(codes, where, n), index)


def test_a_column_is_full_and_a_coordinate_in_one() -> None:
    where = columns(np.array([3, 1, 2, 2, 1, 1, 1, 1, 3, 3, 8, 0], np.uint8))
    assert where.n_columns == 5 and [sum(where.top[m]) for m in where.members()] == [4] * 5
    assert where.n_planes == int(where.bits.sum()) - 20
    assert sorted(j for m in where.members() for j in m) == np.flatnonzero(where.top).tolist()


def test_what_it_does_not_take() -> None:
    where = columns(np.array([4, 2], np.uint8))
    with pytest.raises(BadInput, match="code 4 of vector 1, coordinate 1"):
        pack_columns(np.array([[1, 1], [1, 4]], np.uint8), where)
    with pytest.raises(BadInput):
        pack_columns(np.zeros((2, 3), np.uint8), where)
    with pytest.raises(CorruptStream):
        unpack_columns(np.zeros(47, np.uint8), where, 3)
    with pytest.raises(BadConfig):
        columns(np.array([9], np.uint8))
