"""The file of an index.

    "LACVEC" | version (1 byte) | u64 length of the head | head: JSON | its checksum | arrays | blocks

Arrays are sections (`core.wire`) with checksums: what the codec learned, centroids, ids, what was removed, the vectors'
numbers by block, prices of lists, errors of codes, the map of queries. Blocks lie behind each other, each section with its
own checksum, and are read when a search comes to them; the payload is in columns (`scanning`) or as the codec gave it, as
`layout` says (version 1: the latter). Versions 1 to 3 have no coarse columns, and their fine bits are planes, which are laid out
anew in memory whenever they are opened, until they are saved again; versions 1 and 2 have no prices, errors or map of queries.
The head holds settings, names of the arrays and lengths of the blocks; the lengths must add up to the file.
"""

from __future__ import annotations

import json
import mmap as mmap_
import os
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core import registry
from ...core.errors import BadConfig, CorruptStream, claim, decode_budget
from ...core.stage import Kind, Leaf, Stage
from ...core.wire import Reader, checksum, read_array, write_array
from .blocks import Block, relaid

if TYPE_CHECKING:
    from .index import Index

MAGIC = b"LACVEC"
VERSION = 4  # see above what older ones lack
_MOST_HEAD = 1 << 28
_OWN = {"centroids": Leaf("float32", "codebooks"), "prices": Leaf("float32", "codebooks"),
        "queries": Leaf("float32", "codebooks"), "ids": Leaf("int64", "indices"),
        "dead": Leaf("uint8", "indices"), "numbers": Leaf("int64", "indices"), "errors": Leaf("float32", "norms")}  # fmt: skip


def save(index: Index, path: str | PathLike[str]) -> None:
    """Writes beside the file, brings it to the disk, then takes the old one's place."""
    stage = index._ready()
    own = {
        "centroids": index.centroids,
        "prices": index.list_prices,
        "queries": index.query_map,
        "errors": index._errors,
        "ids": index._ids,
        "dead": None if index._dead is None else np.packbits(index._dead),
        "numbers": _numbers(index) if index._scattered() else None,
    }
    head = {
        "dim": index.dim, "metric": index.metric, "recipe": index.recipe, "bits": index.bits, "lists": index.lists,
        "seed": index.seed, "config": registry.config(stage), "n": index._n,
        "arrays": [k for k, a in own.items() if a is not None],
        "blocks": [[len(b.data), len(b.numbers), b.list_] for b in index._blocks],
        "layout": "codec" if index._scan() is None else "columns", "coarse": index.coarse,
        "starts": [] if index._scattered() else [int(b.numbers[0]) for b in index._blocks],
    }  # fmt: skip
    text = json.dumps(head, separators=(",", ":")).encode()
    body = bytearray()
    for _, array in stage.arrays().values():
        assert array is not None  # it is trained
        write_array(body, array, True)
    for name, leaf in _OWN.items():
        if (array := own[name]) is not None:
            write_array(body, array.astype(leaf.dtype), True)
    target = Path(path)
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as f:
            f.write(MAGIC + bytes([VERSION]) + len(text).to_bytes(8, "little") + text + checksum(text))
            f.write(len(body).to_bytes(8, "little") + body)
            for block in index._blocks:
                f.write(block.data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def _numbers(index: Index) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int64), *(b.numbers for b in index._blocks)]).astype(np.int64)


