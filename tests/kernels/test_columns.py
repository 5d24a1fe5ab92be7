"""Codes in columns: packed as the plain twin packs them, and every bit comes back."""

import numpy as np
import pytest

from laconic.core.errors import BadConfig, BadInput, CorruptStream
from laconic.kernels.columns import (
    columns,
    pack_columns,
    pack_columns_plain,
    unpack_columns,
    unpack_columns_plain,
    unpack_planes,
)

BITS = [[4] * 20, [8, 7, 6, 5, 4, 3, 2, 1, 0], [1] * 64, [2] * 5, [5, 5, 4, 3, 3, 1, 0, 0], [3] * 11, [0], [1, 1], []]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("n", [0, 1, 64, 333])
@pytest.mark.parametrize("coarse", [0, 2, 7])
def test_there_and_back(bits: list[int], n: int, coarse: int) -> None:
    rng = np.random.default_rng(n)
    where = columns(np.array(bits, np.uint8), coarse)
    index = rng.integers(0, 1 << where.bits.astype(int), (n, len(bits)), np.int64).astype(np.uint8)
    codes = pack_columns(index, where)
    np.testing.assert_array_equal(codes, pack_columns_plain(index, where))
    assert where.n_fine == sum(bits) - 4 * where.n_columns
    assert len(codes) == where.n_bytes(n) == 32 * where.n_columns * -(-n // 64) + -(-n * where.n_fine // 8)
    np.testing.assert_array_equal(unpack_columns(codes, where, n), index)
    np.testing.assert_array_equal(unpack_columns_plain(codes, where, n), index)


def test_a_column_is_full_and_a_coordinate_in_one() -> None:
    where = columns(np.array([3, 1, 2, 2, 1, 1, 1, 1, 3, 3, 8, 0], np.uint8))
    assert where.n_columns == 5 and [sum(where.top[m]) for m in where.members()] == [4] * 5
    assert where.n_fine == int(where.bits.sum()) - 20
    coarse = columns(where.bits, 2)
    assert coarse.n_columns == 1 and (coarse.top <= np.maximum(where.bits.astype(int) - 2, 0)).all()
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
    with pytest.raises(BadConfig, match="coarse=8"):
        columns(np.array([4], np.uint8), 8)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("n", [0, 1, 64, 333])
def test_codes_in_planes_are_read(bits: list[int], n: int) -> None:
    """As older files hold them: after the columns, a plane of 64 bits for every fine bit of a block."""
    where = columns(np.array(bits, np.uint8))
    index = np.random.default_rng(n).integers(0, 1 << where.bits.astype(int), (n, len(bits)), np.int64).astype(np.uint8)
    planes = [
        np.packbits(part[:, j] >> b & 1, bitorder="little").tobytes().ljust(8, b"\0")
        for part in (index[at : at + 64] for at in range(0, n, 64))
        for j in range(len(bits))
        for b in range(where.low[j])
    ]
    codes = pack_columns(index, where)[: where.column_bytes(n)].tobytes() + b"".join(planes)
    np.testing.assert_array_equal(unpack_planes(np.frombuffer(codes, np.uint8), where, n), index)
    with pytest.raises(CorruptStream):
        unpack_planes(np.frombuffer(codes + b"\0", np.uint8), where, n)
