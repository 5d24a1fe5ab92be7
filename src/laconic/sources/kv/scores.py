"""How much attention tokens receive, from a few probe queries: what makes them salient."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from .evict import Probes

if TYPE_CHECKING:
    from torch import Tensor

LATEST = 8  # queries that are kept in any case
EVERY = 20  # of a prompt's queries one in so many is kept until the prompt is coded


def noted(before: Probes | None, query: Tensor, n_seen: int) -> Probes:
    """The probes behind new queries (n_batch, n_query_heads, n_new, d), the last of them at n_seen − 1.

    The latest ones, and of several that come at once, a prompt, one in `EVERY`, evenly: some 5 % of each, as ZipCache has it.
    """
    n = query.shape[2]
    some = torch.unique(torch.cat([torch.arange(0, max(n - LATEST, 0), EVERY), torch.arange(max(0, n - LATEST), n)]))
    new = Probes(query[:, :, some].clone(), torch.arange(n_seen - n, n_seen)[some])
    missing = LATEST - n
    if before is None or missing <= 0 or len(before.queries) != len(query):
        return new
    return latest(before, missing).cat(new)


def latest(probes: Probes, n: int = LATEST) -> Probes:
    """The last n of them, copied, so that the others can be let go of."""
    return Probes(probes.queries[:, :, -n:].clone(), probes.at[-n:].clone())


def received(
    probes: Probes, keys: Iterable[tuple[int, Tensor]], start: int, stop: int, scaling: float, score: str
) -> Tensor:
    """Attention that tokens start … stop receive from the probes, over all heads: (n_batch, n_tokens).

        accumulated:  Σ_k A_ki                     normalized:  Σ_k A_ki / number of probes k ≥ i

    A column of a causal attention matrix has the fewer entries the later its token comes, so that the sum favours early tokens.
    A token that no probe sees yet counts more than any other.

    keys: (first position, (n_batch, n_heads, n, d) float32, rotated) of everything that the probes may see, in pieces.
    Source: He et al. 2024, ZipCache (2405.14256), eq. 8 and section 4.3 (probe tokens).
    """
    q = probes.queries.float() * scaling
    b, hq, n, d = q.shape
    at, scores = [], []
    for first, k in keys:
        q_heads = q.reshape(b, k.shape[1], -1, d)
        scores.append((q_heads @ k.transpose(2, 3)).reshape(b, hq, n, -1))
        at.append(torch.arange(first, first + k.shape[2]))
    places = torch.cat(at)
    seen = probes.at[:, None] >= places[None]
    weights = torch.cat(scores, -1).masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0)
    inside = (places >= start) & (places < stop)
    total, viewers = weights[..., inside].sum((1, 2)), seen[:, inside].sum(0)
    if score == "normalized":
        total = total / viewers.clamp(min=1)
    return torch.where(viewers == 0, total.amax() + 1, total)
