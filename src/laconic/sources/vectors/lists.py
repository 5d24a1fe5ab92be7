"""Centres of inverted lists: k-means with progress, a file to go on from, and, where asked for, lists of equal size.

Balance is a price, found by an auction: a vector goes where ‖x − c‖² / 2 + p_c is least, and where a list has more than its
share of vectors, p_c rises until those leave that lose least by it. The prices stay, so that vectors that are added later go by
them too. Searches read the lists that are nearest, whatever their price.

Source: Bertsekas 1988, "The auction algorithm", Annals of Operations Research 14. Differs: all prices rise at once.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

ITERATIONS, SAMPLE = 20, 128  # steps of k-means at most, and vectors a list that it learns from
_ROUNDS = 40  # of prices
_MOST = 1.1  # of its share that a list may have
_CHUNK = 4096  # vectors that are compared with all lists at once


class Lists(NamedTuple):
    """centroids: float32 (n, dim). prices: float32 (n,), or None."""

    centroids: np.ndarray
    prices: np.ndarray | None


def learn(
    rows: np.ndarray,
    n: int,
    seed: int,
    balanced: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
    checkpoint: Path | None = None,
) -> Lists:
    """n centres of (n_rows, dim) float32. progress: called with steps done, steps in all, and a word. checkpoint: a file that is
    written after every step and removed at the end; one that is there, of the same vectors and settings, is gone on from."""
    from ...kernels.kmeans import kmeans, step

    total = ITERATIONS + (_ROUNDS if balanced else 0)
    key = _key(rows, n, seed, balanced)
    table, prices, at = _resumed(checkpoint, key) or (
        kmeans(rows, n, iterations=0, seed=seed),
        np.zeros(n, np.float32),
        0,
    )
    before: np.ndarray | None = None
    while at < total:
        if progress is not None:
            progress(at, total, f"lists, step {at + 1} of {total}")
        if at < ITERATIONS:
            table, mass, index = step(rows, table, prices)
            done = before is not None and bool(mass.all()) and np.array_equal(index, before)
            before, at = index, ITERATIONS if done else at + 1
        else:
            dearer = _dearer(rows, table, prices)
            at = total if dearer is None else at + 1
            prices = prices if dearer is None else dearer
        if checkpoint is not None:
            _write(checkpoint, table, prices, at, key)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    if progress is not None:
        progress(total, total, "lists")
    return Lists(table, prices if balanced else None)


def _dearer(rows: np.ndarray, table: np.ndarray, prices: np.ndarray) -> np.ndarray | None:
    """Prices at which every list that has too many vectors would lose just those, the ones that lose least; None if none has."""
    from ...kernels.distance import half_norms
    from ...kernels.product import product

    n, costs = len(table), half_norms(table) + prices
    best, margin = np.empty(len(rows), np.int64), np.empty(len(rows), np.float32)
    for at in range(0, len(rows), _CHUNK):
        scores = costs - product(np.ascontiguousarray(rows[at : at + _CHUNK]), table, transposed=True)
        two = np.argpartition(scores, 1, axis=1)[:, :2]
        values = np.take_along_axis(scores, two, 1)
        best[at : at + _CHUNK] = np.where(values[:, 0] <= values[:, 1], two[:, 0], two[:, 1])
        margin[at : at + _CHUNK] = np.abs(values[:, 1] - values[:, 0])
    most = int(np.ceil(_MOST * len(rows) / n))
    mass = np.bincount(best, minlength=n)
    if n < 2 or not (mass > most).any():
        return None
    out = prices.astype(np.float64)
    for c in np.flatnonzero(mass > most):
        out[c] += np.partition(margin[best == c], mass[c] - most - 1)[mass[c] - most - 1] * (1 + 1e-6)
    return out.astype(np.float32)


def _key(rows: np.ndarray, n: int, seed: int, balanced: bool) -> str:
    import xxhash

    said = xxhash.xxh3_128(f"{rows.shape} {n} {seed} {balanced} {ITERATIONS}".encode())
    said.update(np.ascontiguousarray(rows))
    return said.hexdigest()


def _resumed(path: Path | None, key: str) -> tuple[np.ndarray, np.ndarray, int] | None:
    """What a file of `_write` holds; None where there is none, or it is damaged or of another training."""
    if path is None or not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as held:
            return (held["table"], held["prices"], int(held["at"])) if str(held["key"]) == key else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write(path: Path, table: np.ndarray, prices: np.ndarray, at: int, key: str) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with beside.open("wb") as f:
        np.savez(f, table=table, prices=prices, at=at, key=key)
    os.replace(beside, path)
