"""`laconic bench kv`: one token's attention over a compressed history beside torch's over a bfloat16 cache.

Torch's is the fastest of three ways to ask for the same: `scaled_dot_product_attention` with `enable_gqa`, the same with a key
head's queries seen as rows, and two matrix products with a softmax between. Ours and theirs are timed in turns. Codes are
random, as the time does not depend on what they say; scales (one float16 a vector) are read, synthesis is dense.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from .rows import Measurement, Row, median_seconds, ratio

if TYPE_CHECKING:
    from ..kernels.attend import Coded

HEADS, QUERIES = 8, 4  # of keys, and of queries for each
SIZES = (64, 128)
CONTEXTS = (16_384, 65_536)
THREADS = 2
PAGE_BLOCKS = 16
TURNS = 9
TARGET = 2.0
MIXED = np.array([6, 5, 5, 4, 4, 4, 4, 4, 4, 4, 3, 3, 3, 3, 2, 2], np.uint8)  # as a water-filling over a spectrum gives


def _coded(bits: np.ndarray, size: int, n_tokens: int) -> Coded:
    """A history of random codes. bits: uint8 (size,), the same in every head."""
    from ..kernels.attend import Coded, Decoder

    rng = np.random.default_rng(0)
    bits = np.tile(bits, (HEADS, 1))
    levels = [[np.sort(rng.standard_normal(1 << int(b))) for b in row] for row in bits]
    synthesis = np.linalg.qr(rng.standard_normal((HEADS, size, size)))[0].astype(np.float32)
    decoder = Decoder.of(bits, levels, synthesis, rng.standard_normal((HEADS, size)).astype(np.float32))
    n_pages = -(-n_tokens // (64 * PAGE_BLOCKS))
    pages = [rng.integers(0, 256, PAGE_BLOCKS * decoder.block_bytes, dtype=np.uint8) for _ in range(n_pages)]
    scales = [rng.uniform(0.5, 1.5, (HEADS, 64 * PAGE_BLOCKS)).astype(np.float16) for _ in range(n_pages)]
    return Coded.of(decoder, pages, PAGE_BLOCKS, scales)


def _torch(size: int, n_tokens: int) -> tuple[Callable[[], object], str]:
    """The fastest of torch's ways over a bfloat16 cache, and its name."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attention

    torch.set_num_threads(THREADS)
    keys, values = (torch.randn(1, HEADS, n_tokens, size).bfloat16() for _ in range(2))
    q = torch.randn(1, HEADS, QUERIES, size).bfloat16()
    one = q.reshape(1, HEADS * QUERIES, 1, size)
    ways = {
        "torch, bfloat16, enable_gqa": lambda: attention(one, keys, values, enable_gqa=True),
        "torch, bfloat16, queries as rows": lambda: attention(q, keys, values),
        "torch, bfloat16, products": lambda: torch.softmax(q @ keys.transpose(-1, -2) * size**-0.5, -1) @ values,
    }

    def quietly(way: Callable[[], object]) -> object:
        with torch.inference_mode():
            return way()

    name = min(ways, key=lambda n: median_seconds(partial(quietly, ways[n]), 3))
    return partial(quietly, ways[name]), name


def _beside(name: str, ours: Callable[[], object], peer: Callable[[], object], by: str, target: bool) -> Iterator[Row]:
    fast, slow = ratio(ours, peer, TURNS)
    yield Row(name, 1e3 * fast, "ms", by, 1e3 * slow)
    yield Row(f"{name}: times faster", slow / fast, "×", target=(">=", TARGET) if target else None)


