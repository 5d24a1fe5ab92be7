"""stories260K, a Llama of 260,032 parameters in llama2.c's format, as a model and a tokenizer of transformers' kind."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import BadInput, CorruptStream
from ..sources.weights.contestants import enter, tokenizer_of
from .peers.scripts.llama_cpp import split_halves

WEIGHTS = "stories260K.bin"
HEADER = ("dim", "hidden", "layers", "heads", "kv_heads", "vocab", "length")


def open_model(folder: Path) -> tuple[Any, Any]:
    """A language model in float32 with its tokenizer: a folder of transformers', or stories260K's."""
    if (folder / WEIGHTS).is_file():
        return load_stories(folder)
    return enter(folder).module, tokenizer_of(folder)


def load_stories(folder: Path) -> tuple[Any, Words]:
    """The model in float32, and its tokenizer, from `stories260K.bin` and `tok512.bin`.

    Raises
    ------
    BadInput: a file is not there. CorruptStream: a file is too short or too long.
    """
    return _model(_read(folder / WEIGHTS)), Words(_pieces(_read(folder / "tok512.bin")))


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise BadInput(f"{path} is not there; it belongs to the measurement data")
    return path.read_bytes()


def _model(data: bytes) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = dict(zip(HEADER, struct.unpack_from("<7i", data), strict=True))
    dim, hidden, n, heads, kv = (shape[k] for k in ("dim", "hidden", "layers", "heads", "kv_heads"))
    head = dim // heads
    sizes = {
        "embed": (shape["vocab"], dim), "input_layernorm": (n, dim), "q_proj": (n, dim, dim),
        "k_proj": (n, kv * head, dim), "v_proj": (n, kv * head, dim), "o_proj": (n, dim, dim),
        "post_attention_layernorm": (n, dim), "gate_proj": (n, hidden, dim), "down_proj": (n, dim, hidden),
        "up_proj": (n, hidden, dim), "norm": (dim,), "rope": (2, shape["length"], head // 2),
    }  # fmt: skip
    want = 28 + 4 * sum(int(np.prod(s)) for s in sizes.values())
    if len(data) != want:
        raise CorruptStream(f"a model of {shape} takes {want:,} bytes; the file has {len(data):,}")
    values, at = np.frombuffer(data, "<f4", offset=28), 0
    parts = {}
    for name, size in sizes.items():
        parts[name] = values[at : at + int(np.prod(size))].reshape(size)
        at += int(np.prod(size))
    state = {"model.embed_tokens.weight": parts["embed"], "lm_head.weight": parts["embed"],
             "model.norm.weight": parts["norm"]}  # fmt: skip
    for i in range(n):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            w = parts[name][i]
            turned = {"q_proj": heads, "k_proj": kv}.get(name)  # rotary pairs become halves
            state[f"model.layers.{i}.self_attn.{name}.weight"] = w if turned is None else split_halves(w, turned)
        for name in ("gate_proj", "up_proj", "down_proj"):
            state[f"model.layers.{i}.mlp.{name}.weight"] = parts[name][i]
        for name in ("input_layernorm", "post_attention_layernorm"):
            state[f"model.layers.{i}.{name}.weight"] = parts[name][i]
    config = LlamaConfig(
        vocab_size=shape["vocab"], hidden_size=dim, intermediate_size=hidden, num_hidden_layers=n,
        num_attention_heads=heads, num_key_value_heads=kv, max_position_embeddings=shape["length"], rms_norm_eps=1e-5,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict({name: torch.from_numpy(w.copy()) for name, w in state.items()})
    return model


def _pieces(data: bytes) -> list[tuple[float, bytes]]:
    found, at = [], 4
    while at < len(data):
        if at + 8 > len(data):
            raise CorruptStream(f"the vocabulary ends within piece {len(found)}")
        score, length = struct.unpack_from("<fi", data, at)
        if not 0 <= length <= len(data) - at - 8:
            raise CorruptStream(f"piece {len(found)} of {length} bytes; {len(data) - at - 8} are left")
        found.append((score, data[at + 8 : at + 8 + length]))
        at += 8 + length
    return found


class Words:
    """A tokenizer as far as `Reader` asks for one: the best-scored pair is merged first."""

    is_fast, bos_token_id, eos_token_id = False, 1, 2

    def __init__(self, pieces: Sequence[tuple[float, bytes]]) -> None:
        self.pieces = [p for _, p in pieces]
        self.scores = [s for s, _ in pieces]
        self.ids = {p: i for i, p in reversed(list(enumerate(self.pieces)))}

    def __call__(self, text: str | list[str], **_: Any) -> dict[str, Any]:
        """Token ids of a text, or of each of several."""
        if isinstance(text, str):
            return {"input_ids": [i for line in text.splitlines(True) for i in self._encode(line)]}
        return {"input_ids": [self(t)["input_ids"] for t in text]}

    def _encode(self, line: str) -> list[int]:
        ids: list[int] = []
        for c in line:
            known = self.ids.get(c.encode())
            ids += [known] if known is not None else [b + 3 for b in c.encode()]
        while True:
            pairs = [self.ids.get(self.pieces[a] + self.pieces[b]) for a, b in zip(ids, ids[1:], strict=False)]
            scored = [(self.scores[i], -at) for at, i in enumerate(pairs) if i is not None]
            if not scored:
                return ids
            at = -max(scored)[1]
            ids[at : at + 2] = [pairs[at]]  # type: ignore[list-item]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens; bytes that are no UTF-8 by themselves are replaced."""
        whole = b"".join(bytes([i - 3]) if 3 <= i <= 258 else self.pieces[i] for i in map(int, ids))
        return whole.decode("utf-8", "replace")
