"""Who gets how many bits: rates for all matrices under one budget, from what calibration measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...allocate import integer_programme, lagrangian
from ...core.errors import BadConfig, BadInput
from ...core.packet import Codec, decode
from ...core.stage import Stats

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .recipe import WeightRecipe

SAMPLE_ROWS = 128
LEAST, MOST = 0.25, 12.0  # bits a weight that the room gives to a matrix


@dataclass(frozen=True)
class Sensitivity:
    """How errors of one matrix hurt: KL in nats a token ≈ ½ Σ_i rows_i · d_i H d_iᵀ over the rows d_i of the error.

    hessian: (n_in, n_in). rows: (n_out,), mean squared gradients at the outputs; ones where there was no pass back.
    """

    hessian: Tensor
    rows: Tensor

    def loss(self, error: Tensor, at: slice | Tensor = slice(None)) -> float:
        """The nats that an error (n, n_in) of the rows `at` costs."""
        e = error.float()
        return 0.5 * float(((e @ self.hessian) * e).sum(-1).double() @ self.rows[at].double())


def spectrum(weight: Tensor, s: Sensitivity) -> np.ndarray:
    """(n_in, n_classes) variances of a matrix's coordinates in nats, as error feedback sees them.

    Column j behind feedback costs ℓ_j² = 1 / [U_jj]² with H⁻¹ = Uᵀ U; row i has power σ_i² and weight rows_i. Rows are
    gathered in up to 64 classes of equal number by their product.
    """
    import torch

    n = s.hessian.shape[0]
    h = s.hessian.double() + 0.01 * s.hessian.diagonal().mean().double() * torch.eye(n, dtype=torch.float64)
    r = torch.linalg.cholesky(h.flip(0, 1)).flip(0, 1)  # H = R Rᵀ, R upper: ℓ_j is its diagonal
    columns = r.diagonal().square()
    rows = 0.5 * s.rows.double() * weight.double().square().mean(1)
    classes = [c.mean() for c in rows.sort().values.tensor_split(min(64, len(rows)))]
    return (columns[:, None] * torch.stack(classes)[None]).numpy()


def water_level(spectra: list[np.ndarray], sizes: list[int], budget: float) -> list[float]:
    """Bits a weight of every matrix when all coordinates of the model share one water level.

    Source: Cover & Thomas, Elements of Information Theory, theorem 10.3.3 (reverse water-filling); Lifar et al. 2025,
    WaterSIC, for its use on weights behind error feedback. budget: bits over all matrices.
    """

    def rates(theta: float) -> list[float]:
        return [float(np.clip(0.5 * np.log2(np.maximum(v, 1e-300) / theta), 0, MOST).mean()) for v in spectra]

    low, high = -300.0, 60.0
    for _ in range(80):
        middle = (low + high) / 2
        total = sum(n * max(r, LEAST) for n, r in zip(sizes, rates(2.0**middle), strict=True))
        low, high = (middle, high) if total > budget else (low, middle)
    found = [min(max(r, LEAST), MOST) for r in rates(2.0**high)]
    total = sum(n * r for n, r in zip(sizes, found, strict=True))
    if total > budget * 1.001:
        raise BadConfig(f"{budget / sum(sizes):.3f} bits a weight; at least {total / sum(sizes):.3f} are needed")
    return found


def measured(
    weight: Tensor, s: Sensitivity, recipe: WeightRecipe, rates: tuple[float, ...]
) -> tuple[list[float], list[float]]:
    """(bits, nats) of one matrix in total at each rate, measured on some of its rows; inf where the codec refuses."""
    import torch

    n = len(weight)
    some = torch.linspace(0, n - 1, min(n, SAMPLE_ROWS)).long()
    rows = weight[some].contiguous()
    bits, nats = [], []
    for rate in rates:
        stats = Stats(hessian=s.hessian, importance=s.rows[some][:, None] if recipe.statistics.fisher else None)
        try:
            codec = Codec(recipe.at(rate)).fit(rows, stats)
            packet = codec.encode(rows, shared="00000000")
        except (BadInput, BadConfig):
            bits.append(np.inf)
            nats.append(np.inf)
            continue
        back = decode(packet, codecs={"00000000": codec})
        bits.append(8 * len(packet) * n / len(rows))
        nats.append(s.loss(back - rows, some) * n / len(rows))
    return bits, nats


def choose(bits: np.ndarray, nats: np.ndarray, rates: tuple[float, ...], budget: float) -> list[float]:
    """One of the rates for every matrix: least sum of nats within the budget (bits, nats: (n_matrices, n_rates))."""
    nats = np.minimum.accumulate(np.where(np.isfinite(nats), nats, 1e30), axis=1)
    nats = np.where(np.isfinite(bits), nats, np.inf)
    solve = integer_programme if len(bits) <= 400 else lagrangian
    return [rates[int(k)] for k in solve(bits, nats, budget)]


def ones_like_rows(weight: Tensor) -> torch.Tensor:
    """No row counts more than another."""
    import torch

    return torch.ones(len(weight))
