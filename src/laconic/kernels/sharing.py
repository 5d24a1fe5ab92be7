"""Jobs that threads divide: each takes the next share of the rows until none is left.

Shares are taken, not dealt, so a thread that wakes late costs nothing, and which thread does what changes no result as long
as rows do not depend on each other.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
from numba import types
from numba.extending import intrinsic

__all__ = ["divide", "take"]


@intrinsic
def take(typingctx, counter, n):
    """Adds n to counter[0] in one piece and returns what it was: the next share of a job that threads divide."""

    def codegen(context, builder, sig, args):
        place = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", place, args[1], "monotonic")

    return types.int64(counter, types.int64), codegen


@lru_cache(maxsize=4)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of a process; a fork begins with none."""
    return ThreadPoolExecutor(threads, "laconic")


def divide(threads: int, work: Callable[..., None], *args: object) -> None:
    """work(counter, *args) in up to `threads` threads, this one among them; `work` must let others run (nogil)."""
    counter = np.zeros(1, np.int64)
    helpers = [_pool(os.getpid(), threads - 1).submit(work, counter, *args) for _ in range(threads - 1)]
    work(counter, *args)
    for helper in helpers:
        if not helper.cancel():
            helper.result()