def attention(turned: bool) -> Iterator[Row]:
    """One token, every size and context; `turned`: keys that were stored before RoPE."""
    from ..kernels.attend import Rope, attend

    for size in SIZES:
        inv_freq = (500_000.0 ** -(np.arange(size // 2) / (size // 2))).astype(np.float32)
        q = np.random.default_rng(1).standard_normal((HEADS, QUERIES, size)).astype(np.float32) / np.float32(size**0.5)
        mixed = np.tile(MIXED, size // len(MIXED))
        for n_tokens in CONTEXTS:
            peer, by = _torch(size, n_tokens)
            for label, bits in (*((f"{b} bits", np.full(size, b, np.uint8)) for b in (4, 3, 2)), ("mixed bits", mixed)):
                coded = _coded(bits, size, n_tokens)
                rope = Rope.of(coded.decoder, inv_freq) if turned else None
                name = f"attention{', keys before RoPE' * turned}, d={size}, {n_tokens // 1024} k, {label}"
                ours = partial(attend, q, coded, coded, n_tokens, None, rope, THREADS)
                yield from _beside(name, ours, peer, by, label == "4 bits")


def _graphed(f: Callable[[], object]) -> float:
    """Median seconds of a call on the GPU, replayed from a graph, so that launches cost nothing."""
    import torch

    with torch.inference_mode():
        for _ in range(3):
            f()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            f()
        found = []
        for _ in range(20):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            found.append(start.elapsed_time(end) / 1e3)
    return float(np.median(found))


def on_gpu() -> Iterator[Row]:
    """The same on a GPU, where there is one: both sides replayed from a graph."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    from ..kernels.attend import Rope
    from ..kernels.triton_attend import DeviceRope, attend_triton, has_triton, on_device

    if not torch.cuda.is_available() or not has_triton():
        print("no GPU here, or no Triton: attention on a GPU is not measured", file=sys.stderr)
        return
    device = torch.cuda.get_device_name()
    for size in SIZES:
        inv_freq = (500_000.0 ** -(np.arange(size // 2) / (size // 2))).astype(np.float32)
        mixed = np.tile(MIXED, size // len(MIXED))
        q = torch.randn(HEADS, QUERIES, size, device="cuda") * size**-0.5
        for n_tokens in CONTEXTS:
            k, v = (torch.randn(1, HEADS, n_tokens, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
            rows = q[None].bfloat16()
            one = rows.reshape(1, HEADS * QUERIES, 1, size)
            ways = {
                "torch, bfloat16, enable_gqa": partial(sdpa, one, k, v, enable_gqa=True),
                "torch, bfloat16, queries as rows": partial(sdpa, rows, k, v),
            }
            times = {name: _graphed(way) for name, way in ways.items()}
            by = min(times, key=times.__getitem__)
            for label, bits in (*((f"{b} bits", np.full(size, b, np.uint8)) for b in (4, 3, 2)), ("mixed bits", mixed)):
                coded = _coded(bits, size, n_tokens)
                there = on_device(coded, "cuda")
                turn = DeviceRope.of(there.decoder, Rope.of(coded.decoder, inv_freq))
                for what, rope in (("", None), (", keys before RoPE", turn)):
                    name = f"attention on {device}{what}, d={size}, {n_tokens // 1024} k, {label}"
                    ours = _graphed(partial(attend_triton, q, there, there, n_tokens, None, rope))
                    yield Row(name, 1e3 * ours, "ms", by, 1e3 * times[by])
                    yield Row(f"{name}: times faster", times[by] / ours, "×")


def appending() -> Iterator[Row]:
    """Finding codes and laying them out: what a token costs when it joins the history, one thread."""
    from ..kernels.coordinates import Thresholds, pack_heads, quantize_coordinates, unpack_heads

    rng, n = np.random.default_rng(0), 4096
    for size in SIZES:
        for b in (2, 3, 4, 8):
            y = rng.standard_normal((HEADS * n, size)).astype(np.float32)
            thresholds = Thresholds.of([np.sort(rng.standard_normal((1 << b) - 1)).astype(np.float32)] * size)
            bits = np.full((HEADS, size), b, np.uint8)
            index = quantize_coordinates(y, thresholds).reshape(HEADS, n, size)
            codes = pack_heads(index, bits)
            for what, f, least in (
                ("codes found", partial(quantize_coordinates, y, thresholds), 100 if b <= 4 else None),
                ("codes packed", partial(pack_heads, index, bits), 200),
                ("codes unpacked", partial(unpack_heads, codes, bits, n), 200),
            ):
                speed = y.size / median_seconds(f, TURNS) / 1e6
                yield Row(f"{what}, d={size}, {b} bits", speed, "Mvalue/s", target=(">=", least) if least else None)


SUITE = (
    Measurement("attention", partial(attention, False)),
    Measurement("attention, keys before RoPE", partial(attention, True)),
    Measurement("on a GPU", on_gpu),
    Measurement("codes of new tokens", appending),
)
