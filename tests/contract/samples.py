"""One small input per domain, so that every recipe of the registry meets the battery without a list of its own."""

from __future__ import annotations

import inspect
from typing import Any

import torch

import laconic
from laconic.core import registry
from laconic.core.stage import Kind, Stats

RECIPES = laconic.recipes()


def _text(n: int) -> bytes:
    words = [b"the", b"rate", b"of", b"a", b"code", b"is", b"its", b"length,", b"and", b"nothing", b"else.\n"]
    g = torch.Generator().manual_seed(1)
    picks = torch.randint(0, len(words), (n,), generator=g).tolist()
    return b" ".join(words[i] for i in picks)


def sample(name: str, seed: int = 0) -> Any:
    """An input of the recipe's domain."""
    g = torch.Generator().manual_seed(seed)
    domain = registry.recipe(name).domain
    if domain == "lossless":
        return _text(600 + seed) if codec(name).stage.takes is Kind.BYTES else torch.randn(40, 33, generator=g)
    if domain == "images":
        y, x = torch.meshgrid(torch.arange(37), torch.arange(45), indexing="ij")
        smooth = torch.stack([x * 4, y * 5, (x + y) * 2], -1) + torch.randint(0, 12, (37, 45, 3), generator=g)
        return smooth.clamp(0, 255).to(torch.uint8)
    shape = {"weights": (64, 256), "vectors": (300, 64), "kv": (2, 2, 96, 64), "gradients": (8, 600)}[domain]
    x = torch.randn(shape, generator=g)
    return x * torch.linspace(0.5, 2.0, shape[-1])


def stats(name: str) -> Stats | None:
    """A Hessian for recipes that can use one."""
    if registry.recipe(name).domain != "weights":
        return None
    g = torch.Generator().manual_seed(7)
    x = torch.randn(512, 256, generator=g) @ torch.diag(torch.linspace(0.2, 2.0, 256))
    x[:, 3] += x[:, 2]
    return Stats(hessian=x.T @ x / 512)


def codec(name: str, **settings: Any) -> laconic.Codec:
    return laconic.codec(name, **settings)


def fitted(name: str, **settings: Any) -> laconic.Codec:
    c = codec(name, **settings)
    return c if c.stage.takes is Kind.BYTES else c.fit(sample(name), stats(name))


def settings_of(name: str) -> dict[str, Any]:
    """The recipe's settings with their defaults."""
    function = registry.load(registry.recipe(name).target)
    return {p.name: p.default for p in inspect.signature(function).parameters.values()}


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit, NaN included."""
    if isinstance(a, bytes):
        return a == b
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(raw(a), raw(b))


def raw(t: torch.Tensor) -> torch.Tensor:
    return t.contiguous().reshape(-1).view(torch.uint8)
