"""UNComp: heads of high matrix entropy keep many tokens, heads of low entropy few."""

from ...sources.kv.evict import Eviction, evicting_store, matrix_entropy
from ...sources.kv.recipe import CacheRecipe, sixteen


def uncomp(share: float = 0.3, contrast: float = 1 / 3, probes: int = 8, window: int = 32) -> CacheRecipe:
    """Eviction with a budget for each head, by how much its keys differ from each other.

        keys of a head ─ centred, normalised ─ covariance, trace 1 ─▶ −Σ λ ln λ over the greatest quarter of the eigenvalues
        upper half of the heads: share · (1 + contrast) of the tokens; lower half: share · (1 − contrast)
        tokens of a head ─ attention of the latest queries, averaged over 5 neighbours ─▶ the best stay, in 16 bits

    share: of the tokens behind the window, exactly so in the mean over heads. Rate: 16 share and the window, 32 bits a kept token
    and head for its position, and the probes.

    Source: Xiong et al. 2024, UNComp (2410.03090), sections 3.1 and 3.3 (two groups of heads); scores as in Li et al. 2024,
    SnapKV (2404.14469). Differs: entropy of the keys of the prompt itself, not of queries in a search beforehand; groups of equal
    size within a layer, whose mean is `share` (the authors' two budgets, .75 and 1.5, have a mean of 1.125); layers alike.
    Claim: budgets by entropy beat equal ones, and reversed they are worse. Decoding english-llama-7m (tokens 768 to 1,024 of
    three texts, 32 at a time), KL in nats: .0107, .0172 and .0243 at 5.60 true bits a value, .0322, .0399 and .0517 at 3.29.
    """
    eviction = Eviction(share, matrix_entropy, contrast, probes)
    return CacheRecipe(sixteen, sixteen, 16.0, window=window, evict=eviction, store=evicting_store)
