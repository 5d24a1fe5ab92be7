"""`laconic export`: a compressed model in a format that others run."""

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
