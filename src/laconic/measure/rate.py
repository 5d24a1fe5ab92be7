"""Rates, from bytes that exist."""

from __future__ import annotations

from collections.abc import Iterable
from math import log

from ..core.errors import BadInput


def bits_per_element(packets: bytes | Iterable[bytes], n_elements: int) -> float:
    """Exact rate: 8 × the length of the packets over the number of values they hold.

    It takes the bytes, not a count: headers, scales and checksums cannot be forgotten.

    >>> bits_per_element([b"head", b"payload."], 32)
    3.0
    """
    if n_elements < 1:
        raise BadInput(f"{n_elements} elements; a rate needs at least one")
    whole = [packets] if isinstance(packets, bytes | bytearray | memoryview) else packets
    return 8 * sum(memoryview(packet).nbytes for packet in whole) / n_elements


def bits_per_byte(nll: float, n_bytes: int) -> float:
    """Code length of a text in bits per byte of its UTF-8, from the sum of its tokens' negative log-likelihoods.

    Unlike perplexity it compares across tokenizers.

    Units: nll in nats, summed (not averaged) over the tokens.
    Source: Gao et al. 2020, "The Pile", arXiv:2101.00027, section 3.1.

    >>> round(bits_per_byte(nll=69.3147, n_bytes=50), 3)
    2.0
    """
    if n_bytes < 1:
        raise BadInput(f"{n_bytes} bytes; a rate needs at least one")
    return nll / log(2) / n_bytes
