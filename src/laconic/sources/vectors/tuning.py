"""Points and queries tuned for ranking, while the codes stay: negatives are what the index itself finds at that moment.

    loss = Σ_q Σ_n |1/r_p − 1/r_n| log(1 + exp((s_n − s_p) / τ)),   s = −distance or inner product of φ(q) with a coded vector

p is the vector that q should find, n runs over the nearest others, r are ranks among all of these. τ is the spread of the
first negatives' similarities. Adam moves the points of the product code and φ; a tenth of the pairs is held back, and what is
kept is the epoch, the start among them, that ranks these best.

Source: Zhan et al. 2021, JPQ (2108.00644), sections 4.1 (ranking-oriented loss, Burges 2010's weights), 4.2 (centroids) and
4.3 (end-to-end negatives). Differs: φ is linear by default; negatives are found anew every eight batches; step sizes are
shares of the spread of points and queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...core.errors import BadConfig, BadInput
from .blocks import Block, checked_ids, relaid
from .scanning import product_of

if TYPE_CHECKING:
    from torch import Tensor

    from .index import Index

_BATCH, _REFRESH = 32, 8  # pairs of a step, steps of one search for negatives
# Steps of Adam: of the points' deviation, of the map's entries times √dim, of an encoder's weights.
_POINTS, _MAP, _ENCODER = 0.005, 0.004, 2e-5
_CHUNK = 1 << 16  # vectors that are compared at a time
_TOP = 10  # ranks that count where the pairs held back are judged


class _Codes(NamedTuple):
    """All codes (n, n_slices) int64, by number; list of each vector; numbers of the vectors that are there."""

    index: Tensor
    lists: Tensor
    alive: Tensor


class _Ranker:
    """Similarities of queries with coded vectors, differentiable in the points. Queries are turned as the codes are."""

    def __init__(self, index: Index) -> None:
        import torch

        found = product_of(index._ready(), index.dim)
        if found is None:
            raise BadConfig(f"recipe {index.recipe!r} is no product code; pq, opq and jpq can be tuned")
        self.metric, self.found = index.metric, found
        self.turn = torch.from_numpy(np.ascontiguousarray(found.turn.T))
        centroids = np.zeros((1, index.dim), np.float32) if index.centroids is None else index.centroids
        self.origins = torch.from_numpy((centroids + found.shift) @ found.turn.T)
        self.widths = [p.shape[1] for p in found.points]
        padded = np.zeros((len(found.points), len(found.points[0]), max(self.widths)), np.float32)
        for s, p in enumerate(found.points):
            padded[s, :, : p.shape[1]] = p
        self.points = torch.from_numpy(padded).requires_grad_()
        place = [s * padded.shape[2] + i for s, w in enumerate(self.widths) for i in range(w)]
        self.place = torch.tensor(place)
        self.first = torch.arange(len(padded)) * padded.shape[1]

    def vectors(self, index: Tensor, lists: Tensor) -> Tensor:
        """index (..., n_slices), lists (...) -> (..., dim), turned."""
        import torch

        flat = torch.nn.functional.embedding(index + self.first, self.points.flatten(0, 1)).flatten(-2)
        rows = flat if len(self.place) == flat.shape[-1] else flat[..., self.place]
        return rows + self.origins[lists]

    def similarity(self, queries: Tensor, rows: Tensor) -> Tensor:
        """queries (b, dim) turned; rows (b, m, dim), or (m, dim) for all of them alike -> (b, m)."""
        import torch

        if self.metric == "cosine":
            queries = torch.nn.functional.normalize(queries, dim=-1)
            rows = torch.nn.functional.normalize(rows, dim=-1)
        dots = queries @ rows.T if rows.ndim == 2 else (rows @ queries[..., None])[..., 0]
        if self.metric != "l2":
            return dots
        return 2 * dots - rows.square().sum(-1) - queries.square().sum(-1, keepdim=True)

    def table(self) -> np.ndarray:
        """The points as the book has them: (1, n_points, dim)."""
        book, points = self.found.book, self.points.detach().numpy()
        whole = np.concatenate([points[s, :, :w] for s, w in enumerate(self.widths)], 1)
        return (whole / np.float32(book.gain[0]) - book.mean)[None]


def tune(
    index: Index,
    queries: Any,
    positives: Any,
    encoder: Any,
    epochs: int,
    negatives: int,
    rate: float,
    seed: int,
    progress: Callable[[int, int, str], None] | None,
) -> None:
    """See `Index.tune`. rate: a factor on all steps. Raises BadConfig for a recipe that is no product code, BadInput for ids
    that are not in the index and for fewer than 20 pairs."""
    import torch

    if epochs < 0 or negatives < 1 or not rate > 0:
        raise BadConfig(f"{epochs} epochs, {negatives} negatives, rate {rate}; 0, 1 or more, and above 0 are right")
    ranker, codes = _Ranker(index), None
    wanted = checked_ids(positives, len(queries), "positives")
    numbers = index._numbers(wanted)
    if (numbers < 0).any():
        raise BadInput(f"id {int(wanted[numbers < 0][0])} is not in the index")
    if len(numbers) < 20 or len(index) < 2:
        raise BadInput(f"{len(numbers)} pairs and {len(index)} vectors; 20 and 2 or more are needed")
    codes = _codes(index, len(ranker.widths))
    model, groups = encoder, []
    if encoder is None:
        rows = index._rows(queries, "queries")
        model = torch.nn.Linear(index.dim, index.dim)
        with torch.no_grad():
            start = np.eye(index.dim + 1, index.dim, dtype=np.float32) if index.query_map is None else index.query_map
            model.weight.copy_(torch.from_numpy(start[:-1].T.copy()))
            model.bias.copy_(torch.from_numpy(start[-1]))
        size = float(np.sqrt(np.square(rows).mean())) or 1.0
        pace = rate * _MAP / index.dim**0.5
        groups = [{"params": [model.weight], "lr": pace}, {"params": [model.bias], "lr": pace * size}]
    else:
        rows = queries
        groups = [{"params": list(model.parameters()), "lr": rate * _ENCODER}]
    spread = float(ranker.points.detach().std()) or 1.0
    adam = torch.optim.Adam([*groups, {"params": [ranker.points], "lr": rate * _POINTS * spread}])

    def turned(some: np.ndarray) -> Tensor:
        given = torch.from_numpy(rows[some]) if encoder is None else [rows[int(i)] for i in some]
        out: Tensor = model(given)
        return out @ ranker.turn

    every = np.random.default_rng(seed).permutation(len(numbers))
    held, learn = np.sort(every[: max(2, len(every) // 10)]), every[max(2, len(every) // 10) :]
    target = torch.from_numpy(numbers)
    best, kept, tau = _judged(ranker, codes, turned, held, target), _state(ranker, model), 0.0
    n_steps, at = epochs * -(-len(learn) // _BATCH), 0
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(learn)
        for some in _cut(order, _BATCH * _REFRESH):
            with torch.no_grad():
                wrong = _negatives(ranker, codes, turned(some), target[some], negatives)
            for piece in _cut(np.arange(len(some)), _BATCH):
                mine = torch.cat([target[some[piece], None], wrong[piece]], 1)
                scores = ranker.similarity(turned(some[piece]), ranker.vectors(codes.index[mine], codes.lists[mine]))
                tau = tau or max(float(scores[:, 1:].detach().std(1).mean()), 1e-12)
                loss = _loss(scores / tau)
                adam.zero_grad()
                loss.backward()
                adam.step()
                at += 1
                if progress is not None:
                    progress(at, n_steps, f"tuning, epoch {epoch + 1} of {epochs}")
        found = _judged(ranker, codes, turned, held, target)
        if found > best:
            best, kept = found, _state(ranker, model)
    _restore(ranker, model, kept)
    _take(index, ranker, None if encoder is not None else model)


def _loss(scores: Tensor) -> Tensor:
    """scores: (b, 1 + n), the positive's first. Differences count by what changing places would change of 1 / rank."""
    import torch

    rank = 1 + scores.detach().argsort(1, descending=True).argsort(1).to(scores.dtype)
    weight = (1 / rank[:, :1] - 1 / rank[:, 1:]).abs()
    return (weight * torch.nn.functional.softplus(scores[:, 1:] - scores[:, :1])).sum(1).mean()


