"""What compressing costs beside the model itself: a 1 B Llama's shape, two of its layers, random weights in float32."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

from .rows import Measurement, Row

LAYERS, PROMPT, STEPS, THREADS = 2, 1024, 64, 2
TURNS, PROMPT_TURNS = 3, 11  # one pass over a prompt differs from the next by as much as the target
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


class _Clock:
    """Seconds that a cache's layers spend taking tokens in."""

    def __init__(self, cache: Any) -> None:
        self.seconds = 0.0
        for layer in cache.layers:
            for name in {"update", "settle"} & set(dir(layer)):
                setattr(layer, name, partial(self._timed, getattr(layer, name)))
        self._inside = False

    def _timed(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._inside:  # one calls the other
            return call(*args, **kwargs)
        self._inside, start = True, time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            self.seconds += time.perf_counter() - start
            self._inside = False


def _prompt(model: Any, ids: Any, cache: Any) -> float:
    """Seconds that the prompt takes."""
    start = time.perf_counter()
    model(input_ids=ids[:, :PROMPT], past_key_values=cache, use_cache=True, logits_to_keep=1)
    return time.perf_counter() - start


def _tokens(model: Any, ids: Any, cache: Any) -> tuple[float, float]:
    """Seconds of all single tokens behind the prompt (as many as a page of codes holds), and of taking those in."""
    clock = _Clock(cache)
    _prompt(model, ids, cache)
    start, clock.seconds = time.perf_counter(), 0.0
    for i in range(PROMPT, ids.shape[1]):
        model(input_ids=ids[:, i : i + 1], past_key_values=cache, use_cache=True)
    return time.perf_counter() - start, clock.seconds


def joining() -> Iterator[Row]:
    """Prompts and single tokens with compressed caches over the same with transformers' own, in turns."""
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
            for cache in (make, own):  # kernels are compiled, memory is touched
                _tokens(model, ids[:1], cache())
            pairs = [(_prompt(model, ids[:1], make()), _prompt(model, ids[:1], own())) for _ in range(PROMPT_TURNS)]
            prompt, own_prompt = (median(p[i] for p in pairs) for i in range(2))
            found = [(_tokens(model, ids[:1], make()), _tokens(model, ids[:1], own())) for _ in range(TURNS)]
            steps, taking = (median(p[0][i] for p in found) for i in range(2))
            own_steps, own_taking = (median(p[1][i] for p in found) for i in range(2))
            yield Row(f"prompt of {PROMPT}, {name}", 1e3 * prompt, "ms", "uncompressed", 1e3 * own_prompt)
            yield Row(f"prompt of {PROMPT}, {name}: more than the forward pass", prompt / own_prompt - 1, "share",
                      target=("<=", TARGET) if wanted else None)  # fmt: skip
            yield Row(f"{STEPS} tokens, {name}: appending, of the forward pass", taking / own_steps, "share", "uncompressed",
                      own_taking / own_steps, ("<=", TARGET) if wanted else None)  # fmt: skip
            yield Row(
                f"{STEPS} tokens, {name}: with attention, more than the forward pass", steps / own_steps - 1, "share"
            )


def _cache(model: Any, fitted: Any) -> Any:
    from ..sources.kv.cache import cache

    return cache(model, recipe=fitted)


SUITE = (Measurement("appending and prompts", joining),)
