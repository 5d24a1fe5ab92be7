"""Model classes of transformers without the libraries that only compiling and training them need.

To import any model class is to import PyTorch's compiler (with SymPy, Triton) and SciPy's optimizers as well: half of the
memory and most of the seconds that a model of a few million parameters takes to be opened. What is said to the compiler of a
function ("do not compile this", "take its result for constant") means something only where the compiler runs; so it is said
when the compiler is there, which nobody can see but by looking for it in `sys.modules`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from importlib import import_module
from types import ModuleType, NoneType
from typing import Any

_COMPILER = "torch._dynamo"
_WRAPPED = "torch._dynamo._trace_wrapped_higher_order_op"
_OPTIMIZERS = "scipy.optimize"


class _Later(ModuleType):
    """Stands for a module while others are imported; each name in it is a function that imports the module when it is called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return partial(_call, self.__name__, name)


class _Notes(_Later):
    """Stands for the compiler: each name in it is a decorator, which is applied when the compiler has been imported."""

    __path__: list[str] = []  # a package

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return partial(_note, name)


def _call(module: str, name: str, *args: Any, **kwargs: Any) -> Any:
    return getattr(import_module(module), name)(*args, **kwargs)


def _note(name: str, function: Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> Callable[..., Any]:
    if function is None:  # @decorator(setting=…)
        return partial(_note, name, *args, **kwargs)
    noted: list[Callable[..., Any]] = []

    @wraps(function)
    def call(*inputs: Any, **named: Any) -> Any:
        if isinstance(sys.modules.get(_COMPILER), (_Notes, NoneType)):  # not there yet
            return function(*inputs, **named)
        if not noted:
            noted.append(getattr(import_module(_COMPILER), name)(function, *args, **kwargs))
        return noted[0](*inputs, **named)

    return call


@contextmanager
def lean_imports() -> Iterator[None]:
    """Import what you need of transformers in here. Modules that are there already, or not installed, stay as they are."""
    stands = {}
    if _COMPILER not in sys.modules:
        stands = {_COMPILER: _Notes(_COMPILER), _WRAPPED: _Later(_WRAPPED)}
    if _OPTIMIZERS not in sys.modules:
        stands[_OPTIMIZERS] = _Later(_OPTIMIZERS)
    sys.modules.update(stands)
    try:
        yield
    finally:
        for name, stand in stands.items():
            if sys.modules.get(name) is stand:
                del sys.modules[name]
