from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from laconic.core.errors import BadConfig, BadInput
from laconic.core.stage import Stats
from laconic.kernels import feedback, scalar
from laconic.quantize.base import Codebook, Grid, Quantizer, Rounding, Unit
from laconic.quantize.codebooks import LloydMax, Minifloat, Uniform
from laconic.quantize.rounding import (
    CoordinateDescent,
    Feedback,
    HessianWarning,
    Stochastic,
    inverse_factor,
    live_hessian,
)
from laconic.quantize.scales import AbsMax, AbsMean, Along, Float, GroupScale, MinMax, Rms, TwoLevel
from laconic.quantize.trellis import Trellis


def layer(n: int = 192, rows: int = 96, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Heavy-tailed weights and the second moment of correlated inputs with four large channels."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, n, generator=g) / torch.rand(rows, 1, generator=g).add(0.5)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=g))
    x = torch.randn(2048, n, generator=g) @ (q * torch.arange(1, n + 1) ** -0.5).T
    x[:, torch.randperm(n, generator=g)[:4]] *= 8
    return w, x.T @ x / 2048


W, H = layer()


def loss(error: torch.Tensor, hessian: torch.Tensor = H) -> float:
    """tr(Δ H Δᵀ) relative to the layer's output."""
    return float((error @ hessian * error).sum() / (W @ H * W).sum())


def coded(
    codebook: Codebook, scale: GroupScale, rounding: Rounding, stats: Stats | None, x: torch.Tensor = W
) -> torch.Tensor:
    q = Quantizer(codebook, scale, rounding).fit(x, stats)
    return q.decode(*q.encode(x))


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group", [0, 32])
def test_feedback_halves_the_error_of_nearest(bits: int, group: int) -> None:
    """2210.17323: error feedback against rounding to nearest on the same grid; activation order gains again."""
    book, scale, stats = Uniform(1 << bits, 0.0), GroupScale(Along(group), MinMax()), Stats(hessian=H)
    nearest = loss(W - coded(book, scale, Feedback(), None))
    natural = loss(W - coded(book, scale, Feedback(), stats))
    ordered = loss(W - coded(book, scale, Feedback(order="descending"), stats))
    assert natural < 0.62 * nearest
    assert ordered < 0.95 * natural


def test_the_sweep_is_the_algorithm_of_the_paper() -> None:
    """Algorithm 1 as it is printed (H⁻¹ by inversion, its Cholesky factor, no blocks), in float64, gives the same codes."""
    book, scale = Uniform(8, 0.0), GroupScale(Along(32), MinMax())
    grid = scale.expand(scale.measure(W, book), tuple(W.shape))
    damped = H.double() + 0.01 * H.double().diagonal().mean() * torch.eye(len(H))
    upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    step, offset = (t.expand(W.shape).double() for t in grid)
    w, want = W.double().clone(), torch.zeros(W.shape, dtype=torch.int64)
    for j in range(W.shape[1]):
        want[:, j] = ((w[:, j] - offset[:, j]) / step[:, j]).round().clamp(0, 7).long()
        e = (w[:, j] - (want[:, j] * step[:, j] + offset[:, j])) / upper[j, j]
        w[:, j:] -= e[:, None] * upper[j, j:]
    got = Feedback()(W, grid, book, Stats(hessian=H))
    assert float((got == want).float().mean()) > 0.999


def test_inverse_factor() -> None:
    upper = inverse_factor(live_hessian(H, len(H)), 0.01)
    assert upper is not None
    damped = H.double() + 0.01 * H.double().diagonal().mean() * torch.eye(len(H))
    np.testing.assert_allclose(upper.double().T @ upper.double() @ damped, np.eye(len(H)), atol=1e-4)
    assert torch.equal(upper, upper.triu())


@dataclass(frozen=True)
class _Pairs(Codebook):
    """Two scalar books side by side as one of dimension 2; private to this test."""

    dim = 2
    book: Uniform = Uniform(5)

    @property
    def alphabet(self) -> int:
        return 25

    def nearest(self, x: torch.Tensor) -> torch.Tensor:
        index = self.book.nearest(x)
        return index[..., 0::2] * 5 + index[..., 1::2]

    def lookup(self, index: torch.Tensor) -> torch.Tensor:
        both = torch.stack([index // 5, index % 5], dim=-1)
        return self.book.lookup(both.flatten(-2))


@dataclass(frozen=True)
class _Opaque(Uniform):
    """A scalar book that does not show its ladder."""

    def ladder(self):  # type: ignore[no-untyped-def]
        return None

    def nearest(self, x: torch.Tensor) -> torch.Tensor:
        return Uniform(self.levels, self.zero).nearest(x)


@pytest.mark.parametrize("order", ["natural", "descending"])
@pytest.mark.parametrize("masked", [False, True])
def test_any_codebook_takes_the_same_sweep(order: str, masked: bool) -> None:
    mask = torch.rand(W.shape, generator=torch.Generator().manual_seed(1)) < 0.05 if masked else None
    grid = GroupScale(Along(), AbsMax()).expand(GroupScale(Along(), AbsMax()).measure(W, Uniform(5)), tuple(W.shape))
    stats = Stats(hessian=H, mask=mask)
    kernel = Feedback(order=order)(W, grid, Uniform(5), stats)
    general = Feedback(order=order)(W, grid, _Opaque(5), stats)
    assert float((kernel == general).float().mean()) > 0.995, "float32 sums in another order"


@pytest.mark.parametrize("order", ["natural", "descending"])
def test_vectors_are_fed_back_in_blocks(order: str) -> None:
    """Block LDLQ (2402.04396, section 4.1): E = (W_b − Q(W_b)) U_bb⁻¹, written out here column block by column block."""
    scale = GroupScale(Along(), AbsMax())
    grid = scale.expand(scale.measure(W, Uniform(5)), tuple(W.shape))
    got = Feedback(order=order)(W, grid, _Pairs(), Stats(hessian=H))
    blocks = torch.arange(W.shape[1]).reshape(-1, 2)
    if order == "descending":
        blocks = blocks[H.diagonal().reshape(-1, 2).mean(dim=1).argsort(descending=True, stable=True)]
    at = blocks.reshape(-1)
    upper = inverse_factor(live_hessian(H, len(H))[at][:, at], 0.01)
    assert upper is not None
    upper, w = upper.double(), W.double()[:, at]
    want = torch.zeros(W.shape[0], W.shape[1] // 2, dtype=torch.int64)
    step = grid.step.double()
    for b in range(W.shape[1] // 2):
        here = slice(2 * b, 2 * b + 2)
        index = _Pairs().nearest((w[:, here] / step).float())
        want[:, blocks[b, 0] // 2] = index[:, 0]
        e = (w[:, here] - _Pairs().lookup(index) * step) @ torch.linalg.inv(upper[here, here])
        w[:, 2 * b + 2 :] -= e @ upper[here, 2 * b + 2 :]
    assert float((got == want).float().mean()) > 0.995
    nearest = loss(W - grid.denormalize(_Pairs().lookup(_Pairs().nearest(grid.normalize(W)))))
    assert loss(W - grid.denormalize(_Pairs().lookup(got))) < 0.62 * nearest


def test_sequences_are_fed_back_in_blocks() -> None:
    """QTIP (2406.11235): a trellis over tiles of 16 rows and 16 columns, feedback every 16 columns."""
    book, scale = Trellis(2.0, states=256, length=256, rows=16), GroupScale(Along(), Rms())
    with_feedback = loss(W - coded(book, scale, Feedback(), Stats(hessian=H)))
    without = loss(W - coded(book, scale, Feedback(), None))
    scalar_book = loss(W - coded(LloydMax(4), scale, Feedback(), Stats(hessian=H)))
    assert with_feedback < 0.7 * without
    assert with_feedback < 0.85 * scalar_book
    with pytest.raises(BadInput, match="16 together"):
        coded(book, scale, Feedback(), Stats(hessian=torch.eye(40)), W[:, :40].contiguous())


def test_masked_positions_are_exact() -> None:
    """What another part stores loses only what feedback added, and later columns make good for that."""
    mask = torch.rand(W.shape, generator=torch.Generator().manual_seed(4)) < 0.1
    scale = GroupScale(Along(), Rms())

    def joined(stats: Stats) -> float:
        return loss((W - coded(LloydMax(4), scale, Feedback(order="descending"), stats)) * ~mask)

    assert joined(Stats(hessian=H, mask=mask)) < 0.9 * joined(Stats(hessian=H))
    one_column = torch.zeros(W.shape, dtype=torch.bool)
    one_column[:, 0] = True
    grid = scale.expand(scale.measure(W, LloydMax(4)), tuple(W.shape))
    ours = Feedback()(W, grid, LloydMax(4), Stats(hessian=H, mask=one_column))[:, 1:]
    alone = inverse_factor(live_hessian(H, len(H)), 0.01)
    assert alone is not None
    rest = feedback.sweep(  # the first column gives no error, so the others see the sweep of what remains
        W[:, 1:].contiguous().numpy(), grid.step.expand(W.shape)[:, 1:].contiguous().numpy(), None,
        alone[1:, 1:].contiguous().numpy(), LloydMax(4).ladder().thresholds, LloydMax(4).ladder().levels,
    )  # fmt: skip
    assert float((ours.numpy() == rest).mean()) > 0.999


def test_without_a_hessian_it_is_nearest() -> None:
    scale = GroupScale(Along(16), AbsMax(), TwoLevel())
    for stats in (None, Stats(), Stats(importance=torch.ones(W.shape[1]))):
        assert torch.equal(
            coded(Minifloat("e2m1"), scale, Feedback(), stats), coded(Minifloat("e2m1"), scale, Feedback(), None)
        )
    identity = coded(Minifloat("e2m1"), scale, Feedback(), Stats(hessian=torch.eye(W.shape[1])))
    assert float((identity != coded(Minifloat("e2m1"), scale, Feedback(), None)).float().mean()) < 1e-3


def test_dead_columns_are_rounded_by_themselves() -> None:
    dead = H.clone()
    dead[[7, 50]] = 0
    dead[:, [7, 50]] = 0
    scale = GroupScale(Along(), AbsMax())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = coded(Uniform(15), scale, Feedback(), Stats(hessian=dead))
        none = coded(Uniform(15), scale, Feedback(), Stats(hessian=torch.zeros_like(H)))
    nearest = coded(Uniform(15), scale, Feedback(), None)
    assert torch.equal(y[:, [7, 50]], nearest[:, [7, 50]])
    assert torch.equal(none, nearest)
    assert loss(W - y, dead) < 0.62 * loss(W - nearest, dead)


def test_an_indefinite_hessian_is_reported() -> None:
    mean = float(H.diagonal().mean())
    scale = GroupScale(Along(), AbsMax())
    lower = H - (float(torch.linalg.eigvalsh(H)[0]) + 0.05 * mean) * torch.eye(len(H))
    with pytest.warns(HessianWarning, match="0.1 was used"):
        raised = coded(Uniform(15), scale, Feedback(), Stats(hessian=lower))
    assert loss(W - raised) < loss(W - coded(Uniform(15), scale, Feedback(), None))
    with pytest.warns(HessianWarning, match="no error feedback"):
        hopeless = coded(
            Uniform(15), scale, Feedback(), Stats(hessian=H * 0.0 + mean * torch.eye(len(H)).flip(0) + mean * 0.1)
        )
    assert torch.equal(hopeless, coded(Uniform(15), scale, Feedback(), None))


def test_what_does_not_fit_is_refused() -> None:
    scale = GroupScale(Along(), AbsMax())
    bad = [
        Stats(hessian=torch.eye(5)),
        Stats(hessian=H * float("nan")),
        Stats(hessian=H, mask=torch.zeros(3, W.shape[1], dtype=torch.bool)),
    ]
    for stats in bad:
        with pytest.raises(BadInput) as e:
            coded(Uniform(15), scale, Feedback(), stats)
        assert len(str(e.value)) > 20
    for build in (lambda: Feedback(-1.0), lambda: Feedback(order="random"), lambda: CoordinateDescent(0)):
        with pytest.raises(BadConfig):
            build()
    for rounding in (Stochastic(), CoordinateDescent()):
        with pytest.raises(BadConfig, match="scalar"):
            rounding(W, Unit().expand({}, tuple(W.shape)), _Pairs(), None)


@pytest.mark.parametrize("shape", [(192,), (2, 3, 192), (1, 192)])
def test_any_number_of_axes(shape: tuple[int, ...]) -> None:
    x = W[: int(np.prod(shape)) // 192].reshape(shape)
    for rounding in (Feedback(order="descending"), CoordinateDescent(), Stochastic()):
        y = coded(Uniform(15), GroupScale(Along(32), AbsMax()), rounding, Stats(hessian=H), x)
        flat = coded(Uniform(15), GroupScale(Along(32), AbsMax()), rounding, Stats(hessian=H), x.reshape(-1, 192))
        assert y.shape == shape and torch.equal(y.reshape(-1, 192), flat)


def test_stochastic_rounding_is_unbiased() -> None:
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    scale = GroupScale(Along(), AbsMax(), Float("float32"))
    one = coded(LloydMax(8), scale, Stochastic(1), None, x)
    assert torch.equal(one, coded(LloydMax(8), scale, Stochastic(1), None, x))
    mean = sum(coded(LloydMax(8), scale, Stochastic(s), None, x) for s in range(300)) / 300
    assert float((mean - x).abs().mean()) < 0.07 * float((one - x).abs().mean())
    nearest = coded(LloydMax(8), scale, Feedback(), None, x)
    assert float((nearest - x).abs().mean()) < float((one - x).abs().mean())


@pytest.mark.parametrize(("bits", "gain"), [(2, 0.65), (3, 0.8), (4, 0.95)])
def test_coordinate_descent_raises_the_cosine(bits: int, gain: float) -> None:
    """SAQ's code adjustment on Gaussian vectors, d = 128, range to the greatest value: 1 − cos² falls, most at 2 bits."""
    x = torch.randn(300, 128, generator=torch.Generator().manual_seed(0))

    def miss(rounding: Rounding) -> torch.Tensor:
        return 1 - torch.cosine_similarity(x, coded(Uniform(1 << bits), GroupScale(), rounding, None, x)) ** 2

    before, after = miss(Feedback()), miss(CoordinateDescent())
    assert float(after.mean()) < gain * float(before.mean())
    assert bool((after <= before + 1e-6).all())


def test_coordinate_descent_leaves_signs_alone() -> None:
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    scale = GroupScale(Along(), AbsMean())
    assert torch.equal(
        coded(Uniform(2), scale, CoordinateDescent(), None, x), coded(Uniform(2), scale, Feedback(), None, x)
    )


# --- kernels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 5, 128, 129, 300])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_sweep_kernel_equals_its_twin(n: int, affine: bool, masked: bool) -> None:
    rng = np.random.default_rng(n)
    x = rng.standard_normal((33, n), dtype=np.float32)
    step = (rng.random((33, n), dtype=np.float32) + 0.1) * (rng.random((33, n)) > 0.02)
    offset = rng.standard_normal((33, n), dtype=np.float32) if affine else None
    exact = np.where(rng.random((33, n)) < 0.1, x, np.nan).astype(np.float32) if masked else None
    a = rng.standard_normal((n, 2 * n))
    upper = inverse_factor(torch.from_numpy(a @ a.T), 0.01)
    assert upper is not None
    ladder = LloydMax(6).ladder()
    args = (x, step.astype(np.float32), offset, upper.numpy(), ladder.thresholds, ladder.levels, exact)
    before = x.copy()
    assert np.array_equal(feedback.sweep(*args), feedback.sweep_plain(*args))
    assert np.array_equal(x, before)


@pytest.mark.parametrize("affine", [False, True])
def test_descend_kernel_equals_its_twin(affine: bool) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((40, 24), dtype=np.float32)
    step, ladder = np.full((40, 24), 0.7, np.float32), Uniform(6).ladder()
    offset = rng.standard_normal((40, 24), dtype=np.float32) * np.float32(0.1) if affine else None
    start = scalar.rank(x / np.float32(0.7), ladder.thresholds)
    args = (x, step, offset, ladder.levels, start, 6)
    assert float((feedback.descend(*args) == feedback.descend_plain(*args)).mean()) > 0.998, "near ties may part"


def test_kernels_refuse_what_would_leave_their_arrays() -> None:
    x, upper, ladder = np.zeros((2, 4), np.float32), np.eye(4, dtype=np.float32), Uniform(3).ladder()
    for args in (
        (x, x[:1], None, upper),
        (x, x, x[:, :2], upper),
        (x, x, None, upper[:3]),
        (x.astype(np.float64), x, None, upper),
    ):
        with pytest.raises(BadInput):
            feedback.sweep(*args, ladder.thresholds, ladder.levels)
    with pytest.raises(BadInput):
        feedback.descend(x, x, None, ladder.levels, np.full((2, 4), 3), 1)
    with pytest.raises(BadInput):
        scalar.group_errors(x, None, x[0], None, ladder.thresholds, ladder.levels)
    with pytest.raises(BadInput):
        scalar.group_errors(x, None, x[:, 0], None, ladder.thresholds, ladder.levels[:1])


def test_grids_with_step_zero_normalise_to_zero() -> None:
    grid = Grid(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0]))
    assert grid.normalize(torch.tensor([5.0, 5.0])).tolist() == [0, 2.5]
    assert grid.denormalize(torch.tensor([3.0, 3.0])).tolist() == [1, 6]
