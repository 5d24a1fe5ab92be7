"""The battery that every transform meets: shapes, inverses, norms, statistics that follow, refusals."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.core import registry
from laconic.core.errors import BadConfig, BadInput, CodecError, CorruptStream, NotFitted
from laconic.core.stage import Kind, Stats
from laconic.transforms.dct import DCT, BlockDCT
from laconic.transforms.klt import KLT, LowRank
from laconic.transforms.reorder import Permutation, Reorder
from laconic.transforms.rotation import Hadamard, RandomRotation
from laconic.transforms.scaling import Center, RemoveMean, Scaling, Smoothing, UnitNorm
from laconic.transforms.select import Threshold, TopK
from laconic.transforms.wavelet import Wavelet53, Wavelet97

N = 48
ORTHOGONAL = [
    RandomRotation(3), Hadamard(5), Hadamard(None), Hadamard(2, block=16), KLT(), DCT(), DCT(block=8),
]  # fmt: skip
INVERTIBLE = [
    *ORTHOGONAL, UnitNorm(), UnitNorm("float32", "rms"), Center(), RemoveMean(), Scaling(), Scaling("absmax"),
    Smoothing(), Smoothing(0.5, 0.5), Permutation(4), Reorder(), Reorder("hessian"), Wavelet97(3, (-1,)), Wavelet97(2),
    BlockDCT(), BlockDCT(5), TopK(1.0), LowRank(N), LowRank(N, "whitened"),
]  # fmt: skip
PUSHES_HESSIAN = [
    *ORTHOGONAL, Center(), RemoveMean(), Scaling(), Smoothing(), Permutation(4), Reorder(), Wavelet97(3, (-1,)),
    LowRank(7), LowRank(7, "scaled"), LowRank(7, "whitened"),
]  # fmt: skip


def _x(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g) * torch.linspace(0.3, 3, shape[-1]) + torch.linspace(-1, 2, shape[-1])


def _stats(n=N, seed=1):
    g = torch.Generator().manual_seed(seed)
    inputs = torch.randn(4 * n, n, generator=g) @ torch.randn(n, n, generator=g)
    return Stats(hessian=inputs.T @ inputs / (4 * n))


def _fit(stage, x, stats=None):
    return stage.fit(x, stats or _stats(x.shape[-1]))


def _name(stage):
    return repr(stage).replace(" ", "")


@pytest.mark.parametrize("stage", INVERTIBLE, ids=_name)
@pytest.mark.parametrize("shape", [(64, N), (3, 2, 17, N)])
def test_inverts(stage, shape):
    x = _x(*shape)
    before = x.clone()
    stage = _fit(stage, x)
    y, side = stage.encode(x)
    back = stage.decode(y, side)
    assert back.shape == x.shape and back.dtype == torch.float32
    assert torch.equal(x, before)
    # float16 factors limit the last two: the rank is full, the basis is not exact
    tolerance = 3e-3 if type(stage) is LowRank else 1e-5
    assert (back - x).abs().max() <= tolerance * x.abs().max()


@pytest.mark.parametrize("stage", ORTHOGONAL, ids=_name)
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000))
def test_orthogonal_ones_keep_norms_and_inner_products(stage, seed):
    x = _x(20, N, seed=seed)
    y, _ = _fit(stage, x).encode(x)
    torch.testing.assert_close(y @ y.T, x @ x.T, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("stage", PUSHES_HESSIAN, ids=_name)
def test_pushed_hessian_weighs_errors_alike(stage):
    """tr(D H Dᵀ) of an error D in y, seen in x and behind the stage, is the same."""
    x, stats = _x(64, N), _stats()
    stage = _fit(stage, x, stats)
    y, side = stage.encode(x)
    e = 0.1 * torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    d = (stage.decode(y + e, side) - stage.decode(y, side)).double()
    behind = stage.push(stats).hessian.double()
    assert behind.shape == (y.shape[-1],) * 2 and torch.equal(behind, behind.T)
    before = torch.trace(d @ stats.hessian.double() @ d.T)
    after = torch.trace(e.double() @ behind @ e.double().T)
    assert abs(before - after) < 1e-3 * before


@pytest.mark.parametrize("stage", [UnitNorm(), UnitNorm("float32", "rms")], ids=_name)
def test_unit_norm_keeps_statistics_up_to_a_factor_per_row(stage):
    x, stats = _x(30, N), _stats()
    y, side = stage.encode(x)
    e = 0.1 * torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    d = stage.decode(y + e, side) - stage.decode(y, side)
    h = stage.push(stats).hessian
    ratio = ((d @ stats.hessian) * d).sum(1) / ((e @ h) * e).sum(1)
    length = x.norm(dim=1) ** 2 / (N if stage.length == "rms" else 1)
    torch.testing.assert_close(ratio, length, rtol=5e-3, atol=0)


@pytest.mark.parametrize("stage", [Scaling(), Smoothing(), Permutation(1), Reorder("absmax"), Center()], ids=_name)
@pytest.mark.parametrize("shape", [(64, N), (N,)])
def test_pushed_importance_weighs_errors_alike(stage, shape):
    x = _x(64, N)
    stage = _fit(stage, x)
    importance = torch.rand(shape, generator=torch.Generator().manual_seed(5))
    y, side = stage.encode(x)
    e = 0.1 * torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    d = stage.decode(y + e, side) - stage.decode(y, side)
    behind = stage.push(Stats(importance=importance)).importance
    torch.testing.assert_close((behind * e * e).sum(), (importance * d * d).sum(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("stage", [Permutation(1), Reorder()], ids=_name)
def test_masks_move_with_their_values(stage):
    x = _x(64, N)
    stage = _fit(stage, x)
    mask = x > 1
    assert torch.equal(stage.push(Stats(mask=mask)).mask, stage.encode(x)[0] > 1)


@pytest.mark.parametrize("stage", [*ORTHOGONAL, Wavelet97(2, (-1,)), LowRank(4)], ids=_name)
@pytest.mark.parametrize("name", ["importance", "mask"])
def test_mixing_stages_refuse_what_cannot_follow(stage, name):
    x = _x(64, N)
    with pytest.raises(BadConfig, match=name):
        _fit(stage, x).push(Stats(**{name: torch.ones(64, N, dtype=torch.bool if name == "mask" else torch.float32)}))


@pytest.mark.parametrize("stage", [BlockDCT(), Wavelet97(2), Wavelet53(2), TopK(0.1), Threshold()], ids=_name)
def test_stages_of_many_axes_refuse_hessians(stage):
    with pytest.raises(BadConfig, match="hessian"):
        stage.push(_stats())
    assert stage.push(Stats()) == Stats()


@pytest.mark.parametrize("stage", [KLT(), LowRank(4), Center(), Scaling(), Smoothing(), Reorder()], ids=_name)
def test_learned_stages_must_be_fitted(stage):
    with pytest.raises(NotFitted):
        stage.encode(_x(4, N))


@pytest.mark.parametrize("stage", INVERTIBLE + [Threshold(), TopK(0.1), Wavelet53()], ids=_name)
def test_configuration_and_model_rebuild_the_decoder(stage):
    x = _x(40, N)
    if type(stage) is Wavelet53:
        x = (x * 100).to(torch.int32)
    else:
        stage = _fit(stage, x)
    y, side = stage.encode(x)
    assert {k: v.dtype for k, v in side.items()} == {k: np.dtype(leaf.dtype) for k, leaf in stage.side.items()}
    arrays = {k: a.copy() for k, (_, a) in stage.arrays().items()}
    other = registry.build(registry.config(stage)).with_arrays(arrays)
    assert torch.equal(other.decode(y, side), stage.decode(y, side))


@pytest.mark.parametrize("stage", INVERTIBLE, ids=_name)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 7), (2, 0, 4), (1, 1, 1)])
def test_decoders_refuse_arrays_of_another_shape(stage, shape):
    """Whatever was decoded before: a named error, or an array (a stage without a model has no width of its own)."""
    x = _x(40, N)
    stage = _fit(stage, x)
    _, side = stage.encode(x)
    learned = any("learned" in f.metadata for f in fields(stage))
    try:
        stage.decode(torch.zeros(shape), side)
    except CorruptStream:
        return
    except CodecError as e:
        pytest.fail(f"{type(e).__name__} instead of CorruptStream: {e}")
    assert not learned and 0 not in shape and shape


BY_ROWS = [s for s in INVERTIBLE if s.side == {} and getattr(s, "axes", (-1,)) == (-1,)]


@pytest.mark.parametrize("stage", BY_ROWS, ids=_name)
def test_rows_do_not_depend_on_each_other(stage):
    x = _x(40, N)
    stage = _fit(stage, x)
    y, _ = stage.encode(x)
    assert torch.equal(stage.encode(x[7:8])[0], y[7:8])
    assert torch.equal(stage.decode(y[7:9], {}), stage.decode(y, {})[7:9])


@pytest.mark.parametrize("shape", [(), (0, 4), (3, 0)])
def test_nothing_to_transform_is_refused(shape):
    for stage in (Hadamard(), UnitNorm(), DCT(), TopK(), Wavelet97(1, (-1,)), BlockDCT(), RemoveMean(), Permutation()):
        with pytest.raises(BadInput):
            stage.encode(torch.zeros(shape))


def test_kinds():
    for stage in INVERTIBLE:
        assert stage.takes is Kind.ARRAY and stage.gives is Kind.ARRAY


def test_settings_are_checked():
    for make in (
        lambda: Hadamard(block=0), lambda: DCT(block=5000), lambda: UnitNorm("int8"), lambda: UnitNorm(length="l1"),
        lambda: Scaling("median"), lambda: Smoothing(1.5), lambda: Reorder("name"), lambda: LowRank(0),
        lambda: LowRank(3, "best"), lambda: TopK(0), lambda: TopK(1.1), lambda: Threshold(float("nan")),
        lambda: Wavelet97(0), lambda: Wavelet97(1, (0,)), lambda: Wavelet53(1, ()), lambda: BlockDCT(0),
    ):  # fmt: skip
        with pytest.raises(BadConfig):
            make()
