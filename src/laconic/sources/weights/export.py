"""Compressed folders in formats that others run: the same codes, repacked; nothing is quantized again.

compressed-tensors   a folder that transformers and vLLM open without laconic   integer and 4-bit float grids in groups
gguf                 a file for llama.cpp                                       its own block formats
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ...core.errors import BadConfig, BadInput, unknown
from ...core.packet import levels
from ...core.stage import Levels
from . import store
from .network import Matrix, matrices, skeleton

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FORMATS", "Exported", "Opened", "export"]

FORMATS = ("compressed-tensors", "gguf")


@dataclass(frozen=True)
class Exported:
    """What was written. repacked: matrices with their codes, by format; dense: the others, which have their decoded values.

    rounded: those of `repacked` whose steps or offsets the format holds less precisely; the others are exact.
    """

    path: Path
    repacked: dict[str, list[str]]
    dense: list[str]
    rounded: list[str]
    n_bytes: int

    def describe(self) -> str:
        """One line."""
        kinds = ", ".join(f"{len(names)} matrices as {kind}" for kind, names in self.repacked.items())
        rounded = f" ({len(self.rounded)} with rounded steps or offsets)" if self.rounded else ""
        return f"{self.path}: {kinds}{rounded}, {len(self.dense)} dense; {self.n_bytes:,} bytes"


def export(path: str | PathLike[str], target: str | PathLike[str], *, to: str, force: bool = False) -> Exported:
    """Write a compressed folder in another format: a folder `target`; for gguf that, or a file if its name ends so.

    Raises BadConfig where the recipe's grid is none that the format has, BadInput for models that it cannot describe,
    FileExistsError; `target` is not there when it does.
    """
    if to not in FORMATS:
        raise unknown("export format", to, list(FORMATS))
    where = Path(target)
    if where.exists() and not force:
        raise FileExistsError(f"{where} exists; -f overwrites it")
    if not where.absolute().parent.exists():
        raise BadInput(f"{where.parent}: no such folder")
    opened = Opened(store.Packed(path))
    if to == "gguf":
        from .export_gguf import write
    else:
        from .export_compressed_tensors import write
    with TemporaryDirectory(dir=where.absolute().parent, prefix=f".{where.name}.") as scratch:
        beside = Path(scratch) / where.name
        said = write(opened, beside)
        if where.is_dir():
            shutil.rmtree(where)
        beside.replace(where)
    n_bytes = where.stat().st_size if where.is_file() else sum(p.stat().st_size for p in where.iterdir())
    return Exported(where, said.repacked, said.dense, said.rounded, n_bytes)


@dataclass
class Written:
    """What a writer did."""

    repacked: dict[str, list[str]] = field(default_factory=dict)
    dense: list[str] = field(default_factory=list)
    rounded: list[str] = field(default_factory=list)

    def add(self, kind: str, name: str, exact: bool = True) -> None:
        """A matrix was repacked."""
        self.repacked.setdefault(kind, []).append(name)
        if not exact:
            self.rounded.append(name)

    def check(self, opened: Opened, to: str, fit: str) -> None:
        """Raises BadConfig unless most of the coded matrices kept their codes. fit: the recipes that do."""
        if 2 * sum(map(len, self.repacked.values())) < len(opened.packed):
            raise BadConfig(f"the grid of recipe {opened.packed.said.get('recipe')!r} is none of {to}'s; {fit}")


class Opened:
    """A compressed folder and the model that its config makes, without weights."""

    def __init__(self, packed: store.Packed) -> None:
        self.packed = packed
        self.config = {k: v for k, v in packed.config.items() if k != "quantization_config"}

    @cached_property
    def model(self) -> Any:
        """The model, its parameters on the meta device."""
        with TemporaryDirectory() as scratch:
            (Path(scratch) / "config.json").write_text(json.dumps(self.config))
            return skeleton(Path(scratch))

    @cached_property
    def matrices(self) -> dict[str, Matrix]:
        """Every coded matrix by its name. Raises BadInput where the model has no such."""
        known = {m.name: m for m in matrices(self.model)}
        tied = {a: b for a, b in getattr(self.model, "all_tied_weights_keys", {}).items()}
        for name, first in (*tied.items(), *((b, a) for a, b in tied.items())):
            if first in known and name not in known:
                known[name] = known[first]._replace(name=name, module=name.rpartition(".")[0])
        if lost := next((n for n in self.packed if n not in known), None):
            raise BadInput(f"{self.packed.folder}: {type(self.model).__name__} has no matrix {lost!r}")
        return {n: known[n] for n in self.packed}

    def levels(self, name: str) -> Levels | None:
        """A matrix's integers and steps, where nothing but a step and an offset is between them and the weights."""
        found = levels(self.packed[name], codecs=self.packed.codecs)
        return None if found is None or found.turns or found.column_scale is not None else found

    def dense(self, names: set[str]) -> Iterator[tuple[str, Tensor]]:
        """Parameters by name: the kept ones as they are, the coded ones of `names` decoded, float32."""
        import torch

        for key in self.packed.kept:
            yield key, self.packed.source[key]
        stacks: dict[str, list[str]] = {}
        for name in names:
            stacks.setdefault(name.partition("#")[0], []).append(name)
        for key, coded in stacks.items():
            coded.sort(key=lambda n: self.matrices[n].expert or 0)
            p = self.model.get_parameter(key)
            value = torch.empty(p.shape)
            for name in coded:
                self.matrices[name].put(value, self.packed.decode(name))
            yield key, value

    def copy_files(self, folder: Path) -> None:
        """Tokenizer and generation files."""
        for pattern in store.COPIED:
            for p in sorted(self.packed.folder.glob(pattern)):
                if p.name != "config.json" and not p.name.endswith(".index.json"):
                    shutil.copyfile(p, folder / p.name)
