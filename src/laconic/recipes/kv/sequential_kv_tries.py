"""Sequential KV compression: caches of common prefixes once, and the cache as a text that the model itself predicts."""

from ...core.combine import chain
from ...core.stage import Stage
from ...quantize.coordinates import LawCodes
from ...sources.kv.recipe import CacheRecipe
from ...sources.kv.tries import group_store
from ...transforms.rotation import RandomRotation


def sequential_kv_tries(bits: int = 3, seed: int = 0, window: int = 32) -> CacheRecipe:
    """Groups of 64 tokens in TurboQuant's codes, each held once for all sessions with the same prefix (`kv.tries.PrefixTrie`).

        trie over groups of tokens ─ prefix known ─▶ the session refers to its codes (counted references)
                                   └ prefix new ───▶ rotated, Lloyd–Max, `bits`; the least probable prefix is dropped first

    Rate: bits + 16 / d a value for what no session has in common, and the window. The paper's second layer is `DeltaCoder` (keys
    and values of the first layer against the model's expectation) and its limit `TokenCoder` (tokens under the model). Both are
    honest codes of the cache's content but no caches: whoever reads them runs the model over the text again. The 914,000-fold
    gain of the paper compares that with a store that can be read anywhere.

    Source: Magarshak 2026, Sequential KV Cache Compression via Probabilistic Language Tries (2604.15356), which reports no
    system; codes of Zandieh et al. 2025, TurboQuant (2504.19874). Differs: delta coding for the first layer, where the
    expectation over next tokens is exact; deeper layers would take a run of the model for each token in it.
    """

    def at(rate: float) -> Stage:
        return chain(RandomRotation(seed), LawCodes(rate))

    return CacheRecipe(at, at, bits, group=64, window=window, store=group_store)
