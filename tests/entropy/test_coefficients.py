"""The coefficient coder as a stage."""

import numpy as np
import pytest

from laconic.core.errors import BadInput, CorruptStream
from laconic.core.stage import Symbols
from laconic.entropy.coefficients import CoefficientCoder


def _sample(shape=(2, 3, 4, 64)):
    return np.rint(np.random.default_rng(0).laplace(size=shape) * 3).astype(np.int32)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 4, 64), (3, 1, 2, 1024), (1, 0, 5, 64)])
def test_inverts(shape):
    x = Symbols(_sample(shape), 0)
    y, side = CoefficientCoder().encode(x)
    back = CoefficientCoder().decode(y, side)
    assert back.alphabet == 0 and back.index.dtype == np.int32
    assert np.array_equal(back.index, x.index)


def test_strided_input_is_left_alone():
    q = _sample((2, 3, 8, 64))
    view = q[:, :, ::2]
    before = q.copy()
    y, side = CoefficientCoder().encode(Symbols(view, 0))
    assert np.array_equal(CoefficientCoder().decode(y, side).index, view)
    assert np.array_equal(q, before)


@pytest.mark.parametrize(
    "x",
    [
        Symbols(_sample().astype(np.int64), 0),
        Symbols(abs(_sample()).astype(np.uint8), 256),
        Symbols(_sample((3, 4, 64)), 0),
        Symbols(_sample((1, 1, 1, 60)), 0),
        Symbols(_sample((17, 1, 1, 4)), 0),
        Symbols(_sample() << 24, 0),
    ],
)
def test_what_cannot_be_coded_is_refused(x):
    with pytest.raises(BadInput):
        CoefficientCoder().encode(x)


@pytest.mark.parametrize("head", [[], [2], [2, 3, 4, 8, 0], [2, 3, 4, 9], [2, 3, 4, 255, 255, 255, 127], [2, 3, 5, 8]])
def test_lies_in_the_head(head):
    y, side = CoefficientCoder().encode(Symbols(_sample(), 0))
    with pytest.raises(CorruptStream):
        CoefficientCoder().decode(y, {"head": np.array(head, np.uint8)})
