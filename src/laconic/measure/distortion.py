"""Distortion between an array and its reconstruction."""

from __future__ import annotations

from math import inf, log10, sqrt
from typing import Any, NamedTuple

import numpy as np

from ..core.errors import BadInput
from .arrays import BLOCK, blocks, float64, pair


def _energies(x: Any, y: Any) -> tuple[int, float, float]:
    """Number of values, Σx², Σ(x − y)²."""
    x, y = pair(x, y)
    n, signal, error = 0, 0.0, 0.0
    for a, b in blocks(x, y):
        n += a.size
        signal += float(np.square(a).sum())
        error += float(np.square(a - b).sum())
    return n, signal, error


def mse(x: Any, y: Any) -> float:
    """Mean squared error over all values.

    >>> mse([1.0, 2.0], [1.0, 4.0])
    2.0
    """
    n, _, error = _energies(x, y)
    return error / n


def snr_db(x: Any, y: Any) -> float:
    """Signal-to-noise ratio 10·log10(Σx²/Σ(x − y)²) in dB; inf where nothing was lost.

    >>> snr_db([10.0, 0.0], [9.0, 0.0])
    20.0
    """
    _, signal, error = _energies(x, y)
    return -10 * log10(error / signal) if error and signal else inf if not error else -inf


def relative_error(x: Any, y: Any) -> float:
    """‖x − y‖ / ‖x‖ (Frobenius); 0 where nothing was lost.

    >>> relative_error([3.0, 4.0], [3.0, 3.0])
    0.2
    """
    _, signal, error = _energies(x, y)
    return sqrt(error / signal) if signal else inf if error else 0.0


def cosine(x: Any, y: Any) -> np.ndarray:
    """Cosine similarity of the vectors along the last axis.

    Shapes: (..., dim) -> (...) float64. Two zero vectors are alike (1), a zero and another are not (0).

    >>> cosine([[1.0, 0.0], [1.0, 1.0]], [[2.0, 0.0], [-1.0, 1.0]]).tolist()
    [1.0, 0.0]
    """
    x, y = pair(x, y)
    if not x.shape:
        raise BadInput("cosine needs vectors, got one number")
    out = []
    for a, b in blocks(x, y, x.shape[-1]):
        peaks = [np.abs(v).max(1, keepdims=True) for v in (a, b)]  # divided out, so that squares stay in range
        a, b = (v / np.where(peak == 0, 1.0, peak) for v, peak in zip((a, b), peaks, strict=True))
        norms = np.sqrt(np.square(a).sum(1) * np.square(b).sum(1))
        same = (a == b).all(1).astype(float)
        out.append(np.divide((a * b).sum(1), norms, out=same, where=norms != 0))
    return np.concatenate(out).reshape(tuple(x.shape[:-1]))


class InnerProduct(NamedTuple):
    """How estimated inner products follow the true ones."""

    slope: float  # Σ t·e / Σ t², regression through the origin; 1 for an unbiased estimator
    bias: float  # mean of e − t
    mse: float  # mean of (e − t)²


def inner_product(x: Any, y: Any, queries: Any) -> InnerProduct:
    """Compare e = ⟨q, y⟩ with t = ⟨q, x⟩ over all pairs of a query and a vector.

    A small error is not enough for search and attention: least-squares codebooks shrink inner products, which shows as
    a slope below 1 (2/π at one bit) whatever the mse says.

    Shapes: x, y (..., dim); queries (..., dim).
    Source: Zandieh et al. 2025, "TurboQuant", arXiv:2504.19874, section 3.2 (bias of the mse codebook).

    >>> inner_product([[1.0, 0.0], [0.0, 2.0]], [[0.5, 0.0], [0.0, 1.0]], queries=[[1.0, 1.0]])
    InnerProduct(slope=0.5, bias=-0.75, mse=0.625)
    """
    x, y = pair(x, y)
    queries, _ = pair(queries, queries)
    if not x.shape or not queries.shape or x.shape[-1] != queries.shape[-1]:
        raise BadInput(f"queries {tuple(queries.shape)} and vectors {tuple(x.shape)} must share their last axis")
    q = float64(queries.reshape(-1, queries.shape[-1])).T
    n, tt, te, off, square = 0, 0.0, 0.0, 0.0, 0.0
    step = max(BLOCK // q.shape[1], 64)
    for a, b in blocks(x, y, x.shape[-1]):
        for start in range(0, len(a), step):
            true, estimate = a[start : start + step] @ q, b[start : start + step] @ q
            n += true.size
            tt += float(np.square(true).sum())
            te += float((true * estimate).sum())
            off += float((estimate - true).sum())
            square += float(np.square(estimate - true).sum())
    return InnerProduct(te / tt if tt else np.nan, off / n, square / n)


def psnr(image: Any, reconstruction: Any) -> float:
    """Peak signal-to-noise ratio of one 8-bit image in dB; inf where nothing was lost.

    The reconstruction is rounded and clamped to 0..255 first, as a viewer would. Average this over images; do not
    average the squared errors.

    Shapes: any, the same; image holds whole numbers 0..255 in any dtype.
    Raises: BadInput: the image holds something else (an image scaled to 0..1 is refused, not misread).

    >>> round(psnr([[0, 255]], [[-40.0, 250.3]]), 3)
    37.162
    """
    n, error = 0, 0.0
    for a, b in blocks(*pair(image, reconstruction)):
        if not ((a == np.rint(a)) & (a >= 0) & (a <= 255)).all():
            raise BadInput("the image must hold whole numbers 0..255; scale it to 8 bits first")
        n += a.size
        error += float(np.square(a - np.clip(np.rint(b), 0, 255)).sum())
    return 10 * log10(255**2 * n / error) if error else inf
