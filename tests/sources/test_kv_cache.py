"""What a compressed cache must survive: every kind of attention, padding, beams, cropping, half precision, NaN, reuse."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="the hf extra is not installed")

import transformers

import laconic
from laconic.core.errors import BadConfig, BadInput
from laconic.sources.kv.attention import NAME, attach, detach
from laconic.sources.kv.cache import CompressedCache
from laconic.sources.kv.rope import Rope, rope_of, ropes_of
from tests.sources.kv_models import MADE, ids, model

N, MORE = 150, 50  # tokens of a prompt, and behind it
PACKED = sorted(set(MADE) - {"gptj"})  # GPT-J computes its attention itself


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(m: Any, past: Any, x: torch.Tensor, *steps: int, **more: Any) -> torch.Tensor:
    """Logits of tokens that come in steps, then one by one."""
    out, at = [], 0
    with torch.inference_mode():
        for n in [*steps, *[1] * (x.shape[1] - sum(steps))]:
            out.append(m(input_ids=x[:, at : at + n], past_key_values=past, use_cache=True, **more).logits.float())
            at += n
    return torch.cat(out, 1)


def plain(m: Any, x: torch.Tensor, *steps: int) -> torch.Tensor:
    return run(m, transformers.DynamicCache(config=m.config), x, *(steps or (N,)))


def kl(p: torch.Tensor, q: torch.Tensor) -> float:
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def generated(m: Any, x: torch.Tensor, past: Any = None, n: int = 40, **more: Any) -> torch.Tensor:
    """New tokens of greedy generation or beam search, and nothing but those."""
    more = {"attention_mask": torch.ones_like(x), "do_sample": False, "pad_token_id": 0, **more}
    return m.generate(x, past_key_values=past, max_new_tokens=n, **more)[:, x.shape[1] :]


def likelihood(
    m: Any, x: torch.Tensor, new: torch.Tensor, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of tokens that follow x, without compression: their log-probabilities, and those of the best in their place."""
    whole = torch.cat([x, new], 1)
    mask = torch.cat([torch.ones_like(x) if mask is None else mask, torch.ones_like(new)], 1)
    with torch.inference_mode():
        out = m(input_ids=whole, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    p = out.logits[:, x.shape[1] - 1 : -1].float().log_softmax(-1)
    return p.gather(2, new[..., None])[..., 0], p.amax(-1)


def greedy(m: Any, x: torch.Tensor, new: torch.Tensor, mask: torch.Tensor | None = None) -> bool:
    """Whether every token is the one that the uncompressed model prefers, or as good."""
    got, best = likelihood(m, x, new, mask)
    return float((best - got).max()) < 0.05


# --- rotary positions


def projected(m: Any) -> tuple[dict[int, torch.Tensor], list[Any]]:
    """What key projections (and norms behind them) give, by layer; filled by the next forward pass."""
    found: dict[int, torch.Tensor] = {}
    hooks = []
    for module in m.modules():
        n = getattr(module, "layer_idx", None)
        fused = next((getattr(module, k) for k in ("qkv_proj", "query_key_value") if hasattr(module, k)), None)
        if not isinstance(n, int) or not (hasattr(module, "k_proj") or fused):
            continue
        norm = None if "NanoChat" in type(module).__name__ else getattr(module, "k_norm", None)

        def keep(_: Any, __: Any, y: torch.Tensor, n: int = n, fused: Any = fused, module: Any = module) -> None:
            d = module.head_dim if hasattr(module, "head_dim") else module.head_size
            if fused is not None and "NeoX" in type(module).__name__:
                y = y.unflatten(-1, (-1, 3 * d))[..., d : 2 * d]
            elif fused is not None:
                first = module.config.num_attention_heads * d
                y = y[..., first : first + module.config.num_key_value_heads * d]
            y = y if y.ndim == 4 else y.unflatten(-1, (-1, d))
            found[n] = y.transpose(1, 2) if y.shape[2] < y.shape[1] else y

        hooks.append((fused or norm or module.k_proj).register_forward_hook(keep))
    return found, hooks


@pytest.mark.parametrize("kind", sorted(set(MADE) - {"gpt2"}))
def test_keys_without_their_rotation_are_what_was_projected(kind: str) -> None:
    m = model(kind)
    found, hooks = projected(m)
    past = transformers.DynamicCache(config=m.config)
    ropes = ropes_of(m)
    assert {r is None for r in ropes.values()} == {"opt": {True}, "jamba": {True}}.get(
        kind, {False, True} if kind in ("cohere2", "smollm3", "bamba", "qwen3-next") else {False}
    )
    run(m, past, ids(40, 2), 40)
    for hook in hooks:
        hook.remove()
    assert found
    for n, before in found.items():
        keys, rope = past.layers[n].keys, ropes[n]
        if kind == "nanochat":  # normed behind the rotation, which leaves norms as they are
            before = before * torch.rsqrt(before.square().mean(-1, keepdim=True) + 1e-6)
        still = keys if rope is None else rope.turn(keys, 0, back=True)
        assert (still - before).abs().max() < 2e-4 * before.abs().max(), n
        assert rope is None or (keys - before).abs().max() > 0.1 * before.abs().max()


def test_a_configuration_says_how_pairs_lie() -> None:
    for kind, interleaved in (("llama", False), ("cohere", True), ("glm", True), ("gptj", True), ("phi", False)):
        found = rope_of(model(kind).config)
        assert found is not None and found.interleaved is interleaved, kind
    assert rope_of(model("gpt2").config) is None
    with pytest.raises(BadConfig, match="length of the text"):
        rope_of(transformers.LlamaConfig(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}))


