"""Sentence embeddings to measure an index on: MiniLM on the sentences of the texts in the data folder, made once and kept.

The array lies in the user's cache folder under a name that says what it was made of: a hash of the model's weights and of all
sentences. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ..core.errors import BadInput
from .weights_text import SOURCES, data_folder, read_source

N_SENTENCES = 50_000
_PIECE = 2000  # sentences between two writes


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/laconic`, or `~/.cache/laconic`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "laconic"


def texts(n: int = N_SENTENCES) -> list[str]:
    """n sentences of 30 to 300 characters, no two alike, spread over all texts, in an order that mixes them."""
    parts = [read_source(data_folder(), s) for s in SOURCES]
    parts += [p.read_text(encoding="utf-8") for p in sorted((data_folder() / "english-eval").glob("*.txt"))]
    pieces = re.split(r"(?<=[.!?])[\"”’']?\s+(?=[\"“‘']?[A-Z])", "\n\n".join(parts))
    clean = dict.fromkeys(s for s in (" ".join(p.split()) for p in pieces) if 30 <= len(s) <= 300)
    found = sorted(clean, key=lambda s: xxhash.xxh64_intdigest(s.encode()))
    if len(found) < n:
        raise BadInput(f"{len(found):,} sentences of 30 to 300 characters in the data folder; {n:,} are wanted")
    return found[:n]


def embeddings(n: int = N_SENTENCES) -> np.ndarray:
    """(n, 384) float32 unit vectors of `texts(n)`: from the cache, or made at some 240 sentences a second on one core."""
    return _embedded(texts(n))


def keywords(n: int, n_words: int = 4) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Queries, the longest words of n sentences as they come; their unit vectors (n, 384), and those of the sentences."""
    asked = []
    for sentence in texts()[:n]:
        words = sentence.split()
        longest = sorted(range(len(words)), key=lambda i: (-len(words[i]), i))[:n_words]
        asked.append(" ".join(words[i] for i in sorted(longest)))
    return asked, _embedded(asked), embeddings()[:n]


def _embedded(sentences: list[str]) -> np.ndarray:
    from .weights_vision import minilm_folder

    n = len(sentences)
    said = xxhash.xxh3_128((minilm_folder() / "model.safetensors").read_bytes())
    said.update("\0".join(sentences).encode())
    path = cache_folder() / f"minilm-{said.hexdigest()}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _make(path, sentences)
    found = np.load(path, allow_pickle=False)
    if found.shape[0] != n or found.dtype != np.float32:
        raise BadInput(f"{path} holds {found.dtype}{found.shape}; remove it to have {n:,} vectors made anew")
    return found


def _make(path: Path, sentences: list[str]) -> None:
    """Embeds them in pieces, each a file beside; the whole takes the pieces' place."""
    from .weights_vision import embed

    encoder, tokenizer = minilm()
    pieces = []
    for start in range(0, len(sentences), _PIECE):
        print(f"… sentences {start:,} of {len(sentences):,}", file=sys.stderr, flush=True)
        piece = path.with_suffix(f".{start}.part.npy")
        pieces.append(piece)
        if not piece.exists():
            _write(piece, embed(encoder, tokenizer, sentences[start : start + _PIECE]).numpy())
    _write(path, np.concatenate([np.load(p, allow_pickle=False) for p in pieces]))
    for piece in pieces:
        piece.unlink()


def minilm() -> tuple[Any, Any]:
    """(encoder, tokenizer), see `weights_vision.Encoder`."""
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    from .weights_vision import Encoder, minilm_folder

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    model = AutoModel.from_pretrained(minilm_folder(), add_pooling_layer=False, dtype=torch.float32)
    return Encoder(model).eval(), tokenizer


def _write(path: Path, array: np.ndarray) -> None:
    beside = path.with_suffix(f".{os.getpid()}.writing")
    with beside.open("wb") as f:
        np.save(f, array)
    os.replace(beside, path)
