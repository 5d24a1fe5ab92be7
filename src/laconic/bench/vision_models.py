"""Two small convolutional networks with published weights, and the pictures that they are measured on, from `$LACONIC_DATA`."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.errors import BadInput

CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR_MEAN, CIFAR_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MXNET_LIST, MXNET_ARRAYS = 0x112, (0xF993FAC9, 0xF993FACA)


class Prediction(NamedTuple):
    """What a classifier gives. logits: (n, n_classes)."""

    logits: Tensor


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions; where they halve the size, every second pixel of the input goes by with zero channels around it."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.stride = 1 if n_in == n_out else 2
        self.conv1 = nn.Conv2d(n_in, n_out, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, n_in, height, width)."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        more = y.shape[1] - x.shape[1]
        if self.stride == 2:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, more // 2, more // 2))
        return F.relu(y + x)


class ResNet(nn.Module):
    """A CIFAR-10 residual network of 6·depth + 2 layers.

    Shapes: x (n, 3, 32, 32), normalized by `CIFAR_MEAN` and `CIFAR_DEVIATION`.
    Source: He et al. 2015, Deep Residual Learning (1512.03385), section 4.2, shortcuts of option A.
    """

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        widths = [16] * depth + [32] * depth + [64] * depth
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        before = [16, *widths]
        self.blocks = nn.ModuleList(ResidualBlock(a, b) for a, b in zip(before, widths, strict=False))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Prediction:
        """x: (n, 3, 32, 32)."""
        x = F.relu(self.bn1(self.conv1(x)))
        for block in self.blocks:
            x = block(x)
        return Prediction(self.linear(x.mean((2, 3))))


class SpatialBlock(nn.Module):
    """A 3×3 filter a channel, a mix of channels, a 3×3 filter a channel. shortcuts: around the mix, where sizes allow it, and
    around the second filter."""

    def __init__(self, n_in: int, n_out: int, stride: int, shortcuts: bool) -> None:
        super().__init__()
        self.shortcuts, self.straight = shortcuts, stride == 1 and n_in == n_out
        self.filter1 = nn.Conv2d(n_in, n_in, 3, stride, 1, groups=n_in, bias=False)
        self.norm1 = nn.BatchNorm2d(n_in)
        self.mix = nn.Conv2d(n_in, n_out, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_out)
        self.filter2 = nn.Conv2d(n_out, n_out, 3, 1, 1, groups=n_out, bias=False)
        self.norm3 = nn.BatchNorm2d(n_out)

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, n_in, height, width)."""
        y = self.norm2(F.relu(self.mix(self.norm1(self.filter1(x)))))
        if self.shortcuts and self.straight:
            y = y + x
        z = self.norm3(F.relu(self.filter2(y)))
        return torch.add(z, y) if self.shortcuts else z


class EtinyNet(nn.Module):
    """An ImageNet classifier of .98 million parameters, the normalizations behind the rectifiers.

    Shapes: x (n, 3, 224, 224), values 0 to 255 less 128.
    Source: Xu et al. 2022, EtinyNet: Extremely Tiny Network for TinyML (AAAI 36), in the widths of its released weights.
    """

    WIDTHS = (32, 32, 32, 32, 128, 128, 128, 128, 192, 192, 192, 256, 256, 512)
    STRIDES = (1, 1, 1, 1, 2, 1, 1, 1, 2, 1, 1, 2, 1, 1)
    N_PLAIN = 8  # blocks before those with shortcuts

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, 1, bias=False)
        self.stem_norm = nn.BatchNorm2d(32)
        shapes = zip((32, *self.WIDTHS), self.WIDTHS, self.STRIDES, strict=False)
        self.blocks = nn.ModuleList(SpatialBlock(*s, i >= self.N_PLAIN) for i, s in enumerate(shapes))
        self.output = nn.Conv2d(512, 1000, 1)

    def forward(self, x: Tensor) -> Prediction:
        """x: (n, 3, 224, 224)."""
        x = F.max_pool2d(self.stem_norm(F.relu(self.stem(x))), 2)
        for block in self.blocks:
            x = block(x)
        return Prediction(self.output(x.mean((2, 3), keepdim=True)).flatten(1))


def resnet20(folder: Path) -> ResNet:
    """ResNet-20 with the weights in `cifar10-resnets` of the data folder."""
    saved = torch.load(folder / "cifar10-resnets" / "resnet20-12fca82f.th", map_location="cpu", weights_only=True)
    state: dict[str, Tensor] = {}
    for name, value in saved["state_dict"].items():
        key = name.removeprefix("module.")
        layer, at, rest = (*key.split(".", 2), "", "")[:3]
        if layer.startswith("layer"):
            key = f"blocks.{3 * (int(layer[-1]) - 1) + int(at)}.{rest}"
        state[key] = value
    net = ResNet(3)
    net.load_state_dict(state)
    return net.eval()


