"""Which setting of an index to take: recall against true bits and time on the user's own vectors, beside faiss."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import BadConfig, BadInput, CodecError
from ..sources.vectors.index import Index
from ..sources.vectors.ranking import as_rows, costs, directions
from .rows import machine, median_seconds

BITS = (1.0, 2.0, 4.0)
RECIPES = ("klt-trellis", "ar-scalar", "klt-levels", "saq")
_MOST_QUERIES, _MOST_LEARNED = 1000, 65536
_CHUNK = 64  # queries that are compared with everything at once


@dataclass(frozen=True)
class Choice:
    """One setting. bits: true bits a coordinate. recall: of the k nearest. query_us, learn_s, add_us: a query, all, a vector."""

    who: str
    setting: str
    bits: float
    recall: float
    query_us: float
    learn_s: float
    add_us: float


def run(
    x: np.ndarray,
    metric: str,
    k: int,
    recall: float,
    bits: tuple[float, ...],
    json_path: Path | None,
    plot: Path | None,
) -> None:
    """Measures, prints the table and what to take for the recall. x: (n, dim); the last part of it are the queries.

    Raises BadInput where there are fewer than 1,000 vectors.
    """
    from ..cli.tables import Table, print_table

    if not 0 < recall <= 1 or k < 1:
        raise BadConfig(f"recall {recall} of {k} neighbours; above 0 up to 1, of 1 or more, are right")
    if len(x) < 1000:
        raise BadInput(f"{len(x)} vectors; a recall is measured on 1,000 or more")
    n_queries = min(_MOST_QUERIES, len(x) // 10)
    rows = as_rows(x, x.shape[1], "vectors")
    if metric == "cosine":
        rows = directions(rows)
    base, queries = rows[:-n_queries], rows[-n_queries:]
    near = [
        np.argsort(costs(queries[i : i + _CHUNK], base, metric), 1, kind="stable")[:, :k]
        for i in range(0, n_queries, _CHUNK)
    ]
    truth, found = np.concatenate(near), []
    for choice in _choices(base, queries, truth, metric, bits):
        found.append(choice)
        if json_path is not None:
            best = recommended(found, recall)
            said = {"rows": [asdict(c) for c in found], "recommended": best and asdict(best), "machine": machine()}
            json_path.write_text(json.dumps(said, indent=1))
    columns = ("code", ">bits", f">recall@{k}", ">µs/query", ">learning, s", ">adding, µs")
    shown = [
        (f"{c.who} {c.setting}", f"{c.bits:.2f}", f"{c.recall:.3f}", f"{c.query_us:.0f}", f"{c.learn_s:.2f}", f"{c.add_us:.1f}")
        for c in sorted(found, key=lambda c: (c.bits, -c.recall))
    ]  # fmt: skip
    print_table(Table(f"{len(base):,} vectors, {n_queries} queries, {metric}", columns, shown))
    best = recommended(found, recall)
    if best is None:
        most = max(found, key=lambda c: c.recall)
        print(
            f"No setting reaches recall {recall:g}; {most.setting} comes to {most.recall:.3f}. Rescore with originals."
        )
    else:
        print(f"For recall {recall:g}: {best.setting}, {best.bits:.2f} bits a coordinate, recall {best.recall:.3f}.")
    if plot is not None:
        _draw(found, k, plot)


def recommended(found: list[Choice], recall: float) -> Choice | None:
    """Ours of the fewest bits that reaches the recall, the faster of those within a twentieth; None where none does."""
    able = [c for c in found if c.who == "laconic" and c.recall >= recall]
    if not able:
        return None
    least = min(c.bits for c in able)
    return min((c for c in able if c.bits <= 1.05 * least), key=lambda c: c.query_us)


def _choices(
    base: np.ndarray, queries: np.ndarray, truth: np.ndarray, metric: str, bits: tuple[float, ...]
) -> Iterator[Choice]:
    learn = base[:: max(1, len(base) // _MOST_LEARNED)]
    for b in bits:
        for recipe in RECIPES:
            try:
                index = Index(base.shape[1], metric, recipe, b)
                learn_s = median_seconds(lambda: index.train(learn), 1)  # noqa: B023
            except CodecError:  # a rate that it does not have, or too few vectors for it
                continue
            yield _choice("laconic", f"recipe={recipe!r}, bits={b:g}", index, index, learn_s, base, queries, truth)
        yield from _peers(base, learn, queries, truth, metric, b)


def _peers(
    base: np.ndarray, learn: np.ndarray, queries: np.ndarray, truth: np.ndarray, metric: str, bits: float
) -> Iterator[Choice]:
    try:
        import faiss
    except ImportError:
        return
    faiss.omp_set_num_threads(1)
    d = base.shape[1]
    slices = next((m for m in range(int(bits * d / 8), 0, -1) if d % m == 0), 0)
    specs = [f"PQ{slices}x8np"] if slices and len(learn) >= 256 else []
    specs += [f"RR{d},RaBitQ{b}" for b in range(2, 9) if b == int(bits) - 1 or (bits == b == 8)]
    specs += ["SQ4"] if bits == 4 else ["SQ8"] if bits == 8 else []
    for spec in specs:
        kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
        try:
            index = faiss.index_factory(d, spec, kind)
        except RuntimeError:
            continue
        learn_s = median_seconds(lambda: index.train(learn), 1)  # noqa: B023
        yield _choice("faiss", spec, index, None, learn_s, base, queries, truth)


def _choice(
    who: str, setting: str, index: Any, ours: Index | None, learn_s: float, base: np.ndarray, queries: np.ndarray,
    truth: np.ndarray,
) -> Choice:  # fmt: skip
    start = time.perf_counter()
    index.add(base)
    add_s = time.perf_counter() - start
    k = truth.shape[1]
    found = index.search(queries, k)[1]
    hits = sum(len(set(a) & set(b)) for a, b in zip(found.tolist(), truth.tolist(), strict=True))
    seconds = median_seconds(lambda: index.search(queries, k), 3)
    bits = ours.bits_per_dim if ours is not None else 8 * index.sa_code_size() / base.shape[1]
    return Choice(who, setting, bits, hits / truth.size, 1e6 * seconds / len(queries), learn_s, 1e6 * add_s / len(base))


def _draw(found: list[Choice], k: int, path: Path) -> None:
    """Recall against true bits, and against time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axis, x, label in zip(
        figure.subplots(1, 2), ("bits", "query_us"), ("bits a coordinate", "µs a query"), strict=True
    ):
        names = {(c.who, c.setting.split(",")[0] if c.who == "laconic" else c.who) for c in found}
        for who, name in sorted(names):
            mine = [c for c in found if c.who == who and (who == "faiss" or c.setting.startswith(f"{name},"))]
            mine.sort(key=lambda c: getattr(c, x))
            style = "o-" if who == "laconic" else "x"
            axis.plot([getattr(c, x) for c in mine], [c.recall for c in mine], style, label=name)
        axis.set_xlabel(label)
        axis.set_ylabel(f"recall@{k}")
        axis.set_xscale("log" if x == "query_us" else "linear")
    axis.legend(fontsize=8)
    figure.savefig(path)