def load(path: str | PathLike[str], *, mmap: bool, originals: str | PathLike[str] | None) -> Index:
    """Opens a file; see `Index.load`."""
    from .index import Index

    with Path(path).open("rb") as f:
        size = os.fstat(f.fileno()).st_size
        if size < len(MAGIC) + 9:
            raise CorruptStream(f"{path}: {size} bytes; an index has more")
        data: Any = mmap_.mmap(f.fileno(), 0, access=mmap_.ACCESS_READ) if mmap else f.read()
    reader = Reader(memoryview(data))
    if bytes(reader.take(len(MAGIC))) != MAGIC:
        raise CorruptStream(f"{path} is no index of vectors")
    if (version := reader.take(1)[0]) not in range(1, VERSION + 1):
        raise CorruptStream(f"{path} has version {version}; this laconic reads versions 1 to {VERSION}")
    head = _head(reader, version)
    arrays, own, stage = _arrays(reader, head)
    try:
        index = Index(
            head["dim"],
            head["metric"],
            head["recipe"],
            head["bits"],
            head["lists"],
            head["seed"],
            coarse=head["coarse"],
        )
    except BadConfig as e:
        raise CorruptStream(f"the head cannot be: {e}") from None
    index.stage, index.trained, index._n = stage.with_arrays(arrays), True, head["n"]
    index.centroids, index._ids = own.get("centroids"), own.get("ids")
    if index.lists and (index.centroids is None or index.centroids.shape != (index.lists, index.dim)):
        raise CorruptStream(f"centroids do not fit {index.lists} lists of {index.dim} dimensions")
    index.list_prices = own.get("prices")
    if (p := index.list_prices) is not None and (p.shape != (index.lists,) or not np.isfinite(p).all()):
        raise CorruptStream(f"prices of shape {p.shape} for {index.lists} lists, or not finite")
    index.query_map = own.get("queries")
    if (m := index.query_map) is not None and (m.shape != (index.dim + 1, index.dim) or not np.isfinite(m).all()):
        raise CorruptStream(
            f"a map of queries of shape {m.shape}, or not finite; {(index.dim + 1, index.dim)} is right"
        )
    if index._ids is not None and index._ids.shape != (index._n,):
        raise CorruptStream(f"{index._ids.shape} ids for {index._n} vectors")
    index._errors = own.get("errors")
    if (e := index._errors) is not None and (e.shape != (index._n,) or not (np.isfinite(e) & (e >= 0)).all()):
        raise CorruptStream(f"errors of shape {e.shape} for {index._n} vectors, or not finite")
    if (dead := own.get("dead")) is not None:
        if dead.shape != (-(-index._n // 8),):
            raise CorruptStream(f"marks of removed vectors {dead.shape} for {index._n} vectors")
        index._dead = np.unpackbits(dead)[: index._n].astype(bool)
    index._blocks = _blocks(reader, head, own.get("numbers"))
    try:
        scan = index._scan()
    except BadConfig as e:
        raise CorruptStream(f"the head cannot be: {e}") from None
    if head["layout"] != "codec" and (scan is None or head["layout"] != "columns"):
        raise CorruptStream(f"codes laid out as {head['layout']!r} for a codec that has none but its own")
    planes = head["layout"] == "columns" and version < 4
    if scan is not None and (head["layout"] == "codec" or (planes and scan.where.n_fine)):
        index._blocks = [
            b._replace(data=relaid(index._ready(), b.data, len(b.numbers), scan, planes=planes)) for b in index._blocks
        ]
    if originals is not None:
        index._originals = Path(originals)
    return index


def _head(reader: Reader, version: int) -> dict[str, Any]:
    length = int.from_bytes(reader.take(8), "little")
    if length > _MOST_HEAD:
        raise CorruptStream(f"a head of {length:,} bytes")
    text = reader.take(length)
    if bytes(reader.take(4)) != checksum(text):
        raise CorruptStream("head: checksum mismatch")
    try:
        head = json.loads(bytes(text))
    except (ValueError, RecursionError) as e:
        raise CorruptStream(f"head is not JSON: {e}") from None
    if isinstance(head, dict):
        head |= ({"layout": "codec"} if version == 1 else {}) | ({"coarse": 0} if version < 4 else {})
    kinds: dict[str, Any] = {
        "dim": int, "metric": str, "recipe": str, "bits": (int, float), "lists": int, "seed": int, "config": dict, "n": int,
        "arrays": list, "blocks": list, "starts": list, "layout": str, "coarse": int,
    }  # fmt: skip
    if not isinstance(head, dict) or any(
        not isinstance(head.get(k), t) or isinstance(head[k], bool) for k, t in kinds.items()
    ):
        raise CorruptStream(f"the head lacks one of {', '.join(kinds)}")
    if any(name not in _OWN for name in head["arrays"]) or not 0 <= head["n"] < 1 << 40:
        raise CorruptStream(f"the head names arrays {head['arrays']} and {head['n']} vectors")
    return head


def _arrays(reader: Reader, head: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], Stage]:
    length = int.from_bytes(reader.take(8), "little")
    section = Reader(reader.take(length))
    try:
        stage = registry.build(head["config"])
    except BadConfig as e:
        raise CorruptStream(f"the codec cannot be: {e}") from None
    if getattr(stage, "takes", None) is not Kind.ARRAY or getattr(stage, "gives", None) is not Kind.BYTES:
        raise CorruptStream("the codec does not make bytes of arrays")
    with decode_budget(length + 64):
        learned = {name: read_array(section, name, leaf, True) for name, (leaf, _) in stage.arrays().items()}
        own = {name: read_array(section, name, _OWN[name], True) for name in _OWN if name in head["arrays"]}
    section.finish()
    return learned, own, stage  # type: ignore[return-value]


def _blocks(reader: Reader, head: dict[str, Any], numbers: np.ndarray | None) -> list[Block]:
    n, out, at = head["n"], [], 0
    starts = head["starts"] if numbers is None else [0] * len(head["blocks"])
    if len(starts) != len(head["blocks"]):
        raise CorruptStream(f"{len(starts)} starts of {len(head['blocks'])} blocks")
    for said, start in zip(head["blocks"], starts, strict=True):
        if not isinstance(said, list) or len(said) != 3 or any(type(v) is not int or v < 0 for v in (*said, start)):
            raise CorruptStream(f"a block of {str(said)[:60]}")
        n_bytes, rows, list_ = said
        if rows < 1 or rows > n or list_ >= max(1, head["lists"]) or (numbers is None and start + rows > n):
            raise CorruptStream(
                f"a block of {rows} vectors in list {list_}; {n} vectors and {head['lists']} lists are there"
            )
        claim(rows, "numbers of vectors")
        mine = np.arange(start, start + rows) if numbers is None else numbers[at : at + rows]
        at += rows
        if len(mine) != rows or mine.min() < 0 or mine.max() >= n:
            raise CorruptStream(f"numbers of a block do not run from 0 to {n - 1}")
        out.append(Block(reader.take(n_bytes), mine, list_))
    if numbers is not None and at != len(numbers):
        raise CorruptStream(f"{len(numbers)} numbers for {at} vectors")
    reader.finish()
    every = np.concatenate([b.numbers for b in out]) if out else np.empty(0, np.int64)
    if len(np.unique(every)) != len(every):
        raise CorruptStream("a vector is in two blocks")
    return out
