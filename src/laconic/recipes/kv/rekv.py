"""ReKV: keys and values on disk in blocks, of which those are read whose mean key is nearest to the queries."""

from ...sources.kv.recipe import CacheRecipe, sixteen
from ...sources.kv.retrieve import Retrieval, block_store


def rekv(n_blocks: int = 4, block: int = 64, window: int = 64, sinks: int = 4, reindex: bool = True) -> CacheRecipe:
    """What leaves the window goes to disk; a call reads `n_blocks` blocks of a layer and puts them in front of the window.

        k ─ RoPE taken away ─┬─▶ disk, blocks of `block` tokens, 16 bits
                             └─ mean of the block, heads side by side ─▶ memory
        q ─ RoPE taken away, mean of the call ─ cosine with every mean ─▶ the best blocks ─ RoPE at the positions they are read to

    Rate: 16 bits a value on disk; in memory 16 / block of a key, the window and the sinks; n_blocks · block tokens are read.
    `cache.nbytes` counts disk and memory, the report says which is which.

    Source: Di et al. 2025, ReKV (2503.00540), section 3 (internal retrieval, positions of what is loaded). Differs: text in
    place of frames; each call retrieves for itself, decoded tokens too; recent tokens are exact beside what is read.
    Claim: blocks that are asked for beat as many of the latest tokens, and positions in front of the window beat their own. A
    passage, 576 tokens of other text, the passage again (english-llama-7m, 16 tokens at a time, 256 tokens read): 3.90 nats a
    token, 4.01 at their own positions, 4.05 for the latest; 4.02 with everything.
    """
    retrieval = Retrieval(block, n_blocks, reindex)
    return CacheRecipe(sixteen, sixteen, 16.0, group=block, window=window, sinks=sinks, rope="before",
                       retrieve=retrieval, store=block_store)  # fmt: skip
