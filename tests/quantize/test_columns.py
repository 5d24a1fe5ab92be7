from __future__ import annotations

import numpy as np
import pytest
import torch

from laconic import BadConfig, BadInput, CorruptStream, NotFitted
from laconic.core.stage import Stats
from laconic.quantize.base import Quantizer
from laconic.quantize.columns import ColumnVQ
from laconic.quantize.rounding import Feedback


def matrix(m: int = 96, n: int = 160, seed: int = 0) -> torch.Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


def test_vectors_run_down_and_go_to_the_nearest_point() -> None:
    x = matrix()
    book = ColumnVQ(bits=2.0).fit(x)
    _, n_points, v = book.table.shape
    index = book.nearest(x)
    assert v > 1 and index.shape == (96 // v, 160)
    points = torch.from_numpy(book.table[0].astype(np.float32) * book.gain)
    vectors = x.T.reshape(160, 96 // v, v)
    want = (vectors[:, :, None] - points).square().sum(-1).argmin(-1).T
    assert (index != want).float().mean() < 1e-3  # ties and the last bit of a float
    torch.testing.assert_close(book.lookup(index), points[index.T].reshape(160, 96).T)


def test_the_second_stage_codes_what_the_first_left() -> None:
    x = matrix(256, 256)
    one, two = ColumnVQ(bits=2.0).fit(x), ColumnVQ(bits=4.0, stages=2).fit(x)
    errors = [float((b.lookup(b.nearest(x)) - x).square().mean()) for b in (one, two)]
    assert errors[1] < errors[0] / 4
    assert two.alphabet == two.table.shape[1] ** 2


@pytest.mark.parametrize("shape", [(64, 64), (256, 256), (768, 256)])
@pytest.mark.parametrize("bits", [1.0, 2.0, 3.5])
def test_layout_keeps_to_the_rate(shape: tuple[int, int], bits: float) -> None:
    book = ColumnVQ(bits=bits)
    length, index_bits = book.layout(*shape)
    assert shape[0] % length == 0
    assert index_bits / length <= bits
    assert 16 * length * 2**index_bits <= bits / 16 * shape[0] * shape[1]


def test_larger_matrices_get_longer_vectors() -> None:
    book = ColumnVQ(bits=2.0)
    assert [book.layout(n, n).length for n in (64, 256, 1024)] == sorted(
        book.layout(n, n).length for n in (64, 256, 1024)
    )
    assert book.layout(1024, 1024).length > book.layout(64, 64).length


def test_weights_move_the_points_to_where_they_count() -> None:
    x = matrix(256, 128)
    x[:, :64] *= 3
    weights = torch.cat([torch.full((64,), 1e-3), torch.ones(64)])
    plain, weighted = ColumnVQ(bits=2.0).fit(x), ColumnVQ(bits=2.0).fit(x, weights)
    errors = [((b.lookup(b.nearest(x)) - x).square() * weights).sum() for b in (plain, weighted)]
    assert errors[1] < 0.7 * errors[0]


def test_feedback_goes_by_columns() -> None:
    x = matrix()
    a = torch.randn(400, 160, generator=torch.Generator().manual_seed(1)) @ torch.diag(torch.linspace(0.1, 2, 160))
    a[:, 1:] += a[:, :-1]
    h = a.T @ a / 400
    errors = []
    for stats in (None, Stats(hessian=h)):
        stage = Quantizer(ColumnVQ(bits=2.0), rounding=Feedback()).fit(x, stats)
        y, side = stage.encode(x)
        e = stage.decode(y, side) - x
        errors.append(float((e @ h * e).sum()))
    assert errors[1] < 0.6 * errors[0]


def test_what_cannot_be_coded_is_refused() -> None:
    with pytest.raises(BadConfig):
        ColumnVQ(bits=9.0)
    with pytest.raises(BadConfig, match="leave no table"):
        ColumnVQ(bits=2.0).fit(matrix(3, 5))
    with pytest.raises(BadInput, match="matrix"):
        ColumnVQ().fit(torch.ones(2, 3, 4))
    with pytest.raises(NotFitted):
        ColumnVQ().nearest(matrix())
    book = ColumnVQ().fit(matrix())
    with pytest.raises(BadInput, match="rows"):
        book.nearest(matrix(97, 160))
    with pytest.raises(CorruptStream):
        book.lookup(torch.full((4, 4), book.alphabet))
    with pytest.raises(CorruptStream):
        book.replace(table=np.zeros((1, 3, 2)))