def test_keys_that_turn_otherwise_are_refused() -> None:
    m = model("llama")
    other = transformers.LlamaForCausalLM(m.config).eval()
    other.model.rotary_emb.inv_freq.mul_(0.3)
    with pytest.raises(BadConfig, match="do not turn"):
        ropes_of(other)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rows_may_begin_at_positions_of_their_own(interleaved: bool) -> None:
    rope = Rope((1.0, 0.3, 0.01), 1.2, interleaved)
    x = torch.randn(3, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    start = torch.tensor([0, -4, 9])
    turned = rope.turn(x, start)
    for b, s in enumerate(start.tolist()):
        torch.testing.assert_close(turned[b], rope.turn(x[b], s))
    torch.testing.assert_close(rope.turn(turned, start, back=True), x)


# --- every kind of attention


@pytest.mark.parametrize("kind", PACKED)
def test_eight_bits_are_as_good_as_none_and_two_are_worse(kind: str) -> None:
    m, x = model(kind), ids(N + MORE, 2)
    attach(m)
    expected = plain(m, x)
    losses = []
    for bits in (8, 2):
        past = laconic.kv.cache(m, recipe="turboquant", bits=bits, window=16)
        losses.append(kl(expected, run(m, past, x, N)))
        assert all(layer.n_coded > 100 for layer in past.compressed)
    # At 8 bits what is left is half precision in the window and sixteen-bit sums in the kernel.
    assert losses[0] < 1e-4 and losses[1] > 5 * losses[0]


@pytest.mark.parametrize("kind", PACKED)
def test_dense_and_packed_agree(kind: str) -> None:
    m, x = model(kind), ids(N + 8, 2)
    packed = run(m, laconic.kv.cache(m, recipe="turboquant", bits=3), x, N)
    dense = run(m, laconic.kv.cache(m, recipe="turboquant", bits=3, attention="dense"), x, N)
    assert kl(dense, packed) < 1e-4


@pytest.mark.parametrize("kind", PACKED)
def test_without_a_cache_of_ours_a_model_computes_the_same_to_the_bit(kind: str) -> None:
    m, x = model.__wrapped__(kind), ids(70, 2)
    mask = torch.ones_like(x)
    mask[0, :9] = 0

    def logits() -> torch.Tensor:
        with torch.inference_mode():
            past = transformers.DynamicCache(config=m.config)
            first = m(input_ids=x[:, :60], attention_mask=mask[:, :60], past_key_values=past, use_cache=True).logits
            more = m(input_ids=x[:, 60:], attention_mask=mask, past_key_values=past, use_cache=True).logits
            return torch.cat([m(input_ids=x).logits, torch.cat([first, more], 1)])

    before = logits()
    attach(m)
    assert m.config._attn_implementation == NAME
    assert torch.equal(before, logits())
    detach(m)
    assert m.config._attn_implementation != NAME
    assert torch.equal(before, logits())


def test_models_that_cannot_be_served_are_refused_by_name() -> None:
    with pytest.raises(BadConfig, match="GPTJ.*dense"):
        laconic.kv.cache(model("gptj"), recipe="turboquant")
    bart = transformers.BartConfig(vocab_size=96, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                                   decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32)  # fmt: skip
    with pytest.raises(BadConfig, match="encoder"):
        laconic.kv.cache(bart, recipe="turboquant")
    mamba = transformers.MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=96, state_size=8)
    with pytest.raises(BadConfig, match="no attention layer"):
        laconic.kv.cache(mamba, recipe="turboquant")


