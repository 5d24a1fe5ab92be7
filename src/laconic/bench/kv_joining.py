"""What compressing costs beside the model itself: a 1 B Llama's shape, two of its layers, random weights in float32."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

from .rows import Measurement, Row

LAYERS, PROMPT, STEPS, TURNS, THREADS = 2, 1024, 128, 5, 2
TARGET = 0.15  # of the forward pass


def _model() -> tuple[Any, Any]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from .kv_process import SHAPE

    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    config = LlamaConfig(num_hidden_layers=LAYERS, max_position_embeddings=8192, **SHAPE)
    model = LlamaForCausalLM(config).eval()
    return model, torch.randint(0, config.vocab_size, (4, PROMPT + STEPS))


def _timed(model: Any, ids: Any, cache: Any) -> tuple[float, float]:
    """Seconds of the prompt, and of all single tokens behind it: as many as two pages of codes hold."""
    start = time.perf_counter()
    model(input_ids=ids[:, :PROMPT], past_key_values=cache, use_cache=True, logits_to_keep=1)
    prompt = time.perf_counter() - start
    start = time.perf_counter()
    for i in range(PROMPT, ids.shape[1]):
        model(input_ids=ids[:, i : i + 1], past_key_values=cache, use_cache=True)
    return prompt, time.perf_counter() - start


def joining() -> Iterator[Row]:
    """Prompt and decoding with compressed caches over the same with transformers' own, in turns.

    Decoding has the whole of it: appending, and attention to what was appended.
    """
    import torch

    from ..sources.kv.cache import recipe_of
    from ..sources.kv.decode import uncompressed
    from ..sources.kv.fit import fit
    from .kv_caches import maker, parse

    model, ids = _model()
    own = uncompressed(model.config)
    _, recipe = recipe_of("auto", 3)
    fitted = fit(model, recipe=replace(recipe, budgets="uniform"), calibration=ids[1:, :PROMPT])
    caches: dict[str, tuple[Callable[[], Any], bool]] = {
        "auto at 3 bits, fitted before": (partial(_cache, model, fitted), True),
        "auto at 3 bits, learning from the prompt": (maker(parse("auto:3")[0], model), False),
        "turboquant at 3 bits": (maker(parse("turboquant:3")[0], model), False),
    }
    with torch.inference_mode():
        for name, (make, wanted) in caches.items():
            found: list[tuple[tuple[float, float], tuple[float, float]]] = []
            for turn in range(TURNS + 1):
                pair = _timed(model, ids[:1], make()), _timed(model, ids[:1], own())
                found += [pair] if turn else []
            for i, what in enumerate((f"prompt of {PROMPT}", f"{STEPS} tokens behind it")):
                ours, theirs = (median(p[k][i] for p in found) for k in (0, 1))
                yield Row(f"{what}, {name}", 1e3 * ours, "ms", "uncompressed", 1e3 * theirs)
                yield Row(f"{what}, {name}: more than the forward pass", ours / theirs - 1, "share",
                          target=("<=", TARGET) if wanted else None)  # fmt: skip


def _cache(model: Any, fitted: Any) -> Any:
    from ..sources.kv.cache import cache

    return cache(model, recipe=fitted)


SUITE = (Measurement("appending and prompts", joining),)
