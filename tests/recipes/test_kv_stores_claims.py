"""Claims of caches with stores of their own, on the bundled model: KL at decode time at equal true bits, or tokens read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from laconic.kv import cache, fit
from laconic.recipes.kv.cskv import cskv
from laconic.recipes.kv.rekv import rekv
from laconic.recipes.kv.uncomp import uncomp
from laconic.recipes.kv.xquant import xquant, xquant_cl
from laconic.sources.kv.recipe import CacheRecipe
from laconic.sources.kv.tries import DeltaCoder, TokenCoder

from .caches import divergence, predictions
from .layers import english

PREFILL, N = 576, 640


def texts() -> torch.Tensor:
    """(2, 640) of the part of the text that calibration does not see, each behind the first token."""
    flat = english().held_out[:, 1:].flatten()
    rows = flat[: 2 * (N - 1)].reshape(2, N - 1)
    return torch.cat([torch.full((2, 1), english().model.config.bos_token_id), rows], 1)


def judged(recipe: Any, ids: torch.Tensor | None = None) -> tuple[float, float]:
    """(KL, true bits a value behind the last token)."""
    past = cache(english().model, recipe=recipe)
    return divergence(english().model, past, texts() if ids is None else ids, PREFILL), past.bits_per_value


def test_uncomp_entropy_budgets() -> None:
    base = uncomp(0.2)
    split, same, reverse = (judged(replace(base, evict=replace(base.evict, contrast=c))) for c in (1 / 3, 0.0, -1 / 3))
    assert max(abs(x[1] - split[1]) for x in (same, reverse)) < 0.02
    assert split[0] < same[0] < reverse[0]


def test_xquant_across_layers() -> None:
    """3 bits of the change against 3 bits of X: fewer bytes, and less is lost."""
    cl, x = (judged(r) for r in (xquant_cl(3, group=64), xquant(3, group=64)))
    assert cl[1] < x[1] and cl[0] < 0.7 * x[0]


def of_the_weights(fitted: Any, inputs: dict[int, torch.Tensor]) -> Any:
    """The same ranks by ASVD: left singular vectors of W S, S = mean |x| ** ½ of the inputs, no means."""
    found = {}
    for n, pair in fitted.codecs.items():
        module = english().model.model.layers[n].self_attn
        made = []
        for codec, weight in zip(pair, (module.k_proj.weight, module.v_proj.weight), strict=True):
            joint, *rest = codec.stages
            rank = joint.basis.synthesis.shape[1]
            u = torch.linalg.svd(weight.detach() * inputs[n].abs().mean(0) ** 0.5)[0][:, :rank]
            basis = joint.basis.replace(synthesis=u.T[None].numpy(), mean=0 * joint.basis.mean)
            made.append(codec.replace(stages=(joint.replace(basis=basis), *rest)))
        found[n] = tuple(made)
    return replace(fitted, codecs=found)


def test_cskv_tuned_latents_beat_asvd_at_the_same_bytes() -> None:
    model, ids = english().model, english().calibration[:16]
    inputs: dict[int, torch.Tensor] = {}

    def note(n: int, kwargs: Any) -> None:
        inputs[n] = kwargs["hidden_states"].flatten(0, 1)

    hooks = [
        layer.self_attn.register_forward_pre_hook(lambda m, a, k, n=n: note(n, k), with_kwargs=True)
        for n, layer in enumerate(model.model.layers)
    ]
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    fitted = fit(model, recipe=cskv(4.0), calibration=ids)
    tuned, asvd = judged(fitted), judged(of_the_weights(fitted, inputs))
    assert tuned[1] == asvd[1] and tuned[0] < 0.3 * asvd[0]


def test_cskv_the_window_is_worth_its_bytes() -> None:
    model, ids = english().model, english().calibration[:16]
    with_window, bare = (fit(model, recipe=cskv(4.0), calibration=ids, window=w) for w in (32, 0))
    assert judged(with_window)[0] < judged(bare)[0]


def test_rekv_reads_what_a_repeated_passage_asks_for() -> None:
    """A passage, other text, the passage again: blocks that are asked for, against the same number of the latest tokens."""
    a = texts()[0]
    ids = torch.cat([a[:192], texts()[1, 1:385], a[1:65]])[None]
    target = ids[:, PREFILL + 1 :, None]

    def nats(recipe: CacheRecipe) -> float:
        said = predictions(english().model, cache(english().model, recipe=recipe), ids, PREFILL)
        return -float(said[:, :-1].gather(2, target).mean())

    found, latest = nats(rekv(n_blocks=2, window=64)), nats(rekv(n_blocks=1, block=1, window=192))
    assert found < latest


def test_sequential_deltas() -> None:
    """The first layer at the same step takes fewer bits against what the model expects; the tokens take fewer still."""
    model, ids = english().model, texts()[0, 1:129].tolist()
    delta, direct = DeltaCoder(model, 0, 0.5), DeltaCoder(model, 0, 0.5, top=0)
    x = delta.table()[ids]
    n = [len(c.encode(x)) for c in (delta, direct)]
    assert n[0] < n[1]
    assert len(TokenCoder(model, 0).encode(ids)) < 0.05 * n[0]
