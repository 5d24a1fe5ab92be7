"""The best of all peers as a curve: the Pareto front in bits and KL, and log KL read off it at a given rate."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

from ...core.errors import BadInput


@dataclass(frozen=True)
class Point:
    """One peer at one setting. bits: true bits a parameter; kl: mean KL(original ‖ dequantized), nats a token."""

    bits: float
    kl: float
    name: str = ""


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """The points that no other beats in both bits and KL, by rising bits; of equal ones the first."""
    front: list[Point] = []
    for p in sorted(points, key=lambda p: (p.bits, p.kl)):
        if not front or p.kl < front[-1].kl:
            front.append(p)
    return front


def kl_at(points: Iterable[Point], bits: float) -> float | None:
    """KL at a rate, log KL being linear between neighbours on the front; None outside the measured rates.

    Raises
    ------
    BadInput: a KL is not positive, so that it has no logarithm.
    """
    front = pareto_front(points)
    bad = [p for p in front if not p.kl > 0]
    if bad:
        raise BadInput(f"KL of {bad[0].name or 'a point'} is {bad[0].kl}; only positive values can be interpolated")
    if not front or not front[0].bits <= bits <= front[-1].bits:
        return None
    i = bisect_left([p.bits for p in front], bits)
    b = front[i]
    if b.bits == bits:
        return b.kl
    a = front[i - 1]
    t = (bits - a.bits) / (b.bits - a.bits)
    return math.exp((1 - t) * math.log(a.kl) + t * math.log(b.kl))
