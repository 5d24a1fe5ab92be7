"""Models as a stack of levels: in which order levels of matrices are loaded, and folders cut to what memory holds.

For codecs whose packets are nested (`level_bytes`), such as BitStack's: every matrix is coded once, the levels of all matrices
are ordered by what they save on calibration data, and any budget is met by the beginnings of the packets.

    losses ─ rank_levels ─▶ order, once ─▶ in the folder, as `laconic.level_order`
    order, budget ─ levels_within ─▶ levels of every matrix ─ cut_packet ─▶ packets that end sooner, nothing coded anew
"""

from __future__ import annotations

import json
import shutil
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...core import registry
from ...core.errors import BadConfig, BadInput, CorruptStream
from ...core.packet import Codec, decode, info
from ...core.stage import Leaf, Stage, Stats
from ...core.wire import Reader, read_array, write_array
from . import store

if TYPE_CHECKING:
    from torch import Tensor

    from .compress import Run
    from .policies import Sensitivity

PLANNED_BITS = 4.0  # more than the mean that a plan tries for one matrix
ORDER_ITEM = 4  # bytes of an entry of the order


# ---- which levels


def rank_levels(losses: Sequence[Sequence[float]], n_bytes: Sequence[int]) -> list[int]:
    """The order in which levels are loaded: the matrix whose next level saves most a byte, over and over.

    losses: of each matrix, what the model loses with none of its levels, with one, with two, … n_bytes: of one of its levels.
    All first levels come first. A level that saves less than the one behind it counts with that one (the convex hull).
    Source: Wang et al. 2024, BitStack (2410.23918), sorting of residual blocks. Differs: blocks of all iterations in one
    order, by loss a byte; in the paper iteration after iteration, by perplexity.

    >>> rank_levels([[9.0, 3.0, 2.0], [5.0, 2.0, 0.5]], [1, 1])
    [0, 1, 1, 0]
    """
    slope: list[float] = []
    level: list[int] = []
    matrix: list[int] = []
    for i, (one, size) in enumerate(zip(losses, n_bytes, strict=True)):
        found = np.asarray(one, np.float64)
        if found.ndim != 1 or len(found) < 2 or np.isnan(found).any() or size < 1:
            raise BadInput(f"losses {found[:4]} of matrix {i}; of none of its levels, of one, … without NaN are right")
        slope += [np.inf, *_hull_slopes(found[1:] / size)]
        level += range(len(found) - 1)
        matrix += [i] * (len(found) - 1)
    return [matrix[k] for k in np.lexsort((np.array(matrix), np.array(level), -np.array(slope)))]


def _hull_slopes(losses: np.ndarray) -> list[float]:
    """What each further level saves on the lower convex hull of losses (n,), n - 1 numbers that fall."""
    out: list[float] = []
    at = 0
    while at < len(losses) - 1:
        gains = (losses[at] - losses[at + 1 :]) / np.arange(1, len(losses) - at)
        step = int(gains.argmax()) + 1
        out += [float(gains[step - 1])] * step
        at += step
    return out


def levels_within(order: Sequence[int], n_bytes: Sequence[int], budget: int) -> list[int]:
    """How many levels each matrix gets in `budget` bytes: in order; one that does not fit any more gives way to smaller ones.

    n_bytes: of one level, by matrix. Raises BadConfig where the budget does not hold one level of every matrix.

    >>> levels_within([1, 0, 0, 1], [10, 20], 45)
    [2, 1]
    """
    levels, left, full = [0] * len(n_bytes), budget, set()
    for matrix in order:
        if n_bytes[matrix] > left:
            full.add(matrix)
        if matrix not in full:
            levels[matrix] += 1
            left -= n_bytes[matrix]
    if min(levels, default=1) < 1:
        raise BadConfig(f"{budget:,} bytes do not hold one level of every matrix; {sum(n_bytes):,} are the least")
    return levels


# ---- packets


