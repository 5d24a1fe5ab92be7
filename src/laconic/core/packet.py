"""Packets: one array (or byte string) coded, self-describing, checksummed; and `Codec`, which makes and reads them.

Layout, integers little-endian, `varint` = LEB128:

    magic "\\x89LAC" | u8 version | varint n | header, n bytes | u32 xxh32(header)
    sections of the learned arrays, if they are embedded | sections of the codec's output | end

The header is JSON, raw-deflated: recipe id, configuration of the codec, shape and dtype of what was coded, and either
nothing (learned arrays embedded) or the hash of the model they are in. See `wire` for sections.

Version 2 is for many packets in one file: in place of recipe and configuration the header names a codec, `Codec.key()`, that
the file keeps once for all.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import zlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from os import PathLike
from typing import Any, NamedTuple

import numpy as np

from . import registry
from .errors import BadConfig, BadInput, CorruptStream, ModelMismatch, NotFitted, decode_budget, unknown
from .stage import Kind, Levels, Part, Side, Stage, Stats
from .wire import Reader, Section, checksum, read_array, read_sections, write_array, write_sections, write_varint

MAGIC = b"\x89LAC"
VERSION = 1
SHARED_VERSION = 2
MAX_HEADER = 1 << 20
_KEPT = 1 << 13  # characters of a configuration that is kept
WORKING_BYTES = 16 << 20
DEFAULT_LIMIT = 1 << 32  # bytes decoded from one packet, unless the caller allows more
ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "uint8": 1, "int8": 1, "uint16": 2, "int16": 2,
              "uint32": 4, "int32": 4, "uint64": 8, "int64": 8, "bool": 1, "bytes": 1, "float8_e4m3fn": 1,
              "float8_e5m2": 1}  # fmt: skip


class Ledger(NamedTuple):
    """Where every byte of a packet went. `sum(by_role().values())` is the packet's length."""

    sections: list[Section]
    header_bytes: int

    def by_role(self) -> dict[str, int]:
        """Bytes per role; framing and checksums count as header."""
        out: dict[str, int] = {}
        for s in self.sections:
            out[s.role] = out.get(s.role, 0) + s.data_bytes
        framing = sum(s.framing_bytes for s in self.sections)
        return {**{k: v for k, v in out.items() if v}, "header": out.get("header", 0) + self.header_bytes + framing}


class Info(NamedTuple):
    """What a packet says of itself."""

    recipe: str
    config: dict[str, Any]
    shape: tuple[int, ...]
    dtype: str
    model: str | None
    ledger: Ledger

    @property
    def n_elements(self) -> int:
        """Number of values that were coded."""
        return math.prod(self.shape)

    @property
    def packet_bytes(self) -> int:
        """Length of the packet."""
        return sum(self.ledger.by_role().values())

    @property
    def bits_per_element(self) -> float:
        """The rate: all bits of the packet over the number of values."""
        return 8 * self.packet_bytes / max(self.n_elements, 1)


