"""Jobs that threads divide: each takes the next share of the rows until none is left.

Shares are taken, not dealt, so a thread that wakes late costs nothing, and which thread does what changes no result as long
as rows do not depend on each other.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

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


_TEAM_WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_HOME = os.getpid()


def _of_torch(paths: set[str]) -> str | None:
    """Which of the loaded OpenMP libraries is PyTorch's: the one in its folder, or the only one. Others have other teams."""
    own = {p for p in paths if "torch" in Path(p).parts} or paths
    return own.pop() if len(own) == 1 else None


@lru_cache(maxsize=1)
def _openmp() -> Any:
    """`GOMP_parallel` of the OpenMP library that PyTorch has loaded, or None."""
    try:
        with open("/proc/self/maps") as f:
            path = _of_torch({line.split()[-1] for line in f if "libgomp" in line})
        found = None if path is None else ctypes.CDLL(path).GOMP_parallel
    except (OSError, AttributeError):
        return None
    if found is not None:
        found.argtypes, found.restype = (_TEAM_WORK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return found


def _team(threads: int) -> Any:
    """PyTorch's own team of threads, where it has one so large.

    Its threads wait for work for a while before they sleep, at full speed: ours beside them would have to share the cores with
    those that wait. A forked process has no team (PyTorch says one thread there).
    """
    torch = sys.modules.get("torch")
    if torch is None or os.getpid() != _HOME or getattr(torch, "get_num_threads", lambda: 1)() < threads:
        return None
    return _openmp()


def divide(threads: int, work: Callable[..., None], *args: object) -> None:
    """work(counter, *args) in up to `threads` threads, this one among them; `work` must let others run (nogil)."""
    counter = np.zeros(1, np.int64)
    if threads > 1 and (parallel := _team(threads)) is not None:
        wrong: list[BaseException] = []

        def member(_: object) -> None:
            try:
                work(counter, *args)
            except BaseException as e:  # it may not leave through a foreign frame; raised below
                wrong.append(e)

        parallel(_TEAM_WORK(member), None, threads, 0)
        if wrong:
            raise wrong[0]
        return
    helpers = [_pool(os.getpid(), threads - 1).submit(work, counter, *args) for _ in range(threads - 1)]
    work(counter, *args)
    for helper in helpers:
        if not helper.cancel():
            helper.result()
