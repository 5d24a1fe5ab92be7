"""What is particular to pictures: colour planes of 8-bit samples, and the filter over the edges of coded blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ...core.errors import BadConfig, BadInput, CorruptStream, claim
from ...core.stage import Kind, Side, Stage

if TYPE_CHECKING:
    from torch import Tensor

# Rows: luminance, red − blue, green − (red + blue) / 2; orthonormal, so squared errors of planes are those of samples.
_OPPONENT = np.array([[3**-0.5] * 3, [2**-0.5, 0.0, -(2**-0.5)], [-(6**-0.5), 2 * 6**-0.5, -(6**-0.5)]], np.float32)
_MIDDLE = np.float32(128)
# Deblocking, in steps: the largest correction, and the curvature below which a picture is smooth
_MOST, _FLAT = np.float32(0.09), np.float32(0.4)


@dataclass(frozen=True)
class OpponentPlanes(Stage):
    """8-bit picture -> planes around 0, orthonormal opponent colours; and back, rounded and limited to 0 … 255.

    Shapes: x (height, width, 3) or (height, width) uint8 -> (3, height, width) or (1, height, width) float32.
    Source: the principal axes of natural colours, Ohta, Kanade & Sakai 1980, made orthonormal. Differs from YCbCr in that a
    step of one size is right for all planes when the squared error of red, green and blue counts.
    """

    takes: ClassVar[Kind] = Kind.ARRAY
    gives: ClassVar[Kind] = Kind.ARRAY
    accepts: ClassVar[tuple[str, ...]] = ("uint8",)
    casts: ClassVar[bool] = False

    def encode(self, x: Tensor) -> tuple[Tensor, Side]:
        import torch

        picture = x.numpy().astype(np.float32) - _MIDDLE
        if picture.ndim == 2:
            planes = picture[None]
        elif picture.ndim == 3 and picture.shape[2] == 3:
            planes = _turn(_OPPONENT, np.moveaxis(picture, 2, 0))
        else:
            raise BadInput(f"a picture of shape {tuple(x.shape)}; (height, width) or (height, width, 3) is needed")
        return torch.from_numpy(planes), {}

    def decode(self, y: Tensor, side: Side) -> Tensor:
        import torch

        if y.ndim != 3 or y.shape[0] not in (1, 3):
            raise CorruptStream(f"planes of shape {tuple(y.shape)}; (1 or 3, height, width) is right")
        claim(8 * y.numel(), "a picture")
        planes = y.numpy()
        if planes.shape[0] == 3:
            planes = _turn(np.ascontiguousarray(_OPPONENT.T), planes)
        samples = np.clip(np.rint(planes + _MIDDLE), 0, 255).astype(np.uint8)
        return torch.from_numpy(samples[0] if len(samples) == 1 else np.ascontiguousarray(np.moveaxis(samples, 0, 2)))


def _turn(matrix: np.ndarray, planes: np.ndarray) -> np.ndarray:
    """matrix (3, 3) times planes (3, …), one operation after the other, so that every machine rounds alike."""
    return np.stack([row[0] * planes[0] + row[1] * planes[1] + row[2] * planes[2] for row in matrix])


@dataclass(frozen=True)
class Deblock(Stage):
    """Nothing on the way there; on the way back, a filter over the edges between blocks, where the picture is smooth.

    Works on planes (n, height, width) in units of the quantizer's step. Across each edge … p2 p1 p0 | q0 q1 q2 … with the
    curvature d = |p2 − 2 p1 + p0| + |q2 − 2 q1 + q0|: below .4 a correction of up to .09 moves p0 and q0 together and half as
    much p1 and q1; below .1, and where the jump is small, three samples on either side become a smooth ramp.
    block: where the edges are; at least 8.
    Source: List, Joch, Lainema, Bjøntegaard & Karczewicz, "Adaptive deblocking filter" (2003), and HEVC's, section 8.7.2.
    Differs: thresholds are proportional to the step, all planes are treated alike, samples are not yet rounded.
    """

    block: int = 16

    takes: ClassVar[Kind] = Kind.ARRAY
    gives: ClassVar[Kind] = Kind.ARRAY

    def __post_init__(self) -> None:
        if not 8 <= self.block <= 64:
            raise BadConfig(f"block {self.block}; 8 to 64 are possible")

    def encode(self, x: Tensor) -> tuple[Tensor, Side]:
        return x, {}

    def decode(self, y: Tensor, side: Side) -> Tensor:
        import torch

        if y.ndim != 3:
            raise CorruptStream(f"planes of shape {tuple(y.shape)}; (n, height, width) is right")
        claim(16 * y.numel(), "filtered planes")
        planes = y.numpy().copy()
        self._edges(planes)
        self._edges(planes.transpose(0, 2, 1))
        return torch.from_numpy(planes)

    def _edges(self, planes: np.ndarray) -> None:
        """Filter across the last axis, in place."""
        at = np.arange(self.block, planes.shape[2] - 3, self.block)
        p3, p2, p1, p0, q0, q1, q2, q3 = (planes[:, :, at + d] for d in range(-4, 4))
        bend = abs(p2 - 2 * p1 + p0) + abs(q2 - 2 * q1 + q0)
        move = (9 * (q0 - p0) - 3 * (q1 - p1)) / 16
        weak = (bend < _FLAT) & (abs(move) < 10 * _MOST)
        strong = (bend < _FLAT / 4) & (abs(p0 - q0) < _MOST * 5 / 2)
        move = np.clip(move, -_MOST, _MOST)
        move_p = np.clip(((p2 + p0) / 2 - p1 + move) / 2, -_MOST / 2, _MOST / 2)
        move_q = np.clip(((q2 + q0) / 2 - q1 - move) / 2, -_MOST / 2, _MOST / 2)
        for d, old, small, ramp in (
            (-3, p2, p2, (2 * p3 + 3 * p2 + p1 + p0 + q0) / 8),
            (-2, p1, p1 + move_p, (p2 + p1 + p0 + q0) / 4),
            (-1, p0, p0 + move, (p2 + 2 * p1 + 2 * p0 + 2 * q0 + q1) / 8),
            (0, q0, q0 - move, (p1 + 2 * p0 + 2 * q0 + 2 * q1 + q2) / 8),
            (1, q1, q1 + move_q, (p0 + q0 + q1 + q2) / 4),
            (2, q2, q2, (p0 + q0 + q1 + 3 * q2 + 2 * q3) / 8),
        ):
            smooth = np.clip(ramp, old - 2 * _MOST, old + 2 * _MOST)
            planes[:, :, at + d] = np.where(strong, smooth, np.where(weak, small, old))
