from __future__ import annotations

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores: threads of each would wait for those of the others
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite-goldens", action="store_true", help="write tests/golden anew (a bitstream change!)")
    parser.addoption(
        "--claims", action="store_true", help="also measure the papers' claims on a trained model (minutes)"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Claims that are measured on the trained sample model take minutes together; `make claims` runs them."""
    if config.getoption("--claims"):
        return
    skip = pytest.mark.skip(reason="measured on a trained model; --claims or `make claims` runs it")
    for item in items:
        names = getattr(getattr(item, "module", None), "__dict__", {})
        if item.path.parent.name == "recipes" and any(_measures(v) for v in names.values()):
            item.add_marker(skip)


def _measures(value: object) -> bool:
    """Whether a name in a test module comes from the helpers that run the trained model."""
    home = getattr(value, "__module__", None) or getattr(value, "__name__", "")
    return str(home) in {f"tests.recipes.{name}" for name in ("layers", "trials", "drifting")}


@pytest.fixture
def data() -> Path:
    """Real inputs for evaluation; they are not shipped."""
    where = Path(os.environ.get("LACONIC_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not where.is_dir():
        pytest.skip(f"no evaluation data at {where}; set LACONIC_DATA")
    return where
