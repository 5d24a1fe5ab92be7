"""What a cache does to a process: memory that it holds, the most while it is used, and tokens a second.

Each measurement runs in a fresh process, whose memory is read from the kernel: nothing is computed. The model has the shape of
a 1 B Llama and random weights; the cache is filled layer by layer with random keys and values, so that no long forward
pass is needed.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import BadConfig, CodecError

if TYPE_CHECKING:
    import torch

SHAPE = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8,
         "head_dim": 64, "vocab_size": 4096}  # fmt: skip
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Job:
    """cache: a spec of `kv_caches`. steps: tokens to decode behind the context, 0 to measure memory alone.

    layers: of the model that decodes and of the cache; dtype: of weights, keys and values. all_in: the bits of the spec have
    windows and sinks in them, at this context.
    """

    cache: str
    context: int
    layers: int = 16
    steps: int = 0
    dtype: str = "bfloat16"
    threads: int = 2
    all_in: bool = False

    def __post_init__(self) -> None:
        if min(self.context, self.layers, self.threads) < 1 or self.steps < 0:
            raise BadConfig(f"{self}: context, layers and threads are 1 or more, steps 0 or more")


@dataclass(frozen=True)
class Occupied:
    """Bytes of the process over what it held before. held: behind the fill; peak: the most while filling, and decoding.

    said: what the cache says that it holds; n_values: keys and values in it; seconds: of a decoded token, median, or None.
    """

    held: int
    peak: int
    said: int
    n_values: int
    fill_seconds: float
    seconds: float | None


def in_fresh_process(job: Job) -> Occupied:
    """Measure in a process that does nothing else.

    Raises
    ------
    BadConfig: a system without /proc, where a process cannot read its memory.
    CodecError: the process failed; the message has the end of what it printed.
    """
    if not STATUS.exists():
        raise BadConfig(f"{STATUS} is not there; the memory of a process can be read on Linux alone")
    done = subprocess.run(
        [sys.executable, "-m", "laconic.bench.kv_process", json.dumps(asdict(job))], capture_output=True, text=True
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise CodecError(f"{job.cache} at {job.context:,} tokens: {' | '.join(done.stderr.strip().splitlines()[-3:])}")
    return Occupied(**json.loads(lines[-1]))


def measure(job: Job) -> Occupied:
    """In this process; what a first use loads and compiles is in memory before the count begins."""
    import torch
    from transformers import LlamaConfig

    from ..sources.kv.occupied import true_bytes
    from .kv_caches import maker, parse

    torch.set_num_threads(job.threads)
    dtype = getattr(torch, job.dtype)
    config = LlamaConfig(num_hidden_layers=job.layers, max_position_embeddings=2 * job.context, **SHAPE)
    model = _model(config, dtype) if job.steps else None
    (spec,) = parse(job.cache)
    make = maker(spec, config if model is None else model, context=job.context if job.all_in else None)
    with torch.inference_mode():
        first = make()
        fill(
            first, config, job.context, dtype
        )  # as long as the next: libraries' work space grows with what they are given
        _decode(model, first, 2)
        del first
        base = _settled()
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        start = time.perf_counter()
        cache = make()
        n_values = fill(cache, config, job.context, dtype)
        filled = time.perf_counter() - start
        held = _settled() - base
        seconds = _decode(model, cache, job.steps)
        peak = status("VmHWM") - base
    return Occupied(held, peak, true_bytes(cache), n_values, filled, seconds)


def fill(cache: Any, config: Any, n_tokens: int, dtype: torch.dtype) -> int:
    """Put random keys and values into every layer at once, and count them. Channels have unlike scales, as in real heads.

    The model's own attention is named meanwhile, so that a cache whose attention reads codes stores all that it is given.
    """
    import torch

    before = config._attn_implementation
    config._attn_implementation = "sdpa"
    n = 0
    for layer in range(config.num_hidden_layers):
        g = torch.Generator().manual_seed(layer)
        shape = (1, config.num_key_value_heads, n_tokens, config.head_dim)
        scale = torch.randn(2, shape[1], 1, shape[3], generator=g).exp()
        keys, values = (scale[i] * torch.randn(shape, generator=g) for i in range(2))
        cache.update(keys.to(dtype), values.to(dtype), layer)
        n += keys.numel() + values.numel()
    config._attn_implementation = before
    return n


def _model(config: Any, dtype: torch.dtype) -> Any:
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(dtype).eval()


def _decode(model: Any, cache: Any, steps: int) -> float | None:
    """Median seconds of a step, one token each."""
    import torch

    if model is None or not steps:
        return None
    times = []
    for i in range(steps):
        start = time.perf_counter()
        model(input_ids=torch.tensor([[i % 100]]), past_key_values=cache, use_cache=True)
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def _settled() -> int:
    """Resident bytes once garbage is collected and freed memory is given back."""
    import ctypes

    gc.collect()
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return status("VmRSS")


def status(field: str) -> int:
    """Bytes that the kernel says of this process, such as VmRSS, what it holds, and VmHWM, the most that it held."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise BadConfig(f"{STATUS} has no {field}")


if __name__ == "__main__":
    print(json.dumps(asdict(measure(Job(**json.loads(sys.argv[1]))))))
