"""Models as a stack of levels: in which order levels of matrices are loaded, and packets cut to what memory holds.

For codecs whose packets are nested (`level_bytes`), such as BitStack's: code every matrix at the highest rate once, order the
levels of all matrices, and any budget is met by a prefix of that order.

    order = rank_blocks(losses)                          once, from calibration
    levels = levels_within(order, n_bytes, budget)       for every budget
    packets = [cut(p, k) for p, k in zip(packets, levels)]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from ...core import registry
from ...core.errors import BadConfig, BadInput
from ...core.packet import Codec, info
from ...core.stage import Leaf
from ...core.wire import Reader, read_array, write_array


def rank_blocks(losses: ArrayLike) -> list[tuple[int, int]]:
    """The order in which levels are loaded: (matrix, level) pairs, level by level, the most useful matrix first.

    losses: (n_matrices, n_levels). What the model loses on calibration data when matrix i holds its levels 0 … l, and every
    other matrix its levels 0 … l − 1; inf where a matrix has no such level. The first levels are all needed, so their
    order does not matter.
    Source: Wang et al. 2024, BitStack (2410.23918): residual blocks sorted by perplexity within each iteration.

    >>> rank_blocks([[3.0, 2.0], [1.0, 2.5]])
    [(1, 0), (0, 0), (0, 1), (1, 1)]
    """
    table = np.array(losses, np.float64)
    if table.ndim != 2 or not table.size or np.isnan(table).any():
        raise BadInput(f"losses of shape {table.shape}; (n_matrices, n_levels) without NaN is right")
    order = []
    for level in range(table.shape[1]):
        ranked = np.argsort(table[:, level], kind="stable")
        order += [(int(i), level) for i in ranked if np.isfinite(table[i, level])]
    return order


def levels_within(order: Sequence[tuple[int, int]], n_bytes: Sequence[int], budget: int) -> list[int]:
    """How many levels each matrix gets: the longest prefix of the order that `budget` bytes hold.

    n_bytes: of one level, by matrix. Raises BadConfig where the budget does not hold one level of every matrix.

    >>> levels_within([(1, 0), (0, 0), (0, 1), (1, 1)], [10, 20], 45)
    [2, 1]
    """
    levels, left = [0] * len(n_bytes), budget
    for matrix, level in order:
        if n_bytes[matrix] > left:
            break
        if level != levels[matrix]:
            raise BadInput(f"level {level} of matrix {matrix} comes behind {levels[matrix]} of its levels")
        levels[matrix] += 1
        left -= n_bytes[matrix]
    if min(levels, default=0) < 1:
        raise BadConfig(f"{budget:,} bytes do not hold one level of every matrix; {sum(n_bytes):,} are the least")
    return levels


def cut(packet: bytes, n_levels: int, codecs: Mapping[str, Codec] | None = None) -> bytes:
    """The packet of a matrix with its first `n_levels` levels alone; it decodes like any other.

    Nothing is coded anew: the payload ends sooner, and its length and checksum are written for what is left. codecs: for
    packets of one file that share them. Raises BadInput where the packet is not nested or has fewer levels.
    """
    said = info(packet, codecs=codecs)
    stage = registry.build(said.config)
    level_bytes = getattr(stage, "level_bytes", None)
    if level_bytes is None:
        raise BadInput(
            f"packets of {said.recipe or type(stage).__name__!r} are not nested; none of their prefixes decodes"
        )
    reader = Reader(packet)
    reader.take(5)
    reader.take(reader.varint() + 4)
    head = reader.at
    payload = read_array(reader, "payload", Leaf("uint8", "codes"), True)
    size = level_bytes(*said.shape)
    if not 1 <= n_levels <= len(payload) // size:
        raise BadInput(f"{n_levels} levels of a packet that has {len(payload) // size}; at least one is right")
    out = bytearray(packet[:head])
    write_array(out, payload[: n_levels * size], True)
    return bytes(out + packet[reader.at :])
