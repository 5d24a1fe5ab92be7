"""What compression would take on models that are too large to measure here, from what it took on two that were measured.

    seconds = start + each · parameters + Σ moments + Σ factors + Σ feedback

The last three grow faster than the parameters: the moments of an input of width n take tokens · n² products, the factor of
a Hessian n³, the feedback between the n columns of a matrix n a value. What each of these takes a product is timed alone,
at a width where it runs as fast as it can; the rest of the two measured times gives `start` and `each`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from ..core.errors import BadInput
from ..kernels.feedback import BLOCK
from ..kernels.product import product
from ..quantize.rounding import inverse_factor
from .rows import median_seconds

WIDTH = 2048  # of the timed parts
SWEEPS = 2  # of every matrix at its step: one to learn the models of the levels, one to code


@dataclass(frozen=True)
class Llama:
    """The shapes of a Llama, from the fields of its config.json."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int
    tied: bool

    @classmethod
    def of(cls, config: dict[str, Any]) -> Self:
        """From a parsed config.json."""
        return cls(
            config["hidden_size"],
            config["intermediate_size"],
            config["num_hidden_layers"],
            config["num_attention_heads"],
            config.get("num_key_value_heads") or config["num_attention_heads"],
            config["vocab_size"],
            bool(config.get("tie_word_embeddings", False)),
        )

    @property
    def matrices(self) -> Counter[tuple[int, int]]:
        """How many matrices there are of each shape (n_out, n_in)."""
        h, i = self.hidden, self.intermediate
        keys = h * self.key_value_heads // self.heads
        ends = 1 if self.tied else 2
        block = Counter([(h, h)] * 2 + [(keys, h)] * 2 + [(i, h)] * 2 + [(h, i)])
        return Counter({s: n * self.layers for s, n in block.items()}) + Counter({(self.vocabulary, h): ends})

    @property
    def inputs(self) -> Counter[int]:
        """How many inputs of each width matrices have; those that share one count once."""
        return Counter([self.hidden] * 3 * self.layers + [self.intermediate] * self.layers + [self.hidden])

    @property
    def n_parameters(self) -> int:
        """Values of all matrices."""
        return sum(a * b * n for (a, b), n in self.matrices.items())


LARGER = {
    "Llama 3.2 1B": Llama(2048, 8192, 16, 32, 8, 128_256, True),
    "Llama 3.1 8B": Llama(4096, 14_336, 32, 32, 8, 128_256, False),
}


@dataclass(frozen=True)
class Parts:
    """Seconds a product of the parts that grow faster than the parameters, at width `WIDTH`."""

    moments: float
    factors: float
    feedback: float

    def of(self, model: Llama, n_tokens: int, factors: float) -> float:
        """Seconds of these parts on a model. n_tokens: heard at every input. factors: of the Hessian of each matrix."""
        moments = sum(n * k**2 for k, n in model.inputs.items()) * n_tokens * self.moments
        factored = sum(n * k**3 for (_, k), n in model.matrices.items()) * factors * self.factors
        fed = sum(n * m * k**2 for (m, k), n in model.matrices.items()) * SWEEPS * self.feedback
        return moments + factored + fed


def timed_parts(width: int = WIDTH, repeats: int = 3) -> Parts:
    """The parts, each alone on this machine."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((width, width), np.float32))
    hessian = (x.T @ x / width).double()
    error, factor = np.ascontiguousarray(x.numpy()[:, :BLOCK]), x.numpy()[:BLOCK]
    return Parts(
        median_seconds(lambda: x.T @ x, repeats) / width**3,
        median_seconds(lambda: inverse_factor(hessian, 0.01), repeats) / width**3,
        median_seconds(lambda: product(error, factor), repeats) / (BLOCK * width**2) / 2,
    )


def extrapolated(measured: Sequence[tuple[Llama, float]], target: Llama, dense: dict[Llama, float]) -> float:
    """Seconds on `target`, from those (two) on smaller models. dense: seconds of the parts, of each of the three models.

    Negative parts, where the two times are all start or all parts, are taken for none.

    Raises
    ------
    BadInput: not two models of different size.
    """
    if len(measured) != 2 or len({m.n_parameters for m, _ in measured}) != 2:
        raise BadInput(f"times of {len(measured)} models; those of two that differ in size are needed")
    (a, first), (b, second) = ((m.n_parameters, max(t - dense[m], 0.0)) for m, t in measured)
    each = max((second - first) / (b - a), 0.0)
    start = max(second - each * b, 0.0)
    return start + each * target.n_parameters + dense[target]
