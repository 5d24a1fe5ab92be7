"""The main job on bundled samples: a language model, an embedding matrix, a picture and a book become small files and back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np

from ..cli.tables import Table, loss, print_table, size
from ..sources.files import Report, compress, decompress, verify

MODEL = "english-llama-7m"


@dataclass(frozen=True)
class Job:
    """One line of the demo: a source, a recipe (None: as the command would pick) and a rate."""

    source: str
    recipe: str | None
    bits: float | None


JOBS = (
    Job(MODEL, None, 4.0),
    Job(MODEL, None, 3.0),
    Job(MODEL, None, 2.0),
    Job(MODEL, "lossless", None),
    Job("embeddings.npy", None, 4.0),
    Job("embeddings.npy", None, 2.0),
    Job("embeddings.npy", "turboquant", 4),
    Job("embeddings.npy", "turboquant", 2),
    Job("hills.png", None, 1.0),
    Job("hills.png", None, 0.5),
    Job("hills.png", None, 0.2),
    Job("genesis.txt", None, None),
)
QUICK = tuple(JOBS[i] for i in (2, 5, 9, 11))


@dataclass(frozen=True)
class Result:
    """What one job did."""

    job: Job
    report: Report
    restored: Path
    loss: str
    judged: str


def run(folder: Path, *, quick: bool = False, progress: Callable[[int, int, str], None] | None = None) -> list[Result]:
    """Do every job in `folder`, print the table, write `report.html`."""
    folder.mkdir(parents=True, exist_ok=True)
    with as_file(files("laconic") / "samples") as samples:
        _copy(samples, folder)
    jobs = QUICK if quick else JOBS
    results = []
    for i, job in enumerate(jobs):
        if progress:
            progress(i, len(jobs), f"{job.source} {job.recipe or ''} {job.bits or ''}")
        results.append(_do(job, folder))
    if progress:
        progress(len(jobs), len(jobs), "")
    print_table(_table(results))
    from .report import write_report

    path = write_report(folder, results)
    print(f"report: {path}")
    return results


def _copy(samples: Path, folder: Path) -> None:
    """The samples, and the model's own token embeddings as a matrix of float32 vectors."""
    from safetensors import safe_open

    shutil.copytree(samples / MODEL, folder / MODEL, dirs_exist_ok=True)
    for name in ("hills.png", "genesis.txt"):
        shutil.copy(samples / name, folder / name)
    with safe_open(folder / MODEL / "model.safetensors", framework="pt") as f:
        np.save(folder / "embeddings.npy", f.get_tensor("model.embed_tokens.weight").float().numpy())


def _do(job: Job, folder: Path) -> Result:
    stem = Path(job.source).stem
    tag = "-".join(str(p) for p in (stem, job.recipe, job.bits) if p is not None)
    packed = folder / f"{tag}.lac"
    report = compress(folder / job.source, packed, recipe=job.recipe, bits=job.bits, force=True)
    verify(packed)
    restored = folder / "restored" / (tag + Path(job.source).suffix)
    restored.parent.mkdir(exist_ok=True)
    if restored.is_dir():
        shutil.rmtree(restored)
    decompress(packed, restored, force=True)
    return Result(job, report, restored, _loss(report), _judge(job, folder, restored))


def _loss(report: Report) -> str:
    """The loss of the whole source: energy-weighted over what was coded with loss."""
    worst = [r for r in report.rows if r.error > 0]
    return loss(max(worst, key=lambda r: r.in_bytes)) if worst else "none"


def _judge(job: Job, folder: Path, restored: Path) -> str:
    """The loss in the terms of the source."""
    if job.source == MODEL:
        from ..sources.weights import judge
        from ..sources.weights.judge import available

        if not available():
            return "not judged: pip install 'laconic[hf]'"
        text = (folder / "genesis.txt").read_text()
        v = judge(folder / MODEL, restored, text, windows=8)
        return f"KL {v.kl:.4f} nats/token, {v.bits_per_byte:.3f} bits/byte (was {v.reference_bits_per_byte:.3f})"
    if job.source == "embeddings.npy":
        return f"recall@10 {recall(np.load(folder / job.source), np.load(restored)):.3f}"
    if job.source == "genesis.txt":
        same = (folder / job.source).read_bytes() == restored.read_bytes()
        return "same bytes" if same else "OTHER BYTES"
    return "8-bit pixels"


def recall(x: np.ndarray, y: np.ndarray, k: int = 10, n_queries: int = 400) -> float:
    """Share of the k nearest by cosine among originals that are among the k nearest among reconstructions."""
    unit = [a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, y)]
    queries = unit[0][:: max(1, len(x) // n_queries)]
    near = [np.argpartition(-queries @ a.T, k + 1, axis=1)[:, : k + 1] for a in unit]
    return float(np.mean([len(np.intersect1d(a, b)) / (k + 1) for a, b in zip(*near, strict=True)]))


def _table(results: list[Result]) -> Table:
    rows: list[Any] = []
    for r in results:
        seconds = [sum(getattr(row, f) for row in r.report.rows) for f in ("encode_seconds", "decode_seconds")]
        n = sum(row.n_elements for row in r.report.rows)
        chosen = max(r.report.rows, key=lambda row: row.in_bytes).recipe
        rows.append(
            (r.job.source, chosen, size(r.report.in_bytes), size(r.report.out_bytes), f"{8 * r.report.out_bytes / n:.3f}",
             r.loss, r.judged, f"{seconds[0]:.1f}", f"{seconds[1]:.1f}")
        )  # fmt: skip
    columns = ("what", "recipe", ">from", ">to", ">bits/value", ">loss", "judged", ">enc s", ">dec s")
    return Table("laconic demo", columns, rows)
