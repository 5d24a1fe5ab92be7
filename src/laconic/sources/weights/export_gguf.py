"""GGUF files for llama.cpp: codes as ggml's blocks, the rest as floats, with the facts of the model and its tokenizer.

    codec                                    block     values of a row's block
    k-quant 2, 4, 5                          Q2_K, Q4_K, Q5_K      256
    gptq 4, 5 in groups of 32                Q4_1, Q5_1             32    (minimum rounded to a half float)
    mr-gptq mxfp4 without rotation           MXFP4                  32

Source: the block layouts of ggml-org/llama.cpp (ggml-common.h); what is written is checked against the `gguf` package's decoder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...core.errors import BadConfig, BadInput
from ...core.stage import Levels
from ...kernels.bits import unpack
from .export import Opened, Written

SUPER = 256  # values of a K-quant's block
BLOCK = 32
LOSS = 2.0**-9  # of the greatest step, that half floats below 2^-14 may cost
E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)
FIT = "k-quant (2, 4, 5 bits), gptq with bits 4 or 5 and group=32, and mr-gptq with format mxfp4 and rotation=0 fit"
ARCHITECTURES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "llama"}


class Blocks(NamedTuple):
    """A matrix in blocks. kind: ggml's name of the type. data: uint8 (n_out, bytes of a row). exact: nothing was rounded."""

    kind: str
    data: np.ndarray
    exact: bool = True


def write(opened: Opened, target: Path) -> Written:
    """Write the file, or a folder with the file in it. Raises BadConfig, BadInput."""
    if not find_spec("gguf"):
        raise BadConfig("gguf is not installed; pip install 'laconic[export]'")
    import gguf
    import torch

    name = (opened.config.get("architectures") or ["?"])[0]
    if name not in ARCHITECTURES:
        raise BadInput(f"{name} in GGUF is not known here; {' and '.join(ARCHITECTURES)} are")
    said, blocks = Written(), {}
    for key in opened.matrices:
        found = opened.levels(key)
        made = None if found is None else blocks_of(found)
        if made is None:
            said.dense.append(key)
        else:
            said.add(made.kind, key, made.exact)
            blocks[key] = made
    said.check(opened, "GGUF", FIT)
    tokens = _tokenizer(opened)
    if target.suffix != ".gguf":
        target.mkdir()
        opened.copy_files(target)
        target /= "model.gguf"
    arch = gguf.MODEL_ARCH.LLAMA
    names = gguf.get_tensor_name_map(arch, int(opened.config["num_hidden_layers"]))
    writer = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[arch])
    _facts(writer, opened.config)
    tokens(writer)
    for key, tensor in opened.dense(set(said.dense)):
        values = tensor.to(torch.float32).numpy()
        values = _turned_heads(values, key, opened.config)
        writer.add_tensor(_named(names, key), values.astype(np.float16) if values.ndim > 1 else values)
    for key, made in blocks.items():
        kind = gguf.GGMLQuantizationType[made.kind]
        data = np.ascontiguousarray(_turned_heads(made.data, key, opened.config))
        writer.add_tensor(_named(names, key), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return said


def _named(names: Any, key: str) -> str:
    found = names.get_name(key, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise BadInput(f"GGUF's llama has no tensor for {key!r}")
    return str(found)


def _turned_heads(rows: np.ndarray, key: str, config: dict[str, Any]) -> np.ndarray:
    """Rows of query and key projections in the order of llama.cpp's rotary embedding: pairs beside each other."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    kind = next((h for p, h in heads.items() if key.rpartition(".")[0].endswith(p)), None)
    if kind is None:
        return rows
    n = int(config.get(kind) or config["num_attention_heads"])
    return np.ascontiguousarray(
        rows.reshape(n, 2, len(rows) // n // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
    )


def _facts(writer: Any, config: dict[str, Any]) -> None:
    """The hyperparameters of a llama."""
    heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
    size = int(config.get("head_dim") or width // heads)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", "default") != "default":
        raise BadInput(f"rotary embedding {rope['rope_type']!r} cannot be written to GGUF here; 'default' can")
    writer.add_name(str(config.get("_name_or_path") or "model"))
    writer.add_vocab_size(int(config["vocab_size"]))
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(width)
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))


def _tokenizer(opened: Opened) -> Callable[[Any], None]:
    """What writes the tokenizer. Raises BadInput for one that is no byte-level BPE with GPT-2's rule of splitting."""
    path = opened.packed.folder / "tokenizer.json"
    if not path.is_file():
        raise BadInput(f"{opened.packed.folder}: no tokenizer.json, which a GGUF file must hold")
    said = json.loads(path.read_text())
    model, before = said["model"], said.get("pre_tokenizer") or {}
    plain = before.get("type") == "ByteLevel" and before.get("use_regex", True)
    if model.get("type") != "BPE" or not plain or said.get("normalizer"):
        raise BadInput(f"{path}: a byte-level BPE with GPT-2's splitting is written to GGUF; this is {model.get('type')}, "
                       f"split by {before.get('type')}")  # fmt: skip
    import gguf

    n = int(opened.config["vocab_size"])
    added = {t["id"]: t for t in said.get("added_tokens") or []}
    by_id = {i: t for t, i in model["vocab"].items()} | {i: t["content"] for i, t in added.items()}

    def kind(i: int) -> int:
        if i not in by_id:
            return int(gguf.TokenType.UNUSED)
        special = i in added and added[i].get("special")
        return int(
            gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED if i in added else gguf.TokenType.NORMAL
        )

    def to(writer: Any) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list([by_id.get(i, f"[unused{i}]") for i in range(n)])
        writer.add_token_types([kind(i) for i in range(n)])
        writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in model["merges"]])
        for name, add in (("bos_token_id", writer.add_bos_token_id), ("eos_token_id", writer.add_eos_token_id)):
            if isinstance(opened.config.get(name), int):
                add(opened.config[name])
        writer.add_add_space_prefix(bool(before.get("add_prefix_space")))

    return to


