"""llm-compressor: GPTQ (static act-order) and AWQ. Runs in an environment with llmcompressor and torch.

Setting: `{"method": "gptq" or "awq", "bits", "group", "symmetric", "observer", "embedding": {"bits", "group"} or null}`; null
leaves the embedding in two bytes a value. Stored, as pack-quantized: codes and zero points dense in int32 words, a float16
scale a group.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from . import common

if TYPE_CHECKING:
    import torch


def recipe(setting: dict[str, Any]) -> list[Any]:
    """The tool's own modifiers with the settings its documentation recommends."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    weights = QuantizationArgs(
        num_bits=setting["bits"],
        type="int",
        symmetric=setting["symmetric"],
        strategy="group",
        group_size=setting["group"],
        observer=setting["observer"],
    )
    groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    if setting["method"] == "gptq":
        return [GPTQModifier(config_groups=groups, ignore=["lm_head"], actorder="static", dampening_frac=0.01)]
    return [AWQModifier(duo_scaling="both"), QuantizationModifier(config_groups=groups, ignore=["lm_head"])]


def stored(module: torch.nn.Linear) -> tuple[torch.Tensor, int]:
    """A layer as its checkpoint gives it back, with scales in float16, and the bytes of that checkpoint."""
    from compressed_tensors.quantization import fake_quantize

    args = module.quantization_scheme.weights
    scale = module.weight_scale.half()
    zero = getattr(module, "weight_zero_point", None)
    values = fake_quantize(module.weight.data.float(), scale.float(), zero, args)
    rows, columns = module.weight.shape
    n_bytes = 4 * rows * math.ceil(columns * args.num_bits / 32) + 2 * scale.numel()
    if not args.symmetric:
        n_bytes += 4 * math.ceil(rows * args.num_bits / 32) * scale.shape[1]
    if getattr(module, "weight_g_idx", None) is not None:
        n_bytes += 4 * columns
    return values, n_bytes


def quantize(job: common.Job) -> dict[str, np.ndarray]:
    """All tensors but the embeddings, dequantized, and under "bytes" what they take.

    Norms keep two bytes a value; AWQ has scaled them.
    """
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.pipelines.cache import IntermediatesCache
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(job.model_dir, dtype=torch.float32)
    windows = common.calibration_windows(job)
    if job.setting["method"] == "awq":
        # Its search runs every block for every point of a grid, and needs less text than a Hessian.
        windows = windows[::4]
    if not torch.accelerator.is_available():  # it pins memory for copies to a device, which fails where there is none
        IntermediatesCache.pin_memory = lambda self, *_: None
    model = oneshot(
        model=model,
        dataset=Dataset.from_dict({"input_ids": windows, "attention_mask": [[1] * len(w) for w in windows]}),
        recipe=recipe(job.setting),
        num_calibration_samples=len(windows),
        max_seq_length=common.WINDOW,
        shuffle_calibration_samples=False,
        batch_size=8,
    )
    quantized = {n: m for n, m in model.named_modules() if getattr(m, "quantization_scheme", None) is not None}
    out, true_bytes = {}, 0
    with torch.no_grad():
        for name, values in common.read_tensors(job.model_dir):
            if common.is_embedding(name):
                continue
            layer = name.removesuffix(".weight")
            if layer in quantized:
                tensor, n = stored(quantized[layer])
            else:
                tensor, n = model.get_parameter(name).half(), 2 * values.size
            out[name] = tensor.float().numpy()
            true_bytes += n
    return {**out, "bytes": np.array(true_bytes)}


if __name__ == "__main__":
    common.with_embedding(common.read_job(), quantize)
