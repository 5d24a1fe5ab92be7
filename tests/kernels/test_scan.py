"""The scan: tables and sums are those of the plain twins, and what it finds is what costing every vector finds."""

import numpy as np
import pytest

from laconic.core.errors import BadInput
from laconic.kernels.columns import columns, pack_columns
from laconic.kernels.scan import (
    COSINES,
    PRODUCTS,
    SQUARES,
    Codes,
    block_sums,
    block_sums_plain,
    costs_of,
    neighbours,
    neighbours_plain,
    tables,
    tables_plain,
)

BITS = [[4] * 33, [8, 7, 6, 5, 4, 3, 2, 1, 0], [1] * 64, [2] * 5, [5, 5, 4, 3, 3, 1, 0, 0], [3] * 70, [0, 0], [1]]
SIZES = (200, 64, 1, 333)


@pytest.mark.parametrize("n", [0, 1, 3, 4, 32, 131, 1030])
def test_tables_and_sums(n: int) -> None:
    rng = np.random.default_rng(n)
    f = ((rng.random((n, 16)) * rng.random((n, 1))) * 3 - 1).astype(np.float32)
    least = float(f.min(1, initial=9).sum()) if n else 0.0
    codes = rng.integers(0, 256, 96 * n).astype(np.uint8)
    for limit in (np.inf, least + 0.3 * n, least + 0.001, least - 5):
        made = np.empty((n, 16), np.uint8)
        step, base = tables(f, np.float32(limit), made)
        plain, plain_step, plain_base = tables_plain(f, np.float32(limit))
        assert (step, base) == (plain_step, plain_base)
        np.testing.assert_array_equal(made, plain)
        assert (made * float(step) <= (f - f.min(1, keepdims=True)) * (1 + 1e-5)).all()  # at most what it costs
        for block in range(3):
            sums = block_sums(codes, block, made)
            np.testing.assert_array_equal(sums, block_sums_plain(codes, block, made))


