"""Foreign file formats: what is in a file, chunk by chunk, and the file made again from decoded chunks.

A format is three functions: `open` (path -> meta, contents), where each content can be read in chunks; `suffix` of the file
that is written; `write` (out, entry, chunks).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..core.errors import BadInput, CorruptStream
from ..core.packet import ITEM_BYTES
from .archive import Entry, Item

CHUNK_ELEMENTS = 1 << 20  # an array above this is cut along its first axis, so that memory stays bounded
CHUNK_BYTES = 16 << 20
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}

# safetensors' names for dtypes, and ours
SAFETENSORS_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
                      "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "U16": "uint16", "U32": "uint32",
                      "U64": "uint64", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn",
                      "F8_E5M2": "float8_e5m2"}  # fmt: skip


@dataclass(frozen=True)
class Content:
    """An item and how to read its chunks."""

    item: Item
    read: Callable[[int], Any]

    @property
    def n_bytes(self) -> int:
        """Size in the source."""
        return math.prod(self.item.shape) * ITEM_BYTES[self.item.dtype]


@dataclass(frozen=True)
class Source:
    """A file opened for compression."""

    path: str
    format: str
    meta: dict[str, Any]
    contents: list[Content]

    def entry(self) -> Entry:
        """Its line of the archive's table."""
        return Entry(self.path, self.format, self.meta, tuple(c.item for c in self.contents))