@dataclass(frozen=True)
class Codec:
    """A stage that gives bytes, and the name of the recipe that built it.

    `encode` takes what the stage takes: a tensor, an array or anything NumPy makes one of; or bytes. Half and double
    arrays are calculated in float32 and come back in their dtype; NaN and Inf are refused unless the codec is lossless.
    """

    stage: Stage
    recipe: str = ""

    def __post_init__(self) -> None:
        if self.stage.gives is not Kind.BYTES:
            raise BadConfig(f"a codec ends in bytes; {type(self.stage).__name__} gives {self.stage.gives.value}")

    def fit(self, x: Any, stats: Stats | None = None) -> Codec:
        """A codec that has learned from `x` what it needs to."""
        return Codec(self.stage.fit(_prepare(self.stage, x).value, stats), self.recipe)

    def key(self) -> str:
        """Eight hexadecimal digits that stand for this codec in packets which share it."""
        said = json.dumps([self.recipe, registry.config(self.stage)], separators=(",", ":"), sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()[:8]

    def encode(self, x: Any, *, embed: bool = True, shared: str | None = None) -> bytes:
        """One packet. With `embed=False` learned arrays are left out and the packet holds the hash of `model()`.

        shared: the key of a codec, equal to this one in all that a decoder needs, which the reader will have.
        """
        source = _prepare(self.stage, x)
        if missing := [k for k, (_, a) in self.stage.arrays().items() if a is None]:
            raise NotFitted(f"{', '.join(missing)} not learned yet; call .fit(x) first")
        header: dict[str, Any] = {"recipe": self.recipe, "config": registry.config(self.stage),
                                  "shape": list(source.shape), "dtype": source.dtype}  # fmt: skip
        if shared is not None:
            header = {"codec": shared, "shape": header["shape"], "dtype": header["dtype"]}
        body = bytearray()
        if self.stage.arrays():
            if embed:
                for _, array in self.model().items():
                    write_array(body, array, True)
            else:
                header["model"] = self.model_hash()
        if source.n_elements:
            y, side = self.stage.encode(source.value)
            body += write_sections(self.stage, {**side, "payload": y})
        head = _deflate(json.dumps(header, separators=(",", ":")).encode())
        out = bytearray(MAGIC)
        out.append(VERSION if shared is None else SHARED_VERSION)
        write_varint(out, len(head))
        out += head
        out += checksum(head)
        return bytes(out + body)

    def decode(self, packet: bytes, *, limit_bytes: int = DEFAULT_LIMIT) -> Any:
        """What `encode` was given, as the codec keeps it; learned arrays come from this codec if not in the packet."""
        return decode(packet, model=self, limit_bytes=limit_bytes)

    def model(self) -> dict[str, np.ndarray]:
        """The learned arrays by dotted path."""
        return {k: a for k, (_, a) in self.stage.arrays().items() if a is not None}

    def model_hash(self) -> str:
        """Hash of the learned arrays: names, dtypes, shapes and bytes."""
        return _model_hash(self.model())

    def save_model(self, path: str | PathLike[str]) -> None:
        """Write the learned arrays as safetensors."""
        from safetensors.numpy import save_file

        save_file(self.model(), path, metadata={"laconic": self.model_hash()})


def codec(name: str, **settings: Any) -> Codec:
    """The codec of a recipe, e.g. `codec("turboquant", bits=3)`.

    Raises BadConfig for an unknown id, an unknown setting, or a value that cannot work.
    """
    build = registry.load(registry.recipe(name).target)
    known = list(inspect.signature(build).parameters)
    for setting in settings:
        if setting not in known:
            raise BadConfig(f"recipe {name!r}: {unknown('setting', setting, known)}")
    built = build(**settings)
    return Codec(built if isinstance(built, Stage) else built.codec, name)


class _Source(NamedTuple):
    value: Any
    shape: tuple[int, ...]
    dtype: str
    n_elements: int


def _prepare(stage: Stage, x: Any) -> _Source:
    """Check the input and bring it into the form that the stage takes. Raises BadInput."""
    if stage.takes is Kind.BYTES:
        if not isinstance(x, (bytes, bytearray, memoryview)):
            raise BadInput(f"this codec takes bytes; got {type(x).__name__}")
        data = bytes(x)
        return _Source(data, (len(data),), "bytes", len(data))
    import torch

    if isinstance(x, (bytes, bytearray, memoryview, str)):
        raise BadInput(f"this codec takes an array; got {type(x).__name__}")
    try:
        t = x.detach() if isinstance(x, torch.Tensor) else torch.as_tensor(_writeable(x))
    except TypeError as e:
        raise BadInput(f"not an array of numbers: {e}") from None
    shape, dtype = tuple(x.shape) if hasattr(x, "shape") else tuple(t.shape), str(t.dtype).removeprefix("torch.")
    if dtype not in stage.accepts:
        raise BadInput(f"dtype {dtype}; this codec takes {', '.join(stage.accepts)}")
    t = t.reshape(shape if shape else (1,)).contiguous()
    if t.numel() and not stage.lossless and t.is_floating_point():
        low = t.to(torch.float32) if stage.casts else t
        if not bool(torch.isfinite(low).all()):
            bad = int((~torch.isfinite(t)).sum())
            raise BadInput(f"{bad} of {t.numel()} values are NaN or Inf; a lossy codec needs finite values" if bad
                           else "values beyond the range of float32; scale the array first")  # fmt: skip
        t = low
    return _Source(t, shape, dtype, t.numel())


def _writeable(x: Any) -> np.ndarray:
    """A contiguous array that torch can share; a read-only one is copied, as torch has no such tensors."""
    a = np.ascontiguousarray(x)
    return a if a.flags.writeable else a.copy()


def _deflate(data: bytes) -> bytes:
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    return coder.compress(data) + coder.flush()


def _inflate(data: bytes) -> bytes:
    coder = zlib.decompressobj(-15)
    try:
        out = coder.decompress(data, MAX_HEADER)
    except zlib.error as e:
        raise CorruptStream(f"header: {e}") from None
    if not coder.eof or coder.unused_data:
        raise CorruptStream(f"header does not end where it says, or is longer than {MAX_HEADER:,} bytes")
    return out


def _model_hash(arrays: Mapping[str, np.ndarray]) -> str:
    h = hashlib.sha256()
    for name in sorted(arrays):
        h.update(f"{name}:{arrays[name].dtype.str}:{arrays[name].shape};".encode())
        h.update(np.ascontiguousarray(arrays[name]).tobytes())
    return h.hexdigest()[:32]


class _Opened(NamedTuple):
    stage: Stage
    header: dict[str, Any]
    reader: Reader
    header_bytes: int

    @property
    def n_elements(self) -> int:
        return math.prod(self.header["shape"])


def _open(packet: bytes | memoryview, limit_bytes: int, codecs: Mapping[str, Codec] | None = None) -> _Opened:
    """The header, checked, and the codec it describes, without its learned arrays."""
    reader = Reader(packet)
    if bytes(packet[:4]) != MAGIC:
        raise CorruptStream(f"not a laconic packet: it begins with {bytes(packet[:4])!r}, not {MAGIC!r}")
    reader.take(4)
    if (version := reader.take(1)[0]) not in (VERSION, SHARED_VERSION):
        raise CorruptStream(f"packet version {version}; this laconic reads versions {VERSION} and {SHARED_VERSION}")
    n = reader.varint()
    if n > MAX_HEADER:
        raise CorruptStream(f"a header of {n:,} bytes; at most {MAX_HEADER:,} are allowed")
    head = reader.take(n)
    if reader.take(4) != checksum(head):
        raise CorruptStream("header: checksum mismatch")
    header = _checked(_inflate(bytes(head)), version == SHARED_VERSION)
    known: Codec | None = None
    if version == SHARED_VERSION:
        known = (codecs or {}).get(header["codec"])
        if known is None:
            raise ModelMismatch(f"the packet shares codec {header['codec']!r}; read it through the file it belongs to")
        header = {**header, "recipe": known.recipe, "config": registry.config(known.stage)}
    declared = math.prod(header["shape"]) * ITEM_BYTES[header["dtype"]]
    if declared > limit_bytes:
        raise CorruptStream(
            f"decodes to {declared:,} bytes; the limit is {limit_bytes:,} (raise limit_bytes to allow it)"
        )
    stage = _stage_of(header["config"]) if known is None else known.stage
    if not isinstance(stage, Stage) or stage.gives is not Kind.BYTES:
        raise CorruptStream(f"configuration is a {type(stage).__name__}, not a codec")
    if (stage.takes is Kind.BYTES) != (header["dtype"] == "bytes"):
        raise CorruptStream(f"header says {header['dtype']}, the codec takes {stage.takes.value}")
    return _Opened(stage, header, reader, reader.at)


def _stage_of(config: dict[str, Any]) -> Part:
    """The part of a configuration. The packets of a file have one of a few, and parts do not change, so they are kept."""
    try:
        text = json.dumps(config)
    except RecursionError:
        raise CorruptStream("a configuration that is nested too deep") from None
    return _built(text) if len(text) < _KEPT else registry.build(config)


@lru_cache(maxsize=64)
def _built(config: str) -> Part:
    return registry.build(json.loads(config))


def _embedded(opened: _Opened, seen: list[Section]) -> dict[str, np.ndarray]:
    """The learned arrays that lie in the packet; none where the header names a model."""
    arrays: dict[str, np.ndarray] = {}
    if "model" not in opened.header:
        for name, (leaf, _) in opened.stage.arrays().items():
            arrays[name] = read_array(opened.reader, name, leaf, True, seen)
    return arrays


def _model_arrays(model: Codec | str | PathLike[str] | None) -> dict[str, np.ndarray]:
    if isinstance(model, Codec):
        return model.model()
    if model is None:
        raise ModelMismatch("the packet's learned arrays are in a model file; pass it as model=")
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(model))
    except SafetensorError as e:
        raise ModelMismatch(f"{model} is no safetensors file: {e}") from None


