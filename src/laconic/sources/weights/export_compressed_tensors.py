"""compressed-tensors folders: pack-quantized integers, NVFP4 and MXFP4, written by that library's own compressors.

A matrix fits if it is a linear layer's, and its grid is one of

    integers of 1 to 8 bits, (q − z) · step for every group of a row, or for the row; z an integer on the grid
    E2M1 values for 16 with an E4M3 step and one float32 (NVFP4), for 32 with a power of two (MXFP4)

One grid serves the whole folder, with as many bits as the widest matrix needs; whatever has another, and embeddings, heads tied
to them, convolutions and experts, are written dense. Steps are half floats where those
hold them, else float32; loaded as bfloat16, as many configs ask, they are rounded by up to 2^−9 like all that is dense.
"""

from __future__ import annotations

import json
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...core.errors import BadConfig
from ...core.stage import Levels
from . import store
from .export import Opened, Written

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
FIT = "gptq fits, and with rotation=0 gptq-nvfp4 and mr-gptq; choose one of these, or to='gguf' for k-quant"


class Grid(NamedTuple):
    """A grid in the format's words. format: a compressor's name; the rest: arguments of its weights' scheme."""

    format: str
    bits: int
    type: str
    symmetric: bool
    strategy: str
    group_size: int | None

    def arguments(self) -> dict[str, Any]:
        """As the library names them."""
        return {"num_bits": self.bits, **{k: v for k, v in self._asdict().items() if k not in ("format", "bits")}}


def write(opened: Opened, target: Path) -> Written:
    """Write the folder. Raises BadConfig where the recipe's grid does not fit."""
    if not find_spec("compressed_tensors"):
        raise BadConfig("compressed-tensors is not installed; pip install 'laconic[export]'")
    said, fits = Written(), {}
    for name, m in opened.matrices.items():
        module = opened.model.get_submodule(m.module)
        found = opened.levels(name) if type(module) is nn.Linear and not _tied(opened, name) else None
        if found is not None and (grid := grid_of(found)) is not None:
            fits[name] = grid
    kinds = Counter(grid._replace(bits=0) for grid in fits.values())
    kind = kinds.most_common(1)[0][0] if kinds else None
    here = [name for name, grid in fits.items() if grid._replace(bits=0) == kind]
    for name in opened.matrices:
        if kind is not None and name in here:
            said.add(kind.format, name)
        else:
            said.dense.append(name)
    said.check(opened, "compressed-tensors", FIT)
    assert kind is not None
    grid = kind._replace(bits=max(fits[name].bits for name in here))
    state: dict[str, Tensor] = {}
    for name in here:
        found = opened.levels(name)
        assert found is not None
        module_name = opened.matrices[name].module
        state |= {f"{module_name}.{k}": v for k, v in compress_matrix(found, grid).items()}
    dtype = getattr(torch, str(opened.config.get("dtype") or opened.config.get("torch_dtype") or "float32"))
    for name, tensor in opened.dense(set(said.dense)):
        coded = name not in opened.packed.kept
        state[name] = (tensor.to(dtype) if coded else tensor).contiguous()
    target.mkdir()
    opened.copy_files(target)
    store.write_shards(target, iter(state.items()))
    config = {**opened.config, "quantization_config": describe(opened, grid, here)}
    (target / "config.json").write_text(json.dumps(config, indent=1))
    return said


def grid_of(found: Levels) -> Grid | None:
    """The format's grid that holds a matrix exactly; None where none does."""
    n = found.level.shape[1]
    if found.group < n and n % found.group:
        return None
    if found.table is not None:
        return _float_grid(found)
    low, high = min(int(found.level.min()), 0), int(found.level.max())
    symmetric = found.offset is None
    bits = max((high - low).bit_length(), 1) if not symmetric else max(high, -low - 1).bit_length() + 1
    if not symmetric:
        zero = _zero_points(found)
        if low < 0 or zero is None:
            return None
        bits = max(bits, int(zero.max()).bit_length())
    if bits > 8:
        return None
    strategy = ("channel", None) if found.group >= n else ("group", found.group)
    return Grid("pack-quantized", bits, "int", symmetric, *strategy)


