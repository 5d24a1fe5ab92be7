from __future__ import annotations

import numpy as np
import pytest
import torch

from laconic import Codec, Stats, decode, info
from laconic.core import registry
from laconic.core.combine import chain
from laconic.core.errors import BadConfig, BadInput, CodecError, CorruptStream, NotFitted
from laconic.entropy.coders import Pack
from laconic.quantize.base import Codebook, Quantizer
from laconic.quantize.rounding import Feedback
from laconic.quantize.scales import AbsMax, Along, Float, GroupScale, Rms
from laconic.quantize.vector import VQ, AdditiveVQ, SignVQ

G = torch.Generator().manual_seed(0)
GAUSS = torch.randn(2048, 64, generator=G)


def mse(book: Codebook, x: torch.Tensor = GAUSS) -> float:
    index = book.nearest(x)
    assert index.dtype == torch.int64 and 0 <= int(index.min()) <= int(index.max()) < book.alphabet
    back = book.lookup(index)
    assert back.dtype == torch.float32 and back.shape == x.shape
    return float((back - x).square().mean())


def correlated(n: int, d: int, rho: float = 0.9, seed: int = 0) -> torch.Tensor:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    for k in range(1, d):
        x[:, k] = rho * x[:, k - 1] + (1 - rho * rho) ** 0.5 * x[:, k]
    return x


def test_vq_at_two_bits_is_below_lloyd_max() -> None:
    """Published probe: .1012 for 256 points of 4 values; Lloyd–Max .1175; the bound .0625."""
    assert mse(VQ(index_bits=8, dim=4).fit(GAUSS)) < 0.1012
    assert mse(VQ(index_bits=2, dim=1).fit(GAUSS)) == pytest.approx(0.1175, rel=0.02)


def test_signs_apart_reach_the_same_with_a_fraction_of_the_table() -> None:
    """SSVQ: .0965 with 256 points of 8 absolute values, at 2 bits."""
    book = SignVQ(index_bits=8, dim=8).fit(GAUSS)
    assert book.alphabet == 1 << 16 and mse(book) < 0.0965
    assert (book.table >= 0).all()
    x = torch.tensor([[-3.0, 2, -1, 0.5, -0.25, 1, -2, 0]])
    assert torch.equal(torch.sign(book.lookup(book.nearest(x)))[0, :7], torch.sign(x)[0, :7])


def test_vq_equals_the_nearest_row_of_its_table() -> None:
    book = VQ(index_bits=5, dim=4).fit(GAUSS)
    points = torch.from_numpy(book.table.astype(np.float32)) * float(book.gain[0])
    assert torch.equal(
        book.nearest(GAUSS[:50]), torch.cdist(GAUSS[:50].reshape(-1, 4), points).argmin(1).reshape(50, 16)
    )


def test_importance_moves_the_points() -> None:
    w = torch.ones(64)
    w[::4] = 25
    plain, heavy = VQ(index_bits=6, dim=4).fit(GAUSS), VQ(index_bits=6, dim=4).fit(GAUSS, w)

    def error(book: VQ) -> float:
        return float((book.lookup(book.nearest(GAUSS)) - GAUSS)[:, ::4].square().mean())

    assert error(heavy) < 0.8 * error(plain)
    with pytest.raises(BadInput, match="negative"):
        VQ().fit(GAUSS, -w)


@pytest.mark.parametrize("book", [VQ(index_bits=6), SignVQ(index_bits=6), AdditiveVQ(bits=0.5, index_bits=6, rounds=4)])
@pytest.mark.parametrize("size", [1e-38, 1e-20, 1.0, 1e20, 1e37])
def test_any_magnitude(book: Codebook, size: float) -> None:
    x = GAUSS[:300] * size
    fitted = book.fit(x)
    back = fitted.lookup(fitted.nearest(x))
    assert torch.isfinite(back).all()
    assert float((back / size - x / size).square().mean()) < 0.8


@pytest.mark.parametrize("book", [VQ(), SignVQ(), AdditiveVQ()])
def test_constants_are_kept_and_few_vectors_make_small_tables(book: Codebook) -> None:
    for value in (0.0, -2.5, 3e-39):
        x = torch.full((64, 16), value)
        fitted = book.fit(x)
        torch.testing.assert_close(
            fitted.lookup(fitted.nearest(x)), x, rtol=5e-4 if isinstance(book, VQ) else 0, atol=0
        )
    few = book.fit(GAUSS[:3, :16])
    assert len(few.arrays()["table"][1].reshape(-1)) <= 8 * 16
    assert few.lookup(few.nearest(GAUSS[:3, :16])).shape == (3, 16)


def test_additive_layouts() -> None:
    """Rate, slices and depth: ⌊bits · n / index_bits⌋ indices, as few slices as hold them."""
    x = correlated(1200, 24)
    for bits, index_bits, depth, layout in (
        (1.0, 6, 8, (1, 4)), (1.0, 6, 1, (4, 1)), (2.5, 6, 4, (3, 3)), (0.1, 6, 8, (1, 1)), (4.0, 3, 2, (16, 2))
    ):  # fmt: skip
        book = AdditiveVQ(bits=bits, index_bits=index_bits, depth=depth, rounds=2).fit(x)
        slices, deep = layout
        assert book.table.shape == (deep, 1 << index_bits, 24)
        assert book.nearest(x).shape == (1200, slices * deep)
        assert slices * deep * index_bits <= max(bits * 24, index_bits)


