"""V-Rex: keys in clusters by hash; each head reads as many as promise enough of its attention."""

from ...sources.kv.recipe import CacheRecipe, sixteen
from ...sources.kv.retrieve import Retrieval, cluster_store


def v_rex(mass: float = 0.8, hash_bits: int = 32, distance: int = 7, window: int = 64, sinks: int = 4) -> CacheRecipe:
    """ReSV, the retrieval of V-Rex: what is read adapts to layer, head and query.

        k ─ RoPE taken away ─ signs of `hash_bits` random projections ─▶ the cluster within `distance` bits, or a new one
        k, v ─▶ disk, 16 bits           cluster: hash, sum of its keys, members ─▶ memory
        q · mean key, + ln count ─ softmax over clusters ─ heaviest first until `mass` ─▶ their members are read

    Rate: 16 bits a value on disk; in memory 32 bits a token and head, and 64 + 32 d bits a cluster. Bits and distance go
    together: two keys of cosine .9 fall within 7 of 32 bits 92 times of 100.

    Source: Kim et al. 2025, V-Rex (2512.12284), ReSV. Differs: the algorithm alone, without the accelerator.
    Claim: on keys that recur, as those of frames do, clusters catch more attention than blocks by their mean at as many tokens
    read. Not reproduced here on text, whose keys recur less: english-llama-7m (as for `rekv`, positions kept), KL .0082, .0168
    and .0270 with 75, 56 and 47 % read, and .0122 and .0312 with blocks, 65 and 41 % read: the same curve.
    """
    retrieval = Retrieval(mass=mass, bits=hash_bits, distance=distance)
    return CacheRecipe(sixteen, sixteen, 16.0, window=window, sinks=sinks, rope="before",
                       retrieve=retrieval, store=cluster_store)  # fmt: skip
