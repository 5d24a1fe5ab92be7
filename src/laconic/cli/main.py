"""`laconic` on the command line: zstd's habits, one clear line for bad input, progress on a terminal only."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import BadConfig, CodecError
from .evaluate import evaluate
from .export import cut, export
from .vectors import app as vectors_app

if TYPE_CHECKING:
    from ..sources.files import Report

app = typer.Typer(
    name="laconic",
    help="Compress everything a machine-learning system stores or sends: weights, caches, vectors, pictures, bytes.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
bench_app = typer.Typer(help="Measure, beside the best peers, and print what was measured.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")
app.add_typer(vectors_app, name="vectors")
app.command("eval")(evaluate)
app.command("export")(export)
app.command("cut")(cut)

Input = Annotated[str, typer.Argument(metavar="IN", help="File, folder, or - for standard input.")]
Output = Annotated[
    str | None, typer.Option("-o", "--output", help="Where to write; IN.lac, or IN without .lac, by default.")
]
Force = Annotated[bool, typer.Option("-f", "--force", help="Overwrite.")]
Remove = Annotated[bool, typer.Option("--rm", help="Remove the input once the output is whole.")]
Stdout = Annotated[bool, typer.Option("-c", "--stdout", help="Write to standard output; the input is kept.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but errors.")]
Threads = Annotated[
    int | None, typer.Option("-T", "--threads", help="Blocks of bytes coded at once; 0: as many as there are cores.")
]
Memory = Annotated[
    int, typer.Option("--limit-memory", help="Refuse streams whose decoding takes more bytes than this.")
]
Limit = Annotated[int, typer.Option("--limit-bytes", help="Refuse packets that decode to more bytes than this.")]
Recipe = Annotated[
    str | None, typer.Option("--recipe", help="A recipe's id, or 'lossless'; picked by content otherwise.")
]
Bits = Annotated[
    float | None,
    typer.Option("--bits", help="Bits per value (pictures: per pixel) of what is coded with loss."),
]
BaseFile = Annotated[
    str | None,
    typer.Option("--base", help="File or folder of arrays that the reader has as well: differences are coded."),
]
Dictionary = Annotated[
    str | None, typer.Option("-D", "--dictionary", help="Streams of levels 1 and 2: a file of train-dictionary.")
]
Json = Annotated[Path | None, typer.Option("--json", help="Also write the rows to this file.")]


@app.command()
def compress(
    sources: Annotated[
        list[str] | None, typer.Argument(metavar="[IN]…", help="Files, a folder, or - for standard input (the default).")
    ] = None,
    output: Output = None,
    level: Annotated[
        int | None, typer.Option("--level", help="Bytes without loss, as a stream: -1 (fast) to -9 (small).")
    ] = None,
    threads: Threads = None,
    decode: Annotated[bool, typer.Option("-d", help="Decompress, as zstd -d does.")] = False,
    test: Annotated[bool, typer.Option("-t", help="Decode and keep nothing; exit 1 if anything is wrong.")] = False,
    list_: Annotated[bool, typer.Option("-l", help="Say what streams hold and what decoding takes.")] = False,
    kept: Annotated[bool, typer.Option("-k", help="Keep the input; it is kept anyway, unless --rm.")] = False,
    long: Annotated[bool, typer.Option("--long", help="The largest blocks: level 9.")] = False,
    limit_memory: Memory = 1 << 30,
    dictionary: Dictionary = None,
    recipe: Recipe = None,
    bits: Bits = None,
    base: BaseFile = None,
    max_bytes: Annotated[int | None, typer.Option("--max-bytes", help="Size of the whole output at most.")] = None,
    calibrate: Annotated[
        list[str] | None, typer.Option("--calibrate", help="Models: text that calibration reads; may be repeated.")
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option("--keep", help="Models: leave matrices with such names as they are.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Models: go on with a run that was stopped.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    json_: Json = None,
    force: Force = False,
    rm: Remove = False,
    stdout: Stdout = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Compress a model folder, a .safetensors file, .npy/.npz, a picture, or any other file.

    A Hugging Face folder becomes a folder that loads like any model; with -o FILE.lac, an archive of its files.
    """
    from . import lossless

    sources = sources or ["-"]
    level = 9 if long and level is None else level
    options = lossless.Options(
        level or 5, 1 if threads is None else threads, output, stdout, force, rm, quiet, limit_memory=limit_memory,
        dictionary=dictionary,
    )  # fmt: skip
    if decode or test or list_:
        job = lossless.listing if list_ else lossless.test if test else lossless.decompress
        if decode and dictionary is None and len(sources) == 1 and not lossless.is_stream(sources[0]):
            return decompress(sources[0], output, force=force, rm=rm, stdout=stdout, quiet=quiet)
        return lossless.each(sources, job, options)
    if level is not None or threads is not None or dictionary is not None or len(sources) > 1:
        for said, name in (
            (base, "--base"),
            (recipe, "--recipe"),
            (bits, "--bits"),
            (max_bytes, "--max-bytes"),
            (dry_run, "--dry-run"),
        ):
            if said:
                raise BadConfig(f"{name} and a level exclude each other: a level codes bytes without loss")
        return lossless.each(sources, lossless.compress, options)
    source = sources[0]
    from ..sources import files
    from .models import compress_model, is_model

    if is_model(source, output, recipe) and not (stdout or max_bytes or base):
        with progress_bar(quiet or dry_run) as tick:
            return compress_model(
                source, output, recipe, bits, calibrate or [], keep or [], resume, dry_run, force, quiet, json_, tick
            )
    for said, name in ((calibrate, "--calibrate"), (keep, "--keep"), (resume, "--resume"), (json_, "--json")):
        if said:
            raise BadConfig(f"{name} is for the folder of a model (config.json and safetensors); {source} is none")
    if dry_run:
        return _show_plan(files.plan(source, recipe=recipe, bits=bits))
    to_stdout = stdout or (source == "-" and output is None)
    if to_stdout and files.is_terminal(sys.stdout):
        raise BadConfig("compressed bytes are not written to a terminal; redirect, or name a file with -o")
    target: Any = sys.stdout.buffer if to_stdout else output
    taken: Any = sys.stdin.buffer if source == "-" else source
    if source == "-" and files.is_terminal(sys.stdin):
        raise BadConfig("no input: standard input is a terminal")
    with progress_bar(quiet) as tick:
        report = files.compress(
            taken, target, recipe=recipe, bits=bits, max_bytes=max_bytes, base=base, force=force, progress=tick
        )
    if not quiet:
        _show_report(report)
    if rm and not to_stdout and source != "-":
        _remove(Path(source))


