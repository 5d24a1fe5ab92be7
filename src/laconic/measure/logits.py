"""Distortion between the predictions of a model and of its compressed twin."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core.errors import BadInput
from .arrays import blocks, pair


def kl_divergence(logits: Any, compressed: Any) -> np.ndarray:
    """KL(P‖Q) of next-token distributions, P = softmax(logits), Q = softmax(compressed), a token at a time.

    Average it over tokens; keep it by sequence for a confidence interval. It tells methods apart with a tenth of the
    tokens that perplexity needs, and it cannot be flattered: zero only where nothing changed.

    Shapes: (..., vocabulary) -> (...) float64. Units: nats. A token masked (−inf) in both costs nothing; masked in Q
    only, the divergence is inf.
    Source: Kullback & Leibler 1951; as an evaluation of quantized models: Dutta et al. 2024, "Accuracy is Not All You
    Need", arXiv:2407.09141.

    >>> kl_divergence([[0.0, 0.0]], [[0.0, np.log(3)]]).round(4).tolist()  # ½·ln(1/(4·¼·¾))
    [0.1438]
    """
    logits, compressed = _predictions(logits, compressed)
    out = []
    for a, b in blocks(logits, compressed, logits.shape[-1]):
        log_p, log_q = (z - z.max(1, keepdims=True) for z in (a, b))
        log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
        log_q -= np.log(np.exp(log_q).sum(1, keepdims=True))
        p = np.exp(log_p)
        ratio = np.subtract(log_p, log_q, out=np.zeros_like(p), where=log_p > -np.inf)
        out.append(np.maximum((p * ratio).sum(1), 0.0))  # rounding may leave −1e-17
    return np.concatenate(out).reshape(tuple(logits.shape[:-1]))


def same_top1(logits: Any, compressed: Any) -> np.ndarray:
    """Whether the most likely token is still the same; one minus the mean is the rate of flips.

    Shapes: (..., vocabulary) -> (...) bool. Among equal logits the first counts.
    Source: Dutta et al. 2024, arXiv:2407.09141 (flips).

    >>> same_top1([[1.0, 2.0], [1.0, 2.0]], [[0.0, 0.1], [0.2, 0.1]]).tolist()
    [True, False]
    """
    logits, compressed = _predictions(logits, compressed)
    same = [a.argmax(1) == b.argmax(1) for a, b in blocks(logits, compressed, logits.shape[-1])]
    return np.concatenate(same).reshape(tuple(logits.shape[:-1]))


def _predictions(logits: Any, compressed: Any) -> tuple[Any, Any]:
    logits, compressed = pair(logits, compressed)
    if not logits.shape:
        raise BadInput("logits need a vocabulary axis, got one number")
    return logits, compressed