def _rows_per_chunk(shape: tuple[int, ...]) -> int:
    return max(1, CHUNK_ELEMENTS // max(1, math.prod(shape[1:]))) if shape else 1


def _array_item(name: str, dtype: str, shape: tuple[int, ...]) -> Item:
    rows = shape[0] if shape else 1
    return Item(name, dtype, shape, max(1, math.ceil(rows / _rows_per_chunk(shape))))


def _span(item: Item, i: int) -> tuple[int, int]:
    step = _rows_per_chunk(item.shape)
    return i * step, min((i + 1) * step, item.shape[0])


def n_rated(item: Item, format: str) -> int:
    """What "bits per value" divides by: values; pixels of a picture."""
    return math.prod(item.shape[:2] if format == "image" else item.shape)


def chunk_shape(item: Item, i: int) -> tuple[int, ...]:
    """The shape that chunk `i` of an array has."""
    if item.dtype == "bytes" or not item.shape or item.chunks == 1:  # a picture is one chunk, whatever its size
        return item.shape
    a, b = _span(item, i)
    return (b - a, *item.shape[1:])


def open_source(path: Path, name: str) -> Source:
    """Open a file as what it is; a file of no known format is bytes."""
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return _open_safetensors(path, name)
    if suffix in (".npy", ".npz"):
        return _open_numpy(path, name)
    if suffix == ".gguf":
        return _open_gguf(path, name)
    if suffix in IMAGE_SUFFIXES:
        return _open_image(path, name)
    return open_bytes(path, name)


def open_bytes(path: Path, name: str) -> Source:
    """Any file as bytes, in blocks."""
    return open_stream(open(path, "rb"), name)


def open_stream(stream: IO[bytes], name: str) -> Source:
    """A seekable binary stream as bytes, in blocks."""
    size = stream.seek(0, 2)
    item = Item("", "bytes", (size,), max(1, math.ceil(size / CHUNK_BYTES)))

    def read(i: int) -> bytes:
        stream.seek(i * CHUNK_BYTES)
        return stream.read(CHUNK_BYTES)

    return Source(name, "bytes", {}, [Content(item, read)])


def _open_safetensors(path: Path, name: str) -> Source:
    from safetensors import SafetensorError, safe_open

    def opened() -> Any:
        # Opened anew for every chunk: a mapping that stays open keeps every page that was read in the process' memory.
        return safe_open(str(path), framework="pt")

    try:
        handle = opened()
    except (SafetensorError, OSError) as e:
        raise BadInput(f"{path} is no safetensors file: {e}") from None

    def content(key: str) -> Content:
        part = handle.get_slice(key)  # its shape and dtype; no page of data is touched
        if part.get_dtype() not in SAFETENSORS_DTYPES:
            raise BadInput(f"{path}: tensor {key!r} is {part.get_dtype()}; known are {', '.join(SAFETENSORS_DTYPES)}")
        item = _array_item(key, SAFETENSORS_DTYPES[part.get_dtype()], tuple(part.get_shape()))

        def read(i: int) -> Any:
            with opened() as f:
                if not item.shape or 0 in item.shape:
                    return f.get_tensor(key)
                a, b = _span(item, i)
                return f.get_slice(key)[a:b]

        return Content(item, read)

    return Source(
        name, "safetensors", {"metadata": handle.metadata() or {}}, [content(k) for k in handle.offset_keys()]
    )


def _open_numpy(path: Path, name: str) -> Source:
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        names = loaded.files if isinstance(loaded, np.lib.npyio.NpzFile) else [""]
        shapes = {
            k: (_dtype_name(loaded[k]), loaded[k].shape) if k else (_dtype_name(loaded), loaded.shape) for k in names
        }
    except (ValueError, OSError, EOFError) as e:
        raise BadInput(f"{path} is no NumPy file: {e}") from None
    if any(d not in ITEM_BYTES for d, _ in shapes.values()):
        return open_bytes(path, name)

    def content(key: str) -> Content:
        item = _array_item(key, *shapes[key])

        def read(i: int) -> np.ndarray:
            array = loaded[key] if key else loaded
            if not item.shape:
                return np.array(array)
            a, b = _span(item, i)
            return np.array(array[a:b])  # a copy, native byte order below

        return Content(item, lambda i: _native(read(i)))

    return Source(name, path.suffix.lower()[1:], {}, [content(k) for k in names])


def _open_gguf(path: Path, name: str) -> Source:
    """A GGUF file: what lies before, between and behind the tensors as bytes, floats as arrays, blocks as uint8 rows."""
    import torch

    try:
        import gguf
    except ImportError:  # an extra of the installation; without it the file is bytes like any other
        return open_bytes(path, name)
    try:
        tensors = gguf.GGUFReader(path).tensors
        found = sorted((int(t.data_offset), int(t.n_bytes), t.tensor_type.name, t.name) for t in tensors)
    except (ValueError, KeyError, IndexError, OverflowError, OSError) as e:
        raise BadInput(f"{path} is no GGUF file: {e}") from None
    size, at, contents = path.stat().st_size, 0, []

    def raw(start: int, n_bytes: int) -> bytes:
        with open(path, "rb") as f:
            f.seek(start)
            return f.read(n_bytes)

    def gap(start: int, end: int) -> None:
        if end > start:
            item = Item(f"bytes {start}", "bytes", (end - start,), 1)
            contents.append(Content(item, lambda i: raw(start, end - start)))

    def array(start: int, n_bytes: int, kind: str, title: str) -> None:
        dtype = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}.get(kind, "uint8")
        block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1] if dtype == "uint8" else 1
        shape = (n_bytes // block, block) if dtype == "uint8" else (n_bytes // ITEM_BYTES[dtype],)
        item = _array_item(title, dtype, shape)
        row = ITEM_BYTES[dtype] * math.prod(shape[1:])

        def read(i: int) -> Any:
            a, b = _span(item, i)
            data = torch.frombuffer(bytearray(raw(start + a * row, (b - a) * row)), dtype=torch.uint8)
            return data.view(getattr(torch, dtype)).reshape(b - a, *shape[1:])

        contents.append(Content(item, read))

    for start, n_bytes, kind, title in found:
        if start < at or start + n_bytes > size:
            raise BadInput(f"{path}: tensor {title!r} at {start:,} overlaps another or the end")
        gap(at, start)
        if n_bytes:
            array(start, n_bytes, kind, title)
        at = start + n_bytes
    gap(at, size)
    return Source(name, "gguf", {}, contents)


def _dtype_name(a: np.ndarray) -> str:
    return a.dtype.name if a.dtype.kind in "fiub" else a.dtype.str


def _native(a: np.ndarray) -> np.ndarray:
    return a.astype(a.dtype.newbyteorder("="))


def _open_image(path: Path, name: str) -> Source:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if image.mode not in ("RGB", "L"):
                return open_bytes(path, name)
            pixels = np.asarray(image)
    except (UnidentifiedImageError, OSError) as e:
        raise BadInput(f"{path} is no picture: {e}") from None
    item = Item("", "uint8", pixels.shape, 1)
    return Source(name, "image", {}, [Content(item, lambda i: pixels)])


def output_name(entry: Entry) -> str:
    """Where a decoded file goes: its own name, except that pictures come back as PNG."""
    return str(Path(entry.path).with_suffix(".png")) if entry.format == "image" else entry.path


def write_entry(out: IO[bytes], entry: Entry, chunks: Iterator[Any]) -> None:
    """Make the file again. chunks: the decoded chunks of all items in order."""
    writers = {"bytes": _write_bytes, "safetensors": _write_safetensors, "npy": _write_npy, "npz": _write_npz,
               "image": _write_image, "gguf": _write_gguf}  # fmt: skip
    if entry.format not in writers:
        raise CorruptStream(f"format {entry.format!r}; known are {', '.join(writers)}")
    writers[entry.format](out, entry, chunks)


def _write_bytes(out: IO[bytes], entry: Entry, chunks: Iterator[Any]) -> None:
    for chunk in chunks:
        out.write(chunk)


def _write_gguf(out: IO[bytes], entry: Entry, chunks: Iterator[Any]) -> None:
    for chunk in chunks:
        out.write(chunk if isinstance(chunk, bytes) else _raw(chunk))


def _raw(chunk: Any) -> bytes:
    import torch

    return chunk.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if chunk.numel() else b""


def _write_safetensors(out: IO[bytes], entry: Entry, chunks: Iterator[Any]) -> None:
    # The library cannot write a file tensor by tensor; the format is a length, a JSON table and the data.
    names = {v: k for k, v in SAFETENSORS_DTYPES.items()}
    table: dict[str, Any] = {}
    if metadata := entry.meta.get("metadata"):
        table["__metadata__"] = metadata
    at = 0
    for item in entry.items:
        size = math.prod(item.shape) * ITEM_BYTES[item.dtype]
        table[item.name] = {"dtype": names[item.dtype], "shape": list(item.shape), "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(table, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    out.write(struct.pack("<Q", len(head)) + head)
    for chunk in chunks:
        out.write(_raw(chunk))


def _numpy_dtype(item: Item) -> np.dtype[Any]:
    if item.dtype in ("bfloat16", "bytes"):
        raise CorruptStream(f"a NumPy file cannot hold {item.dtype}")
    return np.dtype(item.dtype)


def _write_npy(out: IO[bytes], entry: Entry, chunks: Iterator[Any]) -> None:
    if len(entry.items) != 1:
        raise CorruptStream(f"a .npy file of {len(entry.items)} arrays")
    item = entry.items[0]
    header = {"descr": _numpy_dtype(item).str, "fortran_order": False, "shape": item.shape}
    np.lib.format.write_array_header_1_0(out, header)
    for chunk in chunks:
        out.write(_raw(chunk))


def _write_npz(out: IO[bytes], entry: Entry, chunks: Iterator[Any]) -> None:
    import zipfile

    with zipfile.ZipFile(out, "w", allowZip64=True) as archive:
        for item in entry.items:
            with archive.open(f"{item.name}.npy", "w", force_zip64=True) as member:
                _write_npy(member, Entry("", "npy", {}, (item,)), (next(chunks) for _ in range(item.chunks)))


def _write_image(out: IO[bytes], entry: Entry, chunks: Iterator[Any]) -> None:
    from PIL import Image

    pixels = next(chunks).numpy()
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise CorruptStream(f"a picture of shape {pixels.shape}")
    Image.fromarray(pixels).save(out, format="PNG")
