"""The test of everyone who was drawn: a valid p-value where no outcome depends on its unit's arm."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from evaluation.betting.everyone import LOOKS, Everyone, EveryoneChannel, HarmSoFar, surprise


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


def surprise_of(look: Everyone) -> float:
    return surprise(look, look.excess(look.means()))


def assert_valid(law: list[tuple[float, float]]) -> None:
    """law: of each outcome of the coins, its probability and surprise. P(p-value <= a) <= a for each a."""
    passed = 0.0
    for surprise_, chance in sorted(((surprise_, chance) for chance, surprise_ in law), reverse=True):
        passed += chance
        if surprise_ > 0.0:
            assert passed <= math.exp(-surprise_) * 1.005


@pytest.mark.slow
@pytest.mark.sample(3)
@pytest.mark.parametrize("p", [0.02, 0.3, 0.9, 0.99])
@pytest.mark.parametrize("groups", [1, 3])
def test_over_all_coins_of_few_units_the_p_value_is_valid(p: float, groups: int) -> None:
    harm = [1.0, 0.2, 0.9, 0.0, 0.4, 1.0, 0.3, 0.8, 1.0]
    law = [
        (
            p ** sum(arm) * (1.0 - p) ** (len(arm) - sum(arm)),
            surprise_of(everyone(list(arm), harm, p=p, groups=groups)),
        )
        for arm in itertools.product((0, 1), repeat=len(harm))
    ]

    assert_valid(law)
    assert max(surprise_ for _, surprise_ in law) > 0.5


@pytest.mark.parametrize("p", [0.05, 0.3])
def test_over_all_coins_the_p_value_of_several_rounds_is_valid(p: float) -> None:
    """A unit comes in some rounds, and has one coin in all of them."""
    rounds = [
        [1.0, 0.2, 1.0, 0.0, 1.0, 0.5, 1.0],
        [1.0, 1.0, 0.3, 0.9, 1.0, 0.1, 1.0],
        [0.1, 1, 1, 0.7, 1, 1, 1],
    ]
    law = []
    for arm in itertools.product((0, 1), repeat=7):
        look = everyone(list(arm), rounds[0], p=p)
        for harm in rounds[1:]:
            look = replace(everyone(list(arm), harm, p=p), before=look.excess(look.means()))
        law.append((p ** sum(arm) * (1.0 - p) ** (7 - sum(arm)), surprise_of(look)))

    assert_valid(law)


@pytest.mark.sample(6)
@pytest.mark.parametrize("p", [0.001, 0.02, 0.25, 0.9, 0.999])
@pytest.mark.parametrize(("bad", "good"), [(3, 60), (40, 40), (200, 12), (30, 900)])
def test_many_units_with_ties_have_a_valid_p_value(p: float, bad: int, good: int) -> None:
    """Exact over all coins: of the bad units, and of the good ones, binomially many are on the canary."""
    chances = [[math.comb(n, k) * p**k * (1.0 - p) ** (n - k) for k in range(n + 1)] for n in (bad, good)]
    law = []
    for on_bad, on_good in itertools.product(range(bad + 1), range(good + 1)):
        chance = chances[0][on_bad] * chances[1][on_good]
        if chance < 1e-11:
            continue
        look = Everyone(
            group=np.zeros(4, dtype=np.int64),
            p=np.full(4, p),
            arm=np.array([True, False, True, False]),
            harm=np.array([[1.0, 1.0, 0.0, 0.0]]),
            weight=np.ones(4),
            units=np.array([on_bad, bad - on_bad, on_good, good - on_good], dtype=np.float64),
            before=np.zeros((1, 4)),
        )
        law.append((chance, surprise_of(look)))

    assert_valid(law)


def test_a_p_value_of_many_coins_is_close_to_the_exact_one() -> None:
    """40 bad units of 400, half of all on the canary, 30 of the 40: the tail by the binomials."""
    look = Everyone(
        group=np.zeros(4, dtype=np.int64),
        p=np.full(4, 0.5),
        arm=np.array([True, False, True, False]),
        harm=np.array([[1.0, 1.0, 0.0, 0.0]]),
        weight=np.ones(4),
        units=np.array([30.0, 10.0, 180.0, 180.0]),
        before=np.zeros((1, 4)),
    )
    weights = [[math.comb(n, k) / 2**n for k in range(n + 1)] for n in (40, 360)]
    exact = sum(
        weights[0][bad] * weights[1][good]
        for bad in range(41)
        for good in range(361)
        if 0.9 * (bad - 20) - 0.1 * (good - 180) >= 9.0 - 1e-9
    )

    assert exact <= math.exp(-surprise_of(look)) <= 1.6 * exact


def test_who_never_came_back_is_kept_by_origin_and_the_others_by_unit() -> None:
    so_far, base = HarmSoFar(), np.array([[0.0, 0.25, 0.5]])
    so_far.keep(np.array([9, 4]), np.array([1, 2]), np.array([[-0.5, 0.125]]), base)

    assert so_far.base_of(1, 4).tolist() == [[0.0, 0.25, 0.5, 0.0]]
    unit, origin = np.array([4, 9, 9, 5]), np.array([2, 1, 2, 2])
    assert so_far.above_of(unit, origin, 1).tolist() == [[-0.375, -0.75, 0.0, 0.0]]


def test_two_units_have_the_documented_p_value() -> None:
    assert surprise_of(everyone([1, 0], [1.0, 0.0], p=0.5)) == pytest.approx(math.log(4.0))


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

    assert surprise_of(together) == pytest.approx(surprise_of(apart), abs=1e-12)


def test_a_class_in_which_nobody_came_back_says_nothing() -> None:
    assert surprise_of(everyone([1, 0, 0, 1], [1.0] * 4)) == 0.0


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
