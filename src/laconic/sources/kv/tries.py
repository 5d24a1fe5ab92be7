"""Caches as sequences: prefixes that are kept once for all who share them, and codes that lean on the model's own predictions.

PrefixTrie      groups of tokens with their codes; sessions refer to them, the least probable prefix is dropped first
TokenCoder      the tokens themselves under the model: the whole cache at −log2 P(text) bits, and a run of the model
DeltaCoder      keys and values of the first layer as their difference from what the model expected, in closed loop
"""

from __future__ import annotations

import struct
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...core.errors import BadConfig, BadInput, CorruptStream, ModelMismatch
from ...core.stage import Symbols
from ...entropy.coders import Adaptive
from ...kernels import rangecoder
from .layer import Ends
from .past import CodedPast, Run, Share
from .store import PairStore

if TYPE_CHECKING:
    from torch import Tensor

    from ...core.stage import Stage, Stats
    from .cache import CompressedCache
    from .recipe import CacheRecipe
    from .store import Site


# --- prefixes


class GroupStore(PairStore):
    """Keys and values whose runs are single groups, so that others can take them over one by one."""

    def __init__(self, keys: Stage, values: Stage, site: Site, group: int, learns: str, first: int) -> None:
        super().__init__(keys, values, site, learns, first)
        self.group = group
        self.keys, self.values = CodedPast(keys, learns), CodedPast(values, learns)

    def append(self, keys: Tensor, values: Tensor, stats: Sequence[Stats | None] | None = None) -> None:
        for part in zip(keys.split(self.group, 2), values.split(self.group, 2), strict=True):
            super().append(*part, stats)


def group_store(recipe: CacheRecipe, site: Site, keys: Stage, values: Stage, first: int) -> GroupStore:
    """Of caches whose prefixes are shared. Raises BadConfig where the first tokens are kept apart."""
    if recipe.sinks:
        raise BadConfig(f"{recipe.sinks} sinks; a prefix that is shared is coded from its first token, so 0 is right")
    return GroupStore(keys, values, site, recipe.group, recipe.learns, first)


@dataclass
class Node:
    """A group of tokens behind a prefix. coded: by layer, keys and values. bits: −log2 of the whole prefix's probability.

    refs: sessions that read it.
    """

    tokens: tuple[int, ...] = ()
    coded: tuple[tuple[Share, Share], ...] = ()
    bits: float = 0.0
    parent: Node | None = None
    children: dict[tuple[int, ...], Node] = field(default_factory=dict)
    refs: int = 0

    @property
    def nbytes(self) -> int:
        """Its tokens, four bytes each, and its codes."""
        return 4 * len(self.tokens) + sum(k.nbytes + v.nbytes for k, v in self.coded)


