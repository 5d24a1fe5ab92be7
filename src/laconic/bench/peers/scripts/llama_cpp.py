"""llama.cpp: K-quants and I-quants with its importance matrix. Runs in an environment with gguf, tokenizers and its tools.

Setting: `{"type": "IQ2_XS", "embedding": "q4_k" or null}`; null leaves the embedding to llama-quantize (Q5_K or Q6_K).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from . import common

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """The name of a Llama tensor in a GGUF file."""
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", name)
    if layer:
        return f"blk.{layer[1]}.{NAMES[layer[2]]}.weight"
    return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
            "lm_head.weight": "output.weight"}[name]  # fmt: skip


def interleave(w: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows of a query or key projection from split halves (Hugging Face's rotary layout) to pairs (GGUF's)."""
    return w.reshape(n_heads, 2, -1, w.shape[-1]).swapaxes(1, 2).reshape(w.shape)


def split_halves(w: np.ndarray, n_heads: int) -> np.ndarray:
    """Inverse of `interleave`."""
    return w.reshape(n_heads, -1, 2, w.shape[-1]).swapaxes(1, 2).reshape(w.shape)


def heads_of(name: str, config: dict) -> int | None:
    """How many heads the rows of a tensor belong to, where they are to be permuted."""
    if name.endswith("self_attn.q_proj.weight"):
        return config["num_attention_heads"]
    if name.endswith("self_attn.k_proj.weight"):
        return config["num_key_value_heads"]
    return None


def write_gguf(model_dir: Path, path: Path, untie: bool = False) -> None:
    """A Llama folder as a float32 GGUF file. untie: write the tied embedding a second time, as the output layer."""
    import gguf

    config = json.loads((model_dir / "config.json").read_text())
    tokenizer = json.loads((model_dir / "tokenizer.json").read_text())
    if config["model_type"] != "llama":
        raise ValueError(f"this converter knows llama models, {model_dir} is {config['model_type']}")
    w = gguf.GGUFWriter(path, "llama")
    w.add_context_length(config["max_position_embeddings"])
    w.add_embedding_length(config["hidden_size"])
    w.add_block_count(config["num_hidden_layers"])
    w.add_feed_forward_length(config["intermediate_size"])
    w.add_head_count(config["num_attention_heads"])
    w.add_head_count_kv(config["num_key_value_heads"])
    w.add_key_length(config["head_dim"])
    w.add_value_length(config["head_dim"])
    w.add_rope_dimension_count(config["head_dim"])
    w.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    w.add_layer_norm_rms_eps(config["rms_norm_eps"])
    w.add_vocab_size(config["vocab_size"])
    w.add_file_type(gguf.LlamaFileType.ALL_F32)

    special = {t["content"] for t in tokenizer["added_tokens"]}
    by_id = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list([token for token, _ in by_id])
    w.add_token_types([gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t, _ in by_id])
    w.add_token_merges(merges)
    w.add_bos_token_id(config["bos_token_id"])
    w.add_eos_token_id(config["eos_token_id"])
    w.add_add_bos_token(True)

    for name, values in common.read_tensors(model_dir):
        heads = heads_of(name, config)
        w.add_tensor(gguf_name(name), values if heads is None else interleave(values, heads))
        if untie and name == "model.embed_tokens.weight":
            w.add_tensor("output.weight", values)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def tool(name: str, *arguments: object) -> None:
    """Run one of llama.cpp's tools, which stand beside this environment's interpreter."""
    done = subprocess.run(
        [str(Path(sys.prefix) / "bin" / name), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode:
        raise RuntimeError(
            f"{name} {' '.join(map(str, arguments))} ended with {done.returncode}:\n{done.stdout[-2000:]}"
        )


def write_importance(job: common.Job, path: Path) -> None:
    """llama-imatrix on the calibration windows.

    The tool leaves a tied embedding out. It measures the output layer of an untied copy, which is the same matrix in the same
    role, so that entry is filed under the embedding's name and the peer may use its best formats there too.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(job.model_dir / "tokenizer.json"))
    text, untied, measured = (job.work / n for n in ("windows.txt", "untied.gguf", "untied-imatrix.gguf"))
    windows = common.calibration_windows(job)
    text.write_text("".join(tokenizer.decode(w[1:]) for w in windows), encoding="utf-8", newline="")
    write_gguf(job.model_dir, untied, untie=True)
    tool("llama-imatrix", "-m", untied, "-f", text, "-o", measured, "-c", common.WINDOW, "--process-output",
         "--output-format", "gguf", "--no-ppl", "-t", 1)  # fmt: skip
    copy_imatrix(measured, path, rename={"output.weight": "token_embd.weight"})
    untied.unlink()


def copy_imatrix(source: Path, target: Path, rename: dict[str, str]) -> None:
    """The same importance matrix with some tensors under other names."""
    import gguf

    reader = gguf.GGUFReader(source)
    w = gguf.GGUFWriter(target, "")
    w.kv_data[0].clear()
    w.add_type("imatrix")
    w.add_array("imatrix.datasets", ["calibration windows"])
    for key in ("imatrix.chunk_count", "imatrix.chunk_size"):
        w.add_uint32(key, int(reader.fields[key].contents()))
    for t in reader.tensors:
        tensor, _, kind = t.name.rpartition(".")
        w.add_tensor(f"{rename.get(tensor, tensor)}.{kind}", np.array(t.data))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def read_gguf(path: Path, model_dir: Path) -> tuple[dict[str, np.ndarray], int]:
    """The dequantized tensors under Hugging Face's names, and the bytes of all stored tensors (norms are float32)."""
    import gguf

    config = json.loads((model_dir / "config.json").read_text())
    stored = {t.name: t for t in gguf.GGUFReader(path).tensors}
    out = {}
    for name, original in common.read_tensors(model_dir):
        t = stored[gguf_name(name)]
        values = gguf.quants.dequantize(t.data, t.tensor_type).reshape(original.shape)
        heads = heads_of(name, config)
        out[name] = values if heads is None else split_halves(values, heads)
    return out, sum(t.n_bytes for t in stored.values())


def main() -> None:
    job = common.read_job()
    full = common.made_once(job.work / "f32.gguf", lambda p: write_gguf(job.model_dir, p))
    importance = common.made_once(job.work / "imatrix.gguf", lambda p: write_importance(job, p))
    quantized = job.work / f"{job.out_dir.name}.gguf"
    options = ["--imatrix", importance]
    if job.setting["embedding"]:
        options += ["--token-embedding-type", job.setting["embedding"]]
    tool("llama-quantize", *options, full, quantized, job.setting["type"], 1)
    tensors, true_bytes = read_gguf(quantized, job.model_dir)
    quantized.unlink()
    common.write_folder(job, tensors)
    common.report(true_bytes)


if __name__ == "__main__":
    main()
