"""HACK: heads that look at the same few tokens keep few, heads that look along diagonals keep many and their latest."""

from ...sources.kv.evict import Eviction, column_variance, evicting_store
from ...sources.kv.recipe import CacheRecipe, sixteen


def hack_var(
    share: float = 0.4, contrast: float = 0.5, probes: int = 32, window: int = 32, sinks: int = 4
) -> CacheRecipe:
    """Eviction by two classes of heads, told apart by how the columns of their attention vary from query to query.

        attention of `probes` queries, evenly over the prompt ─ variance down each column ─▶ low: contextual, high: structural
        contextual: share · (1 − contrast) of the tokens, those with the most attention
        structural: share · (1 + contrast), half of them the latest, the others those with the most attention

    share: of the tokens behind the window, in the mean over heads. The first tokens stay in every head (`sinks`). Rate:
    16 share, sinks and window, 32 bits a kept token and head for its position, and the probes.

    Source: Qin et al. 2025, HACK (2504.09261), sections 3 and 4. Differs: there for images that are written scale by scale; here
    the first and last scales are the first and last tokens of a text, classes come from the prompt itself, half of the heads
    of a layer each, variance relative to the mean, and what a contextual head drops is not merged.
    Claim: swapped classes lose more, on heads made to be vertical and diagonal. Not reproduced here on a language model: decoding
    english-llama-7m at 4.95 true bits a value (share .2), KL .0292 with classes, .0268 swapped and .0188 with one budget for all,
    half of it the latest tokens; with no tokens kept for being late .0336, .0306 and .0298. Its two heads a layer differ
    little in this respect; what helps is keeping the latest.
    """
    eviction = Eviction(share, column_variance, contrast, probes, spread=True, recent=0.5)
    return CacheRecipe(sixteen, sixteen, 16.0, window=window, sinks=sinks, evict=eviction, store=evicting_store)
