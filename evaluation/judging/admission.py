"""Admission of a judge: what it must show on answers whose truth is known before its verdicts count.

Rules:
1. Plants are judged blind, among others: answers made wrong (an entity or a number swapped, another
   question's answer, cut off, looped, empty) and answers known to be good.
2. A judge that compares two answers sees each pair in both orders. What it says of a pair must not depend on
   the order, nor may it prefer a position.
3. A verdict that is missing is none: a plant without one is neither found nor passed.

Source: the thresholds are those of the design; positions as in Zheng et al. 2023 (MT-Bench), section 3.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MIN_BAD, MIN_GOOD = 30, 10
MIN_PAIRS = 10
MIN_FOUND = 0.8  # of the bad plants
MAX_FALSE = 0.1  # of the good ones
MIN_SAME = 0.7  # of the pairs, in both orders
FIRST_RANGE = (0.35, 0.65)  # share of the decided comparisons that the first position wins
MAX_MISSING = 0.1


@dataclass(frozen=True, slots=True)
class PlantVerdict:
    """What the judge said of one plant. None: nothing that could be read."""

    kind: str  # 'number', 'truncated', ...; 'good'
    is_bad: bool
    called_bad: bool | None


@dataclass(frozen=True, slots=True)
class PairVerdict:
    """A pair in both orders: how much the first shown was preferred, 0 to 1, 0.5 a tie; None: missing."""

    shown_as_is: float | None
    shown_swapped: float | None

    @property
    def is_same(self) -> bool | None:
        """Whether the same answer won, or neither did, in both orders; None: one is missing."""
        if self.shown_as_is is None or self.shown_swapped is None:
            return None
        return _side(self.shown_as_is) == -_side(self.shown_swapped)


@dataclass(frozen=True, slots=True)
class Admission:
    """The result. None: no such plant or pair was judged. `reasons`: why it is refused; empty: it is not."""

    found: float | None  # share of the bad plants that it called bad
    false_alarms: float | None  # share of the good ones
    same: float | None  # share of the pairs with the same verdict in both orders
    first: float | None  # share of the decided comparisons that the first position won
    missing: float  # share of all verdicts
    reasons: tuple[str, ...]

    @property
    def is_admitted(self) -> bool:
        """Whether its verdicts count."""
        return not self.reasons


def admission(plants: Sequence[PlantVerdict], pairs: Sequence[PairVerdict] = ()) -> Admission:
    """Whether a judge is admitted by these verdicts. pairs: of a judge that compares; empty: it does not."""
    bad = [one.called_bad for one in plants if one.is_bad and one.called_bad is not None]
    good = [one.called_bad for one in plants if not one.is_bad and one.called_bad is not None]
    same = [one.is_same for one in pairs if one.is_same is not None]
    shown = [value for pair in pairs for value in (pair.shown_as_is, pair.shown_swapped)]
    sides = [_side(value) for value in shown if value is not None]
    wins = [side > 0 for side in sides if side]
    asked = len(plants) + len(shown)
    missing = sum(one.called_bad is None for one in plants) + sum(value is None for value in shown)
    found, false_alarms, first = _share(bad), _share(good), _share(wins)
    reasons = [*_few("bad plants", len(bad), MIN_BAD), *_few("good plants", len(good), MIN_GOOD)]
    if found is not None and found < MIN_FOUND:
        reasons.append(f"{found:.0%} of the bad plants found, needed {MIN_FOUND:.0%}")
    if false_alarms is not None and false_alarms > MAX_FALSE:
        reasons.append(f"{false_alarms:.0%} of the good plants called bad, at most {MAX_FALSE:.0%} may be")
    if pairs:
        share = _share(same)
        reasons += _few("pairs in both orders", len(same), MIN_PAIRS)
        if share is not None and share < MIN_SAME:
            reasons.append(f"{share:.0%} of the pairs judged alike in both orders, needed {MIN_SAME:.0%}")
        low, high = FIRST_RANGE
        if first is not None and not low <= first <= high:
            allowed = f"allowed {low:.0%} to {high:.0%}"
            reasons.append(f"the first position won {first:.0%} of the comparisons, {allowed}")
    if asked and missing / asked > MAX_MISSING:
        reasons.append(f"{missing / asked:.0%} of the verdicts are missing, at most {MAX_MISSING:.0%} may be")
    return Admission(
        found, false_alarms, _share(same), first, missing / asked if asked else 0.0, tuple(reasons)
    )


def _side(preference: float) -> int:
    """1: the first shown won, -1: the second, 0: a tie, within a tenth of one half."""
    return 0 if abs(preference - 0.5) < 0.1 else 1 if preference > 0.5 else -1


def _share(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def _few(what: str, count: int, needed: int) -> list[str]:
    return [f"{count} {what} judged, needed {needed}"] if count < needed else []
