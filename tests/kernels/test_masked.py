"""Laws of a masked network: the kernel against its definition, codes there and back, damage."""

from __future__ import annotations

from decimal import Context, Inexact, localcontext

import numpy as np
import pytest

from laconic.core.errors import CorruptStream, decode_budget
from laconic.kernels import masked
from laconic.kernels.autoregressive import LIMIT, bits_of, encode


def some_network(d: int = 6, h: int = 11, seed: int = 0) -> masked.Network:
    """Weights everywhere, also where masks let none through: what a kernel must not read."""
    rng = np.random.default_rng(seed)

    def weights(*shape: int) -> np.ndarray:
        return rng.integers(-3000, 3000, shape).astype(np.int16)

    offset = np.stack([rng.integers(-9000, 9000, d), rng.integers(-6000, 8000, d)]).astype(np.float64)
    return masked.Network(
        weights(d, 3, h), weights(h, 2, d), weights(d, 3, 2, d), rng.integers(-5000, 20000, h).astype(np.float64), offset,
        masked.first_units(d, h), np.ldexp(1.0, np.array([-2, -9, 0])), rng.integers(-2, 3, d), np.full(d, -9), np.full(d, 12),
    )  # fmt: skip


def values(n: int = 40, d: int = 6) -> np.ndarray:
    t = np.random.default_rng(1).standard_normal((n, d)) * 4
    t[::7] *= 10  # beyond the range: escapes
    t[5] = 0
    t[3, 2], t[4, 1] = LIMIT, -LIMIT
    return t


@pytest.mark.parametrize(("d", "h"), [(6, 11), (6, 0), (5, 3), (2, 4), (1, 0)])
@pytest.mark.parametrize("lam", [0.0, 0.3])
def test_laws_are_those_of_the_definition(d: int, h: int, lam: float) -> None:
    net = some_network(d, h)
    chosen = masked.choose(values(d=6)[:, -d:], net, lam)
    _, _, begin, freq = masked.network_plain(chosen.q, net)
    assert (chosen.freq == freq).all() and (chosen.begin == begin)[freq > 0].all()
    assert (freq == 0).any() and (freq > 0).any()


def test_the_largest_numbers_are_those_of_the_definition() -> None:
    net = some_network()
    most = {name: np.sign(getattr(net, name)) * 32767 for name in ("inward", "outward", "skip")}
    net = net._replace(**most, gains=masked.gains(-8, -8, -8))
    t = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], (40, 6)) * LIMIT
    chosen = masked.choose(t, net)
    assert (chosen.freq == masked.network_plain(chosen.q, net)[3]).all() and (chosen.freq > 0).any()


@pytest.mark.parametrize("lam", [0.0, 0.3])
def test_codes_there_and_back(lam: float) -> None:
    net = some_network()
    chosen = masked.choose(values(), net, lam)
    code = encode(chosen)
    assert len(code) < bits_of(chosen).sum() / 8 + 8
    with decode_budget(1 << 20):
        assert (masked.decode(code, net, len(chosen.q)) == chosen.q).all()


def test_units_see_what_comes_before_and_coordinates_units_behind() -> None:
    assert masked.first_units(5, 8).tolist() == [0, 0, 2, 4, 6, 8]
    net = some_network()
    q = masked.choose(values(), net).q
    laws = masked.network_plain(q, net)
    for j in range(6):
        other = q.copy()
        other[:, j] += 1
        changed = (masked.network_plain(other, net)[:2] != laws[:2]).any((0, 1))
        assert not changed[: j + 1].any() and changed[j + 1 :].all()


def test_the_law_is_logistic_and_powers_are_powers() -> None:
    u = np.array([-20.0, -1.0, 0.0, 0.125, 3.0])
    law = masked.law()[0]
    from laconic.kernels.autoregressive import EDGES

    found = np.interp(u, EDGES, law / 65536)
    assert np.allclose(found, 1 / (1 + np.exp(-2 * u)), atol=1e-5)
    assert np.array_equal(masked.powers(), np.rint(65536 * 2.0 ** (np.arange(256) / 256)))


def test_tables_do_not_ask_how_the_application_counts() -> None:
    with localcontext(Context(prec=3, traps=[Inexact])):
        assert np.array_equal(masked.law.__wrapped__(), masked.law())
        assert np.array_equal(masked.powers.__wrapped__(), masked.powers())


def test_damage_has_a_name_or_other_integers() -> None:
    net = some_network()
    chosen = masked.choose(values(), net)
    code = encode(chosen)
    for cut in (0, 1, len(code) // 2):
        with pytest.raises(CorruptStream), decode_budget(1 << 20):
            masked.decode(code[:cut], net, len(chosen.q))
    for at in range(0, len(code), 5):
        flipped = code.copy()
        flipped[at] ^= 0x55
        try:
            with decode_budget(1 << 20):
                q = masked.decode(flipped, net, len(chosen.q))
        except CorruptStream:
            continue
        assert (q != chosen.q).any() and (np.abs(q) <= LIMIT).all()
