"""Uniform levels of vectors under laws that a masked network makes of the levels before, and a last look at all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from ..core.errors import BadConfig, BadInput, CorruptStream, NotFitted
from ..core.stage import Kind, Leaf, Side, Stage, Stats, learned
from ..core.telling import tell
from .autoregressive import array_of, check_rate, code_of, limited, ranges, rows_of, size_of, solve_step, within

if TYPE_CHECKING:
    from torch import Tensor

    from ..kernels.masked import Network
    from .masked_learning import Learner

_MOST = 2048  # coordinates
_LAM = 0.11  # squared steps a bit
_TRAINING = 1 << 23  # values that are learned from at most, _JUDGED of them to judge by
_JUDGED = 1 << 18
_STEPS, _FEW = 2500, 60  # of learning at most and at least, and what part of them each round takes
_ROUNDS = (0.2, 0.2, 0.6)
_SEEN = 20  # times that a vector is looked at
_RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_FARTHEST = 2.0  # steps that the last look moves a value


@dataclass(frozen=True)
class Masked(Stage):
    """ARRAY -> BYTES: levels q_j = x_j / Δ, each coded under the logistic law that a network makes of q_1 … q_{j−1}.

        φ_i = (q_i, |q_i − μ_i|, [q_i ≠ μ_i]),   P(q_j ≤ k) = F((k + ½ − p_j(φ_<j)) / m_j(φ_<j))
        x̂_j = Δ (q_j + e_j + Σ_i E_ji · φ_i)

    What `Autoregressive` does with two linear forms, done with a network of one layer of units beside them; and when all
    levels of a vector are there, a linear form of them, coordinates behind included, moves each value to where values of
    such vectors were. At one bit that takes a quarter of the error away, which no code pays for.

    bits: a value, met on average over what was held back while learning; or `step` Δ itself. lam: squared steps a bit is
    worth. units: of the network; 0 for 4 d up to 512. seed: of learning, some 40 s for 128 coordinates on one core.
    Shapes: x (..., d), d ≤ 2048. Side: as `Autoregressive`. Learned: 2 bytes for each of 3 d² of the network's linear part,
    2.5 d · units of its units, and 3 d² of E.
    Source: Germain et al. 2015 (1502.03509), MADE; Salimans et al. 2017 (1701.05517), PixelCNN++, equation 2 (discretized
    logistic, its ends open). Differs: integers; levels are chosen with their price in mind; E.

    Raises BadConfig for settings that cannot work, BadInput for NaN, Inf and other shapes, CorruptStream for damage.
    """

    bits: float | None = 2.0
    step: float | None = None
    lam: float = _LAM
    units: int = 0
    seed: int = 0
    weights: np.ndarray | None = learned("int16", "models")  # of inward, outward, skip, those that masks let through
    hidden: np.ndarray | None = learned("int64", "models")  # (h,)
    offsets: np.ndarray | None = learned("int64", "models")  # (6, d): p, log m, μ, range, e
    exponents: np.ndarray | None = learned("int8", "models")  # of inward, outward, skip, E
    last: np.ndarray | None = learned("int16", "models")  # (3d, d): E
    delta: np.ndarray | None = learned("float32", "scales")

    takes: ClassVar[Kind] = Kind.ARRAY
    gives: ClassVar[Kind] = Kind.BYTES
    learns_exactly: ClassVar[bool] = False
    side: ClassVar[Mapping[str, Leaf]] = {"rows": Leaf("int64", "header"), "coarser": Leaf("uint8", "scales")}

    def __post_init__(self) -> None:
        check_rate(self.bits, self.step, self.lam)
        if not 0 <= self.units <= 4096:
            raise BadConfig(f"units={self.units}; 0 to 4096 is right")

    def fit(self, x: Tensor, stats: Stats | None = None) -> Self:
        from ..kernels.masked import choose
        from .masked_learning import BATCH, Learner, scaled

        rows = rows_of(x, _MOST).astype(np.float64)
        if not len(rows):
            raise BadInput("laws cannot be learned from no vectors")
        rows = rows[:: max(1, -(-rows.size // _TRAINING))]
        n, d = rows.shape
        held = rows[::8][: max(1, _JUDGED // d)] if n >= 64 else rows[:0]
        kept = np.delete(rows, np.arange(len(held)) * 8, 0)
        learner = Learner(d, (self.units or min(4 * d, 512)) if d > 1 else 0, self.seed)
        step = size_of(rows) * 2.0 ** (1.6 - (self.bits or 0.0)) if self.step is None else self.step
        step = max(step, 2.0**-22 * float(np.abs(rows).max()), 1e-37)
        steps = min(max(_SEEN * n // BATCH, _FEW), _STEPS)
        rounds = [max(1, round(part * steps)) for part in _ROUNDS]
        for i, some in enumerate(rounds):
            q, judged = (self._levels(learner if i else None, r, step) for r in (kept, held))
            learner.learn(kept, q, judged, step, some, sum(rounds[:i]), sum(rounds))
            if self.step is None:
                step = self._solved(learner, rows, held if len(held) else kept, step)
        tell(sum(rounds), sum(rounds), "learned")
        t = limited(rows / step)
        net, exponents = learner.network(step, *ranges(np.rint(t)))
        last, offset = _last(t, choose(t, net, self.lam).q.astype(np.float64), net.centre)
        whole = scaled(last, 14)
        offsets = np.stack([*net.offset, net.centre, net.low, net.high, np.rint(np.ldexp(offset, 12))])
        return self.replace(weights=_flat(net), hidden=net.hidden, offsets=offsets, last=whole.whole,
                            exponents=np.array([*exponents, whole.exponent]), delta=np.array([step]))  # fmt: skip

    def _levels(self, learner: Learner | None, rows: np.ndarray, step: float) -> np.ndarray:
        """(n, d) float64: the nearest, or those that the laws learned so far have chosen."""
        from ..kernels.masked import choose

        t = limited(rows / step)
        near = np.rint(t)
        if learner is None or not len(rows):
            return near
        return choose(t, learner.network(step, *ranges(near))[0], self.lam).q.astype(np.float64)

    def _solved(self, learner: Learner, rows: np.ndarray, held: np.ndarray, step: float) -> float:
        """The step at which vectors take `bits` under the laws learned so far."""
        from ..kernels.autoregressive import bits_of
        from ..kernels.masked import choose

        assert self.bits is not None
        some = held[: max(1, _JUDGED // held.shape[1])]

        def rate(step: float) -> float:
            net, _ = learner.network(step, *ranges(np.rint(limited(rows / step))))
            return float(bits_of(choose(limited(some / step), net, self.lam)).mean())

        return solve_step(rate, self.bits, some, step)

    def push(self, stats: Stats) -> Stats:
        """None: nothing behind bytes asks how errors hurt."""
        return Stats()

    def encode(self, x: Tensor) -> tuple[bytes, Side]:
        from ..kernels.masked import choose

        net, _, _, delta = self._model(BadInput)
        return code_of(rows_of(x, _MOST), x.shape[:-1], len(net.low), delta, lambda t: choose(t, net, self.lam))

    def decode(self, y: bytes, side: Side) -> Tensor:
        from ..kernels.masked import decode

        net, last, moved, delta = self._model(CorruptStream)

        def steps(q: np.ndarray) -> np.ndarray:
            some = q.astype(np.float64)
            way = (_features(some, net.centre) @ last) * moved[0] + moved[
                1:
            ]  # a sum of whole numbers below 2^53: in any order
            return some + np.clip(way, -_FARTHEST, _FARTHEST)  # so that one odd level moves no other far

        return array_of(y, side, len(net.low), delta, 8, lambda code, n: (decode(code, net, n),), steps)

    def _model(self, error: type[Exception]) -> tuple[Network, np.ndarray, np.ndarray, float]:
        """(network, E in whole numbers, (what one of them is worth, e), Δ)."""
        from ..kernels.autoregressive import SPAN
        from ..kernels.masked import FEATURES, Network, first_units, gains

        arrays = (self.weights, self.hidden, self.offsets, self.exponents, self.last, self.delta)
        if any(a is None for a in arrays):
            raise NotFitted("Masked has no laws yet; call .fit(x) first")
        weights, hidden, offsets, exponents, last, step = arrays
        assert weights is not None and hidden is not None and offsets is not None and exponents is not None
        assert last is not None and step is not None
        d, h = offsets.shape[-1] if offsets.ndim == 2 else 0, hidden.size
        right = offsets.shape == (6, d) and 0 < d <= _MOST and hidden.shape == (h,) and h <= 4096
        right = right and exponents.shape == (4,) and last.shape == (FEATURES * d, d) and step.shape == (1,)
        if not right or weights.shape != (sum(_sizes(d, h)),) or (d == 1 and h):
            raise error(f"laws {weights.shape}, {hidden.shape}, {offsets.shape}, {last.shape} do not belong together")
        low, high = offsets[3], offsets[4]
        bounded = within(offsets, 1 << 40) and within(offsets[2:5], 1 << 24) and within(hidden, 1 << 50)
        bounded = bounded and (exponents >= -8).all() and (exponents <= 14).all()
        if not bounded or (low > high).any() or (high - low >= SPAN).any():
            raise error("laws whose numbers are out of range")
        delta = float(step[0])
        if not 0 < delta < math.inf:
            raise error(f"a step of {delta}; a positive number is right")
        e = [int(v) for v in exponents]
        net = Network(*_dense(weights, d, h), hidden.astype(np.float64), offsets[:2].astype(np.float64), first_units(d, h),
                      gains(*e[:3]), offsets[2].copy(), low.copy(), high.copy())  # fmt: skip
        return net, last.astype(np.float64), np.ldexp(np.array([1.0, *offsets[5]]), [-e[3], *([-12] * d)]), delta


def _sizes(d: int, h: int) -> tuple[int, int, int]:
    """Numbers of weights that masks let through: of inward, outward, skip."""
    from ..kernels.masked import FEATURES, first_units

    sees = sum(int(h - f) for f in first_units(d, h)[1:d]) if d > 1 else 0
    degrees = h * d - sees  # units' coordinates that they do not see are those that they feed
    return FEATURES * sees, 2 * degrees, 2 * FEATURES * (d * (d - 1) // 2)


def _flat(net: Network) -> np.ndarray:
    """The weights that masks let through, inward, outward, skip."""
    d, h = len(net.low), len(net.hidden)
    return np.concatenate([a[m] for a, m in zip((net.inward, net.outward, net.skip), _masks(d, h), strict=True)])


def _dense(weights: np.ndarray, d: int, h: int) -> list[np.ndarray]:
    out, at = [], 0
    for mask, size in zip(_masks(d, h), _sizes(d, h), strict=True):
        a = np.zeros(mask.shape, np.int16)
        a[mask] = weights[at : at + size]
        out.append(a)
        at += size
    return out


def _masks(d: int, h: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of inward (d, 3, h), outward (h, 2, d), skip (d, 3, 2, d)."""
    from ..kernels.masked import FEATURES, degrees

    degree = degrees(d, h)
    at = np.arange(d)
    sees, feeds, skips = at[:, None] < degree, degree[:, None] <= at, at[:, None] < at
    return (
        np.repeat(sees[:, None], FEATURES, 1),
        np.repeat(feeds[:, None], 2, 1),
        np.broadcast_to(skips[:, None, None], (d, FEATURES, 2, d)).copy(),
    )


