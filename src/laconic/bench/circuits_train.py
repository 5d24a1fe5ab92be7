"""Train a circuit on images and write it down: `python -m laconic.bench.circuits_train --data mnist.npz --out FILE`.

Needs NumPy, and PyTorch for `--device cuda`; nothing else of laconic's requirements.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from ..entropy.circuits_em import Learner, Parameters, chow_liu, codes


def train(a: argparse.Namespace) -> None:
    """What the command line says; prints estimated bits a pixel as it goes, of images that were held out."""
    with np.load(a.data) as held:
        images, test = (held[k].reshape(len(held[k]), -1) for k in ("x_train", "x_test"))
    if a.rows:
        images = images[: a.rows]
    held_out = images[len(images) - a.holdout :]
    images = images[: len(images) - a.holdout]
    begun = time.perf_counter()
    tree = chow_liu(images, 256)
    print(f"tree of depth {tree.depths().max()} in {time.perf_counter() - begun:.1f} s", flush=True)
    tried: dict[float, tuple[float, float]] = {}
    grid = [(edge, prior) for edge in a.prior_edge for prior in a.prior]
    for edge, prior in grid if len(grid) > 1 else []:
        learner = Learner(tree, 256, a.states[0], edge, prior, a.device)
        p = learner.fit(images, epochs=a.epochs, seconds=a.search, batch=a.batch, step=(a.first_step, a.last_step))
        bits = learner.estimated_bits(p, held_out, a.batch)
        print(f"states {a.states[0]}, prior_edge {edge:g}, prior {prior:g}: held out {bits:.4f}", flush=True)
        tried[bits] = edge, prior
    best = tried[min(tried)] if tried else grid[0]
    for m, seconds in zip(a.states, a.seconds or [None] * len(a.states), strict=True):
        _train(a, Learner(tree, 256, m, *best, a.device), seconds, images, held_out, test)


def _train(
    a: argparse.Namespace,
    learner: Learner,
    seconds: float | None,
    images: np.ndarray,
    held_out: np.ndarray,
    test: np.ndarray,
) -> None:
    begun = time.perf_counter()

    def watch(epoch: int, p: Parameters) -> None:
        if epoch % a.every == 0:
            bits = learner.estimated_bits(p, held_out, a.batch)
            print(f"  {epoch:4} {time.perf_counter() - begun:6.1f} s  held out {bits:.4f}", flush=True)

    def tick(done: int, total: int, what: str) -> None:
        spent = time.perf_counter() - begun
        left = min(spent / done * (total - done), seconds - spent if seconds else np.inf)
        print(f"  {done}/{total} {what}, {left:.0f} s left  ", end="\r", file=sys.stderr, flush=True)

    p = learner.fit(images, epochs=a.epochs, seconds=seconds, batch=a.batch, seed=a.seed,
                    step=(a.first_step, a.last_step), progress=tick if sys.stderr.isatty() else None,
                    watch=watch)  # fmt: skip
    bits = [learner.estimated_bits(p, x, a.batch) for x in (images[:2000], held_out, test)]
    print(f"states {learner.n_states}: estimated bits a pixel, seen {bits[0]:.4f}, held out {bits[1]:.4f}, "
          f"test {bits[2]:.4f}; {time.perf_counter() - begun:.0f} s", flush=True)  # fmt: skip
    out = Path(f"{a.out}-{learner.n_states}.npz")
    edge, emission = codes(learner.numpy(p.edge)), codes(learner.numpy(p.emission))
    np.savez_compressed(out, order=learner.tree.order, parent=learner.tree.parent, edge=edge, emission=emission)
    print(f"{out}: {out.stat().st_size:,} bytes", flush=True)


def main() -> None:
    """The command line."""
    c = argparse.ArgumentParser(prog="python -m laconic.bench.circuits_train", description=__doc__)
    c.add_argument("--data", required=True, help=".npz with x_train and x_test, uint8")
    c.add_argument("--out", required=True, help="start of the files' names")
    c.add_argument("--states", type=int, nargs="+", default=[32])
    c.add_argument("--prior", type=float, nargs="+", default=[40.0], help="pseudo-counts of a state's symbols")
    c.add_argument("--prior-edge", type=float, nargs="+", default=[10.0], help="pseudo-counts of a row of an edge")
    c.add_argument(
        "--search",
        type=float,
        default=10.0,
        help="seconds for each pair, where several are given; the best "
        "at the first of --states on what is held out serves all",
    )
    c.add_argument("--device", default=None, help="cuda or cpu for PyTorch; NumPy without")
    c.add_argument("--epochs", type=int, default=100)
    c.add_argument("--seconds", type=float, nargs="+", help="of each training, at most")
    c.add_argument("--batch", type=int, default=512)
    c.add_argument("--first-step", type=float, default=0.4)
    c.add_argument("--last-step", type=float, default=0.01)
    c.add_argument("--rows", type=int, default=0, help="train on the first so many images only")
    c.add_argument("--holdout", type=int, default=2000)
    c.add_argument("--every", type=int, default=5, help="epochs between two looks at what is held out")
    c.add_argument("--seed", type=int, default=0)
    train(c.parse_args())


if __name__ == "__main__":
    main()
