"""Which recipe codes an item when the user names none: by what the data is, never by its name."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, field
from typing import Any

from ..core import registry
from ..core.errors import BadConfig
from .archive import Item

DEFAULT_BITS = {"weights": 4.0, "images": 1.0}
SMALL = 4096  # values; below it side information outweighs what a lossy codec saves
LOSSLESS_ARRAY = "tensors"
LOSSLESS_DELTA = "tensors-delta"
ARRAY_RECIPES = ("planes", LOSSLESS_ARRAY, LOSSLESS_DELTA)
LOSSLESS_BYTES = "bytes-mix"
LOSSY_MATRIX = "ectcq"
LOSSY_IMAGE = "dct-rdo"


@dataclass(frozen=True)
class Choice:
    """A recipe for an item. `bits` is set where the recipe has a rate to choose."""

    recipe: str
    bits: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def codec_settings(self) -> dict[str, Any]:
        """What `codec` takes."""
        return self.settings if self.bits is None else {**self.settings, "bits": self.bits}

    def describe(self) -> str:
        """As the report prints it."""
        return self.recipe if self.bits is None else f"{self.recipe} {self.bits:.4g} bits"


def domain_of(item: Item, format: str) -> str:
    """What kind of source an item is: bytes, images, or weights (any matrix of floating-point numbers)."""
    if item.dtype == "bytes":
        return "lossless"
    if format == "image":
        return "images"
    return "weights"


def lossy_worthwhile(item: Item, format: str) -> bool:
    """Whether a lossy recipe is for this item: pictures, and float arrays with an axis to group along."""
    if format == "image":
        return True
    return "float" in item.dtype and len(item.shape) >= 2 and math.prod(item.shape) >= SMALL


def pick(item: Item, format: str, recipe: str | None, bits: float | None) -> Choice:
    """The recipe for one item. A named recipe takes every item it can; what it cannot take is kept without loss."""
    if item.dtype == "bytes":
        named = recipe not in (None, "lossless", *ARRAY_RECIPES) and _domain(str(recipe)) == "lossless"
        return Choice(str(recipe) if named else LOSSLESS_BYTES)
    if recipe in (LOSSLESS_ARRAY, "lossless") or not lossy_worthwhile(item, format):
        return Choice(LOSSLESS_ARRAY)
    domain = domain_of(item, format)
    if recipe is None:
        name = LOSSY_IMAGE if domain == "images" else LOSSY_MATRIX
        return Choice(name, bits or DEFAULT_BITS[domain])
    if (_domain(recipe) == "images") != (domain == "images"):
        return Choice(LOSSLESS_ARRAY)
    return Choice(recipe, _bits_for(recipe, bits))


def _domain(recipe: str) -> str:
    return registry.recipe(recipe).domain


def _bits_for(recipe: str, bits: float | None) -> float | None:
    """The `bits` to hand to a recipe: as asked, else its own default; refused where it has no such setting."""
    parameters = inspect.signature(registry.load(registry.recipe(recipe).target)).parameters
    if "bits" not in parameters:
        if bits is not None:
            raise BadConfig(
                f"recipe {recipe!r} has no setting bits; its settings are {', '.join(parameters) or 'none'}"
            )
        return None
    default = parameters["bits"].default
    value = default if bits is None else bits
    return int(value) if isinstance(default, int) and float(value).is_integer() else value
