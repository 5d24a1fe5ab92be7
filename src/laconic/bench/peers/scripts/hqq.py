"""hqq: half-quadratic scales and zeros, no calibration. Runs in an environment with hqq and torch.

Setting: `{"bits": 4, "group": 64, "axis": 1, "embedding": {"bits": 8, "group": 64} or null}`; null leaves the embedding in
two bytes a value. Stored: the codes as hqq packs them (ten of 3 bits in an int32), a float16 scale and zero a group.
"""

from __future__ import annotations

import numpy as np

from . import common


def quantize(values: np.ndarray, bits: int, group: int, axis: int) -> tuple[np.ndarray, int]:
    """A dequantized matrix and its bytes."""
    import torch
    from hqq.core.quantize import Quantizer

    codes, meta = Quantizer.quantize(
        torch.from_numpy(np.ascontiguousarray(values)), nbits=bits, group_size=group, axis=axis, device="cpu"
    )
    meta["scale"], meta["zero"] = meta["scale"].half(), meta["zero"].half()
    stored = sum(t.numel() * t.element_size() for t in (codes, meta["scale"], meta["zero"]))
    wide = {**meta, "scale": meta["scale"].float(), "zero": meta["zero"].float(), "compute_dtype": torch.float32}
    return Quantizer.dequantize(codes, wide).numpy(), stored


def main() -> None:
    job = common.read_job()
    tensors, true_bytes = {}, 0
    for name, values in common.read_tensors(job.model_dir):
        setting = job.setting["embedding"] if common.is_embedding(name) else job.setting
        if values.ndim == 2 and setting:
            tensors[name], n = quantize(values, setting["bits"], setting["group"], job.setting["axis"])
        else:
            tensors[name], n = values, 2 * values.size
        true_bytes += n
    common.write_folder(job, tensors)
    common.report(true_bytes)


if __name__ == "__main__":
    main()
