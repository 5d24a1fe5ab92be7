"""Product quantization: the baseline of every vector index."""

from ...core.combine import chain
from ...core.stage import Stage
from ...entropy.coders import Pack
from ...quantize.base import Quantizer
from ...quantize.vector import AdditiveVQ


def pq(bits: float = 1.0, index_bits: int = 8, rounds: int = 8, seed: int = 0) -> Stage:
    """Vectors cut into ⌊bits · d / index_bits⌋ slices, each the nearest of 2^index_bits learned points.

    Shapes: (..., d). The model takes 2 · 2^index_bits · d bytes.
    Source: Jégou, Douze & Schmid 2011, "Product quantization for nearest neighbor search", IEEE TPAMI 33(1).
    Differs: points are drawn towards zero as much as their cells are few (see `AdditiveVQ` with depth 1).
    Claim: at equal bits the error is below that of a scalar code wherever neighbouring coordinates depend on each other.
    """
    return chain(Quantizer(AdditiveVQ(bits=bits, index_bits=index_bits, depth=1, rounds=rounds, seed=seed)), Pack())
