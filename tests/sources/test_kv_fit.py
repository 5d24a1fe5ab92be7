"""Codecs of caches that are fitted: to calibration, to a prompt, with budgets by measured loss; and where codes lie."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="the hf extra is not installed")

import transformers

from laconic.core.errors import BadConfig, BadInput, ModelMismatch
from laconic.quantize.coordinates import BLOCK
from laconic.sources.kv import attention
from laconic.sources.kv.budgets import shared
from laconic.sources.kv.cache import budgeted, recipe_of
from laconic.sources.kv.cache import cache as make_cache
from laconic.sources.kv.fit import fit
from laconic.sources.kv.metric import query_metric
from laconic.sources.kv.past import PagedPast
from laconic.sources.kv.rope import Rope
from laconic.sources.kv.store import PairStore, Site

IDS = torch.randint(0, 96, (3, 320), generator=torch.Generator().manual_seed(1))


@cache
def llama() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.mul_(5)
    return model


def logits(model: Any, past: Any, prefill: int = 256) -> torch.Tensor:
    """Of the tokens behind a prefill, one by one."""
    ids = IDS[:1]
    with torch.inference_mode():
        model(input_ids=ids[:, :prefill], past_key_values=past)
        return torch.cat(
            [model(input_ids=ids[:, i : i + 1], past_key_values=past).logits[0] for i in range(prefill, 320)]
        )


def kl(past: Any) -> float:
    model = llama()
    p, q = (logits(model, c).log_softmax(-1) for c in (transformers.DynamicCache(config=model.config), past))
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_more_bits_lose_less_and_measured_budgets_keep_the_mean() -> None:
    fitted = {b: fit(llama(), recipe="auto", bits=b, calibration=IDS) for b in (2.0, 4.0)}
    lost = {b: kl(make_cache(llama(), recipe=f)) for b, f in fitted.items()}
    assert lost[4.0] < 0.5 * lost[2.0]
    for b, f in fitted.items():
        assert np.mean(list(f.rates.values())) <= b + 1e-6
        assert np.mean(list(f.rates.values())) > b - 0.05
        for (keys, values), rates in zip(f.codecs.values(), f.rates.values(), strict=True):
            for codec, rate in zip((keys, values), rates, strict=True):
                assert codec.stages[-1].widths.mean() <= rate + 1e-6


def test_packed_and_dense_reading_agree() -> None:
    f = fit(llama(), recipe="auto", bits=3.0, calibration=IDS)
    packed = logits(llama(), make_cache(llama(), recipe=f))
    attention.detach(llama())
    dense = logits(llama(), make_cache(llama(), recipe=f, attention="dense"))
    assert float((packed - dense).abs().max()) < 0.02 * float(dense.abs().max())


def test_what_a_prompt_taught_counts_and_calibration_is_shared() -> None:
    own = make_cache(llama(), recipe="auto", bits=3.0)
    logits(llama(), own, prefill=300)
    assert own.shared_nbytes == 0 and all("learned from the prompt" in r.notes[0] for r in own.report().layers)
    f = fit(llama(), recipe="auto", bits=3.0, calibration=IDS)
    calibrated = make_cache(llama(), recipe=f)
    logits(llama(), calibrated, prefill=300)
    assert calibrated.shared_nbytes == f.nbytes > 0
    assert calibrated.nbytes < own.nbytes


def test_budget_at_a_length_counts_windows_and_sinks() -> None:
    recipe = recipe_of("turboquant", None)[1]
    made, rate = budgeted(recipe, 4.0, 1000, 16, 4)
    ends = 20 + 3.5
    assert abs(rate * (1000 - ends) + 16 * ends - 4000) < 1e-6 and made.window == 16
    with pytest.raises(BadConfig, match="kept as they are"):
        budgeted(recipe, 4.0, 20, None, None)
    with pytest.raises(BadConfig, match="alone take"):
        budgeted(recipe, 1.0, 200, None, None)


def test_refusals() -> None:
    with pytest.raises(BadInput, match="tokens to calibrate"):
        fit(llama(), recipe="auto", calibration=IDS[:1])
    with pytest.raises(BadConfig, match="learns nothing"):
        fit(llama(), recipe="turboquant", calibration=IDS)
    with pytest.raises(BadConfig, match="did you mean"):
        make_cache(llama(), recipe="turboqant")
    with pytest.raises(BadConfig, match="unknown setting"):
        make_cache(llama(), recipe="turboquant", sede=1)
    f = fit(llama(), recipe="auto", bits=3.0, calibration=IDS)
    other = transformers.LlamaConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2)
    with pytest.raises(ModelMismatch, match="another model"):
        make_cache(other, recipe=f)


def test_shared_rates_follow_losses() -> None:
    rates = shared(np.array([[1.0, 4.0], [16.0, 1e-12]]), 3.0)
    assert abs(rates.mean() - 3) < 1e-6 and abs(rates[0, 1] - rates[0, 0] - 1) < 1e-6
    assert rates.min() >= 1.5 and rates.max() <= 4.5


def test_query_metric_is_what_turned_queries_have_in_the_mean() -> None:
    rope = Rope(tuple(0.7 ** np.arange(4)), 1.0)
    g = torch.Generator().manual_seed(0)
    q = torch.randn(1, 2, 400, 8, generator=g) * torch.linspace(0.5, 2, 8)
    turned = torch.cat([rope.turn(q, 991 * i) for i in range(50)], 2)
    found = query_metric(q, 1, rope)[0]
    true = torch.einsum("bhid,bhie->de", turned, turned) / turned[0, :, :, 0].numel()
    assert float((found.diagonal() / true.diagonal() - 1).abs().max()) < 0.1


@pytest.mark.parametrize("scale", ["none", "token"])
def test_pages_hold_what_the_codec_gives_however_tokens_come(scale: str) -> None:
    from laconic.core.combine import chain
    from laconic.quantize.coordinates import CoordinateCodes
    from laconic.transforms.heads import HeadBasis

    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 2, 200, 16, generator=g) @ torch.randn(16, 16, generator=g)
    codec = chain(HeadBasis(), CoordinateCodes(2.5, scale=scale)).fit(x)
    whole = codec.decode(*codec.encode(x))
    past, at = PagedPast(codec, 2, 16), 0
    for n in (1, 63, 7, 64, 65):
        past.append(x[:, :, at : at + n])
        at += n
    assert float((past.tile(0, 200) - whole).abs().max()) < 1e-4
    assert float((past.tile(70, 131) - whole[:, :, 70:131]).abs().max()) < 1e-4
    n_blocks = -(-200 // BLOCK)
    per_block = int(past.tables.block_bytes.sum()) + (2 * 2 * BLOCK if scale == "token" else 0)
    assert past.nbytes == 2 * n_blocks * per_block

    past.crop(100)
    past.append(x[:, :, 100:150])
    assert float((past.tile(0, 150) - whole[:, :, :150]).abs().max()) < 1e-4
    past.select([1, 1, 0])
    assert past.nbytes == 2 * 3 * per_block  # two sequences are the same codes
    past.append(x[[1, 1, 0], :, 150:160])
    assert float((past.tile(128, 160) - whole[[1, 1, 0], :, 128:160]).abs().max()) < 1e-4
    past.forget(130)
    assert past.first == 128 and float((past.tile(130, 160) - whole[[1, 1, 0], :, 130:160]).abs().max()) < 1e-4


def test_keys_before_rope_come_back_turned() -> None:
    rope = Rope(tuple(0.9 ** np.arange(8)), 1.0)
    recipe = recipe_of("auto", None)[1]
    x = torch.randn(1, 2, 2300, 16, generator=torch.Generator().manual_seed(3))
    codecs = recipe.keys(6.0).fit(x), recipe.values(6.0).fit(x)
    store = PairStore(*codecs, Site(0, 2, 16, 16, rope), "once", first=4)
    turned = rope.turn(x, 4)
    store.append(turned[:, :, :130], x[:, :, :130])
    store.append(turned[:, :, 130:], x[:, :, 130:])  # more than is coded at once
    keys = torch.cat([store.tile(a, b)[0] for a, b in store.bounds()], 2)
    assert float((keys - turned).square().mean() / x.square().mean()) < 4e-3
