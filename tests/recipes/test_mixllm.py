from __future__ import annotations

import numpy as np
import pytest
import torch

import laconic
from laconic import Stats
from laconic.recipes.weights.mixllm import mixllm
from laconic.sources.weights.rows import global_shares

from .layers import Layer, divergence, layer_loss, real_layers


def stats(layer: Layer) -> Stats:
    return Stats(hessian=layer.hessian, importance=layer.fisher[:, None])


def by_chance(layer: Layer, seed: int) -> Stats:
    """Statistics whose importance gives every row a score drawn at random."""
    scores = mixllm(2, 4).codec.rule.scores(layer.weight, Stats(hessian=layer.hessian))[:, None]
    drawn = torch.rand(scores.shape, generator=torch.Generator().manual_seed(seed))
    return Stats(hessian=layer.hessian, importance=(drawn / scores).float())


def test_rows_over_the_model_beat_rows_by_matrix_beat_random_rows() -> None:
    """MixLLM: a tenth of the weights in 4 bits, the others in 2."""
    layers = real_layers()
    rule = mixllm(2, 4).codec.rule
    scores = [rule.scores(one.weight, stats(one)).numpy() for one in layers]
    shares = global_shares(scores, [one.weight.shape[1] for one in layers], 0.1)

    def run(parts: list[float], chance: bool = False) -> tuple[float, float]:
        coded, bits = {}, 0.0
        for i, (one, share) in enumerate(zip(layers, parts, strict=True)):
            found = layer_loss(mixllm(2, 4, share).codec, one, by_chance(one, i) if chance else stats(one))
            coded[one.name], bits = found.weight, bits + found.bits * one.weight.numel()
        return divergence(coded), bits / sum(one.weight.numel() for one in layers)

    over_model, by_matrix, random = run(shares), run([0.1] * 10), run([0.1] * 10, True)
    assert over_model[0] < 0.95 * by_matrix[0] < 0.95 * random[0]
    assert over_model[1] == pytest.approx(by_matrix[1], abs=0.02) == random[1]
    assert min(shares) < 0.05 and max(shares) > 0.2


@pytest.mark.parametrize("rate", [2.4, 3.5, 4.6, 5.5])
def test_it_keeps_to_any_rate(rate: float) -> None:
    w = torch.randn(256, 512, generator=torch.Generator().manual_seed(0))
    packet = laconic.Codec(mixllm().at(rate)).fit(w).encode(w)
    payload = len(packet) - laconic.info(packet).ledger.by_role()["header"]
    assert rate - 0.05 < 8 * payload / w.numel() < rate + 0.01


def test_threshold_is_one_for_all() -> None:
    rng = np.random.default_rng(0)
    scores, lengths = [rng.exponential(s, n) for s, n in ((1, 100), (8, 60), (0.1, 80))], [64, 32, 64]
    shares = global_shares(scores, lengths, 0.2)
    taken = sum(round(p * len(s)) * n for p, s, n in zip(shares, scores, lengths, strict=True))
    assert taken <= 0.2 * sum(len(s) * n for s, n in zip(scores, lengths, strict=True)) < taken + 64
    per_weight = [np.sort(s / n)[::-1] for s, n in zip(scores, lengths, strict=True)]
    inside = min(v[round(p * len(v)) - 1] for p, v in zip(shares, per_weight, strict=True) if p)
    outside = max(v[round(p * len(v))] for p, v in zip(shares, per_weight, strict=True))
    assert inside >= outside
    assert global_shares([], [], 0.1) == []


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(laconic.BadConfig, match="bits < high"):
        mixllm(8, 4)
    with pytest.raises(laconic.BadConfig, match="share"):
        mixllm(share=1.5)
    with pytest.raises(laconic.BadConfig, match="share"):
        global_shares([np.ones(3)], [], 0.1)
