"""Writes the generated pages: a page a room from the modules' docstrings, and a card a recipe from the registry.

A card holds what the recipe's docstring says, the composition drawn from the chain it builds, and rate and distortion measured
when the page is made, on a small seeded sample of its domain.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

from tests.contract.samples import fitted, sample, settings_of  # noqa: E402

from laconic.core import registry  # noqa: E402
from laconic.core.packet import codec, decode, info  # noqa: E402
from laconic.core.stage import Kind, Part, Stage  # noqa: E402
from laconic.measure import relative_error  # noqa: E402

ROOMS = ("core", "kernels", "transforms", "quantize", "entropy", "allocate", "measure", "sources")


def rooms() -> None:
    """One page a room: its modules by their docstrings, with the public names."""
    (DOCS / "rooms").mkdir(exist_ok=True)
    for room in ROOMS:
        folder = ROOT / "src" / "laconic" / room
        lines = [f"# {room}", ""]
        for path in sorted(folder.rglob("*.py")):
            if path.name != "__init__.py":
                module = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
                lines += [f"::: {module}", ""]
        (DOCS / "rooms" / f"{room}.md").write_text("\n".join(lines))


def draw(stage: Stage) -> str:
    """The composition as a flow chart."""
    lines, count = ["flowchart LR"], [0]

    def node(part: Part) -> str:
        count[0] += 1
        inner = ", ".join(registry.part_name(type(p)) for _, p in part.parts() if not isinstance(p, Stage))
        name = registry.part_name(type(part)) + (f"<br/><small>{inner}</small>" if inner else "")
        lines.append(f'  n{count[0]}["{name}"]')
        return f"n{count[0]}"

    def walk(part: Stage, before: str) -> str:
        children = list(part.children().values())
        if children and not part.holds_codecs:
            for child in children:
                before = walk(child, before)
            return before
        here = node(part)
        lines.append(f"  {before} --> {here}")
        for child in children or [p for _, p in part.parts() if isinstance(p, Stage)]:
            walk(child, here)
        return here

    lines.append("  x([x])")
    end = walk(stage, "x")
    lines.append(f"  {end} --> bytes([bytes])")
    return "```mermaid\n" + "\n".join(lines) + "\n```"


def measured(name: str) -> list[tuple[str, float, float | None, dict[str, int]]]:
    """(setting, bits per value, relative squared error, ledger) on the sample of the recipe's domain."""
    rates: list[dict[str, Any]] = [{}]
    if "bits" in settings_of(name):
        whole = isinstance(settings_of(name)["bits"], int)
        rates = [{"bits": b if whole else float(b)} for b in (1, 2, 3, 4)]
    rows = []
    for settings in rates:
        try:
            c, x = fitted(name, **settings), sample(name)
            packet = c.encode(x)
        except registry.BadConfig:
            continue  # a rate that the recipe does not have
        said = info(packet)
        error = None if c.stage.lossless or isinstance(x, bytes) else relative_error(x.float(), decode(packet).float())
        label = ", ".join(f"{k}={v}" for k, v in settings.items()) or "as it is"
        rows.append((label, said.bits_per_element, error, said.ledger.by_role()))
    return rows


def card(name: str) -> str:
    """One recipe's page."""
    line = registry.recipe(name)
    function = registry.load(line.target)
    title, _, rest = inspect.cleandoc(function.__doc__ or "").partition("\n")
    stage = codec(name).stage
    takes = "bytes" if stage.takes is Kind.BYTES else f"arrays of {', '.join(stage.accepts)}"
    defaults = "".join(f", {k}={v!r}" for k, v in settings_of(name).items())
    out = [
        f"# {name}",
        "",
        f"**{title}**",
        "",
        f"`laconic.codec({name!r}{defaults})` — for {line.domain}; takes {takes}.",
        "",
    ]
    out += ["```text", rest.strip("\n"), "```", "", "## Composition", "", draw(stage), "", "## Measured", ""]
    out += [
        "On a small seeded sample of its domain, every byte counted (headers weigh more here than they will for you).",
        "",
    ]
    out += ["| setting | bits per value | ‖x − x̂‖² / ‖x‖² | bytes |", "|---|---|---|---|"]
    for label, rate, error, ledger in measured(name):
        shares = ", ".join(f"{k} {v:,}" for k, v in ledger.items())
        out.append(f"| {label} | {rate:.3f} | {'0' if error is None else f'{error:.5f}'} | {shares} |")
    return "\n".join([*out, ""])


def cards() -> None:
    """A page a recipe, and their index."""
    (DOCS / "recipes").mkdir(exist_ok=True)
    index = ["# Recipes", "", "| id | for | what |", "|---|---|---|"]
    for name in registry.recipes():
        (DOCS / "recipes" / f"{name}.md").write_text(card(name))
        first = (registry.load(registry.recipe(name).target).__doc__ or "").strip().splitlines()[0]
        index.append(f"| [{name}]({name}.md) | {registry.recipe(name).domain} | {first} |")
    (DOCS / "recipes" / "index.md").write_text("\n".join([*index, ""]))


def start() -> None:
    """The first page is the README."""
    (DOCS / "index.md").write_text((ROOT / "README.md").read_text().replace("](docs/", "]("))


if __name__ == "__main__":
    rooms()
    cards()
    start()
