"""Tasks that need the whole context: each item is a sequence whose last tokens are told, or hinted at, far before them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ...core.errors import BadInput, unknown
from ..weights.reading import Reader


@dataclass(frozen=True)
class Task:
    """Items of one length. ids: (n_items, n_tokens) int64, a prefix first; scored: the same shape, tokens to be predicted.

    prefill: tokens that are read in one pass, before all that are scored; context: how many tokens behind the prefix are
    taken away to see what the model says without them.
    """

    name: str
    ids: np.ndarray
    scored: np.ndarray
    prefill: int
    context: int

    def without_context(self) -> Task:
        """The same items, cut."""
        kept = np.r_[0, self.context + 1 : self.ids.shape[1]]
        prefill = max(1, self.prefill - self.context)
        return Task(self.name, self.ids[:, kept], self.scored[:, kept], prefill, 0)


def make_tasks(
    reader: Reader, texts: Mapping[str, str], names: tuple[str, ...], n_items: int, length: int, seed: int = 0
) -> list[Task]:
    """The named tasks of `TASKS`, each of `n_items` items of about `length` tokens, the texts taking turns.

    A task that the texts hold no item of is left out, and one that they hold fewer of has fewer.
    Raises BadInput: a text shorter than two items; BadConfig: no such task.
    """
    tokens = {
        name: np.array(ids, np.int64) for name, ids in zip(texts, reader.encode(list(texts.values())), strict=True)
    }
    for name, ids in tokens.items():
        if len(ids) < 2 * length:
            raise BadInput(f"{name} has {len(ids):,} tokens; items of {length:,} are cut from {2 * length:,} or more")
    for name in names:
        if name not in TASKS:
            raise unknown("task", name, list(TASKS))
    found = []
    for name in names:
        rng = np.random.default_rng(seed)
        sources = [list(tokens.values())[i % len(tokens)] for i in range(n_items)]
        found.append(TASKS[name](name, reader.prefix, sources, length, rng))
    return [task for task in found if len(task.ids)]


def _continuation(name: str, prefix: int, sources: list[np.ndarray], length: int, rng: np.random.Generator) -> Task:
    """Many passages one behind the other, then one of them again: its first half is shown, then its tokens are scored."""
    size = max(4, length // 9)
    cue, n = size // 2, max(1, 2 * size // 7)
    k = (length - 1 - cue - n) // size
    rows = []
    for source in sources:
        passages = [_cut(source, size, rng) for _ in range(k)]
        again = passages[rng.integers(k)][: cue + n]
        rows.append(np.concatenate([[prefix], *passages, again]))
    return _at_the_end(name, rows, n, k * size)


def _repeats(name: str, prefix: int, sources: list[np.ndarray], length: int, rng: np.random.Generator) -> Task:
    """One short passage again and again, with a new one between; of its last time the second half is scored."""
    size = max(2, length // 34)
    k = (length - 1 - size) // (2 * size)
    rows = []
    for source in sources:
        passage = _cut(source, size, rng)
        others = _cut(source, k * size, rng).reshape(k, size)
        rows.append(np.concatenate([[prefix], *(part for other in others for part in (passage, other)), passage]))
    return _at_the_end(name, rows, max(1, size // 2), 2 * k * size)


def _needle(name: str, prefix: int, sources: list[np.ndarray], length: int, rng: np.random.Generator) -> Task:
    """A string of random tokens within a text; at the end its first half, and its second is scored."""
    size = max(4, length // 64)
    words = np.unique(np.concatenate(sources))
    rows = []
    for source in sources:
        text, string = _cut(source, length - 1 - 2 * size, rng), rng.choice(words, size)
        at = rng.integers(1, len(text))
        rows.append(np.concatenate([[prefix], text[:at], string, text[at:], string]))
    return _at_the_end(name, rows, size // 2, length - 1 - size)


def _names(name: str, prefix: int, sources: list[np.ndarray], length: int, rng: np.random.Generator) -> Task:
    """Text as it is; scored are tokens that follow their predecessor as they did far before, but not of late.

    Of such pairs most are names and terms that a text comes back to.
    """
    prefill, near = 3 * length // 4, max(2, length // 8)
    ids = np.stack([np.concatenate([[prefix], _cut(source, length - 1, rng)]) for source in sources])
    scored = np.zeros(ids.shape, bool)
    for row, marks in zip(ids, scored, strict=True):
        last: dict[tuple[int, int], int] = {}
        for at in range(2, length):
            pair = (int(row[at - 1]), int(row[at]))
            marks[at] = at > prefill and pair in last and last[pair] <= prefill - near
            last[pair] = at
    told = scored.any(1)
    return Task(name, ids[told], scored[told], prefill, prefill - near)


TASKS: dict[str, Callable[[str, int, list[np.ndarray], int, np.random.Generator], Task]] = {
    "continuation": _continuation,
    "repeats": _repeats,
    "needle": _needle,
    "names": _names,
}


def _cut(source: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    at = int(rng.integers(len(source) - size))
    return source[at : at + size]


def _at_the_end(name: str, rows: list[np.ndarray], n_scored: int, context: int) -> Task:
    ids = np.stack(rows)
    scored = np.zeros(ids.shape, bool)
    scored[:, -n_scored:] = True
    return Task(name, ids, scored, context + 1, context)
