"""Arrays without loss: every dtype and pattern, the rate of the exponents, bases, threads, one tensor alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import laconic
from laconic.core.errors import CorruptStream, ModelMismatch, NotFitted

G = torch.Generator().manual_seed(0)
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8,
          torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool)  # fmt: skip


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
    )


def values(dtype: torch.dtype) -> torch.Tensor:
    x = (3 * torch.randn(70, 50, generator=G)).to(dtype)
    if dtype.is_floating_point and dtype.itemsize > 1:
        x[0, :4] = torch.tensor([float("nan"), float("inf"), -0.0, 0.0]).to(dtype)
    return x


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype: torch.dtype) -> None:
    x, y = values(dtype), values(dtype)
    codec = laconic.codec("tensors")
    assert same(codec.decode(codec.encode(x)), x)
    delta = laconic.codec("tensors-delta").fit(y)
    assert same(delta.decode(delta.encode(x, embed=False)), x)


def test_rate_is_the_entropy_of_exponents() -> None:
    x = (0.02 * torch.randn(512, 512, generator=G)).to(torch.bfloat16)
    exponent = (x.view(torch.int16).numpy().astype(np.int64) >> 7 & 255).ravel()
    p = np.bincount(exponent) / exponent.size
    bits = 8 - float((p[p > 0] * np.log2(p[p > 0])).sum())
    rate = 8 * len(laconic.codec("tensors").encode(x)) / x.numel()
    assert bits < rate < bits + 0.02 and rate / 16 < 0.68


def test_a_step_of_training_costs_less_than_half() -> None:
    x = 0.02 * torch.randn(256, 256, generator=G)
    y = x + 1e-4 * torch.randn(256, 256, generator=G)
    for dtype, most in ((torch.bfloat16, 0.25), (torch.float32, 0.6)):
        codec = laconic.codec("tensors-delta").fit(x.to(dtype))
        assert len(codec.encode(y.to(dtype), embed=False)) < most * y.numel() * dtype.itemsize


def test_another_base_is_refused() -> None:
    x, y = values(torch.bfloat16), values(torch.bfloat16)
    packet = laconic.codec("tensors-delta").fit(y).encode(x, embed=False)
    with pytest.raises(ModelMismatch):
        laconic.decode(packet)
    with pytest.raises(ModelMismatch):
        laconic.codec("tensors-delta").fit(x).decode(packet)
    with pytest.raises(NotFitted):
        laconic.codec("tensors-delta").encode(x)
    other = laconic.codec("tensors-delta").fit(y)  # of another size: no gain, and no loss
    assert same(other.decode(other.encode(x[:9])), x[:9])


def checkpoints(folder: Path) -> tuple[Path, Path]:
    first = {"a": torch.randn(3000, 500, generator=G).to(torch.bfloat16), "b": torch.randn(7, generator=G),
             "f8": torch.randn(64, 64, generator=G).to(torch.float8_e4m3fn), "scalar": torch.tensor(3)}  # fmt: skip
    second = {
        k: (v + 1e-3 * torch.randn(v.shape, generator=G)).to(v.dtype) if k in "ab" else v for k, v in first.items()
    }
    second["new"] = torch.randn(50, 50, generator=G)
    save_file(first, folder / "1.safetensors")
    save_file(second, folder / "2.safetensors")
    return folder / "1.safetensors", folder / "2.safetensors"


def test_files_with_a_base(tmp_path: Path) -> None:
    first, second = checkpoints(tmp_path)
    alone = laconic.compress(second, tmp_path / "alone.lac", recipe="lossless")
    report = laconic.compress(second, tmp_path / "2.lac", base=first)
    assert report.out_bytes < 0.5 * alone.out_bytes
    for threads in (1, 3):
        laconic.decompress(tmp_path / "2.lac", tmp_path / f"{threads}.back", base=first, threads=threads)
        back, was = load_file(tmp_path / f"{threads}.back"), load_file(second)
        assert back.keys() == was.keys() and all(same(back[k], was[k]) for k in was)
    with pytest.raises(ModelMismatch):
        laconic.decompress(tmp_path / "2.lac", tmp_path / "no", base=second)
    with pytest.raises(ModelMismatch):
        laconic.verify(tmp_path / "2.lac")
    assert not (tmp_path / "no").exists()
    assert laconic.verify(tmp_path / "2.lac", base=first) >= 5


def test_one_tensor_alone(tmp_path: Path) -> None:
    first, second = checkpoints(tmp_path)
    laconic.compress(second, tmp_path / "2.lac", base=first)
    held, was = laconic.lossless.Tensors(tmp_path / "2.lac", base=first), load_file(second)
    assert set(held) == set(was) and len(held) == len(was)
    assert all(same(held[k], was[k]) for k in was)
    data = bytearray((tmp_path / "2.lac").read_bytes())
    data[len(data) // 2] ^= 1  # within "a", the largest
    (tmp_path / "bad.lac").write_bytes(data)
    held = laconic.lossless.Tensors(tmp_path / "bad.lac", base=first)
    assert same(held["new"], was["new"])
    with pytest.raises(CorruptStream):
        held["a"]
    (tmp_path / "cut.lac").write_bytes(data[:-200])
    with pytest.raises(CorruptStream):
        laconic.lossless.Tensors(tmp_path / "cut.lac")


def test_gguf(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    w = gguf.GGUFWriter(path, "llama")
    w.add_tensor("f16", np.random.default_rng(0).standard_normal((40, 64)).astype(np.float16))
    w.add_tensor("f32", np.random.default_rng(1).standard_normal(33).astype(np.float32))
    blocks = gguf.quantize(
        np.random.default_rng(2).standard_normal((32, 64)).astype(np.float32), gguf.GGMLQuantizationType.Q8_0
    )
    w.add_tensor("q8", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    report = laconic.compress(path, recipe="lossless")
    assert {"f16", "f32", "q8"} <= {r.name.split("/")[-1] for r in report.rows}
    laconic.decompress(tmp_path / "m.gguf.lac", tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == path.read_bytes()
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + path.read_bytes()[4:60])
    with pytest.raises(laconic.BadInput):
        laconic.compress(tmp_path / "bad.gguf")
