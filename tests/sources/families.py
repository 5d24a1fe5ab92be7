"""Models of a few ten thousand parameters with seeded random weights, one of each family that the walk must know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

transformers: Any = pytest.importorskip("transformers", reason="the hf extra is not installed")
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "vocab_size": 256, "max_position_embeddings": 64}  # fmt: skip
GROUPED = {**SHAPE, "num_key_value_heads": 2}
MADE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**GROUPED, "bos_token_id": 1, "eos_token_id": 2}),
    "mistral": ("MistralForCausalLM", "MistralConfig", GROUPED),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {**GROUPED, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**GROUPED, "head_dim": 16}),
    "phi": ("PhiForCausalLM", "PhiConfig", SHAPE),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config",
             {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 256, "n_positions": 64,
              "bos_token_id": 1, "eos_token_id": 2}),
    "gpt-neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", SHAPE),
    "opt": ("OPTForCausalLM", "OPTConfig",
            {"hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 256,
             "max_position_embeddings": 64, "word_embed_proj_dim": 64}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**GROUPED, "num_local_experts": 4}),
    "qwen2-moe": ("Qwen2MoeForCausalLM", "Qwen2MoeConfig",
                  {**GROUPED, "num_experts": 4, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64,
                   "num_experts_per_tok": 2}),
    "bert": ("BertForMaskedLM", "BertConfig", SHAPE),
    "vit": ("ViTForImageClassification", "ViTConfig",
            {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "image_size": 32, "patch_size": 8}),
    "mamba": ("MambaForCausalLM", "MambaConfig",
              {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 256, "state_size": 8}),
}  # fmt: skip


def model(family: str) -> Any:
    """A model of a family; the same weights at every call."""
    import torch

    cls, config, settings = MADE[family]
    torch.manual_seed(0)
    return getattr(transformers, cls)(getattr(transformers, config)(**settings)).eval()


def folder(family: str, path: Path) -> Path:
    """It, saved."""
    model(family).save_pretrained(path)
    return path


def inputs(family: str, n: int = 8) -> Any:
    """Calibration inputs."""
    import torch

    g = torch.Generator().manual_seed(1)
    if family == "vit":
        return {"pixel_values": torch.randn(n, 3, 32, 32, generator=g)}
    return torch.randint(0, 256, (n, 32), generator=g)
