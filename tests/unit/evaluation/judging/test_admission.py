"""Admission of a judge by plants and by pairs in both orders."""

from __future__ import annotations

import math
import random

import pytest

from evaluation.judging.admission import PairVerdict, PlantVerdict, admission, is_silent


def _plants(found: int = 27, alarms: int = 2, *, bad: int = 30, good: int = 40) -> list[PlantVerdict]:
    made = [PlantVerdict("number", is_bad=True, called_bad=n < found) for n in range(bad)]
    return made + [PlantVerdict("good", is_bad=False, called_bad=n < alarms) for n in range(good)]


def _pairs(same: int, first: int, *, count: int = 20) -> list[PairVerdict]:
    """So many judged alike in both orders, the others by their position alone."""
    alike = [PairVerdict(1.0, 0.0) if n % 2 else PairVerdict(0.0, 1.0) for n in range(same)]
    biased = [PairVerdict(1.0, 1.0) if n < first else PairVerdict(0.0, 0.0) for n in range(count - same)]
    return alike + biased


def test_a_sound_judge_is_admitted() -> None:
    found = admission(_plants(), _pairs(18, 1))
    assert found.is_admitted
    assert (found.found, found.false_alarms, found.same, found.first) == (0.9, 0.05, 0.9, 0.5)


@pytest.mark.parametrize(
    ("plants", "reason"),
    [
        (_plants(found=23), "77% of the bad plants found, needed 80%"),
        (_plants(alarms=6), "15% of the good plants called bad, at most 10% may be"),
        (_plants(bad=12, found=12), "12 bad plants judged, needed 30"),
        (_plants(good=4, alarms=0), "4 good plants judged, needed 30"),
        ([], "0 bad plants judged, needed 30"),
    ],
)
def test_a_judge_that_finds_too_little_or_too_much_is_refused(
    plants: list[PlantVerdict], reason: str
) -> None:
    found = admission(plants)
    assert not found.is_admitted
    assert reason in found.reasons


def test_a_judge_that_always_picks_the_first_is_refused() -> None:
    found = admission(_plants(), [PairVerdict(1.0, 1.0)] * 20)
    assert (found.same, found.first) == (0.0, 1.0)
    assert found.reasons == (
        "0 pairs with one winner in both orders, needed 10",
        "0% of the pairs judged alike in both orders, needed 70%",
        "the first position won 100% of the comparisons, allowed 35% to 65%",
    )


def test_ties_in_both_orders_are_the_same_verdict() -> None:
    assert PairVerdict(0.5, 0.45).is_same
    assert PairVerdict(0.9, 0.1).is_same
    assert not PairVerdict(0.9, 0.5).is_same
    assert PairVerdict(0.9, None).is_same is None


def test_a_bad_plant_without_a_verdict_is_not_found() -> None:
    silent = [PlantVerdict("empty", is_bad=True, called_bad=None)] * 9
    found = admission([*_plants(30), *silent])
    assert found.found == pytest.approx(30 / 39)
    assert found.reasons == (
        "77% of the bad plants found, needed 80%",
        "0% of the bad plants of the kind 'empty' found, needed 50% of each",
        "23% of the bad plants have no verdict, at most 10% may have none",
    )


def test_what_is_missing_makes_a_judge_silent_unless_what_it_said_refuses_it() -> None:
    gone = [PlantVerdict("number", is_bad=True, called_bad=None)] * 9
    deaf = [PlantVerdict("empty", is_bad=True, called_bad=False)] * 20
    unjudged_pairs = [PairVerdict(None, None, True), PairVerdict(None, None), PairVerdict(0.9, None)] * 2
    pairs = [*_pairs(20, 0), *unjudged_pairs]

    assert is_silent([*_plants(30), *gone])
    assert is_silent(_plants(), pairs)
    assert not is_silent([*_plants(30), *gone, *deaf])
    assert not is_silent([*_plants(30), *gone[:1]])


def test_what_is_missing_of_one_group_is_not_thinned_by_the_others() -> None:
    silent = [PlantVerdict("good", is_bad=False, called_bad=None)] * 10
    found = admission([*_plants(30), *silent], _pairs(100, 0, count=100))
    assert found.missing == pytest.approx(10 / 280)
    assert found.reasons == ("20% of the good plants have no verdict, at most 10% may have none",)


def test_a_judge_that_is_blind_to_one_kind_is_refused() -> None:
    others = [PlantVerdict(kind, is_bad=True, called_bad=True) for kind in ("looped", "empty", "order")] * 10
    numbers = [PlantVerdict("number", is_bad=True, called_bad=n < 2) for n in range(5)]
    found = admission([*_plants(bad=0), *others, *numbers])
    assert found.found == pytest.approx(32 / 35)
    assert found.reasons == ("40% of the bad plants of the kind 'number' found, needed 50% of each",)


def test_a_judge_that_always_sees_a_tie_is_refused() -> None:
    found = admission(_plants(), [PairVerdict(0.5, 0.5)] * 40)
    assert (found.same, found.first) == (1.0, None)
    assert found.reasons == ("0 pairs with one winner in both orders, needed 10",)


@pytest.mark.parametrize("bad", [math.nan, 7.0, -3.0, math.inf])
def test_a_preference_that_is_none_is_refused(bad: float) -> None:
    found = admission(_plants(), [*_pairs(20, 0), PairVerdict(bad, 0.9)])
    assert (found.same, found.first) == (1.0, 0.5)
    assert found.reasons == ("1 pairs with a preference that is no number from 0 to 1",)


def test_a_judge_that_prefers_the_worse_answer_in_both_orders_is_refused() -> None:
    wrong = [PairVerdict(1.0, 0.0, True), PairVerdict(0.0, 1.0, False)] * 10
    found = admission(_plants(), wrong)
    assert (found.same, found.first, found.better) == (1.0, 0.5, 0.0)
    assert found.reasons == ("the better answer won 0% of the comparisons, needed 80%",)
    right = [PairVerdict(0.0, 1.0, True), PairVerdict(1.0, 0.0, False)] * 10
    assert admission(_plants(), right).is_admitted


@pytest.mark.slow
def test_a_coin_is_no_judge() -> None:
    """Of 4,000 pairs whose better answer is known, in examinations of 20."""
    rng, admitted = random.Random(3), 0
    for _ in range(200):
        pairs = [PairVerdict(float(rng.random() < 0.5), float(rng.random() < 0.5), n < 10) for n in range(20)]
        admitted += admission(_plants(), pairs).is_admitted
    assert admitted == 0


@pytest.mark.slow
def test_twenty_pairs_that_nobody_knows_admit_a_coin_seldom() -> None:
    rng, admitted = random.Random(4), 0
    for _ in range(200):
        pairs = [PairVerdict(float(rng.random() < 0.5), float(rng.random() < 0.5)) for _ in range(20)]
        admitted += admission(_plants(), pairs).is_admitted
    assert admitted <= 20


def test_ten_pairs_and_ten_good_plants_are_too_few() -> None:
    found = admission(_plants(good=10, alarms=0), _pairs(10, 0, count=10))
    assert found.reasons == ("10 good plants judged, needed 30", "10 pairs in both orders judged, needed 20")
