"""How far a stage is while it learns, told to whoever asked: `fit` hands nothing but arrays from stage to stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Progress = Callable[[int, int, str], None]  # steps done, steps in all, what

_LISTENER: ContextVar[Progress | None] = ContextVar("laconic_progress", default=None)


@contextmanager
def told_to(listener: Progress | None) -> Iterator[None]:
    """Until the end of the block `tell` calls the listener; None leaves it to whoever was told before."""
    token = _LISTENER.set(_LISTENER.get() if listener is None else listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def tell(done: int, total: int, what: str) -> None:
    """For stages that learn for more than a few seconds."""
    listener = _LISTENER.get()
    if listener is not None:
        listener(done, total, what)
