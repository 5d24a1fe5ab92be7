"""Short lists: they hold the least estimates as the plain twin finds them, and what is on them is costed by its code."""

import numpy as np
import pytest

from laconic.kernels.columns import columns, pack_columns
from laconic.kernels.scan import COSINES, PRODUCTS, SQUARES, Codes, costs_of, neighbours_plain
from laconic.kernels.shortlist import Estimates, estimates_of, shortlisted, shortlisted_plain

SIZES = (700, 40, 500, 1)
BITS = [[4] * 37, [7, 6, 5, 4, 3, 2, 1, 0] * 4, [1] * 40, [3] * 16]


def made(kind, bits, coarse=0, width=1, sizes=SIZES, seed=0, n=7):  # type: ignore[no-untyped-def]
    """Costs and blocks in two lists, and what keeps them in memory."""
    rng = np.random.default_rng(seed)
    where = columns(np.array(bits, np.uint8), coarse)
    points = [rng.standard_normal((1 << b, width)).astype(np.float32) / (1 + j / 9) for j, b in enumerate(bits)]
    points = [np.sort(x, 0) if width == 1 else x for x in points]
    names, blocks, at = rng.permutation(sum(sizes)).astype(np.int64), [], 0
    for i, size in enumerate(sizes):
        index = rng.integers(0, 1 << where.bits.astype(int), (size, len(bits)), np.int64).astype(np.uint8)
        blocks.append((i // 2, pack_columns(index, where), names[at : at + size].copy()))
        at += size
    queries, origins = (rng.standard_normal((m, width * len(bits))).astype(np.float32) / 2 for m in (n, 2))
    return costs_of(kind, where, points, queries, origins, (0.0, 1e4)), blocks


def codes_of(blocks) -> Codes:  # type: ignore[no-untyped-def]
    address, numbers = (np.array([b[i].ctypes.data for b in blocks], np.int64) for i in (1, 2))
    first = np.searchsorted([b[0] for b in blocks], np.arange(3)).astype(np.int64)
    return Codes(address, numbers, np.array([len(b[2]) for b in blocks], np.int64), first)


def known_of(costs, blocks) -> Estimates:  # type: ignore[no-untyped-def]
    return estimates_of(costs, [(i, c, len(v)) for i, c, v in blocks])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", [SQUARES, PRODUCTS, COSINES])
@pytest.mark.parametrize("coarse", [0, 2])
def test_it_is_the_plain_twin(kind: int, bits: list[int], coarse: int) -> None:
    costs, blocks = made(kind, bits, coarse)
    known, codes = known_of(costs, blocks), codes_of(blocks)
    both = np.array([[0, 1], [1, 0]] * 4)[:7]
    dead = np.random.default_rng(1).random(sum(SIZES)) < 0.3
    for k, r, near, skip in (
        (10, 20, both, None),
        (3, 3, both[:, :1], dead),
        (40, 9, both, dead),
        (700, 1300, both, None),
    ):
        plain = shortlisted_plain(costs, blocks, known, k, near, r, skip)
        for threads in (1, 3):
            fast = shortlisted(costs, codes, known, k, near, r, dead=skip, threads=threads)
            np.testing.assert_array_equal(fast[0], plain[0])
            np.testing.assert_array_equal(fast[1], plain[1])


@pytest.mark.parametrize("kind", [SQUARES, PRODUCTS, COSINES])
def test_pieces_and_shares(kind: int) -> None:
    """Lists of more blocks than are added up at once, read by many queries of several shares."""
    costs, blocks = made(kind, [4, 3, 2, 2, 1] * 2, 1, sizes=(2600, 40, 2500, 65), n=140)
    near, known = np.tile(np.arange(2), (140, 1)), known_of(costs, blocks)
    plain = shortlisted_plain(costs, blocks, known, 5, near, 12)
    for threads in (1, 2):
        fast = shortlisted(costs, codes_of(blocks), known, 5, near, 12, threads=threads)
        np.testing.assert_array_equal(fast[0], plain[0])
        np.testing.assert_array_equal(fast[1], plain[1])


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_a_query_of_zeros(scale: float) -> None:
    """Whose table says nothing."""
    costs, blocks = made(SQUARES, [4] * 20, n=2)
    scaled = [x * np.float32(scale) for x in (costs.levels, costs.low, costs.high, costs.origins)]
    costs = costs._replace(
        levels=scaled[0], low=scaled[1], high=scaled[2], origins=scaled[3], queries=costs.queries * 0
    )
    near = np.tile(np.arange(2), (2, 1))
    cost, _ = shortlisted(costs, codes_of(blocks), known_of(costs, blocks), 10, near, 40)
    np.testing.assert_allclose(cost, neighbours_plain(costs, blocks, 10, near)[0], rtol=1e-4)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("kind", [SQUARES, PRODUCTS, COSINES])
@pytest.mark.parametrize("coarse", [0, 3])
def test_a_list_of_all_finds_the_nearest(kind: int, width: int, coarse: int) -> None:
    """Whatever estimates say; costs are those of a scan but for the order in which they are added up."""
    costs, blocks = made(kind, [5, 4, 3, 2] * 6, coarse, width)
    near = np.tile(np.arange(2), (7, 1))
    every = shortlisted(costs, codes_of(blocks), known_of(costs, blocks), 12, near, sum(SIZES))
    plain = neighbours_plain(costs, blocks, 12, near)
    np.testing.assert_allclose(every[0], plain[0], rtol=2e-5, atol=1e-5)
    np.testing.assert_array_equal(every[1], plain[1])


@pytest.mark.parametrize(("coarse", "times", "share"), [(0, 2, 0.99), (2, 4, 0.75), (2, 8, 0.9)])
@pytest.mark.parametrize("kind", [SQUARES, PRODUCTS, COSINES])
def test_few_are_missed(kind: int, coarse: int, times: int, share: float) -> None:
    costs, blocks = made(kind, [4] * 64, coarse, sizes=(3000, 40, 2500, 700), n=40)
    near, known, codes = np.tile(np.arange(2), (40, 1)), known_of(costs, blocks), codes_of(blocks)
    plain = neighbours_plain(costs, blocks, 10, near)[1].tolist()
    few = shortlisted(costs, codes, known, 10, near, 10 * times)[1].tolist()
    assert np.mean([len(set(a) & set(b)) for a, b in zip(few, plain, strict=True)]) > 10 * share


@pytest.mark.parametrize("kind", [SQUARES, PRODUCTS, COSINES])
def test_what_estimates_know(kind: int) -> None:
    """δ and ν to a half of a step, and means of those points that vectors have."""
    costs, blocks = made(kind, [2] * 8, 1)
    where, known = costs.where, known_of(costs, blocks)
    index = np.random.default_rng(2).integers(0, 4, (64, 8)).astype(np.uint8)
    index[:, 0] &= 2  # of two points that share their highest bit only one is there
    known = estimates_of(costs, [(1, pack_columns(index, where), 64)])
    points = costs.levels.reshape(8, 4)
    y = points[np.arange(8), index].astype(np.float64)
    t, u = 0, int(costs.member[0])
    assert where.top[u] == 1
    mean = {b: y[index[:, u] >> 1 == b, u].mean() for b in (0, 1)}
    for nibble in range(16):
        np.testing.assert_allclose(known.mean[t, nibble], mean[nibble >> where.shift[u] & 1], rtol=1e-6)
    coarse = np.stack([[y[index[:, j] >> 1 == b, j].mean() for b in (0, 1)] for j in range(8)])
    o = costs.origins[1].astype(np.float64)
    if kind == SQUARES:  # around the mean of origins
        o = o - costs.origins.mean(0)
    seen = coarse[np.arange(8), index >> 1] @ o
    true = (y * y).sum(1) + 2 * seen if kind == SQUARES else seen - y @ o
    place = np.arange(64) // 32 * 32 + np.arange(64) % 16 * 2 + np.arange(64) // 16 % 2
    np.testing.assert_allclose(known.low[0] + known.step[0] * known.own, true[place], atol=0.51 * known.step[0])
    norms = np.sqrt(np.square(y + o).sum(1)) if kind == COSINES else np.ones(64)
    found = known.norm_low[0] + known.norm_step[0] * known.norms
    np.testing.assert_allclose(found, norms[place], atol=0.51 * known.norm_step[0])
    assert known.nbytes == (4 if kind == COSINES else 2) * 64


def test_equal_estimates() -> None:
    """Where all vectors are alike, those that come first are on the list, and no more than it holds."""
    where = columns(np.full(8, 4, np.uint8))
    codes = pack_columns(np.full((3000, 8), 5, np.uint8), where)
    blocks = [(0, codes, np.arange(3000, dtype=np.int64))]
    levels = [np.arange(16, dtype=np.float32)] * 8
    costs = costs_of(SQUARES, where, levels, np.zeros((2, 8), np.float32), np.zeros((1, 8), np.float32))
    near = np.zeros((2, 1), np.int64)
    cost, number = shortlisted(costs, codes_of(blocks), known_of(costs, blocks), 10, near, 20)
    assert (cost == 200).all() and (number == np.arange(10)).all()


def test_nothing_to_estimate_by_and_nothing_to_ask() -> None:
    costs, blocks = made(SQUARES, [2, 1] * 5, 2)
    assert not costs.where.n_columns
    near = np.tile(np.arange(2), (7, 1))
    all_ = shortlisted(costs, codes_of(blocks), known_of(costs, blocks), 5, near, 10)
    plain = neighbours_plain(costs, blocks, 5, near)
    np.testing.assert_array_equal(all_[1], plain[1])
    costs, blocks = made(SQUARES, [4] * 5, n=0)
    assert shortlisted(costs, codes_of(blocks), known_of(costs, blocks), 5, near[:0], 10)[0].shape == (0, 5)
