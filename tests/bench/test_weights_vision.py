"""Weights of small networks that are no language models: all that needs no data."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from laconic.bench import vision_models
from laconic.bench.weights_vision import (
    Encoder,
    embed,
    feedback,
    hits,
    margin,
    nearest,
    neighbours,
    ours,
    percent,
    recall,
    sentences,
)
from laconic.core.errors import BadInput
from laconic.sources.weights.compress import TOLERATED_BYTES
from laconic.sources.weights.network import chain, matrices


def _random(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().eval()


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    """ResNet-8 with random weights: a block a width."""
    return _random(lambda: vision_models.ResNet(1))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32))


def test_resnet20_is_the_papers(images: torch.Tensor) -> None:
    net = _random(lambda: vision_models.ResNet(3))
    assert net(images).logits.shape == (8, 10)
    assert sum(p.numel() for p in net.parameters()) == 269_722
    assert chain(net) == ("blocks", [f"blocks.{i}" for i in range(9)])


def test_option_a_shortcut_takes_every_second_pixel_and_zero_channels(images: torch.Tensor) -> None:
    block = _random(lambda: vision_models.ResidualBlock(16, 32))
    nn.init.zeros_(block.bn2.weight)
    nn.init.zeros_(block.bn2.bias)
    x = images.repeat(1, 6, 1, 1)[:, :16]
    y = block(x)
    assert y.shape == (8, 32, 16, 16)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2].relu())
    assert not y[:, :8].any() and not y[:, 24:].any()


def test_etinynet_has_its_parameters_and_a_chain() -> None:
    net = _random(vision_models.EtinyNet)
    n_buffers = sum(b.numel() for k, b in net.named_buffers() if not k.endswith("num_batches_tracked"))
    assert sum(p.numel() for p in net.parameters()) + n_buffers == 976_360
    assert net(torch.zeros(1, 3, 64, 64)).logits.shape == (1, 1000)
    found = chain(net)
    assert found is not None and len(found[1]) == 14


def test_compressed_copy_runs_and_stays_near(resnet: nn.Module, images: torch.Tensor) -> None:
    before = {k: v.clone() for k, v in resnet.state_dict().items()}
    made = feedback(resnet, 6, [images])
    with torch.no_grad():
        a, b = resnet(images).logits, made.module(images).logits
    assert b.shape == a.shape
    assert 0 < float((a - b).square().mean()) < 0.02 * float(a.square().mean())
    assert all(torch.equal(v, before[k]) for k, v in resnet.state_dict().items())
    assert 6 < made.bits < 8 and made.label == f"gptq 6 bits, {made.bits:.2f} bits"


def test_auto_keeps_to_its_budget_on_convolutions(images: torch.Tensor) -> None:
    block = _random(lambda: vision_models.ResidualBlock(16, 32))  # few weights: a trellis takes its time
    x = images.repeat(1, 6, 1, 1)[:, :16, :16, :16]
    made = ours(block, 6, [x])
    with torch.no_grad():
        a, b = block(x), made.module(x)
    assert 0 < float((a - b).square().mean()) < 0.02 * float(a.square().mean())
    n = sum(m.n_elements for m in matrices(block))
    assert abs(made.bits - 6) <= 8 * TOLERATED_BYTES / n


def test_nearest_counts_codes_scales_and_all_that_is_kept(resnet: nn.Module) -> None:
    made = nearest(resnet, 3)
    coded = {m.name: m for m in matrices(resnet)}
    n = sum(m.n_elements for m in coded.values())
    kept = sum(p.numel() for k, p in resnet.named_parameters() if k not in coded)
    want = 3 + (16 * sum(m.shape[0] for m in coded.values()) + 32 * kept) / n
    assert made.bits == pytest.approx(want) and f"{want:.2f} bits" in made.label
    params = dict(made.module.named_parameters())
    originals = dict(resnet.named_parameters())
    for name, m in coded.items():
        w, old = m.take(params[name]), m.take(originals[name])
        assert max(len(row.unique()) for row in w) <= 8
        step = old.abs().amax(1, keepdim=True) / 3.5
        assert bool(((w - old).abs() <= 0.51 * step).all())
    assert all(torch.equal(params[k], v) for k, v in originals.items() if k not in coded)


def test_accuracy_counts_hits(resnet: nn.Module, images: torch.Tensor) -> None:
    said = resnet(images).logits.argmax(1)
    labels = said.clone()
    labels[:2] += 1
    found = hits(resnet, images, labels)
    assert found.tolist() == [False] * 2 + [True] * 6
    assert percent(found) == 75.0


def test_margin_is_two_standard_errors_of_a_paired_difference() -> None:
    a = torch.tensor([True] * 80 + [False] * 20)
    b = a.clone()
    assert margin(a, b) == 0
    b[[0, 1, 90, 91]] ^= True  # four pictures on which they differ, in no favour
    assert percent(a) == percent(b) and margin(a, b) == pytest.approx(4.0)


def test_sentences_are_whole_and_different() -> None:
    line = "This is sentence number {} of a text that is long enough to be taken."
    text = " ".join([line.format(i) for i in range(30)] + ["Too short.", line.format(3)])
    found = sentences(text, 10)
    assert len(set(found)) == 10 and all(s.startswith("This") and s.endswith("taken.") for s in found)
    with pytest.raises(BadInput, match="31 are wanted"):
        sentences(text, 31)


def test_neighbours_leave_out_the_vector_itself() -> None:
    angles = torch.tensor([0.0, 0.1, 0.3, 2.0])
    vectors = torch.stack([angles.cos(), angles.sin()], 1)
    found = neighbours(vectors, 2)
    assert found.tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]
    assert recall(torch.tensor([[1, 5], [4, 3]]), torch.tensor([[5, 2], [3, 4]])) == 75.0


class _Words:
    """A tokenizer: a character is a token; padding is 0."""

    def __call__(self, texts: list[str], padding: bool, return_tensors: str) -> dict[str, torch.Tensor]:
        longest = max(map(len, texts))
        ids = torch.tensor([[ord(c) % 31 + 1 for c in t] + [0] * (longest - len(t)) for t in texts])
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}


class _Base(nn.Module):
    """Hidden states (n, n_tokens, 8) that depend on the token and on nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(32, 8)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.table(input_ids))


