"""Coverage-guided fuzzing of every decoder: `python tests/fuzz/fuzz_decoders.py --seconds 60 [RECIPE …]`.

The fuzzer's bytes become, by their first byte, a raw packet, a golden packet whose sections are overwritten (checksums made
right), or one whose header is. Anything but a CodecError, more than 5 seconds or more than 2 GB is a finding.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

with atheris.instrument_imports(include=["laconic"]):
    import laconic
    from laconic.core import registry
    from laconic.core.stage import Stage
    from laconic.core.wire import checksum, write_varint
    from tests.contract import damage

LIMIT = 1 << 24
GOLDEN = {p.parent.name: p.read_bytes() for p in sorted((ROOT / "tests" / "golden").glob("*/packet.lac"))}
NAMES: list[str] = list(GOLDEN)


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


def one(data: bytes) -> None:
    feed = atheris.FuzzedDataProvider(data)
    mode, name = feed.ConsumeIntInRange(0, 3), NAMES[feed.ConsumeIntInRange(0, len(NAMES) - 1)]
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
    NAMES[:] = args.recipes or NAMES
    warnings.simplefilter("ignore")
    for name in NAMES:  # compile the kernels before the clock runs
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
