"""Optimized product quantization: PQ behind a rotation that is learned with it; and JPQ, which tunes it for ranking."""

from ...core.combine import chain
from ...core.stage import Stage
from ...entropy.coders import Pack
from ...quantize.base import Quantizer
from ...quantize.vector import AdditiveVQ
from ...transforms.scaling import Center
from ...transforms.slices import SliceRotation


def opq(bits: float = 1.0, index_bits: int = 8, rounds: int = 30, seed: int = 0) -> Stage:
    """Vectors rotated so that ⌊bits · d / index_bits⌋ slices can be coded apart, each the nearest of 2^index_bits points.

        x ─ −μ ─ R ─▶ slices ─▶ nearest point of each,   R and the points learned in turns

    Shapes: (..., d). The model takes 2 d² + 2 · 2^index_bits · d + 6 d bytes.
    Source: Ge, He, Ke & Sun 2013, "Optimized product quantization", IEEE TPAMI 36(4), algorithm 2. Differs: the rotation sees one
    step of k-means a round; the points are learned to the end behind it, drawn towards zero as `pq` draws them.
    Claim: a rotation takes away what correlated coordinates and unequal slices cost PQ. For 64 Gaussian coordinates whose
    variances fall by 1000, in random axes, at 1 bit, vectors not learned from: error .283 with PQ, .095 with OPQ.
    """
    return chain(
        Center(),
        SliceRotation(bits=bits, index_bits=index_bits, rounds=rounds, seed=seed),
        Quantizer(AdditiveVQ(bits=bits, index_bits=index_bits, depth=1, rounds=8, seed=seed)),
        Pack(),
    )


def jpq(bits: float = 1.0, index_bits: int = 8, rounds: int = 30, seed: int = 0) -> Stage:
    """OPQ codes that stay, while `Index.tune(queries, positives)` moves points and queries until positives rank first.

        argmin over φ, C of   Σ_q Σ_n ΔM(p, n) log(1 + exp(s(q, n) − s(q, p))),   s(q, x) = similarity(φ(q), Ĉ(x))

    n runs over what the index itself finds for q at that moment and is wrong (live negatives), p is the positive; ΔM is what
    changing places would change of the reciprocal rank. φ is a linear map, or any encoder that is trained with it. A codec by
    itself has no queries: before `tune` this is `opq`.

    Shapes: (..., d). The model takes as much as that of `opq`; the linear map 4 d² + 4 d bytes more.
    Source: Zhan et al. 2021, "Jointly optimizing query encoder and product quantization to improve retrieval performance"
    (2108.00644), sections 4.1 to 4.3 (loss, centroids, end-to-end negatives). Differs: queries go through a linear map by
    default.
    Claim: tuning wins back much of what PQ loses against exact search (the paper: nearly brute-force MRR at 30 × less). In
    the test, queries that were not tuned on find more by a tenth of them and more.
    """
    return opq(bits=bits, index_bits=index_bits, rounds=rounds, seed=seed)
