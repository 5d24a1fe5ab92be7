"""Prediction by partial matching, blended with matches, words and long contexts, and denoised bit by bit, in integers.

    orders 4 … 0, PPMC with exclusion ─▶ 256 probabilities ─▶ blend: match, words, longest of orders 8 … 5
      ─▶ tree of 8 binary decisions ─▶ calibration, in steps ─▶ arithmetic coder

One loop serves both directions. Probabilities of bytes are whole numbers that sum to about 2^30; of decisions, 2^16. Counts of
all contexts, by hash, are lists of nodes in one table; what is full takes no more nodes, and seldom used contexts give way.

Source: Tacconelli, "Micro-Diffusion Compression: Binary Tree Tweedie Denoising for Online Probability Estimation"
(arXiv 2603.08771), the cascade and its weights; Cleary and Witten 1984 for partial matching.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from laconic.core.errors import BadInput, CorruptStream, claim
from laconic.kernels.bytemix import Tables, tables
from laconic.kernels.rangecoder import ENCODER, decode_bit, encode_bit, ended, finish, start

ONE = 1 << 30
MATCH_LENGTHS = np.array([16, 12, 8, 6, 4], np.int64)
MATCH_BITS = 16
STEPS = 3
# Of a bucket of calibration: bit contexts, order groups, shapes, confidences, probabilities
N_BUCKETS = 27 * 3 * 4 * 8 * 20
PRIOR = 32
MIN_SEEN = 10
TOP = 60_000  # counts of a context go no further

_M1 = np.uint64(0x9E3779B97F4A7C15)
_M2 = np.uint64(0xD6E8FEB86659FD93)
_8, _20, _28, _32, _48 = (np.uint64(k) for k in (8, 20, 28, 32, 48))
_INLINE = {"cache": True, "nogil": True, "_nrt": False}


class Workspace(NamedTuple):
    """All that the loop writes, beside the text and the code."""

    check: np.ndarray  # (contexts,) uint16, 0 where there is none
    total: np.ndarray  # (contexts,) uint16
    head: np.ndarray  # (contexts,) int32, its first node, 0 for none
    symbol: np.ndarray  # (nodes,) uint8
    count: np.ndarray  # (nodes,) uint16
    after: np.ndarray  # (nodes,) int32
    order0: np.ndarray  # (256,) int64
    matches: np.ndarray  # (5 << MATCH_BITS,) int32
    calibration: np.ndarray  # (STEPS · N_BUCKETS, 4) int64: predicted, hits, seen, squared errors; the first in 2^16
    p: np.ndarray  # (256,) int64
    tree: np.ndarray  # (512,) int64
    barred: np.ndarray  # (256,) int64, whether a longer context had the byte
    hashes: np.ndarray  # (9,) uint64
    seats: np.ndarray  # (5,) int64
    buckets: np.ndarray  # (STEPS,) int64
    predicted: np.ndarray  # (STEPS,) int64


@njit(**_INLINE)
def _hash(key, salt):
    h = (key + np.uint64(salt) * _M2) * _M1
    h = (h ^ (h >> _28)) * _M2
    return h ^ (h >> _32)


@njit(**_INLINE)
def _find(w, h):
    """The place of a context, -1 where it was not seen."""
    at, check = np.int64((h >> _20) & np.uint64(w.check.size - 1)), np.int64(h >> _48) | 1
    for k in range(4):
        if np.int64(w.check[at ^ k]) == check:
            return at ^ k
    return -1


@njit(**_INLINE)
def _seen(w, h, byte, n_nodes):
    """Count a byte in a context. Returns the nodes in use."""
    place = _find(w, h)
    if place < 0:
        at, check = np.int64((h >> _20) & np.uint64(w.check.size - 1)), np.int64(h >> _48) | 1
        place = at
        for k in range(1, 4):
            if np.int64(w.total[at ^ k]) < np.int64(w.total[place]):
                place = at ^ k
        w.check[place], w.total[place], w.head[place] = check, 0, 0
    if np.int64(w.total[place]) >= TOP:
        return n_nodes
    node = np.int64(w.head[place])
    while node and np.int64(w.symbol[node]) != byte:
        node = np.int64(w.after[node])
    if not node:
        if n_nodes >= w.symbol.size:
            return n_nodes
        node, n_nodes = n_nodes, n_nodes + 1
        w.symbol[node], w.count[node], w.after[node] = byte, 0, w.head[place]
        w.head[place] = node
    w.count[node] += 1
    w.total[place] += 1
    return n_nodes


@njit(**_INLINE)
def _partial(w, hashes):
    """Fill `p` by PPMC with exclusion. Returns (longest order that was seen, its total)."""
    p, barred = w.p, w.barred
    p[:] = 0
    barred[:] = 0
    rest, order, confidence = ONE, 0, 0
    for k in range(4, 0, -1):
        place = _find(w, hashes[k])
        if place < 0:
            continue
        if order == 0:
            order, confidence = k, np.int64(w.total[place])
        total, kinds = 0, 0
        node = np.int64(w.head[place])
        while node:
            if not barred[w.symbol[node]]:
                total, kinds = total + np.int64(w.count[node]), kinds + 1
            node = np.int64(w.after[node])
        if not total:
            continue
        share = rest // (total + kinds)
        node = np.int64(w.head[place])
        while node:
            s = np.int64(w.symbol[node])
            if not barred[s]:
                p[s] = share * np.int64(w.count[node])
                barred[s] = 1
            node = np.int64(w.after[node])
        rest = share * kinds
    total = 0
    for s in range(256):
        if not barred[s]:
            total += 2 * w.order0[s] + 1
    if total:
        share = rest // total
        for s in range(256):
            if not barred[s]:
                p[s] = share * (2 * w.order0[s] + 1)
    return order, confidence


@njit(**_INLINE)
def _blend(w, place, weight):
    """Mix the counts of a context into `p` with a weight in 2^16."""
    for s in range(256):
        w.p[s] = w.p[s] * (65536 - weight) >> 16
    share = (weight << 14) // np.int64(w.total[place])
    node = np.int64(w.head[place])
    while node:
        w.p[w.symbol[node]] += share * np.int64(w.count[node])
        node = np.int64(w.after[node])


@njit(**_INLINE)
def _is_word(c):
    return (c >= 97 and c <= 122) or (c >= 65 and c <= 90) or (c >= 48 and c <= 57) or c == 39 or c == 45


@njit(**_INLINE)
def _bucket(step, level, node, order, shape, confidence, stretched):
    """Where the calibration of a decision is kept."""
    context = (1 << level) - 1 + node if level < 3 else 7 + (level - 3) * 4 + (((node * 2654435761) & 0xFFFFFFFF) >> 30)
    at = ((((step * 27 + context) * 3 + order) * 4 + shape) * 8 + confidence) * 20
    return at + ((stretched + 2048) * 20 >> 12)


@njit(**_INLINE)
def _corrected(calibration, at, p):
    """p in 2^16 plus what was seen beyond what was predicted, shrunk where it may be chance."""
    seen = calibration[at, 2]
    if seen <= MIN_SEEN + PRIOR:
        return p
    excess = calibration[at, 1] - calibration[at, 0]
    # min(1, SNR / 4) in 1024ths, SNR = (excess / seen)² · seen / (squared errors / seen)
    shrink = min(1024, (excess >> 8) * (excess >> 8) // max(calibration[at, 3] >> 8, 1))
    return min(max(p + (excess * shrink // seen >> 10), 16), 65520)


@njit(**_INLINE)
def _transcode(text, code, decoding, steps, w, t):
    n = text.size
    low, width, at = ENCODER
    value = np.uint64(0)
    if decoding:
        value, width, at = start(code)
    hashes, seats, buckets, predicted, p, tree = w.hashes, w.seats, w.buckets, w.predicted, w.p, w.tree
    last8, n_nodes = np.uint64(0), 1
    prefix, last_word, length = np.uint64(0), np.uint64(0), 0  # of words
    read, streak = -1, 0  # of a match
    match_hits, match_tries, word_hits, word_tries = 256, 512, 256, 512

    for i in range(n):
        if decoding and at > code.size + 8:
            return -1
        for k in range(1, 9):
            mask = np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - 8 * k)
            hashes[k] = _hash(last8 & mask, k)
        order, total = _partial(w, hashes)

        # A match
        fresh = 0
        for m in range(5):
            far = MATCH_LENGTHS[m]
            if i >= far:
                key = np.uint64(0)
                for k in range(far):
                    key = (key + np.uint64(text[i - 1 - k]) + np.uint64(1)) * _M1
                seats[m] = (m << MATCH_BITS) + np.int64(key >> _48)
                if read < 0:
                    found = np.int64(w.matches[seats[m]])
                    k = 0
                    while k < far and k < found and text[found - 1 - k] == text[i - 1 - k]:
                        k += 1
                    if found and k == far:
                        read, streak, fresh = found, 0, far
        if read >= 0:
            base = (match_hits << 16) // match_tries
            if fresh:
                trust = min(base * fresh // 6, base * 9 // 10)
            else:
                trust = min(base * (65 + 4 * streak) // 100, 62915)
            weight = min(trust * 85 // 100, 62259)
            for s in range(256):
                p[s] = p[s] * (65536 - weight) >> 16
            p[text[read]] += weight << 14

        # Words
        in_word = length > 0
        word_hash = _hash(prefix if in_word else last_word, 9 if in_word else 10)
        place = _find(w, word_hash) if in_word or last_word else -1
        word_weight, word_place = 0, place
        if place >= 0 and w.total[place] > 0:
            ratio = (word_hits << 16) // word_tries
            if in_word:
                word_weight = ratio * min(length, 3) // 3 * 35 // 100
            else:
                word_weight = ratio * min(np.int64(w.total[place]), 5) // 5 * 105 // 1000
            if word_weight > 229:
                _blend(w, place, word_weight)

        # The longest of orders 8 to 5 that was seen four times
        for k in range(8, 4, -1):
            place = _find(w, hashes[k])
            if place >= 0 and np.int64(w.total[place]) >= 4:
                seen = np.int64(w.total[place])
                weight = min(2 * ((seen - 4) << 16) * (4 + k - 5) // (10 * (seen + 8)), 39322)
                if weight > 1311:
                    _blend(w, place, weight)
                break

        # Shape, confidence, order of the whole; sums of the tree
        most = 0
        for s in range(256):
            q = p[s] + 64
            tree[256 + s] = q
            most = max(most, q)
        for s in range(255, 0, -1):
            tree[s] = tree[2 * s] + tree[2 * s + 1]
        shape = 0 + (most * 20 >= tree[1]) + (most * 20 >= 3 * tree[1]) + (most * 5 >= 2 * tree[1])
        confidence = 0
        while confidence < 7 and total >> (2 * confidence + 2):
            confidence += 1
        group = 0 if order <= 1 else (1 if order <= 3 else 2)

        byte = 0 if decoding else np.int64(text[i])
        node = 1
        for level in range(8):
            q = (tree[2 * node + 1] << 16) // tree[node]
            q = min(max(q, 16), 65520)
            for step in range(steps):
                here = _bucket(step, level, node - (1 << level), group, shape, confidence, np.int64(t.stretch[q >> 4]))
                buckets[step], predicted[step] = here, q
                q = _corrected(w.calibration, here, q)
            if decoding:
                bit, value, width, at = decode_bit(value, width, at, code, q, 16)
            else:
                bit = (byte >> (7 - level)) & 1
                low, width, at = encode_bit(low, width, at, code, q, 16, bit)
            for step in range(steps):
                here, q = buckets[step], predicted[step]
                w.calibration[here, 0] += q
                w.calibration[here, 1] += bit << 16
                w.calibration[here, 2] += 1
                w.calibration[here, 3] += ((bit << 16) - q) * ((bit << 16) - q) >> 16
            node = 2 * node + bit
        byte = node & 255

        # Learn
        if read >= 0:
            match_tries += 256
            if np.int64(text[read]) == byte:
                match_hits, streak, read = match_hits + 256, streak + 1, read + 1
            else:
                read = -1
            if match_tries > 500 << 8:
                match_hits, match_tries = match_hits * 99 // 100, match_tries * 99 // 100
        if word_weight > 0:
            word_tries += 256
            node = np.int64(w.head[word_place])
            while node:
                if np.int64(w.symbol[node]) == byte:
                    if 20 * np.int64(w.count[node]) > np.int64(w.total[word_place]):
                        word_hits += 256
                    break
                node = np.int64(w.after[node])
            if word_tries > 500 << 8:
                word_hits, word_tries = word_hits * 99 // 100, word_tries * 99 // 100
        for m in range(5):
            if i >= MATCH_LENGTHS[m]:
                w.matches[seats[m]] = i
        letter = _is_word(byte)
        if in_word or (letter and last_word):
            n_nodes = _seen(w, word_hash, byte, n_nodes)
        # Counts of orders above the one where the byte was known, and of that one
        for k in range(4, -1, -1):
            if k == 0:
                w.order0[byte] += 1
                break
            place = _find(w, hashes[k])
            known = False
            if place >= 0:
                node = np.int64(w.head[place])
                while node:
                    known |= np.int64(w.symbol[node]) == byte
                    node = np.int64(w.after[node])
            n_nodes = _seen(w, hashes[k], byte, n_nodes)
            if known:
                break
        for k in range(5, 9):
            n_nodes = _seen(w, hashes[k], byte, n_nodes)
        if decoding:
            text[i] = byte
        last8 = last8 << _8 | np.uint64(byte)
        if letter:
            prefix, length = (prefix + np.uint64(byte)) * _M1, length + 1
        elif length:
            last_word, prefix, length = prefix, np.uint64(0), 0

    if decoding:
        return at if ended(value, width, at, code) else -1
    return finish(low, width, at, code)


def _sizes(n: int) -> tuple[int, int]:
    """(contexts, nodes) for a text of `n` bytes, within what a packet may use; at most 2^20 and 2^21."""
    bits = 10
    while bits < min(20, (8 * n).bit_length()) and 22 << bits + 1 <= 14 * n + (9 << 20):
        bits += 1
    return 1 << bits, 1 << bits + 1


def workspace_bytes(n: int) -> int:
    """Memory of a coder for a text of `n` bytes, beside the text and the code."""
    contexts, nodes = _sizes(n)
    return 8 * contexts + 7 * nodes + (20 << MATCH_BITS) + 32 * STEPS * N_BUCKETS + 16384


def _workspace(n: int, t: Tables) -> Workspace:
    contexts, nodes = _sizes(n)
    calibration = np.zeros((STEPS * N_BUCKETS // 20, 20, 4), np.int64)
    centers = t.squash[((2 * np.arange(20) + 1) * 4096 // 40 - 2048) + (t.squash.size - 1) // 2].astype(np.int64)
    calibration[:, :, 0] = calibration[:, :, 1] = centers * PRIOR
    calibration[:, :, 2] = PRIOR
    calibration[:, :, 3] = centers * (65536 - centers) // 65536 * PRIOR
    return Workspace(
        check=np.zeros(contexts, np.uint16),
        total=np.zeros(contexts, np.uint16),
        head=np.zeros(contexts, np.int32),
        symbol=np.zeros(nodes, np.uint8),
        count=np.zeros(nodes, np.uint16),
        after=np.zeros(nodes, np.int32),
        order0=np.zeros(256, np.int64),
        matches=np.zeros(5 << MATCH_BITS, np.int32),
        calibration=calibration.reshape(-1, 4),
        p=np.zeros(256, np.int64),
        tree=np.zeros(512, np.int64),
        barred=np.zeros(256, np.int64),
        hashes=np.zeros(9, np.uint64),
        seats=np.zeros(5, np.int64),
        buckets=np.zeros(STEPS, np.int64),
        predicted=np.zeros(STEPS, np.int64),
    )


def encode(text: np.ndarray, steps: int) -> np.ndarray | None:
    """text: (n,) uint8, n < 2^31 -> its code, uint8; None where the code would not be shorter than the text.

    steps: of denoising, 0 (none) to STEPS.
    """
    if text.size >= 1 << 31:
        raise BadInput(f"a block of {text.size:,} bytes; below 2^31 is possible, cut it")
    code, t = np.zeros(text.size, np.uint8), tables()
    n = _transcode(np.array(text, np.uint8), code, False, steps, _workspace(text.size, t), t)
    return code[:n] if n < text.size else None


def decode(code: np.ndarray, n: int, steps: int) -> np.ndarray:
    """The text of `n` bytes, uint8.

    Raises
    ------
    CorruptStream: the code is not one that `encode` makes for a text of this length.
    """
    # No decision costs less than log2(65536 / 65520) bits, hence no byte less than 1/355 of one.
    if n >= 1 << 31 or n > 360 * 8 * (code.size + 8):
        raise CorruptStream(f"{code.size:,} bytes of code cannot hold {n:,} bytes")
    claim(n + workspace_bytes(n), "the text and its model")
    text, t = np.zeros(n, np.uint8), tables()
    if _transcode(text, np.array(code, np.uint8), True, steps, _workspace(n, t), t) < 0:
        raise CorruptStream(f"the code of {n:,} bytes does not end where it should")
    return text
