"""`laconic bench gemv`: products of packed matrices and one vector beside llama.cpp's and torch's, and a decoding step.

Every peer's time is taken in turns with ours. llama.cpp's kernels are called from C (`ggml_gemv.c`), built against the
static libraries of `make peers`; where there are none, the rows stand without that peer, and a line says so.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from .rows import Measurement, Row, ratio

SHAPES = ((4096, 4096), (11008, 4096))
THREADS = (1, 2)
TURNS = 9
HIDDEN, INTERMEDIATE, HEADS, KV_HEADS = 2048, 8192, 32, 8  # of a Llama of 1 B parameters
LAYERS, CONTEXT = 2, 128


@dataclass(frozen=True)
class _Case:
    """A packed format: bits, group, extras; the format of ggml beside it, None for no peer."""

    name: str
    bits: int
    group: int
    peer: str | None = None
    offset: bool = False
    table: bool = False
    activations: str = "int8"


CASES = (
    _Case("4 bits, group 32", 4, 32, "q4_K"),
    _Case("4 bits, group 32, offsets", 4, 32, "q4_K", offset=True),
    _Case("4 bits, group 32, int16 activations", 4, 32, "q4_K", activations="int16"),
    _Case("4 bits, group 64, float32 activations", 4, 64, "q4_K", activations="float32"),
    _Case("4 bits, group 64, any 16 levels, float32 activations", 4, 64, "q4_K", table=True, activations="float32"),
    _Case("3 bits, group 64", 3, 64),
    _Case("2 bits, group 64", 2, 64, "q2_K"),
    _Case("8 bits, one step a row", 8, 4096),
)


def _ggml() -> Path | None:
    """The folder of ggml's static libraries."""
    from .peers import environments

    found = Path(os.environ.get("LACONIC_GGML", environments() / "llama_cpp" / "build" / "ggml" / "src"))
    return found if (found / "libggml-cpu.a").exists() else None


