"""The house holds: floors, recipes, names, and what an import costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

import laconic
from laconic.core import registry

SRC = Path(laconic.__file__).parent
FILES = sorted(SRC.rglob("*.py"))
FLOORS = {"core": 0, "kernels": 0, "transforms": 1, "quantize": 1, "entropy": 1, "allocate": 1, "measure": 1,
          "sources": 2, "recipes": 3, "bench": 4, "cli": 4}  # fmt: skip
MAY_SEE = {"core": {"core"}, "kernels": {"kernels", "core"}}
RECIPE_FILES = [f for f in FILES if "recipes" in f.parts and f.name != "__init__.py"]


def _room(path: Path) -> str:
    parts = path.relative_to(SRC).parts
    return parts[0] if len(parts) > 1 else ""


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _imports(path: Path) -> set[str]:
    """Rooms of ours that a file imports, and for recipes the module below."""
    package = ["laconic", *path.relative_to(SRC).with_suffix("").parts[:-1]]
    found = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{a.name}" for a in node.names}
    return {m for m in found if m.startswith("laconic.")}


@pytest.mark.parametrize("path", [f for f in FILES if _room(f)], ids=lambda f: str(f.relative_to(SRC)))
def test_no_import_runs_upward(path: Path) -> None:
    room = _room(path)
    for module in _imports(path):
        other = module.split(".")[1]
        assert other in FLOORS, f"{path.name} imports {module}: the package's face is for users, rooms import rooms"
        assert FLOORS[other] <= FLOORS[room], f"{path.name} ({room}) imports {module}, which lies above it"
        if room in MAY_SEE:
            assert other in MAY_SEE[room], f"{path.name} ({room}) imports {module}"


@pytest.mark.parametrize("path", RECIPE_FILES, ids=lambda f: f.stem)
def test_recipes_are_compositions(path: Path) -> None:
    tree = _tree(path)
    public = [n.name for n in tree.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]
    assert 1 <= len(public) <= 2, f"one public function, two for named variants; found {public}"
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)], "a class in a recipe is a part in hiding"
    assert len(path.read_text().splitlines()) <= 150
    siblings = [m for m in _imports(path) if m.startswith("laconic.recipes")]
    assert not siblings, f"recipes do not import each other: {siblings}"


def test_every_recipe_file_is_in_the_registry_and_back() -> None:
    targets = {r.target.partition(":")[0] for r in registry.RECIPES.values()}
    files = {"laconic." + ".".join(f.relative_to(SRC).with_suffix("").parts) for f in RECIPE_FILES}
    assert targets == files


def test_every_part_of_the_registry_loads_and_every_stage_is_registered() -> None:
    from laconic.core.combine import Rule
    from laconic.core.stage import Part, Stage
    from laconic.quantize.base import Codebook, Rounding, Scale

    for name, target in registry.PARTS.items():
        assert issubclass(registry.load(target), Part), name
    known, abstract = (
        {registry.load(t) for t in registry.PARTS.values()},
        {Part, Stage, Codebook, Scale, Rounding, Rule},
    )

    def below(cls: type) -> set[type]:
        return {s for c in cls.__subclasses__() for s in {c, *below(c)}}

    missing = {c for c in below(Part) - known - abstract if c.__module__.startswith("laconic") and c.__name__[0] != "_"}
    abstract_by_use = {c for c in missing if c.__subclasses__()}
    assert not missing - abstract_by_use, f"not in PARTS: {sorted(c.__name__ for c in missing - abstract_by_use)}"


def test_no_duplicated_function_bodies() -> None:
    seen: dict[str, list[str]] = defaultdict(list)
    for path in FILES:
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                text = "\n".join(ast.dump(n) for n in body)
                if len(list(ast.walk(ast.Module(body, [])))) > 40:
                    seen[text].append(f"{path.relative_to(SRC)}:{node.lineno} {node.name}")
    twice = [where for where in seen.values() if len(where) > 1]
    assert not twice, f"the same body stands in {twice}"


def test_no_checks_for_concrete_classes() -> None:
    owner = {t.rpartition(":")[2]: t.partition(":")[0] for t in registry.PARTS.values()}
    bad = []
    for path in FILES:
        module = "laconic." + ".".join(path.relative_to(SRC).with_suffix("").parts)
        for node in ast.walk(_tree(path)):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("isinstance", "issubclass")
            ):
                names = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
                bad += [f"{path.name}:{node.lineno} {n}" for n in names & set(owner) if owner[n] != module]
    assert not bad, f"ask for a declared property instead: {bad}"


@pytest.mark.parametrize(
    "code",
    [
        "import laconic",
        "import laconic; laconic.recipes()",
        "import laconic.cli.main",
        "import laconic; p = laconic.codec('bytes-mix').encode(b'abc' * 99); assert laconic.decode(p) == b'abc' * 99",
    ],
)
def test_torch_stays_out(code: str) -> None:
    run = f"{code}\nimport sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", run]).returncode == 0


def test_help_needs_neither_numpy_nor_numba() -> None:
    code = "import laconic.cli.main, sys; sys.exit(bool({'torch', 'numba', 'numpy', 'scipy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
