"""Named errors, and the decode budget that every allocation from an untrusted number is claimed against."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches


class CodecError(Exception):
    """Root of everything laconic raises on purpose."""


class CorruptStream(CodecError):
    """A packet is damaged, cut, extended, or claims what cannot be true."""


class ModelMismatch(CodecError):
    """A packet needs learned arrays other than the ones given."""


class NotFitted(CodecError):
    """A stage that learns from data was used before `fit`."""


class BadConfig(CodecError, ValueError):
    """A setting cannot work; the message says what was seen and what would be right."""


class BadInput(CodecError, ValueError):
    """The data cannot be coded as asked (NaN, wrong dtype, wrong shape); raised before any output exists."""


def unknown(what: str, name: str, known: list[str]) -> BadConfig:
    """The error for a name that is not in a table: it names the nearest ones."""
    near = get_close_matches(name, known, n=3, cutoff=0.4) or sorted(known)[:8]
    return BadConfig(f"unknown {what} {name!r}; did you mean {', '.join(near)}?")


# Ambient state, of which there is little (`telling` has the rest): how many bytes a decoder may ask for. It is a context variable
# because the numbers that need checking are read deep inside stages, whose signature is `decode(y, side)` and should stay so.
_BUDGET: ContextVar[int | None] = ContextVar("laconic_decode_budget", default=None)


@contextmanager
def decode_budget(n_bytes: int) -> Iterator[None]:
    """Within the block no single `claim` may exceed `n_bytes`."""
    token = _BUDGET.set(n_bytes)
    try:
        yield
    finally:
        _BUDGET.reset(token)


def claim(n_bytes: int, what: str) -> None:
    """Call before allocating `n_bytes` whose number comes from a stream.

    Raises
    ------
    CorruptStream: the number is negative or beyond the budget of the packet that is being decoded.
    """
    budget = _BUDGET.get()
    if n_bytes < 0 or (budget is not None and n_bytes > budget):
        raise CorruptStream(f"{what} asks for {n_bytes:,} bytes; this packet may use at most {budget or 0:,}")
