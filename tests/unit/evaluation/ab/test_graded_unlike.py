"""Answers that are graded from a later turn on, on one side alone."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.ab.units import AbUnits, numbers_differ, units_of_rows
from evaluation.units.units import STICKY


def units(*, turns_b: int = 3, ungraded_b: int = 0, seed: int = 3) -> AbUnits:
    """Users of three turns, whose scores fall by turn alike on both sides; B's first ones are not graded."""
    rng = np.random.default_rng(seed)
    count = 1500
    names, turn = np.repeat(np.arange(count), 3), np.tile([1, 2, 3], count)
    is_b = np.repeat(rng.random(count) < 0.5, 3)
    y = 8.0 - turn + rng.normal(0.0, 1.0, 3 * count)
    y[is_b & (turn <= ungraded_b)] = np.nan
    kept = ~is_b | (turn <= turns_b)
    order = np.flatnonzero(kept)[np.argsort(turn[kept], kind="stable")]
    w, kind = np.full(len(order), 0.5), np.full(len(order), STICKY)
    return units_of_rows(names[order].astype(str), is_b[order], w, kind, y[order])


def test_first_answers_of_a_later_turn_on_one_side_make_the_test_invalid() -> None:
    found = units(ungraded_b=1)

    assert found.by_first
    assert found.graded_unlike() is not None


@pytest.mark.parametrize("turns_b", [2, 3])
def test_where_both_sides_are_graded_from_the_first_turn_they_are_compared(turns_b: int) -> None:
    found = units(turns_b=turns_b)

    assert found.by_first == (turns_b == 2)
    assert found.graded_unlike() is None


def of_two_turns(graded_a: int, graded_b: int) -> AbUnits:
    """Users of two turns, one of which is graded, another one on each side."""
    count = 600
    is_b = np.repeat(np.random.default_rng(7).random(count) < 0.5, 2)
    turn = np.tile([1, 2], count)
    y = np.where(turn == np.where(is_b, graded_b, graded_a), 1.0 / turn, np.nan)
    return units_of_rows(
        np.repeat(np.arange(count), 2), is_b, np.full(2 * count, 0.5), np.full(2 * count, STICKY), y
    )


def test_as_many_answers_of_other_turns_on_one_side_make_the_test_invalid() -> None:
    found = of_two_turns(1, 2)

    assert not found.by_first
    assert "of other turns" in (found.graded_unlike() or "")
    assert of_two_turns(2, 2).graded_unlike() is None


def test_a_grade_of_the_last_answer_is_compared_though_conversations_are_longer_on_one_side() -> None:
    rng = np.random.default_rng(5)
    is_b = rng.random(1500) < 0.5
    turns = np.where(is_b, 3, 2)
    last = np.cumsum(turns) - 1
    y = np.full(int(turns.sum()), np.nan)
    y[last] = rng.random(1500)
    w, kind = np.full(len(y), 0.5), np.full(len(y), STICKY)
    found = units_of_rows(np.repeat(np.arange(1500), turns), np.repeat(is_b, turns), w, kind, y)

    assert not found.by_first
    assert found.graded_unlike() is None


def test_numbers_of_answers_differ_also_where_neither_their_mean_nor_their_spread_does() -> None:
    rng = np.random.default_rng(3)
    is_b, w = rng.random(4000) < 0.5, np.full(4000, 0.5)
    of_a, of_b = (rng.choice(4, 4000, p=p) + 1 for p in ((0.2, 0.4, 0.1, 0.3), (0.3, 0.1, 0.4, 0.2)))

    assert numbers_differ(is_b, w, np.where(is_b, of_b, of_a))
    assert not numbers_differ(is_b, w, of_a)


@pytest.mark.slow
@pytest.mark.parametrize("w", [0.05, 0.5])
def test_like_numbers_of_answers_seldom_differ(w: float) -> None:
    """Three tests at 0.025 each, also of numbers that few units have."""
    found = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        numbers = 1 + rng.geometric(0.2, 1000)
        found += numbers_differ(rng.random(1000) < w, np.full(1000, w), numbers)

    assert found <= 24
