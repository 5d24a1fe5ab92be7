"""Calibration inputs: windows of tokens from the user's text, or whatever a module takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

PART = 1 << 15  # characters that are tokenized at once, to the end of a line
WINDOWS = 128
WINDOW = 512  # tokens
BATCH_TOKENS = 512  # products run no slower than with more, and what a block computes is small beside the interpreter
BATCH_ITEMS = 64  # of pictures and other inputs that are not tokens
ITEM_TOKENS = 64  # for how many tokens such an input counts


def read_text(path: str | PathLike[str]) -> str:
    """A text file in UTF-8. Raises BadInput for one that is empty, absent or in another encoding."""
    p = Path(path)
    if not p.is_file():
        raise BadInput(f"{p}: no such text file")
    data = p.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise BadInput(f"{p}: not UTF-8 text (byte {data[e.start]:#04x} at {e.start}); convert it first") from None
    if not text.strip():
        raise BadInput(f"{p}: an empty text")
    return text


def tokenize(folder: Path, texts: Iterable[str], vocabulary: int) -> Tensor:
    """All texts one after the other as token ids (n,), without special tokens."""
    import torch
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as e:
        raise BadInput(f"{folder}: no tokenizer: {str(e).splitlines()[0]}") from None
    ids = [
        i
        for t in texts
        for part in _parts(t)
        for i in tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
    ]
    if ids and max(ids) >= vocabulary:
        raise BadInput(f"the tokenizer gives id {max(ids)}, the model has {vocabulary} embeddings; they do not match")
    return torch.tensor(ids, dtype=torch.long)


def _parts(text: str) -> Iterator[str]:
    """A text cut before ends of lines: a tokenizer holds some hundred bytes for every character that it is given at once."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + PART)
        end = len(text) if end < 0 else end
        yield text[start:end]
        start = end


def begin_token(folder: Path) -> int | None:
    """The token that sequences begin with, if the tokenizer names one."""
    from transformers import AutoTokenizer

    bos = AutoTokenizer.from_pretrained(folder).bos_token_id
    return None if bos is None else int(bos)


def windows(ids: Tensor, bos: int | None, n: int, length: int) -> Tensor:
    """At most n windows (n, length) of a token sequence, evenly spread over it; each begins with `bos`.

    A sequence shorter than a window gives one short window. Raises BadInput below two tokens.
    """
    import torch

    if ids.numel() < 2:
        raise BadInput(f"a calibration text of {ids.numel()} tokens; 2 at least, some ten thousand are right")
    step = length - (bos is not None)
    if ids.numel() < step:
        rows = ids[None]
    else:
        whole = ids.numel() // step
        pick = torch.linspace(0, whole - 1, min(n, whole)).long()
        rows = ids[: whole * step].reshape(whole, step)[pick]
    if bos is None:
        return rows
    return torch.cat([torch.full((len(rows), 1), bos), rows], 1)


def batches(inputs: Any, tokens: int = BATCH_TOKENS) -> list[dict[str, Any]]:
    """Calibration inputs as equal batches of keyword arguments (the key "" is one positional argument).

    inputs: (n, length) ids, (n, …) any other tensor, a mapping of tensors, or a sequence of these as batches already.
    """
    import torch

    if isinstance(inputs, torch.Tensor):
        key = "" if inputs.is_floating_point() else "input_ids"
        ids = inputs.ndim == 2 and not inputs.is_floating_point()
        most = tokens // inputs.shape[1] if ids else tokens * BATCH_ITEMS // BATCH_TOKENS
        size = _divisor(len(inputs), max(1, most))
        return [{key: b} for b in inputs.split(size)]
    if isinstance(inputs, dict):
        return [inputs]
    if isinstance(inputs, Sequence) and not len(inputs):
        raise BadInput("an empty list of calibration inputs; leave it out to code without statistics")
    if isinstance(inputs, Sequence):
        return [b for x in inputs for b in ([x] if isinstance(x, dict) else batches(x, 1 << 40))]
    raise BadInput(
        f"calibration of type {type(inputs).__name__}; a tensor, a dict of tensors or a list of them is wanted"
    )


def n_tokens(batch: dict[str, Any]) -> int:
    """What a batch holds: tokens, or as many as its items count for."""
    import torch

    first = next((v for v in batch.values() if isinstance(v, torch.Tensor)), None)
    if first is None or first.is_floating_point():
        return ITEM_TOKENS * (1 if first is None else len(first))
    return first.numel()


def _divisor(n: int, most: int) -> int:
    return max(d for d in range(1, min(n, most) + 1) if n % d == 0)


def call(model: Any, batch: dict[str, Any]) -> Any:
    """Run a model on a batch of `batches`."""
    rest = {k: v for k, v in batch.items() if k}
    return model(*([batch[""]] if "" in batch else []), **rest)
