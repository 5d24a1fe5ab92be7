"""Rows of a benchmark: measured one by one, printed as a table, written as JSON. What was not measured is absent."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One figure. target: ("<=" or ">=", number) or None where there is nothing to reach; peer: what stands beside it."""

    name: str
    value: float
    unit: str
    peer: str = ""
    peer_value: float | None = None
    target: tuple[str, float] | None = None

    @property
    def holds(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        sense, bound = self.target
        return self.value <= bound if sense == "<=" else self.value >= bound

    def as_json(self) -> dict[str, Any]:
        """The row as written to a file."""
        target = None if self.target is None else f"{self.target[0]} {self.target[1]:g}"
        return {**asdict(self), "target": target, "holds": self.holds}


@dataclass(frozen=True)
class Measurement:
    """A function that measures and yields rows; `name` is what `--only` matches besides the rows' names."""

    name: str
    run: Callable[[], Iterator[Row]]


def ratio(
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    repeats: int = 7,
    clock: Callable[[], float] = time.perf_counter,
    before: int = 0,
) -> tuple[float, float]:
    """Median seconds of ours and of the peer's, run in turns so that the machine's moods hit both.

    clock: `time.thread_time` counts what the calls take of a processor, where both run in this thread. before: calls of each that
    are not timed in its turn, while threads of the other's library still wait for work at full speed.
    """
    ours(), peer()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for which, f in enumerate((ours, peer)):
            for _ in range(before):
                f()
            start = clock()
            f()
            times[which].append(clock() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def median_seconds(f: Callable[[], Any], repeats: int = 7) -> float:
    """Median wall time of a call behind one to warm up."""
    f()
    out = []
    for _ in range(repeats):
        start = time.perf_counter()
        f()
        out.append(time.perf_counter() - start)
    return statistics.median(out)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import numba
    import numpy
    import torch

    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return {"cpu": model, "cores": os.cpu_count(), "system": platform.system(), "python": platform.python_version(),
            "numpy": numpy.__version__, "torch": torch.__version__, "numba": numba.__version__}  # fmt: skip


def run_suite(suite: tuple[Measurement, ...], json_path: Path | None, only: str | None) -> list[Row]:
    """Measure, write the file as rows come, then print the table."""
    rows: list[Row] = []
    for m in suite:
        if only and only.lower() not in m.name.lower():
            continue
        print(f"… {m.name}", file=sys.stderr, flush=True)
        rows += m.run()
        if json_path is not None:  # after each, so that a run that is stopped leaves what it measured
            json_path.parent.mkdir(parents=True, exist_ok=True)
            json_path.write_text(json.dumps({"rows": [r.as_json() for r in rows], "machine": machine()}, indent=1))
    print_rows(rows)
    return rows


def print_rows(rows: list[Row]) -> None:
    """As a table on standard output."""
    from ..cli.tables import Table, print_table

    def number(v: float | None) -> str:
        return "" if v is None else f"{v:.4g}"

    marks = {True: "yes", False: "NO", None: ""}
    lines = [
        (r.name, number(r.value), r.unit, r.peer, number(r.peer_value),
         "" if r.target is None else f"{r.target[0]} {r.target[1]:g}", marks[r.holds])
        for r in rows
    ]  # fmt: skip
    print_table(Table("", ("figure", ">value", "unit", "peer", ">peer's", "target", "holds"), lines))
