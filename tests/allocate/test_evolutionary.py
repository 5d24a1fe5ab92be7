"""The evolutionary allocator: elitist, seeded, within the budget, and able to see what tables cannot say."""

import itertools

import numpy as np
import pytest

from laconic.allocate import dynamic_programme, evolutionary, lagrangian, totals
from laconic.core.errors import BadConfig, BadInput

SIZES = np.array([1, 1.01, 2, 3.02, 1, 2, 1, 1])
RATES = SIZES[:, None] * np.arange(1.0, 5)
DISTORTIONS = np.array([5, 1, 2, 9, 4, 4, 0.5, 7])[:, None] * 4.0 ** -np.arange(4)
BUDGET = 30.0


def interacting(choice):
    """Neighbours that are both coarse hurt far more than the sum of the two says."""
    error = DISTORTIONS[np.arange(8), choice]
    return float(error.sum() + 30 * (error[1:] * error[:-1]).sum())


def test_every_choice_that_is_measured_keeps_the_budget():
    seen = []

    def spy(choice):
        seen.append(choice.copy())
        return interacting(choice)

    result = evolutionary(RATES, DISTORTIONS, BUDGET, objective=spy, generations=30)
    assert len(seen) == len({c.tobytes() for c in seen}) > 50  # none is measured twice
    assert all(totals(RATES, DISTORTIONS, c)[0] <= BUDGET for c in seen)
    assert interacting(result) == min(map(interacting, seen))


def test_it_beats_the_additive_optimum_where_losses_interact():
    additive = dynamic_programme(RATES, DISTORTIONS, BUDGET, unit=0.01)
    found = evolutionary(RATES, DISTORTIONS, BUDGET, objective=interacting, generations=300)
    choices = map(np.array, itertools.product(range(4), repeat=8))
    feasible = [c for c in choices if totals(RATES, DISTORTIONS, c)[0] <= BUDGET]
    assert totals(RATES, DISTORTIONS, additive)[1] <= totals(RATES, DISTORTIONS, found)[1]
    assert interacting(found) < interacting(additive)
    assert interacting(found) == pytest.approx(min(map(interacting, feasible)))


def test_it_climbs_from_a_poor_start_to_the_additive_optimum():
    best = totals(RATES, DISTORTIONS, dynamic_programme(RATES, DISTORTIONS, BUDGET, unit=0.01))[1]
    found = evolutionary(RATES, DISTORTIONS, BUDGET, start=np.zeros(8, int), generations=200)
    assert totals(RATES, DISTORTIONS, found)[1] == pytest.approx(best)


def test_seeds():
    def run(seed):
        return tuple(evolutionary(RATES, DISTORTIONS, BUDGET, objective=interacting, generations=1, seed=seed))

    assert run(5) == run(5)
    assert len({run(seed) for seed in range(8)}) > 1


def test_no_generations_give_the_start():
    first = lagrangian(RATES, DISTORTIONS, BUDGET)
    assert evolutionary(RATES, DISTORTIONS, BUDGET, generations=0).tolist() == first.tolist()
    assert evolutionary(RATES, DISTORTIONS, BUDGET, start=[1] * 8, generations=0).tolist() == [1] * 8


def test_screens_let_only_the_best_through():
    measured = []

    def costly(choice):
        measured.append(1)
        return interacting(choice)

    found = evolutionary(
        RATES, DISTORTIONS, BUDGET, objective=costly, generations=60,
        screens=[(lambda c: totals(RATES, DISTORTIONS, c)[1], 6), (interacting, 1)],
    )  # fmt: skip
    assert len(measured) <= 61  # the start, and one survivor a generation
    assert interacting(found) < interacting(lagrangian(RATES, DISTORTIONS, BUDGET))


def test_bad_arguments():
    for start in ([0] * 7, [0.5] * 8, [4] * 8, [-1] * 8):
        with pytest.raises(BadInput, match="start"):
            evolutionary(RATES, DISTORTIONS, BUDGET, start=start)
    with pytest.raises(BadConfig, match="start costs"):
        evolutionary(RATES, DISTORTIONS, BUDGET, start=[3] * 8)
    for wrong in ({"generations": -1}, {"offspring": 0}, {"screens": [(interacting, 0)]}):
        with pytest.raises(BadConfig, match="must hold"):
            evolutionary(RATES, DISTORTIONS, BUDGET, **wrong)
    with pytest.raises(BadInput, match="NaN"):
        evolutionary(RATES, DISTORTIONS, BUDGET, objective=lambda choice: float("nan"))