def etinynet(folder: Path) -> EtinyNet:
    """EtinyNet with the weights in `etinynet-imagenet` of the data folder."""
    arrays = read_mxnet(folder / "etinynet-imagenet" / "etinynet1.0-imagenet.params")
    first = {"features1": -4, "features2": EtinyNet.N_PLAIN, "features3": EtinyNet.N_PLAIN + 3}
    inner = {"out1.0": "filter1", "out1.1": "norm1", "out1.2": "mix", "out1.4": "norm2", "out2.0": "filter2",
             "out2.2": "norm3"}  # fmt: skip
    ends = {"features1.0": "stem", "features1.2": "stem_norm", "output.0": "output"}
    kinds = {"gamma": "weight", "beta": "bias"}
    state = {}
    for name, value in arrays.items():
        path, _, kind = name.rpartition(".")
        if path in ends:
            where = ends[path]
        else:
            part, at, rest = path.split(".", 2)
            where = f"blocks.{first[part] + int(at)}.{inner[rest]}"
        state[f"{where}.{kinds.get(kind, kind)}"] = torch.from_numpy(value)
    net = EtinyNet()
    missing, unknown = net.load_state_dict(state, strict=False)
    if unknown or any(not m.endswith("num_batches_tracked") for m in missing):
        raise BadInput(f"the weights are not EtinyNet's: {[*unknown, *missing][0]!r} does not fit")
    return net.eval()


def read_mxnet(path: Path) -> dict[str, np.ndarray]:
    """The float32 arrays of an MXNet `.params` file by name.

    Raises
    ------
    BadInput: the file is of another kind, or cut off.
    """
    raw = path.read_bytes()
    try:
        kind, _, n = struct.unpack_from("<QQQ", raw, 0)
        if kind != MXNET_LIST:
            raise BadInput(f"{path}: begins with {kind:#x}; a list of MXNet arrays with {MXNET_LIST:#x}")
        at = 24
        arrays: list[np.ndarray] = []
        for _ in range(n):
            magic, _, n_axes = struct.unpack_from("<IiI", raw, at)
            shape = struct.unpack_from(f"<{n_axes}q", raw, at + 12)
            at += 12 + 8 * n_axes
            dtype = struct.unpack_from("<iii", raw, at)[2]
            if magic not in MXNET_ARRAYS or dtype != 0:
                raise BadInput(f"{path}: array {len(arrays)} is of dtype {dtype} ({magic:#x}); dense float32 is right")
            arrays.append(np.frombuffer(raw, "<f4", int(np.prod(shape)), at + 12).reshape(shape).copy())
            at += 12 + arrays[-1].nbytes
        (n_names,) = struct.unpack_from("<Q", raw, at)
        at += 8
        names = []
        for _ in range(n_names):
            (length,) = struct.unpack_from("<Q", raw, at)
            names.append(raw[at + 8 : at + 8 + length].decode())
            at += 8 + length
    except (struct.error, ValueError) as e:
        raise BadInput(f"{path}: cut off or damaged: {e}") from None
    return dict(zip(names, arrays, strict=True))


def pictures(archive: Path, names: Sequence[str]) -> np.ndarray:
    """(n, 3, height, width) float32, values 0 to 255, of equally large pictures in a zip file."""
    with zipfile.ZipFile(archive) as z:
        found = [np.asarray(Image.open(io.BytesIO(z.read(n))).convert("RGB")) for n in names]
    return np.ascontiguousarray(np.stack(found).transpose(0, 3, 1, 2), dtype=np.float32)


def cifar10(folder: Path, part: str, n: int) -> tuple[Tensor, Tensor]:
    """The first n pictures of CIFAR-10 as the networks take them, the classes taking turns, and their labels.

    part: "test", or "train" of 300 a class; what is in one is not in the other.
    """
    archive = {"test": "test.zip", "train": "train_first300_per_class.zip"}[part]
    n_classes = len(CIFAR_CLASSES)
    labels = [i % n_classes for i in range(n)]
    names = [f"{part}/{CIFAR_CLASSES[c]}/{i // n_classes:04d}.jpg" for i, c in enumerate(labels)]
    x = torch.from_numpy(pictures(folder / "cifar10-jpeg" / archive, names)) / 255
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (CIFAR_MEAN, CIFAR_DEVIATION))
    return (x - mean) / deviation, torch.tensor(labels)


def imagenet(folder: Path, labels: Sequence[int]) -> Tensor:
    """One ImageNet picture of each of these classes (0 to 999) as EtinyNet takes it."""
    archive = folder / "etinynet-imagenet" / "imagenet1000_224_q92.zip"
    with zipfile.ZipFile(archive) as z:
        names = sorted(z.namelist())
    return torch.from_numpy(pictures(archive, [names[i] for i in labels])) - 128