def _negatives(ranker: _Ranker, codes: _Codes, queries: Tensor, target: Tensor, n: int) -> Tensor:
    """(b, n) numbers of the nearest vectors that are not the one wanted."""
    import torch

    n = min(n, len(codes.alive) - 1)
    best, names = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    for some in codes.alive.split(_CHUNK):
        scores = ranker.similarity(queries, ranker.vectors(codes.index[some], codes.lists[some]))
        scores[target[:, None] == some] = -torch.inf
        near = scores.topk(min(n, len(some)), 1)
        best, names = torch.cat([best, near.values], 1), torch.cat([names, some[near.indices]], 1)
        order = best.topk(min(n, best.shape[1]), 1)
        best, names = order.values, names.gather(1, order.indices)
    return names


def _judged(
    ranker: _Ranker, codes: _Codes, turned: Callable[[np.ndarray], Tensor], held: np.ndarray, target: Tensor
) -> float:
    """Mean reciprocal rank of pairs among all vectors, of ranks up to `_TOP`."""
    import torch

    total = 0.0
    with torch.no_grad():
        for some in _cut(held, 256):
            queries, mine = turned(some), target[some]
            own = ranker.similarity(queries, ranker.vectors(codes.index[mine], codes.lists[mine])[:, None])
            rank = torch.ones(len(some))
            for chunk in codes.alive.split(_CHUNK):
                scores = ranker.similarity(queries, ranker.vectors(codes.index[chunk], codes.lists[chunk]))
                rank += ((scores > own) & (mine[:, None] != chunk)).sum(1)
            total += float(torch.where(rank <= _TOP, 1 / rank, 0.0).sum())
    return total / len(held)


