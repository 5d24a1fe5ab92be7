from __future__ import annotations

import gc
from copy import deepcopy
from typing import Any

import pytest
import torch

from laconic.core.combine import chain
from laconic.core.errors import BadConfig
from laconic.core.stage import Stage
from laconic.entropy.coders import Pack
from laconic.kv import cache
from laconic.quantize.base import Quantizer
from laconic.quantize.codebooks import Uniform
from laconic.quantize.scales import Along, GroupScale, MinMax
from laconic.recipes.kv.xquant import xquant, xquant_cl
from laconic.sources.kv.recipe import CacheRecipe

from .caches import IDS, divergence, llama, predictions


def codes(bits: int, group: int, axis: int) -> Stage:
    return chain(Quantizer(Uniform(1 << bits, 0.0), GroupScale(Along(group, axis), MinMax())), Pack())


def kivi(bits: int) -> CacheRecipe:
    """Keys by channel, values by token, as KIVI has them."""
    return CacheRecipe(lambda _: codes(bits, 64, -2), lambda _: codes(bits, 64, -1), bits, window=16)


def held(past: object) -> int:
    return sum(layer.store.nbytes for layer in past.compressed)  # type: ignore[attr-defined]


def test_inputs_at_four_bits_take_what_keys_and_values_take_at_two_and_lose_less() -> None:
    model = llama(kv_heads=4)
    x, kv = cache(model, recipe=xquant(4, group=64)), cache(model, recipe=kivi(2))
    lost = divergence(model, x), divergence(model, kv)
    assert held(x) <= held(kv)
    assert lost[0] < 0.3 * lost[1]


def test_across_layers_the_change_of_the_stream_takes_fewer_bits_than_the_input() -> None:
    """Where layers change the stream little, as those of trained models do, 2 bits of the change do better than 2 of X."""
    model = llama(kv_heads=4, n_layers=8, update=0.5)
    cl, x = (cache(model, recipe=r) for r in (xquant_cl(2, base_bits=4, group=64), xquant(3, group=64, window=16)))
    lost = divergence(model, cl), divergence(model, x)
    assert held(cl) <= held(x)
    assert lost[0] < lost[1]


def test_errors_do_not_add_up_over_layers() -> None:
    """Closed loop: the stream of the last layer is off by its own codes, not by those of all layers before."""
    model = llama(kv_heads=4, n_layers=8, update=0.5)
    past, seen = cache(model, recipe=xquant_cl(3, base_bits=3, group=64)), {}

    def note(n: int, args: Any, kwargs: Any) -> None:
        seen.setdefault(n, args[0] if args else kwargs["hidden_states"])

    hooks = [
        layer.register_forward_pre_hook(lambda m, a, k, n=n: note(n, a, k), with_kwargs=True)
        for n, layer in enumerate(model.model.layers)
    ]
    predictions(model, past, IDS[:1], prefill=280)
    for hook in hooks:
        hook.remove()
    n = past.layers[0].store.n_tokens
    off = [float((past.layers[i].store.stream(0, n) - seen[i][:, :n]).square().mean()) for i in range(1, 8)]
    change = [float((seen[i][:, :n] - seen[i - 1][:, :n]).square().mean()) for i in range(1, 8)]
    part = [a / b for a, b in zip(off, change, strict=True)]
    assert max(part) < 2 * part[0] < 0.2


def test_grouped_queries_keep_what_the_projections_see() -> None:
    """Two key-value heads of four: latents as wide as keys and as values, and 8 bits of them are next to exact."""
    model = llama(kv_heads=2)
    past = cache(model, recipe="xquant", bits=8)
    assert divergence(model, past) < 1e-4
    assert [p.codec for p in past.layers[0].store.pasts] and len(past.layers[0].store.pasts) == 2
    assert past.layers[0].store.pasts[0].tile(0, 64).shape[-1] == 32


@pytest.mark.parametrize("recipe", ["xquant", "xquant-cl"])
def test_padding_on_the_left_moves_nothing(recipe: str) -> None:
    model = llama(kv_heads=4)
    mask = torch.ones(2, IDS.shape[1], dtype=torch.long)
    mask[1, :21] = 0
    wide = {"bits": 8} if recipe == "xquant" else {"bits": 8, "base_bits": 8}
    assert divergence(model, cache(model, recipe=recipe, **wide), attention_mask=mask) < 1e-3


def test_crop_and_reorder() -> None:
    model = llama(kv_heads=4)
    past = cache(model, recipe="xquant", bits=8)
    first = predictions(model, past)
    past.crop(-20)
    past.reorder_cache(torch.tensor([1, 0]))
    with torch.inference_mode():
        again = model(input_ids=IDS[:2].flip(0)[:, -20:], past_key_values=past).logits.log_softmax(-1).flip(0)
    assert torch.allclose(again[:, -8:], first[:, -8:], atol=0.3)


def test_hooks_go_with_the_cache() -> None:
    model = llama(kv_heads=4)

    def hooks() -> int:
        return sum(len(m._forward_pre_hooks) for m in model.modules())

    before = hooks()
    past = cache(model, recipe="xquant")
    assert hooks() > before
    copy = deepcopy(past)
    with pytest.raises(BadConfig, match="no copy"):
        model(input_ids=IDS[:1], past_key_values=copy)
    del past, copy
    gc.collect()
    assert hooks() == before


def test_a_model_is_needed() -> None:
    with pytest.raises(BadConfig, match="give the model"):
        cache(llama().config, recipe="xquant")
    with pytest.raises(BadConfig, match="bits"):
        xquant(9)