def _float_grid(found: Levels) -> Grid | None:
    used = np.unique(np.abs(found.table))  # type: ignore[arg-type]
    if found.offset is not None or not np.isin(used, E2M1).all():
        return None
    if found.group == 16 and _global_scale(found.step) is not None:
        return Grid("nvfp4-pack-quantized", 4, "float", True, "tensor_group", 16)
    mantissa, exponent = np.frexp(found.step)
    if found.group == 32 and (mantissa[found.step > 0] == 0.5).all() and exponent.min() > -126:
        return Grid("mxfp4-pack-quantized", 4, "float", True, "group", 32)
    return None


def _zero_points(found: Levels) -> np.ndarray | None:
    """z with offset = −z · step exactly; 0 where the step is 0. None where there is no such."""
    assert found.offset is not None
    step = np.where(found.step == 0, 1, found.step)
    zero = np.rint(-found.offset / step).astype(np.float32)
    exact = (-zero * found.step == found.offset).all() and zero.min() >= 0 and zero.max() <= 255
    return zero if exact else None


def _global_scale(step: np.ndarray) -> float | None:
    """The power of two by which all steps are E4M3 numbers; None where there is none."""
    top = float(step.max())
    if top <= 0:
        return 1.0
    common = float(2.0 ** np.ceil(np.log2(top / 448)))
    codes = torch.from_numpy(np.float32(step / np.float32(common))).to(torch.float8_e4m3fn).float().numpy()
    return common if (codes * np.float32(common) == step).all() else None


def compress_matrix(found: Levels, grid: Grid) -> dict[str, Tensor]:
    """A linear layer's tensors as the library's compressor makes them of the decoded weight; the codes come out as they were."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**grid.arguments()))
    dead = found.step == 0
    step = torch.from_numpy(np.where(dead, np.float32(1), found.step))
    level = found.level if found.table is None else found.table[found.level]
    columns = np.minimum(np.arange(level.shape[1]) // found.group, found.step.shape[1] - 1)
    level = np.where(dead[:, columns], 0, level).astype(np.float32)
    tensors: dict[str, Tensor] = {}
    if grid.format == "nvfp4-pack-quantized":
        common = _global_scale(found.step)
        assert common is not None
        tensors["weight_global_scale"] = torch.tensor([1 / common])
        tensors["weight_scale"] = step / common
    elif found.offset is not None:
        half = 1 << grid.bits - 1
        zero = _zero_points(found)
        assert zero is not None
        level = np.where(dead[:, columns], 0, level - zero[:, columns])
        tensors["weight_zero_point"] = torch.from_numpy(zero - half).to(torch.int8)
        tensors["weight_scale"] = step
    else:
        tensors["weight_scale"] = step
    tensors["weight"] = torch.from_numpy(level) * step[:, torch.from_numpy(columns)]
    out = BaseCompressor.get_value_from_registry(grid.format).compress(tensors, scheme)
    scale = out["weight_scale"]
    if scale.dtype == torch.float32 and bool((scale.half().float() == scale).all()):
        out["weight_scale"] = scale.half()
    return {k: v.contiguous() for k, v in out.items()}


def _tied(opened: Opened, name: str) -> bool:
    """Whether the matrix is also an embedding, which the format keeps dense."""
    ties = getattr(opened.model, "all_tied_weights_keys", {})
    return name in ties or name in ties.values()


def describe(opened: Opened, grid: Grid, names: list[str]) -> dict[str, Any]:
    """quantization_config as that library reads it."""
    inside = {opened.matrices[n].module for n in names}
    group = {
        "targets": ["Linear"],
        "weights": {**grid.arguments(), "dynamic": False},
        "input_activations": None,
        "output_activations": None,
        "format": grid.format,
    }
    # transformers' other way, to unpack at the first use, makes no room for packed zero points, and unpacks floats to
    # bfloat16 whatever the model's dtype is.
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": grid.format,
        "ignore": [n for n, m in opened.model.named_modules() if type(m) is nn.Linear and n not in inside],
        "config_groups": {"group_0": group},
        "dequantize": True,
    }
