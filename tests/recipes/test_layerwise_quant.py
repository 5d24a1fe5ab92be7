from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import spearmanr

import laconic
from laconic.recipes.weights.layerwise_quant import layerwise_quant
from laconic.sources.weights.scores import input_output_cosine, large_weights

from .trials import chosen, rungs, spent, uniform


def test_lim_is_better_than_random_order_at_the_same_bits() -> None:
    """LIM against the mean over sets of as many blocks; the attention of all blocks, 4 and 2 bits."""
    trial = rungs()
    low, _ = uniform(trial, 0)
    low[[i for i in range(len(low)) if not any(i in block for block in trial.blocks)]] = 2  # embeddings
    sets = {}
    for blocks in combinations(range(8), 2):
        sets[blocks] = low.copy()
        sets[blocks][[i for b in blocks for i in trial.blocks[b]]] = 2
    budget = max(spent(trial, other) for other in sets.values())
    policy = layerwise_quant(4).policy
    assert policy is not None
    choice = chosen(trial, policy(trial, budget))
    some = [sets[blocks] for blocks in list(sets)[::3]]
    assert all(spent(trial, other) == pytest.approx(spent(trial, choice), rel=1e-3) for other in some)
    assert trial.loss(choice, 2) < np.mean([trial.loss(other, 2) for other in some])


def test_how_the_scores_rank_blocks() -> None:
    """Against the KL of each block's attention alone at 2 bits. (Of whole blocks ZD says little: see the card.)"""
    trial = rungs()
    truth = []
    for block in trial.blocks:
        choice = np.full(len(trial.names), -1)
        choice[block] = 0
        truth.append(trial.loss(choice, 4))
    lim, zd = input_output_cosine(trial), large_weights(trial)
    for important in ([-c for c in lim], [-z for z in zd]):
        assert spearmanr(important, truth).statistic > 0.5
    assert int(np.argmin(lim)) == 0


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(laconic.BadConfig, match="low < high"):
        layerwise_quant(2, low=2)
    with pytest.raises(laconic.BadConfig, match="score"):
        layerwise_quant(score="lin")