def _checked(data: bytes, shared: bool) -> dict[str, Any]:
    try:
        header = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise CorruptStream(f"header is not JSON: {e}") from None
    fields: dict[str, type] = {"codec": str} if shared else {"recipe": str, "config": dict}
    fields = {**fields, "shape": list, "dtype": str}
    if not isinstance(header, dict) or any(not isinstance(header.get(k), t) for k, t in fields.items()):
        raise CorruptStream(f"header lacks one of {', '.join(fields)}")
    if extra := set(header) - set(fields) - {"model"}:
        raise unknown("header field", min(extra), [*fields, "model"])
    shape = header["shape"]
    if len(shape) > 16 or any(not isinstance(d, int) or isinstance(d, bool) or not 0 <= d < 1 << 48 for d in shape):
        raise CorruptStream(f"header gives shape {str(shape)[:80]}")
    if header["dtype"] not in ITEM_BYTES:
        raise CorruptStream(f"header gives dtype {header['dtype']!r}; known are {', '.join(ITEM_BYTES)}")
    if header["dtype"] == "bytes" and len(shape) != 1:
        raise CorruptStream(f"header gives shape {shape} to bytes")
    return header


def decode(
    packet: bytes | memoryview,
    *,
    model: Codec | str | PathLike[str] | None = None,
    codecs: Mapping[str, Codec] | None = None,
    limit_bytes: int = DEFAULT_LIMIT,
) -> Any:
    """What the packet holds: bytes, or a tensor of the shape and dtype that was coded.

    model: the codec or safetensors file with the learned arrays, for packets made with `embed=False`.
    codecs: by key, the codecs that packets of one file share.
    limit_bytes: refuse packets that decode to more.
    Raises CorruptStream, ModelMismatch, BadConfig (a part or field this version does not know).
    """
    stage, opened = _fitted(packet, model, codecs, limit_bytes)
    shape, dtype = tuple(opened.header["shape"]), opened.header["dtype"]
    with _working(opened):
        if not opened.n_elements:
            opened.reader.finish()
            return b"" if dtype == "bytes" else _empty(shape, dtype)
        side = _sections(stage, opened)
        y = stage.decode(side.pop("payload"), side)
    if stage.takes is Kind.BYTES:
        if len(y) != shape[0]:
            raise CorruptStream(f"decoded {len(y):,} bytes, header says {shape[0]:,}")
        return y
    return _restore(y, shape, dtype)