@contextmanager
def _built() -> Iterator[Path | None]:
    """The timing program, or None where there is no ggml or it cannot be built."""
    libraries = _ggml()
    if libraries is None:
        print("no llama.cpp beside these rows: `make peers` builds it, or set LACONIC_GGML", file=sys.stderr)
        yield None
        return
    with TemporaryDirectory() as folder:
        program = Path(folder) / "ggml_gemv"
        source = Path(__file__).with_name("ggml_gemv.c")
        archives = [str(libraries / name) for name in ("libggml-cpu.a", "libggml-base.a")]
        command = ["cc", "-O2", "-fopenmp", str(source), *archives, "-lstdc++", "-lm", "-lpthread", "-o", str(program)]
        built = subprocess.run(command, capture_output=True, text=True)
        if built.returncode:
            print(f"no llama.cpp beside these rows: {built.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        yield program if not built.returncode else None


@contextmanager
def _peer(program: Path, kind: str, shape: tuple[int, int], threads: int) -> Iterator[Callable[[], float]]:
    """A function that returns the peer's seconds for one product."""
    command = [str(program), kind, *map(str, shape), str(threads)]
    env = {**os.environ, "OMP_WAIT_POLICY": "passive"}  # threads that spin would take ours' cores between the turns
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdin is not None and process.stdout is not None

        def seconds() -> float:
            process.stdin.write("\n")
            process.stdin.flush()
            return float(process.stdout.readline())

        yield seconds
        process.stdin.close()


def _seconds(f: Callable[[], object], repeats: int = 5) -> float:
    """Median of some calls in a row, as the peer's program takes it."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _in_turns(ours: Callable[[], object], peer: Callable[[], float]) -> tuple[float, float]:
    """Medians over turns of ours and of the peer's."""
    ours(), peer()
    turns = [(_seconds(ours), peer()) for _ in range(TURNS)]
    return statistics.median(t[0] for t in turns), statistics.median(t[1] for t in turns)


def _random(case: _Case, shape: tuple[int, int], threads: int) -> tuple[Callable[[], object], float]:
    """(a product of our own, its bits a weight in memory)."""
    from ..kernels.gemv import gemv
    from ..kernels.packed import pack

    rng = np.random.default_rng(0)
    codes = rng.integers(0, 1 << case.bits, shape, dtype=np.uint8)
    step = rng.uniform(0.5, 1.5, (shape[0], shape[1] // case.group)).astype(np.float32)
    table = np.sort(rng.standard_normal(1 << case.bits)).astype(np.float32) if case.table else None
    zero = 0 if case.table else 1 << case.bits >> 1
    packed = pack(codes, case.bits, step, -step if case.offset else None, table=table, zero=zero, exact=False)
    x = rng.standard_normal((1, shape[1]), dtype=np.float32)
    return lambda: gemv(packed, x, activations=case.activations, threads=threads), 8 * packed.nbytes / codes.size


def products() -> Iterator[Row]:
    """One vector; milliseconds, and the time over that of llama.cpp's kernels (the faster of its two for q4_K)."""
    with _built() as program:
        for shape in SHAPES:
            for threads in THREADS:
                for case in CASES:
                    ours, bits = _random(case, shape, threads)
                    name = f"{case.name}, {shape[0]}×{shape[1]}, {threads} thread{'s' * (threads > 1)}"
                    kinds = [k for k in ("q4_K", "q4_K repacked", "q2_K") if case.peer and k.startswith(case.peer)]
                    if program is None or not kinds:
                        yield Row(name, 1e3 * _seconds(ours, TURNS), f"ms, {bits:.2f} bits/weight")
                        continue
                    best = (0.0, float("inf"), "")
                    for kind in kinds:
                        with _peer(program, kind, shape, threads) as peer:
                            best = min(best, (*_in_turns(ours, peer), kind), key=lambda t: t[1])
                    yield Row(name, 1e3 * best[0], f"ms, {bits:.2f} bits/weight", f"llama.cpp {best[2]}", 1e3 * best[1])
                    target = ("<=", 1.1) if case is CASES[0] else None
                    yield Row(f"{name}: time over llama.cpp's", best[0] / best[1], "×", target=target)


def beside_torch() -> Iterator[Row]:
    """4 bits in groups of 64 beside torch's product in bfloat16 and its own int4 kernel, one thread."""
    import torch
    from torch.nn.functional import linear

    torch.set_num_threads(1)
    case, shape = _Case("4 bits, group 64", 4, 64), SHAPES[0]
    ours, _ = _random(case, shape, 1)
    weight, x = torch.randn(shape).bfloat16(), torch.randn(shape[1]).bfloat16()
    fast, slow = ratio(ours, lambda: linear(x[None], weight))
    yield Row(f"{case.name}, {shape[0]}×{shape[1]}", 1e3 * fast, "ms", "torch bfloat16 linear", 1e3 * slow)
    if not hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu"):
        return
    codes = torch.randint(0, 16, shape, dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 2)
    side = torch.ones(shape[1] // case.group, shape[0], 2, dtype=torch.bfloat16)
    product = torch.ops.aten._weight_int4pack_mm_for_cpu
    fast, slow = ratio(ours, lambda: product(x[None], packed, case.group, side))
    yield Row(f"{case.name}, {shape[0]}×{shape[1]}", 1e3 * fast, "ms", "torch int4pack", 1e3 * slow)


def trellises() -> Iterator[Row]:
    """Trellis-coded weights decoded in registers, 4096 × 4096, one thread."""
    from ..kernels.gemv_trellis import gemv_trellis, pack_trellis
    from ..quantize.trellis import Trellis

    rng, n = np.random.default_rng(0), 4096
    x = rng.standard_normal((1, n), dtype=np.float32)
    for bits, states in ((2, 1 << 12), (2, 1 << 16), (3, 1 << 12)):
        book = Trellis(float(bits), states=states)
        index = rng.integers(0, 1 << bits, (n, n), dtype=np.uint8)
        packed = pack_trellis(index, book._code(), book.points(), np.ones((n, 1), np.float32), book.length)
        seconds = _seconds(lambda p=packed: gemv_trellis(p, x), TURNS)
        name = f"trellis, {bits} bits, 2^{states.bit_length() - 1} states, {n}×{n}"
        yield Row(name, 1e3 * seconds, "ms")
        yield Row(f"{name}: speed", n * n / seconds / 1e6, "Mvalue/s")


def _layers(make: Callable[[int, int], Callable]) -> list[dict[str, Callable]]:
    """The linear layers of some blocks, each made by make(out, in)."""
    kv = HIDDEN // HEADS * KV_HEADS
    shapes = {"q": (HIDDEN, HIDDEN), "k": (kv, HIDDEN), "v": (kv, HIDDEN), "o": (HIDDEN, HIDDEN),
              "gate": (INTERMEDIATE, HIDDEN), "up": (INTERMEDIATE, HIDDEN), "down": (HIDDEN, INTERMEDIATE)}  # fmt: skip
    return [{name: make(*shape) for name, shape in shapes.items()} for _ in range(LAYERS)]


def decoding() -> Iterator[Row]:
    """One token at a time through two blocks of a 1 B Llama, attention by torch: packed weights beside bfloat16."""
    import torch
    from torch.nn.functional import linear, scaled_dot_product_attention, silu

    from ..sources.weights.linear import PackedLinear

    torch.manual_seed(0)
    size = HIDDEN // HEADS
    cache = [torch.randn(1, KV_HEADS, CONTEXT, size).bfloat16() for _ in range(2)]
    token = torch.randn(1, HIDDEN).bfloat16()

    def packed(bits: int, activations: str) -> Callable[[int, int], Callable]:
        def make(n_out: int, n_in: int) -> Callable:
            levels = np.random.default_rng(0).integers(-(1 << bits - 1), 1 << bits - 1, (n_out, n_in), dtype=np.int8)
            step = np.full((n_out, n_in // 64), 0.01, np.float32)
            return PackedLinear.from_levels(levels, step, exact=False, activations=activations)

        return make

    def dense(n_out: int, n_in: int) -> Callable:
        weight = 0.02 * torch.randn(n_out, n_in).bfloat16()
        return lambda x: linear(x, weight)

    def step(layers: list[dict[str, Callable]]) -> torch.Tensor:
        x = token
        with torch.inference_mode():
            for layer in layers:
                q, k, v = (layer[name](x).view(1, -1, 1, size) for name in ("q", "k", "v"))
                keys, values = (torch.cat(pair, 2) for pair in zip(cache, (k, v), strict=True))
                mixed = scaled_dot_product_attention(q, keys, values, enable_gqa=True)
                x = x + layer["o"](mixed.reshape(1, HIDDEN))
                x = x + layer["down"](silu(layer["gate"](x)) * layer["up"](x))
                x = x / x.float().square().mean().sqrt().to(x.dtype)
        return x

    reference = _layers(dense)
    for bits, activations in ((4, "int8"), (4, "int16"), (4, "float32"), (2, "int16")):
        layers = _layers(packed(bits, activations))
        for threads in THREADS:
            torch.set_num_threads(threads)
            fast, slow = ratio(lambda m=layers: step(m), lambda: step(reference), 2 * TURNS)
            name = f"decode, {LAYERS} blocks, {bits} bits, {activations} activations, {threads} thread{'s' * (threads > 1)}"
            yield Row(name, 1 / fast, "tokens/s", "torch bfloat16", 1 / slow)
            target = (">=", 2.5) if bits == 4 and activations != "float32" else None
            yield Row(f"{name}: speed over bfloat16", slow / fast, "×", target=target)


SUITE = (
    Measurement("packed products", products),
    Measurement("packed products beside torch", beside_torch),
    Measurement("trellis products", trellises),
    Measurement("decoding", decoding),
)
