"""An evaluation as tables, as JSON and as one HTML file with its plot inside."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli.tables import Table, size
from .report import STYLE
from .rows import machine

if TYPE_CHECKING:
    from ..sources.weights.estimates import Estimate
    from ..sources.weights.judge import Evaluation, ModelScore

NOTES = """
<p>KL is KL(reference ‖ model) in nats a token: 0 only where nothing changed. Top-1 is the share of tokens whose most likely
successor stayed. Square brackets hold 95 % bootstrap intervals: windows of text, pairs, and templates of questions are resampled,
each with its reference, so changes are paired. Sizes are bytes of the weights as stored; bits are for each parameter of the
reference. Everything ran in float32 arithmetic, but for the line “reference in bfloat16”: the same weights and
activations in bfloat16. A model that does not stand out from it lost nothing that anyone would see.</p>
"""


def text_table(found: Evaluation) -> Table:
    """A line a model: size, and what became of the texts."""
    rows = [
        (r.name, "" if r.n_bytes is None else size(r.n_bytes), _number(r.bits_per_parameter, ".3f"),
         f"{r.text.bits_per_byte.value:.4f}", *_or_blank(r, found, lambda r: (
             interval(r.text.bits_added, "+.4f"), interval(r.text.kl, ".3g"), f"{r.text.kl_99:.3g}",
             f"{100 * r.text.top1.value:.2f} %"), 4),
         f"{r.text.perplexity.value:.2f}")
        for r in found.rows
    ]  # fmt: skip
    text = found.reference.text
    names = ", ".join(found.reference.texts)
    title = f"{text.n_windows} windows, {text.n_tokens:,} tokens, {text.n_bytes:,} bytes of {names}"
    columns = ("model", ">weights", ">bits/param", ">bits/byte", ">change", ">KL", ">KL, 99 %", ">top-1", ">ppl")
    return Table(title, columns, rows)


def texts_table(found: Evaluation) -> Table | None:
    """KL of every model text by text; None where there is one text."""
    names = tuple(found.reference.texts)
    if len(names) < 2:
        return None
    rows = [(r.name, *(interval(r.texts[n].kl, ".3g") for n in names)) for r in found.rows[1:]]
    return Table("KL by text", ("model", *(f">{n}" for n in names)), rows)


def pairs_table(found: Evaluation) -> Table | None:
    """Minimal pairs, a line a model; None where none were asked for."""
    if found.reference.pairs is None:
        return None
    rows = []
    for r in found.rows:
        assert r.pairs is not None
        it = r.pairs.all
        blank = _or_blank(r, found, lambda r: (
            interval(r.pairs.all.change, "+.4f"), interval(r.pairs.all.flips, ".4f"),
            f"{r.pairs.all.good_to_bad.value:.4f}", f"{r.pairs.all.bad_to_good.value:.4f}"), 4)  # fmt: skip
        rows.append((r.name, interval(it.accuracy, ".4f"), *blank))
    columns = ("model", ">accuracy", ">change", ">flips", ">good→bad", ">bad→good")
    return Table(f"{found.reference.pairs.all.n_items:,} minimal pairs", columns, rows)


def choices_table(found: Evaluation) -> Table | None:
    """Multiple choice and bias, a line a model; None where none were asked for."""
    if found.reference.choices is None:
        return None
    rows = []
    for r in found.rows:
        c = r.choices
        assert c is not None
        changes = _or_blank(r, found, lambda r: (
            interval(r.choices.other_answer, ".3f"), interval(r.choices.change_ambiguous, "+.3f"),
            interval(r.choices.change_disambiguated, "+.3f")), 3)  # fmt: skip
        rows.append((r.name, f"{c.all.accuracy.value:.4f}", changes[0], f"{c.bias_ambiguous.value:+.3f}", changes[1],
                     f"{c.bias_disambiguated.value:+.3f}", changes[2]))  # fmt: skip
    columns = ("model", ">accuracy", ">other answer", ">ambiguous", ">change", ">disambiguated", ">change")
    n = found.reference.choices.all.n_items
    return Table(f"{n:,} questions, and bias scores in ambiguous and disambiguated contexts", columns, rows)


def tables(found: Evaluation) -> list[Table]:
    """All that there is something to say in."""
    every = (text_table(found), texts_table(found), pairs_table(found), choices_table(found))
    return [t for t in every if t is not None]


def write_json(path: Path, found: Evaluation) -> None:
    """Every number, the settings, and what they were measured on."""
    path.write_text(json.dumps({**found.as_json(), "machine": machine()}, indent=1) + "\n")


def write_html(path: Path, found: Evaluation) -> None:
    """One file that needs no other: plot, tables, flips by paradigm."""
    body = [NOTES, figure(size_loss_plot(_panels(found), "bits for each parameter, all bytes of the weights"))]
    body += [html_table(t) for t in tables(found)]
    if found.reference.pairs is not None:
        body += ["<h2>Flips by paradigm</h2>", html_table(_paradigms(found))]
    write_page(path, f"{found.reference.name}, compressed", body)


def write_page(path: Path, title: str, body: list[str]) -> None:
    """HTML of parts under a title, with the machine it was measured on at the end."""
    where = ", ".join(f"{k} {v}" for k, v in machine().items())
    parts = [f"<h1>{html.escape(title)}</h1>", *body, f"<p><small>{html.escape(where)}</small></p>"]
    head = f"<meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE} td + td {{ white-space: nowrap }}</style>"
    path.write_text(f"<!doctype html><html lang=en>{head}{''.join(parts)}</html>\n", encoding="utf-8")


def figure(plot: str) -> str:
    """A plot of size against loss with its caption."""
    return f"<figure>{plot}<figcaption>Towards the lower left is better.</figcaption></figure>"


def _paradigms(found: Evaluation) -> Table:
    """Pairs that went wrong and pairs that came right, of those of a paradigm, in every model."""
    reference = found.reference.pairs
    assert reference is not None
    models = [r for r in found.rows[1:] if r.pairs is not None]
    rows = [
        (name, str(tally.n_items), f"{tally.accuracy:.3f}",
         *(_lost_and_won(r.pairs.paradigms[name]) for r in models if r.pairs is not None))
        for name, tally in reference.paradigms.items()
    ]  # fmt: skip
    columns = ("paradigm", ">pairs", ">reference right", *(f">{r.name}: lost, won" for r in models))
    return Table("", columns, rows)


def _lost_and_won(tally: Any) -> str:
    lost, won = (round(part * tally.n_items) for part in (tally.good_to_bad, tally.bad_to_good))
    return f"−{lost} +{won}" if lost or won else "·"


def html_table(table: Table) -> str:
    """A table, its title above it."""

    def cell(tag: str, column: str, text: str) -> str:
        align = " style='text-align: right'" if column[0] == ">" else ""
        return f"<{tag}{align}>{html.escape(text)}</{tag}>"

    head = "".join(cell("th", c, c.lstrip(">")) for c in table.columns)
    rows = "".join(
        f"<tr>{''.join(cell('td', c, v) for c, v in zip(table.columns, row, strict=True))}</tr>" for row in table.rows
    )
    title = f"<h2>{html.escape(table.title)}</h2>" if table.title else ""
    return f"{title}<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


@dataclass(frozen=True)
class Panel:
    """Loss over size. points: (name, bits, loss); floor: the loss that is noise, where it is known."""

    ylabel: str
    points: list[tuple[str, float, Estimate]]
    floor: Estimate | None = None


def _panels(found: Evaluation) -> list[Panel]:
    """KL, and flips where pairs were judged; a model in memory has no size."""
    axes: list[tuple[str, Callable[[ModelScore], Estimate]]] = [
        ("KL(reference ‖ model), nats a token", lambda r: r.text.kl)
    ]
    if found.reference.pairs is not None:
        axes.append(("share of minimal pairs that flip", lambda r: r.pairs.all.flips))  # type: ignore[union-attr]
    return [
        Panel(
            label,
            [(r.name, r.bits_per_parameter, get(r)) for r in found.models if r.bits_per_parameter is not None],
            None if found.noise is None else get(found.noise),
        )
        for label, get in axes
    ]


def size_loss_plot(panels: list[Panel], xlabel: str) -> str:
    """Side by side, as SVG: a point with its interval each, the noise floor as a line."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "laconic", "svg.fonttype": "none"}):
        drawn = Figure(figsize=(5.2 * len(panels), 4), layout="constrained")
        for axis, panel in zip(drawn.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            widest = max((bits for _, bits, _ in panel.points), default=0.0)
            for name, bits, y in panel.points:
                spread = None
                if y.low is not None and y.high is not None:
                    spread = [[max(0.0, y.value - y.low)], [max(0.0, y.high - y.value)]]
                axis.errorbar([bits], [y.value], yerr=spread, fmt="o", capsize=3)
                side = ("right", -6) if 2 * bits > widest else ("left", 6)
                axis.annotate(name, (bits, y.value), (side[1], 4), textcoords="offset points", ha=side[0])
            shown = [y.value for _, _, y in panel.points]
            if panel.floor is not None:
                axis.axhline(panel.floor.value, color="gray", linestyle="--", label="reference in bfloat16")
                axis.legend()
                shown.append(panel.floor.value)
            axis.set(xlabel=xlabel, ylabel=panel.ylabel)
            axis.set_yscale("log" if shown and min(shown) > 0 else "linear")
            axis.margins(0.2)
            axis.set_xlim(left=0)
            axis.grid(alpha=0.3)
        out = StringIO()
        drawn.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()[out.getvalue().index("<svg") :]


def _or_blank(r: ModelScore, found: Evaluation, cells: Callable[[Any], tuple[str, ...]], n: int) -> tuple[str, ...]:
    """The reference is not compared with itself."""
    return ("",) * n if r is found.reference else cells(r)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def interval(e: Estimate, form: str) -> str:
    """A figure, and its interval in brackets where it has one."""
    if e.low is None or e.high is None:
        return format(e.value, form)
    return f"{e.value:{form}} [{e.low:{form}}, {e.high:{form}}]"
