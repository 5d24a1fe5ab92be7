from __future__ import annotations

import torch

from laconic.core.combine import chain
from laconic.core.stage import Stage
from laconic.entropy.coders import Pack
from laconic.kv import cache, fit
from laconic.quantize.base import Quantizer
from laconic.quantize.codebooks import Uniform
from laconic.quantize.scales import Along, GroupScale, MinMax
from laconic.recipes.kv.rotatekv import rotatekv
from laconic.transforms.rotation import Hadamard

from .caches import IDS, divergence, llama


def keys(n_large: int, size: float, seed: int = 0) -> torch.Tensor:
    """(4, 512, 64): noise around means that are far from 0 in the first channels, as those of keys before RoPE are."""
    x = torch.randn(4, 512, 64, generator=torch.Generator().manual_seed(seed))
    x[:, :, :n_large] += size * torch.randn(4, 1, 64, generator=torch.Generator().manual_seed(99))[:, :, :n_large]
    return x


def error(codec: Stage, x: torch.Tensor) -> float:
    """Relative to what differs between tokens."""
    return float((x - codec.decode(*codec.encode(x))).square().sum() / (x - x.mean(1, keepdim=True)).square().sum())


def test_each_step_takes_error_away() -> None:
    """By token at 2 bits: as it is, rotated by head, over four heads, and with groups of like channels."""
    codes = Quantizer(Uniform(4, 0.0), GroupScale(Along(64, -1), MinMax())), Pack()
    for n_large, size in ((2, 15.0), (64, 3.0)):
        full = rotatekv(2).keys(2.0).fit(keys(n_large, size, seed=1))
        grouped = chain(*(s for i, s in full.children().items() if i != "2"))
        plain, rotated, joined, ordered = (
            error(c, keys(n_large, size)) for c in (chain(*codes), chain(Hadamard(None), *codes), grouped, full)
        )
        assert joined < 1.02 * rotated and ordered < 0.7 * min(plain, rotated, joined)


def test_through_a_model_with_a_massive_token() -> None:
    """A token whose embedding has one value a thousand times the others: spared, and read as it was."""
    model = llama()
    past = cache(model, recipe=fit(model, recipe="rotatekv", calibration=IDS[2:]))
    assert divergence(model, past) > 0
    assert past.compressed[0].store.spared == [[], []], "these inputs have no massive values"
    with torch.no_grad():
        kept = model.model.embed_tokens.weight[7].clone()
        model.model.embed_tokens.weight[7, 3] = 1e3 * float(kept.abs().median())
        ids = IDS[:2].clone()
        ids[:, 40] = 7
        ids[ids == 7] = torch.where(torch.arange(ids.shape[1]).expand_as(ids)[ids == 7] == 40, 7, 8)
        past = cache(model, recipe=fit(model, recipe="rotatekv", calibration=IDS[2:]))
        divergence(model, past, ids)
        model.model.embed_tokens.weight[7] = kept
    assert past.compressed[0].store.at == [[40], [40]]
    assert past.report().layers[0].notes == ("2 tokens spared",)
