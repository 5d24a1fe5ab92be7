"""The index beside faiss: recall and error at equal true bits, stored bytes at equal error, speed of scan and of encoding.

faiss runs in the same process on one thread. True bits are what is kept of a vector, with norms and factors: `sa_code_size` of a
faiss code, `Index.bits_per_dim` of ours. What is learned is shared by all vectors and stands in a row of its own.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..allocate.waterfill import reverse_water_filling
from ..sources.vectors.index import Index
from ..sources.vectors.ranking import costs, directions
from .rows import Measurement, Row
from .vectors_sentences import embeddings
from .vectors_speed import FLAT, clustered, queries, scan
from .vectors_tuned import jpq
from .weights_text import data_folder

K = 10
# Codes of faiss by the bits they are held to. "np": no polysemous training, which reorders the points of a PQ for a filter by
# Hamming distance that nothing here uses; codes are as good without, and learned in a twentieth of the time.
SIFT_PEERS = {
    1: ("PQ16x8np", "OPQ16,PQ16x8np", "RQ16x8"),
    2: ("PQ32x8np", "OPQ32,PQ32x8np", "RR128,EDEN1", "RR128,RaBitQ1"),
    4: ("PQ64x8np", "SQ4", "RR128,EDEN3", "RR128,RaBitQ2"),
}
GLOVE_PEERS = {
    1: ("PQ5x8np", "OPQ5,PQ5x8np", "RQ6x8"),
    2: ("PQ10x8np", "OPQ10,PQ10x8np", "RQ12x8"),
    4: ("PQ25x8np", "OPQ25,PQ25x8np", "RQ25x8", "SQ4", "RR50,EDEN2"),
}
SENTENCE_PEERS = {
    1: ("PQ48x8np", "OPQ48,PQ48x8np", "RQ48x8"),
    2: ("PQ96x8np", "OPQ96,PQ96x8np", "RR384,RaBitQ", "RR384,EDEN1"),
    4: ("PQ192x8np", "SQ4", "RR384,RaBitQ2", "RR384,EDEN3"),
}
OURS = ("klt-trellis", "ar-scalar", "klt-levels", "saq", "rvq", "opq", "ar-net")
STORED = ("klt-trellis", "ar-scalar", "ar-net")
# Slow to learn, many minutes where there are more coordinates than this; they are not tried there.
SLOW, LONG = ("rvq", "opq", "ar-net"), 128
RESCORED = 100  # candidates


class Data(NamedTuple):
    """learn, base, queries: float32. truth: (n_queries, 10), nearest by squared distance. itself: query i is base i, left out."""

    name: str
    learn: np.ndarray
    base: np.ndarray
    queries: np.ndarray
    truth: np.ndarray
    itself: bool


class Point(NamedTuple):
    """Of one code on one set. error: mean 1 − cos². mse: squared error over the variance. shared: bytes of what was learned."""

    name: str
    bits: float
    recall: float
    error: float
    mse: float
    train_s: float
    encode_s: float
    shared: int


def sift(n_queries: int = 1000) -> Data:
    """SIFT descriptors of photographs, 12,000 × 128."""
    folder = data_folder() / "ann-vectors"
    learn, base, queries = (
        np.load(folder / f"sift_photos_{n}.npy").astype(np.float32) for n in ("learn", "base", "query")
    )
    return Data("SIFT", learn, base, queries[:n_queries], _nearest(queries[:n_queries], base, False), False)


def glove() -> Data:
    """GloVe words as directions: codes are learned on every second word and tried on the others, each of them a query too."""
    x = directions(np.load(data_folder() / "ann-vectors" / "glove6b50d_top2445_vectors.npy").astype(np.float32))
    return Data("GloVe", x[1::2], x[::2], x[::2], _nearest(x[::2], x[::2], True), True)


def sentences() -> Data:
    """MiniLM embeddings of sentences, 384 dimensions: all but the last thousand, which are the queries; learned on 16,384."""
    x = embeddings()
    base, queries = x[:-1000], x[-1000:]
    return Data("sentences", base[:16384], base, queries, _nearest(queries, base, False), False)


def _nearest(queries: np.ndarray, base: np.ndarray, itself: bool) -> np.ndarray:
    cost = costs(queries, base, "l2")
    if itself:
        np.fill_diagonal(cost, np.inf)
    return np.argsort(cost, 1, kind="stable")[:, :K]


def _recall(data: Data, found: np.ndarray) -> float:
    hits = 0
    for i, (row, truth) in enumerate(zip(found, data.truth, strict=True)):
        row = row[row != i] if data.itself else row
        hits += len(set(row[:K].tolist()) & set(truth.tolist()))
    return hits / data.truth.size


def _errors(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    dots = (x * y).sum(1, dtype=np.float64) ** 2
    powers = np.square(x, dtype=np.float64).sum(1) * np.maximum(np.square(y, dtype=np.float64).sum(1), 1e-30)
    centred = np.square(x - x.mean(0), dtype=np.float64).sum()
    return float((1 - dots / powers).mean()), float(np.square(x - y, dtype=np.float64).sum() / centred)


def ours(data: Data, recipe: str, bits: float, **settings: Any) -> Point:
    """An index of ours, learned and filled."""
    index = Index(data.base.shape[1], "l2", recipe, bits, **settings)
    start = time.perf_counter()
    index.train(data.learn)
    trained = time.perf_counter()
    index.add(data.base)
    added = time.perf_counter()
    found = index.search(data.queries, K + data.itself)[1]
    errors = _errors(data.base, index.reconstruct(index.ids()))
    seconds = trained - start, added - trained
    return Point(recipe, index.bits_per_dim, _recall(data, found), *errors, *seconds, index.model_bytes)


def peer(data: Data, spec: str) -> Point | None:
    """A code of faiss, by its factory string; None where this faiss does not have it."""
    import faiss

    faiss.omp_set_num_threads(1)
    d = data.base.shape[1]
    try:
        code = faiss.index_factory(d, spec)
    except RuntimeError:
        return None
    start = time.perf_counter()
    code.train(data.learn)
    trained = time.perf_counter()
    code.add(data.base)
    added = time.perf_counter()
    found = code.search(data.queries, K + data.itself)[1]
    errors = _errors(data.base, code.sa_decode(code.sa_encode(data.base)))
    bits = 8 * code.sa_code_size() / d
    shared = len(faiss.serialize_index(code)) - code.ntotal * code.sa_code_size()
    return Point(spec, bits, _recall(data, found), *errors, trained - start, added - trained, shared)


def _beside(data: Data, peers: dict[int, tuple[str, ...]]) -> Iterator[Row]:
    left_out = SLOW if data.base.shape[1] > LONG else ()
    for bits, specs in peers.items():
        points = [p for p in (peer(data, s) for s in specs) if p is not None and p.bits <= bits + 1e-9]
        for p in points:
            yield Row(f"{data.name}, faiss {p.name}, {p.bits:.2f} bits: recall@10", p.recall, "share")
            yield Row(f"{data.name}, faiss {p.name}, {p.bits:.2f} bits: 1 − cos²", p.error, "")
            yield Row(f"{data.name}, faiss {p.name}: training", p.train_s, "s")
        if not points:
            continue
        best, least = max(points, key=lambda p: p.recall), min(points, key=lambda p: p.error)
        tried = [_within(data, r, bits) for r in OURS if r not in left_out]
        found = [p for p in tried if p is not None]
        for point in found:
            name = f"{data.name}, {point.name}, {point.bits:.3f} bits"
            yield Row(f"{name}: recall@10", point.recall, "share", f"faiss {best.name}", best.recall)
            yield Row(f"{name}: 1 − cos²", point.error, "", f"faiss {least.name}", least.error)
            yield Row(f"{name}: training", point.train_s, "s", f"faiss {best.name}", best.train_s)
            yield Row(f"{name}: encoding", 1e6 * point.encode_s / len(data.base), "µs/vector")
            yield Row(
                f"{name}: learned, shared by all vectors", point.shared, "bytes", f"faiss {best.name}", best.shared
            )
        for theirs in (p for p in points if p.name.startswith("OPQ")):
            for mine in (p for p in found if p.name == "klt-levels"):
                yield Row(f"{data.name}, {bits} bits: training of klt-levels over that of faiss {theirs.name}",
                          mine.train_s / theirs.train_s, "×", target=("<=", 0.1))  # fmt: skip
        top = max(found, key=lambda p: p.recall)
        low = min(found, key=lambda p: p.error)
        yield Row(f"{data.name}, {bits} bits: recall@10 less the best of faiss's ({top.name}, {best.name})",
                  top.recall - best.recall, "share", target=(">=", 0.0001))  # fmt: skip
        yield Row(f"{data.name}, {bits} bits: 1 − cos² over the best of faiss's ({low.name}, {least.name})",
                  low.error / least.error, "×", target=("<=", 0.5) if bits > 1 else None)  # fmt: skip
        every = {recipe: stored_at(data, recipe, least.mse) for recipe in STORED if recipe not in left_out}
        for recipe, (stored, _) in every.items():
            yield Row(f"{data.name}: stored bits of {recipe} at the squared error of faiss {least.name}, {least.bits:.2f} bits",
                      stored, "bits", f"faiss {least.name}", least.bits)  # fmt: skip
        yield Row(f"{data.name}: bits that no code of Gaussian vectors of this covariance goes below at that squared error",
                  gaussian_bits(data.base, least.mse), "bits", f"faiss {least.name}", least.bits)  # fmt: skip
        stored = min(bits for bits, _ in every.values()) / least.bits
        yield Row(
            f"{data.name}: stored codes over faiss {least.name}'s at equal squared error",
            stored,
            "×",
            target=("<=", 0.7),
        )
        mine = min(b * data.base.size / 8 + more for b, more in every.values())
        theirs = least.bits * data.base.size / 8 + least.shared
        yield Row(f"{data.name}: stored bytes over faiss {least.name}'s at equal squared error, with what was learned",
                  mine / theirs, "×", f"faiss {least.name}, kB", theirs / 1e3, ("<=", 0.7))  # fmt: skip


def gaussian_bits(x: np.ndarray, mse: float) -> float:
    """Bits a coordinate by reverse water-filling: the rate–distortion function of a Gaussian source of x's covariance.

    mse: squared error over the variance. Cover & Thomas, theorem 10.3.3.
    """
    spread = np.maximum(np.linalg.eigvalsh(np.cov(x.T, dtype=np.float64)), 0)
    low, high = 0.0, 16.0 * len(spread)
    for _ in range(40):
        bits = (low + high) / 2
        low, high = (bits, high) if reverse_water_filling(spread, bits)[1].sum() > mse * spread.sum() else (low, bits)
    return bits / len(spread)


def _within(data: Data, recipe: str, bits: float) -> Point | None:
    """A recipe at the highest rate found that keeps to `bits` true bits on the base; None where it has none."""
    from ..core.errors import CodecError

    asked = float(bits)
    for _ in range(4):
        try:
            point = ours(data, recipe, asked)
        except CodecError:
            return None
        if point.bits <= bits:
            return point
        asked -= max(1.05 * (point.bits - bits), 0.002)
    return None


def stored_at(data: Data, recipe: str, mse: float) -> tuple[float, int]:
    """Bits a coordinate of a recipe where its squared error is that asked for, between two rates (log error is straight), and
    bytes of what was learned."""
    low, high = 0.5, 4.5
    points = []
    for _ in range(4):
        bits = (low + high) / 2 if len(points) < 2 else _meets(points, mse)
        point = ours(data, recipe, min(max(bits, 0.3), 7.0))
        points.append(point)
        if abs(np.log2(point.mse / mse)) < 0.02:
            break
        low, high = (low, bits) if point.mse < mse else (bits, high)
    return _meets(points, mse), points[-1].shared


def _meets(points: list[Point], mse: float) -> float:
    near = sorted(points, key=lambda p: abs(np.log(p.mse / mse)))[:2]
    if len(near) == 1 or near[0].mse == near[1].mse:
        return near[0].bits
    a, b = near
    slope = (b.bits - a.bits) / (np.log(b.mse) - np.log(a.mse))
    return float(a.bits + slope * (np.log(mse) - np.log(a.mse)))


def rescoring() -> Iterator[Row]:
    """Recall of sentences where the nearest by their codes are compared once more as originals."""
    data = sentences()
    with tempfile.TemporaryDirectory() as folder:
        for bits in (0.5, 0.75, 1.0, 1.25):
            index = Index(data.base.shape[1], recipe="klt-levels", bits=bits, originals=Path(folder) / f"{bits}.f32")
            index.train(data.learn).add(data.base)
            for n in (0, RESCORED):
                recall = _recall(data, index.search(data.queries, K, rescore=n)[1])
                target = (">=", 0.99) if n and bits == 1.25 else None
                yield Row(f"sentences, klt-levels, {index.bits_per_dim:.3f} bits, {n} rescored: recall@10", recall, "share",
                          target=target)  # fmt: skip


def _set(make: Callable[[], Data], peers: dict[int, tuple[str, ...]], bits: int) -> Callable[[], Iterator[Row]]:
    return lambda: _beside(make(), {bits: peers[bits]})


def encoding() -> Iterator[Row]:
    """Vectors coded a second at 4 bits, one thread, and training, against faiss's RaBitQ."""
    import faiss

    faiss.omp_set_num_threads(1)
    x = clustered(20_000)
    theirs = faiss.index_factory(128, "RR128,RaBitQ4")
    theirs.train(x)
    start = time.perf_counter()
    theirs.sa_encode(x)
    seconds = time.perf_counter() - start
    for recipe in ("klt-levels", "saq"):
        index = Index(128, recipe=recipe, bits=4.0).train(x).add(x[:2000])
        start = time.perf_counter()
        index.encode(x)
        mine = time.perf_counter() - start
        yield Row(
            f"encoding at 4 bits, {recipe}",
            1e6 * mine / len(x),
            "µs/vector",
            "faiss RR128,RaBitQ4",
            1e6 * seconds / len(x),
        )
        target = (">=", 5.0) if recipe == "klt-levels" else None
        yield Row(f"encoding at 4 bits, {recipe}: faiss's time over ours", seconds / mine, "×", target=target)


def _listed() -> Iterator[Row]:
    data = sentences()
    yield from queries(data.base, data.queries, data.truth)


SUITE = (
    *(Measurement(f"glove {bits}", _set(glove, GLOVE_PEERS, bits)) for bits in GLOVE_PEERS),
    *(Measurement(f"sift {bits}", _set(sift, SIFT_PEERS, bits)) for bits in SIFT_PEERS),
    *(Measurement(f"sentences {bits}", _set(sentences, SENTENCE_PEERS, bits)) for bits in SENTENCE_PEERS),
    Measurement("rescoring of sentences", rescoring),
    Measurement("jpq", jpq),
    Measurement("encoding", encoding),
    *(Measurement(f"scan {case[0]} {case[1]:g}", partial(scan, *case)) for case in FLAT),
    Measurement("queries", _listed),
)
