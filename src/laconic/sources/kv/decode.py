"""A model run token by token through a cache, as it is when it writes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.errors import BadInput
from .occupied import n_values, true_bytes

if TYPE_CHECKING:
    import torch

MakeCache = Callable[[], Any]


@dataclass(frozen=True)
class Steps:
    """What came of decoding a batch. logits: (n_windows, n_steps, vocabulary) float32, behind each token that was fed.

    n_bytes: (n_steps,) what the cache held behind each step; n_values: (n_steps,) keys and values in it, where they were counted.
    """

    logits: torch.Tensor
    n_bytes: np.ndarray
    n_values: np.ndarray | None


def decode(
    model: Any, cache: Any, ids: torch.Tensor, prefill: int, name: str = "the cache", count_values: bool = False
) -> Steps:
    """Prefill a fresh cache in one forward pass, then feed the other tokens one by one.

    The logits of the prefill are not among the result: a cache may answer the first call with what it was given, so that
    they say nothing of what it stored. count_values: of an uncompressed cache.

    Shapes: ids (n_windows, n_tokens) int64, 1 ≤ prefill < n_tokens.
    Raises BadInput: logits that are not finite.
    """
    import torch

    logits, n_bytes, values = [], [], []
    with torch.inference_mode():
        for step in _forward(model, cache, ids, prefill):
            logits.append(step.float())
            n_bytes.append(true_bytes(cache))
            if count_values:
                values.append(n_values(cache))
        stacked = torch.stack(logits, 1)
        finite = stacked.isfinite().all(-1).all(0)
        if not finite.all():
            bad = int(finite.logical_not().nonzero()[0])
            raise BadInput(f"{name}: logits that are not finite in decode step {bad} behind the prefill")
    return Steps(stacked, np.array(n_bytes, np.int64), np.array(values, np.int64) if count_values else None)


def uncompressed(config: Any) -> MakeCache:
    """What makes transformers' own cache for models of a configuration."""
    from transformers import DynamicCache

    return lambda: DynamicCache(config=config)


def _forward(model: Any, cache: Any, ids: torch.Tensor, prefill: int) -> Iterator[torch.Tensor]:
    """Logits (n_windows, vocabulary) behind every token from `prefill` on."""
    ids = ids.to(model.device)
    takes = inspect.signature(model.forward).parameters
    last = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
    model(input_ids=ids[:, :prefill], past_key_values=cache, use_cache=True, **last)
    for at in range(prefill, ids.shape[1]):
        yield model(input_ids=ids[:, at : at + 1], past_key_values=cache, use_cache=True).logits[:, -1]
