"""What a job will need, before it is begun: memory, disk and time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .compress import Run

# Rates of one core of 2024 (AVX-512), measured on matrices of 256 to 1,024 columns: an order of magnitude, not a promise.
PRODUCT_FLOPS = 3e10  # of forward passes and moments
CODE_VALUES = 1e6  # per second and pass of the trellis at 256 states, and of a GPTQ sweep
FLOOR_BYTES = 450 << 20  # the interpreter with torch, transformers and the compiled kernels


@dataclass(frozen=True)
class Forecast:
    """Units: bytes and seconds.

    blocks: number of blocks; 0 where the model is no chain and is held whole. matrices, parameters: what will be coded.
    kept: parameters that stay as they are. disk_bytes: the work folder at its largest beside the output.
    """

    blocks: int
    matrices: int
    parameters: int
    kept: int
    tokens: int
    peak_bytes: int
    disk_bytes: int
    out_bytes: int
    seconds: float


def forecast(run: Run) -> Forecast:
    """From the shapes alone; nothing is read but headers."""
    net = run.net
    coded = sum(m.n_elements for m in net.matrices)
    every = sum(m.n_elements for m in net.every)
    blocks = [sum(m.n_elements for m in net.below(b)) for b in net.blocks]
    outside = max((m.n_elements for m in net.outside()), default=0)
    largest = max([*blocks, outside, 1])
    ids = [b.get("input_ids") for b in run.batches]
    tokens = sum(int(i.numel()) for i in ids if i is not None)
    per_batch = max((int(i.numel()) for i in ids if i is not None), default=0)
    width = max((min(m.shape) for m in net.matrices), default=1)
    hidden = 4 * tokens * width
    # Weights in float32, their packets' decoded twins while they are coded, moments, and one batch's activations.
    moments = sum({m.shape[1]: 8 * m.shape[1] ** 2 for m in net.matrices}.values())
    peak = (
        FLOOR_BYTES
        + 4 * largest
        + 3 * 4 * max(m.n_elements for m in net.matrices)
        + moments
        + 40 * 4 * per_batch * width
    )
    bits = run.job.bits or run.recipe.nominal
    passes = 2 + 3 * (run.fisher_batches() / max(len(run.batches), 1)) if run.batches else 0
    work = 2 * tokens * coded * passes + sum(2 * tokens * m.shape[1] ** 2 for m in net.matrices)
    sweeps = 3 if run.job.bits is not None else 1
    seconds = (work / PRODUCT_FLOPS + sweeps * coded / CODE_VALUES) / max(run.threads, 1) + 8
    disk = (
        2 * hidden + len(net.blocks) * hidden * run.fisher_batches() // max(len(run.batches), 1) + int(bits * coded / 8)
    )
    return Forecast(
        len(net.blocks),
        len(net.matrices),
        coded,
        every - coded,
        tokens,
        int(peak),
        disk,
        int(bits * coded / 8),
        seconds,
    )
