"""Allocators against brute force, and against what each of them promises."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic import allocate
from laconic.allocate.table import fits
from laconic.core.errors import BadConfig, BadInput

MEMBERS = {
    name: getattr(allocate, name)
    for name in ("water_filling", "lagrangian", "greedy", "dynamic_programme", "integer_programme", "evolutionary")
}


def brute_force(rates, distortions, budget):
    """Least distortion of all n_options ** n_parts choices within the budget."""
    choices = np.array(list(itertools.product(range(rates.shape[1]), repeat=len(rates))))
    rows = np.arange(len(rates))
    rate, distortion = rates[rows, choices].sum(1), distortions[rows, choices].sum(1)
    return distortion[np.array([fits(r, budget) for r in rate]) & np.isfinite(distortion)].min()


@st.composite
def tables(draw, fractions=False):
    """Up to 5 parts × 4 options, neither monotone nor convex, some options missing, and a feasible budget."""
    shape = (draw(st.integers(1, 5)), draw(st.integers(1, 4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = 10.0 ** draw(st.integers(-9, 9))
    unit = draw(st.sampled_from([1.0, 8.0, 1e9]))
    rates = rng.uniform(0, 1e6, shape) if fractions else rng.integers(0, 13, shape) * unit
    distortions = rng.exponential(1.0, shape) * scale if draw(st.booleans()) else rng.integers(-2, 6, shape) * scale
    distortions = distortions.astype(float)
    for table in (rates, distortions):
        table[:, 1:][rng.random((shape[0], shape[1] - 1)) < 0.1] = np.inf
    there = np.isfinite(rates) & np.isfinite(distortions)
    low = np.where(there, rates, np.inf).min(1).sum()
    high = np.where(there, rates, -np.inf).max(1).sum()
    budget = low + draw(st.floats(0, 1)) * (high - low)
    if not fractions and draw(st.booleans()):
        budget = float(round(budget))
        budget = max(budget, low)
    return rates, distortions, budget


@pytest.mark.parametrize("name", MEMBERS)
@settings(max_examples=60, deadline=None)
@given(table=tables())
def test_choice_is_there_and_within_budget(name, table):
    rates, distortions, budget = table
    choice = MEMBERS[name](rates, distortions, budget)
    assert choice.shape == (len(rates),) and choice.dtype == np.int64
    rate, distortion = allocate.totals(rates, distortions, choice)
    assert rate <= budget * (1 + 1e-12) and np.isfinite(distortion)
    assert distortion >= brute_force(rates, distortions, budget) * (1 - np.sign(distortion) * 1e-12) - 1e-18


@settings(max_examples=150, deadline=None)
@given(table=tables())
def test_dynamic_programme_is_optimal(table):
    _, distortion = allocate.totals(*table[:2], allocate.dynamic_programme(*table))
    assert distortion == pytest.approx(brute_force(*table), rel=1e-12, abs=1e-18)


@settings(max_examples=150, deadline=None)
@given(table=st.one_of(tables(), tables(fractions=True)))
def test_integer_programme_is_optimal(table):
    _, distortion = allocate.totals(*table[:2], allocate.integer_programme(*table))
    best = brute_force(*table)
    gap = max(best - allocate.lower_bound(*table), 0.0)
    assert distortion == pytest.approx(best, rel=1e-11, abs=1e-5 * gap + 1e-18)


@settings(max_examples=150, deadline=None)
@given(table=st.one_of(tables(), tables(fractions=True)))
def test_lagrangian_is_within_one_segment_of_the_bound(table):
    rates, distortions, budget = table
    _, distortion = allocate.totals(rates, distortions, allocate.lagrangian(*table))
    bound, best = allocate.lower_bound(*table), brute_force(*table)
    there = np.isfinite(rates) & np.isfinite(distortions)
    widest = np.where(there, distortions, -np.inf).max(1) - np.where(there, distortions, np.inf).min(1)
    noise = 1e-12 * np.abs(distortions[there]).sum()
    assert bound <= best + noise
    assert distortion <= bound + widest.max() + noise


def test_exact_members_agree_where_brute_force_cannot_go():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        rates = rng.integers(20, 60, (25, 5)).astype(float)
        distortions = np.exp2(-rates / 10) * rng.uniform(0.5, 2, rates.shape)
        budget = rates.min(1).sum() + float(rng.integers(20, 400))
        start, programme, optimum = (
            allocate.totals(rates, distortions, solve(rates, distortions, budget))[1]
            for solve in (allocate.lagrangian, allocate.integer_programme, allocate.dynamic_programme)
        )
        gap = start - allocate.lower_bound(rates, distortions, budget)
        assert optimum * (1 - 1e-12) <= programme <= optimum + 1e-5 * gap


def test_lagrangian_is_exact_on_the_hull():
    rng = np.random.default_rng(1)
    rates, distortions = np.tile(np.arange(4.0), (6, 1)), rng.uniform(0.5, 9, (6, 1)) * 4.0 ** -np.arange(4)
    for budget in range(19):
        choice = allocate.lagrangian(rates, distortions, budget)
        best = pytest.approx(brute_force(rates, distortions, budget))
        assert allocate.totals(rates, distortions, choice) == (budget, best)
        assert allocate.greedy(rates, distortions, budget).tolist() == choice.tolist()  # Fox: convex, equal steps


def test_greedy_does_not_see_past_a_poor_level():
    rates, distortions = [[0, 1, 2], [0, 1, 2]], [[10, 10, 0], [4, 3, 2]]
    assert allocate.greedy(rates, distortions, 2).tolist() == [2, 0]  # a level that saves nothing is skipped
    distortions[0][1] = 9.5
    assert allocate.greedy(rates, distortions, 2).tolist() == [0, 2]  # one that saves little is not
    assert allocate.lagrangian(rates, distortions, 2).tolist() == [2, 0]


def test_a_choice_over_budget_by_one_in_a_billion_is_not_taken():
    """The solver's own tolerance would let it pass."""
    rng = np.random.default_rng(0)
    rates = rng.integers(10**9, 3 * 10**9, (6, 3)).astype(float)
    distortions = 1e9 / rates * rng.uniform(0.9, 1.1, rates.shape)
    for choice in itertools.islice(itertools.product(range(3), repeat=6), 0, 729, 13):
        budget = rates[np.arange(6), choice].sum() - 1
        if budget < rates.min(1).sum():
            continue
        found = allocate.totals(rates, distortions, allocate.integer_programme(rates, distortions, budget))
        assert found[0] <= budget and found[1] == pytest.approx(brute_force(rates, distortions, budget), rel=1e-9)


