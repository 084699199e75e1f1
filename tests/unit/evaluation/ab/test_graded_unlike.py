"""Answers that are graded from a later turn on, on one side alone."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.ab.units import AbUnits, units_of_rows
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
