"""`laconic export`, `laconic cut`: a compressed model in a format that others run, or with fewer of its levels."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def export(
    source: Annotated[Path, typer.Argument(metavar="OUT", help="Folder that `laconic compress` made of a model.")],
    to: Annotated[str, typer.Option("--to", help="compressed-tensors (transformers, vLLM) or gguf (llama.cpp).")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write; for gguf also a file NAME.gguf.")],
    force: Annotated[bool, typer.Option("-f", "--force", help="Overwrite.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but errors.")] = False,
) -> None:
    """Write a compressed model as compressed-tensors or GGUF: the same codes repacked, nothing quantized again."""
    from ..sources.weights.export import export as write

    said = write(source, output, to=to, force=force)
    if not quiet:
        print(said.describe(), file=sys.stderr)


def cut(
    source: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder that `laconic compress --recipe bitstack` made of a model.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    bits: Annotated[float | None, typer.Option("--bits", help="Bits a parameter at most, everything counted.")] = None,
    max_bytes: Annotated[int | None, typer.Option("--max-bytes", help="Size of the weight files at most.")] = None,
    force: Annotated[bool, typer.Option("-f", "--force", help="Overwrite.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but errors.")] = False,
) -> None:
    """Cut a model that is a stack of levels to a smaller budget: no calibration, nothing coded anew."""
    from ..sources.weights.stack import cut as write

    said = write(source, output, bits=bits, max_bytes=max_bytes, force=force)
    if not quiet:
        print(said.describe(), file=sys.stderr)
