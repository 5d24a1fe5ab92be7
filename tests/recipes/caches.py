"""A small llama with random weights, run through caches; and how far its predictions move."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

PREFILL, N = 256, 288
IDS = torch.randint(0, 96, (4, N), generator=torch.Generator().manual_seed(1))


@cache
def llama(kv_heads: int = 2, n_layers: int = 2, update: float = 5.0) -> Any:
    """4 query heads. update: how much a layer adds to the stream, relative to how models are initialised."""
    transformers = pytest.importorskip("transformers", reason="a model is made with transformers")
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=n_layers, num_attention_heads=4,
        num_key_value_heads=kv_heads, max_position_embeddings=1024,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 2:
                p.mul_(update if "o_proj" in name or "down_proj" in name else 5.0)
    return model


@torch.inference_mode()
def predictions(
    model: Any, past: Any, ids: torch.Tensor = IDS[:2], prefill: int = PREFILL, **more: Any
) -> torch.Tensor:
    """Log-probabilities behind the tokens that follow a prefill, eight at a time."""
    mask = more.get("attention_mask")
    found = []
    for start, stop in [(0, prefill), *((i, i + 8) for i in range(prefill, ids.shape[1], 8))]:
        seen = {} if mask is None else {"attention_mask": mask[:, :stop]}
        out = model(input_ids=ids[:, start:stop], past_key_values=past, use_cache=True, **seen)
        found.append(out.logits.log_softmax(-1))
    return torch.cat(found[1:], 1)


def divergence(model: Any, past: Any, ids: torch.Tensor = IDS[:2], prefill: int = PREFILL, **more: Any) -> float:
    """KL of the predictions through a cache from those through an uncompressed one, nats a token."""
    from transformers import DynamicCache

    p = predictions(model, DynamicCache(config=model.config), ids, prefill, **more)
    q = predictions(model, past, ids, prefill, **more)
    return float((p.exp() * (p - q)).sum(-1).mean())
