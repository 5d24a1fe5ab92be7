"""Claims of caches with stores of their own, on the bundled model: KL at decode time at equal true bits, or tokens read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from laconic.core.combine import chain
from laconic.core.stage import Stage
from laconic.entropy.coders import Pack
from laconic.kv import cache, fit
from laconic.quantize.base import Quantizer
from laconic.quantize.codebooks import Uniform
from laconic.quantize.scales import Along, GroupScale, MinMax
from laconic.recipes.kv.cskv import cskv
from laconic.recipes.kv.rekv import rekv
from laconic.recipes.kv.uncomp import uncomp
from laconic.recipes.kv.xquant import xquant
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


def by_channel_and_token(bits: int) -> CacheRecipe:
    """KIVI's, before RoPE, in the groups that XQuant has."""

    def codes(axis: int) -> Stage:
        return chain(Quantizer(Uniform(1 << bits, 0.0), GroupScale(Along(64, axis), MinMax())), Pack())

    return CacheRecipe(lambda _: codes(-2), lambda _: codes(-1), bits, window=16, rope="before")


def test_uncomp_entropy_budgets() -> None:
    base = uncomp(0.2)
    split, same, reverse = (judged(replace(base, evict=replace(base.evict, contrast=c))) for c in (1 / 3, 0.0, -1 / 3))
    assert max(abs(x[1] - split[1]) for x in (same, reverse)) < 0.02
    assert split[0] < same[0] < reverse[0]


def test_xquant_under_grouped_queries() -> None:
    """Latents of X are as wide as keys and values here, so that no bytes are saved; they must not lose more either."""
    x, kv = judged(xquant(2, group=64)), judged(by_channel_and_token(2))
    assert x[0] < 1.1 * kv[0]


def test_cskv_tuned_latents_and_the_window() -> None:
    model, ids = english().model, english().calibration[:16]
    fitted = fit(model, recipe=cskv(8.0, keys=1.0), calibration=ids)
    bare = fit(model, recipe=cskv(8.0, keys=1.0), calibration=ids, window=0)
    assert judged(fitted)[0] < judged(bare)[0]


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
