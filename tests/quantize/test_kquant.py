from __future__ import annotations

import numpy as np
import pytest
import torch

from laconic.core.errors import BadConfig, CorruptStream
from laconic.core.stage import Side, Stats, Symbols
from laconic.kernels.bits import unpack
from laconic.quantize.base import Quantizer
from laconic.quantize.codebooks import Uniform
from laconic.quantize.kquant import SuperBlock

TYPES = {
    "Q4_K": Quantizer(Uniform(16, 0.0), SuperBlock(32, 8, 6)),
    "Q2_K": Quantizer(Uniform(4, 0.0), SuperBlock(16, 16, 4)),
}
BITS = {"Q4_K": 4.5, "Q2_K": 2.625}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative(q: Quantizer, x: torch.Tensor) -> float:
    return float((q.decode(*q.encode(x)) - x).double().square().mean() / x.double().square().mean())


def gguf_blocks(name: str, symbols: Symbols, side: Side) -> np.ndarray:
    """Our numbers in llama.cpp's blocks. Q4_K: d, dmin, 12 bytes of scales, 128 of codes; Q2_K: scales, codes, d, dmin."""
    q = symbols.index.reshape(-1, 256)
    n = len(q)
    bits, blocks = (6, 8) if name == "Q4_K" else (4, 16)
    s, m = (unpack(side[k], bits, n * blocks).reshape(n, blocks) for k in ("scale", "zero"))
    halves = [side[k].reshape(n, 1).view(np.uint8) for k in ("d", "dmin")]
    if name == "Q4_K":
        low = np.concatenate([s[:, :4] | (s[:, 4:] >> 4) << 6, m[:, :4] | (m[:, 4:] >> 4) << 6], axis=1)
        scales = np.concatenate([low, s[:, 4:] & 15 | (m[:, 4:] & 15) << 4], axis=1)
        pairs = q.reshape(n, 4, 2, 32)
        codes = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(n, 128)
        return np.concatenate([*halves, scales, codes], axis=1).astype(np.uint8)
    quads = q.reshape(n, 2, 4, 32)
    codes = (quads[:, :, 0] | quads[:, :, 1] << 2 | quads[:, :, 2] << 4 | quads[:, :, 3] << 6).reshape(n, 64)
    return np.concatenate([s | m << 4, codes, *halves], axis=1).astype(np.uint8)


@pytest.mark.parametrize("name", TYPES)
def test_decodes_as_gguf_does(name: str) -> None:
    """Written as GGUF blocks and read by the gguf package, our numbers give the same floats to the last bit."""
    gguf = pytest.importorskip("gguf")
    x = normal(8, 512) * torch.linspace(0.01, 3, 512)
    symbols, side = TYPES[name].encode(x)
    assert side["exponent"].item() == 0
    blocks = gguf_blocks(name, symbols, side)
    kind = getattr(gguf.GGMLQuantizationType, name)
    assert blocks.shape == (16, gguf.GGML_QUANT_SIZES[kind][1])
    want = gguf.quants.dequantize(blocks.reshape(8, -1), kind)
    assert np.array_equal(TYPES[name].decode(symbols, side).numpy(), want)


@pytest.mark.parametrize("name", TYPES)
def test_rate_is_that_of_the_format(name: str) -> None:
    _, side = TYPES[name].encode(normal(4, 1024))
    side_bits = 8 * sum(v.nbytes for k, v in side.items() if k != "exponent") / 4096
    assert side_bits + int(name[1]) == BITS[name]
    assert side["exponent"].nbytes == 2


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("Q4_K", 0.005125), ("Q2_K", 0.08865)],  # ggml_quantize_chunk of ggml 0.13 on normal(128, 2048), without weights
)
def test_encoder_is_at_least_as_good_as_llama_cpps(name: str, theirs: float) -> None:
    assert relative(TYPES[name], normal(32, 2048)) < 0.99 * theirs


@pytest.mark.parametrize("name", TYPES)
def test_joint_search_gains(name: str) -> None:
    x = normal(16, 1024) * normal(16, 1024, seed=1)
    scale = TYPES[name].scale
    assert isinstance(scale, SuperBlock)
    once = Quantizer(TYPES[name].codebook, scale.replace(rounds=0))
    assert relative(TYPES[name], x) < 0.997 * relative(once, x)


@pytest.mark.parametrize("name", TYPES)
def test_weights_move_the_error(name: str) -> None:
    x, w = normal(16, 512), torch.rand(512, generator=torch.Generator().manual_seed(1)) ** 3
    aware, blind = TYPES[name].fit(x, Stats(importance=w)), TYPES[name]

    def loss(q: Quantizer) -> float:
        return float(((q.decode(*q.encode(x)) - x).square() * w).sum())

    assert loss(aware) < 0.85 * loss(blind)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("shape", [(1,), (3, 31), (2, 3, 256), (2, 288), (5, 300), (0, 256)])
def test_rows_need_not_be_whole_super_blocks(name: str, shape: tuple[int, ...]) -> None:
    x = normal(*shape)
    symbols, side = TYPES[name].encode(x)
    y = TYPES[name].decode(symbols, side)
    assert y.shape == x.shape
    if x.numel() > 100:
        assert float((y - x).square().mean()) < (0.012 if name == "Q4_K" else 0.13)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("value", [0.0, 1.0, -2.5, 1e30, -1e30, 1e-30, 3e-39])
def test_constant_and_extreme_values(name: str, value: float) -> None:
    x = torch.full((2, 300), value)
    y = TYPES[name].decode(*TYPES[name].encode(x))
    assert y.isfinite().all()
    assert float((y - x).abs().max()) <= 0.01 * abs(value) + 1e-38
    mixed = normal(4, 512) * (value or 1.0)
    mixed[1:] = mixed[1:] * 1e-3
    assert relative(TYPES[name], mixed) < 0.15 or abs(value) < 1e-37


def test_positive_and_negative_blocks() -> None:
    """An offset above zero cannot be sent: positive blocks are coded from zero up, negative ones lose nothing."""
    x = normal(4, 256).abs() + 3
    q = TYPES["Q4_K"]
    assert relative(q, x) < 0.002 and relative(q, -x) < 0.0005


@pytest.mark.parametrize(
    ("field", "lie"),
    [
        ("d", np.full((4, 2), np.nan, np.float16)),
        ("dmin", np.full((4, 2), np.inf, np.float16)),
        ("d", np.ones((2, 4), np.float16)),
        ("scale", np.zeros(3, np.uint8)),
        ("zero", np.zeros((4, 12), np.uint8)),
        ("exponent", np.array([999], np.int16)),
        ("exponent", np.zeros(0, np.int16)),
    ],
)
def test_believes_nothing(field: str, lie: np.ndarray) -> None:
    symbols, side = TYPES["Q4_K"].encode(normal(4, 512))
    with pytest.raises(CorruptStream):
        TYPES["Q4_K"].decode(symbols, side | {field: lie})
    with pytest.raises(CorruptStream):
        TYPES["Q4_K"].decode(Symbols(symbols.index[:3], 16), side)


def test_what_cannot_work_is_refused() -> None:
    for build in (lambda: SuperBlock(0), lambda: SuperBlock(32, 8, 9), lambda: SuperBlock(rounds=-1)):
        with pytest.raises(BadConfig):
            build()
    with pytest.raises(BadConfig, match="unsigned"):
        Quantizer(Uniform(16), SuperBlock()).encode(normal(2, 256))
