"""What a job will need, before it is begun: memory, disk and time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .compress import Run

# Measured on one core of 2024 (AVX-512), models of 128 to 256 columns.
START_SECONDS = 8.0  # imports
PRODUCT_FLOPS = 3e10  # of forward passes and moments
CODE_VALUES = 5e5  # per second and pass of the trellis at 256 states, and of a GPTQ sweep
FLOOR_BYTES = 430_000_000  # the interpreter with torch, transformers and a tokenizer
KERNEL_BYTES = 145_000_000  # numba with the kernels of a codec
CODER_BYTES = 48  # for every value of a matrix that is coded, and for every value of its Hessian
BACKWARD = 4  # activations that a pass back holds at once, for each that a pass forward does


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
    import torch

    net = run.net
    coded = sum(m.n_elements for m in net.matrices)
    every = sum(m.n_elements for m in net.every)
    ids = [b.get("input_ids") for b in run.batches]
    tokens = sum(int(i.numel()) for i in ids if i is not None)
    hidden = 4 * tokens * max((min(m.shape) for m in net.matrices), default=1)
    bits = run.job.bits or run.recipe.nominal
    back = run.fisher_batches() / max(len(run.batches), 1) if run.batches and run.needs_fisher() else 0.0
    back = min(back, 1.0)
    work = 2 * tokens * coded * (2 + 3 * back) + sum(2 * tokens * m.shape[1] ** 2 for m in net.matrices)
    sweeps = 3 if run.job.bits is not None else 1
    seconds = work / PRODUCT_FLOPS / torch.get_num_threads() + sweeps * coded / CODE_VALUES / max(run.threads, 1)
    return Forecast(
        len(net.blocks),
        len(net.matrices),
        coded,
        every - coded,
        tokens,
        _peak_bytes(run, back > 0),
        int(2 * hidden + len(net.blocks) * hidden * back + bits * coded / 8),
        int(bits * coded / 8),
        seconds + START_SECONDS,
    )


def _peak_bytes(run: Run, back: bool) -> int:
    """The larger of two: a pass back through the head or a block, before any kernel is loaded; and coding the largest matrices.

    A module that is no chain is held whole, as it is by policies that try out rates and by tuning.
    """
    from .tune import LIMIT_BYTES, state_bytes

    net, recipe = run.net, run.recipe
    blocks = [net.below(b) for b in net.blocks] or [net.matrices]
    largest = max(blocks, key=lambda ms: sum(m.n_elements for m in ms))
    n_logits = max((m.shape[0] for m in net.outside()), default=0) if net.blocks else 0
    # What is met at the entries of a block's matrices; those with one input share the moments of it.
    moments = sum(4 * m.shape[1] ** 2 for m in largest) * (len(blocks) if back else 1)
    batch = next((b["input_ids"] for b in run.batches if "input_ids" in b), None)
    activations = logits = 0
    if batch is not None:
        heads = getattr(getattr(net.model, "config", None), "num_attention_heads", 0) or 0
        attention = 3 * heads * batch.shape[-1]
        activations = 4 * batch.numel() * (sum(sum(m.shape) for m in largest) + attention)
        logits = 5 * 4 * batch.numel() * n_logits
    sizes = sorted((m.n_elements + m.shape[1] ** 2 for m in net.matrices), reverse=True)
    coder = KERNEL_BYTES + CODER_BYTES * sum(sizes[: max(run.threads, 1)])
    held = 4 * sum(m.n_elements for m in largest)
    if recipe.policy is not None:
        held += 4 * sum(m.n_elements for m in net.every)
    passes = max(BACKWARD * activations, logits) if back else activations
    peak = moments + max(held + passes, coder, KERNEL_BYTES + held + activations)
    if recipe.tune is not None and not recipe.tune.modules_only and (state := state_bytes(run)) <= LIMIT_BYTES:
        peak = max(peak, KERNEL_BYTES + state)
    return FLOOR_BYTES + peak
