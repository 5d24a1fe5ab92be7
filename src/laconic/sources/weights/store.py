"""The folder of a compressed model: packets in safetensors files, one shared codec table in config.json.

    OUT/config.json            the model's, with quantization_config {quant_method: "laconic", codecs, …}
    OUT/model*.safetensors     `<module>.<param>_packet` uint8 for each coded matrix, everything else as it was;
                               `laconic.level_order` int32 where packets are stacks of levels (see `stack`)
    OUT/…                      tokenizer and generation files, copied

While it is made, the work lies beside it in `OUT.partial/`: a journal, a file of packets for each finished unit, and spools.
The journal is replaced only when a unit is whole, so a killed run goes on where that stands.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core import registry
from ...core.errors import BadInput, CorruptStream
from ...core.packet import Codec, decode
from ...core.stage import Stage
from .network import FolderSource, Matrix

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
METHOD = "laconic"
ORDER = "laconic.level_order"  # for each level in the order of loading, the number of its matrix in the order of names
SHARD_BYTES = 256 << 20
COPIED = ("*.json", "*.txt", "*.model", "*.jinja", "*.py", "LICENSE*", "README*")
_OWN = ("config.json", "model.safetensors.index.json")


def entry(m: Matrix) -> str:
    """Name of a matrix's packet in the files."""
    return entry_of(m.name)


def entry_of(name: str) -> str:
    """Name of the packet of a matrix called `name`."""
    param, _, expert = name.partition("#")
    return f"{param}_packet" + (f".{expert}" if expert else "")


@dataclass
class Journal:
    """What is known of a job that is being done.

    key: hash of everything that decides the result. done: units whose packets are written.
    plan: rate of every matrix. rows: the report so far. step, slope: where one
    step serves all matrices, that, and by how many bits the rate changes with each octave of it.
    codecs: those that the packets share, as `read_codecs` wants them.
    """

    path: Path
    key: str
    done: int = 0
    plan: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    step: float | None = None
    slope: float = -1.0
    codecs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, key: str, resume: bool) -> Journal:
        """The journal of a work folder: a fresh one, or with `resume` the one that is there.

        Raises BadInput where a journal is there and `resume` is not said, or it belongs to other settings.
        """
        path = folder / "journal.json"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            return cls(path, key)
        if not resume:
            raise BadInput(f"{folder} holds an unfinished run; go on with --resume, or remove it")
        said = json.loads(path.read_text())
        if said["key"] != key:
            raise BadInput(f"{folder} belongs to a run with other settings or inputs; remove it, or repeat those")
        return cls(path, **said)

    def save(self) -> None:
        """Written beside and renamed."""
        said = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "path"}
        write_atomic(self.path, json.dumps(said))


def write_atomic(path: Path, text: str) -> None:
    """A text file that is there whole or not at all."""
    beside = path.with_name(path.name + ".new")
    with open(beside, "w") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    os.replace(beside, path)


def save_unit(folder: Path, unit: int, packets: Mapping[str, bytes]) -> None:
    """The packets of a unit, whole or not at all."""
    import numpy as np
    from safetensors.numpy import save_file

    path = folder / f"unit-{unit:05d}.safetensors"
    beside = path.with_suffix(".new")
    save_file({k: np.frombuffer(v, np.uint8) for k, v in packets.items()}, beside)
    os.replace(beside, path)


def load_unit(folder: Path, unit: int) -> dict[str, bytes]:
    """The packets of a finished unit by matrix."""
    from safetensors.numpy import load_file

    return {k: v.tobytes() for k, v in load_file(folder / f"unit-{unit:05d}.safetensors").items()}


def finish(
    out: Path,
    work: Path,
    n_units: int,
    source: Mapping[str, Any],
    replaced: set[str],
    config: dict[str, Any],
    said: dict[str, Any],
    origin: Path | None,
) -> int:
    """Put the folder together beside `out` and rename it; returns the bytes of its weight files.

    source: the original's tensors; those in `replaced` are left out. said: quantization_config.
    """
    beside = work / "out"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    if origin is not None:
        for pattern in COPIED:
            for p in sorted(origin.glob(pattern)):
                if p.name not in _OWN and not p.name.endswith(".index.json"):
                    shutil.copyfile(p, beside / p.name)
    n_bytes = write_shards(beside, _entries(work, n_units, source, replaced))
    write_atomic(beside / "config.json", json.dumps({**config, "quantization_config": said}, indent=1))
    os.replace(beside, out)
    shutil.rmtree(work)
    return n_bytes


def _entries(work: Path, n_units: int, source: Mapping[str, Any], replaced: set[str]) -> Iterator[tuple[str, Any]]:
    import numpy as np
    import torch

    for unit in range(n_units):
        for name, packet in load_unit(work, unit).items():
            yield entry_of(name), torch.from_numpy(np.frombuffer(packet, np.uint8).copy())
    for name in source:
        if name not in replaced:
            yield name, source[name]


