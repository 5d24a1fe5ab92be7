"""Registers laconic's quantizer with transformers, whichever of the two is imported first, and imports neither.

While transformers is not there, a finder stands before the others and waits for one module: transformers' table of
quantizers. When that has been executed, laconic's own entry is added.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

TABLE = "transformers.quantizers.auto"
QUANTIZER = "laconic.sources.weights.hf"


class _Watch:
    """A finder that finds the one module as usual, and has its loader add the quantizer behind it."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        if name != TABLE:
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]  # once is enough
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _register()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Register now where transformers' table is there already, else when it comes."""
    if _loaded(sys.modules.get(TABLE)):
        _register()
    elif not any(isinstance(f, _Watch) for f in sys.meta_path):
        sys.meta_path.insert(0, _Watch())  # type: ignore[arg-type]


def _register() -> None:
    """A transformers too old for quantizers of others stays as it is: it must not fail to import on laconic's account."""
    with suppress(ImportError):
        import_module(QUANTIZER)


def _loaded(module: ModuleType | None) -> bool:
    spec: ModuleSpec | None = getattr(module, "__spec__", None)
    return module is not None and not getattr(spec, "_initializing", False)