def test_water_filling_sees_no_curve_in_the_rounding_of_equal_distortions():
    """A slope of 1e-25 would put the level anywhere."""
    rates = np.array([[1.2e10, 1.1e10, 1e9]])
    assert allocate.water_filling(rates, np.full((1, 3), 50.0), 1e9).tolist() == [2]


def test_dynamic_programme_unit_rounds_towards_the_budget():
    rng = np.random.default_rng(2)
    rates, distortions = rng.uniform(0, 4, (5, 4)), rng.exponential(1, (5, 4))
    budget = rates.min(1).sum() + 5
    coarse, fine = (
        allocate.totals(rates, distortions, allocate.dynamic_programme(rates, distortions, budget, unit=unit))
        for unit in (0.5, 1e-5)
    )
    assert coarse[0] <= budget and fine[0] <= budget
    assert fine[1] == pytest.approx(brute_force(rates, distortions, budget)) and coarse[1] >= fine[1]
    quarters = np.round(rates * 4) / 4
    budget = quarters.min(1).sum() + 3
    choice = allocate.dynamic_programme(quarters, distortions, budget, unit=0.25)
    best = pytest.approx(brute_force(quarters, distortions, budget))
    assert allocate.totals(quarters, distortions, choice)[1] == best


def test_dynamic_programme_refuses_what_it_cannot_do(monkeypatch):
    monkeypatch.setattr("laconic.allocate.exact.MAX_CELLS", 1 << 16)
    with pytest.raises(BadConfig, match="unit"):
        allocate.dynamic_programme([[0.5, 0.75]], [[1, 0]], 1)
    with pytest.raises(BadConfig, match="positive"):
        allocate.dynamic_programme([[1, 2]], [[1, 0]], 1, unit=0)
    with pytest.raises(BadConfig, match="cells") as error:
        allocate.dynamic_programme([[0, 10**9 + 1]] * 8, [[1, 0]] * 8, 10**9, unit=1)
    least = float(str(error.value).split("unit ")[1].split()[0])
    assert allocate.dynamic_programme([[0, 10**9 + 1]] * 8, [[1, 0]] * 8, 10**9, unit=1.001 * least).tolist() == [0] * 8


