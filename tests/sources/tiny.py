"""A small llama with random weights, large enough for its predictions to differ, and ids to calibrate it on."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch

IDS = torch.randint(0, 96, (24, 32), generator=torch.Generator().manual_seed(1))


@cache
def tiny_llama() -> Path:
    """Its folder; skips where transformers is absent."""
    transformers = pytest.importorskip("transformers", reason="a model is made with transformers")
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.mul_(6)
    root = Path(tempfile.mkdtemp(prefix="laconic-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    model.save_pretrained(root / "tiny")
    return root / "tiny"
