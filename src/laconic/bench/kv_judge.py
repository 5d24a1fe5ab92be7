"""All that is said of caches of a model: loss while it decodes, long-context tasks, speed and memory; peers beside ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..core.errors import BadConfig
from ..sources.kv.evaluate import CacheEvaluation, Settings, evaluate
from ..sources.kv.recall import Recall, recall
from ..sources.kv.recall_tasks import TASKS, make_tasks
from ..sources.weights.contestants import enter, tokenizer_of
from ..sources.weights.reading import Reader
from . import kv_peers
from .kv_caches import Spec, maker
from .kv_process import Job, Occupied, in_fresh_process

Progress = Callable[[int, int, str], None]
LAYERS, STEPS = 2, 32  # of the model that speed is measured on


@dataclass(frozen=True)
class Found:
    """recalled: a task each; used: (cache, context) → what it did to a process."""

    caches: CacheEvaluation
    recalled: tuple[Recall, ...]
    used: dict[tuple[str, int], Occupied]

    def as_json(self) -> dict[str, Any]:
        """Every number, and the settings."""
        used = [{"cache": name, "context": n, **asdict(o)} for (name, n), o in self.used.items()]
        return {**self.caches.as_json(), "recall": [r.as_json() for r in self.recalled], "process": used}


def judge_caches(
    folder: str,
    specs: Sequence[Spec],
    texts: Mapping[str, str],
    settings: Settings,
    *,
    calibration: Sequence[Path] = (),
    n_items: int = 20,
    contexts: Sequence[int] = (),
    progress: Progress | None = None,
) -> Found:
    """Judge caches of the model in a folder.

    Bits of ours are those of a coded value; windows and sinks come on top, and are in what is found. n_items: of each task that
    the model can do uncompressed, 0 for no tasks; contexts: lengths at which a process is measured.
    Raises BadConfig: the peers' environment has not been built; BadInput: no model, texts too short.
    """
    if any(s.kind == "quantized" for s in specs):
        kv_peers.interpreter(kv_peers.PEER)  # raises now, not after the work
    if contexts and (away := [s.name for s in specs if s.kind == "quantized"]):
        raise BadConfig(f"speed and memory of {', '.join(away)} cannot be measured here, only their loss")
    model, words = enter(folder).module, tokenizer_of(folder)
    ours = {
        s.name: maker(s, model, calibration=calibration, tokenizer=words)
        for s in specs
        if s.kind not in ("none", "quantized")
    }
    peers = [s.name for s in specs if s.kind == "quantized"]
    tasks = make_tasks(Reader.of(words), texts, tuple(TASKS), n_items, settings.window) if n_items else []
    found = evaluate(model, words, ours, texts, settings, progress)
    if peers:
        theirs = kv_peers.score(folder, texts, peers, replace(settings, noise=False))
        found = replace(found, caches=found.caches + tuple(theirs))
    recalled: list[Recall] = []
    if tasks:
        recalled = recall(model, ours, tasks, settings.batch, progress)
        if peers:
            beside = kv_peers.recalled(folder, texts, peers, list(TASKS), n_items, settings.window, settings.batch)
            recalled = [replace(a, caches=a.caches + b.caches) for a, b in zip(recalled, beside, strict=True)]
    used = {}
    for n in contexts:
        for name in ("none", *(s.name for s in specs if s.kind not in ("none", "quantized"))):
            if progress:
                progress(0, 1, f"{name}, {n:,} tokens")
            used[name, n] = in_fresh_process(Job(name, n, layers=LAYERS, steps=STEPS))
    return Found(found, tuple(recalled), used)
