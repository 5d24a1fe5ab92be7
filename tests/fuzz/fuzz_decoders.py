"""Coverage-guided fuzzing of every decoder: `python tests/fuzz/fuzz_decoders.py --seconds 60 [RECIPE …]`.

The fuzzer's bytes become, by their first byte, a raw packet, a golden packet whose sections are overwritten (checksums made
right), or one whose header is; or a stream of blocks (`stream`); or a saved cache of keys and values, treated the same way,
where `cache` is among the names (by default it is, if transformers is there). Anything but a CodecError, more than 5 seconds or
more than 2 GB is a finding.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import atheris

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

with atheris.instrument_imports(include=["laconic"]):
    import laconic
    from laconic.core import registry
    from laconic.core.errors import decode_budget
    from laconic.core.stage import Stage
    from laconic.core.wire import checksum, write_varint
    from tests.contract import damage

LIMIT = 1 << 24
GOLDEN = {p.parent.name: p.read_bytes() for p in sorted((ROOT / "tests" / "golden").glob("*/packet.lac"))}
NAMES: list[str] = list(GOLDEN)
CACHE, STREAM = "cache", "stream"
SAVED: list[tuple[bytes, Any]] = []  # saved caches, each with its model


def overwrite_sections(packet: bytes, feed: atheris.FuzzedDataProvider) -> bytes:
    """Each section's data and, now and then, shape from the fuzzer."""
    header, body = damage.split(packet)
    stage = registry.build(header["config"])
    assert isinstance(stage, Stage)
    out = bytearray()
    for _, shape, data in damage.sections_of(stage, body):
        if feed.ConsumeBool():
            edit = feed.ConsumeBytes(feed.ConsumeIntInRange(0, 64))
            at = feed.ConsumeIntInRange(0, len(data))
            data = (data[:at] + edit + data[at + len(edit) :])[: len(data)]
        if feed.ConsumeProbability() < 0.1 and shape:
            item = max(1, len(data) // max(1, shape[0])) if shape[0] else 1
            shape = (feed.ConsumeIntInRange(0, 2 * shape[0]), *shape[1:])
            data = data[: shape[0] * item].ljust(shape[0] * item, b"\0")
        write_varint(out, len(shape))
        for d in shape:
            write_varint(out, d)
        out += data + checksum(data)
    return damage.join(header, bytes(out))


def save_caches() -> None:
    """A cache in pages with what it learned, and one in runs whose groups learned for themselves."""
    import torch
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    for recipe in ("auto", "kvquant", "turboquant"):
        past = laconic.kv.cache(config, recipe=recipe)
        past.update(*torch.randn(2, 1, 2, 300, 8, generator=torch.Generator().manual_seed(0)), 0)
        past.update(*torch.randn(2, 1, 2, 1, 8, generator=torch.Generator().manual_seed(1)), 0)
        SAVED.append((past.to_bytes(), config))


def saved(mode: int, feed: atheris.FuzzedDataProvider) -> None:
    """Load a saved cache that was changed."""
    import random

    from laconic.sources.kv.saving import from_bytes

    data, config = SAVED[feed.ConsumeIntInRange(0, len(SAVED) - 1)]
    header, sections = damage.split_cache(data)
    if mode == 0:
        data = data[:4] + feed.ConsumeBytes(1 << 16)
    elif mode == 1:
        data = damage.join_cache(damage.lie(header, random.Random(feed.ConsumeUInt(8))), sections)
    else:
        for i, section in enumerate(sections):
            if section and feed.ConsumeBool():
                edit, at = feed.ConsumeBytes(feed.ConsumeIntInRange(0, 64)), feed.ConsumeIntInRange(0, len(section))
                sections[i] = (section[:at] + edit + section[at + len(edit) :])[: len(section)]
        data = damage.join_cache(header, sections)
    from_bytes(data, config)


def stream(mode: int, feed: atheris.FuzzedDataProvider) -> None:
    """Read a stream of blocks: the fuzzer's bytes behind a right head, or as one block with a right checksum."""
    import xxhash

    from laconic.sources.lossless.levels import LEVELS, decode_block

    level = feed.ConsumeIntInRange(1, 9)
    if mode == 0:
        head = b"\x89LAB" + bytes([feed.ConsumeIntInRange(1, 3), level, LEVELS[level].block_bits])
        laconic.lossless.decompress(head + xxhash.xxh32(head).digest() + feed.ConsumeBytes(1 << 16), limit_bytes=LIMIT)
        return
    method, n = feed.ConsumeIntInRange(0, 11), feed.ConsumeIntInRange(1, 1 << 16)
    with decode_budget(1 << 30):
        decode_block(method, feed.ConsumeBytes(1 << 16), n, level)


def one(data: bytes) -> None:
    feed = atheris.FuzzedDataProvider(data)
    mode, name = feed.ConsumeIntInRange(0, 3), NAMES[feed.ConsumeIntInRange(0, len(NAMES) - 1)]
    if name in (STREAM, CACHE):
        start = time.perf_counter()
        try:
            (stream if name == STREAM else saved)(mode, feed)
        except laconic.CodecError:
            pass
        if time.perf_counter() - start > 5:
            raise RuntimeError("more than 5 seconds")
        return
    if mode == 0:
        packet = feed.ConsumeBytes(1 << 16)
    elif mode == 1:
        import random

        packet = next(damage.header_lies(GOLDEN[name], 1, random.Random(feed.ConsumeUInt(8))))
    else:
        packet = overwrite_sections(GOLDEN[name], feed)
    start = time.perf_counter()
    try:
        laconic.decode(packet, limit_bytes=LIMIT)
    except laconic.CodecError:
        pass
    if time.perf_counter() - start > 5:
        raise RuntimeError("more than 5 seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("recipes", nargs="*", help="only these; all by default")
    args = parser.parse_args()
    there = importlib.util.find_spec("transformers") is not None
    NAMES[:] = args.recipes or [*NAMES, STREAM, *([CACHE] if there else [])]
    warnings.simplefilter("ignore")
    for name in NAMES:  # compile the kernels before the clock runs
        if name == CACHE:
            save_caches()
        elif name == STREAM:
            for level in (5, 9):
                laconic.lossless.decompress(laconic.lossless.compress(b"warm " * 99, level=level))
        else:
            laconic.decode(GOLDEN[name])
    corpus = ROOT / "out" / "fuzz-corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    flags = [
        f"-max_total_time={args.seconds}",
        "-max_len=4096",
        "-rss_limit_mb=2048",
        "-timeout=20",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], str(corpus), *flags], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
