"""bytes-mix: smaller than bzip2 and xz on text."""

import bz2
import lzma
from pathlib import Path

import laconic


def test_smaller_than_bzip2_and_xz_on_text():
    text = b"".join(p.read_bytes() for p in sorted(Path(laconic.__file__).parent.glob("*/[a-m]*.py")))[:250_000]
    packet = laconic.codec("bytes-mix").encode(text)
    assert laconic.decode(packet) == text
    assert len(packet) < 0.85 * min(len(bz2.compress(text)), len(lzma.compress(text, preset=9)))
