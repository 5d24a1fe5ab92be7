"""Hidden Chow–Liu trees from data: the tree, and expectation–maximisation on minibatches.

    tree        maximum spanning tree over pairwise mutual information; nodes numbered by breadth-first search
    up          β_v(z) = p(x of v's subtree | z_v = z),       λ_c = A_c β_c
    down        γ_v(z) = p(z_v = z | x),                      δ_c = (γ_v / λ_c) A_c,   γ_c = δ_c ⊙ β_c
    expected    n(A_c) = A_c ⊙ Σ_x (γ_v / λ_c) β_cᵀ,          n(B_v)[x_v] = Σ_x γ_v

All nodes of one depth are one batched product. The functions run on NumPy arrays or PyTorch tensors alike, wherever these
live, since they use only what both have; NumPy needs no PyTorch. Floats here touch the learning only: coders work on the
integers that `circuits` rounds the result to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..core.errors import BadConfig, BadInput

Array = Any  # numpy.ndarray or torch.Tensor
Progress = Callable[[int, int, str], None]

_MI_LEVELS = 8  # what mutual information is measured on; finer levels have counts too small to be believed
_MI_ROWS = 20_000
_LEAST = 1e-12  # of a message with a mean of 1: what keeps a product of many in the range of float32


class Tree(NamedTuple):
    """A rooted tree over D variables, breadth first: parents before children, nodes of one depth side by side.

    order: (D,) int64, the variable of each node. parent: (D,) int64, the node above each node; 0 for the root itself.
    """

    order: np.ndarray
    parent: np.ndarray

    def depths(self) -> np.ndarray:
        """(D,) int64, edges up to the root."""
        depth = np.zeros(self.parent.size, np.int64)
        for v in range(1, depth.size):
            depth[v] = depth[self.parent[v]] + 1
        return depth


class Parameters(NamedTuple):
    """Conditional probabilities, float32. edge[0] is the root's: one distribution, the same in every row.

    edge: (D, M, M), p(z_v | z_parent), rows are states of the parent. emission: (D, K, M), p(x_v | z_v), symbols first.
    """

    edge: Array
    emission: Array


def mutual_information(x: np.ndarray, alphabet: int, levels: int = _MI_LEVELS) -> np.ndarray:
    """Pairwise mutual information of the columns in nats: float64 (D, D).

    x: (n, D) integers below `alphabet`. Larger alphabets are first cut to `levels` intervals: the most frequent symbol
    where it is an end of the alphabet (background) alone, the rest of like frequency.
    """
    n, d = x.shape
    counts = np.bincount(x.reshape(-1), minlength=alphabet).astype(np.float64)
    if alphabet > levels:
        cut = np.zeros(alphabet, np.int64)
        common = int(counts.argmax())
        alone = common in (0, alphabet - 1) and counts[common] * levels > counts.sum()
        if alone:
            counts[common] = 0
        share = np.cumsum(counts) / max(counts.sum(), 1)
        cut = np.minimum((share * (levels - alone)).astype(np.int64), levels - alone - 1)
        if alone:
            cut[common] = levels - 1
        x, alphabet = cut[x], levels
    onehot = np.zeros((n, d * alphabet), np.float32)
    onehot[np.arange(n)[:, None], np.arange(d) * alphabet + x] = 1
    joint = (onehot.T @ onehot).reshape(d, alphabet, d, alphabet).transpose(0, 2, 1, 3)
    information = np.empty((d, d))
    for i in range(d):  # one row of pairs at a time: (D, levels, levels) in double precision
        p = joint[i].astype(np.float64) + 1 / alphabet**2
        p /= p.sum((1, 2), keepdims=True)
        outer = p.sum(2, keepdims=True) * p.sum(1, keepdims=True)
        information[i] = (p * np.log(p / outer)).sum((1, 2))
    return information


def chow_liu(x: np.ndarray, alphabet: int) -> Tree:
    """The tree whose edges hold the most mutual information (Chow and Liu 1968), rooted at its centre.

    x: (n, D) integers below `alphabet`.
    """
    rows = x[:: max(1, x.shape[0] // _MI_ROWS)]
    weight = mutual_information(rows, alphabet)
    d = weight.shape[0]
    # Prim's algorithm from variable 0.
    inside, above = np.zeros(d, bool), np.zeros(d, np.int64)
    inside[0], best = True, weight[0].copy()
    neighbours: list[list[int]] = [[] for _ in range(d)]
    for _ in range(d - 1):
        v = int(np.where(inside, -np.inf, best).argmax())
        neighbours[v].append(int(above[v]))
        neighbours[int(above[v])].append(v)
        inside[v] = True
        closer = weight[v] > best
        best[closer], above[closer] = weight[v][closer], v
    far, _ = _walk(neighbours, 0)
    path, up = _walk(neighbours, far[-1])  # the last node that is reached from one end is the other end
    v, diameter = path[-1], [path[-1]]
    while v != path[0]:
        v = up[v]
        diameter.append(v)
    order, up = _walk(neighbours, diameter[len(diameter) // 2])
    place = np.empty(d, np.int64)
    place[order] = np.arange(d)
    return Tree(np.array(order, np.int64), np.array([place[up[v]] for v in order], np.int64))


def _walk(neighbours: list[list[int]], root: int) -> tuple[list[int], dict[int, int]]:
    """(Nodes in the order of breadth-first search, the node from which each was reached)."""
    order, up = [root], {root: root}
    for v in order:
        for c in neighbours[v]:
            if c not in up:
                up[c] = v
                order.append(c)
    return order, up


def priors(n_rows: int, n_states: int) -> tuple[float, float]:
    """Pseudo-counts (of an edge's row, of a state's symbols) that serve data of n rows.

    What 58,000 pictures of MNIST like best with 32 states; of fewer rows a state, 1 % and 4 % of them.
    """
    share = n_rows / n_states
    return min(10.0, 0.01 * share), min(40.0, 0.04 * share)


@dataclass(frozen=True)
class Learner:
    """The E and M steps on one kind of array.

    tree: from `chow_liu`. device: None for NumPy, else PyTorch's name of one. precision: of the floats, float32 or float64.
    ordered: whether symbols near each other stand for values near each other.
    prior_edge: pseudo-counts of a row of `edge`, spread evenly. prior_emission: those of a state's symbols, spread as the
    variable's own symbols are, times how much more often the state has symbols near by than the variable has.
    """

    tree: Tree
    alphabet: int
    n_states: int
    prior_edge: float = 10.0
    prior_emission: float = 40.0
    device: str | None = None
    precision: str = "float32"
    ordered: bool = True

    def __post_init__(self) -> None:
        if not 2 <= self.n_states <= 256:
            raise BadConfig(f"{self.n_states} hidden states; 2 to 256 are right")

    # Arrays of the chosen kind.
    def array(self, x: np.ndarray) -> Array:
        """A NumPy array as this learner's kind."""
        x = x.astype(self.precision, copy=False) if x.dtype.kind == "f" else x
        if self.device is None:
            return x
        import torch

        return torch.from_numpy(np.ascontiguousarray(x)).to(self.device)

    def numpy(self, x: Array) -> np.ndarray:
        """The inverse of `array`."""
        return x if self.device is None else np.asarray(x.cpu().numpy())

    def start(self, x: np.ndarray, rng: np.random.Generator) -> Parameters:
        """Random parameters; symbols as frequent as they are in x: (n, D), in the order of nodes."""
        d, m, k = x.shape[1], self.n_states, self.alphabet
        edge = rng.random((d, m, m)) ** 3 + 0.02
        edge[0] = 1
        edge /= edge.sum(2, keepdims=True)
        emission = np.exp(-2 * rng.random((d, k, m)))
        emission *= self.marginal(x)[:, :, None]
        emission /= emission.sum(1, keepdims=True)
        return Parameters(self.array(edge), self.array(emission))

    def marginal(self, x: np.ndarray) -> np.ndarray:
        """How often each variable has each symbol, softened a little: (D, K)."""
        d, k = x.shape[1], self.alphabet
        counts = np.zeros(d * k)
        for rows in np.array_split(x, max(1, x.size >> 22)):
            counts += np.bincount((rows + np.arange(d) * k).reshape(-1), minlength=d * k)
        counts = counts.reshape(d, k)
        share = counts / counts.sum(1, keepdims=True)
        everywhere = (counts.sum(0) + 1) / (counts.sum() + k)
        return 0.9 * share + 0.09 * everywhere + 0.01 / k

    def plan(self) -> list[tuple[int, int, Array, list[tuple[Array, Array]]]]:
        """Per depth: nodes a … b − 1, their parents, and rounds of (parents, children) with each parent once a round."""
        depth, out = self.tree.depths(), []
        bounds = np.searchsorted(depth, np.arange(depth[-1] + 2))
        for a, b in zip(bounds[:-1], bounds[1:], strict=True):
            parent, rounds = self.tree.parent[a:b], []
            left = np.arange(a, b)
            while a and left.size:
                _, first = np.unique(self.tree.parent[left], return_index=True)
                rounds.append((self.array(self.tree.parent[left[first]]), self.array(left[first])))
                left = np.delete(left, first)
            out.append((int(a), int(b), self.array(parent), rounds))
        return out

    def upward(self, p: Parameters, x: Array, plan: Any) -> tuple[Array, Array, Array]:
        """(log-likelihood of each row, β, λ); β, λ: (D, n, M). x: (D, n) integers in the order of nodes."""
        d = x.shape[0]
        nodes = self.array(np.arange(d))[:, None]
        beta = p.emission[nodes, x]
        lam = beta * 0
        total = beta[0, :, 0] * 0
        for a, b, _, rounds in reversed(plan):
            scale = beta[a:b].sum(2)
            beta[a:b] /= scale[:, :, None]
            total = total + _log(scale).sum(0)
            message = beta[a:b] @ p.edge[a:b].swapaxes(1, 2)
            scale = message.sum(2) / self.n_states
            total = total + _log(scale).sum(0)
            lam[a:b] = message / scale[:, :, None] + _LEAST
            for parents, children in rounds:
                beta[parents] *= lam[children]
        return total + _log(lam[0, :, 0]), beta, lam

    def expected(self, p: Parameters, x: Array, plan: Any) -> tuple[Array, Array, Array]:
        """(sum of log-likelihoods, expected counts of edges (D, M, M), of emissions (D, K, M)). x as of `upward`."""
        total, beta, lam = self.upward(p, x, plan)
        n_edge, gamma = p.edge * 0, lam * 0
        for a, b, parent, _ in plan:
            if a == 0:
                gamma[:1] = p.edge[:1, :1] * beta[:1]
                gamma[:1] /= gamma[:1].sum(2)[:, :, None]
                n_edge[:1] = gamma[:1].sum(1)[:, None, :]
                continue
            rest = gamma[parent] / lam[a:b]
            joint = (rest @ p.edge[a:b]) * beta[a:b]
            scale = joint.sum(2)[:, :, None]
            gamma[a:b] = joint / scale
            rest /= scale
            n_edge[a:b] = (rest.swapaxes(1, 2) @ beta[a:b]) * p.edge[a:b]
        return total.sum(), n_edge, self._by_symbol(x, gamma)

    def _by_symbol(self, x: Array, gamma: Array) -> Array:
        """Σ of γ over the rows with each symbol: (D, K, M)."""
        d, _, m = gamma.shape
        place = x + self.array(np.arange(d) * self.alphabet)[:, None]
        if self.device is None:
            from ..kernels.circuits import add_rows

            out = np.zeros((d * self.alphabet, m), gamma.dtype)
            add_rows(place.reshape(-1), gamma.reshape(-1, m), out)
            return out.reshape(d, self.alphabet, m)
        out = gamma.new_zeros((d * self.alphabet, m))
        out.index_add_(0, place.reshape(-1), gamma.reshape(-1, m))
        return out.reshape(d, self.alphabet, m)

    def nearness(self, x: np.ndarray) -> np.ndarray:
        """How near two symbols are, (K, K): a Gaussian of 1/64 of the symbols that occur in x, on their places among these.

        All alike where symbols are but names: then a state's pseudo-counts are spread as the variable's symbols are.
        """
        if not self.ordered:
            return np.ones((self.alphabet, self.alphabet))
        place = np.cumsum(np.bincount(x.reshape(-1), minlength=self.alphabet) > 0)
        s = place * (64 / place[-1])
        return np.exp(-0.5 * (s[:, None] - s) ** 2)

    def maximised(self, n_edge: Array, n_emission: Array, marginal: Array, near: Array) -> Parameters:
        """Parameters of the largest posterior. n_edge, n_emission: expected counts over all rows; see `marginal`, `nearness`."""
        edge = n_edge + self.prior_edge / self.n_states
        often = marginal[:, :, None]
        share = often * ((near @ n_emission + often) / (near @ often))
        emission = n_emission + self.prior_emission * (share / share.sum(1)[:, None, :])
        return Parameters(edge / edge.sum(2)[:, :, None], emission / emission.sum(1)[:, None, :])

    def fit(
        self,
        x: np.ndarray,
        *,
        epochs: int,
        seconds: float | None = None,
        batch: int = 512,
        seed: int = 0,
        step: tuple[float, float] = (0.4, 0.01),
        progress: Progress | None = None,
        watch: Callable[[int, Parameters], None] | None = None,
    ) -> Parameters:
        """Stepwise EM: after each minibatch n ← (1 − η) n + η n_batch, η falling as a cosine from step[0] to step[1].

        x: (n, D) unsigned, in the order of variables. seconds: the schedule is run through in this time if epochs would
        take longer. progress: told (steps done, all steps, what).
        watch: told (epochs done, parameters) behind every epoch.
        Source: Cappé and Moulines 2009 (0712.4273), stepwise EM; circuits learned by minibatch EM as in Liu, Mandt and Van
        den Broeck 2022 (2111.11632). Differs: no passes over all data at the end, where the steps are short already.
        """
        if x.ndim != 2 or not x.size:
            raise BadInput(f"a circuit learns from rows of variables, (n, D); got shape {x.shape}")
        rng, plan = np.random.default_rng(seed), self.plan()
        x = np.ascontiguousarray(x[:, self.tree.order])
        n = x.shape[0]
        batch = min(batch, n)
        p, marginal, near = self.start(x, rng), self.array(self.marginal(x)), self.array(self.nearness(x))
        rows, n_steps = self.array(x), epochs * (n // batch)
        counts: tuple[Array, Array] | None = None
        done, begun = 0, time.perf_counter()
        for epoch in range(epochs):
            for index in _batches(rng, n, batch):
                part = self._columns(rows, index)
                total, n_edge, n_emission = self.expected(p, part, plan)
                spent = (time.perf_counter() - begun) / seconds if seconds else 0.0
                if spent >= 1:
                    return p
                eta = step[1] + (step[0] - step[1]) * 0.5 * (1 + np.cos(np.pi * max(done / n_steps, spent)))
                whole = n / batch
                if counts is None:
                    counts = n_edge * whole, n_emission * whole
                else:
                    for held, new in zip(counts, (n_edge, n_emission), strict=True):
                        held *= 1 - eta
                        new *= eta * whole
                        held += new
                p = self.maximised(*counts, marginal, near)
                done += 1
                if progress and (done % 8 == 0 or done == n_steps):
                    bits = -float(total) / batch / x.shape[1] / np.log(2)
                    progress(done, n_steps, f"{bits:.3f} bits a variable")
            if watch:
                watch(epoch + 1, p)
        return p

    def _columns(self, rows: Array, index: np.ndarray) -> Array:
        """Rows of data as (D, n) int64."""
        if self.device is None:
            return np.ascontiguousarray(rows[index].T).astype(np.int64)
        return rows[self.array(index)].long().swapaxes(0, 1).contiguous()

    def estimated_bits(self, p: Parameters, x: np.ndarray, batch: int = 512) -> float:
        """Bits a variable that rows take under the circuit, in floats; the coder's bytes are what counts. x: (n, D)."""
        plan, total = self.plan(), 0.0
        rows = self.array(np.ascontiguousarray(x[:, self.tree.order]))
        for start in range(0, x.shape[0], batch):
            index = np.arange(start, min(start + batch, x.shape[0]))
            total += float(self.upward(p, self._columns(rows, index), plan)[0].sum())
        return -total / x.size / float(np.log(2))


def _batches(rng: np.random.Generator, n: int, batch: int) -> Iterator[np.ndarray]:
    order = rng.permutation(n)
    for start in range(0, n - batch + 1, batch):
        yield order[start : start + batch]


PER_OCTAVE = 8  # codes of a probability to a factor of two


def codes(p: np.ndarray) -> np.ndarray:
    """Probabilities as uint8: −8 log2 p to the nearest integer, at most 255, which is 2^−31.9."""
    return np.clip(np.rint(-PER_OCTAVE * np.log2(np.maximum(p, 1e-30))), 0, 255).astype(np.uint8)


def _log(x: Array) -> Array:
    return np.log(x) if isinstance(x, np.ndarray) else x.log()
