"""Attention of a few queries over compressed keys and values, read as they lie, never unpacked to memory.

    acc[h, g] = Σ_t exp(s_t − m) · v̂_t,    mass = Σ_t exp(s_t − m),    m = max_t s_t,    s_t = q[h, g] · k̂_t

    x̂_t = mean + scale_t · Σ_j level_j[code_jt] · synthesis_j        (scale_t = 1 where there is none)

Codes lie as `laconic.kernels.coordinates` says, in pages of `page_blocks` blocks of 64 tokens, each page holding all heads one
behind the other. The caller divides acc by mass, or merges it with what attends elsewhere: with M = max(m, m') it is
(acc e^(m−M) + acc' e^(m'−M)) / (mass e^(m−M) + mass' e^(m'−M)). Where nothing is attended, m = −∞ and mass = acc = 0.

    decoder = Decoder.of(bits, levels, synthesis, mean)     what was fitted: once a layer, for keys and for values
    coded = Coded.of(decoder, pages, page_blocks, scales)   what is stored; `places` and `scales` may be kept and grown instead
    rope = Rope.of(decoder, inv_freq, …)                    for keys that were stored before RoPE
    acc, m, mass = attend(q, keys, values, n_tokens, mask=None, rope=None, threads=1)

Keys as they are: the query is taken into coordinates once, q'_j = synthesis_j · q, and no k̂ is formed. Keys that have to be
rotated are formed in registers, 4 channels × 16 or 32 tokens at a time; the turn up to a block's first position is taken from
the query, in float64, that within a block is done to the keys from a table. Values are summed in coordinates, and multiplied by
synthesis once.

Arithmetic: levels are rounded to 1/8,191 of each coordinate's greatest, queries and synthesis to 16 bits or what keeps exact
32-bit sums, the weights of 64 tokens to 1/32,767 of their greatest. Against the plain twin scores are within 5 · 10⁻⁴ of
|q| · max_t |k̂_t| and results within 10⁻³ of max_t |v̂_t|. Tokens are divided into runs of 1,024 whose sums are merged in order, so
that results do not depend on threads.

Source: M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax", 2018 (arXiv 1805.02867); runs as in
"Flash-Decoding", T. Dao et al., 2023.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from laconic.core.errors import BadConfig, BadInput
from laconic.kernels.attend_loops import (
    FINE,
    LANES,
    PLANES,
    RUN,
    Reading,
    Turning,
    attend_runs,
    fold_queries,
    into_basis,
    merge_runs,
    out_of_basis,
)
from laconic.kernels.coordinates import BLOCK, unpack
from laconic.kernels.sharing import divide

__all__ = ["Coded", "Decoder", "Rope", "addresses", "attend", "attend_plain"]

_SHORT = 32767


# --- What is stored ---------------------------------------------------------------------------------------------------


class Decoder(NamedTuple):
    """How codes of n_heads × r coordinates become vectors of d channels.

    bits: uint8 (n_heads, r). levels: float32, the 2^bits of one coordinate behind those of the one before. synthesis: float32
    or float16 (n_heads, r, d). mean: float32 (n_heads, d). What follows is arranged for the kernels: coordinates of equal bits
    in pairs by rising bits, those of 0 bits left out, an odd one paired with nothing. slots: int16 (n_heads, n_slots): the
    coordinate, −1 for none. step: float32 (n_heads, n_slots): what its levels are a multiple of. ends: int64 (n_heads, 9):
    pairs of up to so many bits. at, table_at: int64 (n_heads, n_slots / 2, 2): where codes lie in a block, and levels in
    `tables` (int16). head_at: int64 (n_heads,): bytes of a block that other heads take before this one.
    """

    bits: np.ndarray
    levels: np.ndarray
    synthesis: np.ndarray
    mean: np.ndarray
    slots: np.ndarray
    step: np.ndarray
    ends: np.ndarray
    at: np.ndarray
    table_at: np.ndarray
    tables: np.ndarray
    head_at: np.ndarray

    @classmethod
    def of(
        cls,
        bits: np.ndarray,
        levels: Sequence[Sequence[np.ndarray]] | np.ndarray,
        synthesis: np.ndarray,
        mean: np.ndarray | None = None,
    ) -> "Decoder":
        """bits: uint8 (n_heads, r); levels[h][j]: up to 2^bits floats, or all in a row as they are kept; synthesis:
        (n_heads, r, d), or (r, d) for all heads. Arrays that have the right form are kept, not copied.

        A coordinate of 0 bits is reconstructed as 0, whatever levels it has: its mean belongs into `mean`.
        """
        n_heads, r = bits.shape
        kind = np.float16 if synthesis.dtype == np.float16 else np.float32
        synthesis = np.ascontiguousarray(np.broadcast_to(synthesis, (n_heads, *synthesis.shape[-2:])), kind)
        d = synthesis.shape[2]
        mean = np.zeros((n_heads, d), np.float32) if mean is None else np.ascontiguousarray(mean, np.float32)
        if bits.dtype != np.uint8 or (bits.size and int(bits.max()) > 8) or synthesis.shape[1] != r:
            raise BadConfig(f"bits {bits.dtype}{bits.shape}, synthesis {synthesis.shape}; uint8 0 … 8 a row is right")
        if mean.shape != (n_heads, d) or not np.isfinite(mean).all() or not np.isfinite(synthesis).all():
            raise BadConfig(f"means {mean.shape}, synthesis {synthesis.shape}; finite ({n_heads}, {d}) is right")
        if not isinstance(levels, np.ndarray):
            levels = np.concatenate([_full(levels[h][j], int(bits[h, j])) for h in range(n_heads) for j in range(r)])
        starts = _starts(bits)
        if levels.shape != (int((1 << bits.astype(np.int64)).sum()),) or not np.isfinite(levels).all():
            raise BadConfig(f"levels of shape {levels.shape}; a finite one for every code is right")
        slots, ends = _slots(bits)
        first = np.cumsum(8 * bits.astype(np.int64), 1) - 8 * bits
        at, table_at = np.zeros((2, *slots.shape), np.int64)
        steps = np.zeros(slots.shape, np.float32)
        parts, total = [], 0
        for h, i in np.ndindex(slots.shape):
            j = slots[h, i]
            near = j if j >= 0 else slots[h, i - 1]  # what is paired with nothing reads its neighbour's codes
            if near < 0:
                continue
            mine = levels[starts[h, near] : starts[h, near] + (1 << int(bits[h, near]))]
            whole, steps[h, i] = _whole(mine) if j >= 0 else (np.zeros(len(mine), np.int16), 0.0)
            at[h, i], table_at[h, i] = first[h, near], total
            parts.append(_arranged(whole))
            total += len(parts[-1])
        head_bytes = 8 * bits.sum(1, dtype=np.int64)
        at, table_at = (a.reshape(n_heads, -1, 2) for a in (at, table_at))
        tables = np.concatenate([*parts, np.zeros(2 * LANES, np.int16)])
        return cls(
            bits, levels, synthesis, mean, slots, steps, ends, at, table_at, tables, np.cumsum(head_bytes) - head_bytes
        )

    def basis(self) -> np.ndarray:
        """float32 (n_heads, n_slots, d): the synthesis times the steps; not kept, as it would double the memory."""
        n_heads, r, d = self.synthesis.shape
        rows = np.maximum(self.slots, 0) + r * np.arange(n_heads)[:, None]  # int64
        return self.synthesis.reshape(-1, d)[rows].astype(np.float32) * self.step[:, :, None]

    def synthesis_parts(self) -> tuple[np.ndarray, np.ndarray]:
        """The synthesis as loops read it: float16 as bits, sixteen at a time, and what is left of a row as float32; or all so."""
        if self.synthesis.dtype == np.float32:
            return np.empty((0, 0, 0), np.uint16), self.synthesis
        rest = self.synthesis[:, :, self.synthesis.shape[2] // 16 * 16 :]
        return self.synthesis.view(np.uint16), rest.astype(np.float32)

    def rows(self) -> list[list[np.ndarray]]:
        """The levels of [head][coordinate]."""
        r = self.bits.shape[1]
        found = np.split(self.levels, _starts(self.bits).reshape(-1)[1:])
        return [found[h * r : (h + 1) * r] for h in range(len(self.bits))]

    @property
    def block_bytes(self) -> int:
        """Bytes of a block, all heads."""
        return 8 * int(self.bits.sum(dtype=np.int64))


def _starts(bits: np.ndarray) -> np.ndarray:
    """Where the levels of each coordinate begin, (n_heads, r) int64."""
    sizes = 1 << bits.astype(np.int64)
    return (np.cumsum(sizes) - sizes.reshape(-1)).reshape(bits.shape)


def _full(levels: np.ndarray, bits: int) -> np.ndarray:
    """Levels for every code that the bits can hold."""
    if not bits:
        return np.zeros(1, np.float32)
    levels = np.ascontiguousarray(levels, np.float32)
    if levels.ndim != 1 or not 1 <= len(levels) <= 1 << bits or not np.isfinite(levels).all():
        raise BadConfig(f"levels of shape {levels.shape} for {bits} bits; 1 to {1 << bits} finite numbers are right")
    return np.resize(levels, 1 << bits)


def _slots(bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in pairs of equal bits, n_slots a multiple of 8, and where each number of bits ends, in pairs."""
    rows, ends = [], np.zeros((len(bits), 9), np.int64)
    for h, row in enumerate(bits):
        found: list[int] = []
        for b in range(1, 9):
            found += np.flatnonzero(row == b).tolist()
            found += [-1] * (len(found) % 2)
            ends[h, b] = len(found) // 2
        rows.append(found)
    n_slots = -(-max(map(len, rows)) // 8) * 8
    return np.array([row + [-1] * (n_slots - len(row)) for row in rows], np.int16).reshape(len(bits), n_slots), ends


def _whole(levels: np.ndarray) -> tuple[np.ndarray, float]:
    """Levels as int16 up to `FINE`, and what they are multiples of."""
    step = float(np.abs(levels).max()) / FINE
    return (np.rint(levels / step) if step else 0 * levels).astype(np.int16), step


def _arranged(table: np.ndarray) -> np.ndarray:
    """A table as the machine looks it up: a register or more; byte by byte, first the low ones of 16, then the high ones."""
    if not PLANES:
        return np.resize(table, max(2 * LANES, len(table)))
    table = np.resize(table, max(16, len(table)))
    return np.ascontiguousarray(table.view(np.uint8).reshape(-1, 16, 2).swapaxes(1, 2)).reshape(-1).view(np.int16)


class Coded(NamedTuple):
    """Codes of a history. places: int64 (n_pages,), addresses of pages of page_blocks · block_bytes bytes, uint8.

    scales: int64 (n_pages,), addresses of float16 (n_heads, 64 · page_blocks); empty where vectors have no factor.
    kept: the arrays behind the addresses; whoever makes the addresses (`addresses`) keeps the arrays alive instead.
    """

    decoder: Decoder
    places: np.ndarray
    page_blocks: int
    scales: np.ndarray
    kept: tuple = ()

    @classmethod
    def of(
        cls, decoder: Decoder, pages: Sequence[np.ndarray], page_blocks: int, scales: Sequence[np.ndarray] | None = None
    ) -> "Coded":
        """From contiguous arrays; pages: uint8, flat; scales: float16 (n_heads, 64 · page_blocks) a page."""
        right = page_blocks * decoder.block_bytes
        for page in pages:
            if page.size != right or page.dtype != np.uint8 or not page.flags.c_contiguous:
                raise BadInput(f"a page of {page.dtype}{page.shape}; contiguous uint8({right},) is right")
        shape = (decoder.bits.shape[0], BLOCK * page_blocks)
        for scale in scales or ():
            if scale.shape != shape or scale.dtype != np.float16 or not scale.flags.c_contiguous:
                raise BadInput(f"scales of {scale.dtype}{scale.shape}; contiguous float16{shape} is right")
        if scales is not None and len(scales) != len(pages):
            raise BadInput(f"{len(scales)} pages of scales for {len(pages)} of codes")
        kept = (tuple(pages), tuple(scales or ()))
        return cls(decoder, addresses(pages), page_blocks, addresses(scales or ()), kept)


def addresses(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Where arrays begin: int64."""
    return np.array([a.ctypes.data for a in arrays], np.int64)


class Rope(NamedTuple):
    """How keys of a layer that were stored before RoPE turn with their positions, first, first + 1, …

    inv_freq: float32 (p,): channels i and i + p turn by position · inv_freq[i], or 2 i and 2 i + 1 where interleaved; channels
    from 2 p on stay. factor: what cosines and sines are multiplied by. `first` may be replaced; the rest is arranged for the
    kernels, channels in fours of which (0, 2) and (1, 3) are pairs: channels: int64 (n_fours, 4), −1 for none; step: float64
    (2, p), the turn of 64 positions; turn: float32 (pairs, 2, 64), cosine and sine within a block, times the factor; matrix:
    int32 (n_heads, n_fours, n_pairs, 4), the basis of two coordinates in 16 bits each, for the pairs `chosen`, int32
    (n_heads, n_fours, n_pairs), of which there are `counts`, int64 (n_heads, n_fours): others have no part in those channels;
    unit: float32 (n_heads,), what their products are multiplied by.
    """

    inv_freq: np.ndarray
    interleaved: bool
    first: int
    factor: float
    channels: np.ndarray
    step: np.ndarray
    turn: np.ndarray
    chosen: np.ndarray
    counts: np.ndarray
    matrix: np.ndarray
    means: np.ndarray
    unit: np.ndarray

    @classmethod
    def of(
        cls,
        decoder: Decoder,
        inv_freq: np.ndarray,
        *,
        interleaved: bool = False,
        first: int = 0,
        factor: float = 1.0,
    ) -> "Rope":
        """For the keys of `decoder`. factor: transformers' attention_scaling."""
        inv_freq = np.ascontiguousarray(inv_freq, np.float32)
        d, p = decoder.mean.shape[1], len(inv_freq)
        if inv_freq.ndim != 1 or not 0 < 2 * p <= d or not np.isfinite(inv_freq).all():
            raise BadConfig(f"inv_freq {inv_freq.shape} for heads of {d} channels; 1 to {d // 2} frequencies are right")
        channels = _fours(d, p, interleaved)
        means = np.ascontiguousarray(np.where(channels < 0, np.float32(0), decoder.mean[:, channels]))
        step = BLOCK * inv_freq.astype(np.float64)
        step, turn = np.stack([np.cos(step), np.sin(step)]), _turn(inv_freq.tobytes(), factor)
        return cls(inv_freq, interleaved, first, factor, channels, step, turn, *_chosen(decoder, channels, means))

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """First and second channel of each pair."""
        return _pairs(len(self.inv_freq), self.interleaved)


def _pairs(p: int, interleaved: bool) -> tuple[np.ndarray, np.ndarray]:
    i = np.arange(p)
    return (2 * i, 2 * i + 1) if interleaved else (i, i + p)


def _fours(d: int, p: int, interleaved: bool) -> np.ndarray:
    """Channels in fours: two pairs each, then those that do not turn."""
    both = np.full((2, p + p % 2), -1)
    both[:, :p] = _pairs(p, interleaved)
    rest = np.full(-(-(d - 2 * p) // 4) * 4, -1)
    rest[: d - 2 * p] = np.arange(2 * p, d)
    return np.concatenate([both.reshape(2, -1, 2).swapaxes(0, 1).reshape(-1, 4), rest.reshape(-1, 4)])


@lru_cache(maxsize=16)
def _turn(inv_freq: bytes, factor: float) -> np.ndarray:
    angle = np.frombuffer(inv_freq, np.float32).astype(np.float64)[:, None] * np.arange(BLOCK)
    turn = np.zeros((len(angle) + len(angle) % 2, 2, BLOCK), np.float32)
    turn[: len(angle)] = factor * np.stack([np.cos(angle), np.sin(angle)], 1)
    return turn


def _chosen(decoder: Decoder, channels: np.ndarray, means: np.ndarray) -> tuple[np.ndarray, ...]:
    """chosen, counts, matrix, means and unit of a `Rope`."""
    n_heads, n_slots = decoder.slots.shape
    basis = np.where(channels < 0, np.float32(0), decoder.basis()[:, :, channels])  # (n_heads, n_slots, n_fours, 4)
    whole, unit = _fitted(np.moveaxis(basis, 1, 3))
    matrix = _two(whole).reshape(n_heads, *channels.shape, n_slots // 2)
    used = (matrix != 0).any(2)
    chosen = np.argsort(~used, axis=2, kind="stable")
    matrix = np.ascontiguousarray(np.take_along_axis(matrix, chosen[:, :, None], 3).swapaxes(2, 3))
    return chosen.astype(np.int32), used.sum(2), matrix, means, unit


def _fitted(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x (n_heads, …) as int16 whose sums of products with levels along the last axis fit 32 bits, and a head's unit."""
    x = x.astype(np.float64).reshape(len(x), -1, x.shape[-1])
    size = np.abs(x).sum(-1).max(1, initial=0) / (2.0**31 / FINE - x.shape[-1] - 1)
    unit = np.maximum(np.maximum(size, np.abs(x).max((1, 2), initial=0) / _SHORT), 1e-30)
    return np.rint(x / unit[:, None, None]).astype(np.int16), unit.astype(np.float32)


def _two(whole: np.ndarray) -> np.ndarray:
    """Neighbours along the last axis in one int32, the first in the low half."""
    low, high = (whole[..., k::2].astype(np.int32) for k in (0, 1))
    return (low & 0xFFFF) | (high << 16)


# --- Attention --------------------------------------------------------------------------------------------------------


def _reading(coded: Coded) -> Reading:
    d = coded.decoder
    sizes = 8 * d.bits.sum(1, dtype=np.int64)
    return Reading(coded.places, coded.scales, coded.page_blocks, sizes, d.head_at, d.ends, d.at, d.table_at, d.tables)


def _checked(q: np.ndarray, keys: Coded, values: Coded, n_tokens: int, mask: np.ndarray | None) -> np.ndarray:
    n_heads, d = keys.decoder.mean.shape
    if q.ndim != 3 or q.dtype != np.float32 or (q.shape[0], q.shape[2]) != (n_heads, d) or not q.shape[1]:
        raise BadInput(f"queries are {q.dtype}{q.shape}; float32 ({n_heads}, n_queries, {d}) is right")
    if values.decoder.bits.shape[0] != n_heads:
        raise BadInput(f"values of {values.decoder.bits.shape[0]} heads for keys of {n_heads}")
    for name, coded in (("keys", keys), ("values", values)):
        room = len(coded.places) * coded.page_blocks * BLOCK
        if not 0 <= n_tokens <= room or (coded.scales.size and len(coded.scales) != len(coded.places)):
            raise BadInput(f"{n_tokens} tokens of {name} in {len(coded.places)} pages, which hold {room}")
    if mask is None:
        return np.empty(0, np.uint8)
    if mask.shape != (n_tokens,) or mask.dtype != np.uint8:
        raise BadInput(f"the mask is {mask.dtype}{mask.shape}; uint8({n_tokens},) is right")
    return np.ascontiguousarray(mask)


def _folded(q: np.ndarray, decoder: Decoder, n_tiles: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Queries in coordinates, as integers, and units and constants: the q and side of `attend_runs`."""
    n_heads, n_slots = decoder.slots.shape
    two, side = (
        np.zeros((n_heads, n_tiles, n_slots // 2, width), np.int32),
        np.zeros((n_heads, n_tiles, 2, width), np.float32),
    )
    constant = np.matmul(q, decoder.mean[:, :, None])[:, :, 0]
    folded = np.empty((n_heads, q.shape[1], n_slots), np.float32)
    into_basis(q, *decoder.synthesis_parts(), decoder.slots, decoder.step, folded)
    fold_queries(folded, constant, two, side)
    return two, side


def attend(
    q: np.ndarray,
    keys: Coded,
    values: Coded,
    n_tokens: int,
    mask: np.ndarray | None = None,
    rope: Rope | None = None,
    threads: int = 1,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """acc (n_heads, n_queries, d), m and mass (n_heads, n_queries), all float32.

    q: (n_heads, n_queries, d) float32, times the softmax's scale and rotated; several new tokens are more queries.
    mask: uint8 (n_tokens,), 0 for tokens that nobody attends.
    """
    mask = _checked(q, keys, values, n_tokens, mask)
    n_heads, n_queries, _ = q.shape
    width = min(4, 1 << (n_queries - 1).bit_length())
    n_tiles, n_runs = -(-n_queries // width), -(-n_tokens // (RUN * BLOCK))
    if rope is None:
        query, side = _folded(q, keys.decoder, n_tiles, width)
        turning = None
    else:
        query, side = np.ascontiguousarray(q), np.empty((n_heads, n_tiles, 2, width), np.float32)
        turning = Turning(*(getattr(rope, name) for name in Turning._fields))
    rows = values.decoder.slots.shape[1]
    acc = np.zeros((n_heads, n_runs, n_tiles * rows * width), np.float32)
    m, mass = np.empty((2, n_heads, n_runs, n_queries), np.float32)
    shared = min(threads, max(1, n_heads * n_runs))
    divide(shared, attend_runs, _reading(keys), _reading(values), query, side, turning, n_tokens, mask, acc, m, mass,
           (0,) * width)  # fmt: skip
    out = np.empty((n_heads, n_queries, rows), np.float32)
    out_m, out_mass = np.empty((2, n_heads, n_queries), np.float32)
    merge_runs(acc, m, mass, width, out, out_m, out_mass)
    v = values.decoder
    mixed = np.empty((n_heads, n_queries, v.mean.shape[1]), np.float32)
    out_of_basis(out, *v.synthesis_parts(), v.slots, v.step, out_mass, v.mean, mixed)
    return mixed, out_m, out_mass


# --- The same in NumPy -------------------------------------------------------------------------------------------------


def _pages_plain(coded: Coded, n_tokens: int, h: int) -> np.ndarray:
    """x̂ of a head: float64 (n_tokens, d)."""
    d = coded.decoder
    size = int(d.bits[h].sum(dtype=np.int64)) * 8 * coded.page_blocks
    start = int(d.head_at[h]) * coded.page_blocks
    codes = np.concatenate([page.reshape(-1)[start : start + size] for page in coded.kept[0]])
    index = unpack(codes, d.bits[h], len(coded.kept[0]) * coded.page_blocks * BLOCK)[:n_tokens]
    rows = d.rows()[h]
    y = np.stack([rows[j][index[:, j]] if b else np.zeros(n_tokens) for j, b in enumerate(d.bits[h])], 1)
    x = y.astype(np.float64) @ d.synthesis[h].astype(np.float64)
    if coded.scales.size:
        x *= np.concatenate([s[h] for s in coded.kept[1]])[:n_tokens, None].astype(np.float64)
    return x + d.mean[h]


def attend_plain(
    q: np.ndarray, keys: Coded, values: Coded, n_tokens: int, mask: np.ndarray | None = None, rope: Rope | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`attend` in NumPy and float64, from whole vectors; of a `Coded.of`."""
    n_heads, n_queries, _ = q.shape
    acc = np.zeros((n_heads, n_queries, values.decoder.mean.shape[1]))
    m, mass = np.full((n_heads, n_queries), -np.inf), np.zeros((n_heads, n_queries))
    if n_tokens == 0:
        return acc, m, mass
    for h in range(n_heads):
        k, v = _pages_plain(keys, n_tokens, h), _pages_plain(values, n_tokens, h)
        if rope is not None:
            a, b = rope.pairs()
            angle = (rope.first + np.arange(n_tokens))[:, None] * rope.inv_freq.astype(np.float64)
            c, s = rope.factor * np.cos(angle), rope.factor * np.sin(angle)
            k[:, a], k[:, b] = k[:, a] * c - k[:, b] * s, k[:, b] * c + k[:, a] * s
        scores = q[h].astype(np.float64) @ k.T
        if mask is not None:
            scores[:, mask == 0] = -np.inf
        m[h] = scores.max(1)
        p = np.exp(scores - np.where(np.isfinite(m[h]), m[h], 0)[:, None])
        mass[h], acc[h] = p.sum(1), p @ v
    return acc, m, mass
