"""Probabilistic circuits: MNIST in real bytes with the model's size beside it, messages a pixel, and codes of a packet.

The circuit of MNIST is read from `mnist/circuit-*.npz` in the folder of measurement data, as `bench.circuits_train` writes it;
where there is none, one of 16 states is learned here, which takes minutes.
"""

from __future__ import annotations

import lzma
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..core.combine import chain
from ..core.packet import Codec, decode
from ..core.stage import Symbols
from ..entropy.circuits import Circuit, Tree, walk
from ..entropy.circuits_em import Progress, chow_liu
from ..entropy.planes import BytePlanes
from .rows import Measurement, Row
from .weights_text import data_folder

TARGET_BITS = 1.20
_STATES = 16
_MODELS = Path(__file__).parents[3] / "models" / "mnist"
_SECONDS = 240.0
_SHRINKS = (4, 2, 1)  # of the pictures' sides, for the count of messages


def _images() -> tuple[np.ndarray, np.ndarray]:
    with np.load(data_folder() / "mnist" / "mnist.npz") as held:
        return held["x_train"], held["x_test"]


def _named() -> list[Path]:
    """Files of circuits: those in the folder that `$LACONIC_CIRCUITS` names, else the repository's own, which
    `bench/circuits_train.py` learned from the training images in a minute on a GPU; no part of the package.
    """
    return sorted(Path(os.environ.get("LACONIC_CIRCUITS") or _MODELS).glob("circuit-*.npz"))


def _bar() -> Progress:
    """Prints how far learning is, with the seconds that are left, over the same line."""
    begun = time.perf_counter()

    def tick(done: int, total: int, what: str) -> None:
        spent = time.perf_counter() - begun
        left = min(spent / done * (total - done), _SECONDS - spent)
        print(f"\r  {what}, {left:.0f} s left  ", end="", file=sys.stderr, flush=True)

    return tick


def _circuits(train: np.ndarray) -> Iterator[Circuit]:
    files = _named()
    for path in files:
        with np.load(path) as held:
            tree = Tree(held["order"].astype(np.int64), held["parent"].astype(np.int64))
            d, n_states, _ = held["edge"].shape
            yield Circuit(d, n_states).holding(tree, held["edge"], held["emission"])
    if not files:
        rows = Symbols(train.reshape(len(train), -1), 256)
        yield Circuit(0, _STATES).fit_on(rows, progress=_bar() if sys.stderr.isatty() else None, seconds=_SECONDS)


def mnist() -> Iterator[Row]:
    """The test images, one packet, the circuit in a file of its own; decoded from both."""
    import torch

    train, test = _images()
    x = torch.from_numpy(test)
    for circuit in _circuits(train):
        c = Codec(chain(BytePlanes(), circuit), "probabilistic-circuits")
        name = f"MNIST test, {circuit.n_states} states"
        c.encode(x[:2], embed=False)  # compiled before anything is timed
        begun = time.process_time()
        packet = c.encode(x, embed=False)
        coded = time.process_time()
        if not torch.equal(decode(packet, model=c), x):
            raise RuntimeError("MNIST's test images came back as something else")
        done = time.process_time()
        yield Row(f"{name}, whole packet", 8 * len(packet) / test.size, "bits/pixel", "xz -9e",
                  8 * _xz(test) / test.size, ("<=", TARGET_BITS))  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            c.save_model(Path(folder) / "circuit.safetensors")
            size = (Path(folder) / "circuit.safetensors").stat().st_size
        yield Row(f"{name}, file of the circuit", size / 1e6, "MB", "the packet", len(packet) / 1e6)
        yield Row(f"{name}, coding", test.nbytes / 1e6 / (coded - begun), "MB/s of processor time")
        yield Row(f"{name}, decoding", test.nbytes / 1e6 / (done - coded), "MB/s of processor time")


def _xz(array: np.ndarray) -> int:
    return len(lzma.compress(np.ascontiguousarray(array).tobytes(), preset=9 | lzma.PRESET_EXTREME))


def light_depth_messages(tree: Tree) -> float:
    """Messages a variable where only what lies above it changes: the paper's order, largest subtree first.

    Of the subtrees that hold a variable, those count that are not the first at their parent: at most log2 D.
    """
    d = tree.parent.size
    size = np.ones(d, np.int64)
    for v in range(d - 1, 0, -1):
        size[tree.parent[v]] += size[v]
    first: dict[int, int] = {}
    for v in sorted(range(1, d), key=lambda v: (-size[v], v)):
        first.setdefault(int(tree.parent[v]), v)
    light = np.zeros(d, np.int64)
    for v in range(1, d):
        light[v] = light[tree.parent[v]] + (first[int(tree.parent[v])] != v)
    return float((light + 1).mean())


def messages() -> Iterator[Row]:
    """Messages sent a pixel, counted on the walk, as pictures grow."""
    train, _ = _images()
    for shrink in _SHRINKS:
        rows = train[::12, ::shrink, ::shrink].reshape(len(train[::12]), -1)
        tree = chow_liu(rows, 256)
        d, steps = rows.shape[1], walk(tree)
        yield Row(f"MNIST {d} pixels, messages a pixel", len(steps) / d, "M × M products", "order of the paper",
                  light_depth_messages(tree), ("<=", math.log2(d)))  # fmt: skip
        gaps = np.diff([i for i, s in enumerate(steps) if s.down], prepend=-1)
        yield Row(f"MNIST {d} pixels, most before one pixel", float(gaps.max()), "M × M products", "all nodes again",
                  float(d))  # fmt: skip


def packet_codes() -> Iterator[Row]:
    """Indices of product quantization, out of a packet, under a circuit learned on those of other vectors."""
    import laconic

    from ..core.reopen import reopen
    from ..entropy.coders import Rans
    from .vectors import sift

    data = sift()
    c = laconic.codec("pq", bits=0.5).fit(data.learn)

    def indices(x: Any) -> Symbols:
        opened = reopen(c.encode(x))
        return opened.stage.stages[-1].decode(opened.payload, opened.side["1"])  # type: ignore[attr-defined, no-any-return]

    seen, new = indices(data.learn), indices(data.base)
    circuit = Circuit(n_states=32, epochs=15, batch=1024, ordered=False).fit(seen)
    y, side = circuit.encode(new)
    if not np.array_equal(circuit.decode(y, side).index, new.index):
        raise RuntimeError("indices came back as something else")
    columns = sum(len(Rans().encode(Symbols(np.ascontiguousarray(col), new.alphabet))[0]) for col in new.index.T)
    yield Row("SIFT, indices of pq at .5 bits", 8 * len(y) / new.index.size, "bits/index", "rANS, a table a column",
              8 * columns / new.index.size, ("<=", 8.0))  # fmt: skip
    yield Row("SIFT, indices of pq, circuit", sum(a.nbytes for _, a in circuit.arrays().values() if a is not None) / 1e6,
              "MB", "the indices", new.index.nbytes / 1e6)  # fmt: skip


SUITE = (
    Measurement("circuits messages", messages),
    Measurement("circuits mnist", mnist),
    Measurement("circuits packet codes", packet_codes),
)
