"""Symbols coded variable by variable under a probabilistic circuit: a hidden Chow–Liu tree.

    p(x) = Σ_z Π_v p(z_v | z_parent(v)) p(x_v | z_v)        one hidden state z_v beside each variable

Rows of n_variables symbols are independent draws. Variables are coded in the order of a depth-first walk, each under
p(x_v | all that was coded before): the walk sends one message along an edge when it goes down, one when it comes back, and
what is outside a subtree does not change while the walk is in it, so a whole row costs two messages an edge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import isqrt, prod
from typing import ClassVar, NamedTuple, Self

import numpy as np

from ..core.errors import BadConfig, BadInput, CodecError, CorruptStream, NotFitted, claim
from ..core.stage import Kind, Leaf, Side, Stage, Stats, Symbols, learned
from ..core.wire import Reader, write_varint
from .circuits_em import PER_OCTAVE, Learner, Progress, Tree, chow_liu, codes, priors
from .coders import _HEAD, _dtype, _flat, _head, _read_head
from .models import MAX_ALPHABET, check_alphabet

Visit = Callable[[int, np.ndarray, np.ndarray], np.ndarray]

MAX_VARIABLES = 1 << 14
# Of the bitstream, since they say how many rows a block has.
_HELD = 1 << 21  # states of messages that a walk holds at most: 16 MiB
_MAX_BLOCK = 2048  # rows

_SMALL = 1 << 20  # symbols; so many are learned from in double precision, to the same codes on every machine


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
    of what `fit` saw. n_states: hidden states a variable. epochs, batch: of stepwise EM. ordered: whether symbols near
    each other stand for values near each other, as they do not where they are indices of a codebook.
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
    ordered: bool = True
    order: np.ndarray | None = learned("uint16", "models")
    parent: np.ndarray | None = learned("uint16", "models")
    edge: np.ndarray | None = learned("uint8", "models")
    emission: np.ndarray | None = learned("uint8", "models")

    takes: ClassVar[Kind] = Kind.SYMBOLS
    gives: ClassVar[Kind] = Kind.BYTES
    side: ClassVar[Mapping[str, Leaf]] = {"head": _HEAD}
    lossless: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.n_variables <= MAX_VARIABLES:
            raise BadConfig(f"{self.n_variables} variables; 1 to {MAX_VARIABLES} are right, or 0")
        if not 2 <= self.n_states <= 256:
            raise BadConfig(f"{self.n_states} hidden states; 2 to 256 are right")
        if self.epochs < 1 or self.batch < 1:
            raise BadConfig(f"{self.epochs} epochs in batches of {self.batch}; at least 1 is right")

    def fit(self, x: Symbols, stats: Stats | None = None) -> Self:
        return self.fit_on(x)

    def fit_on(
        self,
        x: Symbols,
        device: str | None = None,
        progress: Progress | None = None,
        seconds: float | None = None,
    ) -> Self:
        """`fit` elsewhere, in sight and in time.

        device: PyTorch's name of one, such as "cuda"; NumPy without. progress: see `Learner.fit`. seconds: of the EM, at most.
        Raises BadInput.
        """
        index = _flat(x)
        check_alphabet(x.alphabet, "Circuit")
        d = self.n_variables or prod(x.index.shape[1:])
        if not 1 <= d <= MAX_VARIABLES:
            raise BadInput(f"symbols of shape {x.index.shape} are rows of {d}; set n_variables to 1 to {MAX_VARIABLES}")
        if index.size < d:
            raise BadInput(f"{index.size} symbols are less than a row of {d} variables")
        rows = index[: index.size // d * d].reshape(-1, d)
        tree = chow_liu(rows, x.alphabet)
        precision = "float64" if rows.size <= _SMALL else "float32"
        counts = priors(len(rows), self.n_states)
        learner = Learner(tree, x.alphabet, self.n_states, *counts, device, precision, self.ordered)
        p = learner.fit(rows, epochs=self.epochs, batch=self.batch, seconds=seconds, progress=progress)
        return self.replace(n_variables=d).holding(tree, codes(learner.numpy(p.edge)), codes(learner.numpy(p.emission)))

    def holding(self, tree: Tree, edge: np.ndarray, emission: np.ndarray) -> Self:
        """The same stage with what was learned elsewhere. edge, emission: codes, as the fields say."""
        return self.replace(order=tree.order, parent=tree.parent, edge=edge, emission=emission)

    def encode(self, x: Symbols) -> tuple[bytes, Side]:
        from ..kernels import circuits as k

        index = _flat(x)
        walker = self._walker(NotFitted)
        if x.alphabet != walker.alphabet:
            raise BadInput(f"symbols of an alphabet of {x.alphabet}; the circuit has learned {walker.alphabet}")
        payload = bytearray()
        for row in self._blocks(index, walker):
            out, state = np.empty(4 * row.size + 64, np.uint8), k.encoder()

            def visit(v: int, message: np.ndarray, cumulative: np.ndarray, row=row, out=out, state=state) -> np.ndarray:
                symbol = np.ascontiguousarray(row[:, walker.order[v]])
                k.code(state, out, message, cumulative, symbol)
                return symbol

            walker.run(*row.shape, visit)
            n = k.finish(state, out)
            write_varint(payload, n)
            payload += out[:n].tobytes()
        return bytes(payload), {"head": _head(x.index.shape, x.alphabet)}

    def decode(self, y: bytes, side: Side) -> Symbols:
        from ..kernels import circuits as k

        shape, (alphabet,) = _read_head(side["head"], 1)
        walker = self._walker(CorruptStream)
        if alphabet != walker.alphabet:
            raise CorruptStream(f"symbols of an alphabet of {alphabet}; the circuit has learned {walker.alphabet}")
        claim(prod(shape) * np.dtype(_dtype(alphabet)).itemsize, "symbols")
        index = np.empty(prod(shape), _dtype(alphabet))
        reader = Reader(y)
        for row in self._blocks(index, walker):
            data = np.frombuffer(reader.take(reader.varint()), np.uint8)
            state = k.decoder(data)

            def visit(
                v: int, message: np.ndarray, cumulative: np.ndarray, row=row, data=data, state=state
            ) -> np.ndarray:
                symbol = np.empty(len(row), row.dtype)
                k.decode(state, data, message, cumulative, symbol)
                row[:, walker.order[v]] = symbol
                return symbol

            walker.run(*row.shape, visit)
            if not k.ended(state, data):
                raise CorruptStream("a block of rows whose code does not end with them")
        reader.finish()
        return Symbols(index.reshape(shape), alphabet)

    def _blocks(self, index: np.ndarray, walker: Walker) -> Iterator[np.ndarray]:
        """Views of whole rows, a block at a time, then of the row that is cut short."""
        d = self.n_variables
        whole = index[: index.size // d * d].reshape(-1, d)
        for start in range(0, len(whole), walker.block):
            yield whole[start : start + walker.block]
        if index.size % d:
            yield index[whole.size :].reshape(1, -1)

    def _walker(self, error: type[CodecError]) -> Walker:
        """What walks, checked, since learned arrays come out of packets. Raises `error`."""
        order, parent, edge, emission = self.order, self.parent, self.edge, self.emission
        if order is None or parent is None or edge is None or emission is None:
            raise NotFitted("a circuit that has learned nothing; call fit first")
        d, m = self.n_variables, self.n_states
        n_symbols = emission.shape[1] if emission.ndim == 3 else 0
        if (
            order.shape != (d,) or parent.shape != (d,) or d < 1 or edge.shape != (d, m, m)
            or emission.shape != (d, n_symbols, m) or not 1 <= n_symbols <= MAX_ALPHABET
            or not np.array_equal(np.sort(order), np.arange(d)) or (parent[1:] >= np.arange(1, d)).any() or parent[0]
        ):  # fmt: skip
            raise error(f"arrays of {d} variables with {m} states that are no circuit: {order.shape}, {parent.shape}, "
                        f"{edge.shape}, {emission.shape}")  # fmt: skip
        return Walker(Tree(order.astype(np.int64), parent.astype(np.int64)), edge, emission)


class Walker:
    """Messages along the walk, for one block of rows after another."""

    def __init__(self, tree: Tree, edge: np.ndarray, emission: np.ndarray) -> None:
        self.order, self.parent, self.steps = tree.order, tree.parent, walk(tree)
        self.edge, self.emission = edge, emission
        self.alphabet, self.n_states = emission.shape[1], emission.shape[2]
        self.depth = tree.depths()
        n_held = self.n_states * (int(self.depth.max()) + 1)
        self.block = max(1, min(_MAX_BLOCK, _HELD // n_held))

    def run(self, n: int, n_present: int, visit: Visit) -> None:
        """Walk with n rows; variables from n_present on are not there, and nothing is known of them.

        visit: (node, message of its state given all before, cumulative frequencies of its symbols) -> symbols (n,).
        """
        from ..kernels import circuits as k

        held = int(self.depth.max()) + 1
        claim(8 * held * n * self.n_states, "messages of a circuit")
        below = np.empty((held, n, self.n_states), np.float32)  # p(seen in the subtree | z)
        joint = np.empty((held, n, self.n_states), np.float32)  # p(all that was seen, z)
        for v, down in self.steps:
            level = self.depth[v]
            if not down:
                k.scaled(below[level].astype(np.float64) @ self._edge(v).T, message := np.empty_like(below[level]))
                k.joined(below[level - 1], message)
                k.joined(joint[level - 1], message)
                continue
            if level:
                k.scaled(joint[level - 1].astype(np.float64) @ self._edge(v), joint[level])
            else:
                k.scaled(np.repeat(self._edge(0)[:1], n, axis=0), joint[0])
            below[level] = 1 << (k.MESSAGE_BITS - 1)
            if self.order[v] >= n_present:
                continue
            cumulative = self._cumulative(v)
            symbol = visit(v, joint[level], cumulative)
            k.observe(below[level], cumulative, symbol)
            k.observe(joint[level], cumulative, symbol)

    def _edge(self, v: int) -> np.ndarray:
        """(M, M) float64 of integers, rows of the parent's state."""
        from ..kernels.circuits import EDGE_BITS, shares

        return shares(values(), self.edge[v], EDGE_BITS).astype(np.float64)

    def _cumulative(self, v: int) -> np.ndarray:
        """(K + 1, M) uint32: how much of each state's mass lies on the symbols below."""
        from ..kernels.circuits import SYMBOL_BITS, shares

        out = np.zeros((self.alphabet + 1, self.n_states), np.uint32)
        np.cumsum(shares(values(), np.ascontiguousarray(self.emission[v].T), SYMBOL_BITS).T, axis=0, out=out[1:])
        return out
