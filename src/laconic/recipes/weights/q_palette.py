"""Q-Palette: rotated weights on trellises of many fractional rates, chosen matrix by matrix under one budget."""

from ...core.combine import chain
from ...core.errors import BadConfig
from ...core.stage import Stage
from ...entropy.coders import Pack
from ...quantize.base import Quantizer
from ...quantize.codebooks import LloydMax
from ...quantize.rounding import Feedback
from ...quantize.scales import Along, Float, GroupScale, Rms
from ...quantize.trellis import Trellis
from ...sources.weights.recipe import WeightRecipe
from ...transforms.rotation import Hadamard

_TRELLIS = (1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0, 3.25, 3.5, 3.75, 4.0, 4.5, 5.0)
_SCALAR = (6.0, 8.0)


def q_palette(bits: float = 3.25, states: int = 4096, damping: float = 0.01, seed: int = 0) -> WeightRecipe:
    """A palette of quantizers for Gaussian weights in steps of a quarter bit; the budget is shared out over them exactly.

        w ─ H with random signs ─▶ / rms of the row ─▶ trellis in tiles of 16 × 16, 1.5 … 5 bits ─▶ codes
                                                    └▶ Gaussian scalar levels, 6 and 8 bits ──────▶

    For Gaussianized weights the loss of matrix l is about a_l σ_l² D(b_l) with one curve D for all, so the best rates are
    b̄ + ½ log2 of (a_l σ_l² over its geometric mean): fractions. The policy is the room's: measured sensitivity times
    distortion, an integer programme over `rates`. bits: the rate where no budget is named, one of the palette.
    Rows of matrices on a trellis come in multiples of 16; codes take exactly their rate, a scale 16 bits a row.

    Source: Lee & Song 2025, Q-Palette (2509.20214): optimal rates of Gaussianized weights; trellis, vector and scalar
    quantizers of fractional rate; the integer programme over them. Differs: quarter bits are trellises of their own, not two
    halves of the columns; levels are computed quantiles (see `Trellis`), the authors' a table learned for 2^16 states; no
    two-dimensional VQ, whose distortion lies between; scalar levels only where what is left no longer matters and decoding
    should be simple; blocks of columns in the order of their activations (4 % less error); choice under a memory budget, not
    under a latency with fused layers.
    Claim: 2-bit error of Gaussian weights: trellis .071, two-dimensional VQ .109, scalar .1175; and at equal memory the
    fractional palette < whole rates < one rate for all: KL of a small language model with all its matrices at 2.5 bits .052,
    .057, .065 nats, at 3.5 bits .0115, .0127, .0138 (mean of two seeds; half-bit steps do as well as quarters).
    """

    def at(rate: float) -> Stage:
        if rate not in (*_TRELLIS, *_SCALAR):
            known = ", ".join(f"{r:g}" for r in (*_TRELLIS, *_SCALAR))
            raise BadConfig(f"{rate} bits are not on the palette; {known} are")
        book = Trellis(rate, states, length=256, rows=16) if rate in _TRELLIS else LloydMax(1 << int(rate))
        rounding = Feedback(damping, "descending")
        return chain(Hadamard(seed), Quantizer(book, GroupScale(Along(), Rms(), Float()), rounding), Pack())

    at(bits)
    return WeightRecipe(at=at, rates=_TRELLIS + _SCALAR, nominal=bits)
