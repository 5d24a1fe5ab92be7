"""JPQ beside PQ and OPQ: four words of a sentence look for the sentence, as MiniLM embeds both.

Codes are learned on all sentences; points and queries are tuned on three quarters of the pairs, and judged on the others,
among all sentences. Exact search of the embeddings as they are is what compression took away from.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..sources.vectors.index import Index
from .rows import Row
from .vectors_sentences import keywords, minilm

N_PAIRS, N_TUNED, N_ENCODED = 12_000, 9_000, 3_000
BITS = (0.5, 1.0)
_K = 10


def _judged(found: np.ndarray, wanted: np.ndarray) -> tuple[float, float]:
    """(share of queries that find theirs among ten, mean reciprocal rank of the ten)."""
    hits = found == wanted[:, None]
    return float(hits.any(1).mean()), float((hits / np.arange(1, _K + 1)).sum(1).mean())


def jpq() -> Iterator[Row]:
    """Held-out queries that find their sentence among ten, before and after tuning."""
    asked, queries, base = keywords(N_PAIRS)
    learn, held = np.arange(N_TUNED), np.arange(N_TUNED, N_PAIRS)
    exact = np.argsort(-(queries[held] @ base.T), 1)[:, :_K]
    top, top_rank = _judged(exact, held)
    yield Row(f"keywords, exact, {len(base):,} × 384 float32: found among 10", top, "share")
    yield Row("keywords, exact: MRR@10", top_rank, "")
    for bits in BITS:
        found = {}
        for recipe in ("pq", "opq", "jpq", "jpq, MiniLM"):
            index = Index(base.shape[1], "cosine", recipe.split(",")[0], bits).train(base).add(base)
            start, q = time.perf_counter(), queries[held]
            if recipe == "jpq":
                index.tune(queries[learn], learn)
            elif recipe == "jpq, MiniLM":
                q = _with_encoder(index, asked, held)
            seconds = time.perf_counter() - start
            found[recipe], rank = _judged(index.search(q, _K)[1], held)
            name = f"keywords, {recipe}, {index.bits_per_dim:.2f} bits"
            yield Row(f"{name}: found among 10", found[recipe], "share", "exact", top)
            yield Row(f"{name}: MRR@10", rank, "", "exact", top_rank)
            if recipe.startswith("jpq"):
                yield Row(f"{name}: tuning", seconds, "s")
        lost = top - found["opq"]
        for recipe in ("jpq", "jpq, MiniLM"):
            name = f"keywords, {recipe}, {bits} bits: share of what OPQ lost that tuning wins back"
            target = (">=", 0.5) if recipe == "jpq" else None
            yield Row(name, (found[recipe] - found["opq"]) / lost, "share", target=target)


def _with_encoder(index: Index, asked: list[str], held: np.ndarray) -> np.ndarray:
    """Tunes the points and MiniLM itself on some of the pairs, in one epoch; the queries held out as it then embeds them."""
    import torch

    from .weights_vision import embed

    encoder, tokenizer = minilm()

    class Texts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, some: list[str]) -> Any:
            batch = tokenizer(some, padding=True, return_tensors="pt")
            return self.encoder(batch["input_ids"], batch["attention_mask"])

    def said(done: int, total: int, what: str) -> None:
        if done % 10 == 0:
            print(f"… {what}: {done} of {total} steps", file=sys.stderr, flush=True)

    index.tune(asked[:N_ENCODED], np.arange(N_ENCODED), encoder=Texts(), epochs=1, progress=said)
    return embed(encoder, tokenizer, [asked[int(i)] for i in held]).numpy()