class PrefixTrie:
    """Prompts' caches, common prefixes once.

    make: gives an empty cache of a recipe with `group_store`. max_bytes: what it may hold; of the nodes at the ends that no
    session reads, the least probable goes first.
    Source: Magarshak 2026 (2604.15356), the first layer; the distance of two texts is −log2 P of what they have in common.
    """

    def __init__(self, make: Callable[[], CompressedCache], max_bytes: int) -> None:
        self.make, self.max_bytes, self.root = make, max_bytes, Node()
        self.layers: list[tuple[Tensor, Tensor]] = []  # shapes and dtypes of a layer's keys and values, no tokens

    def nodes(self) -> Iterator[Node]:
        """All of them, parents first."""
        waiting = list(self.root.children.values())
        while waiting:
            node = waiting.pop()
            yield node
            waiting += node.children.values()

    @property
    def nbytes(self) -> int:
        return sum(node.nbytes for node in self.nodes())

    def _path(self, ids: Sequence[int]) -> list[Node]:
        found, node, at = [], self.root, 0
        while node.children:
            size = len(next(iter(node.children)))
            child = node.children.get(tuple(ids[at : at + size]))
            if child is None:
                break
            found.append(child)
            node, at = child, at + size
        return found

    def distance(self, a: Sequence[int], b: Sequence[int]) -> float:
        """Bits of the common prefix of two texts, as far as the trie knows it."""
        same = [x.bits for x, y in zip(self._path(a), self._path(b), strict=False) if x is y]
        return same[-1] if same else 0.0

    def session(self, ids: Sequence[int]) -> tuple[CompressedCache, int]:
        """A cache that holds the longest known prefix of `ids`, and its length; feed the model the tokens behind it."""
        cache, path = self.make(), self._path(ids)
        while path and sum(len(n.tokens) for n in path) >= len(ids):
            path.pop()
        n = sum(len(node.tokens) for node in path)
        if n:
            for number, (layer, like) in enumerate(zip(cache.compressed, self.layers, strict=True)):
                layer.lazy_initialization(*like)
                layer.window, layer.n_seen = Ends(*like), n
                layer.store = store = layer.empty_store()
                ends = np.cumsum([0, *(len(node.tokens) for node in path)]).tolist()
                for node, (start, stop) in zip(path, pairwise(ends), strict=True):
                    for past, share in zip((store.keys, store.values), node.coded[number], strict=True):
                        past.runs.append(Run(start, stop, (share,)))
            for node in path:
                node.refs += 1
            weakref.finalize(cache, _release, path)
        return cache, n

    def insert(self, ids: Sequence[int], cache: CompressedCache, log2_p: Sequence[float]) -> int:
        """Take over the whole groups that a cache of one sequence has coded; the number of tokens that are new.

        ids: what the cache saw. log2_p: of each token under the model, for what is dropped first.
        """
        layers = cache.compressed
        if layers[0].store is None:
            return 0
        if not self.layers:
            self.layers = [(x.window.keys[:, :, :0].clone(), x.window.values[:, :, :0].clone()) for x in layers]
        node, added = self.root, 0
        for number, run in enumerate(layers[0].store.keys.runs):
            if len(run.coded) != 1 or run.stop > len(ids):
                raise BadInput(f"{len(run.coded)} sequences, {len(ids)} ids for {run.stop} coded tokens; one sequence, and as "
                               "many ids or more are right")  # fmt: skip
            tokens = tuple(int(i) for i in ids[run.start : run.stop])
            child = node.children.get(tokens)
            if child is None:
                coded = tuple(
                    (x.store.keys.runs[number].coded[0], x.store.values.runs[number].coded[0]) for x in layers
                )
                bits = node.bits - float(np.sum(log2_p[run.start : run.stop]))
                child = node.children[tokens] = Node(tokens, coded, bits, node)
                added += len(tokens)
            node = child
        self.evict()
        return added

    def evict(self) -> None:
        """Drop what is least probable until the rest fits; prefixes that are read stay, whatever they take."""
        held = self.nbytes
        while held > self.max_bytes:
            idle = [n for n in self.nodes() if not n.children and not n.refs]
            if not idle:
                return
            worst = max(idle, key=lambda n: n.bits)
            held -= worst.nbytes
            assert worst.parent is not None
            del worst.parent.children[worst.tokens]


def _release(path: list[Node]) -> None:
    for node in path:
        node.refs -= 1


# --- codes that lean on the model

_BITS, _KNOWN = 16, 1 << 10  # precision of a distribution; tokens that it tells apart, the others share an escape


