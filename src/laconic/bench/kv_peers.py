"""transformers' quantized caches beside ours: hqq and quanto in an environment of their own (`make peers`), our evaluation.

hqq and optimum-quanto are kept out of ours: once installed, every `import transformers` imports hqq, and quanto would compile
C++ at its first call.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

from ..core.errors import CodecError
from ..sources.kv.evaluate import Bucket, CacheScore, Settings
from ..sources.kv.recall import Recall, RecallScore
from ..sources.weights.estimates import Estimate
from ..sources.weights.judge import TextScore
from .peers import Peer, interpreter

# Keys by channel, values by token: the best of all axes at 2 and at 4 bits, and as KIVI has it. A residual of 32 is the least
# that leaves whole groups of tokens; 128 is the default. Groups of 64 reach down to 2.7 true bits.
_AXES = {"quanto": (-1, 0), "hqq": (0, 1)}
_VARIANTS = {"": (32, 32), "+128": (32, 128), "g64": (64, 32)}
QUANTIZED: dict[str, dict[str, Any]] = {
    f"{backend}:{bits}{tail}": {
        "backend": backend,
        "nbits": bits,
        "axis_key": keys,
        "axis_value": values,
        "q_group_size": group,
        "residual_length": residual,
    }
    for backend, (keys, values) in _AXES.items()
    for bits in (2, 4)
    for tail, (group, residual) in _VARIANTS.items()
}
PEER = Peer("transformers' QuantizedCache", "kv_caches", "kv", QUANTIZED)


def score(
    model: str | PathLike[str], texts: Mapping[str, str], names: Sequence[str], settings: Settings
) -> list[CacheScore]:
    """`evaluate` of peers by name (`QUANTIZED`). model: a folder.

    Raises
    ------
    BadConfig: the environment has not been built.
    CodecError: the script failed.
    """
    said = _run(model, texts, names, {"settings": asdict(settings)})
    return [_score(s) for s in said["caches"]]


def recalled(
    model: str | PathLike[str], texts: Mapping[str, str], names: Sequence[str], tasks: Sequence[str], n_items: int,
    length: int, batch: int,
) -> list[Recall]:  # fmt: skip
    """`recall` of peers by name. Raises as `score`."""
    job = {"recall": {"names": list(tasks), "n_items": n_items, "length": length}, "batch": batch}
    return [_recall(r) for r in _run(model, texts, names, job)["recall"]]


def _run(
    model: str | PathLike[str], texts: Mapping[str, str], names: Sequence[str], job: Mapping[str, Any]
) -> dict[str, Any]:
    import torch

    python = interpreter(PEER)
    source = Path(__file__).parents[2]
    whole = {**job, "model": str(Path(model).resolve()), "caches": {n: QUANTIZED[n] for n in names},
             "texts": dict(texts), "threads": torch.get_num_threads()}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "job.json"
        told.write_text(json.dumps(whole))
        done = subprocess.run(
            [python, "-m", "laconic.bench.peers.scripts.kv_caches", told],
            capture_output=True, text=True, errors="replace", cwd=folder, env={**os.environ, "PYTHONPATH": str(source)},
        )  # fmt: skip
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise CodecError(f"{PEER.name} ended with {done.returncode}: {' | '.join(done.stderr.splitlines()[-3:])}")
    return json.loads(lines[-1])


def _estimate(said: Mapping[str, Any]) -> Estimate:
    return Estimate(**said)


def _score(said: Mapping[str, Any]) -> CacheScore:
    text = {k: _estimate(v) if isinstance(v, dict) else v for k, v in said["text"].items()}
    positions = tuple(Bucket(b["first"], b["last"], _estimate(b["kl"])) for b in said["positions"])
    return CacheScore(**{**said, "text": TextScore(**text), "positions": positions})


def _recall(said: Mapping[str, Any]) -> Recall:
    def row(r: Mapping[str, Any]) -> RecallScore:
        return RecallScore(**{k: _estimate(v) if isinstance(v, dict) else v for k, v in r.items()})

    ends = {k: _estimate(said[k]) for k in ("without_context", "gain")}
    return Recall(**{**said, **ends, "reference": row(said["reference"]), "caches": tuple(map(row, said["caches"]))})
