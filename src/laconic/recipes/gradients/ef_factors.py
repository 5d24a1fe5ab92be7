"""laconic's own composition for gradients of matrices: low rank, a few bits a factor, error memory."""

from ...core.combine import chain
from ...core.stage import Stage
from ...entropy.coders import Pack
from ...quantize.base import Quantizer
from ...quantize.codebooks import LloydMax
from ...quantize.sparse import SparseLevels
from ...sources.gradients.recipe import GradientRecipe


def ef_factors(rank: int = 8, bits: int = 4, plain: str = "float16") -> GradientRecipe:
    """Every gradient as a product of low rank whose factors take a few bits a value; what is lost is added to the next.
    """
    factors = chain(Quantizer(LloydMax(1 << bits)), Pack())
    return GradientRecipe(_one, float(rank), travels="factors", factors=factors, plain=plain)


def _one(rank: float) -> Stage:
    return SparseLevels(0.02)
