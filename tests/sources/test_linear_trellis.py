"""A layer of trellis symbols is the dense layer that they decode to."""

import numpy as np
import pytest
import torch

from laconic.core.errors import BadConfig
from laconic.quantize.trellis import Trellis
from laconic.sources.weights.linear_trellis import TrellisLinear

BOOK = Trellis(2.0, states=256, length=128)


def _made(bias=None):
    w = torch.randn(40, 256, generator=torch.Generator().manual_seed(0))
    step = np.full((40, 2), 1.5, np.float32)
    index = BOOK.nearest(w / 1.5)
    return TrellisLinear.from_symbols(index.numpy(), BOOK, step, bias=bias), BOOK.lookup(index) * 1.5, w


def test_dequantize_and_forward():
    bias = torch.arange(40.0)
    layer, dense, w = _made(bias)
    assert torch.equal(layer.dequantize(), dense)
    assert float((dense - w).square().mean()) < 0.2
    for shape in ((256,), (3, 256), (2, 20, 256)):
        x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
        assert torch.allclose(layer(x), x @ dense.T + bias, rtol=1e-4, atol=1e-4)
    assert layer.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(layer.dequantize(), dense)


def test_memory():
    layer, _, _ = _made()
    assert layer.nbytes == 40 * 256 * 2 // 8 + 4 * 80 + 4 * 2 * 256
    assert layer.describe().startswith("2-bit trellis of 2^8 states: 3.8")


def test_refusals():
    step, index = np.ones((4, 1), np.float32), np.zeros((4, 256), np.int64)
    with pytest.raises(BadConfig, match="paths of one row"):
        TrellisLinear.from_symbols(index, BOOK.replace(rows=2), step)
    with pytest.raises(BadConfig, match="equal paths"):
        TrellisLinear.from_symbols(index[:, :131], BOOK, step)
