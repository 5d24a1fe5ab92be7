"""The settings each peer is measured at: its good ones, from two to four bits a parameter of the whole model."""

from __future__ import annotations

from typing import Any

Settings = dict[str, dict[str, Any]]

# Formats of llama.cpp with the embeddings that are worth their bytes beside them; None leaves the embedding to the tool.
LLAMA_CPP = {
    "IQ1_S": ("iq2_s", "q3_k", "q4_k"),
    "IQ1_M": (None, "iq2_s", "q3_k", "iq4_xs", "q4_k"),
    "IQ2_XXS": (None, "iq1_m", "iq2_xxs", "iq2_s", "iq3_s", "iq4_xs", "q4_k"),
    "IQ2_XS": (None, "iq2_s", "iq3_s", "iq4_xs", "q4_k"),
    "IQ2_S": (None, "iq2_s", "iq3_s", "iq4_xs", "q4_k"),
    "IQ2_M": (None, "iq3_s", "iq4_xs", "q4_k"),
    "Q2_K": (None, "q2_K", "q4_k"),
    "IQ3_XXS": (None, "iq3_s", "iq4_xs", "q4_k"),
    "IQ3_S": (None, "iq3_s", "iq4_xs", "q4_k"),
    "IQ3_M": (None, "iq4_xs"),
    "Q3_K_S": (None, "q4_k"),
    "Q3_K_M": (None, "q4_k"),
    "IQ4_XS": (None, "iq4_xs", "q4_k"),
    "Q4_K_S": (None, "q4_k"),
    "Q4_K_M": (None, "q4_k"),
    "Q5_K_S": (None,),
    "Q6_K": (None,),
}


def llama_cpp() -> Settings:
    """File types with importance matrix; a tied embedding at the tool's choice or at a named type."""
    return {
        f"{kind}{'' if embedding is None else ' emb ' + embedding}": {"type": kind, "embedding": embedding}
        for kind, embeddings in LLAMA_CPP.items()
        for embedding in embeddings
    }


def _embedding(code: tuple[int, int] | None) -> dict[str, int] | None:
    return None if code is None else {"bits": code[0], "group": code[1]}


def _label(name: str, code: tuple[int, int] | None) -> str:
    return name if code is None else f"{name} emb int{code[0]}g{code[1]}"


EMBEDDINGS: tuple[tuple[int, int] | None, ...] = (None, (8, 64), (4, 64), (4, 32))


def half_quadratic() -> Settings:
    """4, 3 and 2 bits; the embedding in 16 bits, or by hqq too."""
    return {
        _label(f"{bits} bits g{group}", code): {"bits": bits, "group": group, "axis": 1, "embedding": _embedding(code)}
        for bits in (4, 3, 2)
        for group in (16, 32, 64)
        for code in EMBEDDINGS
    }


def llm_compressor() -> Settings:
    """GPTQ and AWQ at 4, 3 and 2 bits; the embedding in 16 bits, or rounded to nearest with searched scales."""
    observers = {"gptq": "memoryless_minmax", "awq": "memoryless_mse"}
    groups = {4: (128,), 3: (128, 32), 2: (64, 16)}
    return {
        _label(f"{method} {bits} bits g{group}", code): {
            "method": method,
            "bits": bits,
            "group": group,
            "symmetric": False,
            "observer": observer,
            "embedding": _embedding(code),
        }
        for method, observer in observers.items()
        for bits in (4, 3, 2)
        for group in groups[bits]
        for code in EMBEDDINGS
    }


def gptq_model() -> Settings:
    """GPTQ, asymmetric, in its group-aware order, at 4, 3 and 2 bits; embeddings as for llm-compressor."""
    options = {"sym": False, "act_group_aware": True}
    return {
        _label(f"gptq {bits} bits g{group}", code): {
            "bits": bits,
            "group": group,
            "options": options,
            "embedding": _embedding(code),
        }
        for bits, group in ((4, 128), (3, 32), (2, 32))
        for code in EMBEDDINGS
    }
