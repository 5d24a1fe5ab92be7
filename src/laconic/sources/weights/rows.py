"""Rows of all matrices under one threshold: how many of each matrix belong to the most sensitive of the model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...core.errors import BadConfig


def global_shares(scores: Sequence[np.ndarray], lengths: Sequence[int], share: float) -> list[float]:
    """The share of every matrix' rows that lies among the `share` of all weights with the highest scores a weight.

    scores: (n_out,) of every matrix, of one measure (nats, say). lengths: n_in of each. A row counts with its length.

    Source: Zheng et al. 2024, MixLLM (2412.14590), the global sort. Differs: scores are taken by weight, since rows of
    different matrices cost different bits.
    """
    if not 0 <= share <= 1 or len(scores) != len(lengths):
        raise BadConfig(
            f"a share of {share} for {len(scores)} scores and {len(lengths)} lengths; 0 to 1 and as many are right"
        )
    if not scores:
        return []
    flat = np.concatenate([np.asarray(s, np.float64) / n for s, n in zip(scores, lengths, strict=True)])
    cost = np.concatenate([np.full(len(s), n) for s, n in zip(scores, lengths, strict=True)])
    which = np.concatenate([np.full(len(s), i) for i, s in enumerate(scores)])
    order = np.argsort(-flat, kind="stable")
    taken = order[np.cumsum(cost[order]) <= share * cost.sum() + 0.5]
    count = np.bincount(which[taken], minlength=len(scores))
    return [float(c / len(s)) for c, s in zip(count, scores, strict=True)]
