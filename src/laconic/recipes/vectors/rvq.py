"""Vectors as sums of learned codewords."""

from ...core.combine import chain
from ...core.stage import Stage
from ...entropy.coders import Pack
from ...quantize.base import Quantizer
from ...quantize.vector import AdditiveVQ


def rvq(bits: float = 1.0, index_bits: int = 8, depth: int = 8, beam: int = 16, seed: int = 0) -> Stage:
    """Vectors at a fraction of a bit to a few bits a value: sums of codewords that are learned for the source.

        x ≈ μ + Σ_m C_m[i_m],   ⌊bits · d / index_bits⌋ indices i_m of index_bits each

    Up to `depth` indices share the whole vector (additive / residual quantization); more of them share it in slices (with
    depth = 1: product quantization). Encoding is a beam search over the sums and four sweeps that re-choose one index at a
    time. Fit on some 40 · 2^index_bits vectors or more; the books take 2 · depth · 2^index_bits · d bytes, in every packet
    or, with `encode(x, embed=False)`, once in a model file.

    Shapes: (..., d). For d · bits below index_bits one index is sent.
    Source: Chen et al. 2010 (residual VQ); Babenko & Lempitsky 2014 (additive quantization, beam search); Martinez
    et al. 2016, LSQ (ICM encoding) and 2018, LSQ++ (noise on codewords). Differs: codebooks are fitted by blocks with a
    ridge, which carries over better to vectors they have not seen than plain least squares.
    Claim: additive codes beat product quantization at equal bits (Babenko & Lempitsky). Here for an AR(1) source,
    ρ = .9, d = 32, .75 bits a value, vectors not learned from: error .106 with depth = 1, .098 greedy residual, .086 this.
    """
    return chain(Quantizer(AdditiveVQ(bits=bits, index_bits=index_bits, depth=depth, beam=beam, seed=seed)), Pack())
