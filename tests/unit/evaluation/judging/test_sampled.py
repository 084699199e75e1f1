"""Sampled answers without a verdict: counted by arm, and too many only beyond chance."""

from __future__ import annotations

import random

import pytest

from evaluation.judging.sampled import RECOVERED, WINDOW, ArmVerdicts, SampledVerdicts


def fed(missing: float, count: int, seed: int = 1, limit: float = 0.1) -> list[bool]:
    """Whether they were too many after each answer."""
    rng, arm = random.Random(seed), ArmVerdicts()
    found = []
    for _ in range(count):
        arm.add(is_missing=rng.random() < missing)
        found.append(arm.excess(limit) is not None)
    return found


@pytest.mark.slow
def test_a_share_at_the_limit_is_hardly_ever_too_many() -> None:
    assert sum(any(fed(0.1, 1500, seed)) for seed in range(60)) <= 1


@pytest.mark.slow
def test_a_share_above_the_limit_is_found() -> None:
    assert all(fed(0.25, 600, seed)[-1] for seed in range(20))


def test_a_judge_that_never_answers_is_found_at_once() -> None:
    assert fed(1.0, 5).index(True) <= 4


@pytest.mark.parametrize("blip", [5, 40, 100, 2 * WINDOW])
def test_it_is_over_when_verdicts_come_again(blip: int) -> None:
    verdicts = SampledVerdicts()
    for _ in range(blip):
        verdicts.add(1, "timeout")
    assert verdicts.too_many(0.1) == (
        f"100% of the last {blip} sampled answers of the canary have no verdict, at most 10% may be "
        "(max_missing)"
    )
    for _ in range(RECOVERED):
        verdicts.add(1, None)

    assert verdicts.too_many(0.1) is None
    assert (verdicts.arms[1].missing, verdicts.causes) == (blip, {"timeout": blip})


def test_a_judge_that_misses_too_many_stays_so_while_it_gives_a_few_verdicts_in_a_row() -> None:
    assert all(fed(0.3, 3000)[200:])


@pytest.mark.parametrize(("limit", "is_found"), [(0.0, True), (1.0, False)])
def test_the_ends_of_the_limit(limit: float, is_found: bool) -> None:
    assert fed(0.5, 50, limit=limit)[-1] is is_found
