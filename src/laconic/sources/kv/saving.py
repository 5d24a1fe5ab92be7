"""A prompt's cache as a file that many requests share, and fitted codecs as a file.

    magic "\\x89LAK" | u8 version | varint n | header, n bytes | u32 xxh32(header) | sections

The header is JSON, raw-deflated: recipe and settings, fingerprints of the model, of the codecs and of what they learned, the
layers, and dtype and shape of every section. A section begins at a multiple of 64 bytes, so that codes can be read where they
lie in the file: data | u32 xxh32(data). Layers name their sections by number. Only what is there is written: a page that beams
share is there once.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.cache_utils import DynamicCache

from ...core import registry
from ...core.errors import BadConfig, CorruptStream, ModelMismatch, claim, decode_budget
from ...core.packet import Codec
from ...core.stage import Stage
from ...core.wire import Reader, checksum, read_array, read_sections, write_array, write_sections, write_varint
from ...quantize.coordinates import BLOCK
from .evict import Probes
from .fit import Fitted, fingerprint
from .inputs import Inputs
from .layer import CompressedLayer, Ends
from .past import CodedPast, Page, PagedPast, Run, Share, decoded
from .recipe import CacheRecipe
from .store import Site

if TYPE_CHECKING:
    from torch import Tensor

    from .cache import CompressedCache

__all__ = ["from_bytes", "load", "load_fitted", "save", "save_fitted", "to_bytes"]

MAGIC = b"\x89LAK"
VERSION = 1
ALIGN = 64
MAX_HEADER = 16 << 20
WORKING_BYTES = 64 << 20  # that a small file may ask for: tables of the codecs, a share that is decoded
DTYPES = ("uint8", "int32", "int64", "float16", "bfloat16", "float32", "float64")
FORMAT = 1  # of files of fitted codecs


# --- files


def save(cache: CompressedCache, path: str | os.PathLike[str]) -> int:
    """Write a cache beside `path` and rename it; its bytes on disk. Raises BadConfig as `to_bytes` does."""
    path = Path(path)
    pieces = _pieces(cache)
    first = next(pieces)  # what cannot be saved says so before there is a file
    beside = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        with open(beside, "wb") as f:
            f.write(first)
            f.writelines(pieces)
            f.flush()
            os.fsync(f.fileno())
            n = f.tell()
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return n


def to_bytes(cache: CompressedCache) -> bytes:
    """The file's bytes. Raises BadConfig for a cache whose store has no form on disk, or whose settings are no plain values."""
    return b"".join(_pieces(cache))


def load(
    path: str | os.PathLike[str],
    model: Any,
    recipe: str | CacheRecipe | Fitted | None = None,
    *,
    attention: str = "packed",
    mapped: bool = False,
) -> CompressedCache:
    """A cache of its own from a file, for the model that it was made with.

    model: or its configuration, and then attention is dense. recipe: as `cache` takes it; needed where codecs were fitted to
    calibration, or the recipe has no name. mapped: codes in pages stay in the file and are shared by all who map it; they are
    never written to, and the file must outlive the cache.

    Raises
    ------
    CorruptStream: a damaged file. ModelMismatch: it is of another model, recipe, or codecs.
    """
    with open(path, "rb") as f:
        size = os.fstat(f.fileno()).st_size
        data: Any = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) if mapped and size else f.read()
    return _read(data, model, recipe, attention, mapped)


def from_bytes(
    data: bytes, model: Any, recipe: str | CacheRecipe | Fitted | None = None, *, attention: str = "packed"
) -> CompressedCache:
    """The inverse of `to_bytes`. Raises as `load` does."""
    return _read(data, model, recipe, attention, False)


# --- what a file says of where it came from


def said(recipe: CacheRecipe) -> dict[str, Any]:
    """The fields of a recipe that are plain values."""
    plain = ((f.name, getattr(recipe, f.name)) for f in fields(recipe))
    return {k: v for k, v in plain if v is None or isinstance(v, (bool, int, float, str))}