def test_a_model_that_computes_attention_itself_works_densely() -> None:
    m, x = model("gptj"), ids(N + MORE, 2)
    past = laconic.kv.cache(m, recipe="turboquant", bits=8, attention="dense")
    assert kl(plain(m, x), run(m, past, x, N)) < 1e-4


def test_a_model_that_changes_keys_behind_the_cache_is_refused() -> None:
    m = model("llama")
    past = laconic.kv.cache(m, recipe="turboquant")
    update = past.layers[1].update
    past.layers[1].update = lambda k, v, *a, **b: tuple(t * 1 for t in update(k, v, *a, **b))
    with pytest.raises(BadConfig, match="changes keys"):
        run(m, past, ids(20), 18)


# --- batches


@cache
def fitted(kind: str) -> Any:
    return laconic.kv.fit(model(kind), recipe="auto", rope="before", bits=6.0, calibration=ids(400, 2, seed=5))


def a_cache(kind: str, recipe: str, attention: str) -> CompressedCache:
    """At six bits."""
    if recipe == "auto":
        return laconic.kv.cache(model(kind), recipe=fitted(kind), attention=attention)
    return laconic.kv.cache(model(kind), recipe=recipe, bits=6, window=16, attention=attention)


def forced(m: Any, past: Any, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Logits with padding, positions as `generate` counts them: the first N tokens at once, then one by one."""
    place = (mask.cumsum(1) - 1).clamp(min=0)
    out, at = [], 0
    with torch.inference_mode():
        for n in [N, *[1] * (x.shape[1] - N)]:
            inputs = {"input_ids": x[:, at : at + n], "position_ids": place[:, at : at + n]}
            out.append(m(**inputs, attention_mask=mask[:, : at + n], past_key_values=past, use_cache=True).logits)
            at += n
    return torch.cat(out, 1)


@pytest.mark.parametrize("attention", ["packed", "dense"])
@pytest.mark.parametrize("recipe", ["turboquant", "auto"])
@pytest.mark.parametrize("kind", ["llama", "gemma3", "cohere"])
def test_a_padded_row_is_what_it_is_alone(kind: str, recipe: str, attention: str) -> None:
    m, x, pad = model(kind), ids(N + 30, 2), 61
    mask = torch.ones_like(x)
    mask[1, :pad] = 0
    both = forced(m, a_cache(kind, recipe, attention), x, mask)
    alone = run(m, a_cache(kind, recipe, attention), x[1:, pad:], N - pad)
    assert kl(plain(m, x[:1]), both[:1]) < 1e-3
    assert kl(alone[:, N - pad :], both[1:, N:]) < 1e-3
    exact = plain(m, x[1:, pad:], N - pad)[:, N - pad :]
    # Positions are those that the model saw: codecs that were fitted to them lose as little as without padding.
    assert kl(exact, both[1:, N:]) < 3 * kl(exact, alone[:, N - pad :]) + 1e-6


@pytest.mark.parametrize("recipe", ["turboquant", "auto"])
def test_generation_of_padded_rows(recipe: str) -> None:
    m, x = model("llama"), ids(90, 2)
    x[1, :33] = 0
    mask = (x != 0).long()
    past = a_cache("llama", recipe, "packed")
    new = generated(m, x, past, attention_mask=mask)
    assert greedy(m, x[:1], new[:1]) and greedy(m, x[1:, 33:], new[1:])
    assert past.compressed[0].n_coded > 90


@pytest.mark.parametrize("n", [1, 5, 63, 64])
def test_prompts_shorter_than_a_group_and_generation_past_the_window(n: int) -> None:
    m, x = model("llama"), ids(n)
    past = laconic.kv.cache(m, recipe="turboquant", bits=8, window=8)
    assert greedy(m, x, generated(m, x, past, 120))
    layer = past.compressed[0]
    assert layer.n_seen == n + 119 and layer.n_coded >= layer.n_seen - 8 - 64


def test_sliding_layers_let_go_of_what_is_behind_them() -> None:
    m, x = model("gemma3"), ids(40)
    past = laconic.kv.cache(m, recipe="turboquant", bits=8, window=8)
    assert greedy(m, x, generated(m, x, past, 300))
    sliding, full = past.compressed
    assert sliding.n_seen == full.n_seen and sliding.nbytes < full.nbytes / 2


@pytest.mark.parametrize("kind", ["llama", "gemma3", "qwen3-next"])
def test_beams_are_reordered_with_their_codes(kind: str) -> None:
    m, x = model(kind), ids(80, 2)
    past = laconic.kv.cache(m, recipe="turboquant", bits=8, window=8)
    said = m.generate(x, attention_mask=torch.ones_like(x), past_key_values=past, max_new_tokens=50, num_beams=3, do_sample=False,
                      length_penalty=0.0, return_dict_in_generate=True, output_scores=True)  # fmt: skip
    found = likelihood(m, x, said.sequences[:, x.shape[1] :])[0].sum(1)
    # The score that a beam gathered through the cache is that of its tokens; mixed with another's history it is not.
    torch.testing.assert_close(said.sequences_scores, found, atol=0.5, rtol=0)
    assert all(layer.n_coded for layer in past.compressed)


def test_sequences_are_repeated_and_selected_without_copies_of_their_codes() -> None:
    m, x = model("llama"), ids(N + 20, 2)
    past = laconic.kv.cache(m, recipe="turboquant", bits=4)
    alone = laconic.kv.cache(m, recipe="turboquant", bits=4)
    expected = run(m, alone, x, N)[:, N:]
    run(m, past, x[:, :N], N)
    codes = sum(layer.store.nbytes for layer in past.compressed)
    past.batch_repeat_interleave(2)
    assert sum(layer.store.nbytes for layer in past.compressed) == codes
    past.batch_select_indices(torch.tensor([3, 0]))
    got = run(m, past, x[[1, 0], N:])
    torch.testing.assert_close(got, expected[[1, 0]], atol=1e-4, rtol=1e-4)


def test_another_batch_size_is_refused_by_name() -> None:
    m = model("llama")
    past = laconic.kv.cache(m, recipe="turboquant")
    run(m, past, ids(20, 2), 20)
    with pytest.raises(BadInput, match="reset the cache"):
        run(m, past, ids(1, 3), 1)


# --- steps


@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt-oss", "falcon-h1"])
def test_a_prompt_may_come_in_pieces(kind: str) -> None:
    m, x = model(kind), ids(N + 10, 2)
    pieces = run(m, laconic.kv.cache(m, recipe="turboquant", bits=8, window=16), x, 64, 3, 50, 33)
    assert kl(plain(m, x), pieces) < 1e-4


def recipes() -> dict[str, Any]:
    """One for codes in pages, one for codes in runs."""
    from laconic.sources.kv.recipe import CacheRecipe, half

    return {
        "pages": "turboquant",
        "runs": CacheRecipe(lambda _: half(), lambda _: half(), 16.0, group=32, window=8, sinks=3),
    }


@pytest.mark.parametrize("which", ["pages", "runs"])
@pytest.mark.parametrize("left", [0, 2, 40, 77, 128, 149])
def test_cropped_into_a_coded_group_and_going_on(which: str, left: int) -> None:
    m, x, other = model("llama"), ids(N), ids(60, seed=3)
    settings = {"bits": 8, "window": 8, "sinks": 3} if which == "pages" else {}
    past = laconic.kv.cache(m, recipe=recipes()[which], **settings)
    run(m, past, x, N)
    past.crop(left - N)
    assert past.get_seq_length() == left
    whole = torch.cat([x[:, :left], other], 1)
    expected = plain(m, whole, left or 1)[:, left:]
    assert kl(expected, run(m, past, other)) < 1e-4
    assert past.get_seq_length() == left + 60
    past.crop(0)
    with pytest.raises(BadConfig, match="negative"):
        past.crop(5)


def test_sliding_layers_are_cropped_where_they_were_told_to_keep() -> None:
    m, x = model("gemma3"), ids(N)
    past = laconic.kv.cache(m, recipe="turboquant", bits=8, window=8)
    run(m, past, x, N)
    with pytest.raises(BadInput, match="activate_past_recording"):
        past.crop(-3)
    past = laconic.kv.cache(m, recipe="turboquant", bits=8, window=8)
    run(m, past, x[:, :100], 100)
    past.activate_past_recording()
    run(m, past, x[:, 100:], 50)
    past.crop(-40)
    assert kl(plain(m, x, 100)[:, 110:], run(m, past, x[:, 110:])) < 1e-4
    kept = past.compressed[0].nbytes
    past.crop(0)
    assert past.compressed[0].nbytes < kept


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
@pytest.mark.parametrize("how", ["assistant", "lookup"])
def test_assisted_decoding(kind: str, how: str) -> None:
    m, x = model(kind), ids(20).repeat(1, 4)
    if how == "assistant":
        torch.manual_seed(1)
        more = {"assistant_model": type(m)(m.config).eval()}
        with torch.no_grad():
            for a, b in zip(more["assistant_model"].parameters(), m.parameters(), strict=True):
                a.copy_(b + 0.02 * torch.randn_like(b))  # mostly right, now and then wrong
    else:
        more = {"prompt_lookup_num_tokens": 4}
    past = laconic.kv.cache(m, recipe="turboquant", bits=8, window=8)
    assert greedy(m, x, generated(m, x, past, 60, **more))
    assert past.compressed[1].n_coded > 60


def test_reset_and_used_again() -> None:
    m, x = model("llama"), ids(N + 10, 2)
    past = laconic.kv.cache(m, recipe="turboquant", bits=3)
    first = run(m, past, x, N)
    past.reset()
    assert past.nbytes == 0 and past.get_seq_length() == 0
    assert torch.equal(first, run(m, past, x, N))
    past.reset()
    run(m, past, ids(5, 1), 5)


def test_learned_from_the_first_prompt_and_again_after_a_reset() -> None:
    m, x = model("llama"), ids(340, 1)
    past = laconic.kv.cache(m, recipe="auto", bits=8.0)
    assert kl(plain(m, x, 300), run(m, past, x, 300)) < 1e-3
    own = past.compressed[0].own_bytes
    assert own > 0 and f"{own:,} bytes learned from the prompt" in past.report().layers[0].notes
    past.reset()
    assert past.compressed[0].own_bytes == 0
    assert kl(plain(m, x, 300), run(m, past, x, 300)) < 1e-3
    short = laconic.kv.cache(m, recipe="auto", bits=3.0)
    run(m, short, ids(100), 100)
    assert short.compressed[0].n_coded == 0  # too little to learn from


# --- numbers


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "gpt-neox", "gemma3"])
def test_half_precision(kind: str, dtype: torch.dtype) -> None:
    m, x = model.__wrapped__(kind).to(dtype), ids(N + 20, 2)
    expected = plain(m, x)
    for attention in ("packed", "dense"):
        past = laconic.kv.cache(m, recipe="turboquant", bits=8, window=16, attention=attention)
        assert kl(expected, run(m, past, x, N)) < (1e-4 if dtype == torch.float16 else 3e-3)
        assert past.compressed[0].window.keys.dtype == dtype
        assert past.nbytes == held(past)


def fed(past: Any, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Give a cache all tokens of a layer, then one more; what attention would see."""
    past.update(keys[:, :, :-1], values[:, :, :-1], 0)
    return past.update(keys[:, :, -1:], values[:, :, -1:], 0)


@pytest.mark.parametrize("which", ["pages", "runs", "auto"])
def test_nan_in_one_head_is_named_and_harms_no_other(which: str) -> None:
    g = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, 1, 2, 400, 16, generator=g)
    settings: dict[str, Any] = {"bits": 4} if which != "runs" else {}
    recipe = {**recipes(), "auto": "auto"}[which]

    def seen(k: torch.Tensor) -> tuple[torch.Tensor, tuple[str, ...]]:
        past = laconic.kv.cache(model("llama").config, recipe=recipe, **settings)
        return fed(past, k, values)[0], past.report().layers[0].notes

    clean, notes = seen(keys)
    assert not any("NaN" in n for n in notes)
    broken = keys.clone()
    broken[0, 1, 100:103, 5] = torch.nan
    broken[0, 1, 200, 2] = torch.inf
    got, notes = seen(broken)
    assert any("NaN" in n and "head 1" in n for n in notes)
    if which == "auto":  # learned from the prompt: that of the other head is the same
        assert torch.equal(got[:, 0], clean[:, 0])
    assert torch.isfinite(got[:, 0]).all()
    torch.testing.assert_close(got[:, 0], clean[:, 0], atol=0.01, rtol=0.01)