def test_exchanged_tables_give_least_rate_for_a_distortion():
    rng = np.random.default_rng(3)
    rates, distortions = rng.integers(1, 9, (5, 3)).astype(float), rng.integers(0, 9, (5, 3)).astype(float)
    limit = distortions.min(1).sum() + 6
    for solve in (allocate.dynamic_programme, allocate.integer_programme):
        choice = solve(distortions, rates, limit)
        assert allocate.totals(rates, distortions, choice)[0] == brute_force(distortions, rates, limit)


@pytest.mark.parametrize("name", MEMBERS)
def test_infeasible_budget_names_the_least(name):
    rates, distortions = [[0.1, 2], [0.2, 3], [0.3, np.inf]], [[3, 1], [np.inf, 1], [3, 1]]
    with pytest.raises(BadConfig, match="out of reach") as error:
        MEMBERS[name](rates, distortions, 3.3)
    least = float(str(error.value).rsplit(" ", 1)[1])
    options = {"unit": 0.1} if name == "dynamic_programme" else {}
    assert MEMBERS[name](rates, distortions, least, **options).tolist() == [0, 1, 0]


@pytest.mark.parametrize("name", MEMBERS)
def test_bad_tables_are_refused(name):
    f = MEMBERS[name]
    for rates, distortions in (
        ([1, 2], [1, 2]),
        ([[1, 2]], [[1, 2, 3]]),
        (np.empty((0, 3)), np.empty((0, 3))),
        ([[1, np.nan]], [[1, 2]]),
        ([[1, 2], [np.inf, 1]], [[1, 2], [1, np.inf]]),
    ):
        with pytest.raises(BadInput):
            f(rates, distortions, 100)
    with pytest.raises(BadConfig):
        f([[1, 2]], [[1, 0]], np.nan)


@pytest.mark.parametrize("name", MEMBERS)
def test_an_endless_budget_buys_the_least_distortion_and_tables_stay_untouched(name):
    rates, distortions = np.array([[1.0, 5, 9], [2, 4, np.inf]]), np.array([[4.0, 1, 2], [3, 1, 0]])
    copies = rates.copy(), distortions.copy()
    assert MEMBERS[name](rates, distortions, np.inf).tolist() == [1, 1]
    np.testing.assert_array_equal(rates, copies[0])
    np.testing.assert_array_equal(distortions, copies[1])


def test_hundreds_of_parts():
    """Near-exponential parts of different sizes: all members end within .1 % of the bound."""
    rng = np.random.default_rng(4)
    size = rng.choice([1000, 4000, 11000], (300, 1))
    rates = size * np.array([2.0, 3, 4, 5, 6, 8])
    distortions = rng.lognormal(0, 2, (300, 1)) * size * 4.0 ** (-rates / size) * rng.uniform(0.9, 1.1, rates.shape)
    budget = float(3.5 * size.sum())
    bound = allocate.lower_bound(rates, distortions, budget)
    exact = []
    for name in ("water_filling", "lagrangian", "greedy", "dynamic_programme", "integer_programme"):
        rate, distortion = allocate.totals(rates, distortions, MEMBERS[name](rates, distortions, budget))
        assert rate <= budget and bound <= distortion <= bound * 1.001, name
        exact.append(distortion)
    assert exact[-1] == pytest.approx(exact[-2], rel=1e-9) and exact[-1] <= min(exact) * (1 + 1e-9)
    assert exact[-1] < allocate.totals(rates, distortions, np.full(300, 1))[1] / 2  # 3 bits for every part
