from __future__ import annotations

import numpy as np
import pytest
import torch

import laconic
from laconic import Stats
from laconic.core.errors import CorruptStream
from laconic.kernels.alphabets import sweep_alphabets, sweep_alphabets_plain
from laconic.quantize.alphabets import ColumnAlphabets, allocate_alphabets


def test_kernel_agrees_with_its_plain_twin() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((9, 300)).astype(np.float32)
    low, width = np.full(x.shape, -2, np.float32), np.full(x.shape, 4, np.float32)
    width[3] = 0
    alphabet = rng.integers(1, 40, 300)
    upper = np.triu(rng.standard_normal((300, 300)) * 0.02 + np.eye(300)).astype(np.float32)
    rank, error = sweep_alphabets(x, low, width, alphabet, upper)
    plain_rank, plain_error = sweep_alphabets_plain(x, low, width, alphabet, upper)
    assert (rank == plain_rank).mean() > 0.999
    np.testing.assert_allclose(error[rank == plain_rank], plain_error[rank == plain_rank], atol=2e-4)
    assert (rank < alphabet).all() and (rank >= 0).all()


@pytest.mark.parametrize("bits", [1.0, 2.3, 4.0])
def test_a_column_of_four_times_the_loss_gets_a_bit_more(bits: float) -> None:
    loss = 4.0 ** np.random.default_rng(0).integers(0, 3, 400)
    alphabet = allocate_alphabets(loss, bits, 2.0)
    mean = np.log2(alphabet).mean()
    assert bits - 0.25 < mean <= bits
    by_loss = [np.log2(alphabet[loss == v].mean()) for v in (1.0, 4.0, 16.0)]
    if bits == 4.0:
        np.testing.assert_allclose(np.diff(by_loss), 1, atol=0.1)
    assert by_loss == sorted(by_loss)


def test_no_losses_at_all_share_equally() -> None:
    assert set(allocate_alphabets(np.zeros(5), 2.0, 2.0).tolist()) == {4}


def test_columns_that_matter_are_coded_finer() -> None:
    w = torch.randn(96, 64, generator=torch.Generator().manual_seed(1))
    stage = ColumnAlphabets(3.0).fit(w, Stats(hessian=torch.diag(torch.logspace(-2, 2, 64))))
    y, side = stage.encode(w)
    error = (stage.decode(y, side) - w).square().mean(dim=0)
    assert error[-16:].mean() < error[:16].mean() / 50
    assert side["levels"][-8:].min() > side["levels"][:8].max()


def test_damage_has_a_name() -> None:
    w = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
    stage = ColumnAlphabets(2.0)
    y, side = stage.encode(w)
    for data, changed in (
        (y[:-1], {}),
        (y + b"\0", {}),
        (y, {"levels": side["levels"] + 40}),
        (y, {"rows": np.array([-8])}),
    ):
        with pytest.raises(CorruptStream):
            stage.decode(data, side | changed)
    with pytest.raises(laconic.BadConfig):
        ColumnAlphabets(7.0)
