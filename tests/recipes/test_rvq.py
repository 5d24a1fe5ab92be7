from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import laconic


def correlated(n: int, seed: int, d: int = 32, rho: float = 0.9) -> torch.Tensor:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    for k in range(1, d):
        x[:, k] = rho * x[:, k - 1] + (1 - rho * rho) ** 0.5 * x[:, k]
    return x


LEARN, BASE = correlated(10000, 0), correlated(4000, 1)


def error(learn: torch.Tensor, base: torch.Tensor, **settings: Any) -> float:
    codec = laconic.codec("rvq", **settings).fit(learn)
    return float((codec.decode(codec.encode(base, embed=False)) - base).square().mean())


def test_learned_sums_beat_greedy_ones_and_products() -> None:
    """The card's numbers."""
    product = error(LEARN, BASE, bits=0.75, index_bits=6, depth=1)
    whole = error(LEARN, BASE, bits=0.75, index_bits=6)
    assert product == pytest.approx(0.106, rel=0.03)
    assert whole == pytest.approx(0.086, rel=0.03)
    assert whole < error(LEARN, BASE, bits=0.75, index_bits=6, beam=1)


def test_every_byte_is_counted() -> None:
    codec = laconic.codec("rvq", bits=1.0, index_bits=4).fit(LEARN[:500])
    with_books, without = codec.encode(BASE), codec.encode(BASE, embed=False)
    said = laconic.info(with_books)
    roles = said.ledger.by_role()
    assert roles["codes"] == BASE.numel() // 8
    assert roles["codebooks"] == 2 * 8 * 16 * 32 + 4 * 32, "eight books of 16 codewords of 32 half floats, and the mean"
    assert sum(roles.values()) == len(with_books)
    assert 8 * len(without) / BASE.numel() == pytest.approx(1.0, rel=0.05)
    assert torch.equal(laconic.decode(with_books), laconic.decode(without, model=codec))
    with pytest.raises(laconic.ModelMismatch):
        laconic.decode(without, model=laconic.codec("rvq", bits=1.0, index_bits=4, seed=9).fit(LEARN[:500]))


def test_vectors_that_are_no_matrix_and_few_vectors() -> None:
    x = LEARN[:600].reshape(20, 30, 32)
    codec = laconic.codec("rvq", bits=2.0, index_bits=5).fit(x)
    assert torch.equal(
        laconic.decode(codec.encode(x)).reshape(600, 32), laconic.decode(codec.encode(x.reshape(600, 32)))
    )
    for n in (1, 2, 5):
        few = LEARN[:n]
        back = laconic.decode(laconic.codec("rvq", bits=2.0).fit(few).encode(few))
        assert back.shape == few.shape and torch.isfinite(back).all()
    with pytest.raises(laconic.BadInput, match="32 values"):
        codec.encode(x[..., :16])


def test_not_above_faiss(data: Path) -> None:
    """Image descriptors that were not learned from, 16 indices of 4 bits: below the codes that faiss learns for that size."""
    faiss = pytest.importorskip("faiss")
    faiss.omp_set_num_threads(1)
    where = data / "ann-vectors"
    learn, base = (np.load(where / f"sift_photos_{n}.npy")[:3000].astype(np.float32) for n in ("learn", "base"))
    d = learn.shape[1]
    ours = d * error(torch.from_numpy(learn), torch.from_numpy(base), bits=0.5, index_bits=4)
    theirs = {}
    for quantizer in (faiss.ProductQuantizer(d, 16, 4), faiss.ResidualQuantizer(d, 16, 4)):
        quantizer.train(learn)
        decoded = quantizer.decode(quantizer.compute_codes(base))
        theirs[type(quantizer).__name__] = float(((decoded - base) ** 2).sum(1).mean())
    assert ours < 0.95 * min(theirs.values()), theirs
