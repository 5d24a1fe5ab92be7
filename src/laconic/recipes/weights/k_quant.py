"""K-quants: the block formats of llama.cpp."""

from ...core.combine import chain
from ...core.errors import BadConfig
from ...core.stage import Stage
from ...entropy.coders import Pack
from ...quantize.base import Quantizer
from ...quantize.codebooks import Uniform
from ...quantize.kquant import SuperBlock
from ...quantize.rounding import Feedback

_SCALES = {2: SuperBlock(16, 16, 4), 4: SuperBlock(32, 8, 6), 5: SuperBlock(32, 8, 6)}


def k_quant(bits: int = 4) -> Stage:
    """Weights in super-blocks of 256 with quantized scales and minima: GGUF's Q2_K, Q4_K and Q5_K.

        bits   type   blocks    scale, minimum   bits a weight, all counted
        2      Q2_K   16 × 16   4 + 4 bits       2.625
        4      Q4_K    8 × 32   6 + 6 bits       4.5
        5      Q5_K    8 × 32   6 + 6 bits       5.5

    The numbers are those of a GGUF block and decode by the same float operations; they lie in sections by kind, not
    block by block. Fit with `Stats(importance)`, per column or per weight, for what llama.cpp calls an importance matrix,
    or with `Stats(hessian)`: then its diagonal weighs the errors of the scales, and codes are rounded with error feedback.

    Source: I. Kawrakow, k-quants, 2023 (ggml-org/llama.cpp, pull request 1684). Differs: see `SuperBlock`; the scales are
    searched jointly, for plain squared error unless statistics are given; error feedback is not llama.cpp's.
    Claim: 4.5 and 2.625 bits a weight; squared error below that of llama.cpp's encoder.
    """
    if bits not in _SCALES:
        raise BadConfig(f"{bits} bits; k-quants with scales and minima have {', '.join(map(str, _SCALES))}")
    return chain(Quantizer(Uniform(1 << bits, 0.0), _SCALES[bits], Feedback(order="descending")), Pack())
