"""An evaluation of caches as tables, as JSON and as one HTML file with its plot inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..cli.tables import Table, size
from .eval_report import Panel, figure, html_table, interval, size_loss_plot, write_page
from .rows import machine

if TYPE_CHECKING:
    from ..sources.kv.evaluate import CacheEvaluation
    from ..sources.kv.recall import Recall
    from .kv_judge import Found

NOTES = """
<p>Every judged token was fed alone and predicted from what the cache had stored. KL is KL(uncompressed ‖ compressed) in nats a
token. Bits are those of every byte that the cache held, scales and windows too, over all keys and values that it had seen, in
the mean over the decode steps. Square brackets hold 95 % bootstrap intervals over windows, each paired with its reference.
Arithmetic is float32, but for the line “bfloat16”: the same model in bfloat16 with an uncompressed cache. A cache that does not
stand out from it lost nothing that anyone would see.</p>
"""


def caches_table(found: CacheEvaluation) -> Table:
    """A line a cache: bits, and what became of the texts."""
    rows = []
    for r in found.rows:
        shown = ("", "", "", "")
        if r is not found.reference:
            top1 = r.text.top1.map(lambda x: 100 * x)
            shown = (interval(r.text.kl, ".3g"), f"{r.text.kl_99:.3g}", f"{interval(top1, '.2f')} %",
                     interval(r.text.bits_added, "+.4f"))  # fmt: skip
        rows.append((r.name, f"{r.bits:.3f}", f"{r.bits_at_end:.3f}", f"{r.text.bits_per_byte.value:.4f}", *shown))
    text, s = found.reference.text, found.settings
    title = (
        f"{text.n_windows} windows of {', '.join(found.texts)}: {s.prefill} tokens at once, {s.n_steps} one by one, "
        f"{text.n_bytes:,} bytes"
    )
    columns = ("cache", ">bits/value", ">at the end", ">bits/byte", ">KL", ">KL, 99 %", ">top-1", ">change")
    return Table(title, columns, rows)


def positions_table(found: CacheEvaluation) -> Table:
    """KL along the window."""
    heads = tuple(f">{b.first} … {b.last}" for b in found.reference.positions)
    rows = [(r.name, *(interval(b.kl, ".3g") for b in r.positions)) for r in found.rows[1:]]
    return Table("KL by position", ("cache", *heads), rows)


def recall_table(found: Recall) -> Table:
    """A line a cache on one task: nats of the answer, exact answers, and whether it is the uncompressed one's."""
    rows = [("no context", f"{found.without_context.value:.3f}", "", "", "")]
    for r in found.rows:
        change = ("", "") if r is found.reference else (interval(r.change, "+.4f"), "yes" if r.within else "NO")
        rows.append((r.name, interval(r.nats, ".3f"), interval(r.exact, ".3f"), *change))
    able = f"{found.gain.value:.3f} nats for the context" if found.able else "NOT DONE by this model, says nothing"
    title = f"{found.task}: {found.n_items} items of {found.n_tokens} tokens, {found.n_scored} scored; {able}"
    return Table(title, ("cache", ">nats/token", ">exact", ">change", "within interval"), rows)


def process_table(found: Found) -> Table | None:
    """Memory and speed by context; None where none was measured."""
    if not found.used:
        return None
    rows = [
        (name, f"{n:,}", size(o.held), size(o.peak), size(o.said), f"{8 * o.held / o.n_values:.2f}",
         "" if o.seconds is None else f"{1 / o.seconds:.1f}")
        for (name, n), o in found.used.items()
    ]  # fmt: skip
    columns = ("cache", ">context", ">process holds", ">at most", ">cache says", ">bits/value", ">tokens/s")
    return Table("Memory of the process and speed, two layers of a 1 B Llama's shape in bfloat16", columns, rows)


def tables(found: Found) -> list[Table]:
    """All that there is to say."""
    every = (caches_table(found.caches), positions_table(found.caches), *map(recall_table, found.recalled),
             process_table(found))  # fmt: skip
    return [t for t in every if t is not None]


def write_json(path: Path, found: Found) -> None:
    """Every number, the settings, and what they were measured on."""
    path.write_text(json.dumps({**found.as_json(), "machine": machine()}, indent=1) + "\n")


def write_html(path: Path, found: Found, name: str) -> None:
    """One file that needs no other: plot and tables."""
    it = found.caches
    panel = Panel(
        "KL(uncompressed ‖ compressed), nats a token",
        [(r.name, r.bits, r.text.kl) for r in it.caches],
        None if it.noise is None else it.noise.text.kl,
    )
    plot = size_loss_plot([panel], "true bits per key or value, mean over the decode steps")
    write_page(path, f"Caches of {name}", [NOTES, figure(plot), *map(html_table, tables(found))])
