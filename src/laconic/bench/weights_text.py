"""Calibration text of the weights benchmark, cut from `$LACONIC_DATA`.

The evaluation text (`english-eval`) is the last part of the same sources; nothing here reaches into it.
"""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import BadInput

N_PIECES = 10


@dataclass(frozen=True)
class TextSource:
    """A file below the data folder. held_out: characters at its end that belong to the evaluation text."""

    path: str
    encoding: str
    held_out: int


SOURCES = (
    TextSource("silesia-part/dickens.zip", "latin-1", 400_000),
    TextSource("tinystories-text/tinystories_train_2MiB.txt", "utf-8", 250_000),
    TextSource("tinyshakespeare/input.txt", "utf-8", 100_000),
    TextSource("wikitext-2/valid.txt", "utf-8", 250_000),
)


def data_folder() -> Path:
    """The folder named by `$LACONIC_DATA`, else `../shared/data` beside a checkout.

    Raises
    ------
    BadInput: there is no such folder.
    """
    named = os.environ.get("LACONIC_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[4] / "shared" / "data"
    if not folder.is_dir():
        raise BadInput(f"no folder of measurement data at {folder}; set LACONIC_DATA to one")
    return folder


def model_folder() -> Path:
    """english-llama-7m, where the evaluation data is, or the bundled copy."""
    beside = data_folder().parent / "models" / "english-llama-7m"
    if beside.is_dir():
        return beside
    return Path(__file__).parent.parent / "samples" / "english-llama-7m"


def read_source(folder: Path, source: TextSource) -> str:
    """The text of a source without its held-out end; line ends as they are in the file."""
    path = folder / source.path
    if not path.is_file():
        raise BadInput(f"{source.path} is not in {folder}; set LACONIC_DATA to a folder that has it")
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            raw = archive.read(path.stem)
    else:
        raw = path.read_bytes()
    # A sample may be cut within a character, at its very end, which is held out.
    text = raw.decode(source.encoding, errors="ignore")
    return text[: len(text) - source.held_out]


def calibration_text(n_characters: int = 150_000, folder: Path | None = None) -> str:
    """About `n_characters` of each source, in ten pieces from evenly spaced places, the sources taking turns.

    Raises
    ------
    BadInput: the folder or one of its files is not there, or a source is shorter than asked for.
    """
    where = data_folder() if folder is None else folder
    texts = [read_source(where, s) for s in SOURCES]
    for source, text in zip(SOURCES, texts, strict=True):
        if len(text) < n_characters:
            raise BadInput(
                f"{source.path} has {len(text):,} characters to calibrate on; {n_characters:,} were asked for"
            )
    length = n_characters // N_PIECES
    pieces = []
    for i in range(N_PIECES):
        for text in texts:
            # The middle of each tenth: a file's first lines are its licence, which the evaluation text repeats.
            start = (2 * i + 1) * (len(text) - length) // (2 * N_PIECES)
            pieces.append(text[start : start + length])
    return "\n".join(pieces)
