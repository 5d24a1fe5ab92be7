"""Decoders of a few ten thousand parameters with seeded random weights, one of each kind of attention that a cache meets."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

transformers: Any = pytest.importorskip("transformers", reason="the hf extra is not installed")

SHAPE = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 1024, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}  # fmt: skip
GROUPED = {**SHAPE, "num_key_value_heads": 2}
GPT2 = {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 1024, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": None}  # fmt: skip
MIX = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 48}
MADE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", GROUPED),
    "llama3": ("Llama", {**GROUPED, "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0,
                         "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128}}),
    "yarn": ("Llama", {**GROUPED, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
                       "original_max_position_embeddings": 256}}),
    "mistral": ("Mistral", {**GROUPED, "sliding_window": 48}),
    "gemma2": ("Gemma2", {**GROUPED, **MIX, "head_dim": 16}),
    "gemma3": ("Gemma3", {**GROUPED, **MIX, "head_dim": 16}),
    "qwen2": ("Qwen2", {**GROUPED, **MIX, "use_sliding_window": True}),
    "qwen3": ("Qwen3", {**GROUPED, "head_dim": 16}),
    "gpt2": ("GPT2", GPT2),
    "gptj": ("GPTJ", {**GPT2, "rotary_dim": 8}),
    "gpt-neox": ("GPTNeoX", SHAPE),
    "phi": ("Phi", SHAPE),
    "phi3": ("Phi3", GROUPED),
    "stablelm": ("StableLm", GROUPED),
    "cohere": ("Cohere", GROUPED),
    "cohere2": ("Cohere2", {**GROUPED, **MIX}),
    "glm": ("Glm", {**GROUPED, "head_dim": 16}),
    "smollm3": ("SmolLM3", {**GROUPED, "no_rope_layers": [1, 0]}),
    "olmo2": ("Olmo2", GROUPED),
    "gpt-oss": ("GptOss", {**GROUPED, **MIX, "head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 2}),
    "nanochat": ("NanoChat", GROUPED),
    "opt": ("OPT", {**SHAPE, "ffn_dim": 96, "word_embed_proj_dim": 64}),
    "jamba": ("Jamba", {**GROUPED, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 4,
                        "expert_layer_offset": 3, "mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False}),
    "bamba": ("Bamba", {**GROUPED, "attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8,
                        "mamba_n_groups": 1}),
    "qwen3-next": ("Qwen3Next", {**GROUPED, "head_dim": 16, "layer_types": ["linear_attention", "full_attention"],
                                 "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
                                 "linear_value_head_dim": 16, "num_experts": 2, "num_experts_per_tok": 1,
                                 "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}),
    "falcon-h1": ("FalconH1", {**GROUPED, "mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8,
                               "mamba_n_groups": 1}),
}  # fmt: skip
CLASSES = {"Gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig"), "GPT2": ("GPT2LMHeadModel", "GPT2Config")}


@cache
def model(kind: str) -> Any:
    """A model of a kind; the same weights at every call. Its predictions differ from each other."""
    name, settings = MADE[kind]
    cls, config = CLASSES.get(name, (f"{name}ForCausalLM", f"{name}Config"))
    torch.manual_seed(0)
    made = getattr(transformers, cls)(getattr(transformers, config)(**settings)).eval()
    with torch.no_grad():
        for p in made.parameters():
            if p.ndim >= 2:
                p.mul_(5)
    return made


def ids(n: int, n_batch: int = 1, seed: int = 0) -> torch.Tensor:
    """Token ids (n_batch, n), none of them padding."""
    return torch.randint(2, 96, (n_batch, n), generator=torch.Generator().manual_seed(seed))
