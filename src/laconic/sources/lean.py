"""Model classes of transformers without the libraries that only compiling and training them need.

To import any model class is to import PyTorch's compiler (with Triton) and SciPy's optimizers as well: 110 MB, and seconds, of
what a model of a few million parameters takes to be opened. What is said to the compiler of a function ("do not compile this",
"take its result for constant") means something only where the compiler runs; so it is said when the compiler is there. Whatever
else is asked of these modules gets the modules themselves.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial, wraps
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo"
_NOTES = ("disable", "allow_in_graph", "assume_constant_result")  # decorators that give the function back
_LATER = {
    "torch._dynamo._trace_wrapped_higher_order_op": "TransformGetItemToIndex",
    "scipy.optimize": "linear_sum_assignment",
}


class _Stand(ModuleType):
    """Stands for a module while others are imported. known: the names that need not be the module's own yet."""

    __path__: list[str] = []  # a package, so that `_Finder` is asked for what is in it

    def __init__(self, name: str, known: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__(name)
        self.__dict__.update(known)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_real(self.__name__), name)


class _Finder(MetaPathFinder):
    """Finds what is in a module that another stands for, in the module itself."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        parent = fullname.rpartition(".")[0]
        if not isinstance(sys.modules.get(parent), _Stand):
            return None
        _real(parent)
        return find_spec(fullname)


def _real(name: str) -> ModuleType:
    """The module itself; nothing stands for any module from here on."""
    for other in [n for n, m in sys.modules.items() if isinstance(m, _Stand)]:
        del sys.modules[other]
    return import_module(name)


def _call(module: str, name: str, *args: Any, **kwargs: Any) -> Any:
    return getattr(_real(module), name)(*args, **kwargs)


def _note(name: str, function: Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> Callable[..., Any]:
    """What the compiler's decorator `name` gives: the function, decorated as soon as the compiler has been imported."""
    if function is None:  # @decorator(setting=…)
        return partial(_note, name, *args, **kwargs)
    noted: list[Callable[..., Any]] = []

    @wraps(function)
    def call(*inputs: Any, **named: Any) -> Any:
        if isinstance(sys.modules.get(_COMPILER), _Stand | None):
            return function(*inputs, **named)
        if not noted:
            noted.append(getattr(sys.modules[_COMPILER], name)(function, *args, **kwargs))
        return noted[0](*inputs, **named)

    return call


@contextmanager
def lean_imports() -> Iterator[None]:
    """Import what you need of transformers in here; modules that are there already stay as they are. No other thread should
    import meanwhile."""
    known = {m: {name: partial(_call, m, name)} for m, name in _LATER.items()}
    known[_COMPILER] = {name: partial(_note, name) for name in _NOTES}
    stands = {m: _Stand(m, names) for m, names in known.items() if m not in sys.modules}
    finder = _Finder()
    sys.modules.update(stands)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name, stand in stands.items():
            if sys.modules.get(name) is stand:
                del sys.modules[name]
