"""GPTQModel: GPTQ with its group-aware order of columns. Runs in an environment with gptqmodel and torch.

Setting: `{"bits", "group", "options": {...}, "embedding": {"bits", "group"} or null}`; null leaves the embedding in two bytes a
value. Stored: the tensors of the folder that the tool saves; `g_idx` counts only where it is not simply column // group.
"""

from __future__ import annotations

import os
import tempfile

import numpy as np

from . import common


def quantize(job: common.Job) -> dict[str, np.ndarray]:
    """All tensors but the embeddings, dequantized from the saved folder, and under "bytes" what they take."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # its pool needs two, and by itself takes half the cores
    import torch
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    torch.manual_seed(0)
    config = QuantizeConfig(bits=job.setting["bits"], group_size=job.setting["group"], offload_to_disk=False,
                            **job.setting["options"])  # fmt: skip
    model = GPTQModel.load(str(job.model_dir), config, device="cpu", dtype=torch.float32)
    windows = common.calibration_windows(job)
    model.quantize([{"input_ids": w, "attention_mask": [1] * len(w)} for w in windows], batch_size=8)
    with tempfile.TemporaryDirectory(dir=job.work) as saved:
        model.save(saved)
        model = GPTQModel.load(saved, backend=BACKEND.TORCH, device="cpu").model
    out, true_bytes = {}, 0
    modules = dict(model.named_modules())
    for name, values in common.read_tensors(job.model_dir):
        if common.is_embedding(name):
            continue
        module = modules[name.removesuffix(".weight")]
        if hasattr(module, "qweight"):
            weight = module.dequantize_weight().T
            parts = [module.qweight, module.scales, module.qzeros]
            plain = torch.arange(values.shape[1]) // job.setting["group"]
            if not torch.equal(module.g_idx.long(), plain):
                parts.append(module.g_idx)
            n = sum(p.numel() * p.element_size() for p in parts)
        else:
            weight, n = module.weight, 2 * values.size
        out[name] = weight.detach().float().numpy()
        true_bytes += n
    return {**out, "bytes": np.array(true_bytes)}


if __name__ == "__main__":
    common.with_embedding(common.read_job(), quantize)