class Nested(NamedTuple):
    """A packet of levels. level_bytes: of each of its n_levels."""

    shape: tuple[int, int]
    level_bytes: int
    n_levels: int


def is_nested(stage: Stage) -> bool:
    """Whether beginnings of its packets are packets of lower rates."""
    return hasattr(stage, "level_bytes")


def nested(packet: bytes, codecs: Mapping[str, Codec] | None = None) -> Nested | None:
    """What the packet holds; None where it is no stack of levels."""
    said = info(packet, codecs=codecs)
    stage: Any = registry.build(said.config)
    if not is_nested(stage):
        return None
    m, n = said.shape
    size = stage.level_bytes(m, n)
    return Nested((m, n), size, len(_payload(packet)[1]) // size)


def _payload(packet: bytes) -> tuple[int, np.ndarray, int]:
    """(where the payload's section begins, its bytes, where it ends)."""
    reader = Reader(packet)
    reader.take(5)
    reader.take(reader.varint() + 4)
    head = reader.at
    payload = read_array(reader, "payload", Leaf("uint8", "codes"), True)
    return head, payload, reader.at


def cut_packet(packet: bytes, n_levels: int, codecs: Mapping[str, Codec] | None = None) -> bytes:
    """The packet of a matrix with its first `n_levels` levels alone; it decodes like any other.

    Nothing is coded anew: the payload ends sooner, and its length and checksum are written for what is left. codecs: for
    packets of one file that share them. Raises BadInput where the packet is not nested or has fewer levels.
    """
    found = nested(packet, codecs)
    if found is None:
        raise BadInput(
            f"packets of {info(packet, codecs=codecs).recipe or 'this codec'!r} are not nested; none of their prefixes decodes"
        )
    if not 1 <= n_levels <= found.n_levels:
        raise BadInput(f"{n_levels} levels of a packet that has {found.n_levels}; at least one is right")
    start, payload, end = _payload(packet)
    out = bytearray(packet[:start])
    write_array(out, payload[: n_levels * found.level_bytes], True)
    return bytes(out + packet[end:])


# ---- while a model is compressed


class Losses(NamedTuple):
    """What the model loses with none of a packet's levels, with one, …, in the measure of a `Sensitivity`."""

    levels: tuple[float, ...] = ()
    level_bytes: int = 0


def losses(packet: bytes, weight: Tensor, s: Sensitivity, codecs: Mapping[str, Codec]) -> Losses:
    """Of a packet of this weight; none where it is not nested."""
    found = nested(packet, codecs)
    if found is None:
        return Losses()
    kept = (decode(cut_packet(packet, k + 1, codecs), codecs=codecs) for k in range(found.n_levels))
    return Losses((s.loss(weight), *(s.loss(back - weight) for back in kept)), found.level_bytes)


def plan(run: Run, budget: float) -> list[float]:
    """Rates for all matrices: each is coded once, far above the mean, and the best levels of all are taken.

    budget: bits over all matrices.
    """
    from .compress import PACKET_BYTES

    ms, mean = run.net.matrices, budget / sum(m.n_elements for m in run.net.matrices)
    stages: list[Any] = []
    found: list[Losses] = []
    for i, m in enumerate(ms):
        run._tick(i, len(ms), f"plan: {m.name}")
        w, s = run.weight(m), run.sensitivity(m)
        codec = Codec(run.recipe.at(mean + PLANNED_BITS)).fit(w, Stats(hessian=s.hessian))
        stages.append(codec.stage)
        found.append(losses(codec.encode(w, shared="00000000"), w, s, {"00000000": codec}))
    fixed = sum(stage.side_bytes(*m.shape) + PACKET_BYTES for stage, m in zip(stages, ms, strict=True))
    sizes = [one.level_bytes for one in found]
    order = rank_levels([one.levels for one in found], sizes)
    levels = levels_within(order, [n + ORDER_ITEM for n in sizes], int(budget / 8) - fixed)
    return [stage.rate(*m.shape, k) for stage, m, k in zip(stages, ms, levels, strict=True)]


def with_order(source: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The tensors that a folder keeps, and the order of the levels among them where its packets are nested.

    rows: of the report, as the journal has them.
    """
    import torch

    stacked = sorted((r for r in rows if r["levels"]), key=lambda r: str(r["name"]))
    if not stacked:
        return source
    order = rank_levels([r["levels"] for r in stacked], [r["level_bytes"] for r in stacked])
    return ChainMap({store.ORDER: torch.tensor(order, dtype=torch.int32)}, source)  # type: ignore[arg-type]


def order_bytes(rows: Sequence[Mapping[str, Any]]) -> int:
    """What the order takes in the files."""
    n = sum(max(len(r["levels"]) - 1, 0) for r in rows)
    return n * ORDER_ITEM + (len(store.ORDER) + 75 if n else 0)


# ---- folders


@dataclass(frozen=True)
class Cut:
    """A folder cut to a budget. bits: as `compress` counts them. levels: how many each matrix has, and how many it had."""

    path: Path
    n_bytes: int
    bits: float
    levels: dict[str, tuple[int, int]]

    def describe(self) -> str:
        """One line."""
        kept, had = (sum(pair[i] for pair in self.levels.values()) for i in (0, 1))
        return f"{self.path}: {self.n_bytes:,} bytes, {self.bits:.3f} bits a parameter; {kept} of {had} levels"


class Stacked:
    """A compressed folder whose packets are nested. Raises BadInput for others, CorruptStream for damage."""

    def __init__(self, opened: store.Packed) -> None:
        self.opened, found = opened, {n: nested(opened[n], opened.codecs) for n in sorted(opened)}
        self.matrices = {n: one for n, one in found.items() if one is not None}
        if not self.matrices or store.ORDER not in opened.source:
            recipe = opened.said.get("recipe")
            raise BadInput(
                f"{opened.folder}: matrices of recipe {recipe!r} are no stacks of levels; those of bitstack are"
            )
        self.order = opened.source[store.ORDER].numpy()
        counts = [one.n_levels for one in self.matrices.values()]
        right = self.order.ndim == 1 and self.order.dtype == np.int32 and len(self.order) == sum(counts)
        if not right or self.order.min() < 0 or np.bincount(self.order, minlength=len(counts)).tolist() != counts:
            raise CorruptStream(
                f"{opened.folder}: {store.ORDER} does not fit {len(counts)} matrices of {sum(counts)} levels"
            )

    @property
    def n_bytes(self) -> int:
        """Of the weight files."""
        return sum((self.opened.folder / f).stat().st_size for f in self.opened.source.files())

    def _sizes(self) -> tuple[int, int]:
        """(parameters that are coded, bytes of matrices that are not)."""
        source, keep = self.opened.source, self.opened.said.get("keep", [])
        n = sum(info(self.opened[m], codecs=self.opened.codecs).n_elements for m in self.opened)
        kept = [k for k in self.opened.kept if any(fnmatch(k, p) or p in k for p in keep) and len(source.shape(k)) > 1]
        return n, sum(source[k].nbytes for k in kept)

    def bits(self, n_bytes: int) -> float:
        """Bits a coded parameter of weight files of so many bytes."""
        n, kept = self._sizes()
        return 8 * (n_bytes - kept) / n

    def levels(self, bits: float | None = None, max_bytes: int | None = None) -> dict[str, int]:
        """How many levels each matrix keeps. bits: a coded parameter, everything counted; max_bytes: of the weight files.

        Raises BadConfig where not one of the two is said, or it does not hold one level of every matrix.
        """
        if (bits is None) == (max_bytes is None):
            raise BadConfig(f"bits {bits} and max_bytes {max_bytes}; one of them is the budget")
        if bits is not None:
            n, kept = self._sizes()
            max_bytes = int(bits * n / 8) + kept
        assert max_bytes is not None
        sizes = [one.level_bytes + ORDER_ITEM for one in self.matrices.values()]
        fixed = self.n_bytes - sum(s * one.n_levels for s, one in zip(sizes, self.matrices.values(), strict=True))
        if max_bytes < (least := fixed + sum(sizes)):
            raise BadConfig(
                f"{max_bytes:,} bytes; {self.opened.folder} takes at least {least:,} ({self.bits(least):.3f} bits a parameter)"
            )
        return dict(zip(self.matrices, levels_within(self.order.tolist(), sizes, max_bytes - fixed), strict=True))


class Cutting:
    """The entries of a folder's files as they are within a budget; see `Stacked.levels`."""

    def __init__(self, opened: store.Packed, bits: float | None, max_bytes: int | None) -> None:
        self.stacked = Stacked(opened)
        self.levels = self.stacked.levels(bits, max_bytes)

    def entry(self, key: str) -> Tensor:
        """An entry, cut where it is a stack."""
        import torch

        if key == store.ORDER:
            return torch.from_numpy(self._order())
        found = self.stacked.opened.source[key]
        return (
            torch.from_numpy(np.frombuffer(self.packet(key, found.numpy().tobytes()), np.uint8).copy())
            if store.is_packet(key)
            else found
        )

    def packet(self, key: str, packet: bytes) -> bytes:
        """A packet by the name of its entry."""
        levels = self.levels.get(store.matrix_of(key))
        return packet if levels is None else cut_packet(packet, levels, self.stacked.opened.codecs)

    def _order(self) -> np.ndarray:
        order, most = self.stacked.order, np.array(list(self.levels.values()))
        level, seen = np.zeros(len(order), int), np.zeros(len(most), int)
        for i, matrix in enumerate(order):
            level[i] = seen[matrix]
            seen[matrix] += 1
        return order[level < most[order]]


def cut(
    path: str | PathLike[str],
    target: str | PathLike[str],
    *,
    bits: float | None = None,
    max_bytes: int | None = None,
    force: bool = False,
) -> Cut:
    """Write the folder `target` of a compressed model with fewer levels: no calibration, nothing coded anew.

    bits: a parameter, everything counted, at most; max_bytes: of its weight files, at most. Every packet is read once, checked
    and cut; one file of the folder is in memory at a time. A budget for all levels gives the same files.
    Raises BadConfig for a budget below one level of every matrix, BadInput where the packets are no stacks of levels,
    FileExistsError; `target` is not there when it does.
    """
    from safetensors.torch import save_file

    where = Path(target)
    if where.exists() and not force:
        raise FileExistsError(f"{where} exists; -f overwrites it")
    if not where.absolute().parent.exists():
        raise BadInput(f"{where.parent}: no such folder")
    cutting = Cutting(store.Packed(path), bits, max_bytes)
    stacked, levels = cutting.stacked, cutting.levels
    source, folder, total = stacked.opened.source, stacked.opened.folder, 0
    with TemporaryDirectory(dir=where.absolute().parent, prefix=f".{where.name}.") as scratch:
        beside = Path(scratch) / "out"
        shutil.copytree(folder, beside, ignore=shutil.ignore_patterns("*.safetensors"))
        for file, keys in source.files().items():
            held = {k: cutting.entry(k) for k in keys}
            total += sum(t.nbytes for t in held.values())
            save_file(held, beside / file, metadata={"format": "pt"})
        index = beside / "model.safetensors.index.json"
        if index.exists():
            said = json.loads(index.read_text())
            store.write_atomic(index, json.dumps({**said, "metadata": {"total_size": total}}, indent=1))
        if where.exists():
            shutil.rmtree(where)
        beside.replace(where)
    n_bytes = sum((where / f).stat().st_size for f in source.files())
    had = {n: (levels[n], one.n_levels) for n, one in stacked.matrices.items()}
    return Cut(where, n_bytes, stacked.bits(n_bytes), had)