def write_shards(folder: Path, entries: Iterator[tuple[str, Any]]) -> int:
    """Named tensors as safetensors files of bounded size with an index; returns their bytes."""
    from safetensors.torch import save_file

    shards: list[list[str]] = []
    held: dict[str, Any] = {}
    size, total = 0, 0

    def flush() -> None:
        nonlocal held, size
        save_file(held, folder / f"shard-{len(shards):05d}.safetensors", metadata={"format": "pt"})
        shards.append(sorted(held))
        held, size = {}, 0

    for name, tensor in entries:
        if held and size + tensor.nbytes > SHARD_BYTES:
            flush()
        held[name] = tensor.contiguous()
        size += tensor.nbytes
        total += tensor.nbytes
    flush()
    if len(shards) == 1:
        names = ["model.safetensors"]
    else:
        names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
        where = {key: n for n, keys in zip(names, shards, strict=True) for key in keys}
        write_atomic(folder / "model.safetensors.index.json",
                     json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=1))  # fmt: skip
    for i, n in enumerate(names):
        os.replace(folder / f"shard-{i:05d}.safetensors", folder / n)
    return sum((folder / n).stat().st_size for n in names)


class Packets:
    """The packets of a work folder, by matrix."""

    def __init__(self, work: Path, n_units: int, codecs: Mapping[str, Codec]) -> None:
        self._where = {name: u for u in range(n_units) for name in load_unit(work, u)}
        self._work, self._codecs = work, codecs

    def decode(self, name: str) -> Tensor:
        """A matrix (n_out, n_in) in float32."""
        return decode(load_unit(self._work, self._where[name])[name], codecs=self._codecs)


class Packed(Mapping[str, Any]):
    """A compressed folder, opened: the packets by matrix name, and the tensors that were kept.

    Raises BadInput for a folder that laconic did not make, CorruptStream for one that is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        try:
            self.config = json.loads((self.folder / "config.json").read_text())
        except FileNotFoundError:
            raise BadInput(f"{self.folder}: no config.json; a compressed model folder is wanted") from None
        except ValueError as e:
            raise CorruptStream(f"{self.folder}/config.json: {e}") from None
        said = self.config.get("quantization_config") or {}
        if said.get("quant_method") != METHOD:
            raise BadInput(f"{self.folder} was not made by laconic (quant_method {said.get('quant_method')!r})")
        if said.get("format") != FORMAT:
            raise CorruptStream(f"{self.folder}: format {said.get('format')}; this laconic reads {FORMAT}")
        self.said = said
        self.codecs = read_codecs(said)
        self.source = FolderSource(self.folder)
        self.names = [k for k in self.source if is_packet(k)]
        self.kept = [k for k in self.source if not is_packet(k) and k != ORDER]

    def __getitem__(self, name: str) -> bytes:
        """The packet of a matrix, by its name as `Matrix.name` has it."""
        return bytes(self.source[entry_of(name)].numpy().tobytes())

    def __iter__(self) -> Iterator[str]:
        return iter([matrix_of(k) for k in self.names])

    def __len__(self) -> int:
        return len(self.names)

    def decode(self, name: str) -> Tensor:
        """A matrix (n_out, n_in) in float32."""
        return decode(self[name], codecs=self.codecs)


def is_packet(key: str) -> bool:
    """Whether an entry of the files is a packet."""
    head, _, last = key.rpartition(".")
    return key.endswith("_packet") or (last.isdigit() and head.endswith("_packet"))


def matrix_of(key: str) -> str:
    """The matrix whose packet has this entry."""
    if key.endswith("_packet"):
        return key.removesuffix("_packet")
    head, _, expert = key.rpartition(".")
    return f"{head.removesuffix('_packet')}#{expert}"


def read_codecs(said: Mapping[str, Any]) -> dict[str, Codec]:
    """The codec table of a quantization_config."""
    out = {}
    table = said.get("codecs")
    if not isinstance(table, dict):
        raise CorruptStream("quantization_config lacks its table of codecs")
    for key, row in table.items():
        if not isinstance(row, dict) or not isinstance(row.get("config"), dict):
            raise CorruptStream(f"codec {key!r} of quantization_config has no configuration")
        stage = registry.build(row["config"])
        if not isinstance(stage, Stage):
            raise CorruptStream(f"codec {key!r} is a {type(stage).__name__}, not a codec")
        out[key] = Codec(stage, str(row.get("recipe", "")))
    return out


def fingerprint(source: Mapping[str, Any], folder: Path | None) -> str:
    """What the original's weights are, without reading them all: names, and the sizes, times of their files."""
    h = hashlib.sha256()
    for name in sorted(source):
        h.update(name.encode())
    if folder is not None:
        for p in sorted(folder.glob("*.safetensors")):
            at = p.stat()
            h.update(f"{p.name}:{at.st_size}:{at.st_mtime_ns};".encode())
    return h.hexdigest()