def data(bits: list[int], seed: int = 0, sizes: tuple[int, ...] = SIZES):  # type: ignore[no-untyped-def]
    """Levels, blocks in two lists, and what keeps them in memory."""
    rng = np.random.default_rng(seed)
    where = columns(np.array(bits, np.uint8))
    levels = [np.sort(rng.standard_normal(1 << b)).astype(np.float32) / (1 + j) for j, b in enumerate(bits)]
    names = rng.permutation(sum(sizes)).astype(np.int64)
    blocks, at = [], 0
    for i, n in enumerate(sizes):
        index = rng.integers(0, 1 << where.bits.astype(int), (n, len(bits)), np.int64).astype(np.uint8)
        index[n // 2 :] = index[: n - n // 2]  # duplicates
        blocks.append((i // 2, pack_columns(index, where), names[at : at + n].copy()))
        at += n
    return where, levels, blocks


def found(costs, blocks, k, **settings):  # type: ignore[no-untyped-def]
    address, numbers = (np.array([b[i].ctypes.data for b in blocks], np.int64) for i in (1, 2))
    lists = np.array([b[0] for b in blocks])
    first = np.searchsorted(lists, np.arange(lists.max() + 2)).astype(np.int64)
    codes = Codes(address, numbers, np.array([len(b[2]) for b in blocks], np.int64), first)
    return neighbours(costs, codes, k, **settings)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", [SQUARES, PRODUCTS, COSINES])
def test_neighbours_are_those_of_all_costs(bits: list[int], kind: int) -> None:
    where, levels, blocks = data(bits)
    rng = np.random.default_rng(1)
    queries = rng.standard_normal((9, len(bits))).astype(np.float32) / (1 + np.arange(len(bits), dtype=np.float32))
    for lists in (False, True):
        origins = rng.standard_normal((2 if lists else 1, len(bits))).astype(np.float32) / 2
        norms = (0.0, 1e4)
        costs = costs_of(kind, where, levels, queries, origins, norms)
        near = rng.integers(0, 2, (9, 1)) if lists else np.zeros((9, 1), np.int64)
        both = np.concatenate([near, 1 - near], 1) if lists else near
        mine = blocks if lists else [(0, *b[1:]) for b in blocks]
        dead = rng.random(sum(SIZES)) < 0.3
        for k, probe, skip in ((10, both, None), (3, near, dead), (700, both, dead)):
            given = {"near": probe} if lists else {}
            plain = neighbours_plain(costs, mine, k, probe, skip)
            for threads in (1, 3):
                fast = found(costs, mine, k, dead=skip, threads=threads, **given)
                np.testing.assert_array_equal(fast[0], plain[0])
                np.testing.assert_array_equal(fast[1], plain[1])


@pytest.mark.parametrize("kind", [SQUARES, PRODUCTS, COSINES])
@pytest.mark.parametrize("gone", [0, 1100, 2600])
def test_parts_of_several_pieces(kind: int, gone: int) -> None:
    """The first piece gives a limit to the others; also where it, or its whole part, is dead."""
    sizes = (2600, 40, 2500, 1)
    where, levels, blocks = data([5, 4, 4, 3, 2, 2, 1], 4, sizes)
    rng = np.random.default_rng(5)
    queries = rng.standard_normal((3, 7)).astype(np.float32)
    dead = np.zeros(sum(sizes), bool)
    dead[blocks[0][2][:gone]] = True
    for lists in (False, True):
        origins = rng.standard_normal((2 if lists else 1, 7)).astype(np.float32) / 2
        costs = costs_of(kind, where, levels, queries, origins, (0.0, 1e4))
        near = np.tile(np.arange(2 if lists else 1), (3, 1))
        mine = blocks if lists else [(0, *b[1:]) for b in blocks]
        for k in (10, 400):
            fast = found(costs, mine, k, dead=dead, **({"near": near} if lists else {}))
            plain = neighbours_plain(costs, mine, k, near, dead)
            np.testing.assert_array_equal(fast[0], plain[0])
            np.testing.assert_array_equal(fast[1], plain[1])


@pytest.mark.parametrize("bits", [[4] * 21, [8, 8, 6], [5, 3, 2, 0, 8]])
@pytest.mark.parametrize("kind", [SQUARES, PRODUCTS, COSINES])
def test_points_of_several_coordinates(bits: list[int], kind: int) -> None:
    where, _, blocks = data(bits)
    rng = np.random.default_rng(2)
    widths = rng.integers(1, 7, len(bits))
    points = [rng.standard_normal((1 << b, w)).astype(np.float32) for b, w in zip(bits, widths, strict=True)]
    queries, origins = (rng.standard_normal((n, int(widths.sum()))).astype(np.float32) for n in (12, 2))
    costs = costs_of(kind, where, points, queries, origins, (0.0, 1e4))
    near = np.tile(np.arange(2), (12, 1))
    fast, plain = found(costs, blocks, 12, near=near), neighbours_plain(costs, blocks, 12, near)
    np.testing.assert_array_equal(fast[0], plain[0])
    np.testing.assert_array_equal(fast[1], plain[1])


def test_few_are_costed() -> None:
    """Of vectors that lie apart, sums leave out nearly all: what is costed is a small share of what is read."""
    rng = np.random.default_rng(3)
    f = rng.random((32, 16)).astype(np.float32)
    codes = rng.integers(0, 256, 32 * 32 * 500).astype(np.uint8)
    nibbles = np.concatenate([(x := codes.reshape(500, 32, 32)) & 15, x >> 4], 2)
    true = np.take_along_axis(f[None], nibbles, 2).sum(1).reshape(-1)
    limit = np.float32(np.sort(true)[10])
    made, step, base = tables_plain(f, limit)
    sums = np.concatenate([block_sums(codes, b, made) for b in range(500)])
    assert 10 <= (sums <= (limit - base) / step + 2).sum() < 200


def test_what_it_does_not_take() -> None:
    where, levels, _ = data([4, 2])
    for queries in (np.zeros((2, 3), np.float32), np.zeros((2, 1), np.float32)):
        with pytest.raises(BadInput):
            costs_of(SQUARES, where, levels, queries, np.zeros((1, 2), np.float32))
    with pytest.raises(BadInput):
        costs_of(SQUARES, where, levels[::-1], np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32))
