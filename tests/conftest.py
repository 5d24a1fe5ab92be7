from __future__ import annotations

import os
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite-goldens", action="store_true", help="write tests/golden anew (a bitstream change!)")


@pytest.fixture
def data() -> Path:
    """Real inputs for evaluation; they are not shipped."""
    where = Path(os.environ.get("LACONIC_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not where.is_dir():
        pytest.skip(f"no evaluation data at {where}; set LACONIC_DATA")
    return where
