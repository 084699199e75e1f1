"""Admission of a judge by plants and by pairs in both orders."""

from __future__ import annotations

import pytest

from evaluation.judging.admission import PairVerdict, PlantVerdict, admission


def _plants(found: int = 27, alarms: int = 1, *, bad: int = 30, good: int = 20) -> list[PlantVerdict]:
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
        (_plants(alarms=3), "15% of the good plants called bad, at most 10% may be"),
        (_plants(bad=12, found=12), "12 bad plants judged, needed 30"),
        (_plants(good=4, alarms=0), "4 good plants judged, needed 10"),
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
    found = admission(_plants(), [PairVerdict(1.0, 1.0)] * 12)
    assert (found.same, found.first) == (0.0, 1.0)
    assert found.reasons == (
        "0% of the pairs judged alike in both orders, needed 70%",
        "the first position won 100% of the comparisons, allowed 35% to 65%",
    )


def test_ties_in_both_orders_are_the_same_verdict() -> None:
    assert PairVerdict(0.5, 0.45).is_same
    assert PairVerdict(0.9, 0.1).is_same
    assert not PairVerdict(0.9, 0.5).is_same
    assert PairVerdict(0.9, None).is_same is None


def test_missing_verdicts_are_neither_found_nor_passed() -> None:
    silent = [PlantVerdict("empty", is_bad=True, called_bad=None)] * 9
    found = admission([*_plants(), *silent])
    assert found.found == 0.9
    assert found.reasons == ("15% of the verdicts are missing, at most 10% may be",)
