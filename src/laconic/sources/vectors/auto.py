"""Which recipe to take: measured on the vectors at hand."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ...core.errors import CodecError
from .blocks import decode_rows, encode_rows

CANDIDATES = ("klt-trellis", "klt-levels", "saq", "turboquant", "ar-scalar", "rvq")
SCANNED = ("klt-levels", "scalar")  # those with a fast scan, for a coarse index
_TRAINING, _TRIAL = 8192, 1024  # vectors


class Trial(NamedTuple):
    """recipe, true bits a coordinate on vectors that were not learned from, and their squared error over their power."""

    recipe: str
    bits: float
    error: float


def trials(rows: np.ndarray, bits: float, seed: int, candidates: tuple[str, ...] = CANDIDATES) -> list[Trial]:
    """Every candidate that can work at this rate, learned from three quarters of the rows and tried on others."""
    import torch

    from .index import recipe_stage

    held = rows[::4][:_TRIAL]
    some = np.delete(rows, np.s_[::4], 0)[:_TRAINING] if len(rows) > 8 else rows
    power = float(np.square(held, dtype=np.float64).sum()) or 1.0
    out = []
    for name in candidates:
        try:
            stage = recipe_stage(name, bits, seed, {}).fit(torch.from_numpy(np.ascontiguousarray(some)))
            data = encode_rows(stage, np.ascontiguousarray(held))
            back = decode_rows(stage, data, *held.shape)
        except CodecError:  # a rate that it does not have, or too few vectors
            continue
        error = float(np.square(held - back, dtype=np.float64).sum()) / power
        out.append(Trial(name, 8 * len(data) / held.size, error))
    return out


def choose(
    rows: np.ndarray, bits: float, seed: int, settings: dict[str, Any], candidates: tuple[str, ...] = CANDIDATES
) -> str:
    """The recipe of least error, a bit more being worth a factor of four."""
    found = trials(rows, bits, seed, candidates)
    return min(found, key=lambda t: t.error * 4 ** (t.bits - bits)).recipe if found and not settings else CANDIDATES[1]
