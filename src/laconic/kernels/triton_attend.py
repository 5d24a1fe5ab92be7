"""`laconic.kernels.attend` for keys as they are stored, on a GPU: one program a head and run of blocks, merged in order.

    acc, m, mass = attend_triton(q, on_device(keys, "cuda"), on_device(values, "cuda"), n_tokens, mask=None)

The layout, the formulas and the merging are those of `laconic.kernels.attend`; levels, queries and weights stay float32, so
results are within 10⁻⁵ of the plain twin's. A program holds the levels of 64 tokens of one head in registers: a code is put
together from its planes by masks, whatever bits its coordinate has, and looked up in the coordinate's table.

Needs Triton (and runs without a GPU where TRITON_INTERPRET=1 is set before it is imported).
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from laconic.core.errors import BadConfig, BadInput
from laconic.kernels.attend import Coded
from laconic.kernels.coordinates import BLOCK

if TYPE_CHECKING:
    import torch

__all__ = ["DeviceCoded", "attend_triton", "has_triton", "on_device"]

_RUN = 8  # blocks of a program
_QUERIES = 16  # the least number of rows that a matrix product of Triton has


class DeviceCoded(NamedTuple):
    """A `Coded` on a device. places, scales: int64 addresses there of the pages `kept`, which may be kept and grown instead.

    bits, at, table_at: int32 (n_heads, r), a coordinate's place in a block and in `tables` (float32). sizes, head_at: int64
    (n_heads,), bytes of a head's block and of a block of the heads before it.
    """

    places: torch.Tensor
    scales: torch.Tensor
    page_blocks: int
    bits: torch.Tensor
    at: torch.Tensor
    table_at: torch.Tensor
    tables: torch.Tensor
    sizes: torch.Tensor
    head_at: torch.Tensor
    synthesis: torch.Tensor
    mean: torch.Tensor
    kept: tuple = ()


def has_triton() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None


def on_device(coded: Coded, device: torch.device | str) -> DeviceCoded:
    """Pages and decoder of a `Coded.of`, copied."""
    import torch

    decoder = coded.decoder
    bits = decoder.bits.astype(np.int64)
    sizes = 8 * bits.sum(1)
    rows = [x for head in decoder.rows() for x in head]
    tables = [x if b else np.zeros(1) for x, b in zip(rows, bits.reshape(-1), strict=True)]
    lengths = np.array([len(x) for x in tables])
    starts = (np.cumsum(lengths) - lengths).reshape(bits.shape)
    flat = np.concatenate(tables)

    def moved(x: np.ndarray, kind: torch.dtype) -> torch.Tensor:
        return torch.as_tensor(np.ascontiguousarray(x)).to(device=device, dtype=kind, copy=True)

    pages, scales = (
        [moved(a, kind) for a in part] for part, kind in zip(coded.kept, (torch.uint8, torch.float16), strict=True)
    )
    places = ([p.data_ptr() for p in part] for part in (pages, scales))
    return DeviceCoded(
        *(torch.tensor(p, dtype=torch.int64, device=device) for p in places),
        coded.page_blocks,
        moved(bits, torch.int32),
        moved(8 * (np.cumsum(bits, 1) - bits), torch.int32),
        moved(starts, torch.int32),
        moved(flat, torch.float32),
        moved(sizes, torch.int64),
        moved(decoder.head_at, torch.int64),
        moved(decoder.synthesis, torch.float32),
        moved(decoder.mean, torch.float32),
        (tuple(pages), tuple(scales)),
    )


if has_triton():
    import triton
    import triton.language as tl

    @triton.jit
    def _plane(base, bits, t, width: tl.constexpr):
        """The bits that one plane adds to the codes of 64 tokens: int32 (R, 64)."""
        if width == 1:
            byte, shift = t // 8, t % 8
        else:
            byte, shift = t % (8 * width), t // (8 * width) * width
        low = bits & (16 - 2 * width)  # the wider planes come before
        there = (bits & width) != 0
        found = tl.load(base + 8 * low + byte, mask=there & (t >= 0), other=0).to(tl.int32)
        return ((found >> shift) & ((1 << width) - 1)) << low

    @triton.jit
    def _levels(places, page_blocks, sizes, head_at, bits_at, code_at, table_at, tables, h, b, r, R: tl.constexpr):
        """Levels of a block: float32 (R, 64)."""
        j = tl.arange(0, R)
        near = h * r + j
        bits = tl.load(bits_at + near, mask=j < r, other=0)[:, None]
        page = tl.load(places + b // page_blocks).to(tl.pointer_type(tl.uint8))
        start = page_blocks * tl.load(head_at + h) + (b % page_blocks) * tl.load(sizes + h)
        base = page + start + tl.load(code_at + near, mask=j < r, other=0)[:, None]
        t = tl.arange(0, 64)[None, :]
        code = _plane(base, bits, t, 8) | _plane(base, bits, t, 4) | _plane(base, bits, t, 2) | _plane(base, bits, t, 1)
        table = tl.load(table_at + near, mask=j < r, other=0)[:, None]
        return tl.load(tables + table + code, mask=(bits > 0) & (t >= 0), other=0.0)

    @triton.jit
    def _factor(scales, page_blocks, h, b, SCALED: tl.constexpr):
        """Factors of a block's tokens: float32 (64,)."""
        if SCALED:
            page = tl.load(scales + b // page_blocks).to(tl.pointer_type(tl.float16))
            at = (page_blocks * h + b % page_blocks) * 64 + tl.arange(0, 64)
            return tl.load(page + at).to(tl.float32)
        else:
            return tl.full((64,), 1.0, tl.float32)

    @triton.jit
    def _run(
        q, constant, mask, n_tokens, n_queries,
        k_places, k_scales, k_blocks, k_bits, k_at, k_table_at, k_tables, k_sizes, k_head_at, k_r,
        v_places, v_scales, v_blocks, v_bits, v_at, v_table_at, v_tables, v_sizes, v_head_at, v_r,
        acc, m, mass, n_runs,
        RUN: tl.constexpr, G: tl.constexpr, KR: tl.constexpr, VR: tl.constexpr,
        MASKED: tl.constexpr, K_SCALED: tl.constexpr, V_SCALED: tl.constexpr,
    ):  # fmt: skip
        """One run of blocks of one head and G queries, by the running softmax. q: (n_heads, n_queries, k_r) in coordinates."""
        h, run, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
        g = tile * G + tl.arange(0, G)
        j, i, t = tl.arange(0, KR), tl.arange(0, VR), tl.arange(0, 64)
        here = (g[:, None] < n_queries) & (j[None, :] < k_r)
        query = tl.load(q + (h * n_queries + g)[:, None] * k_r + j[None, :], mask=here, other=0.0)
        middle = tl.load(constant + h * n_queries + g, mask=g < n_queries, other=0.0)
        best = tl.full((G,), float("-inf"), tl.float32)
        sum_ = tl.zeros((G,), tl.float32)
        total = tl.zeros((G, VR), tl.float32)
        for b in range(run * RUN, tl.minimum((run + 1) * RUN, (n_tokens + 63) // 64)):
            levels = _levels(k_places, k_blocks, k_sizes, k_head_at, k_bits, k_at, k_table_at, k_tables, h, b, k_r, KR)
            scores = tl.dot(query, levels, input_precision="ieee")
            scores = scores * _factor(k_scales, k_blocks, h, b, K_SCALED)[None, :] + middle[:, None]
            seen = b * 64 + t < n_tokens
            if MASKED:
                seen = seen & (tl.load(mask + b * 64 + t, mask=seen, other=0) != 0)
            scores = tl.where(seen[None, :], scores, float("-inf"))
            new = tl.maximum(best, tl.max(scores, 1))
            low = tl.where(new == float("-inf"), 0.0, new)
            weight = tl.exp(scores - low[:, None])
            old = tl.exp(best - low)
            sum_ = sum_ * old + tl.sum(weight, 1)
            factor = tl.where(seen, _factor(v_scales, v_blocks, h, b, V_SCALED), 0.0)
            levels = _levels(v_places, v_blocks, v_sizes, v_head_at, v_bits, v_at, v_table_at, v_tables, h, b, v_r, VR)
            mixed = tl.dot(weight * factor[None, :], tl.trans(levels), input_precision="ieee")
            total = total * old[:, None] + mixed
            best = new
        row = (h * n_runs + run) * n_queries + g
        tl.store(m + row, best, mask=g < n_queries)
        tl.store(mass + row, sum_, mask=g < n_queries)
        here = (g[:, None] < n_queries) & (i[None, :] < v_r)
        tl.store(acc + row[:, None] * v_r + i[None, :], total, mask=here)


def attend_triton(
    q: torch.Tensor, keys: DeviceCoded, values: DeviceCoded, n_tokens: int, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """acc (n_heads, n_queries, d), m and mass (n_heads, n_queries), all float32; arguments as in `attend`, on one device."""
    import torch

    if not has_triton():
        raise BadConfig("Triton is not installed; laconic.kernels.attend needs none")
    n_heads, d = keys.mean.shape
    if (
        q.ndim != 3
        or q.dtype != torch.float32
        or (q.shape[0], q.shape[2]) != (n_heads, d)
        or len(values.mean) != n_heads
    ):
        raise BadInput(f"queries are {q.dtype}{tuple(q.shape)}; float32 ({n_heads}, n_queries, {d}) is right")
    room = min(len(c.places) * c.page_blocks * BLOCK for c in (keys, values))
    if not 0 <= n_tokens <= room or (mask is not None and (mask.shape != (n_tokens,) or mask.dtype != torch.uint8)):
        raise BadInput(f"{n_tokens} tokens in pages that hold {room}, and a mask of uint8({n_tokens},), are right")
    n_queries, n_runs = q.shape[1], max(1, -(-n_tokens // (_RUN * BLOCK)))
    folded = (q @ keys.synthesis.mT).contiguous()
    constant = (q @ keys.mean[:, :, None]).squeeze(-1).contiguous()
    r = values.bits.shape[1]
    acc = q.new_empty(n_heads, n_runs, n_queries, r)
    m, mass = q.new_empty(2, n_heads, n_runs, n_queries)
    sides = [
        (c.places, c.scales, c.page_blocks, c.bits, c.at, c.table_at, c.tables, c.sizes, c.head_at, c.bits.shape[1])
        for c in (keys, values)
    ]
    _run[(n_heads, n_runs, -(-n_queries // _QUERIES))](
        folded, constant, q if mask is None else mask.contiguous(), n_tokens, n_queries, *sides[0], *sides[1],
        acc, m, mass, n_runs, RUN=_RUN, G=_QUERIES,
        KR=max(16, triton.next_power_of_2(keys.bits.shape[1])), VR=max(16, triton.next_power_of_2(r)),
        MASKED=mask is not None, K_SCALED=keys.scales.numel() > 0, V_SCALED=values.scales.numel() > 0,
    )  # fmt: skip
    best = m.amax(1)
    weight = (m - best.nan_to_num(neginf=0.0)[:, None]).exp()
    mass = (weight * mass).sum(1)
    acc = (weight[..., None] * acc).sum(1) @ values.synthesis
    return acc + mass[..., None] * values.mean[:, None], best, mass
