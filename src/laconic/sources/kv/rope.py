"""Rotary positions taken away from keys and given back: as the configuration has them, and as the model was seen to turn."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...core.errors import BadConfig

if TYPE_CHECKING:
    from torch import Tensor

HEARD = "_laconic_ropes"  # on a model: what `ropes_of` found
FAR = 1000  # position at which frequencies are checked


@dataclass(frozen=True)
class Rope:
    """k' = R(p) k: pair i of the first 2 n coordinates turns by p · frequency_i and grows by `factor`.

    frequency: (n,) float64. interleaved: pairs are neighbours (2i, 2i + 1); else halves (i, i + n), as in Llama.
    Source: Su et al. 2021, RoFormer (2104.09864), eq. 34.
    """

    frequency: tuple[float, ...]
    factor: float = 1.0
    interleaved: bool = False

    @property
    def n_rotated(self) -> int:
        """Coordinates that turn; the others stay."""
        return 2 * len(self.frequency)

    def angles(self, start: int | Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines (n, n_pairs) float32 of the positions from `start`, computed in float64.

        start: one for all, or (n_batch,), and then (n_batch, 1, n, n_pairs).
        """
        import torch

        at = torch.arange(n, dtype=torch.float64)[:, None]
        at = at + (start[:, None, None, None] if isinstance(start, torch.Tensor) else start)
        turn = at * torch.tensor(self.frequency, dtype=torch.float64)
        return turn.cos().float(), turn.sin().float()

    def turn(self, x: Tensor, start: int | Tensor, back: bool = False) -> Tensor:
        """R(p) x, or its inverse; x: (..., n_tokens, d) float32, the first token at position `start`.

        With `start` (n_batch,) every sequence of x, (n_batch, n_heads, n_tokens, d), begins at its own.
        """
        import torch

        cos, sin = (a.to(x.device) for a in self.angles(start, x.shape[-2]))
        sin, by = (-sin, 1 / self.factor) if back else (sin, self.factor)
        n = self.n_rotated
        rest = x[..., n:]
        if self.interleaved:
            a, b = x[..., 0:n:2], x[..., 1:n:2]
        else:
            a, b = x[..., : n // 2], x[..., n // 2 : n]
        pair = (a * cos - b * sin) * by, (a * sin + b * cos) * by
        turned = torch.stack(pair, -1).flatten(-2) if self.interleaved else torch.cat(pair, -1)
        return torch.cat([turned, rest], -1) if rest.shape[-1] else turned


def rope_of(config: Any, layer_type: str | None = None) -> Rope | None:
    """The rotary positions of a model's configuration (of one of its layer types, where they differ); None where it has none.

    Raises BadConfig where frequencies change with the length of the text.
    """
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    said = getattr(config, "rope_parameters", None) or {}
    nested = said.get(layer_type) if layer_type and isinstance(said.get(layer_type), dict) else None
    said = nested or said
    theta, d = _theta(config, said), _turned(config, said)
    if theta is None or not d:
        return None
    kind = said.get("rope_type", "default")
    if kind in ("dynamic", "longrope"):
        raise BadConfig(f"rotary positions of type {kind!r} change with the length of the text; choose a recipe that "
                        "codes keys as they are, such as turboquant")  # fmt: skip
    interleaved = _interleaved(config)
    if kind != "default":
        frequency, factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu", **({"layer_type": layer_type} if nested else {}))
        return Rope(tuple(frequency.double().tolist()), float(factor), interleaved)
    # In float32 as the models compute them: a phase at position p differs by p times their rounding.
    n = d - d % 2
    exponent = torch.arange(0, n, 2, dtype=torch.int64).float() / n
    return Rope(tuple((1.0 / theta**exponent).double().tolist()), 1.0, interleaved)


def ropes_of(model: Any) -> dict[int, Rope | None]:
    """The rotary positions of every attention layer of a model, by what it does; None for a layer that turns nothing.

    The configuration says frequencies. Whether a layer uses them, which coordinates are pairs and which way they turn is seen
    from one token at three positions: alone it attends to itself, whatever its position, so the keys of a layer differ by
    their rotation and nothing else. Found once a model.

    Raises BadConfig where keys turn in a way that is not known.
    """
    found: dict[int, Rope | None] | None = vars(model).get(HEARD)
    if found is None:
        found = _heard(model)
        object.__setattr__(model, HEARD, found)
    return found


def _heard(model: Any) -> dict[int, Rope | None]:
    import torch
    from transformers import DynamicCache

    config = model.config.get_text_config(decoder=True)
    types = getattr(config, "layer_types", None)
    seen = DynamicCache(config=model.config)
    ropes = {n: rope_of(config, types[n] if types else None) for n in range(len(seen.layers))}
    if all(r is None for r in ropes.values()) or "position_ids" not in inspect.signature(model.forward).parameters:
        return dict.fromkeys(ropes)
    places = [0, 3, min(FAR, (getattr(config, "max_position_embeddings", None) or FAR) - 1)]
    device, training = next(model.parameters()).device, model.training
    ids = torch.full((3, 1), min(1, config.vocab_size - 1), device=device)
    model.eval()
    with torch.no_grad():
        model(
            input_ids=ids,
            position_ids=torch.tensor(places, device=device)[:, None],
            past_key_values=seen,
            use_cache=True,
        )
    model.train(training)
    return {n: _fits(ropes[n], getattr(x, "keys", None), places, n) for n, x in enumerate(seen.layers)}


def _fits(said: Rope | None, keys: Any, places: list[int], layer: int) -> Rope | None:
    """The rotation that keys (3, n_heads, 1, d) of one token at three places show."""
    if said is None or keys is None or not keys.numel():
        return None
    keys = keys.float().cpu()
    backwards = tuple(-f for f in said.frequency)
    tried: list[Rope | None] = [None]
    if said.n_rotated <= keys.shape[-1]:
        tried += [replace(said, interleaved=i, frequency=f) for f in (said.frequency, backwards) for i in (False, True)]
    errors = []
    for rope in tried:
        still = keys if rope is None else [rope.turn(k, p, back=True) for k, p in zip(keys, places, strict=True)]
        errors.append(max(float((k - still[0]).norm() / still[0].norm().clamp(min=1e-9)) for k in still[1:]))
    best = min(range(len(tried)), key=errors.__getitem__)
    if errors[best] > CLOSE:
        raise BadConfig(f"keys of layer {layer} do not turn as the configuration says (off by {errors[best]:.2f} of their "
                        "size at best); choose a recipe that codes keys as they are, such as turboquant")  # fmt: skip
    return tried[best]


CLOSE = 0.05  # of the size of keys; below it lies the rounding of bfloat16, above it every wrong convention


def _theta(config: Any, said: dict[str, Any]) -> float | None:
    """The base of the frequencies; that of RoFormer where a configuration gives the rotated size alone."""
    theta = said.get("rope_theta") or getattr(config, "rope_theta", None)
    theta = theta or (10000.0 if getattr(config, "rotary_dim", None) else None)
    return None if theta is None else float(theta)


def _turned(config: Any, said: dict[str, Any]) -> int:
    """Coordinates that turn."""
    if (n := getattr(config, "rotary_dim", None)) is not None:
        return int(n)
    d = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    share = said.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
    return int(d * share)


def _interleaved(config: Any) -> bool:
    """Whether pairs are neighbours, by the function that turns vectors in the file of the configuration's model."""
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    try:
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError:
        return False
    functions = [f for name, f in vars(sys.modules[model.__module__]).items() if name.startswith("rotate_")]
    return any(f(torch.arange(4.0)[None, None, None]).flatten().abs().tolist() == [1, 0, 3, 2] for f in functions)