def test_additive_codes_beat_products_and_wide_beams_narrow_ones() -> None:
    x, held_out = correlated(4000, 24), correlated(1000, 24, seed=1)
    book = AdditiveVQ(bits=1.0, index_bits=6).fit(x)
    product = AdditiveVQ(bits=1.0, index_bits=6, depth=1).fit(x)
    assert mse(book, held_out) < 0.85 * mse(product, held_out)
    assert mse(book, held_out) < mse(book.replace(beam=1), held_out)
    untrained = AdditiveVQ(bits=1.0, index_bits=6, rounds=0).fit(x)
    assert mse(book, x) < mse(untrained, x)


def test_additive_importance() -> None:
    x, w = correlated(1500, 16), torch.ones(16)
    w[:4] = 100
    plain, heavy = (AdditiveVQ(bits=1.0, index_bits=6, rounds=4).fit(x, weights) for weights in (None, w))

    def error(book: AdditiveVQ) -> float:
        return float((book.lookup(book.nearest(x)) - x)[:, :4].square().mean())

    assert error(heavy) < 0.6 * error(plain)
    with pytest.raises(BadConfig, match="16 coordinates"):
        AdditiveVQ().fit(x, torch.ones_like(x))


@pytest.mark.parametrize("book", [VQ(dim=4), SignVQ(index_bits=6, dim=4), AdditiveVQ(bits=1.0, index_bits=6, rounds=3)])
@pytest.mark.parametrize("scale", [None, GroupScale(Along(), Rms(), Float()), GroupScale(Along(16), AbsMax(), Float())])
def test_in_a_codec(book: Codebook, scale: GroupScale | None) -> None:
    x = torch.randn(5, 60, 32, generator=G)
    quantizer = Quantizer(book) if scale is None else Quantizer(book, scale)
    codec = Codec(chain(quantizer, Pack())).fit(x)
    packet = codec.encode(x)
    back = decode(packet)
    assert torch.equal(back, codec.decode(packet)) and float((back - x).square().mean()) < 0.5
    roles = info(packet).ledger.by_role()
    assert roles["codebooks"] >= 2 * codec.model()["stages.0.codebook.table"].size
    stage = registry.build(registry.config(codec.stage)).with_arrays(codec.model())
    assert torch.equal(Codec(stage).decode(codec.encode(x, embed=False)), back)


def test_error_feedback_goes_by_vectors() -> None:
    inputs = correlated(4096, 64, 0.95)
    h = inputs.T @ inputs / len(inputs)

    def loss(stage: Quantizer) -> float:
        e = stage.decode(*stage.encode(GAUSS)) - GAUSS
        return float((e @ h * e).sum())

    assert loss(Quantizer(VQ(), rounding=Feedback()).fit(GAUSS, Stats(hessian=h))) < 0.7 * loss(
        Quantizer(VQ()).fit(GAUSS)
    )
    with pytest.raises(BadConfig, match="whole rows"):
        book = AdditiveVQ(bits=0.5, index_bits=4, rounds=0)
        Quantizer(book, rounding=Feedback()).fit(GAUSS, Stats(hessian=h)).encode(GAUSS)


@pytest.mark.parametrize(
    "make",
    [
        lambda: VQ(index_bits=17),
        lambda: VQ(dim=0),
        lambda: SignVQ(index_bits=10, dim=8),
        lambda: AdditiveVQ(bits=0.0),
        lambda: AdditiveVQ(index_bits=13),
        lambda: AdditiveVQ(beam=0),
    ],
)
def test_settings_that_cannot_work(make: object) -> None:
    with pytest.raises(BadConfig, match="possible|at most"):
        make()  # type: ignore[operator]


def test_wrong_shapes_and_unfitted_books() -> None:
    with pytest.raises(BadConfig, match="divide"):
        VQ(dim=5).fit(GAUSS)
    with pytest.raises(NotFitted):
        VQ().nearest(GAUSS)
    with pytest.raises(NotFitted):
        AdditiveVQ().lookup(torch.zeros(1, 8, dtype=torch.int64))
    with pytest.raises(BadInput, match="64 values"):
        AdditiveVQ(rounds=0).fit(GAUSS).nearest(GAUSS[:, :32])
    with pytest.raises(BadInput):
        VQ().fit(GAUSS[:0])


def test_lies_of_a_stream() -> None:
    vq, additive = VQ(index_bits=4).fit(GAUSS), AdditiveVQ(bits=1.0, index_bits=4, rounds=1).fit(GAUSS)
    n = additive.nearest(GAUSS[:1]).shape[1]
    lies: list[tuple[Codebook, torch.Tensor]] = [
        (vq, torch.tensor([[16]])), (vq, torch.tensor([[-1]])), (vq, torch.tensor(3)),
        (additive, torch.full((1, n), 16)), (additive, torch.zeros(1, n + 1, dtype=torch.int64)),
        (additive, torch.zeros(1, 2 * n, dtype=torch.int64)), (additive, torch.tensor(0)),
    ]  # fmt: skip
    for book, index in lies:
        with pytest.raises(CorruptStream):
            book.lookup(index)
    for book, name, array in (
        (vq, "table", np.zeros((5, 4))), (vq, "table", np.zeros((16, 3))), (vq, "table", np.full((16, 4), np.inf)),
        (vq, "table", np.zeros(0)), (vq, "gain", np.zeros(1)), (vq, "gain", np.array([np.nan])), (vq, "gain", np.ones(2)),
        (additive, "table", additive.table[:, :, :5]), (additive, "table", additive.table[:1]),
        (additive, "table", additive.table[0]), (additive, "mean", additive.mean[:5]),
        (additive, "mean", np.full_like(additive.mean, np.nan)), (additive, "table", np.zeros((0, 16, 64))),
    ):  # fmt: skip
        with pytest.raises(CodecError):
            book.with_arrays({**{k: a for k, (_, a) in book.arrays().items()}, name: array.astype(np.float32)})
