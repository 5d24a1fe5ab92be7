"""transformers' own quantized caches, judged by our evaluation in an environment that has hqq and optimum-quanto.

Called as `python -m laconic.bench.peers.scripts.kv_caches JOB` with laconic's source on PYTHONPATH; unlike the other scripts it
imports laconic, since what is judged is a cache at work and not a folder. JOB is a file of JSON: `model` (a folder), `texts`
(name → text), `caches` (label → arguments of QuantizedCache), and `settings` (of the evaluation) or `recall` (of the tasks).
The last line that it prints is the result as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def quantized_cache(config: Any, setting: Mapping[str, Any]) -> Any:
    """The stock cache, with two changes that alter no number.

    Its history is decoded when it changes instead of at every step; and windows that are decoded side by side are quantized
    one by one, since hqq and quanto flatten a tensor before they group it, which would group values of several windows.
    """
    from transformers import QuantizedCache

    cache = QuantizedCache(config=config, **setting)
    if setting["backend"] != "fp8":  # that one appends, with a scale for the whole tensor
        for layer in cache.layers:
            layer._quantize, layer._dequantize = _apart(layer._quantize, layer._dequantize)
    return cache


def _apart(quantize: Callable[..., Any], dequantize: Callable[[Any], Any]) -> tuple[Callable[..., Any], ...]:
    """The two functions window by window; the last two histories (keys and values) are kept as decoded."""
    import torch

    kept: list[tuple[Any, Any]] = []

    def store(states: Any, axis: int) -> list[Any]:
        return [quantize(window, axis=axis) for window in states.split(1)]

    def read(stored: list[Any]) -> Any:
        for known, values in kept:
            if known is stored:
                return values
        kept.append((stored, torch.cat([dequantize(part) for part in stored])))
        del kept[:-2]
        return kept[-1][1]

    return store, read


def without_compiler() -> None:
    """Let quanto unpack codes in Python, as its own fallback does, instead of in C++ that it compiles at the first call."""
    from importlib import import_module
    from types import SimpleNamespace

    import torch

    def unpack(packed: Any, bits: int) -> Any:
        return torch.cat([(packed >> at) & ((1 << bits) - 1) for at in range(0, 8, bits)])

    import_module("optimum.quanto.library.extensions.cpp").ext._lib = SimpleNamespace(unpack=unpack)


def main() -> None:
    import torch

    from laconic.bench.tinystories import open_model
    from laconic.sources.kv.evaluate import Settings, evaluate
    from laconic.sources.kv.recall import recall
    from laconic.sources.kv.recall_tasks import make_tasks
    from laconic.sources.weights.reading import Reader

    job = json.loads(Path(sys.argv[1]).read_text())
    if any(setting["backend"] == "quanto" for setting in job["caches"].values()):
        without_compiler()
    torch.set_num_threads(job["threads"])
    model, words = open_model(Path(job["model"]))
    caches = {
        label: lambda setting=setting: quantized_cache(model.config, setting)
        for label, setting in job["caches"].items()
    }
    if "recall" in job:
        tasks = make_tasks(Reader.of(words), job["texts"], **job["recall"])
        found: Any = {"recall": [r.as_json() for r in recall(model, caches, tasks, job["batch"])]}
    else:
        found = evaluate(model, words, caches, job["texts"], Settings(**job["settings"])).as_json()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
