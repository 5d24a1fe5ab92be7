"""Four-bit inputs beside four-bit weights: products in NVFP4 with and without augmented residual channels, simulated."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from ...core.errors import BadConfig, BadInput
from ...quantize.base import Quantizer
from ...quantize.codebooks import Minifloat
from ...quantize.scales import AbsMax, Along, GroupScale, TwoLevel

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 16  # values of an NVFP4 scale, and the step in which channels are added


class Product(NamedTuple):
    """y: (n_tokens, n_out); n_added: channels behind the others; bits: of an input value, added channels included."""

    y: Tensor
    n_added: int
    bits: float


def augmented_nvfp4(x: Tensor, weight: Tensor, n_added: int | None = None) -> Product:
    """x Wᵀ with both sides in NVFP4, the inputs' error in the largest channels sent as more channels of the same product.

        [Q(x), Q(x − Q(x))_K] · [Q(W), Q(W)_K]ᵀ = (Q(x) + Q(x − Q(x))_K) Q(W)ᵀ,   K the channels of largest |x|

    Channels are ordered by their largest magnitude first, so that groups of 16 hold channels of a size.
    **Shapes** x: (n_tokens, n_in); weight: (n_out, n_in), as it is: it may have been coded with error feedback already, and
    is rounded to nearest here. n_added: size of K, a multiple of 16; 0: plain NVFP4; None: n_in times the share of values
    above an eighth of their token's greatest, which is where four bits fall short of eight, up to a multiple of 16.

    Source: Meng et al. 2026, ARCQuant (2601.07475), augmented residual channels. Differs: simulated in floats; the threshold
    compares magnitudes; multiples of 16 where its kernels need 64.
    """
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise BadInput(
            f"inputs {tuple(x.shape)} and weights {tuple(weight.shape)}; (n_tokens, n_in) and (n_out, n_in) are right"
        )
    size = x.abs().amax(dim=0)
    order = size.argsort(descending=True, stable=True)
    n = x.shape[1]
    if n_added is None:
        share = float((x.abs() > x.abs().amax(dim=1, keepdim=True) / 8).double().mean())
        n_added = min(math.ceil(n * share / GROUP), n // GROUP) * GROUP
    if n_added % GROUP or not 0 <= n_added <= n:
        raise BadConfig(f"{n_added} residual channels of {n}; a multiple of {GROUP} up to that is right")
    x, weight = x[:, order], weight[:, order]
    seen, w = nvfp4(x), nvfp4(weight)
    y = seen @ w.T
    if n_added:
        y = y + nvfp4((x - seen)[:, :n_added]) @ w[:, :n_added].T
    return Product(y, n_added, 4.5 * (1 + n_added / n))


def nvfp4(x: Tensor) -> Tensor:
    """x rounded to nearest: E2M1 values, an E4M3 scale for every 16 along rows, one float32."""
    quantizer = Quantizer(Minifloat("e2m1"), GroupScale(Along(GROUP), AbsMax(), TwoLevel()))
    return quantizer.decode(*quantizer.encode(x.float().contiguous()))
