"""`laconic eval`: compressed language models, or compressed caches of one, beside their original."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import BadConfig


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="OUT...",
            help="Model folders, .lac archives of one, or .gguf files (with accelerate installed); with --kv one folder.",
        ),
    ],
    text: Annotated[
        list[Path], typer.Option("--text", help="A UTF-8 text, or a folder of .txt; may be given several times.")
    ],
    reference: Annotated[str | None, typer.Option("--reference", help="The uncompressed model's folder.")] = None,
    kv: Annotated[
        str | None,
        typer.Option(
            "--kv",
            metavar="ID:BITS,…",
            help="Caches to judge token by token: recipes at bits a value, none, fp8, q4_0 and its like, quanto:4, hqq:4.",
        ),
    ] = None,
    calibrate: Annotated[
        list[Path] | None, typer.Option("--calibrate", help="--kv: text that recipes are fitted to; may be repeated.")
    ] = None,
    prefill: Annotated[
        int | None, typer.Option("--prefill", help="--kv: tokens of a window in one pass; three quarters otherwise.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", help="--kv: windows that are decoded together.")] = 8,
    recall: Annotated[int, typer.Option("--recall", help="--kv: items of each long-context task, 0 for none.")] = 20,
    contexts: Annotated[
        str | None,
        typer.Option("--contexts", metavar="N,…", help="--kv: also measure speed and memory at these lengths."),
    ] = None,
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
    """Judge compressed language models against their original: size, KL, bits per byte, flips, bias.

    With --kv, judge compressed caches of one model while it decodes.
    """
    for path in (json_, html):  # now, not after the work
        if path is not None and path.is_dir():
            raise BadConfig(f"{path} is a folder; name a file to write")
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    from ..sources.weights.reading import text_files

    files = [file for path in text for file in text_files(path)]
    if kv is not None:
        from .evaluate_kv import evaluate_caches

        if reference is not None or len(models) != 1:
            raise BadConfig(f"--kv judges caches of one model, which is its own reference; {len(models)} were named")
        asked = {"window": window, "prefill": prefill, "windows": windows, "batch": batch, "noise": noise}
        return evaluate_caches(models[0], kv, files, calibrate or [], asked, recall, contexts, json_, html, quiet)
    if reference is None:
        raise BadConfig("--reference is missing: the folder of the uncompressed model")
    from ..bench.eval_report import tables, write_html, write_json
    from ..sources.weights.judge import Settings
    from ..sources.weights.judge import evaluate as run
    from .main import progress_bar
    from .tables import print_table

    settings = Settings(window, windows, pairs_per_paradigm, items, noise, device)
    with progress_bar(quiet) as tick:
        found = run(reference, models, files, pairs=pairs, choices=choices, settings=settings, progress=tick)
    if json_ is not None:
        write_json(json_, found)
    if html is not None:
        write_html(html, found)
    if not quiet:
        for table in tables(found):
            print_table(table)
