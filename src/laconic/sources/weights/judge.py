"""A compressed language model judged against its original on the same tokens."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from os import PathLike
from typing import Any

from ...core.errors import BadInput
from ...measure import Interval, kl_divergence, paired_bootstrap, same_top1


def available() -> bool:
    """Whether the model library (the `hf` extra) is installed."""
    return find_spec("transformers") is not None


@dataclass(frozen=True)
class Verdict:
    """Means over all predicted tokens, and a 95 % interval of the KL over windows.

    bits_per_byte, reference_bits_per_byte: cross entropy of the text. kl: KL(original ‖ compressed), nats a token.
    top1: share of tokens whose most likely successor is unchanged.
    """

    bits_per_byte: float
    reference_bits_per_byte: float
    kl: float
    kl_interval: Interval
    top1: float
    n_tokens: int


def judge(
    reference: str | PathLike[str], compressed: str | PathLike[str], text: str, *, window: int = 512, windows: int = 16
) -> Verdict:
    """Run both models over the same windows of a text in float32.

    window: tokens, each window beginning with the tokenizer's BOS. Raises BadInput for a text shorter than one window.
    """
    import math

    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # ours is the bar that runs here
    tokenizer = AutoTokenizer.from_pretrained(reference)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    step = window - 1
    n = min(windows, len(encoded["input_ids"]) // step)
    if n < 1:
        raise BadInput(f"a text of {len(encoded['input_ids'])} tokens; a window takes {step}")
    ids = torch.tensor(encoded["input_ids"][: n * step]).reshape(n, step)
    bos = torch.full((n, 1), tokenizer.bos_token_id if tokenizer.bos_token_id is not None else 0)
    batch = torch.cat([bos, ids], 1)
    n_bytes = len(text[: encoded["offset_mapping"][n * step - 1][1]].encode())
    models: list[Any] = [
        AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32).eval() for p in (reference, compressed)
    ]
    kl, same, nats = [], [], np.zeros(2)
    with torch.inference_mode():
        for row in batch:
            logits = [m(row[None]).logits[0, :-1] for m in models]
            kl.append(float(kl_divergence(logits[0], logits[1]).mean()))
            same.append(float(same_top1(logits[0], logits[1]).mean()))
            nats += [float(torch.nn.functional.cross_entropy(z, row[1:], reduction="sum")) for z in logits]
    bits = nats / math.log(2) / n_bytes
    interval = paired_bootstrap(np.array(kl), np.zeros(n)) if n > 1 else Interval(kl[0], kl[0], kl[0])
    return Verdict(float(bits[1]), float(bits[0]), float(np.mean(kl)), interval, float(np.mean(same)), n * step)
