"""Symbols coded variable by variable under a probabilistic circuit: a hidden Chow–Liu tree.

    p(x) = Σ_z Π_v p(z_v | z_parent(v)) p(x_v | z_v)        one hidden state z_v beside each variable

Rows of n_variables symbols are independent draws. Variables are coded in the order of a depth-first walk, each under
p(x_v | all that was coded before): the walk sends one message along an edge when it goes down, one when it comes back, and
what is outside a subtree does not change while the walk is in it, so a whole row costs two messages an edge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import isqrt, prod
from typing import ClassVar, NamedTuple, Self

import numpy as np

from ..core.errors import BadConfig, BadInput, CorruptStream, NotFitted, claim
from ..core.stage import Kind, Leaf, Side, Stage, Stats, Symbols, learned
from .circuits_em import PER_OCTAVE, Learner, Tree, chow_liu, codes
from .coders import HEAD, dtype_of, flat, head_of, read_head

BLOCK = 512  # rows that walk together; the decoder holds two messages an edge of the path to the root for each
MAX_VARIABLES = 1 << 14
_FIT_ROWS = 1 << 17


class Step(NamedTuple):
    """One step of the walk: down into a node, whose variable is coded then, or up from it to its parent."""

    node: int
    down: bool


def walk(tree: Tree) -> list[Step]:
    """The steps of a row. Behind the last variable nothing goes up any more.

    Children with the largest subtree come last, so that the longest way back is the one that is not taken.
    """
    d = tree.parent.size
    size = np.ones(d, np.int64)
    for v in range(d - 1, 0, -1):
        size[tree.parent[v]] += size[v]
    children: list[list[int]] = [[] for _ in range(d)]
    for v in sorted(range(1, d), key=lambda v: (-size[v], v)):
        children[tree.parent[v]].append(v)  # taken from the end: the smallest first
    steps, path = [Step(0, True)], [0]
    while path:
        if children[path[-1]]:
            path.append(children[path[-1]].pop())
            steps.append(Step(path[-1], True))
        else:
            steps.append(Step(path.pop(), False))
    while not steps[-1].down:
        steps.pop()
    return steps


@lru_cache
def values() -> np.ndarray:
    """What the codes of probabilities stand for: 2^(40 − code / 8) rounded down, by integer square roots; (256,) int64."""
    out = []
    for c in range(256):
        octaves, rest = divmod(c, PER_OCTAVE)
        root = 1 << (8 * 64 - rest)  # 2^(64 − rest / 8), to the eighth power
        for _ in range(3):
            root = isqrt(root)
        out.append(root >> (24 + octaves))
    return np.array(out, np.int64)


@dataclass(frozen=True)
class Circuit(Stage):
    """SYMBOLS -> BYTES under a hidden Chow–Liu tree that `fit` learns.

    Symbols in rows of n_variables, the last row as short as it is; where that is 0, a row is everything below the first axis
    of what `fit` saw. n_states: hidden states a variable. epochs, batch: of stepwise EM.
    Learned: order, parent (D,), the tree; edge (D, M, M), emission (D, K, M), probabilities as −8 log2 p, a byte each.
    Side: head, the alphabet and the shape.
    Source: Liu, Mandt and Van den Broeck 2022, "Lossless Compression with Probabilistic Circuits" (2111.11632), algorithm 1.
    Differs: messages both ways along the walk, so a row costs O(|p|) where the paper's order costs O(log D · |p|); integers
    for probabilities, exact on every machine.
    """

    n_variables: int = 0
    n_states: int = 16
    epochs: int = 20
    batch: int = 256
    order: np.ndarray | None = learned("uint16", "models")
    parent: np.ndarray | None = learned("uint16", "models")
    edge: np.ndarray | None = learned("uint8", "models")
    emission: np.ndarray | None = learned("uint8", "models")

    takes: ClassVar[Kind] = Kind.SYMBOLS
    gives: ClassVar[Kind] = Kind.BYTES
    side: ClassVar[Mapping[str, Leaf]] = {"head": HEAD}
    lossless: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.n_variables <= MAX_VARIABLES:
            raise BadConfig(f"{self.n_variables} variables; 1 to {MAX_VARIABLES} are right, or 0")
        if not 2 <= self.n_states <= 256:
            raise BadConfig(f"{self.n_states} hidden states; 2 to 256 are right")
        if self.epochs < 1 or self.batch < 1:
            raise BadConfig(f"{self.epochs} epochs in batches of {self.batch}; at least 1 is right")
