"""An index of a set too large for memory: one training, shards that are coded one after the other or by many machines, one index.

Beside the file that is made lies a folder while it is made: the training, and a shard a batch. A build that was stopped goes
on from what is there. Shards are mapped, not read, when they are put together, so memory holds a sample, a batch, and 16
bytes a vector.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import BadInput
from .index import Index
from .lists import ITERATIONS
from .lists import SAMPLE as A_LIST
from .streams import Stream, stream

BATCH = 65536  # vectors of a shard
SAMPLE = 65536  # vectors that are learned from, or what lists ask for where that is more
_TRIED = 4096  # vectors that an estimate is made from
_FLOPS = 2e10  # of k-means, for the estimate

Progress = Callable[[int, int, str], None]


def build(
    source: Any,
    output: str | PathLike[str],
    *,
    metric: str = "l2",
    recipe: str = "auto",
    bits: float = 4.0,
    lists: int = 0,
    seed: int = 0,
    column: str | None = None,
    balanced: bool = False,
    coarse: int = 0,
    resume: bool = False,
    batch: int = BATCH,
    progress: Progress | None = None,
    **settings: Any,
) -> Index:
    """Learns from a sample and codes all vectors in one pass, into an index file; gives the index, mapped.

    source: a path to .npy or .parquet, an array, or an iterable of arrays (n, dim), of which the beginning is learned from.
    Ids are the places in the source. resume: go on with what a stopped build of the same source and settings left in `output`
    + ".parts". batch: vectors that are read and coded at a time. settings: of the recipe. The others are those of `Index` and
    `Index.train`.

    Raises BadInput for sources without vectors, and where the folder is of another build; what `Index` raises.
    """
    source_ = stream(source, column)
    target = Path(output)
    parts = target.with_name(f"{target.name}.parts")
    said = {"source": source_.said, "dim": source_.dim, "metric": metric, "recipe": recipe, "bits": bits, "lists": lists,
            "seed": seed, "balanced": balanced, "batch": batch, "settings": settings,
            **({"coarse": coarse} if coarse else {})}  # fmt: skip
    _begun(parts, said, resume)
    model = parts / "model.lacv"
    if not model.exists():
        index = Index(source_.dim, metric, recipe, bits, lists, seed, coarse=coarse, **settings)
        if not index.trained:
            some = np.asarray(source_.sample(max(SAMPLE, A_LIST * lists)))
            index.train(some, balanced=balanced, progress=progress, checkpoint=parts / "lists.npz")
        index.save(model)
    index = Index.load(model)
    made = sorted(parts.glob("shard-*.lacv"))
    at = sum(len(Index.load(p)) for p in made)
    for rows in source_.batches(batch, at):
        shard = index.empty().add(rows, np.arange(at, at + len(rows)))
        made.append(parts / f"shard-{len(made):06d}.lacv")
        shard.save(made[-1])
        at += len(rows)
        if progress is not None:
            progress(at, max(at, source_.n or 0), "vectors coded")
    index.merge(*(Index.load(p) for p in made)).save(target)
    shutil.rmtree(parts)
    return Index.load(target)


def _begun(parts: Path, said: dict[str, Any], resume: bool) -> None:
    file = parts / "build.json"
    text = json.dumps(said, sort_keys=True)
    if parts.exists() and resume and file.exists():
        if file.read_text() != text:
            raise BadInput(f"{parts} is of a build of another source or settings; remove it, or build without resume")
        return
    if parts.exists():
        if any(parts.iterdir()) and not file.exists():
            raise BadInput(f"{parts} is there and is no build's; remove it or name another output")
        shutil.rmtree(parts)
    parts.mkdir(parents=True)
    file.write_text(text)


def plan(
    source: Any,
    *,
    metric: str = "l2",
    recipe: str = "auto",
    bits: float = 4.0,
    lists: int = 0,
    seed: int = 0,
    column: str | None = None,
    coarse: int = 0,
    **settings: Any,
) -> dict[str, Any]:
    """What a build would take, measured on a few thousand vectors; nothing is written.

    Times are of this machine, as busy as it is; bytes are of the file and, while it is made, of its shards beside it.
    """
    source_: Stream = stream(source, column)
    some = np.asarray(source_.sample(max(_TRIED, source_.dim)))
    index = Index(source_.dim, metric, recipe, bits, 0, seed, coarse=coarse, **settings)
    start = time.perf_counter()
    if not index.trained:
        index.train(some)
    learned = time.perf_counter() - start
    index.add(some[:64])
    start = time.perf_counter()
    index.add(some[: _TRIED // 2])
    each = (time.perf_counter() - start) / max(1, len(some[: _TRIED // 2]))
    n = source_.n
    sample = max(SAMPLE, A_LIST * lists) if n is None else min(n, max(SAMPLE, A_LIST * lists))
    k_means = 2 * ITERATIONS * sample * lists * source_.dim / _FLOPS
    row = 4 * source_.dim
    out: dict[str, Any] = {
        "vectors": n,
        "dim": source_.dim,
        "recipe": index.recipe,
        "bits_per_dim": round(index.bits_per_dim, 3),
    }
    out["learning_s"] = round(learned * max(1.0, sample / len(some)) + k_means + each * (sample if lists else 0), 1)
    if n is not None:
        codes = int(n * source_.dim * index.bits_per_dim / 8) + index.model_bytes + lists * row
        out |= {"coding_s": round(n * each, 1), "index_bytes": codes, "disk_bytes": 2 * codes}
    out["memory_bytes"] = (
        3 * row * sample + 4 * row * min(BATCH, n or BATCH) + 16 * (n or 0) + index.model_bytes + lists * row
    )
    return out


# --- Over many machines -----------------------------------------------------------------------------------------------


def map_shards(
    dataset: Any,
    index: Index,
    folder: str | PathLike[str],
    *,
    column: str = "vector",
    ids: str = "id",
    batch: int = BATCH,
    **options: Any,
) -> Index:
    """Codes a Ray dataset, batch by batch wherever Ray puts them, and gives one index of all shards.

    dataset: a `ray.data.Dataset`, or what has its `map_batches` and `take_all`, whose rows have a vector in `column` and a
    whole number, each once, in `ids`. index: trained; it stays empty. folder: of shards, seen by all machines; what is there
    already of the same batches is coded no second time. options: of `map_batches`, such as `concurrency`.
    """
    where = Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    model = where / "model.lacv"
    index.empty().save(model)
    coded = dataset.map_batches(
        write_shard, batch_size=batch, batch_format="numpy",
        fn_kwargs={"model": str(model), "column": column, "ids": ids}, **options,
    )  # fmt: skip
    names = sorted({str(row["shard"]) for row in coded.take_all()})
    return Index.load(model).merge(*(Index.load(where / name) for name in names))


def write_shard(rows: dict[str, np.ndarray], model: str, column: str, ids: str) -> dict[str, np.ndarray]:
    """Codes one batch into a file beside the model, and says its name and how many vectors it has."""
    import xxhash

    vectors, names = rows[column], np.asarray(rows[ids])
    if vectors.dtype == object:
        vectors = np.stack(list(vectors))
    index = _opened(model, Path(model).stat().st_mtime_ns)
    said = xxhash.xxh3_128(index.model_hash().encode())
    for part in (names, np.ascontiguousarray(vectors)):
        said.update(part.tobytes())
    name = f"shard-{said.hexdigest()}.lacv"
    if not (Path(model).parent / name).exists():
        index.empty().add(vectors, names).save(Path(model).parent / name)
    return {"shard": np.array([name]), "n": np.array([len(names)])}


@lru_cache(maxsize=2)
def _opened(model: str, changed: int) -> Index:
    return Index.load(model)
