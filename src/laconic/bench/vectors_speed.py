"""The scan of an index beside faiss: nanoseconds a vector, and queries a second with inverted lists at a recall.

1 M × 128 clustered vectors; lists hold the sentences' embeddings, for in such round clusters no code of four bits reaches the
recall with a quarter of the lists, ours or faiss's. Each side has the number of lists that suits it best. faiss's codes of the
flat scans are made of every twentieth vector and stand there twenty times: its scans take the same time whatever the codes are,
and some of its encoders take minutes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from ..sources.vectors.index import Index
from .rows import Row, median_seconds, ratio

N, DIM, K = 1_000_000, 128, 10
N_FLAT = 32  # queries
LISTS = (32, 64, 128, 256, 512)  # of sentences, of which some 64ths are read
RECALL = 0.9
COARSE = 2
# recipe, bits, settings, vectors, faiss's codes, nanoseconds to reach. Our PQ's encoder takes 30 µs a vector, so there are fewer.
FLAT = (
    ("klt-levels", 4.0, {}, N, ("SQ4", "RaBitQ4"), 4.0),
    ("klt-levels", 1.0, {}, N, ("RaBitQ", "RaBitQfs"), 1.2),
    ("pq", 2.0, {"index_bits": 4}, N // 10, ("PQ64x4fs",), None),
)
LISTED_BITS = 4.0  # true ones, blocks filled up to 64 vectors in every list included
# Codes of up to four bits. PQ192x8, which learns for minutes with every number of lists and is scanned without registers, is left
# out; so are codes of less bits whose neighbours are compared by others once more, for these would have two of four.
LISTED = ("SQ4", "RaBitQ3", "RaBitQfs3", "PQ{d}x4fs", "PQ{d}x4fsr")


def clustered(n: int = N, d: int = DIM, seed: int = 0) -> np.ndarray:
    """256 Gaussian clusters of standard deviation 1, their centres of 2."""
    centres = np.random.default_rng(0).standard_normal((256, d), dtype=np.float32)
    rng = np.random.default_rng(seed + 1)
    out = rng.standard_normal((n, d), dtype=np.float32)
    out += 2 * centres[rng.integers(0, len(centres), n)]
    return out


def _filled(index: Index, x: np.ndarray) -> Index:
    for at in range(0, len(x), 1 << 17):
        index.add(x[at : at + (1 << 17)])
    return index


def bandwidth() -> float:
    """Gigabytes a second that one thread reads from memory: a sum of 256 MB."""
    x = np.ones(1 << 25)
    return x.nbytes / median_seconds(x.sum, 5) / 1e9


def scan(
    recipe: str, bits: float, settings: dict[str, int], n: int, specs: tuple[str, ...], target: float | None
) -> Iterator[Row]:
    """A flat scan on one thread, queries in a batch on both sides."""
    import faiss

    faiss.omp_set_num_threads(1)
    x, q = clustered(), clustered(N_FLAT, seed=7)
    index = _filled(Index(DIM, recipe=recipe, bits=bits, **settings).train(x[::20]), x[:n])
    index.search(q[:2], K)
    name = f"scan, {recipe}, {index.bits_per_dim:.2f} bits"
    for spec in specs:
        peer = _repeated(spec, x[:: 20 * N // n], n)
        if peer is None:
            continue
        ours, theirs = ratio(lambda: index.search(q, K), lambda p=peer: p.search(q, K), 5)
        mine, other = (1e9 * s / len(q) / n for s in (ours, theirs))
        yield Row(name, mine, "ns/vector", f"faiss {spec}", other, None if target is None else ("<=", target))
        share = ("<=", 1.6) if recipe == "pq" else None
        yield Row(f"{name}: time over faiss {spec}'s", ours / theirs, "×", target=share)
        del peer
    single = median_seconds(lambda: index.search(q[:1], K), 5)
    yield Row(f"{name}, queries one by one", 1e9 * single / n, "ns/vector")
    yield Row(f"{name}, queries one by one: memory that is read", index.code_bytes / single / 1e9, "GB/s",
              "a sum of float64", bandwidth())  # fmt: skip


def _repeated(spec: str, some: np.ndarray, n: int):  # type: ignore[no-untyped-def]
    """A flat index of faiss with n vectors, 20 times the same; None where this faiss does not have it."""
    import faiss

    try:
        index = faiss.index_factory(DIM, spec)
    except RuntimeError:
        return None
    index.train(some)
    if not spec.endswith("fs"):
        codes = index.sa_encode(some)
        for _ in range(n // len(some)):
            index.add_sa_codes(codes)
    else:
        for _ in range(n // len(some)):
            index.add(some)
    return index


class Listed(NamedTuple):
    """Of an index with lists: what reads as few of them as reach the recall."""

    name: str
    recall: float
    search: Callable[[], np.ndarray]


def queries(base: np.ndarray, asked: np.ndarray, truth: np.ndarray) -> Iterator[Row]:
    """Inverted lists on two threads: queries a second at the least probe that reaches the recall, without rescoring.

    base, asked, truth: vectors, queries, and the numbers of each one's nearest, (n_queries, K). The fastest of ours and the
    fastest of faiss's are then timed in turns.
    """
    import faiss

    faiss.omp_set_num_threads(2)

    def recall(found: np.ndarray) -> float:
        return sum(len(set(a) & set(b)) for a, b in zip(found.tolist(), truth.tolist(), strict=True)) / truth.size

    best: dict[bool, tuple[float, Listed]] = {}
    for n in LISTS:
        for mine, made in (
            (True, _ours(base, asked, n, recall)),
            *((False, _theirs(base, asked, n, s.format(d=base.shape[1]), recall)) for s in LISTED),
        ):
            rate = len(asked) / median_seconds(made.search, 5)
            yield Row(f"{made.name}: queries a second", rate, "1/s", "recall@10", made.recall)
            if made.recall >= RECALL and rate > best.get(mine, (0.0, made))[0]:
                best[mine] = rate, made
    if False not in best:
        return
    if True not in best:
        yield Row(f"lists, klt-levels: queries a second at recall {RECALL}, which no number of lists reaches", 0.0, "×",
                  best[False][1].name, best[False][0], target=(">=", 2.0))  # fmt: skip
        return
    mine_s, theirs_s = ratio(best[True][1].search, best[False][1].search, 15, before=1)
    yield Row(f"{best[True][1].name}: queries a second over the best of faiss's that reaches recall {RECALL}", theirs_s / mine_s,
              "×", best[False][1].name, len(asked) / theirs_s, target=(">=", 2.0))  # fmt: skip


def _ours(base: np.ndarray, asked: np.ndarray, n: int, recall: Callable[[np.ndarray], float]) -> Listed:
    """klt-levels at the most bits that stay within `LISTED_BITS`, with a short list of twice what is asked for. Blocks that are
    filled up count, and the 16 bits a vector that short lists keep in memory."""
    most, bits = LISTED_BITS - 16 / base.shape[1], LISTED_BITS
    while True:
        index = Index(base.shape[1], recipe="klt-levels", bits=bits, lists=n, threads=2, coarse=COARSE)
        if index.train(base[::3]).add(base).bits_per_dim <= most:
            break
        bits *= 0.998 * most / index.bits_per_dim
    probe, reached = _reached(n, lambda p: recall(index.search(asked, K, probe=p, shortlist=2 * K)[1]))
    name = f"lists, klt-levels, {index.bits_per_dim + 16 / base.shape[1]:.2f} bits, coarse, shortlist {2 * K}, {probe} of {n}"
    return Listed(name, reached, lambda: index.search(asked, K, probe=probe, shortlist=2 * K)[1])


def _theirs(base: np.ndarray, asked: np.ndarray, n: int, spec: str, recall: Callable[[np.ndarray], float]) -> Listed:
    import faiss

    index = faiss.index_factory(base.shape[1], f"IVF{n},{spec}")
    index.train(base[::3])
    index.add(base)

    def at(p: int) -> np.ndarray:
        index.nprobe = p
        return index.search(asked, K)[1]  # type: ignore[no-any-return]

    probe, reached = _reached(n, lambda p: recall(at(p)))
    name = f"lists, faiss IVF{n},{spec}, {8 * index.code_size / base.shape[1]:.2f} bits, {probe} of {n}"
    return Listed(name, reached, lambda: at(probe))


def _reached(n: int, recall: Callable[[int], float]) -> tuple[int, float]:
    """(probe, recall) of the fewest of n lists, in steps of a 64th, that reach `RECALL`, or of all."""
    probes = sorted({max(1, n * s // 64) for s in range(1, 65)})
    probe = probes[min(bisect_left(probes, RECALL, key=recall), len(probes) - 1)]
    return probe, recall(probe)