def _codes(index: Index, n_slices: int) -> _Codes:
    """Codes by number, as the codec numbers its points."""
    import torch

    from ...core.wire import Reader, read_sections
    from ...kernels import bits

    stage, scan = index._ready(), index._scan()
    found = np.zeros((index._n, n_slices), np.int64)
    lists = np.zeros(index._n, np.int64)
    book = product_of(stage, index.dim)
    assert book is not None
    width = len(book.points[0]).bit_length() - 1
    for block in index._blocks:
        n = len(block.numbers)
        data = block.data if scan is None else relaid(stage, block.data, n, scan, back=True)
        payload = read_sections(stage, Reader(data))["payload"]
        found[block.numbers] = bits.unpack(np.frombuffer(payload, np.uint8), width, n * n_slices).reshape(n, -1)
        lists[block.numbers] = block.list_
    alive = np.arange(index._n) if index._dead is None else np.flatnonzero(~index._dead)
    return _Codes(torch.from_numpy(found), torch.from_numpy(lists), torch.from_numpy(alive))


def _take(index: Index, ranker: _Ranker, linear: Any) -> None:
    """Puts what was learned into the index; its blocks are laid out anew, for points that share bits may be others now."""
    stage, scan = index._ready(), index._scan()
    blocks: list[Block] = index._blocks
    if scan is not None:
        blocks = [b._replace(data=relaid(stage, b.data, len(b.numbers), scan, back=True)) for b in blocks]
    name = next(n for n in stage.arrays() if n.endswith("codebook.table"))
    index.stage = stage.with_arrays({name: ranker.table()})
    index._scanner = index._opened = None
    if (scan := index._scan()) is not None:
        blocks = [b._replace(data=relaid(index.stage, b.data, len(b.numbers), scan)) for b in blocks]
    index._blocks = blocks
    if linear is not None:
        weight, bias = (p.detach().numpy() for p in (linear.weight, linear.bias))
        index.query_map = np.ascontiguousarray(np.concatenate([weight.T, bias[None]]), np.float32)


def _state(ranker: _Ranker, model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    return ranker.points.detach().clone(), {k: v.detach().clone() for k, v in model.state_dict().items()}


def _restore(ranker: _Ranker, model: Any, kept: tuple[Tensor, dict[str, Tensor]]) -> None:
    ranker.points.data.copy_(kept[0])
    model.load_state_dict(kept[1])


def _cut(x: np.ndarray, n: int) -> Iterator[np.ndarray]:
    return (x[i : i + n] for i in range(0, len(x), n))
