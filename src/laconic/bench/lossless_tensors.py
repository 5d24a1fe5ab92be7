"""Tensors without loss: bfloat16 weights and two checkpoints of one training, beside zstd and xz on the same bytes."""

from __future__ import annotations

import lzma
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import laconic

from ..sources.files import Tensors
from .rows import Measurement, Row

SAMPLES = Path(laconic.__file__).parent / "samples"
THREADS = 2


def _zstd(data: bytes) -> int | None:
    if shutil.which("zstd") is None:
        return None
    return len(subprocess.run(["zstd", "-19", "-q", "-c"], input=data, stdout=subprocess.PIPE, check=True).stdout)


def _bf16(path: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file

    return {k: t.to(torch.bfloat16) for k, t in load_file(path).items() if t.is_floating_point()}


def _checked(packed: Path, want: dict[str, Any], base: Path | None = None) -> None:
    """Every tensor of the archive, bit for bit."""
    import torch

    held = Tensors(packed, base=base)
    for name, t in want.items():
        if not torch.equal(held[name].reshape(-1).view(torch.uint8), t.contiguous().reshape(-1).view(torch.uint8)):
            raise RuntimeError(f"{name} came back as something else")


def _weights(name: str, path: Path) -> Iterator[Row]:
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as folder:
        source, packed, back = (Path(folder) / n for n in ("m.safetensors", "m.lac", "back.safetensors"))
        tensors = _bf16(path)
        save_file(tensors, source)
        laconic.compress(source, packed, recipe="lossless")
        _checked(packed, tensors)
        raw, size = source.read_bytes(), packed.stat().st_size
        yield Row(f"{name} bf16, whole file of raw", size / len(raw), "of raw", target=("<=", 0.68))
        xz = len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))
        for peer, theirs in (("zstd -19", _zstd(raw)), ("xz -9e", xz)):
            if theirs is not None:
                yield Row(f"{name} bf16, beside {peer}", size / theirs, "of the peer's", peer, theirs / len(raw),
                          ("<=", 0.9))  # fmt: skip
        packets, rates = _packets(packed), []
        for _ in range(4):  # the first compiles
            start = time.perf_counter()
            n = _decode_all(packets)
            rates.append(n / 1e6 / (time.perf_counter() - start))
        yield Row(f"{name} bf16, decoding on {THREADS} threads", sorted(rates[1:])[1],
                  "MB/s", target=(">=", 150))  # fmt: skip


def _packets(packed: Path) -> list[bytes]:
    from ..sources import archive

    with open(packed, "rb") as f:
        reader = archive.Reader(f)
        return [p for e in reader.entries for item in e.items for p in reader.packets(item)]


def _decode_all(packets: list[bytes]) -> int:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(THREADS) as pool:
        return sum(t.nbytes for t in pool.map(laconic.decode, packets))


def llama() -> Iterator[Row]:
    """The language model of the package's samples."""
    yield from _weights("english-llama-7m", SAMPLES / "english-llama-7m" / "model.safetensors")


def minilm() -> Iterator[Row]:
    """MiniLM, where it is installed."""
    from .weights_vision import minilm_folder

    try:
        folder = minilm_folder()
    except laconic.BadInput:
        return
    yield from _weights("MiniLM", folder / "model.safetensors")


def _trained(steps: tuple[int, int]) -> list[dict[str, Any]]:
    """Two checkpoints of one training: the next byte of a book from the 16 before, AdamW under a cosine to zero."""
    import numpy as np
    import torch
    from torch import nn

    text = torch.from_numpy(np.frombuffer((SAMPLES / "genesis.txt").read_bytes(), np.uint8).astype(np.int64))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(256, 32), nn.Flatten(), nn.Linear(512, 768), nn.GELU(), nn.Linear(768, 512),
                          nn.GELU(), nn.Linear(512, 256))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps[1] * 5 // 4)
    out = []
    for step in range(1, steps[1] + 1):
        at = torch.randint(0, text.numel() - 17, (64,))
        window = text[at[:, None] + torch.arange(17)]
        loss = nn.functional.cross_entropy(model(window[:, :16]), window[:, 16])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step in steps:
            out.append({k: v.detach().clone() for k, v in model.state_dict().items()})
    return out


def checkpoints() -> Iterator[Row]:
    """The second of two checkpoints, 100 steps after the first, as differences to it."""
    import torch
    from safetensors.torch import save_file

    first, second = _trained((800, 900))
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float32, "fp32")):
        a, b = ({k: v.to(dtype) for k, v in c.items()} for c in (first, second))
        with tempfile.TemporaryDirectory() as folder:
            one, two, alone, packed = (Path(folder) / n for n in ("1.safetensors", "2.safetensors", "a.lac", "2.lac"))
            save_file(a, one)
            save_file(b, two)
            laconic.compress(two, alone, recipe="lossless")
            laconic.compress(two, packed, base=one)
            _checked(packed, b, one)
            raw, size = two.stat().st_size, packed.stat().st_size
            yield Row(f"second of two checkpoints, {name}", size / raw, "of raw", "without a base",
                      alone.stat().st_size / raw, ("<=", 0.5))  # fmt: skip


SUITE = (
    Measurement("tensors: two checkpoints", checkpoints),
    Measurement("tensors: english-llama-7m", llama),
    Measurement("tensors: MiniLM", minilm),
)
