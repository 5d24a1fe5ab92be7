"""The scan of an index beside faiss: nanoseconds a vector, and queries a second with inverted lists at a recall.

1 M × 128 clustered vectors; lists hold the sentences' embeddings, for in such round clusters no code of four bits reaches the
recall with a quarter of the lists, ours or faiss's. faiss's codes of the flat scans are made of every twentieth vector and
stand there twenty times: its scans take the same time whatever the codes are, and some of its encoders take minutes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

from ..sources.vectors.index import Index
from .rows import Row, median_seconds, ratio

N, DIM, K = 1_000_000, 128, 10
N_FLAT = 32  # queries
N_LISTS = 128  # of sentences
PROBES = (8, 12, 16, 20, 24, 32, 40, 48, 56, 64, 80, 96, 128)
RECALL = 0.9
# recipe, bits, settings, vectors, faiss's codes, nanoseconds to reach. Our PQ's encoder takes 30 µs a vector, so there are fewer.
FLAT = (
    ("klt-levels", 4.0, {}, N, ("SQ4", "RaBitQ4"), 4.0),
    ("klt-levels", 1.0, {}, N, ("RaBitQ", "RaBitQfs"), 1.2),
    ("pq", 2.0, {"index_bits": 4}, N // 10, ("PQ64x4fs",), None),
)
LISTED_BITS = 3.65  # with blocks filled up to 64 vectors in every list not more than four true bits
LISTED = ("SQ4", "RaBitQ3", "PQ192x8")  # of up to four


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


def queries(base: np.ndarray, asked: np.ndarray, truth: np.ndarray) -> Iterator[Row]:
    """Inverted lists on two threads: queries a second at the least probe that reaches the recall, without rescoring.

    base, asked, truth: vectors, queries, and the numbers of each one's nearest, (n_queries, K).
    """
    import faiss

    faiss.omp_set_num_threads(2)
    dim, some = base.shape[1], base[::3]

    def recall(found: np.ndarray) -> float:
        return sum(len(set(a) & set(b)) for a, b in zip(found.tolist(), truth.tolist(), strict=True)) / truth.size

    index = Index(dim, recipe="klt-levels", bits=LISTED_BITS, lists=N_LISTS, threads=2)
    start = time.perf_counter()
    index.train(some)
    learned = time.perf_counter()
    index.add(base)
    probe, reached = _reached(lambda p: recall(index.search(asked, K, probe=p)[1]))
    name = f"lists, klt-levels, {index.bits_per_dim:.2f} bits, {probe} of {N_LISTS}"
    yield Row(f"{name}: training", learned - start, "s")
    yield Row(f"{name}: recall@10", reached, "share")
    rates = []
    for spec in LISTED:
        peer = faiss.index_factory(dim, f"IVF{N_LISTS},{spec}")
        peer.train(some)
        peer.add(base)

        def at(p: int, peer=peer) -> np.ndarray:  # type: ignore[no-untyped-def]
            peer.nprobe = p
            return peer.search(asked, K)[1]

        theirs, found = _reached(lambda p, at=at: recall(at(p)))  # type: ignore[misc]
        label = f"faiss IVF{N_LISTS},{spec}, {8 * peer.code_size / dim:.2f} bits, {theirs} lists"
        yield Row(f"{name}: recall@10", reached, "share", label, found)
        mine_s, theirs_s = ratio(lambda: index.search(asked, K, probe=probe), lambda p=theirs, at=at: at(p), 5)  # type: ignore[misc]
        yield Row(f"{name}: queries a second", len(asked) / mine_s, "1/s", label, len(asked) / theirs_s)
        if found >= RECALL or reached < RECALL:
            rates.append(theirs_s / mine_s)
    if rates:
        yield Row(f"{name}: queries a second over the best of faiss's that reaches recall {RECALL}", min(rates), "×",
                  target=(">=", 2.0))  # fmt: skip


def _reached(recall: Callable[[int], float]) -> tuple[int, float]:
    """(probe, recall) of the fewest lists that reach `RECALL`, or of the most."""
    found = [(p, recall(p)) for p in PROBES[:1]]
    for p in PROBES[1:]:
        if found[-1][1] >= RECALL:
            break
        found.append((p, recall(p)))
    return found[-1]