def _digest(thing: Any) -> str:
    return hashlib.sha256(json.dumps(thing, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def _hash_of(pairs: dict[int, tuple[Stage, Stage]]) -> str:
    """Of the configuration of codecs and of what they learned."""
    return _digest(
        [[n, *([registry.config(c), Codec(c).model_hash()] for c in pair)] for n, pair in sorted(pairs.items())]
    )


def _codecs(cache: CompressedCache) -> str:
    """Of the codecs that a cache was made with: fitted, or as the recipe builds them."""
    if cache.fitted is not None:
        return _hash_of(cache.fitted.codecs)
    recipe, rate = cache.origin.recipe, cache.origin.rate
    return _hash_of({0: (recipe.keys(rate), recipe.values(rate))})


def _weights(cache: CompressedCache) -> str | None:
    """Of some weights of every attention module, in sixteen bits; None where the cache does not know the modules."""
    h = hashlib.sha256()
    for layer in cache.compressed:
        if layer.plan.module is None:
            return None
        for name, p in layer.plan.module.named_parameters():
            h.update(f"{layer.number}.{name}:{tuple(p.shape)};".encode())
            h.update(p.detach().flatten()[:16].to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return h.hexdigest()[:16]


# --- writing


class _Sections:
    """Arrays that are written behind the header, by number."""

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []
        self.table: list[list[Any]] = []

    def add(self, array: np.ndarray | Tensor) -> int:
        if isinstance(array, torch.Tensor):
            name, array = str(array.dtype).removeprefix("torch."), array.detach().cpu().contiguous()
            array = (array.view(torch.int16) if name == "bfloat16" else array).numpy()
        else:
            name = array.dtype.name
        self.table.append([name, list(array.shape)])
        self.arrays.append(np.ascontiguousarray(array))
        return len(self.arrays) - 1

    def maybe(self, array: np.ndarray | Tensor | None) -> int | None:
        return None if array is None else self.add(array)


def _pieces(cache: CompressedCache) -> Iterator[bytes]:
    for layer in cache.compressed:
        layer.settle()
    sections = _Sections()
    layers = [_layer_out(layer, sections) for layer in cache.layers]
    origin = cache.origin
    header = {"recipe": cache.recipe, "settings": origin.settings, "said": said(origin.recipe), "rate": origin.rate,
              "model": origin.model, "weights": _weights(cache), "fitted": cache.fitted is not None,
              "codecs": _codecs(cache), "layers": layers, "sections": sections.table}  # fmt: skip
    try:
        text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as e:
        raise BadConfig(f"settings {origin.settings} of recipe {cache.recipe!r} are no plain values: {e}") from None
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = coder.compress(text) + coder.flush()
    out = bytearray(MAGIC)
    out.append(VERSION)
    write_varint(out, len(head))
    out += head
    out += checksum(head)
    at = len(out)
    yield bytes(out)
    for array in sections.arrays:
        data = array.tobytes()
        yield bytes(-at % ALIGN) + data + checksum(data)
        at += -at % ALIGN + len(data) + 4


def _layer_out(layer: Any, sections: _Sections) -> dict[str, Any] | None:
    states = _states_out(layer, sections) if hasattr(layer, "recurrent_states") else None
    if not isinstance(layer, CompressedLayer):
        if states is None and getattr(layer, "is_initialized", False):
            raise BadConfig(f"a layer of {type(layer).__name__} has no form on disk")
        return None if states is None else {"states": states}
    if layer.window is None:
        return None if states is None else {"states": states}
    site = layer.site
    out: dict[str, Any] = {
        "seen": layer.n_seen, "heads": site.n_heads, "d": site.d, "d_value": site.d_value,
        "dtype": str(layer.dtype).removeprefix("torch."), "window": _ends_out(layer.window, sections),
        "sinks": None if layer.sinks is None else _ends_out(layer.sinks, sections),
        "queries": sections.maybe(layer.queries), "shift": sections.maybe(layer.shift),
        "probes": None if layer.probes is None else [sections.add(layer.probes.queries), sections.add(layer.probes.at)],
        "states": states,
    }  # fmt: skip
    if layer.store is not None:
        out["store"] = _store_out(layer, sections)
    return out


def _ends_out(ends: Ends, sections: _Sections) -> list[int]:
    both = [ends.keys, ends.values]
    return [sections.add(t) for t in (both if ends.inputs is None else [*both, ends.inputs.x, ends.inputs.shift])]


def _states_out(layer: Any, sections: _Sections) -> list[list[Any]]:
    return [
        [sections.maybe(layer.conv_states[i]), sections.maybe(layer.recurrent_states[i]), layer.conv_kernel_size[i],
         bool(layer.has_previous_state[i])]
        for i in range(layer.number_of_states)
    ]  # fmt: skip


def _store_out(layer: CompressedLayer, sections: _Sections) -> dict[str, Any]:
    store: Any = layer.store
    if not hasattr(store, "pasts"):
        raise BadConfig(f"a {type(store).__name__} has no form on disk; its recipe's caches cannot be saved")
    own = None
    if layer.learned is not None:  # from this prompt, so it goes with it
        own = [[registry.config(c), [sections.add(a) for _, a in c.arrays().values()]] for c in layer.learned]
    pasts = [(_pages_out if p.paged else _runs_out)(p, sections) for p in store.pasts]
    return {"first": store.first, "shift": sections.maybe(store.shift), "own": own, "pasts": pasts}


def _numbered(things: Sequence[Any], key: Callable[[Any], Any]) -> tuple[list[Any], dict[Any, int]]:
    """Each thing once, and its number by key."""
    once = {key(t): t for t in things}
    return list(once.values()), {k: i for i, k in enumerate(once)}


def _pages_out(past: PagedPast, sections: _Sections) -> dict[str, Any]:
    pages, number = _numbered([p for pages in past.pages for p in pages], lambda p: p.at)
    order = np.array([[number[p.at] for p in pages] for pages in past.pages], np.int32)
    size = int(past.tables.block_bytes.sum())
    there = [past.on_host(p) for p in pages]
    codes = np.stack([c for c, _ in there]) if pages else np.empty((0, size), np.uint8)
    norms = np.stack([n for _, n in there]) if pages and past.codes.scale != "none" else None
    return {"tokens": past.n_tokens, "dropped": past.dropped, "exact": past.exact, "broken": sorted(past.broken),
            "codes": sections.add(codes), "norms": sections.maybe(norms), "order": sections.add(order)}  # fmt: skip


def _runs_out(past: CodedPast, sections: _Sections) -> dict[str, Any]:
    shares, number = _numbered([c for r in past.runs for c in r.coded], id)
    order = np.array([[number[id(c)] for c in r.coded] for r in past.runs], np.int32)
    base, configs, out = registry.config(past.codec), [], bytearray()
    for c in shares:
        config = base if c.codec is None else registry.config(c.codec)
        if config != base and config not in configs:
            configs.append(config)
        body = _share_out(c, c.codec or past.codec)
        write_varint(
            out, 0 if c.exact else 1 if c.codec is None else 2 if config == base else 3 + configs.index(config)
        )
        write_varint(out, len(body))
        out += body
    bounds = np.array([[r.start, r.stop] for r in past.runs], np.int64)
    return {"exact": past.exact, "broken": sorted(past.broken), "bounds": sections.add(bounds), "order": sections.add(order),
            "configs": configs, "shares": sections.add(np.frombuffer(bytes(out), np.uint8))}  # fmt: skip


def _share_out(c: Share, codec: Stage) -> bytes:
    if c.exact:
        out = bytearray()
        for n in c.side["outer"]:
            write_varint(out, int(n))
        return bytes(out) + c.payload
    out = bytearray()
    if c.codec is not None:
        for _, a in c.codec.arrays().values():
            assert a is not None  # it was fitted
            write_array(out, a, False)
    return bytes(out) + write_sections(codec, {**c.side, "payload": c.payload}, False)


# --- reading


class _File:
    """The header, checked, and sections by number, checked against their sums."""

    def __init__(self, data: Any, mapped: bool) -> None:
        self.data, self.mapped = memoryview(data), mapped
        reader = Reader(self.data)
        if bytes(self.data[:4]) != MAGIC:
            raise CorruptStream(f"not a saved cache: it begins with {bytes(self.data[:4])!r}, not {MAGIC!r}")
        reader.take(4)
        if (version := reader.take(1)[0]) != VERSION:
            raise CorruptStream(f"saved cache of version {version}; this laconic reads version {VERSION}")
        n = reader.varint()
        if n > MAX_HEADER:
            raise CorruptStream(f"a header of {n:,} bytes; at most {MAX_HEADER:,} are allowed")
        head = bytes(reader.take(n))
        if bytes(reader.take(4)) != checksum(head):
            raise CorruptStream("header: checksum mismatch")
        self.header = _json(head)
        self.arrays = [self._section(reader, i, entry) for i, entry in enumerate(self.header["sections"])]
        reader.finish()

    def _section(self, reader: Reader, number: int, entry: Any) -> np.ndarray:
        match entry:
            case [str(name), list(shape)] if name in DTYPES and len(shape) <= 8 and all(map(_count, shape)):
                dtype = np.dtype("int16" if name == "bfloat16" else name)
            case _:
                raise CorruptStream(f"section {number} is said to be {str(entry)[:80]}; a dtype and a shape are right")
        if any(reader.take(-reader.at % ALIGN)):
            raise CorruptStream(f"section {number} does not begin where it should")
        data = reader.take(math.prod(shape) * dtype.itemsize)
        if bytes(reader.take(4)) != checksum(data):
            raise CorruptStream(f"section {number}: checksum mismatch")
        return np.frombuffer(data, dtype).reshape(shape)

    def array(self, number: Any, dtype: str, n_dims: int | None = None) -> np.ndarray:
        """A section as it lies, read-only."""
        if not _count(number) or number >= len(self.arrays):
            raise CorruptStream(f"section {str(number)[:20]} of {len(self.arrays)}")
        found, name = self.arrays[number], self.header["sections"][number][0]
        if name != dtype or n_dims not in (None, found.ndim):
            raise CorruptStream(f"section {number} is {name} {found.shape}; {dtype} of {n_dims} axes is right")
        return found

    def tensor(self, number: Any, dtypes: Sequence[str], shape: Sequence[int | None] | None) -> Tensor:
        """A section as a tensor of its own. shape: None for an axis that may have any length, or where all may."""
        name = self.header["sections"][number][0] if _count(number) and number < len(self.arrays) else ""
        if name not in dtypes:
            raise CorruptStream(f"section {str(number)[:20]} is {name or 'not there'}; {' or '.join(dtypes)} is right")
        found = self.array(number, name, None if shape is None else len(shape))
        if shape is not None and any(want not in (None, got) for want, got in zip(shape, found.shape, strict=True)):
            raise CorruptStream(f"section {number} has shape {found.shape}; {tuple(shape)} is right")
        out = torch.from_numpy(found.copy())
        return out.view(torch.bfloat16) if name == "bfloat16" else out


def _count(n: Any) -> bool:
    return isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 48


def _json(head: bytes) -> dict[str, Any]:
    coder = zlib.decompressobj(-15)
    try:
        text = coder.decompress(head, MAX_HEADER)
        found = json.loads(text) if coder.eof and not coder.unused_data else None
    except (zlib.error, ValueError, RecursionError) as e:
        raise CorruptStream(f"header: {e}") from None
    kinds = {"recipe": str, "settings": dict, "said": dict, "rate": (int, float), "model": str, "weights": (str, type(None)),
             "fitted": bool, "codecs": str, "layers": list, "sections": list}  # fmt: skip
    return _checked(found, kinds, "header")


def _checked(found: Any, kinds: dict[str, Any], what: str) -> dict[str, Any]:
    """`found` if it is an object with these fields and no others."""
    if not isinstance(found, dict) or set(found) != set(kinds):
        raise CorruptStream(f"{what} has not the fields {', '.join(kinds)}")
    for name, kind in kinds.items():
        if not (_count(found[name]) if kind is int else isinstance(found[name], kind)):
            raise CorruptStream(f"{what}: {name} is {str(found[name])[:60]!r}")
    return found


def _read(data: Any, model: Any, recipe: Any, attention: str, mapped: bool) -> CompressedCache:
    with decode_budget(WORKING_BYTES + 64 * len(data)):
        file = _File(data, mapped)
        made = _made(file.header, model, recipe, attention)
        layers = file.header["layers"]
        if len(layers) != len(made.layers):
            raise CorruptStream(f"{len(layers)} layers; the model has {len(made.layers)}")
        for layer, entry in zip(made.layers, layers, strict=True):
            if entry is not None:
                _layer_in(layer, entry, file)
    _recurrent(made, model)
    there = [x for x in made.compressed if x.window is not None]
    if len({(x.n_seen, len(x.window.keys)) for x in there if x.window is not None}) > 1:
        raise CorruptStream("layers of different lengths, or of different batches")
    return made


def _recurrent(cache: CompressedCache, model: Any) -> None:
    """Check recurrent states against those that one token leaves in the model. Raises CorruptStream."""
    mine = [x for x in cache.layers if any(getattr(x, "has_previous_state", {}).values())]
    if not mine or not isinstance(model, torch.nn.Module):
        return
    n_batch = {len(x.window.keys) for x in cache.compressed if x.window is not None}
    right = DynamicCache(config=model.config)
    with torch.no_grad():
        model(
            input_ids=torch.zeros(1, 1, dtype=torch.int64, device=model.device), past_key_values=right, use_cache=True
        )
    for layer, other in zip(cache.layers, right.layers, strict=True):
        for i in range(layer.number_of_states if layer in mine else 0):
            for got, want in (
                (layer.conv_states[i], other.conv_states[i]),
                (layer.recurrent_states[i], other.recurrent_states[i]),
            ):
                seen, due = (None if t is None else (tuple(t.shape[1:]), t.dtype) for t in (got, want))
                if seen != due or not layer.has_previous_state[i] or (got is not None and n_batch - {len(got)}):
                    raise CorruptStream(f"a recurrent state of {seen}; {due} for each of {n_batch} sequences is right")
            if layer.conv_kernel_size[i] != other.conv_kernel_size[i]:
                raise CorruptStream(
                    f"a convolution over {layer.conv_kernel_size[i]}; {other.conv_kernel_size[i]} is right"
                )


def _made(header: dict[str, Any], model: Any, recipe: Any, attention: str) -> CompressedCache:
    """An empty cache for the model, with the recipe and codecs of the file. Raises ModelMismatch."""
    from .cache import cache

    config = model.config if isinstance(model, torch.nn.Module) else model
    attention = attention if isinstance(model, torch.nn.Module) else "dense"
    if header["model"] != fingerprint(config):
        raise ModelMismatch(f"the cache is of model {header['model']}; this is {fingerprint(config)}")
    name = header["recipe"]
    if isinstance(recipe, Fitted):
        made = cache(model, recipe=recipe, attention=attention)
    else:
        if header["fitted"]:
            raise ModelMismatch(
                f"recipe {name!r} was fitted to calibration text; give what fitted it, recipe=Fitted.load(…)"
            )
        own = said(recipe) if isinstance(recipe, CacheRecipe) else header["said"]
        ends = {k: v for k in ("window", "sinks") if _count(v := own.get(k))}
        settings = (
            {} if isinstance(recipe, CacheRecipe) else _settings(name if recipe is None else recipe, header["settings"])
        )
        made = cache(model, recipe=name if recipe is None else recipe, bits=_rate(header["rate"]), attention=attention,
                     **ends, **settings)  # fmt: skip
    if made.recipe != name:
        raise ModelMismatch(f"the cache is of recipe {name!r}; this is {made.recipe!r}")
    if header["fitted"] != (made.fitted is not None) or header["codecs"] != _codecs(made):
        theirs, ours = header["codecs"], _codecs(made)
        raise ModelMismatch(f"the cache of recipe {name!r} was coded by other codecs, {theirs}; these are {ours}")
    if header["said"] != said(made.origin.recipe):
        raise ModelMismatch(
            f"the cache is of recipe {name!r} with {header['said']}; this is {said(made.origin.recipe)}"
        )
    if None not in (header["weights"], mark := _weights(made)) and header["weights"] != mark:
        raise ModelMismatch(f"the cache is of a model with other weights ({header['weights']}; these are {mark})")
    return made


def _rate(rate: Any) -> float:
    if isinstance(rate, bool) or not 0 < rate <= 64:
        raise CorruptStream(f"a rate of {str(rate)[:20]} bits; above 0 to 64 are right")
    return rate


def _settings(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a recipe, each of the type of its default. Raises BadConfig, CorruptStream."""
    from .cache import defaults

    known = defaults(name)
    for key, value in settings.items():
        if key not in known:
            raise CorruptStream(f"recipe {name!r} has no setting {key[:40]!r}")
        kinds = _KINDS.get(type(known[key]), (bool, int, float, str, type(None)))
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if type(value) not in kinds or (number and not abs(value) < 1 << 31):
            raise CorruptStream(f"recipe {name!r}: {key} = {str(value)[:40]!r}; one like {known[key]!r} is right")
    return settings


_KINDS: dict[type, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (int, float), str: (str,)}


_LAYER = {"seen": int, "heads": int, "d": int, "d_value": int, "dtype": str, "window": list, "sinks": (list, type(None)),
          "queries": (int, type(None)), "shift": (int, type(None)), "probes": (list, type(None)),
          "states": (list, type(None))}  # fmt: skip
_FLOATS = ("float16", "bfloat16")


def _layer_in(layer: Any, entry: Any, file: _File) -> None:
    if not isinstance(entry, dict):
        raise CorruptStream(f"a layer is said to be {str(entry)[:60]!r}")
    if (states := entry.get("states")) is not None:
        if not hasattr(layer, "recurrent_states"):
            raise CorruptStream("recurrent states for a layer that has none")
        _states_in(layer, states, file)
    if set(entry) == {"states"}:
        return
    if not isinstance(layer, CompressedLayer):
        raise CorruptStream("keys and values for a layer that has none")
    store = entry.get("store")
    said = _checked({k: v for k, v in entry.items() if k != "store"}, _LAYER, f"layer {layer.number}")
    h, d, d_value = said["heads"], said["d"], said["d_value"]
    if not (0 < h and 0 < d and 0 < d_value) or said["dtype"] not in ("float16", "bfloat16", "float32", "float64"):
        raise CorruptStream(f"layer {layer.number}: {h} heads of {d} and {d_value} values of {said['dtype'][:20]!r}")
    layer.dtype, layer.device, layer.is_initialized = getattr(torch, said["dtype"]), torch.device("cpu"), True
    plan = layer.plan
    layer.site = Site(layer.number, h, d, d_value, plan.rope, plan.module, plan.block, plan.before)
    layer.window = _ends_in(said["window"], layer.site, file, None)
    n_batch = len(layer.window.keys)
    if not n_batch:
        raise CorruptStream(f"layer {layer.number}: a batch of no sequence")
    layer.sinks = None if said["sinks"] is None else _ends_in(said["sinks"], layer.site, file, n_batch)
    if said["queries"] is not None:
        layer.queries = file.tensor(said["queries"], _FLOATS, (n_batch, None, None, d))
        _grouped(layer.queries.shape[1], h)
    if said["probes"] is not None:
        layer.probes = _probes_in(said["probes"], n_batch, h, d, file)
    layer.shift = _shift_in(said["shift"], n_batch, file)
    if store is not None:
        _store_in(layer, store, n_batch, file)
    layer.n_seen = said["seen"]
    if layer.n_seen != layer.n_first + layer.n_coded + layer.window.n_tokens:
        raise CorruptStream(f"layer {layer.number}: {layer.n_seen} tokens, of which {layer.n_first} sinks, "
                            f"{layer.n_coded} coded, {layer.window.n_tokens} in the window")  # fmt: skip


def _grouped(n_query_heads: int, n_heads: int) -> None:
    if not n_query_heads or n_query_heads % n_heads:
        raise CorruptStream(f"queries of {n_query_heads} heads for {n_heads}; a multiple is right")


def _shift_in(number: Any, n_batch: int, file: _File) -> Tensor | None:
    return None if number is None else file.tensor(number, ("int64",), (n_batch,))


def _ends_in(entry: Any, site: Site, file: _File, n_batch: int | None) -> Ends:
    if not isinstance(entry, list) or len(entry) not in (2, 4):
        raise CorruptStream(f"uncoded tokens are said to be {str(entry)[:40]!r}")
    keys = file.tensor(entry[0], _FLOATS, (n_batch, site.n_heads, None, site.d))
    values = file.tensor(entry[1], _FLOATS, (len(keys), site.n_heads, keys.shape[2], site.d_value))
    if len(entry) == 2:
        return Ends(keys, values)
    x = file.tensor(entry[2], (*_FLOATS, "float32"), (len(keys), keys.shape[2], None))
    return Ends(keys, values, Inputs(x, file.tensor(entry[3], ("int64",), (len(keys),))))


def _probes_in(entry: list[Any], n_batch: int, n_heads: int, d: int, file: _File) -> Probes:
    if len(entry) != 2:
        raise CorruptStream(f"probes are said to be {str(entry)[:40]!r}")
    queries = file.tensor(entry[0], _FLOATS, (n_batch, None, None, d))
    _grouped(queries.shape[1], n_heads)
    return Probes(queries, file.tensor(entry[1], ("int64",), (queries.shape[2],)))


def _states_in(layer: Any, entry: Any, file: _File) -> None:
    if not isinstance(entry, list) or len(entry) != layer.number_of_states:
        raise CorruptStream(f"recurrent states {str(entry)[:60]!r}; {layer.number_of_states} are right")
    for i, state in enumerate(entry):
        match state:
            case [conv, recurrent, kernel, bool(previous)] if kernel is None or _count(kernel):
                pass
            case _:
                raise CorruptStream(f"a recurrent state is said to be {str(state)[:60]!r}")
        for number, into, known in (
            (conv, layer.conv_states, layer.is_conv_states_initialized),
            (recurrent, layer.recurrent_states, layer.is_recurrent_states_initialized),
        ):
            if number is not None:
                into[i], known[i] = file.tensor(number, DTYPES[3:], None), True
                layer.device, layer.dtype = torch.device("cpu"), into[i].dtype
        layer.conv_kernel_size[i], layer.has_previous_state[i] = kernel, previous


def _store_in(layer: CompressedLayer, entry: Any, n_batch: int, file: _File) -> None:
    kinds = {"first": int, "shift": (int, type(None)), "own": (list, type(None)), "pasts": list}
    said = _checked(entry, kinds, f"store of layer {layer.number}")
    site = layer.site
    claim(4 * site.n_heads * max(site.d, site.d_value) ** 2, "tables of codecs")
    codecs = layer.plan.codecs
    if (codecs is None) != (said["own"] is not None):
        raise CorruptStream(
            f"layer {layer.number}: codecs of its own where the recipe has them, or none where it has none"
        )
    if codecs is None:
        codecs = _own_in(layer, said["own"], file)
        layer.learned = codecs
    store: Any = layer.made(codecs)
    if not hasattr(store, "pasts") or len(store.pasts) != len(said["pasts"]) or said["first"] != layer.n_first:
        raise CorruptStream(f"layer {layer.number}: a store of {len(said['pasts'])} parts from token {said['first']}")
    shift = _shift_in(said["shift"], n_batch, file)
    if shift is not None or hasattr(store, "shift"):
        store.shift = shift
    for past, shape, part in zip(store.pasts, store.shapes, said["pasts"], strict=True):
        (_pages_in if past.paged else _runs_in)(past, shape, part, n_batch, file)
    if len({p.n_tokens for p in store.pasts}) > 1:
        raise CorruptStream(f"layer {layer.number}: keys and values of different lengths")
    layer.store = store


def _own_in(layer: CompressedLayer, entry: list[Any], file: _File) -> tuple[Stage, Stage]:
    """Codecs that were learned from the prompt: those of the recipe, with other rates perhaps, and their arrays."""
    assert layer.plan.fresh is not None
    if len(entry) != 2:
        raise CorruptStream(f"{len(entry)} codecs; of keys and of values is right")
    out = []
    for blank, pair in zip(layer.plan.fresh(), entry, strict=True):
        match pair:
            case [dict(config), list(numbers)]:
                stage = registry.build(config)
            case _:
                raise CorruptStream(f"a codec is said to be {str(pair)[:60]!r}")
        if not isinstance(stage, Stage) or _skeleton(registry.config(stage)) != _skeleton(registry.config(blank)):
            raise ModelMismatch(f"the cache was coded by {str(config)[:120]}; the recipe has {registry.config(blank)}")
        wanted = stage.arrays()
        if len(numbers) != len(wanted):
            raise CorruptStream(f"{len(numbers)} learned arrays; {len(wanted)} are right")
        arrays = {
            k: file.array(n, leaf.dtype).copy() for n, (k, (leaf, _)) in zip(numbers, wanted.items(), strict=True)
        }
        out.append(stage.with_arrays(arrays))
    return out[0], out[1]


def _skeleton(config: Any) -> Any:
    """The parts of a configuration, without their numbers."""
    if isinstance(config, dict):
        return {k: v if k == "part" or isinstance(v, str) else _skeleton(v) for k, v in config.items()}
    return [_skeleton(v) for v in config] if isinstance(config, list) else None


def _order_in(number: Any, shape: tuple[int, int], n: int, file: _File) -> np.ndarray:
    order = file.array(number, "int32", 2)
    if order.shape != shape or (order.size and (order.min() < 0 or order.max() >= n)):
        raise CorruptStream(f"an order {order.shape} of {n}; {shape} and numbers of what is there are right")
    return order


def _pages_in(past: PagedPast, shape: tuple[int, int], entry: Any, n_batch: int, file: _File) -> None:
    kinds = {"tokens": int, "dropped": int, "exact": int, "broken": list, "codes": int, "norms": (int, type(None)),
             "order": int}  # fmt: skip
    said = _checked(entry, kinds, "pages")
    n_heads, tokens, dropped = shape[0], said["tokens"], said["dropped"]
    if tokens > 1 << 40 or dropped * BLOCK > tokens:
        raise CorruptStream(f"{tokens:,} tokens, of which {dropped:,} blocks are gone")
    codes = file.array(said["codes"], "uint8", 2)
    size = int(past.tables.block_bytes.sum())
    if codes.shape[1] != size:
        raise CorruptStream(f"pages of {codes.shape[1]:,} bytes; {size:,} are right")
    norms = None
    if (said["norms"] is not None) != (past.codes.scale != "none" and len(codes) > 0):
        raise CorruptStream("norms for codes that have none, or none for codes that need them")
    if said["norms"] is not None:
        norms = file.array(said["norms"], "float16", 3)
        if norms.shape != (len(codes), n_heads, BLOCK) or not np.isfinite(norms).all() or (norms < 0).any():
            raise CorruptStream(f"norms {norms.shape}, negative or not finite; {(len(codes), n_heads, BLOCK)} is right")
    order = _order_in(said["order"], (n_batch, -(-(tokens - dropped * BLOCK) // BLOCK)), len(codes), file)
    keep = (lambda a: a) if file.mapped else np.copy  # one by one, so that each can be let go of
    pages = [Page.of(keep(codes[i]), None if norms is None else keep(norms[i])) for i in range(len(codes))]
    past.pages = [[pages[i] for i in row] for row in order]
    past.n_tokens, past.dropped, past.exact, past.broken = (
        tokens,
        dropped,
        said["exact"],
        _heads_in(said["broken"], n_heads),
    )


def _runs_in(past: CodedPast, shape: tuple[int, int], entry: Any, n_batch: int, file: _File) -> None:
    kinds = {"exact": int, "broken": list, "bounds": int, "order": int, "configs": list, "shares": int}
    said = _checked(entry, kinds, "runs")
    bounds = file.array(said["bounds"], "int64")
    bounds = bounds.reshape(-1, 2) if bounds.size else np.empty((0, 2), np.int64)
    starts, stops = bounds[:, 0], bounds[:, 1]
    if (starts < 0).any() or (stops <= starts).any() or (stops > 1 << 40).any() or (starts[1:] != stops[:-1]).any():
        raise CorruptStream("runs that do not follow each other")
    shares = _shares_in(past.codec, said["configs"], bytes(file.array(said["shares"], "uint8", 1)))
    order = _order_in(said["order"], (len(bounds), n_batch), len(shares), file) if len(bounds) else ()
    runs = [Run(int(a), int(z), tuple(shares[i] for i in row)) for (a, z), row in zip(bounds, order, strict=True)]
    longest: dict[int, int] = {}
    for r in runs:
        for c in r.coded:
            longest[id(c)] = max(longest.get(id(c), 0), r.stop - r.start)
    for c in shares:  # so that damage is found now and not when the model runs
        got = tuple(decoded(c, past.codec).shape)
        if len(got) != 3 or (got[0], got[2]) != shape or got[1] < longest.get(id(c), 0):
            raise CorruptStream(f"a share decodes to {got}; {shape[0]} heads of {shape[1]} values are right")
    past.runs, past.exact, past.broken = runs, said["exact"], _heads_in(said["broken"], shape[0])


def _heads_in(heads: list[Any], n_heads: int) -> set[int]:
    if not all(_count(h) and h < n_heads for h in heads):
        raise CorruptStream(f"heads {str(heads)[:40]} of {n_heads}")
    return set(heads)


def _shares_in(codec: Stage, configs: list[Any], data: bytes) -> list[Share]:
    others = []
    for config in configs:
        stage = registry.build(config)
        if not isinstance(stage, Stage) or _skeleton(config) != _skeleton(registry.config(codec)):
            raise CorruptStream(f"a group coded by {str(config)[:80]}")
        others.append(stage)
    reader, out = Reader(data), []
    while reader.at < len(data):
        kind = reader.varint()
        body = Reader(bytes(reader.take(reader.varint())))
        if kind > 2 + len(others):
            raise CorruptStream(f"a share of kind {kind}; {3 + len(others)} are known")
        out.append(
            _exact_in(body) if kind == 0 else _share_in(body, codec if kind <= 2 else others[kind - 3], kind > 1)
        )
        body.finish()
    return out


def _share_in(body: Reader, codec: Stage, own: bool) -> Share:
    if own:
        codec = codec.with_arrays({k: read_array(body, k, leaf, False) for k, (leaf, _) in codec.arrays().items()})
    side = read_sections(codec, body, False)
    return Share(side.pop("payload"), side, codec if own else None)


def _exact_in(body: Reader) -> Share:
    shape = [body.varint() for _ in range(3)]
    payload = bytes(body.take(2 * math.prod(shape)))
    return Share(payload, {"outer": np.array(shape, np.int64)}, exact=True)


# --- fitted codecs


def save_fitted(fitted: Fitted, path: str | os.PathLike[str]) -> None:
    """One safetensors file: what the codecs of every layer learned, and in its metadata all else."""
    from safetensors.numpy import save_file

    configs: list[Any] = []
    arrays, codecs = {}, {}
    for n, pair in fitted.codecs.items():
        numbers = []
        for role, codec in zip(("keys", "values"), pair, strict=True):
            config = registry.config(codec)
            if config not in configs:
                configs.append(config)
            numbers.append(configs.index(config))
            arrays.update({f"{n}.{role}.{k}": a for k, (_, a) in codec.arrays().items() if a is not None})
        codecs[str(n)] = numbers
    text = {"format": FORMAT, "recipe": fitted.name, "settings": fitted.settings, "said": said(fitted.recipe),
            "rate": fitted.rate, "rates": {str(n): list(r) for n, r in fitted.rates.items()}, "configs": configs,
            "codecs": codecs, "model": fitted.model, "hash": _hash_of(fitted.codecs)}  # fmt: skip
    path = Path(path)
    beside = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        save_file(arrays, beside, metadata={"laconic": json.dumps(text)})
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def load_fitted(path: str | os.PathLike[str], recipe: CacheRecipe | None = None) -> Fitted:
    """What `save_fitted` wrote. recipe: where it has no id.

    Raises CorruptStream for a damaged file, BadConfig for an unknown recipe, ModelMismatch for one that is no longer the same.
    """
    from safetensors import SafetensorError, safe_open

    from .cache import recipe_of

    try:
        with safe_open(path, "numpy") as f:
            text = (f.metadata() or {}).get("laconic", "")
            arrays = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    except SafetensorError as e:
        raise CorruptStream(f"{path} is no safetensors file: {e}") from None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise CorruptStream(f"{path} says nothing of fitted codecs; a file of Fitted.save is right") from None
    kinds = {"format": int, "recipe": str, "settings": dict, "said": dict, "rate": (int, float), "rates": dict,
             "configs": list, "codecs": dict, "model": str, "hash": str}  # fmt: skip
    found = _checked(found, kinds, str(path))
    if found["format"] != FORMAT:
        raise CorruptStream(f"fitted codecs of format {found['format']}; this laconic reads {FORMAT}")
    name = found["recipe"]
    if recipe is None:
        if name == "custom":
            raise ModelMismatch("the codecs were fitted to a recipe without an id; give it as recipe=")
        _, recipe = recipe_of(name, None, **_settings(name, found["settings"]))
        ends = {k: found["said"].get(k) for k in ("window", "sinks")}
        if not all(map(_count, ends.values())):
            raise CorruptStream(f"{path}: window and sinks are {ends}")
        recipe = replace(recipe, **ends)
    if found["said"] != said(recipe):
        raise ModelMismatch(
            f"the codecs were fitted to recipe {name!r} with {found['said']}; it now has {said(recipe)}"
        )
    codecs = {n: _pair_in(n, numbers, found["configs"], arrays) for n, numbers in _by_layer(found["codecs"])}
    if arrays:
        raise CorruptStream(f"{path} has arrays that no codec knows, {min(arrays)}")
    rates = {n: _rates_in(r) for n, r in _by_layer(found["rates"])}
    if set(rates) != set(codecs) or found["hash"] != _hash_of(codecs):
        raise CorruptStream(f"{path}: what was learned is not what was saved")
    return Fitted(name, recipe, found["settings"], float(_rate(found["rate"])), rates, codecs, found["model"])


def _by_layer(entries: dict[str, Any]) -> Iterator[tuple[int, Any]]:
    for key, value in entries.items():
        if not key.isascii() or not key.isdigit() or len(key) > 6 or not isinstance(value, list) or len(value) != 2:
            raise CorruptStream(f"layer {key[:20]!r} has {str(value)[:40]}; two, of keys and values, are right")
        yield int(key), value


def _rates_in(pair: list[Any]) -> tuple[float, float]:
    if not all(isinstance(r, (int, float)) for r in pair):
        raise CorruptStream(f"rates {str(pair)[:40]}")
    return float(_rate(pair[0])), float(_rate(pair[1]))


def _pair_in(n: int, numbers: list[Any], configs: list[Any], arrays: dict[str, np.ndarray]) -> tuple[Stage, Stage]:
    out = []
    for role, number in zip(("keys", "values"), numbers, strict=True):
        stage = registry.build(configs[number]) if _count(number) and number < len(configs) else None
        if not isinstance(stage, Stage):
            raise CorruptStream(f"layer {n}: codec {str(number)[:20]} of {len(configs)}")
        mine = {}
        for k, (leaf, _) in stage.arrays().items():
            a = arrays.pop(f"{n}.{role}.{k}", None)
            if a is None or a.dtype != np.dtype(leaf.dtype):
                got = "absent" if a is None else a.dtype
                raise CorruptStream(f"{n}.{role}.{k} is {got}; {leaf.dtype} is right")
            mine[k] = a
        out.append(stage.with_arrays(mine))
    return out[0], out[1]
