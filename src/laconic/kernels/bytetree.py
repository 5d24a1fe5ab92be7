"""Binary trees of bytes: which decisions a coder of bits takes to say a byte.

Eight decisions a byte are the plain tree. One that follows how often bytes occur takes four to five on text, hence half the
time and fewer slots of history; where it keeps the order of bytes, neighbours stay together and little is lost.

A leaf of byte b is 256 + b in `child`; an inner node is its number, the root 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from laconic.core.errors import CorruptStream
from laconic.kernels.rangecoder import decode_symbols, encode_symbols

MAX_DEPTH = 15
LEAF = 256
MIN_BYTES = 2048  # shorter texts do not pay for a tree of their own


class Tree(NamedTuple):
    """What the loop of a coder looks up."""

    child: np.ndarray  # (512,) uint16: node · 2 + bit -> node, or LEAF + byte
    path: np.ndarray  # (256,) uint16: the decisions of a byte, first one highest


def balanced(counts: np.ndarray) -> np.ndarray:
    """Depths of an order-preserving tree that halves the counts at every node. counts: (256,) integers. -> (256,) uint8.

    Source: Walker and Gotlieb 1972, "A top-down algorithm for constructing nearly optimal lexicographic trees", the rule of
    halves. Differs: every byte that occurs counts one in 2,000 more, which bounds the depth.
    """
    floor = max(int(counts.sum()) // 2000, 1)
    while True:
        depths = np.zeros(256, np.uint8)
        weights = [(b, int(c) + floor) for b, c in enumerate(counts) if c]
        todo = [(weights, 0)]
        while todo:
            some, depth = todo.pop()
            if len(some) == 1:
                depths[some[0][0]] = min(depth, 255)
                continue
            total, left, cuts = sum(w for _, w in some), 0, []
            for _, w in some[:-1]:
                left += w
                cuts.append(abs(2 * left - total))
            cut = cuts.index(min(cuts)) + 1
            todo += [(some[:cut], depth + 1), (some[cut:], depth + 1)]
        if depths.max() <= MAX_DEPTH:
            return depths
        floor *= 4


def tree(depths: np.ndarray) -> Tree:
    """The order-preserving tree with these depths, 0 for bytes that do not occur. depths: (256,) integers to MAX_DEPTH.

    Raises
    ------
    CorruptStream: no such tree, or one with less than two leaves.
    """
    child, path = np.zeros(512, np.uint16), np.zeros(256, np.uint16)
    present = depths[depths > 0].astype(np.int64)
    if present.size == 0 or present.max() > MAX_DEPTH or (1 << 16 - present).sum() != 1 << 16:
        raise CorruptStream("depths of bytes that are no tree")
    at, n_nodes = 0, 1
    for b in np.flatnonzero(depths):
        depth = int(depths[b])
        if at % (1 << 16 - depth):
            raise CorruptStream("depths of bytes that are no tree")
        path[b] = at
        node = 0
        for d in range(depth):
            step = 2 * node + (at >> 15 - d & 1)
            if d == depth - 1:
                child[step] = LEAF + b
            elif not child[step]:
                child[step] = n_nodes
                n_nodes += 1
            node = int(child[step])
        at += 1 << 16 - depth
    return Tree(child, path)


def plant(text: np.ndarray, own: bool = True) -> tuple[np.ndarray, Tree]:
    """(what to send of it, tree) for a text: its own where that pays, else the plain one. text: (n,) uint8.

    own: whether it may have its own; where bytes are parts of numbers, their bits say more.
    """
    counts = np.bincount(text, minlength=256) if own and text.size >= MIN_BYTES else np.zeros(256, np.int64)
    if np.count_nonzero(counts) < 2:
        return np.zeros(1, np.uint8), tree(np.full(256, 8))
    depths = balanced(counts)
    sent = encode_symbols(depths, 4, order=1, limit=30)
    if sent.size > 255:  # 256 times 4 bits are half of that; an adaptive code of noise may be longer
        return np.zeros(1, np.uint8), tree(np.full(256, 8))
    return np.append(np.uint8(sent.size), sent), tree(depths)


def replant(code: np.ndarray) -> tuple[np.ndarray, Tree]:
    """(the code behind the tree, tree). code: (n,) uint8.

    Raises
    ------
    CorruptStream: cut, or not what `plant` sends.
    """
    n = int(code[0]) if code.size else 0
    if code.size < 1 + n:
        raise CorruptStream(f"{code.size:,} bytes of code, {1 + n} or more are right")
    depths = decode_symbols(code[1 : 1 + n], 256, 4, order=1, limit=30) if n else np.full(256, 8)
    return code[1 + n :], tree(depths)
