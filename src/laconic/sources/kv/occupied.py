"""How many bytes a cache holds, whoever wrote it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...core.errors import BadInput


def true_bytes(cache: Any, float_bytes: int = 2) -> int:
    """Bytes of a cache: its own `nbytes`, else of every tensor that its layers hold, each storage once.

    Codes count as they lie in memory, padding included, a view with all that it keeps alive. Floats that a cache leaves
    uncompressed (windows, scales, zeros) count `float_bytes` each however wide they are: 2, as under a model in 16 bits,
    so that a cache evaluated in float32 is not charged for the evaluation.
    """
    own = getattr(cache, "nbytes", None)
    if own is not None:
        return int(own)
    seen: dict[int, int] = {}
    for layer in cache.layers:
        for tensor in _tensors(vars(layer)):
            storage = tensor.untyped_storage()
            wide = tensor.dtype.is_floating_point and tensor.itemsize > float_bytes
            seen[storage.data_ptr()] = storage.nbytes() * float_bytes // tensor.itemsize if wide else storage.nbytes()
    return sum(seen.values())


def n_values(cache: Any) -> int:
    """K and V values that an uncompressed cache of transformers holds: the whole history, a window where layers slide."""
    found = 0
    for layer in cache.layers:
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        found += sum(t.numel() for t in (keys, values) if t is not None)
    if not found:
        raise BadInput("the model put no key or value into its cache; caches of attention layers can be evaluated")
    return found


def _tensors(thing: Any) -> Iterator[Any]:
    """Plain tensors inside of attributes, tuples and dictionaries, and inside of tensors that wrap others."""
    import torch

    if isinstance(thing, Mapping):
        for part in thing.values():
            yield from _tensors(part)
    elif isinstance(thing, list | tuple):
        for part in thing:
            yield from _tensors(part)
    elif isinstance(thing, torch.Tensor):
        if hasattr(thing, "__tensor_flatten__"):
            names, _ = thing.__tensor_flatten__()
            for name in names:
                yield from _tensors(getattr(thing, name))
        else:
            yield thing
