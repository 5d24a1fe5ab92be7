"""The demo's HTML report: one file, plots and pictures inside it."""

from __future__ import annotations

import base64
import html
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli.tables import size

if TYPE_CHECKING:
    from .demo import Result

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; width: 100%; font-size: .9rem } th, td { padding: .3rem .6rem; text-align: left }
thead { border-bottom: 2px solid #222 } tbody tr:nth-child(odd) { background: #f5f5f2 }
figure { margin: 1rem 0; display: inline-block; vertical-align: top } figcaption { font-size: .85rem; color: #555 }
img { max-width: 100%; image-rendering: auto }
"""


def write_report(folder: Path, results: list[Result]) -> Path:
    """Table, size against loss for every source, and the pictures beside their original."""
    rows = "".join(f"<tr>{''.join(f'<td>{html.escape(str(c))}</td>' for c in _cells(r))}</tr>" for r in results)
    heads = ("source", "recipe", "from", "to", "bits per value", "loss", "judged")
    head = "".join(f"<th>{h}</th>" for h in heads)
    body = [
        "<h1>laconic demo</h1>",
        "<p>Sizes are those of the files; losses were measured on what the files decode to.</p>",
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>",
        "<h2>Size against loss</h2>",
        _figure(_curves(results), "Each point is a file. Towards the lower left is better."),
        "<h2>Pictures</h2>",
        *_pictures(folder, results),
        "<h2>Where the bytes went</h2>",
        _figure(_ledgers(results), "Every byte of each file by role, from the packets' ledgers."),
    ]
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>laconic demo</title><style>{STYLE}</style>{''.join(body)}"
    path = folder / "report.html"
    path.write_text(page + "</html>")
    return path


def _cells(r: Result) -> tuple[str, ...]:
    n = sum(row.n_elements for row in r.report.rows)
    chosen = max(r.report.rows, key=lambda row: row.in_bytes).recipe
    rate = f"{8 * r.report.out_bytes / n:.3f}"
    return r.job.source, chosen, size(r.report.in_bytes), size(r.report.out_bytes), rate, r.loss, r.judged


def _figure(png: bytes, caption: str) -> str:
    data = base64.b64encode(png).decode()
    return f"<figure><img src='data:image/png;base64,{data}'><figcaption>{caption}</figcaption></figure>"


def _png(figure: Any) -> bytes:
    out = BytesIO()
    figure.savefig(out, format="png", dpi=110, bbox_inches="tight")
    return out.getvalue()


def _axes(n: int, width: float) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * n, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, n, squeeze=False)[0])


def _curves(results: list[Result]) -> bytes:
    """One panel a source that was coded with loss: bits per value against relative error."""
    lossy = [r for r in results if any(row.error > 0 for row in r.report.rows)]
    sources = list(dict.fromkeys(r.job.source for r in lossy))
    figure, axes = _axes(max(1, len(sources)), 4.2)
    for axis, source in zip(axes, sources, strict=False):
        points: dict[str, list[tuple[float, float]]] = {}
        for r in lossy:
            if r.job.source == source:
                row = max(r.report.rows, key=lambda row: row.in_bytes)
                points.setdefault(row.recipe.split()[0], []).append((row.bits_per_element, row.error))
        for recipe, line in points.items():
            axis.plot(*zip(*sorted(line), strict=True), "o-", label=recipe)
        axis.set(title=source, xlabel="bits per value, all bytes", ylabel="‖x − x̂‖² / ‖x‖²", yscale="log")
        axis.grid(alpha=0.3)
        axis.legend()
    return _png(figure)


def _ledgers(results: list[Result]) -> bytes:
    from ..sources.files import info

    figure, (axis,) = _axes(1, 9)
    names, left = [f"{r.job.source} {r.job.recipe or ''} {r.job.bits or ''}" for r in results], [0.0] * len(results)
    shares = []
    for r in results:
        said: Any = info(r.report.out)
        shares.append({role: n / said.n_bytes for role, n in said.by_role.items()})
    for role in dict.fromkeys(k for s in shares for k in s):
        widths = [s.get(role, 0.0) for s in shares]
        axis.barh(names, widths, left=left, label=role)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.invert_yaxis()
    axis.set(xlabel="share of the file", xlim=(0, 1))
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _png(figure)


def _pictures(folder: Path, results: list[Result]) -> list[str]:
    shown = [r for r in results if r.job.source.endswith(".png")]
    if not shown:
        return []
    out = [
        _figure(
            (folder / shown[0].job.source).read_bytes(),
            f"original, {size((folder / shown[0].job.source).stat().st_size)} as PNG",
        )
    ]
    for r in shown:
        out.append(_figure(r.restored.read_bytes(), f"{size(r.report.out_bytes)} · {r.loss}"))
    return out