def _intervals(logits: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, the most probable first; ends of their slots, of 2^16, the escape's behind them)."""
    p = logits.double().softmax(-1).numpy()
    fixed = np.floor(p * (1 << 24)).astype(np.int64)
    order = np.argsort(-fixed, kind="stable")[:_KNOWN]
    share = np.append(fixed[order], max(0, fixed.sum() - fixed[order].sum()))
    room = (1 << _BITS) - len(share)
    freq = share * room // max(int(share.sum()), 1) + 1
    freq[0] += (1 << _BITS) - freq.sum()
    return order, np.cumsum(freq)


class _Code:
    """A range code that is written interval by interval."""

    def __init__(self, n_bytes: int) -> None:
        self.out, self.state = np.zeros(n_bytes, np.uint8), rangecoder.ENCODER

    def interval(self, begin: int, freq: int) -> None:
        """Slots begin … begin + freq − 1 of 2^16."""
        low, width, at = self.state
        self.state = rangecoder.encode_interval(np.uint64(low), np.uint64(width), at, self.out, begin, freq, _BITS)

    def bits(self, value: int, n: int) -> None:
        """n bits, each of one half."""
        low, width, at = self.state
        self.state = rangecoder.encode_bits(np.uint64(low), np.uint64(width), at, self.out, value, n)

    def finish(self) -> bytes:
        low, width, at = self.state
        return self.out[: rangecoder.finish(np.uint64(low), np.uint64(width), at, self.out)].tobytes()


class _Read:
    """The same, read."""

    def __init__(self, data: np.ndarray) -> None:
        self.data = data
        self.code, self.width, self.at = rangecoder.start(data)

    def slot(self) -> int:
        return int(rangecoder.decode_slot(np.uint64(self.code), np.uint64(self.width), _BITS))

    def interval(self, begin: int, freq: int) -> None:
        state = np.uint64(self.code), np.uint64(self.width), self.at
        self.code, self.width, self.at = rangecoder.decode_interval(*state, self.data, begin, freq, _BITS)

    def bits(self, n: int) -> int:
        state = np.uint64(self.code), np.uint64(self.width), self.at
        value, self.code, self.width, self.at = rangecoder.decode_bits(*state, self.data, n)
        return int(value)

    def ended(self) -> bool:
        return bool(rangecoder.ended(np.uint64(self.code), np.uint64(self.width), self.at, self.data))


class _Walk:
    """A model run token by token, as encoder and decoder both run it: the same calls, the same floats."""

    def __init__(self, model: Any) -> None:
        from transformers import DynamicCache

        self.model, self.cache = model, DynamicCache(config=model.config)

    def step(self, token: int) -> Tensor:
        """Logits (n_tokens,) behind one more token."""
        with torch.inference_mode():
            ids = torch.tensor([[token]], device=self.model.device)
            return self.model(input_ids=ids, past_key_values=self.cache, use_cache=True).logits[0, -1].float().cpu()


@dataclass(frozen=True)
class TokenCoder:
    """Tokens by range coding under the model; whoever has the model recomputes keys and values of all layers from them.

    That is no cache: reading it costs a run of the model over the text. first: the token that texts begin with, not sent.
    The code holds on machines where the model's floats come out the same; a checksum refuses the others.
    """

    model: Any
    first: int

    def encode(self, ids: Sequence[int]) -> bytes:
        """ids: behind `first`. 8 bytes of length and checksum, then the code."""
        walk, token = _Walk(self.model), self.first
        code, wide = _Code(8 * len(ids) + 64), self._wide()
        for following in ids:
            order, ends = _intervals(walk.step(token))
            where = np.flatnonzero(order == following)
            at = int(where[0]) if len(where) else len(order)
            begin = int(ends[at - 1]) if at else 0
            code.interval(begin, int(ends[at]) - begin)
            if at == len(order):
                code.bits(int(following), wide)
            token = int(following)
        return _head(ids) + code.finish()

    def decode(self, data: bytes) -> list[int]:
        """Raises CorruptStream for damage, ModelMismatch where the model says other things than it did."""
        n, check, body = _opened(data)
        walk, token, ids, wide = _Walk(self.model), self.first, [], self._wide()
        code = _Read(body)
        for _ in range(n):
            order, ends = _intervals(walk.step(token))
            which = int(np.searchsorted(ends, code.slot(), "right"))
            begin = int(ends[which - 1]) if which else 0
            code.interval(begin, int(ends[which]) - begin)
            if which == len(order):
                token = code.bits(wide)
                if token >= self.model.config.vocab_size:
                    raise CorruptStream(f"token {token} of a vocabulary of {self.model.config.vocab_size}")
            else:
                token = int(order[which])
            ids.append(token)
        if not code.ended():
            raise CorruptStream(
                "the code of the tokens does not end where they do; it is damaged, or the model is another"
            )
        if _checksum(ids) != check:
            raise ModelMismatch("the tokens are not those that were coded; the model, or its arithmetic, is another")
        return ids

    def _wide(self) -> int:
        return int(self.model.config.vocab_size - 1).bit_length()


def _checksum(ids: Sequence[int]) -> int:
    return zlib.crc32(np.asarray(ids, np.uint32).tobytes())


def _head(ids: Sequence[int]) -> bytes:
    return struct.pack("<II", len(ids), _checksum(ids))


def _opened(data: bytes) -> tuple[int, int, np.ndarray]:
    if len(data) < 8:
        raise CorruptStream(f"{len(data)} bytes; 8 or more are right")
    n, check = struct.unpack_from("<II", data)
    if n > 1 << 24:
        raise CorruptStream(f"{n:,} tokens; {1 << 24:,} are the most")
    return n, check, np.frombuffer(data, np.uint8)[8:]


@dataclass(frozen=True)
class DeltaCoder:
    """Keys before RoPE and values of the first layer, (n_tokens, width), by uniform quantization and adaptive range coding.

    They depend on the token alone, so the model's distribution of the next token gives their expectation:

        x̄_t = Σ_{top} p(v | x̂_<t) x(v)     r_t = x_t − x̄_t ─ / (step · σ) ─ round ─▶ integers     x̂_t = x̄_t + step · σ · integers

    x(v): of every token, from the model's weights; σ: its deviation by coordinate. Closed loop: the context is the tokens that
    the decoder itself reads off x̂, the nearest x(v). Decoding runs the model over the text, as `TokenCoder` does.
    top: tokens in the expectation; 0: the mean of x(v) for all, which is what coding vector by vector can know.
    Source: Magarshak 2026 (2604.15356), the second layer.
    """

    model: Any
    first: int
    step: float = 0.5
    top: int = 32

    def table(self) -> Tensor:
        """x(v): (n_vocabulary, width) float32. Raises BadConfig for a model whose first layer is built otherwise."""
        inner = getattr(self.model, "model", None)
        layer = inner.layers[0] if inner is not None and hasattr(inner, "layers") else None
        if layer is None or not hasattr(layer, "input_layernorm") or not hasattr(layer.self_attn, "k_proj"):
            raise BadConfig(f"{type(self.model).__name__} has no first layer with input_layernorm, k_proj and v_proj")
        with torch.inference_mode():
            x = layer.input_layernorm(self.model.get_input_embeddings().weight)
            return torch.cat([layer.self_attn.k_proj(x), layer.self_attn.v_proj(x)], 1).float()

    def encode(self, x: Tensor) -> bytes:
        """x: (n_tokens, width) float32, of the tokens behind `first`."""
        table, integers = self.table(), []
        scale = self.step * table.std(0)
        for row, expected, told in self._loop(table, len(x)):
            q = torch.round((x[row] - expected) / scale)
            integers.append(q.to(torch.int32))
            told.append(expected + q * scale)
        flat = torch.stack(integers).numpy() if integers else np.zeros((0, table.shape[1]), np.int32)
        data, side = Adaptive().encode(Symbols(flat, 0))
        head = side["head"].tobytes()
        return struct.pack("<H", len(head)) + head + data

    def decode(self, data: bytes) -> Tensor:
        """(n_tokens, width). Raises CorruptStream for what `encode` cannot have written."""
        if len(data) < 2 or len(data) < 2 + struct.unpack_from("<H", data)[0]:
            raise CorruptStream(f"{len(data)} bytes; a head and a code are right")
        n = struct.unpack_from("<H", data)[0]
        head = np.frombuffer(data, np.uint8, n, 2)
        flat = Adaptive().decode(data[2 + n :], {"head": head}).index
        table = self.table()
        if flat.ndim != 2 or flat.shape[1] != table.shape[1]:
            raise CorruptStream(f"an array {flat.shape}; (tokens, {table.shape[1]}) is right for this model")
        scale, out = self.step * table.std(0), []
        for row, expected, told in self._loop(table, len(flat)):
            out.append(expected + torch.from_numpy(flat[row]) * scale)
            told.append(out[-1])
        return torch.stack(out) if out else torch.zeros(0, table.shape[1])

    def _loop(self, table: Tensor, n: int) -> Iterator[tuple[int, Tensor, list[Tensor]]]:
        """(row, what is expected there, a list to put the decoded row into), row by row."""
        mean = table.mean(0)
        walk, token = _Walk(self.model), self.first
        for row in range(n):
            told: list[Tensor] = []
            if self.top:
                p, which = walk.step(token).softmax(-1).topk(self.top)
                expected = p @ table[which] + (1 - p.sum()) * mean
            else:
                expected = mean
            yield row, expected, told
            if self.top:
                token = int(torch.cdist(told[0][None], table).argmin())
