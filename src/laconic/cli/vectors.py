"""`laconic vectors`: build, search and look at an index, and measure which one to take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import BadInput

app = typer.Typer(help="Indexes of embedding vectors: build, search, info, bench.", no_args_is_help=True)

Array = Annotated[Path, typer.Argument(metavar="X.npy", help="(n, dim) array of numbers.")]
Stored = Annotated[Path, typer.Argument(metavar="INDEX", help="A file that `vectors build` made.")]


@app.command()
def build(
    source: Annotated[
        Path, typer.Argument(metavar="X.npy|X.parquet", help="(n, dim) numbers, or a column of vectors.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The index to write.")],
    metric: Annotated[str, typer.Option("--metric", help="l2, ip or cosine.")] = "l2",
    recipe: Annotated[
        str, typer.Option("--recipe", help="A recipe for vectors, or auto: measured on a sample.")
    ] = "auto",
    bits: Annotated[float, typer.Option("--bits", help="Bits a coordinate.")] = 4.0,
    lists: Annotated[int, typer.Option("--lists", help="Inverted lists, 0 for none.")] = 0,
    balanced: Annotated[bool, typer.Option("--balanced", help="Lists of about equal size.")] = False,
    coarse: Annotated[
        int, typer.Option("--coarse", help="Bits of a coordinate that only a search's short list is compared by.")
    ] = 0,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    column: Annotated[str | None, typer.Option("--column", help="Of a Parquet file; the only one by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a build that was stopped.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what memory, time and disk it would take; write nothing.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no report.")] = False,
) -> None:
    """Learn and code vectors in one pass over a file that need not fit in memory."""
    from ..sources.vectors import building
    from .main import progress_bar

    if dry_run:
        return _show(
            building.plan(
                source, metric=metric, recipe=recipe, bits=bits, lists=lists, seed=seed, column=column, coarse=coarse
            )
        )
    with progress_bar(quiet) as tick:
        index = building.build(
            source, output, metric=metric, recipe=recipe, bits=bits, lists=lists, seed=seed, column=column,
            balanced=balanced, coarse=coarse, resume=resume, progress=tick,
        )  # fmt: skip
    if not quiet:
        _show(index.report())


@app.command()
def search(
    stored: Stored,
    queries: Annotated[Path, typer.Argument(metavar="Q.npy", help="(n, dim) queries.")],
    k: Annotated[int, typer.Option("-k", help="Neighbours of each.")] = 10,
    probe: Annotated[int | None, typer.Option("--probe", help="Lists that a query reads.")] = None,
    shortlist: Annotated[
        int | None, typer.Option("--shortlist", help="Vectors that a query compares by their whole codes; 0 for all.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Also write ids and distances to this .npz.")
    ] = None,
) -> None:
    """The nearest vectors of each query, a line of JSON each."""
    import numpy as np

    from ..sources.vectors.index import Index

    shown, ids = Index.load(stored).search(_mapped(queries), k, probe=probe, shortlist=shortlist)
    if output is not None:
        np.savez(output, distances=shown, ids=ids)
        return
    for row, near in zip(ids.tolist(), shown.tolist(), strict=True):
        there = [(i, round(d, 6)) for i, d in zip(row, near, strict=True) if i >= 0]
        print(json.dumps({"ids": [i for i, _ in there], "distances": [d for _, d in there]}))


@app.command()
def info(stored: Stored, json_: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """What an index holds, and in how many bytes."""
    from ..sources.vectors.index import Index

    said = Index.load(stored).report()
    if json_:
        print(json.dumps(said))
    else:
        _show(said)


@app.command()
def bench(
    source: Array,
    metric: Annotated[str, typer.Option("--metric", help="l2, ip or cosine.")] = "l2",
    k: Annotated[int, typer.Option("-k", help="Neighbours of each query.")] = 10,
    recall: Annotated[float, typer.Option("--recall", help="The recall for which to recommend a setting.")] = 0.9,
    bits: Annotated[str, typer.Option("--bits", help="Bits a coordinate to measure, such as 1,2,4.")] = "1,2,4",
    most: Annotated[int, typer.Option("--most", help="Vectors to measure on, spread over the file.")] = 100_000,
    json_: Annotated[Path | None, typer.Option("--json", help="Also write the rows to this file.")] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw recall against bits and time into this file.")
    ] = None,
) -> None:
    """Recall against true bits and time on these vectors, beside faiss where it is installed, and what to take."""
    from ..bench.vectors_choice import run
    from ..sources.vectors.ranking import check_metric

    check_metric(metric)
    try:
        rates = tuple(float(b) for b in bits.split(","))
    except ValueError:
        raise BadInput(f"--bits {bits!r}; numbers with commas between, such as 1,2,4, are right") from None
    x = _mapped(source)
    run(x[:: max(1, -(-len(x) // most))], metric, k, recall, rates, json_, plot)


def _mapped(path: Path):  # type: ignore[no-untyped-def]
    import numpy as np

    try:
        x = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as e:
        raise BadInput(f"{path} is no .npy file: {e}") from None
    if not isinstance(x, np.ndarray) or x.ndim != 2:
        raise BadInput(f"{path} does not hold an array of shape (n, dim)")
    return x


def _show(said: dict[str, object]) -> None:
    from .tables import Table, print_table

    print_table(
        Table("", ("what", ">value"), [(k, f"{v:,}" if isinstance(v, int) else str(v)) for k, v in said.items()])
    )
