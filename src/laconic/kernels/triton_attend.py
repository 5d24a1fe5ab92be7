"""`laconic.kernels.attend` on a GPU: codes read as they lie, levels in registers, products on the matrix units.

    decoder = DeviceDecoder.of(keys.decoder, "cuda")        once a layer, for keys and for values
    coded = on_device(keys, "cuda")                         or DeviceCoded(decoder, places, scales) that grows
    rope = DeviceRope.of(decoder, rope)                     for keys that were stored before RoPE
    acc, m, mass = attend_triton(q, coded, values, n_tokens, mask=None, rope=None)

Formulas and merging are those of `laconic.kernels.attend`, codes lie as `laconic.kernels.device_coordinates` says. Two passes:
one program a head and run of blocks writes the scores, float32; one a head, run and 32 coordinates sums the values' levels under
weights e^(s − m). Keys that turn are formed, 64 at a time, and turned within their block by a table; the turn up to the block is
taken from the query, in float64.

Arithmetic: levels, synthesis and weights are rounded to float16, as parts of the greatest of their coordinate, head or run;
queries to two float16 that add up. Against the plain twin scores are within 10⁻³ of |q| · max_t |k̂_t| and results within 10⁻³ of
max_t |v̂_t|.

Needs Triton (and runs without a GPU where TRITON_INTERPRET=1 is set before it is imported).
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from laconic.core.errors import BadConfig, BadInput
from laconic.kernels.attend import Coded, Decoder, Rope
from laconic.kernels.coordinates import BLOCK, unpack_heads
from laconic.kernels.device_coordinates import Layout

if TYPE_CHECKING:
    import torch

__all__ = ["DeviceCoded", "DeviceDecoder", "DeviceRope", "attend_triton", "has_triton", "on_device"]

_RUN, _WARPS = 4, 4  # blocks of a program that scores, and its warps
_MIXED_RUN, _MIXED_WARPS = 16, 4  # and of one that sums values
_CHUNK = 32  # coordinates whose levels are in registers at once
_QUERIES = 8  # of a tile: in two parts they fill the 16 rows that a matrix unit takes


class DeviceDecoder(NamedTuple):
    """A `Decoder` on a device, coordinates without bits left out; n of them a head, a multiple of 32.

    bits: int32 (n_heads, n). at: int32 (4, n_heads, n), where planes of widths 8, 4, 2, 1 lie in a block of `block_bytes`.
    table_at: int32 (n_heads, n), places in `tables` (float16, parts of a coordinate's greatest level). basis: float32
    (n_heads, n, d), the synthesis times the greatest levels. mean: float32 (n_heads, d). planes: widths that some code has.
    """

    bits: torch.Tensor
    at: torch.Tensor
    table_at: torch.Tensor
    tables: torch.Tensor
    basis: torch.Tensor
    mean: torch.Tensor
    planes: int
    block_bytes: int

    @classmethod
    def of(cls, decoder: Decoder, device: torch.device | str) -> DeviceDecoder:
        """Copies, arranged."""
        import torch

        layout = Layout.of(decoder.bits, "cpu")
        places = np.stack([layout.places(width) for width in (8, 4, 2, 1)])
        bits = decoder.bits.astype(np.int64)
        n = -(-max(1, int((bits > 0).sum(1).max(initial=0))) // _CHUNK) * _CHUNK
        kept, table_at = np.zeros((2, len(bits), n), np.int32)
        at = np.zeros((4, len(bits), n), np.int32)
        basis = np.zeros((len(bits), n, decoder.mean.shape[1]), np.float32)
        parts, total = [np.zeros(1, np.float16)], 1
        for h, rows in enumerate(decoder.rows()):
            chosen = np.flatnonzero(bits[h])
            chosen = chosen[np.argsort(-bits[h, chosen], kind="stable")]  # like bits side by side
            for i, j in enumerate(chosen):
                step = float(np.abs(rows[j]).max()) or 1.0
                kept[h, i], at[:, h, i], table_at[h, i] = bits[h, j], places[:, h, j], total
                basis[h, i] = decoder.synthesis[h, j].astype(np.float32) * np.float32(step)
                parts.append((rows[j] / step).astype(np.float16))
                total += len(rows[j])
        arrays = (kept, at, table_at, np.concatenate(parts), basis, decoder.mean)
        moved = (torch.from_numpy(np.array(a)).to(device) for a in arrays)
        planes = int(np.bitwise_or.reduce(bits.reshape(-1), initial=0))
        return cls(*moved, planes=planes, block_bytes=layout.block_bytes)


class DeviceCoded(NamedTuple):
    """A history on a device. places: int64 (n_blocks,), addresses of blocks there, each a multiple of 8; scales: the same, of
    float16 (n_heads, 64), or empty. kept: the tensors behind them, if nobody else keeps them.
    """

    decoder: DeviceDecoder
    places: torch.Tensor
    scales: torch.Tensor
    kept: tuple = ()


class DeviceRope(NamedTuple):
    """A `Rope` on a device. first: position of the first token. inv_freq: float64 (p,). turn: float32 (2, P, 64), cosine and
    sine within a block times the factor. basis: float16 (n_heads, 2, P, n), parts of `unit`, of the first and second channels of
    pairs; mean: float32 (n_heads, 2, P), the same. unit: float32 (n_heads,). first_of, second_of: int64 (p,), the channels.
    rest: int64, channels that stay. P: p up to a power of two.
    """

    first: int
    inv_freq: torch.Tensor
    turn: torch.Tensor
    basis: torch.Tensor
    mean: torch.Tensor
    unit: torch.Tensor
    first_of: torch.Tensor
    second_of: torch.Tensor
    rest: torch.Tensor

    @classmethod
    def of(cls, decoder: DeviceDecoder, rope: Rope) -> DeviceRope:
        """For the keys of a decoder, on its device."""
        import torch

        device, d = decoder.basis.device, decoder.basis.shape[2]
        pairs = rope.pairs()
        p = len(rope.inv_freq)
        wide = max(16, 1 << (p - 1).bit_length())
        turn = torch.zeros(2, wide, BLOCK)
        turn[:, :p] = torch.from_numpy(rope.turn[:p].swapaxes(0, 1))
        a, b = (torch.from_numpy(np.asarray(c, np.int64)).to(device) for c in pairs)
        rest = torch.tensor(sorted(set(range(d)) - set(np.concatenate(pairs).tolist())), dtype=torch.int64)
        parts = torch.stack([decoder.basis[:, :, c] for c in (a, b)], 1).transpose(2, 3)  # (n_heads, 2, p, n)
        means = torch.stack([decoder.mean[:, c] for c in (a, b)], 1)
        # Σ of absolute values: no key, turned or not, leaves float16.
        unit = (parts.abs().sum(-1) + means.abs()).amax((1, 2)).clamp(min=1e-30)
        basis = torch.zeros(*parts.shape[:2], wide, parts.shape[3], dtype=torch.float16, device=device)
        basis[:, :, :p] = parts / unit[:, None, None, None]
        mean = torch.zeros(*means.shape[:2], wide, device=device)
        mean[:, :, :p] = means / unit[:, None, None]
        frequency = torch.from_numpy(rope.inv_freq).double().to(device)
        return cls(rope.first, frequency, turn.to(device), basis, mean, unit, a, b, rest.to(device))


def has_triton() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None


def on_device(coded: Coded, device: torch.device | str) -> DeviceCoded:
    """Blocks and decoder of a `Coded.of`, laid out anew."""
    import torch

    bits, n = coded.decoder.bits, coded.page_blocks
    layout = Layout.of(bits, device)
    blocks = [layout.pack(torch.from_numpy(unpack_heads(page, bits, n * BLOCK)).to(device)) for page in coded.kept[0]]
    factors = [torch.from_numpy(s.reshape(len(bits), n, BLOCK).swapaxes(0, 1).copy()).to(device) for s in coded.kept[1]]
    places = (
        torch.tensor([b.data_ptr() for part in parts for b in part], dtype=torch.int64, device=device)
        for parts in (blocks, factors)
    )
    return DeviceCoded(DeviceDecoder.of(coded.decoder, device), *places, (tuple(blocks), tuple(factors)))


if has_triton():
    import triton
    import triton.language as tl

    @triton.jit
    def _levels(places, bits_at, code_at, table_at, tables, h, b, first, n: tl.constexpr, C: tl.constexpr,
                PLANES: tl.constexpr):  # fmt: skip
        """Levels of coordinates first … first + C − 1 of a block: float16 (C, 64)."""
        near = h * n + first + tl.arange(0, C)
        w, k = tl.arange(0, 8)[None, :], tl.arange(0, 8)[None, None, :]
        plane = n * tl.num_programs(0)
        bits = tl.load(bits_at + near)[:, None]
        base = tl.load(places + b)
        code = tl.zeros((C, 8, 8), tl.int32)  # word and token in it
        # The wider planes of a code hold its lower bits.
        if PLANES & 8:
            at = base.to(tl.pointer_type(tl.int64)) + tl.load(code_at + near)[:, None] // 8
            word = tl.load(at + w, mask=(bits & 8) != 0, other=0)[:, :, None]
            code |= ((word >> (8 * k)) & 255).to(tl.int32)
        if PLANES & 4:
            at = base.to(tl.pointer_type(tl.int32)) + tl.load(code_at + plane + near)[:, None] // 4
            word = tl.load(at + w, mask=(bits & 4) != 0, other=0)[:, :, None]
            code |= ((word >> (4 * k)) & 15) << (bits & 8)[:, :, None]
        if PLANES & 2:
            at = base.to(tl.pointer_type(tl.int16)) + tl.load(code_at + 2 * plane + near)[:, None] // 2
            word = tl.load(at + w, mask=(bits & 2) != 0, other=0).to(tl.int32)[:, :, None]
            code |= ((word >> (2 * k)) & 3) << (bits & 12)[:, :, None]
        if PLANES & 1:
            at = base.to(tl.pointer_type(tl.int8)) + tl.load(code_at + 3 * plane + near)[:, None]
            word = tl.load(at + w, mask=(bits & 1) != 0, other=0).to(tl.int32)[:, :, None]
            code |= ((word >> k) & 1) << (bits & 14)[:, :, None]
        # A coordinate that is none finds entry 0, which is 0.
        levels = tl.load(tables + tl.load(table_at + near)[:, None, None] + code)
        return tl.reshape(levels, (C, 64))

    @triton.jit
    def _factor(scales, h, b, SCALED: tl.constexpr):
        """Factors of a block's tokens: float32 (64,)."""
        if SCALED:
            block = tl.load(scales + b).to(tl.pointer_type(tl.float16))
            return tl.load(block + h * 64 + tl.arange(0, 64)).to(tl.float32)
        else:
            return tl.full((64,), 1.0, tl.float32)

    @triton.jit
    def _score(
        q, unit, constant, mask, scores, n_tokens, n_blocks, n_queries,
        places, scales, bits, at, table_at, tables,
        turned, base, turn, basis, mean, key_unit,
        n: tl.constexpr, RUN: tl.constexpr, C: tl.constexpr, P: tl.constexpr, PLANES: tl.constexpr,
        FOLDED: tl.constexpr, TURNED: tl.constexpr, MASKED: tl.constexpr, SCALED: tl.constexpr,
    ):  # fmt: skip
        """Scores of a run of blocks of one head and 8 queries, −∞ where a token is not seen.

        FOLDED: q, float16 (n_heads, n_tiles, 16, n), are queries in coordinates, the second eight what rounding the first left.
        TURNED: turned, float32 (n_heads, n_tiles, 2, 8, P), are queries in pairs of channels, met by keys that turn.
        """
        h, run, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
        n_tiles = tl.num_programs(2)
        g, rows, c, t = tl.arange(0, 8), tl.arange(0, 16), tl.arange(0, C), tl.arange(0, 64)
        row = (h * n_tiles + tile) * 8 + g
        units, middle = tl.load(unit + row), tl.load(constant + row)
        if TURNED:
            p = tl.arange(0, P)
            cosine = tl.load(turn + p[:, None] * 64 + t[None, :])
            sine = tl.load(turn + (P + p[:, None]) * 64 + t[None, :])
            mean_a, mean_b = tl.load(mean + 2 * h * P + p), tl.load(mean + (2 * h + 1) * P + p)
            pair = ((h * n_tiles + tile) * 2 * 8 + g[:, None]) * P + p[None, :]
            q_a, q_b = tl.load(turned + pair), tl.load(turned + pair + 8 * P)
            key = tl.load(key_unit + h)
        for k in range(RUN):
            b = tl.minimum(run * RUN + k, n_blocks - 1)  # one that is no more is done again, and written once more
            factor = _factor(scales, h, b, SCALED)
            plain = tl.zeros((16, 64), tl.float32)
            if TURNED:
                a_, b_ = tl.zeros((P, 64), tl.float32), tl.zeros((P, 64), tl.float32)
            for first in range(0, n, C):
                levels = _levels(places, bits, at, table_at, tables, h, b, first, n, C, PLANES)
                if FOLDED:
                    part = tl.load(q + ((h * n_tiles + tile) * 16 + rows[:, None]) * n + first + c[None, :])
                    plain = tl.dot(part, levels, plain)
                if TURNED:
                    there = (2 * h * P + p[:, None]) * n + first + c[None, :]
                    a_ = tl.dot(tl.load(basis + there), levels, a_)
                    b_ = tl.dot(tl.load(basis + there + P * n), levels, b_)
            found = tl.sum(tl.reshape(plain, (2, 8, 64)), 0) * units[:, None] * factor[None, :] + middle[:, None]
            if TURNED:
                a_ = a_ * factor[None, :] + mean_a[:, None]
                b_ = b_ * factor[None, :] + mean_b[:, None]
                by = tl.load(base + 2 * b * P + p)[None, :], tl.load(base + (2 * b + 1) * P + p)[None, :]
                x, y = q_a * by[0] + q_b * by[1], q_b * by[0] - q_a * by[1]
                first_half = (a_ * cosine - b_ * sine).to(tl.float16)
                other_half = (a_ * sine + b_ * cosine).to(tl.float16)
                met = tl.dot(_two(x, P), first_half)
                met = tl.dot(_two(y, P), other_half, met)
                most = tl.load(unit + tl.num_programs(0) * n_tiles * 8 + row)  # of the queries in pairs
                found += tl.sum(tl.reshape(met, (2, 8, 64)), 0) * (most * key)[:, None]
            seen = b * 64 + t < n_tokens
            if MASKED:
                seen = seen & (tl.load(mask + b * 64 + t, mask=seen, other=0) != 0)
            found = tl.where(seen[None, :], found, float("-inf"))
            line = tile * 8 + g
            where = scores + ((h * n_queries + line[:, None]).to(tl.int64) * n_blocks + b) * 64 + t[None, :]
            tl.store(where, found, mask=(line[:, None] < n_queries) & (t[None, :] >= 0))

    @triton.jit
    def _two(x, P: tl.constexpr):
        """float32 (8, P) of size 1 or less as two float16 that add up: (16, P)."""
        high = x.to(tl.float16)
        low = (x - high.to(tl.float32)).to(tl.float16)
        return tl.reshape(tl.trans(tl.join(high, low), (2, 0, 1)), (16, P))

    @triton.jit
    def _mix(
        scores, m, n_blocks, n_queries, n_runs,
        places, scales, bits, at, table_at, tables, acc, mass,
        n: tl.constexpr, RUN: tl.constexpr, C: tl.constexpr, G: tl.constexpr, PLANES: tl.constexpr, SCALED: tl.constexpr,
    ):  # fmt: skip
        """Levels of C coordinates summed over a run of blocks under the weights of G queries."""
        h, run = tl.program_id(0), tl.program_id(1)
        chunk, tile = tl.program_id(2) % (n // C), tl.program_id(2) // (n // C)
        g, c, t = tile * G + tl.arange(0, G), tl.arange(0, C), tl.arange(0, 64)
        here = g < n_queries
        line = (h * n_queries + g).to(tl.int64)
        best = tl.load(m + line, mask=here, other=0.0)
        low = tl.where(best == float("-inf"), 0.0, best)
        total, sum_ = tl.zeros((G, C), tl.float32), tl.zeros((G,), tl.float32)
        for k in range(RUN):
            there = run * RUN + k < n_blocks
            b = tl.minimum(run * RUN + k, n_blocks - 1)
            at_scores = scores + (line[:, None] * n_blocks + b) * 64 + t[None, :]
            found = tl.load(at_scores, mask=here[:, None] & (t[None, :] >= 0) & there, other=float("-inf"))
            weight = tl.exp(found - low[:, None])
            sum_ += tl.sum(weight, 1)
            factor = tl.where(t >= 0, _factor(scales, h, b, SCALED), 0.0)
            weight = tl.where(weight > 0, weight * factor[None, :], 0.0)
            levels = _levels(places, bits, at, table_at, tables, h, b, chunk * C, n, C, PLANES)
            total = tl.dot(weight.to(tl.float16), tl.trans(levels), total)
        row = (h * n_runs + run) * n_queries + g
        tl.store(acc + row[:, None] * n + chunk * C + c[None, :], total, mask=here[:, None] & (c[None, :] >= 0))
        if chunk == 0:
            tl.store(mass + row, sum_, mask=here)


def attend_triton(
    q: torch.Tensor,
    keys: DeviceCoded,
    values: DeviceCoded,
    n_tokens: int,
    mask: torch.Tensor | None = None,
    rope: DeviceRope | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """acc (n_heads, n_queries, d), m and mass (n_heads, n_queries), all float32; arguments as in `attend`, on one device."""
    import torch

    if not has_triton():
        raise BadConfig("Triton is not installed; laconic.kernels.attend needs none")
    k, v = keys.decoder, values.decoder
    n_heads, d = k.mean.shape
    if q.ndim != 3 or q.dtype != torch.float32 or (q.shape[0], q.shape[2]) != (n_heads, d) or len(v.mean) != n_heads:
        raise BadInput(f"queries are {q.dtype}{tuple(q.shape)}; float32 ({n_heads}, n_queries, {d}) is right")
    room = min(len(c.places) * BLOCK for c in (keys, values))
    if not 0 <= n_tokens <= room or (mask is not None and (mask.shape != (n_tokens,) or mask.dtype != torch.uint8)):
        raise BadInput(f"{n_tokens} tokens in pages that hold {room}, and a mask of uint8({n_tokens},), are right")
    n_queries = q.shape[1]
    if n_tokens == 0:
        m = q.new_full((n_heads, n_queries), float("-inf"))
        return q.new_zeros(n_heads, n_queries, v.mean.shape[1]), m, torch.zeros_like(m)
    scores = _scored(q, keys, n_tokens, mask, rope)
    m = scores.amax(-1)
    n_blocks, n = scores.shape[-1] // BLOCK, v.bits.shape[1]
    n_runs, tile = -(-n_blocks // _MIXED_RUN), 16
    acc = q.new_empty(n_heads, n_runs, n_queries, n)
    mass = q.new_empty(n_heads, n_runs, n_queries)
    _mix[(n_heads, n_runs, n // _CHUNK * -(-n_queries // tile))](
        scores, m, n_blocks, n_queries, n_runs, *_read(values), acc, mass, n=n,
        RUN=_MIXED_RUN, C=_CHUNK, G=tile, PLANES=v.planes, SCALED=values.scales.numel() > 0, num_warps=_MIXED_WARPS,
    )  # fmt: skip
    mass = mass.sum(1)
    return torch.baddbmm(mass[..., None] * v.mean[:, None], acc.sum(1), v.basis), m, mass


def _read(coded: DeviceCoded) -> tuple:
    d = coded.decoder
    return coded.places, coded.scales, d.bits, d.at, d.table_at, d.tables


def _scored(
    q: torch.Tensor, keys: DeviceCoded, n_tokens: int, mask: torch.Tensor | None, rope: DeviceRope | None
) -> torch.Tensor:
    """(n_heads, n_queries, 64 · n_blocks) float32."""
    import torch

    d = keys.decoder
    n_heads, n_queries, _ = q.shape
    n_blocks, n_tiles = -(-n_tokens // BLOCK), -(-n_queries // _QUERIES)
    here = torch.nn.functional.pad(q, (0, 0, 0, n_tiles * _QUERIES - n_queries))
    turned = base = here
    unit_of_pairs = None
    if rope is not None:
        a, b = here[:, :, rope.first_of], here[:, :, rope.second_of]
        # A turned query is no longer than √2 of its greatest pair.
        unit_of_pairs = torch.maximum(a.abs(), b.abs()).amax(-1).mul(2**0.5).clamp(min=1e-30)
        wide = rope.turn.shape[1]
        turned = torch.nn.functional.pad(
            torch.stack([a, b]) / unit_of_pairs[..., None], (0, wide - a.shape[-1])
        )  # (2, n_heads, n_tiles · 8, P)
        turned = turned.reshape(2, n_heads, n_tiles, _QUERIES, wide).permute(1, 2, 0, 3, 4).contiguous()
        at = torch.arange(n_blocks, device=q.device, dtype=torch.float64) * BLOCK + rope.first
        angle = at[:, None] * rope.inv_freq
        base = torch.zeros(n_blocks, 2, wide, device=q.device)
        base[:, 0, : len(rope.inv_freq)], base[:, 1, : len(rope.inv_freq)] = angle.cos(), angle.sin()
        here = torch.zeros_like(here).index_copy(2, rope.rest, here[:, :, rope.rest])
    folded = here @ d.basis.mT
    constant = (here @ d.mean[:, :, None]).squeeze(-1).contiguous()
    unit = folded.abs().amax(-1).clamp(min=1e-30)
    part = folded / unit[..., None]
    high = part.half()
    both = torch.stack([high, (part - high.float()).half()])
    both = both.reshape(2, n_heads, n_tiles, _QUERIES, -1).permute(1, 2, 0, 3, 4).contiguous()
    units = (unit if unit_of_pairs is None else torch.stack([unit, unit_of_pairs])).contiguous()
    scores = q.new_empty(n_heads, n_queries, n_blocks * BLOCK)
    tables = (turned, base) if rope is None else (turned, base, rope.turn, rope.basis, rope.mean, rope.unit)
    _score[(n_heads, -(-n_blocks // _RUN), n_tiles)](
        both, units, constant, q if mask is None else mask.contiguous(), scores, n_tokens, n_blocks, n_queries,
        *_read(keys), *(tables + (q,) * (6 - len(tables))), n=d.bits.shape[1],
        RUN=_RUN, C=_CHUNK, P=16 if rope is None else rope.turn.shape[1], PLANES=d.planes,
        FOLDED=rope is None or len(rope.rest) > 0, TURNED=rope is not None, MASKED=mask is not None,
        SCALED=keys.scales.numel() > 0, num_warps=_WARPS,
    )  # fmt: skip
    return scores
