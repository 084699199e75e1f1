"""The test of everyone who was drawn: exact where outcomes do not depend on the arm."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from evaluation.betting.everyone import (
    LOOKS,
    MULTIPLES,
    PRIOR,
    SAFETY,
    Everyone,
    EveryoneChannel,
    HarmSoFar,
    log_wealth,
)


def everyone(arm: list[int], harm: list[float], *, p: float = 0.3, groups: int = 1) -> Everyone:
    n = len(arm)
    return Everyone(
        group=np.arange(n) % groups,
        p=np.full(n, p),
        arm=np.array(arm, dtype=bool),
        harm=np.array([harm]),
        weight=np.ones(n),
        units=np.ones(n),
        before=np.zeros((1, n)),
    )


def wealth_of(look: Everyone) -> float:
    return log_wealth(look, look.excess(look.means()), 9.0)


@pytest.mark.parametrize("p", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("groups", [1, 3])
def test_over_all_coins_the_product_has_mean_one(p: float, groups: int) -> None:
    harm = [1.0, 0.2, 0.9, 0.0, 0.4, 1.0, 0.3, 0.8]
    mean = 0.0
    for arm in itertools.product((0, 1), repeat=len(harm)):
        chance = p ** sum(arm) * (1.0 - p) ** (len(arm) - sum(arm))
        mean += chance * math.exp(wealth_of(everyone(list(arm), harm, p=p, groups=groups)))

    assert mean == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("p", [0.05, 0.3])
def test_over_all_coins_the_product_of_all_rounds_has_mean_one(p: float) -> None:
    """A unit comes in some rounds, and has one coin in all of them."""
    rounds = [[1.0, 0.2, 1.0, 0.0, 1.0], [1.0, 1.0, 0.3, 0.9, 1.0], [0.1, 1.0, 1.0, 0.7, 1.0]]
    mean = 0.0
    for arm in itertools.product((0, 1), repeat=5):
        look = everyone(list(arm), rounds[0], p=p)
        for harm in rounds[1:]:
            look = replace(everyone(list(arm), harm, p=p), before=look.excess(look.means()))
        chance = p ** sum(arm) * (1.0 - p) ** (5 - sum(arm))
        mean += chance * math.exp(wealth_of(look))

    assert mean == pytest.approx(1.0, abs=1e-12)


def test_who_never_came_back_is_kept_by_origin_and_the_others_by_unit() -> None:
    so_far, base = HarmSoFar(), np.array([[0.0, 0.25, 0.5]])
    so_far.keep(np.array([9, 4]), np.array([1, 2]), np.array([[-0.5, 0.125]]), base)

    assert so_far.base_of(1, 4).tolist() == [[0.0, 0.25, 0.5, 0.0]]
    unit, origin = np.array([4, 9, 9, 5]), np.array([2, 1, 2, 2])
    assert so_far.above_of(unit, origin, 1).tolist() == [[-0.375, -0.75, 0.0, 0.0]]


def test_two_units_have_the_documented_factors() -> None:
    got = wealth_of(everyone([1, 0], [1.0, 0.0], p=0.5))
    lam = np.minimum(MULTIPLES * math.sqrt(2.0 * 9.0 / 0.125), SAFETY / 0.25)

    assert got == pytest.approx(math.log(float(np.sum(PRIOR * (1.0 + 0.25 * lam) ** 2))))


def test_equal_units_may_be_counted_in_one_row() -> None:
    apart = everyone([1, 1, 0, 0, 0, 1], [1.0, 1.0, 1.0, 1.0, 0.2, 0.7])
    rows = [0, 2, 4, 5]
    together = replace(
        apart,
        group=apart.group[rows],
        p=apart.p[rows],
        arm=apart.arm[rows],
        harm=apart.harm[:, rows],
        weight=apart.weight[rows],
        units=np.array([2.0, 2.0, 1.0, 1.0]),
        before=apart.before[:, rows],
    )

    assert wealth_of(together) == pytest.approx(wealth_of(apart), abs=1e-12)


def test_a_class_in_which_nobody_came_back_says_nothing() -> None:
    assert wealth_of(everyone([1, 0, 0, 1], [1.0] * 4)) == 0.0


def test_the_looks_of_all_rounds_spend_alpha_once() -> None:
    channel = EveryoneChannel()
    channel.decision.limit = math.log(1.0 / 0.01)
    spent = sum(
        math.exp(-channel.wanted(round_, look)) for round_ in range(1, 5001) for look in range(1, LOOKS + 1)
    )

    assert spent == pytest.approx(0.01, rel=1e-3)


def test_a_decision_stays_and_is_the_first() -> None:
    channel = EveryoneChannel()
    channel.decision.limit = 4.0
    wanted = channel.wanted(2, LOOKS)
    channel.look(wanted - 0.1, wanted, seq=7, canary=3, at_s=1.0)
    assert not channel.decision.is_reached
    channel.look(wanted, wanted, seq=9, canary=4, at_s=2.0)
    channel.look(wanted + 9.0, wanted, seq=11, canary=5, at_s=3.0)

    assert (channel.decision.seq, channel.decision.canary, channel.decision.at_s) == (9, 4, 2.0)


def test_units_that_are_not_kept_are_told_apart() -> None:
    so_far = HarmSoFar()
    assert so_far.without(np.array([4])).tolist() == []
    so_far.keep(np.array([9, 2, 5]), np.array([0, 1, 0]), np.zeros((1, 3)), np.zeros((1, 2)))
    assert so_far.unit.tolist() == [2, 5, 9]
    assert so_far.without(np.array([10, 5, 1])).tolist() == [True, False, True]
    assert so_far.without(np.array([], dtype=np.int64)).tolist() == [True] * 3
