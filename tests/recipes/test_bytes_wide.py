"""What `bytes-wide` claims."""

import laconic


def test_a_book_takes_less_than_zpaq(data):
    book = (data / "canterbury-snappy" / "alice29.txt").read_bytes()
    packet = laconic.codec("bytes-wide").encode(book)
    assert len(packet) < 37_600