@app.command()
def decompress(
    source: Input, output: Output = None, limit_bytes: Limit = 1 << 32, force: Force = False, rm: Remove = False,
    stdout: Stdout = False, quiet: Quiet = False, threads: Threads = None, limit_memory: Memory = 1 << 30,
    base: BaseFile = None, dictionary: Dictionary = None,
) -> None:  # fmt: skip
    """Make the file or folder again."""
    from . import lossless

    if lossless.is_stream(source):
        n_threads = 1 if threads is None else threads
        asked = (5, n_threads, output, stdout, force, rm, quiet, limit_bytes, limit_memory, dictionary)
        return lossless.decompress(source, lossless.Options(*asked))
    from ..sources import files

    to_stdout = stdout or (source == "-" and output is None)
    target: Any = sys.stdout.buffer if to_stdout else output
    taken: Any = sys.stdin.buffer if source == "-" else source
    with progress_bar(quiet) as tick:
        where = files.decompress(
            taken, target, force=force, limit_bytes=limit_bytes, base=base, threads=threads or 1, progress=tick
        )
    if not quiet and not to_stdout:
        _say(f"{source} -> {where}")
    if rm and not to_stdout and source != "-":
        _remove(Path(source))


@app.command()
def info(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A .lac file, or the folder of a compressed model.")],
    json_: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """What a .lac file or a compressed model holds, and the ledger of its bytes; every checksum is checked."""
    import json

    from ..sources import files
    from .models import info_model

    if source.is_dir():
        return info_model(source, json_)
    from . import lossless

    if lossless.is_stream(str(source)):
        return lossless.listing(str(source), lossless.Options())
    from .tables import info_table, ledger_table, print_table

    said = files.info(source)
    assert isinstance(said, files.FileInfo)
    if json_:
        packets = [{"name": n, "recipe": i.recipe, "shape": i.shape, "dtype": i.dtype, "config": i.config,
                    "bytes": i.packet_bytes, "ledger": i.ledger.by_role()} for n, i in said.packets]  # fmt: skip
        print(json.dumps({"path": said.path, "bytes": said.n_bytes, "ledger": said.by_role, "packets": packets}))
        return
    print_table(info_table(said))
    print_table(ledger_table(said))


@app.command()
def verify(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A .lac file, or the folder of a compressed model.")],
    limit_bytes: Limit = 1 << 32,
    base: BaseFile = None,
) -> None:
    """Decode everything and keep nothing; exit 1 if anything is wrong."""
    from ..sources import files
    from .models import verify_model

    if source.is_dir():
        _say(f"{source}: {verify_model(source)} packets, all whole")
        return
    from . import lossless

    if lossless.is_stream(str(source)):
        return lossless.test(str(source), lossless.Options(limit_bytes=limit_bytes))
    _say(f"{source}: {files.verify(source, limit_bytes=limit_bytes, base=base)} packets, all whole")


@app.command("train-dictionary")
def train_dictionary(
    sources: Annotated[list[str], typer.Argument(metavar="IN…", help="Small files of one kind, some hundred.")],
    output: Annotated[str, typer.Option("-o", "--output", help="The dictionary.")] = "dictionary",
    n_bytes: Annotated[int, typer.Option("--max-bytes", help="Its size at most.")] = 112_640,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Learn what small files have in common, for compress -D and decompress -D."""
    from . import lossless

    lossless.train_dictionary(sources, output, n_bytes, lossless.Options(force=force, quiet=quiet))


@app.command()
def recipes(domain: Annotated[str | None, typer.Option("--domain", help="Only one domain's.")] = None) -> None:
    """The published systems that are here, with their settings."""
    from .tables import print_table, recipes_table

    print_table(recipes_table(domain))


@app.command()
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the files and the report.")] = Path(
        "laconic-demo"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="A smaller share of every sample.")] = False,
) -> None:
    """The main job on bundled samples: a language model, embeddings, a picture and a book, there and back."""
    from ..bench.demo import run

    with progress_bar(False) as tick:
        run(output, quick=quick, progress=tick)


@bench_app.command("rd")
def bench_rd(
    json_: Json = None,
    only: Annotated[str | None, typer.Option("--only", help="Rows whose name contains this.")] = None,
) -> None:
    """Rate and distortion against the bounds, coders and transforms against the best libraries."""
    from ..bench.rd import SUITE
    from ..bench.rows import run_suite

    run_suite(SUITE, json_, only)


@bench_app.command("weights")
def bench_weights(
    json_: Json = None,
    only: Annotated[str | None, typer.Option("--only", help="Measurements whose name contains this.")] = None,
) -> None:
    """Whole models beside the best peers (`make peers` builds theirs): loss at equal bits, time, memory, kernels."""
    from ..bench.rows import run_suite
    from ..bench.weights import SUITE

    run_suite(SUITE, json_, only)


@bench_app.command("lossless")
def bench_lossless(
    sources: Annotated[
        list[Path] | None, typer.Argument(metavar="FILES", help="Files to measure on; without any, the rows of --only.")
    ] = None,
    json_: Json = None,
    only: Annotated[str | None, typer.Option("--only", help="Measurements whose name contains this.")] = None,
    levels: Annotated[str, typer.Option("--levels", help="Levels to measure, such as 1,5,9.")] = "1,5,9",
    peers: Annotated[
        str, typer.Option("--peers", help="Peers to run, such as 'zpaq -m5,xz -9e'; all that are installed by default.")
    ] = "",
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw size against speed into this file.")] = None,
) -> None:
    """Size and speed both ways beside gzip, bzip2, xz, zstd, brotli, 7-Zip's PPMd and zpaq; every decode verified."""
    if not sources:
        from ..bench import lossless_circuits, lossless_levels, lossless_tensors
        from ..bench.rows import run_suite

        suite = (*lossless_levels.SUITE, *lossless_tensors.SUITE, *lossless_circuits.SUITE)
        run_suite(suite, json_, only)
        return
    from ..bench.lossless import run

    run(sources, json_, [int(n) for n in levels.split(",") if n], [p for p in peers.split(",") if p], plot)


@bench_app.command("kv")
def bench_kv(
    json_: Json = None,
    only: Annotated[str | None, typer.Option("--only", help="Measurements whose name contains this.")] = None,
) -> None:
    """Caches beside the best peers (`make peers` builds theirs): loss while decoding, long context, memory."""
    from ..bench.kv import SUITE
    from ..bench.rows import run_suite

    run_suite(SUITE, json_, only)


@bench_app.command("vectors")
def bench_vectors(
    json_: Json = None,
    only: Annotated[str | None, typer.Option("--only", help="Measurements whose name contains this.")] = None,
) -> None:
    """Indexes of vectors beside faiss: recall and error at equal true bits, stored bytes at equal error, encoding."""
    from ..bench.rows import run_suite
    from ..bench.vectors import SUITE

    run_suite(SUITE, json_, only)


@bench_app.command("gradients")
def bench_gradients(
    json_: Json = None,
    only: Annotated[str | None, typer.Option("--only", help="Measurements whose name contains this.")] = None,
    curves: Annotated[
        Path | None, typer.Option("--curves", help="Write the loss of every training by step to this file.")
    ] = None,
) -> None:
    """Training on gloo ranks in fewer bytes: bytes on the wire, loss beside DDP's, processor time, slow links."""
    from ..bench.gradients import SUITE, write_curves
    from ..bench.rows import run_suite

    try:
        run_suite(SUITE, json_, only)
    finally:
        if curves is not None:
            write_curves(curves)


def _show_plan(plan: Any) -> None:
    from .tables import plan_table, print_table

    print_table(plan_table(plan))


def _show_report(report: Report) -> None:
    from .tables import print_table, report_table

    print_table(report_table(report), sys.stderr)
    for row in report.rows:
        if row.note:
            _say(f"{row.name}: {row.note}")


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _remove(path: Path) -> None:
    import shutil

    shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[int, int, str], None] | None]:
    """A bar with an estimate on standard error, if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what[-40:])


def main() -> None:
    """Entry point: errors that laconic names become one line and exit code 1."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is half-written is removed
    from .lossless import rewritten

    sys.argv = rewritten(sys.argv)
    try:
        app(standalone_mode=True)
    except (CodecError, FileExistsError) as e:
        sys.exit(f"laconic: {e}")
    except OSError as e:
        sys.exit(f"laconic: {e.strerror or e}{f': {e.filename}' if e.filename else ''}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