def levels(
    packet: bytes | memoryview, *, codecs: Mapping[str, Codec] | None = None, limit_bytes: int = DEFAULT_LIMIT
) -> Levels | None:
    """What `decode` would give as integers and steps, where the codec is made of them and its input was float32.

    Raises CorruptStream, ModelMismatch, BadConfig.
    """
    stage, opened = _fitted(packet, None, codecs, limit_bytes)
    if not opened.n_elements or opened.header["dtype"] != "float32":
        return None
    with _working(opened):
        side = _sections(stage, opened)
        found = stage.levels(side.pop("payload"), side)
    if found is not None and list(found.level.shape) != opened.header["shape"]:
        raise CorruptStream(f"decoded shape {found.level.shape}, header says {tuple(opened.header['shape'])}")
    return found


def _fitted(
    packet: bytes | memoryview,
    model: Codec | str | PathLike[str] | None,
    codecs: Mapping[str, Codec] | None,
    limit: int,
) -> tuple[Stage, _Opened]:
    """The codec of a packet with its learned arrays, and the reader before the sections."""
    with decode_budget(64 << 20):
        opened = _open(packet, limit, codecs)
        arrays = _embedded(opened, [])
    if wanted := opened.header.get("model"):
        arrays = _model_arrays(model)
        if _model_hash(arrays) != wanted:
            raise ModelMismatch(f"packet needs model {wanted}, given is {_model_hash(arrays)}")
    return opened.stage.with_arrays(arrays), opened


def _working(opened: _Opened) -> AbstractContextManager[None]:
    """Inside, values are float32 or 64-bit integers and a transform may pad: 16 bytes an element; adaptive models and
    tables have a size of their own: a floor."""
    return decode_budget(16 * opened.n_elements + WORKING_BYTES)


def _sections(stage: Stage, opened: _Opened) -> Side:
    """The packet's sections to its end."""
    side = read_sections(stage, opened.reader)
    opened.reader.finish()
    return side


def _empty(shape: tuple[int, ...], dtype: str) -> Any:
    import torch

    return torch.empty(shape, dtype=getattr(torch, dtype))


def _restore(y: Any, shape: tuple[int, ...], dtype: str) -> Any:
    import torch

    if tuple(y.shape) != (shape or (1,)):
        raise CorruptStream(f"decoded shape {tuple(y.shape)}, header says {shape}")
    target = getattr(torch, dtype)
    if y.dtype != target:
        if not target.is_floating_point:
            raise CorruptStream(f"decoded {y.dtype}, header says {dtype}")
        if dtype in ("float16", "bfloat16"):  # saturate: an overshoot of the reconstruction must not become Inf
            y = y.clamp(torch.finfo(target).min, torch.finfo(target).max)
        y = y.to(target)
    return y.reshape(shape)


def info(
    packet: bytes | memoryview, *, codecs: Mapping[str, Codec] | None = None, limit_bytes: int = DEFAULT_LIMIT
) -> Info:
    """Header and rate ledger of a packet; checks every checksum, decodes nothing."""
    with decode_budget(len(packet)):
        opened = _open(packet, limit_bytes, codecs)
        sections: list[Section] = []
        _embedded(opened, sections)
        if opened.n_elements:
            read_sections(opened.stage, opened.reader, seen=sections)
        opened.reader.finish()
    h = opened.header
    ledger = Ledger(sections, opened.header_bytes)
    return Info(h["recipe"], h["config"], tuple(h["shape"]), h["dtype"], h.get("model"), ledger)
