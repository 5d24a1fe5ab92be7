"""Packets that were cut, flipped, extended, or rewritten by a liar who gets every checksum right."""

from __future__ import annotations

import json
import math
import random
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from laconic.core import registry
from laconic.core.packet import MAGIC, VERSION
from laconic.core.stage import Leaf, Stage
from laconic.core.wire import Reader, checksum, layout, write_varint


def split(packet: bytes) -> tuple[dict[str, Any], bytes]:
    """A packet's header as a dictionary, and its body."""
    reader = Reader(packet, 5)
    head = bytes(reader.take(reader.varint()))
    reader.take(4)
    return json.loads(zlib.decompress(head, -15)), bytes(packet[reader.at :])


def join(header: Any, body: bytes) -> bytes:
    """The packet again, with a right checksum."""
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = coder.compress(json.dumps(header).encode()) + coder.flush()
    out = bytearray(MAGIC)
    out.append(VERSION)
    write_varint(out, len(head))
    return bytes(out + head + checksum(head) + body)


def _paths(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(node, dict):
        for k, v in node.items():
            yield from _paths(v, (*path, k))
    elif isinstance(node, list):
        yield path
        for i, v in enumerate(node):
            yield from _paths(v, (*path, i))
    else:
        yield path


LIES: list[Any] = [
    0,
    1,
    -1,
    2,
    3,
    7,
    255,
    1 << 20,
    1 << 31,
    1 << 40,
    1 << 62,
    0.5,
    1e30,
    -0.0,
    True,
    None,
    "x",
    [],
    [1],
    {},
]


def header_lies(packet: bytes, n: int, rng: random.Random) -> Iterator[bytes]:
    """One value of the header replaced by another."""
    header, body = split(packet)
    places = list(_paths(header))
    for _ in range(n):
        lie = json.loads(json.dumps(header))
        *stem, last = rng.choice(places)
        node = lie
        for k in stem:
            node = node[k]
        old = node[last]
        near = [old + 1, old - 1, old * 2, old // 2] if isinstance(old, int) and not isinstance(old, bool) else []
        node[last] = rng.choice(near or LIES) if rng.random() < 0.5 else rng.choice(LIES)
        yield join(lie, body)


def sections_of(stage: Stage, body: bytes) -> list[tuple[Leaf, tuple[int, ...], bytes]]:
    reader, out = Reader(body), []
    leaves = [leaf for leaf, _ in stage.arrays().values()] + [leaf for _, leaf in layout(stage)]
    for leaf in leaves:
        shape = tuple(reader.varint() for _ in range(reader.varint()))
        data = bytes(reader.take(math.prod(shape) * np.dtype(leaf.dtype).itemsize))
        reader.take(4)
        out.append((leaf, shape, data))
    return out


def section_lies(packet: bytes, n: int, rng: random.Random) -> Iterator[bytes]:
    """Bytes, lengths or shapes of one section changed, checksums made right again."""
    header, body = split(packet)
    stage = registry.build(header["config"])
    assert isinstance(stage, Stage)
    sections = sections_of(stage, body)
    for _ in range(n):
        lie = list(sections)
        at = rng.randrange(len(lie))
        leaf, shape, data = lie[at]
        changed = bytearray(data)
        match rng.randrange(5):
            case 0 if changed:
                for _ in range(rng.randint(1, 4)):
                    changed[rng.randrange(len(changed))] = rng.randrange(256)
            case 1 if changed:
                changed[:] = bytes([rng.choice([0, 255, 127, 128])]) * len(changed)
            case 2 if changed:
                start = rng.randrange(len(changed))
                changed[start:] = rng.randbytes(len(changed) - start)
            case 3:
                size = rng.choice([0, 1, 2, len(shape) and shape[0] // 2, 3 * (shape[0] if shape else 1)])
                shape = (size, *shape[1:]) if rng.random() < 0.7 else (size,)
            case _:
                shape = tuple(reversed(shape)) if rng.random() < 0.5 else (1, *shape)
        want = math.prod(shape) * np.dtype(leaf.dtype).itemsize
        fixed = bytes(changed[:want]) + rng.randbytes(max(0, want - len(changed)))
        lie[at] = (leaf, shape, fixed)
        out = bytearray()
        for _, dims, raw in lie:
            write_varint(out, len(dims))
            for d in dims:
                write_varint(out, d)
            out += raw + checksum(raw)
        yield join(header, bytes(out))


def split_cache(data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """A saved cache's header as a dictionary, and its sections."""
    from laconic.sources.kv.saving import ALIGN

    reader = Reader(data, 5)
    header = json.loads(zlib.decompress(bytes(reader.take(reader.varint())), -15))
    reader.take(4)
    out = []
    for name, shape in header["sections"]:
        reader.take(-reader.at % ALIGN)
        out.append(bytes(reader.take(math.prod(shape) * (2 if name == "bfloat16" else np.dtype(name).itemsize))))
        reader.take(4)
    reader.finish()
    return header, out


def join_cache(header: Any, sections: list[bytes]) -> bytes:
    """The saved cache again, with right checksums."""
    from laconic.sources.kv.saving import ALIGN, MAGIC, VERSION

    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = coder.compress(json.dumps(header).encode()) + coder.flush()
    out = bytearray(MAGIC)
    out.append(VERSION)
    write_varint(out, len(head))
    out += head + checksum(head)
    for data in sections:
        out += bytes(-len(out) % ALIGN) + data + checksum(data)
    return bytes(out)


def lie(header: Any, rng: random.Random) -> Any:
    """A header with one value replaced by another."""
    changed = json.loads(json.dumps(header))
    *stem, last = rng.choice([p for p in _paths(changed) if p])
    node = changed
    for k in stem:
        node = node[k]
    old = node[last]
    near = [old + 1, old - 1, old * 2] if isinstance(old, int) and not isinstance(old, bool) else []
    node[last] = rng.choice(near or LIES) if rng.random() < 0.6 else rng.choice(LIES)
    return changed


def plain_damage(packet: bytes, n: int, rng: random.Random) -> Iterator[bytes]:
    """Flips, cuts, extensions, and pieces moved."""
    for _ in range(n):
        out = bytearray(packet)
        match rng.randrange(4):
            case 0:
                out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
            case 1:
                del out[rng.randrange(len(out)) :]
            case 2:
                out += rng.randbytes(rng.randint(1, 9))
            case _:
                a, b = sorted(rng.randrange(len(out) + 1) for _ in range(2))
                if a == b or a == 0:
                    out = out[1:]
                else:
                    del out[a:b]
        yield bytes(out)
