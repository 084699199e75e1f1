"""Admission of a judge: what it must show on answers whose truth is known before its verdicts count.

Rules:
1. Plants are judged blind, among others: answers made wrong (an entity or a number swapped, another
   question's answer, cut off, looped, empty) and answers known to be good.
2. No kind of wrong answer may pass as a rule: a canary can have that fault alone.
3. A judge that compares two answers sees each pair in both orders. What it says of a pair must not depend on
   the order, nor may it prefer a position; it must decide, and where the better one is known, for that.
4. A verdict that is missing is none: a plant without one is neither found nor passed. It counts against its
   own group, of which MAX_MISSING may be missing, and not against all that was asked.
5. A judge is refused for what it said. Where more is missing, and right verdicts in place of the missing ones
   would admit it, nothing is known of it: it was away, or is overloaded (`is_silent`).

Source: the thresholds are those of the design; positions as in Zheng et al. 2023 (MT-Bench), section 3.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

T = TypeVar("T")

# With 10 good ones, a judge that calls a quarter of them bad passed by chance: 24 %.
MIN_BAD, MIN_GOOD = 30, 30
MIN_PAIRS = 20  # with 10, a coin was admitted in 17 % of examinations
MIN_DECIDED = 10  # pairs with the same winner in both orders: a judge of ties would prove any margin
MIN_FOUND = 0.8  # of the bad plants, and of the comparisons whose better answer is known
MIN_OF_KIND = 0.5  # of the bad plants of each kind
MAX_FALSE = 0.1  # of the good ones
MIN_SAME = 0.7  # of the pairs, in both orders
FIRST_RANGE = (0.35, 0.65)  # share of the decided comparisons that the first position wins
MAX_MISSING = 0.1  # of the bad plants, of the good ones, of the comparisons


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
    first_is_bad: bool | None = None  # of the two as they are; None: nobody knows which is better

    @property
    def is_out_of_range(self) -> bool:
        """Whether a preference is no number from 0 to 1."""
        return any(value is not None and not 0.0 <= value <= 1.0 for value in self.shown)

    @property
    def shown(self) -> tuple[float | None, float | None]:
        """Both preferences."""
        return self.shown_as_is, self.shown_swapped

    @property
    def is_same(self) -> bool | None:
        """Whether the same answer won, or neither did, in both orders; None: one is missing."""
        if self.shown_as_is is None or self.shown_swapped is None or self.is_out_of_range:
            return None
        return _side(self.shown_as_is) == -_side(self.shown_swapped)


@dataclass(frozen=True, slots=True)
class Admission:
    """The result. None: no such plant or pair was judged. `reasons`: why it is refused; empty: it is not."""

    found: float | None  # share of the bad plants that it called bad; one without a verdict is not found
    false_alarms: float | None  # share of the good ones, of those with a verdict
    same: float | None  # share of the pairs with the same verdict in both orders
    first: float | None  # share of the decided comparisons that the first position won
    missing: float  # share of all verdicts
    reasons: tuple[str, ...]
    better: float | None = None  # share of the comparisons won by the answer that is known to be better

    @property
    def is_admitted(self) -> bool:
        """Whether its verdicts count."""
        return not self.reasons


def admission(plants: Sequence[PlantVerdict], pairs: Sequence[PairVerdict] = ()) -> Admission:
    """Whether a judge is admitted by these verdicts. pairs: of a judge that compares; empty: it does not."""
    bad = [one.called_bad for one in plants if one.is_bad]
    good = [one.called_bad for one in plants if not one.is_bad]
    valid = [one for one in pairs if not one.is_out_of_range]
    shown = [value for pair in valid for value in pair.shown]
    found, false_alarms = _share([called is True for called in bad]), _share(_known(good))
    reasons = [
        *_few("bad plants", len(_known(bad)), MIN_BAD),
        *_few("good plants", len(_known(good)), MIN_GOOD),
    ]
    if found is not None and found < MIN_FOUND:
        reasons.append(f"{found:.0%} of the bad plants found, needed {MIN_FOUND:.0%}")
    reasons += _missed_kinds(plants)
    if false_alarms is not None and false_alarms > MAX_FALSE:
        reasons.append(f"{false_alarms:.0%} of the good plants called bad, at most {MAX_FALSE:.0%} may be")
    if len(valid) < len(pairs):
        reasons.append(f"{len(pairs) - len(valid)} pairs with a preference that is no number from 0 to 1")
    if pairs:
        reasons += _of_pairs(valid)
    groups = (("bad plants", bad), ("good plants", good), ("comparisons", shown))
    reasons += [reason for what, said in groups for reason in _missing(what, said)]
    said = [*bad, *good, *shown]
    return Admission(
        found,
        false_alarms,
        _share(_known([one.is_same for one in valid])),
        _share(_first_wins(valid)),
        sum(one is None for one in said) / len(said) if said else 0.0,
        tuple(reasons),
        _share(_better_wins(valid)),
    )


def is_silent(plants: Sequence[PlantVerdict], pairs: Sequence[PairVerdict] = ()) -> bool:
    """Whether it is not admitted for its missing verdicts alone: right ones would admit it."""
    shown = [value for pair in pairs if not pair.is_out_of_range for value in pair.shown]
    groups = (
        [one.called_bad for one in plants if one.is_bad],
        [one.called_bad for one in plants if not one.is_bad],
        shown,
    )
    if not any(_missing("", said) for said in groups):
        return False
    return admission(
        [one if one.called_bad is not None else replace(one, called_bad=one.is_bad) for one in plants],
        [_completed(one) for one in pairs],
    ).is_admitted


def _completed(pair: PairVerdict) -> PairVerdict:
    """The pair with right verdicts for those that are missing."""
    right = 0.0 if pair.first_is_bad else 1.0
    if pair.first_is_bad is None and (known := _known(pair.shown)):
        right = known[0] if pair.shown_as_is is not None else 1.0 - known[0]
    return replace(
        pair,
        shown_as_is=right if pair.shown_as_is is None else pair.shown_as_is,
        shown_swapped=1.0 - right if pair.shown_swapped is None else pair.shown_swapped,
    )


def _missed_kinds(plants: Sequence[PlantVerdict]) -> list[str]:
    """The kinds of bad plants of which it found too few."""
    kinds: dict[str, list[bool]] = {}
    for one in plants:
        if one.is_bad:
            kinds.setdefault(one.kind, []).append(one.called_bad is True)
    shares = {kind: sum(found) / len(found) for kind, found in kinds.items()}
    return [
        f"{share:.0%} of the bad plants of the kind {kind!r} found, needed {MIN_OF_KIND:.0%} of each"
        for kind, share in shares.items()
        if share < MIN_OF_KIND
    ]


def _of_pairs(pairs: Sequence[PairVerdict]) -> list[str]:
    """Why its comparisons do not count."""
    same = _known([one.is_same for one in pairs])
    decided = sum(one.is_same is True and _side(one.shown_as_is or 0.0) != 0 for one in pairs)
    share, first, better = _share(same), _share(_first_wins(pairs)), _share(_better_wins(pairs))
    reasons = _few("pairs in both orders", len(same), MIN_PAIRS)
    if decided < MIN_DECIDED:
        reasons.append(f"{decided} pairs with one winner in both orders, needed {MIN_DECIDED}")
    if share is not None and share < MIN_SAME:
        reasons.append(f"{share:.0%} of the pairs judged alike in both orders, needed {MIN_SAME:.0%}")
    low, high = FIRST_RANGE
    if first is not None and not low <= first <= high:
        allowed = f"allowed {low:.0%} to {high:.0%}"
        reasons.append(f"the first position won {first:.0%} of the comparisons, {allowed}")
    if better is not None and better < MIN_FOUND:
        reasons.append(f"the better answer won {better:.0%} of the comparisons, needed {MIN_FOUND:.0%}")
    return reasons


def _first_wins(pairs: Sequence[PairVerdict]) -> list[bool]:
    """Of the decided comparisons, whether the first shown won."""
    return [side > 0 for pair in pairs for value in _known(pair.shown) if (side := _side(value))]


def _better_wins(pairs: Sequence[PairVerdict]) -> list[bool]:
    """Of the comparisons whose better answer is known, whether it won; a tie and none are no win."""
    wins = []
    for pair in pairs:
        if pair.first_is_bad is not None:
            sides = [0 if value is None else _side(value) for value in pair.shown]
            wins += [
                sides[0] == (-1 if pair.first_is_bad else 1),
                sides[1] == (1 if pair.first_is_bad else -1),
            ]
    return wins


def _missing(what: str, said: Sequence[object | None]) -> list[str]:
    share = sum(one is None for one in said) / len(said) if said else 0.0
    if share <= MAX_MISSING:
        return []
    return [f"{share:.0%} of the {what} have no verdict, at most {MAX_MISSING:.0%} may have none"]


def _known(values: Iterable[T | None]) -> list[T]:
    return [value for value in values if value is not None]


def _side(preference: float) -> int:
    """1: the first shown won, -1: the second, 0: a tie, within a tenth of one half."""
    return 0 if abs(preference - 0.5) < 0.1 else 1 if preference > 0.5 else -1


def _share(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def _few(what: str, count: int, needed: int) -> list[str]:
    return [f"{count} {what} judged, needed {needed}"] if count < needed else []