# --- blocks -----------------------------------------------------------------------------------------------------------


def blocks_of(found: Levels) -> Blocks | None:
    """A matrix in the blocks that its grid is made for; None where there are none."""
    m, n = found.level.shape
    if found.table is not None:
        return _mxfp4(found) if found.offset is None and found.group == BLOCK and n % BLOCK == 0 else None
    if found.offset is None or int(found.level.min()) < 0:
        return None
    if {"d", "dmin", "scale", "zero"} <= set(found.sent) and n % SUPER == 0:
        return _k_quant(found)
    if found.group == BLOCK and n % BLOCK == 0 and int(found.level.max()) < 32:
        return _with_minimum(found)
    return None


def _k_quant(found: Levels) -> Blocks | None:
    """Q2_K, Q4_K, Q5_K, bit for bit, but for d and dmin among ggml's subnormal half floats; None where these lose too much."""
    exponent = int(found.sent["exponent"][0])
    wanted = [np.ldexp(found.sent[k].astype(np.float32), exponent).reshape(-1, 1) for k in ("d", "dmin")]
    with np.errstate(over="ignore"):
        halves = [w.astype(np.float16) for w in wanted]
    losses = [float(np.abs(h - w).max() / max(w.max(), 1e-30)) for h, w in zip(halves, wanted, strict=True)]
    if not max(losses) <= LOSS:
        return None
    exact = max(losses) == 0
    d, dmin = (h.view(np.uint8) for h in halves)
    m, n = found.level.shape
    per, count = SUPER // found.group, m * n // found.group
    bits = {16: 4, 32: 6}.get(found.group)
    wide = int(found.level.max())
    if bits is None or wide > (3 if bits == 4 else 31):
        return None
    q = found.level.astype(np.uint8).reshape(-1, SUPER)
    s, z = (unpack(found.sent[k], bits, count).reshape(-1, per) for k in ("scale", "zero"))
    if bits == 4:
        low = q.reshape(-1, 2, 4, 32)
        codes = (low[:, :, 0] | low[:, :, 1] << 2 | low[:, :, 2] << 4 | low[:, :, 3] << 6).reshape(-1, 64)
        return Blocks("Q2_K", np.concatenate([s | z << 4, codes, d, dmin], 1).reshape(m, -1), exact)
    head = np.concatenate([d, dmin, _six_bits(s, z)], 1)
    pairs = q.reshape(-1, 4, 2, 32)
    codes = ((pairs[:, :, 0] & 15) | (pairs[:, :, 1] & 15) << 4).reshape(-1, 128)
    if not _five_bits(found):
        return Blocks("Q4_K", np.concatenate([head, codes], 1).reshape(m, -1), exact)
    top = np.packbits(q.reshape(-1, 8, 32) >> 4, axis=1, bitorder="little").reshape(-1, 32)
    return Blocks("Q5_K", np.concatenate([head, top, codes], 1).reshape(m, -1), exact)


def _five_bits(found: Levels) -> bool:
    return int(found.level.max()) > 15


def _six_bits(s: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Scales and minima of 8 blocks, 6 bits each, in ggml's 12 bytes."""
    first = s[:, :4] | s[:, 4:] >> 4 << 6
    second = z[:, :4] | z[:, 4:] >> 4 << 6
    return np.concatenate([first, second, (s[:, 4:] & 15) | (z[:, 4:] & 15) << 4], 1)


def _with_minimum(found: Levels) -> Blocks | None:
    """Q4_1 and Q5_1: d · q + m, both half floats. m = −z d needs up to 4 bits more, and is rounded."""
    assert found.offset is not None
    step = found.step.reshape(-1, 1).astype(np.float16)
    minimum = found.offset.reshape(-1, 1).astype(np.float16)
    if (step.astype(np.float32).reshape(found.step.shape) != found.step).any() or not np.isfinite(minimum).all():
        return None
    exact = bool((minimum.astype(np.float32).reshape(found.offset.shape) == found.offset).all())
    m, q = len(found.level), found.level.astype(np.uint8).reshape(-1, BLOCK)
    head, codes = [step.view(np.uint8), minimum.view(np.uint8)], [(q[:, :16] & 15) | (q[:, 16:] & 15) << 4]
    kind, top = "Q4_1", []
    if _five_bits(found):
        kind, top = "Q5_1", [np.packbits(q >> 4, axis=1, bitorder="little")]
    return Blocks(kind, np.concatenate([*head, *top, *codes], 1).reshape(m, -1), exact)


def _mxfp4(found: Levels) -> Blocks | None:
    """MXFP4: E2M1 values and a power of two, as its exponent plus 127."""
    table = found.table
    assert table is not None
    mantissa, exponent = np.frexp(found.step)
    if not np.isin(np.abs(table), E2M1).all() or (mantissa[found.step > 0] != 0.5).any():
        return None
    code = (np.searchsorted(E2M1, np.abs(table)) | np.where(table < 0, 8, 0)).astype(np.uint8)
    q = np.where(found.step.reshape(-1, 1) > 0, code[found.level].reshape(-1, BLOCK), 0).astype(np.uint8)
    scale = np.where(found.step > 0, exponent - 1 + 127, 0).astype(np.uint8).reshape(-1, 1)
    return Blocks("MXFP4", np.concatenate([scale, q[:, :16] | q[:, 16:] << 4], 1).reshape(len(found.level), -1))
