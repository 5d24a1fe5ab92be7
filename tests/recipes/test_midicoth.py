"""What `midicoth` claims: the denoising pays on text, as published; near the size published for a book."""

from pathlib import Path

import laconic


def _packet(data: bytes, steps: int) -> bytes:
    return laconic.codec("midicoth", steps=steps).encode(data)


def test_text_is_larger_without_the_denoising():
    text = (Path(laconic.__file__).parent / "samples" / "genesis.txt").read_bytes()[:60_000]
    packet, plain = _packet(text, 3), _packet(text, 0)
    assert laconic.decode(packet) == text == laconic.decode(plain)
    assert 0.97 < len(packet) / len(plain) < 0.99


def test_a_book_takes_less_than_published(data):
    book = (data / "canterbury-snappy" / "alice29.txt").read_bytes()
    packet = _packet(book, 3)
    assert len(packet) < 40_285
    assert 0.97 < len(packet) / len(_packet(book, 0)) < 0.985