def held(past: CompressedCache) -> int:
    """Bytes of the memory behind everything that a cache keeps of its prompt, each once."""
    seen: dict[int, int] = {}

    def walk(thing: Any) -> None:
        if isinstance(thing, torch.Tensor):
            seen[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        elif isinstance(thing, np.ndarray):
            base = thing if thing.base is None else thing.base
            seen[thing.ctypes.data] = base.nbytes if isinstance(base, np.ndarray) else thing.nbytes
        elif isinstance(thing, bytes):
            seen[id(thing)] = len(thing)
        elif isinstance(thing, dict):
            [walk(v) for v in thing.values()]
        elif isinstance(thing, (list, tuple)):
            [walk(v) for v in thing]

    for layer in past.compressed:
        for ends in (layer.sinks, layer.window):
            walk(ends and [ends.keys, ends.values])
        walk([layer.queries, layer.probes and [layer.probes.queries, layer.probes.at]])
        walk([a for c in layer.learned or () for _, a in c.arrays().values()])
        for one in () if layer.store is None else layer.store.pasts:
            pages = [p[:2] for pages in one.pages for p in pages] if one.paged else []
            walk(pages or [(c.payload, c.side) for r in one.runs for c in r.coded])
    return sum(seen.values())


@pytest.mark.parametrize("which", ["pages", "runs", "auto"])
def test_bytes_are_those_that_are_held(which: str) -> None:
    m = model("llama")
    past = laconic.kv.cache(
        m, recipe={**recipes(), "auto": "auto"}[which], **({} if which == "runs" else {"bits": 3.0})
    )
    run(m, past, ids(330, 2), 310)
    assert past.nbytes == held(past) > 0
    values = 2 * 2 * 330 * (16 + 16) * 2  # sequences, heads, tokens, a key and a value, layers
    assert past.n_values == values and past.bits_per_value == 8 * past.nbytes / values
    report = past.report()
    assert report.nbytes == sum(r.nbytes for r in report.layers) == past.nbytes
    assert report.recipe == past.recipe and [r.tokens for r in report.layers] == [330, 330]
    text = str(report)
    assert f"{past.nbytes:,} bytes, {past.bits_per_value:.2f} bits a value" in text
    assert len(text.splitlines()) == 4
