"""The exact sign test: by counting, by identities, and at its limit."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from evaluation.judging.paired import fewest_lost, lost_p_value


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (7, 0), (5, 1), (10, 10), (0, 9), (130, 90)])
def test_it_counts_the_ways_to_lose_so_many(lost: int, won: int) -> None:
    pairs = lost + won
    ways = sum(math.comb(pairs, count) for count in range(lost, pairs + 1))

    assert lost_p_value(lost, won) == pytest.approx(float(Fraction(ways, 2**pairs)), rel=1e-9)


def test_both_sides_hold_all_probability() -> None:
    """P(X >= 6) + P(X >= 4) of 9 pairs is 1, because one of both sides has the more."""
    assert lost_p_value(6, 3) + lost_p_value(4, 5) == pytest.approx(1.0)


@pytest.mark.parametrize("alpha", [0.4, 0.05, 0.01, 0.001])
def test_the_fewest_lost_are_just_enough(alpha: float) -> None:
    fewest = fewest_lost(alpha)
    assert lost_p_value(fewest, 0) <= alpha < lost_p_value(fewest - 1, 0)


def test_counts_and_alpha_are_checked() -> None:
    with pytest.raises(ValueError, match="counts are 0 or more"):
        lost_p_value(-1, 2)
    with pytest.raises(ValueError, match=r"outside 0\.\.1"):
        fewest_lost(1.0)
