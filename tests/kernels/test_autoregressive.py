"""Laws that the integers before predict: the kernel against its definition, codes there and back, damage."""

from __future__ import annotations

import numpy as np
import pytest

from laconic.core.errors import CorruptStream, decode_budget
from laconic.kernels import autoregressive as ar


def some_laws(d: int = 6, seed: int = 0) -> ar.Laws:
    rng = np.random.default_rng(seed)
    mean = np.triu(rng.integers(-3000, 3000, (d, d)), 1).astype(np.float64)
    spread = np.triu(rng.integers(-500, 1500, (d, d)), 1).astype(np.float64)
    law = np.sort(rng.integers(0, 65536, (d, ar.POINTS)), 1)
    law[:, 0], law[:, -1] = 0, 65536
    offset = np.stack([rng.integers(-9000, 9000, d), rng.integers(500, 20000, d)]).astype(np.float64)
    return ar.Laws(mean, spread, offset, rng.integers(-2, 3, d), np.full(d, 64), np.full(d, -9), np.full(d, 12), law)


def values(n: int = 40, d: int = 6) -> np.ndarray:
    t = np.random.default_rng(1).standard_normal((n, d)) * 4
    t[::7] *= 10  # beyond the range: escapes
    t[3, 2], t[4, 1] = ar.LIMIT, -ar.LIMIT
    return t


@pytest.mark.parametrize("lam", [0.0, 0.3])
def test_laws_are_those_of_the_definition(lam: float) -> None:
    laws = some_laws()
    chosen = ar.choose(values(), laws, lam, traced=True)
    p, m, begin, freq = ar.laws_plain(chosen.q, laws)
    assert (chosen.p == p).all() and (chosen.m == m).all()
    assert (chosen.freq == freq).all() and (chosen.begin == begin)[freq > 0].all()
    assert (freq == 0).any() and (freq > 0).any()


def test_intervals_share_the_slots() -> None:
    """Every integer of the range has slots of its own, and with the escape they are all 2^16."""
    laws = some_laws(1)
    q = np.arange(-9, 13)[:, None]
    _, _, begin, freq = ar.laws_plain(q, laws)
    assert begin[0, 0] == 8 and (begin[1:, 0] == begin[:-1, 0] + freq[:-1, 0]).all() and (freq > 0).all()
    assert begin[-1, 0] + freq[-1, 0] == 65536


@pytest.mark.parametrize("lam", [0.0, 0.3])
def test_codes_there_and_back(lam: float) -> None:
    laws = some_laws()
    chosen = ar.choose(values(), laws, lam, traced=True)
    code = ar.encode(chosen)
    assert len(code) < ar.bits_of(chosen).sum() / 8 + 8
    with decode_budget(1 << 20):
        q, way, octave = ar.decode(code, laws, len(chosen.q))
    assert (q == chosen.q).all() and (
        way == np.clip(chosen.p - chosen.q.astype(np.int64) * ar.ONE, -ar.ONE, ar.ONE)
    ).all()
    assert (octave == [[int(m).bit_length() for m in row] for row in chosen.m]).all()


def test_a_bit_is_worth_what_lam_says() -> None:
    """More error and fewer bits, and together less."""
    laws, t, lam = some_laws(), values(400), 0.3
    plain, thrifty = ar.choose(t, laws), ar.choose(t, laws, lam)

    def total(c: ar.Chosen) -> tuple[float, float]:
        return float(np.square(t - c.q).sum()), float(ar.bits_of(c).sum())

    (e0, r0), (e1, r1) = total(plain), total(thrifty)
    assert e1 > e0 and r1 < r0 and e1 + lam * r1 < e0 + lam * r0


def test_damage_has_a_name_or_other_integers() -> None:
    laws = some_laws()
    chosen = ar.choose(values(), laws)
    code = ar.encode(chosen)
    for cut in (0, 1, len(code) // 2, len(code) - 1):
        with pytest.raises(CorruptStream), decode_budget(1 << 20):
            ar.decode(code[:cut], laws, len(chosen.q))
    for at in range(0, len(code), 5):
        flipped = code.copy()
        flipped[at] ^= 0x55
        try:
            with decode_budget(1 << 20):
                q, _, _ = ar.decode(flipped, laws, len(chosen.q))
        except CorruptStream:
            continue
        assert (q != chosen.q).any() and (np.abs(q) <= ar.LIMIT).all()