def _features(q: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """(n, 3d): levels, how far they are from the centre, whether they are elsewhere."""
    distance = np.abs(q - centre)
    return np.concatenate([q, distance, distance > 0], 1)


def _last(t: np.ndarray, q: np.ndarray, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E (3d, d) and e (d,): ridge regression of t − q on all levels of a vector, as strong as suits a fifth held back."""
    phi, error = _features(q, centre), t - q
    n, width = len(phi), phi.shape[1]
    held = np.arange(n) % 5 == 4
    none = np.zeros((width, t.shape[1])), error.mean(0)
    if held.sum() < 10:
        return none

    def loss(model: tuple[np.ndarray, np.ndarray]) -> float:
        return float(np.square(error[held] - phi[held] @ model[0] - model[1]).sum())

    best, least = None, loss((none[0], error[~held].mean(0)))
    for ridge, model in zip(_RIDGES, _ridges(phi[~held], error[~held], _RIDGES), strict=True):
        if (found := loss(model)) < least:
            best, least = ridge, found
    return none if best is None else _ridges(phi, error, (best,))[0]


def _ridges(x: np.ndarray, y: np.ndarray, strengths: tuple[float, ...]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(E, e) of y ≈ x E + e for every strength, a share of each feature's own variance."""
    mean, mean_y = x.mean(0), y.mean(0)
    centred = x - mean
    gram, cross = centred.T @ centred, centred.T @ (y - mean_y)
    own = np.diag(gram) + 0.01 * np.diag(gram).mean() + 1e-9
    models = (np.linalg.solve(gram + np.diag(s * own), cross) for s in strengths)
    return [(e, mean_y - mean @ e) for e in models]
