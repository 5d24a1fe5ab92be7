"""Texts as the tokens that a causal language model is judged on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import BadConfig, BadInput


@dataclass(frozen=True)
class Window:
    """ids: (1 + n_predicted,) int64, the first of them the prefix; n_bytes: UTF-8 bytes of what is predicted."""

    ids: np.ndarray
    n_bytes: int


@dataclass(frozen=True)
class Reader:
    """A tokenizer, and the token that every sequence begins with."""

    tokenizer: Any
    prefix: int

    @staticmethod
    def of(tokenizer: Any) -> Reader:
        """The prefix is BOS, or EOS where a tokenizer has no BOS (what such models saw between documents)."""
        for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
            if token is not None:
                return Reader(tokenizer, int(token))
        raise BadInput("the tokenizer has neither a BOS nor an EOS token; a sequence must begin with one of them")

    def encode(self, strings: Sequence[str]) -> list[list[int]]:
        """Token ids of each string, without special tokens."""
        return self.tokenizer(list(strings), add_special_tokens=False, verbose=False)["input_ids"]

    def windows(self, text: str, length: int, name: str = "text", *, skip: int = 0) -> list[Window]:
        """Cut a text into windows of `length` tokens, prefix included, side by side.

        A shorter text is one shorter window; what is left behind the last whole window of a longer text is not used.
        skip: of the predicted tokens of a window, the first whose bytes are not counted.
        Raises BadInput for a text without a token.
        """
        if length < 2:
            raise BadConfig(f"a window of {length} tokens; the prefix and one that is predicted make 2")
        if not 0 <= skip < length - 1:
            raise BadConfig(f"{skip} of {length - 1} predicted tokens cannot be skipped; give 0 to {length - 2}")
        offsets = {"return_offsets_mapping": True} if self.tokenizer.is_fast else {}
        encoded = self.tokenizer(text, add_special_tokens=False, verbose=False, **offsets)
        ids = np.array(encoded["input_ids"], np.int64)
        if not len(ids):
            raise BadInput(f"{name} is empty; give a text of one token or more")
        step = min(length - 1, len(ids))
        if skip >= step:
            raise BadInput(f"{name} has {step} tokens; give more than the {skip} that are not counted")
        starts = range(0, len(ids) - step + 1, step)
        return [
            Window(np.concatenate([[self.prefix], ids[s : s + step]]), n)
            for s, n in zip(starts, self._bytes(text, encoded, starts, step, skip), strict=True)
        ]

    def _bytes(self, text: str, encoded: Any, starts: range, step: int, skip: int) -> list[int]:
        """UTF-8 bytes of each window; without offsets (a tokenizer in Python) those of the decoded tokens."""
        if not self.tokenizer.is_fast:
            return [len(self.tokenizer.decode(encoded["input_ids"][s + skip : s + step]).encode()) for s in starts]
        spans = encoded["offset_mapping"]
        ends = [spans[s][0] for s in starts[1:]] + [spans[starts[-1] + step - 1][1]]
        # White space that no token covers belongs to the window before it.
        begins = [spans[s + skip - 1][1] for s in starts] if skip else [0, *ends[:-1]]
        return [len(text[a:b].encode()) for a, b in zip(begins, ends, strict=True)]


def read_text(path: Path) -> str:
    """A UTF-8 text, a byte order mark dropped. Raises BadInput that names the offset of what is not UTF-8."""
    data = path.read_bytes()
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as e:
        guess = "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "another encoding"
        raise BadInput(
            f"{path} is not UTF-8: byte 0x{data[e.start]:02x} at offset {e.start:,} (it may be {guess}); convert it first"
        ) from None


def text_files(path: Path) -> list[Path]:
    """The file itself, or every .txt of a folder by name."""
    if not path.is_dir():
        return [path]
    found = sorted(p for p in path.iterdir() if p.suffix == ".txt")
    if not found:
        raise BadInput(f"no .txt file in {path}; name a text file")
    return found


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` items, evenly over all of them."""
    n = min(most, len(items))
    return [items[i * len(items) // n] for i in range(n)]
