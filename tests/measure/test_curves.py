"""BD-rate: exact where the answer is known, and refused where there is none."""

import numpy as np
import pytest

from laconic.core.errors import BadConfig, BadInput
from laconic.measure import bd_rate

RATE, PSNR = np.array([0.12, 0.25, 0.5, 0.9, 1.4]), np.array([28.1, 30.4, 33.0, 35.6, 37.5])


@pytest.mark.parametrize("method", ["pchip", "cubic"])
def test_a_constant_factor_is_found_exactly(method):
    for factor in (0.5, 0.9, 1.0, 1.25):
        result = bd_rate(RATE, PSNR, RATE * factor, PSNR, method=method)
        assert result.percent == pytest.approx(100 * (factor - 1), abs=1e-9)
        assert result[1:] == (28.1, 37.5, 1.0)
    shuffled = [3, 0, 4, 2, 1]
    assert bd_rate(RATE[shuffled], PSNR[shuffled], RATE * 0.8, PSNR, method=method).percent == pytest.approx(-20)


@pytest.mark.parametrize("method", ["pchip", "cubic"])
def test_exchange_inverts_the_ratio(method):
    other = RATE * [0.9, 0.92, 0.8, 0.85, 0.95], PSNR + 0.4
    there, back = bd_rate(RATE, PSNR, *other, method=method), bd_rate(*other, RATE, PSNR, method=method)
    assert (1 + there.percent / 100) * (1 + back.percent / 100) == pytest.approx(1)
    assert there[1:] == back[1:]


def test_cubic_is_exact_for_cubics():
    """log R cubic in Q on both curves: the mean difference over the overlap has a closed form."""
    qa, qb = np.array([30.0, 32, 35, 38]), np.array([31.0, 33, 36, 40])
    log_a = 0.2 * (qa - 30) + 1e-3 * (qa - 30) ** 3
    log_b = 0.3 * (qb - 30) - 0.5
    x = np.linspace(31, 38, 200_001)
    mean = np.mean(((0.3 * (x - 30) - 0.5) - (0.2 * (x - 30) + 1e-3 * (x - 30) ** 3))[:-1] + 0)
    result = bd_rate(np.exp(log_a), qa, np.exp(log_b), qb, method="cubic")
    assert result.percent == pytest.approx(100 * np.expm1(mean), rel=1e-4)
    assert result[1:] == (31, 38, 0.7)


def test_only_the_overlap_counts():
    """Beyond the overlap a curve may do what it likes; its points there only shape the interpolant's last slope."""
    q = np.arange(30.0, 40)
    anchor = np.exp(0.2 * q)
    longer = np.append(0.9 * anchor, 1000 * anchor[-1]), np.append(q, 41)
    assert bd_rate(anchor, q, 0.9 * anchor[4:], q[4:]).percent == pytest.approx(-10)
    assert bd_rate(anchor, q, 0.9 * anchor[4:], q[4:]).overlap == pytest.approx(5 / 9)
    assert bd_rate(anchor, q, *longer).percent == pytest.approx(-10, abs=0.5)


def test_pchip_does_not_overshoot_where_the_cubic_does():
    """A kink: the monotone interpolant stays between its points, so the result stays between the extreme ratios."""
    q = np.array([30.0, 31, 32, 40])
    a, b = np.array([1.0, 8, 9, 9.5]), np.array([1.0, 1.1, 9, 9.5])
    assert -86.25 <= bd_rate(a, q, b, q).percent <= 0
    assert bd_rate(a, q, b, q, method="cubic").percent != pytest.approx(bd_rate(a, q, b, q).percent, rel=0.05)


def test_published_implementation():
    """Values of bjontegaard 1.3.0 (FAU Erlangen), which agrees with the JVET spreadsheet, on its example points."""
    rate_anchor, psnr_anchor = [9487.76, 4593.60, 2486.44, 1358.24], [40.037, 38.615, 36.845, 34.851]
    rate_test, psnr_test = [9787.80, 4469.00, 2451.52, 1356.24], [40.121, 38.651, 36.970, 34.987]
    pchip = bd_rate(rate_anchor, psnr_anchor, rate_test, psnr_test)
    cubic = bd_rate(rate_anchor, psnr_anchor, rate_test, psnr_test, method="cubic")
    assert pchip.percent == pytest.approx(-4.417485350589045, abs=1e-9)
    assert cubic.percent == pytest.approx(-4.420462706026296, abs=1e-9)


def test_refusals():
    with pytest.raises(BadInput, match="share no quality"):
        bd_rate(RATE, PSNR, RATE, PSNR + 10)
    with pytest.raises(BadInput, match="share no quality"):
        bd_rate(RATE, PSNR, RATE, PSNR + (PSNR[-1] - PSNR[0]))  # they only touch
    with pytest.raises(BadInput, match="four"):
        bd_rate(RATE[:3], PSNR[:3], RATE, PSNR)
    with pytest.raises(BadInput, match="four"):
        bd_rate(RATE, PSNR[:4], RATE, PSNR)
    for rate, quality in ((RATE, PSNR[::-1]), (RATE, np.full(5, 30.0)), ([1, 3, 2, 4, 5], PSNR)):
        with pytest.raises(BadInput, match="must rise"):
            bd_rate(RATE, PSNR, rate, quality)
    for rate, quality in ((RATE - 0.12, PSNR), (RATE, PSNR * np.nan)):
        with pytest.raises(BadInput, match="positive"):
            bd_rate(rate, quality, RATE, PSNR)
    with pytest.raises(BadConfig, match="akima"):
        bd_rate(RATE, PSNR, RATE, PSNR, method="akima")