def test_embeddings_keep_the_order_of_texts_and_ignore_padding() -> None:
    encoder = _random(lambda: Encoder(_Base()))
    texts = ["a long sentence of words", "short", "neither of them"]
    together = embed(encoder, _Words(), texts)
    alone = torch.cat([embed(encoder, _Words(), [t]) for t in texts])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))
    mean = encoder.base.table(_Words()(texts[1:2], True, "pt")["input_ids"]).mean(1)
    torch.testing.assert_close(together[1:2], mean / mean.norm())


def _params_file(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    out = struct.pack("<QQQ", 0x112, 0, len(arrays))
    for a in arrays.values():
        out += struct.pack("<IiI", 0xF993FAC9, 0, a.ndim) + struct.pack(f"<{a.ndim}q", *a.shape)
        out += struct.pack("<iii", 1, 0, 0) + a.astype("<f4").tobytes()
    out += struct.pack("<Q", len(arrays))
    for name in arrays:
        out += struct.pack("<Q", len(name)) + name.encode()
    path.write_bytes(out)
    return path


def test_mxnet_arrays_come_back_and_damage_is_named(tmp_path: Path) -> None:
    arrays = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.bias": np.ones(2, np.float32)}
    path = _params_file(tmp_path / "x.params", arrays)
    back = vision_models.read_mxnet(path)
    assert list(back) == list(arrays) and all(np.array_equal(back[k], v) for k, v in arrays.items())
    raw = path.read_bytes()
    path.write_bytes(raw[:70])
    with pytest.raises(BadInput, match="cut off"):
        vision_models.read_mxnet(path)
    path.write_bytes(b"\x13" + raw[1:])
    with pytest.raises(BadInput, match="0x113"):
        vision_models.read_mxnet(path)
