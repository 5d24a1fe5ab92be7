"""`laconic eval`: compressed language models beside their original."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import BadConfig


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="OUT...", help="Model folders, .lac archives of one, or .gguf files (with accelerate installed)."
        ),
    ],
    reference: Annotated[str, typer.Option("--reference", help="The uncompressed model's folder.")],
    text: Annotated[
        list[Path], typer.Option("--text", help="A UTF-8 text, or a folder of .txt; may be given several times.")
    ],
    pairs: Annotated[Path | None, typer.Option("--pairs", help="Minimal pairs: BLiMP's zip or .jsonl files.")] = None,
    choices: Annotated[
        Path | None, typer.Option("--choices", help="Questions with a bias axis: BBQ's .jsonl files.")
    ] = None,
    window: Annotated[int, typer.Option("--window", help="Tokens of a window, BOS included.")] = 512,
    windows: Annotated[int, typer.Option("--windows", help="Windows of all texts together, at most.")] = 64,
    pairs_per_paradigm: Annotated[int, typer.Option("--pairs-per-paradigm", help="The first of each.")] = 40,
    items: Annotated[int, typer.Option("--items", help="Questions in all, drawn alike everywhere.")] = 600,
    noise: Annotated[
        bool, typer.Option("--noise/--no-noise", help="Also judge the reference itself in bfloat16.")
    ] = True,
    device: Annotated[str, typer.Option("--device", help="Where models run: cpu, cuda, …")] = "cpu",
    json_: Annotated[Path | None, typer.Option("--json", help="Write every number to this file.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a report with a plot to this file.")] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but errors.")] = False,
) -> None:
    """Judge compressed language models against their original: size, KL, bits per byte, flips, bias."""
    from ..bench.eval_report import tables, write_html, write_json
    from ..sources.weights.judge import Settings
    from ..sources.weights.judge import evaluate as run
    from ..sources.weights.reading import text_files
    from .main import _progress
    from .tables import print_table

    for path in (json_, html):  # now, not after the work
        if path is not None and path.is_dir():
            raise BadConfig(f"{path} is a folder; name a file to write")
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    settings = Settings(window, windows, pairs_per_paradigm, items, noise, device)
    files = [file for path in text for file in text_files(path)]
    with _progress(quiet) as tick:
        found = run(reference, models, files, pairs=pairs, choices=choices, settings=settings, progress=tick)
    if json_ is not None:
        write_json(json_, found)
    if html is not None:
        write_html(html, found)
    if not quiet:
        for table in tables(found):
            print_table(table)
