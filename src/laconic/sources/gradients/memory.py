"""What a rank remembers of each parameter, and which parameter is which."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...core.errors import ModelMismatch


@dataclass
class Memory:
    """Of one parameter. state: of the error control, in float32; seen: what all ranks decoded so far, where that is kept.

    factor: the last Q of power iteration, (n, rank). total: gradients summed for the next plan.
    """

    shape: tuple[int, ...]
    state: Any = None
    seen: Tensor | None = None
    factor: Tensor | None = None
    total: Tensor | None = None


class Names:
    """Parameters by name. From a model: its names for them. Without one: by the order in which they first come.

    DDP's buckets first hold the parameters in reverse order, on all ranks and in every run alike, and are then rebuilt in the
    order in which gradients are ready; so first comings number a model's parameters in the same way after a restart.
    """

    def __init__(self) -> None:
        self.by_id: dict[int, str] = {}
        self.held: list[Tensor] = []  # so that no id is given out again
        self.n_unnamed = 0
        self.of_model = False

    def learn(self, model: nn.Module) -> dict[str, tuple[int, ...]]:
        """Take a model's names; gives name -> shape."""
        shapes, self.of_model = {}, True
        for name, p in model.named_parameters():
            name = name.removeprefix("module.")  # DDP's
            self._add(p, name)
            shapes[name] = tuple(p.shape)
        return shapes

    def of(self, parameter: Tensor) -> str:
        """The name of a parameter."""
        if id(parameter) not in self.by_id:
            self._add(parameter, f"parameter {self.n_unnamed}")
            self.n_unnamed += 1
        return self.by_id[id(parameter)]

    def _add(self, p: Tensor, name: str) -> None:
        self.by_id[id(p)] = name
        self.held.append(p)


def check_shapes(memories: dict[str, Memory], shapes: dict[str, tuple[int, ...]], whole: bool) -> None:
    """Refuse memories that are of another model. whole: `shapes` are all of its parameters.

    Raises
    ------
    ModelMismatch: names the first parameter that does not fit.
    """
    for name, memory in memories.items():
        if name in shapes and memory.shape != shapes[name]:
            raise ModelMismatch(
                f"the state is of another model: it remembers {name!r} of shape {memory.shape}, which here is {shapes[name]}"
            )
    missing = [name for name in memories if name not in shapes]
    if whole and missing:
        raise ModelMismatch(
            f"the state is of another model: it remembers {missing[0]!r} of shape {memories[missing[0]].shape}, "
            f"which is not among {_some(shapes)}"
        )


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:4])) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
