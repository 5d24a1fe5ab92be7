"""`laconic eval --kv`: caches of one model while it decodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.errors import BadConfig


def evaluate_caches(
    model: str, kv: str, files: list[Path], calibrate: list[Path], asked: dict[str, Any], n_items: int,
    contexts: str | None, json_: Path | None, html: Path | None, quiet: bool,
) -> None:  # fmt: skip
    """Judge caches (`--kv`) on texts and on long-context tasks; print tables, write files."""
    from ..bench.kv_caches import parse
    from ..bench.kv_judge import judge_caches
    from ..bench.kv_report import tables, write_html, write_json
    from ..sources.kv.evaluate import Settings
    from ..sources.weights.reading import read_text, text_files
    from .main import progress_bar
    from .tables import print_table

    specs, lengths = parse(kv), _lengths(contexts)
    prefill = 3 * asked["window"] // 4 if asked["prefill"] is None else asked["prefill"]
    settings = Settings(**{**asked, "prefill": prefill})
    texts = {str(f) if [g.stem for g in files].count(f.stem) > 1 else f.stem: read_text(f) for f in files}
    read = [file for path in calibrate for file in text_files(path)]
    with progress_bar(quiet) as tick:
        found = judge_caches(model, specs, texts, settings, calibration=read, n_items=n_items, contexts=lengths,
                             progress=tick)  # fmt: skip
    if json_ is not None:
        write_json(json_, found)
    if html is not None:
        write_html(html, found, Path(model).resolve().name)
    if not quiet:
        for table in tables(found):
            print_table(table)


def _lengths(contexts: str | None) -> list[int]:
    parts = [] if contexts is None else contexts.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise BadConfig(f"--contexts {contexts!r}: numbers of tokens with commas between, as 4096,16384, are right")
    return [int(part) for part in parts]
