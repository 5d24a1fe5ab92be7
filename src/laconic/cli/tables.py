"""What the command line prints: every table as columns and rows, rendered by rich."""

from __future__ import annotations

import inspect
import math
import sys
from dataclasses import dataclass
from typing import IO, Any

from ..core import registry
from ..sources.formats import n_rated


@dataclass(frozen=True)
class Table:
    """Columns (a leading ">" aligns right) and rows of strings; the last row may be a total."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    total: tuple[str, ...] | None = None


def print_table(table: Table, stream: IO[str] | None = None) -> None:
    """To standard output, or to `stream`."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable

    out = RichTable(title=table.title, title_justify="left", box=box.SIMPLE_HEAD, show_footer=table.total is not None)
    for i, name in enumerate(table.columns):
        footer = table.total[i] if table.total else ""
        out.add_column(name.lstrip(">"), footer, justify="right" if name[0] == ">" else "left", overflow="fold")
    for row in table.rows:
        out.add_row(*row)
    stream = stream or sys.stdout
    Console(file=stream, width=None if stream.isatty() else 140, highlight=False).print(out)


def size(n: float) -> str:
    """Bytes with a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000 or unit == "GB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.2f} {unit}"
        n /= 1000
    return ""


def loss(row: Any) -> str:
    """The loss of a report's row in the terms of its source."""
    if row.psnr is not None:
        return f"{row.psnr:.2f} dB PSNR"
    return "none" if row.error == 0 else f"{10 * math.log10(1 / row.error):.2f} dB SNR"


def report_table(report: Any, most: int = 30) -> Table:
    """Size, loss and time of everything that was compressed, the largest items first where there are many."""
    rows = sorted(report.rows, key=lambda r: -r.in_bytes)
    shown = [
        (r.name, r.recipe, size(r.in_bytes), size(r.out_bytes), f"{r.bits_per_element:.3f}", loss(r),
         f"{r.encode_seconds:.2f}", f"{r.decode_seconds:.2f}")
        for r in rows[:most]
    ]  # fmt: skip
    if len(rows) > most:
        shown.append((f"… and {len(rows) - most} smaller",) + ("",) * 7)
    total = (report.out, "", size(report.in_bytes), size(report.out_bytes),
             f"{8 * report.out_bytes / max(1, sum(r.n_elements for r in rows)):.3f}",
             f"÷ {report.in_bytes / max(1, report.out_bytes):.2f}", f"{sum(r.encode_seconds for r in rows):.2f}",
             f"{sum(r.decode_seconds for r in rows):.2f}")  # fmt: skip
    columns = ("what", "recipe", ">from", ">to", ">bits/value", ">loss", ">enc s", ">dec s")
    return Table(report.source, columns, shown, total)


def plan_table(plan: Any) -> Table:
    """What would be coded how, with the size that the bits asked for would give."""
    rows, total, peak = [], 0.0, 0
    for source, content, choice in plan.pairs():
        n = n_rated(content.item, source.format)
        expected = n * choice.bits / 8 if choice.bits else None
        total += expected if expected is not None else content.n_bytes
        peak = max(peak, content.n_bytes // content.item.chunks)
        name = "/".join(p for p in (source.path, content.item.name) if p)
        rows.append((name, content.item.dtype, str(content.item.shape), choice.describe(), size(content.n_bytes),
                     size(expected) if expected is not None else "≤ as is"))  # fmt: skip
    footer = (
        "in all",
        "",
        "",
        f"working memory about {size(300e6 + 6 * peak)}",
        size(plan.in_bytes),
        f"≤ {size(total)}",
    )
    return Table("dry run", ("what", "dtype", "shape", "recipe", ">from", ">to, expected"), rows, footer)


def info_table(said: Any) -> Table:
    """A line a packet."""
    rows = [
        (name, i.recipe, i.dtype, str(i.shape), size(i.packet_bytes), f"{i.bits_per_element:.3f}",
         ", ".join(f"{k} {v:,}" for k, v in i.ledger.by_role().items()))
        for name, i in said.packets
    ]  # fmt: skip
    return Table(
        f"{said.path}  {said.n_bytes:,} bytes",
        ("what", "recipe", "dtype", "shape", ">size", ">bits/value", "bytes"),
        rows,
    )


def ledger_table(said: Any) -> Table:
    """Every byte of the file by role."""
    rows = [
        (role, f"{n:,}", f"{100 * n / said.n_bytes:.2f} %")
        for role, n in sorted(said.by_role.items(), key=lambda t: -t[1])
    ]
    return Table("ledger", ("role", ">bytes", ">share"), rows, ("all", f"{said.n_bytes:,}", "100 %"))


def recipes_table(domain: str | None) -> Table:
    """Ids, settings with defaults, and the first line of each card."""
    rows = []
    for name in registry.recipes(domain):
        line = registry.recipe(name)
        function = registry.load(line.target)
        settings = ", ".join(f"{p.name}={p.default!r}" for p in inspect.signature(function).parameters.values())
        rows.append((name, line.domain, (function.__doc__ or "").strip().splitlines()[0], settings))
    return Table("recipes", ("id", "for", "what", "settings"), rows)
