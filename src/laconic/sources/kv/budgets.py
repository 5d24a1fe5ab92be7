"""Rates of layers, of keys and of values: by the loss that each causes when it alone is coded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .layer import CompressedLayer

if TYPE_CHECKING:
    from ...core.stage import Stage
    from .fit import Heard
    from .recipe import CacheRecipe

N_SEQUENCES = 4  # of calibration that are judged
SPREAD = 1.5  # bits that a rate may lie above or below the mean


class _Probe(CompressedLayer):
    """A layer that hands out what would be read: exact within the window of each query, decoded before it."""

    codecs: tuple[Stage | None, Stage | None] = (None, None)

    def _take(self, keys: Tensor, values: Tensor) -> None:
        self.exact = keys, values

    def settle(self) -> None:
        pass

    def answer(self, query: Tensor, scaling: float) -> Tensor:
        """Causal attention (n_batch, n_query_heads, n, d): keys of the window and the sinks exact, the others as decoded."""
        (keys, values), (far, old) = self.exact, self.read()
        b, hq, n, d = query.shape
        q = (query.float() * scaling).reshape(b, self.site.n_heads, -1, d)
        j = torch.arange(n, device=query.device)[None]
        i = j[0].repeat(hq // self.site.n_heads)[:, None]
        recipe = self.plan.recipe
        coded = (i - j >= max(recipe.window, 1)) & (j >= recipe.sinks)
        scores = torch.where(coded, q @ far.transpose(2, 3), q @ keys.transpose(2, 3)).masked_fill(j > i, -torch.inf)
        weights = scores.softmax(-1)
        return ((weights * coded) @ old + (weights * ~coded) @ values).reshape(b, hq, n, -1)

    def read(self) -> tuple[Tensor, Tensor]:
        """Keys and values as they would be read."""
        keys, values = self.exact
        rope = self.site.rope
        if self.codecs[0] is not None:
            before = keys if rope is None else rope.turn(keys, 0, back=True)
            keys = _there_and_back(self.codecs[0], before)
            keys = keys if rope is None else rope.turn(keys, 0)
        if self.codecs[1] is not None:
            values = _there_and_back(self.codecs[1], values)
        return keys, values


def _there_and_back(codec: Stage, x: Tensor) -> Tensor:
    return torch.stack([codec.decode(*codec.encode(s.float().cpu())) for s in x]).to(x.device)


def measured(
    model: Any,
    batches: Sequence[Tensor],
    recipe: CacheRecipe,
    rate: float,
    heard: dict[int, Heard],
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[int, tuple[float, float]]:
    """Rates of every layer's keys and values, `rate` in the mean: each is coded alone, and the KL that this costs is measured.

    At these rates a bit takes three quarters of a squared error, and KL goes with squared errors: the sum of KL_s 4^(rate − b_s)
    is least for b_s = rate + ½ log2(KL_s / geometric mean) (Huang & Schultheiss 1963), here within ±1.5 bits.
    """
    some = list(batches[:: max(1, len(batches) // N_SEQUENCES)])[:N_SEQUENCES]
    codecs = {n: h.learned(recipe, rate, rate) for n, h in heard.items()}
    first = [_predicted(model, ids, recipe, {}) for ids in some]
    losses = np.empty((len(codecs), 2))
    sites = [(i, n, side) for i, n in enumerate(codecs) for side in range(2)]
    for done, (i, n, side) in enumerate(sites):
        alone = {n: (codecs[n][0], None) if side == 0 else (None, codecs[n][1])}
        losses[i, side] = np.mean(
            [_kl(p, _predicted(model, ids, recipe, alone)) for p, ids in zip(first, some, strict=True)]
        )
        if progress:
            progress(done + 1, len(sites), "what layers lose")
    return {n: (float(k), float(v)) for n, (k, v) in zip(codecs, shared(losses, rate), strict=True)}


def shared(losses: np.ndarray, rate: float) -> np.ndarray:
    """b_s = rate + ½ log2(loss_s / geometric mean), within SPREAD, `rate` in the mean."""
    wish = 0.5 * np.log2(np.maximum(losses, 1e-9))
    low, high = -60.0, 60.0
    least = max(rate - SPREAD, 0.25)
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(wish + middle, least, rate + SPREAD).mean() <= rate else (low, middle)
    return np.clip(wish + low, least, rate + SPREAD)


def _predicted(
    model: Any, ids: Tensor, recipe: CacheRecipe, codecs: dict[int, tuple[Stage | None, Stage | None]]
) -> Tensor:
    """Log-probabilities of the second half of a sequence, with some layers' keys or values as they would be read."""
    from .cache import listening

    layers = listening(model, recipe, _Probe)
    for layer in layers.compressed:
        layer.codecs = codecs.get(layer.number, (None, None))  # type: ignore[attr-defined]
    with torch.inference_mode():
        kept = ids.shape[1] // 2
        out = model(input_ids=ids.to(model.device), past_key_values=layers, use_cache=True, logits_to_keep=kept)
    return out.logits.float().log_softmax(-1)


def _kl(p: Tensor, q: Tensor) -> float:
    return float((p.exp() * (p - q)).sum(-1).mean())
