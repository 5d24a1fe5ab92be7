"""Packed layers: what they dequantize to is what they multiply by; dtypes, shapes, memory, sharing."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch

from laconic.core.errors import BadConfig, BadInput
from laconic.sources.weights.linear import DenseLinear, Outliers, PackedEmbedding, PackedLinear

N_OUT, N_IN = 50, 192


def _levels(low=-8, high=8, n_out=N_OUT, n_in=N_IN, seed=0):
    return np.random.default_rng(seed).integers(low, high, (n_out, n_in))


def _step(n_groups=3, n_out=N_OUT):
    return np.random.default_rng(1).uniform(0.01, 0.02, (n_out, n_groups)).astype(np.float32)


def _expected(levels, step, offset=None):
    group = -(-levels.shape[1] // step.shape[1])
    dense = levels.astype(np.float32) * np.repeat(step, group, 1)[:, : levels.shape[1]]
    return dense if offset is None else dense + np.repeat(offset, group, 1)[:, : levels.shape[1]]


def _x(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "low, high, bits", [(0, 2, 1), (-2, 2, 2), (-3, 4, 3), (-8, 8, 4), (-20, 11, 5), (-100, 101, 8)]
)
def test_tightest_layout(low, high, bits):
    levels = _levels(low, high)
    levels[0, :2] = low, high - 1
    layer = PackedLinear.from_levels(levels.astype(np.int8), _step())
    assert layer.describe().startswith(f"{bits}-bit levels")
    assert np.array_equal(layer.dequantize().numpy(), _expected(levels, _step()))


@pytest.mark.parametrize("activations, error", [("int8", 0.02), ("int16", 1e-4), ("float32", 1e-6)])
@pytest.mark.parametrize("shape", [(N_IN,), (1, N_IN), (2, 3, N_IN), (40, N_IN), (0, N_IN), (2, 0, N_IN)])
def test_forward_for_any_leading_shape(shape, activations, error):
    bias = torch.randn(N_OUT)
    layer = PackedLinear.from_levels(_levels(), _step(), bias=bias, activations=activations)
    x = _x(*shape)
    y = layer(x)
    expected = torch.nn.functional.linear(x, layer.dequantize(), bias)
    assert y.shape == expected.shape and y.dtype == x.dtype
    assert float((y - expected).norm()) <= error * float(expected.norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtype_in_is_dtype_out_and_casting_the_model_changes_nothing(dtype):
    layer = PackedLinear.from_levels(_levels(), _step(), activations="float32")
    before = layer.dequantize()
    layer.to(dtype)
    assert torch.equal(layer.dequantize(), before)
    x = _x(5, N_IN).to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    assert torch.allclose(y.double(), x.double() @ before.double().T, rtol=1e-2, atol=1e-2)


def test_offset_table_column_scale_and_outliers_together():
    levels, step, scale = _levels(0, 16), _step(), np.linspace(0.5, 2, N_IN, dtype=np.float32)
    table = np.linspace(-1, 1, 16, dtype=np.float32) ** 3
    offset = -3 * step
    outliers = Outliers(np.array([49, 0, 7]), np.array([3, 191, 64]), np.array([5, -4, 3], np.float32))
    layer = PackedLinear.from_levels(
        levels, step, offset=offset, table=table, column_scale=scale, outliers=outliers, activations="float32"
    )
    dense = _expected(table[levels], step, offset)
    dense[outliers.rows, outliers.columns] += outliers.values
    dense = dense * scale
    np.testing.assert_allclose(layer.dequantize().numpy(), dense, rtol=1e-6)
    for m in (2, 40):
        x = _x(m, N_IN)
        assert torch.allclose(layer(x), x @ torch.from_numpy(dense).T, rtol=1e-4, atol=1e-4)


def test_levels_beyond_8_bits_become_outliers():
    levels = _levels(-30, 30)
    levels[3, 5], levels[40, 190], levels[1, 1] = 4000, -900, 127
    layer = PackedLinear.from_levels(levels, _step(), activations="float32")
    assert "2 outliers" in layer.describe()
    assert np.array_equal(layer.dequantize().numpy(), _expected(levels, _step()))
    x = _x(3, N_IN)
    assert torch.allclose(layer(x), x @ layer.dequantize().T, rtol=1e-4, atol=1e-4)


def test_memory_is_that_of_the_codes():
    layer = PackedLinear.from_levels(_levels(n_out=256, n_in=512), _step(8, 256), exact=False)
    n = 256 * 512
    assert layer.nbytes == n // 2 + 2 * 256 * 8 + 4 * 16 == sum(b.nbytes for b in layer.buffers())
    assert layer.describe() == "4-bit levels, float16 step per 64: 4.254 bits a weight"


def test_copies_saves_and_loads():
    layer = PackedLinear.from_levels(_levels(), _step(), bias=torch.ones(N_OUT))
    other = PackedLinear.from_levels(_levels(-8, 8, seed=5), 2 * _step(), bias=torch.zeros(N_OUT))
    kept = copy.deepcopy(other)
    x = _x(2, N_IN)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    assert torch.equal(other(x), layer(x))
    assert not torch.equal(kept(x), other(x))


def test_gradient_of_the_input():
    layer = PackedLinear.from_levels(_levels(), _step(), activations="float32")
    for m in (2, 40):
        x = _x(m, N_IN).requires_grad_()
        layer(x).square().sum().backward()
        w, same = layer.dequantize(), _x(m, N_IN).requires_grad_()
        (same @ w.T).square().sum().backward()
        assert torch.allclose(x.grad, same.grad, rtol=1e-4, atol=1e-4)


def test_embedding_gathers_and_its_head_shares_memory():
    levels, step = _levels(-4, 4), _step()
    outliers = Outliers(np.array([7, 7, 9]), np.array([0, 5, 6]), np.array([1, 2, 3], np.float32))
    table = PackedEmbedding.from_levels(levels, step, outliers=outliers, column_scale=np.full(N_IN, 2, np.float32))
    dense = table.dequantize()
    assert float(dense[7, 5]) != 2 * float(_expected(levels, step)[7, 5])
    ids = torch.tensor([[7, 3, 49], [7, 0, 3]])
    assert torch.equal(table(ids), dense[ids])
    assert table(ids[:0]).shape == (0, 3, N_IN)
    head = table.as_linear(activations="float32")
    assert head.codes.data_ptr() == table.codes.data_ptr() and torch.equal(head.dequantize(), dense)
    x = _x(2, N_IN)
    assert torch.allclose(head(x), x @ dense.T, rtol=1e-4, atol=1e-4)
    assert torch.nn.ModuleList([table, head]).state_dict()["1.codes"].data_ptr() == table.codes.data_ptr()


def test_dense_stays_dense():
    weight, bias = _x(N_OUT, N_IN), torch.arange(float(N_OUT))
    layer = PackedLinear.from_dense(weight, bias)
    assert isinstance(layer, DenseLinear) and layer.nbytes == 2 * weight.numel() + bias.nbytes
    assert torch.equal(layer.dequantize(), weight.bfloat16().float())
    x = _x(3, N_IN).flip(-1)
    assert torch.allclose(layer(x), x @ layer.dequantize().T + bias, rtol=1e-4, atol=1e-4)
    y = layer(x.bfloat16())
    assert y.dtype == torch.bfloat16 and float((y - x @ weight.T - bias).norm()) < 0.02 * float(y.norm())


def test_refusals():
    layer = PackedLinear.from_levels(_levels(), _step())
    with pytest.raises(BadInput, match="on the CPU"):
        layer(_x(3, N_IN + 1))
    with pytest.raises(BadInput, match="floats"):
        layer(torch.ones(3, N_IN, dtype=torch.int64))
    with pytest.raises(BadConfig, match="float32 is right"):
        PackedLinear.from_levels(_levels(), _step(), activations="int4")
    with pytest.raises(BadInput, match="groups of"):
        PackedLinear.from_levels(_levels(), _step(), group_size=100)
    with pytest.raises(BadInput, match="groups of 1"):
        PackedLinear.from_levels(_levels(), _step(N_IN + 1))
    with pytest.raises(BadInput, match="bias"):
        PackedLinear.from_levels(_levels(), _step(), bias=torch.ones(3))
    with pytest.raises(BadInput, match="do not lie"):
        PackedLinear.from_levels(_levels(), _step(), outliers=Outliers(np.array([99]), np.array([0]), np.ones(1)))
    with pytest.raises(BadInput, match="column scale"):
        PackedLinear.from_levels(_levels(), _step(), column_scale=np.ones(3, np.float32))


def test_what_is_kept_between_tokens_follows_the_buffers():
    """The operands of a product are made once; exchanged buffers, copies and pickles have their own."""
    rng = np.random.default_rng(0)
    step = np.ones((32, 2), np.float32)
    one, other = (
        PackedLinear.from_levels(rng.integers(-8, 8, (32, 64), dtype=np.int8), step, group_size=32) for _ in range(2)
    )
    x = torch.randn(1, 64)
    first, second = one(x), other(x)
    assert not torch.equal(first, second)
    for copied in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert torch.equal(copied(x), first)
        copied.codes.copy_(other.codes)  # in place, as loading a state does
        assert torch.equal(copied(x), second) and torch.equal(one(x), first)
    one._buffers["codes"] = other.codes
    assert torch.equal(one(x), second)
    one.activations = "int8"
    assert not torch.equal(one(x), second)
